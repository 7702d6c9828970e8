"""Problems on the wire and back."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st
from metal_kit import errors
from metal_kit.errors import InvalidArgument, PeerFailed, Problem, Unavailable, Violation, problem_from_rpc

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, Problem) and kind is not Problem
]


def _wire(problem: Problem) -> grpc.aio.AioRpcError:
    status = problem.to_status()
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(problem.code, grpc.aio.Metadata(), trailing, details=status.message)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_problem_comes_back_as_itself(kind: type[Problem]) -> None:
    sent = kind("SOME_REASON", "what is wrong", field="a.b", metadata={"id": "7"}, retry_after=timedelta(seconds=3))
    got = problem_from_rpc(_wire(sent))
    assert type(got) is kind
    assert (got.reason, got.message, got.field) == ("SOME_REASON", "what is wrong", "a.b")
    assert got.metadata == {"id": "7"}
    assert got.retry_after == timedelta(seconds=3)
    assert got.to_status().code == code_pb2.Code.Value(kind.code.name)


@given(
    reason=st.from_regex(r"[A-Z][A-Z_]{0,20}", fullmatch=True),
    message=st.text(max_size=300),
    metadata=st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=4),
    fields=st.lists(st.tuples(st.text(min_size=1, max_size=30), st.text(max_size=50)), max_size=5),
)
def test_what_a_problem_says_survives_the_wire(
    reason: str, message: str, metadata: dict[str, str], fields: list[tuple[str, str]]
) -> None:
    sent = InvalidArgument(reason, message, metadata=metadata, violations=[Violation(*each) for each in fields])
    got = problem_from_rpc(_wire(sent))
    assert (got.reason, got.message, got.metadata, got.violations) == (
        reason, message, metadata, sent.violations,
    )  # fmt: skip


def test_a_long_problem_is_cut_to_what_headers_can_carry() -> None:
    violations = [Violation("f" * 1000, "d" * 1000)] * 1000
    status = InvalidArgument("TOO_LONG", "m" * 100_000, violations=violations).to_status()
    assert status.ByteSize() < 16 * 1024


def test_a_failure_of_the_transport_gets_a_fixed_text() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="ipv4:10.1.2.3:443: refused"
    )
    problem = problem_from_rpc(error)
    assert isinstance(problem, Unavailable)
    assert problem.reason == "TRANSPORT_UNAVAILABLE"
    assert "10.1.2.3" not in problem.message
    assert problem.__cause__ is error


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_code_becomes_some_problem(code: grpc.StatusCode) -> None:
    problem = problem_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata()))
    assert isinstance(problem, Problem)
    if code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}:
        assert isinstance(problem, PeerFailed)


def test_details_that_contradict_the_status_are_not_believed() -> None:
    status = InvalidArgument("REASON", "text").to_status()
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    problem = problem_from_rpc(
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailing, details="other")
    )
    assert problem.reason == "TRANSPORT_UNAVAILABLE"
