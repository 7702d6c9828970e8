"""Each failure: one line on standard error that says what, where and what to do, and an exit code."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from metal_kit import errors
from metal_kit.errors import Problem, Violation, problem_from_rpc
from metalctl.context import Context
from metalctl.failure import EXIT_HELP, exit_code, explain

CASES: list[tuple[Problem, int, str]] = [
    (errors.InvalidArgument("INVALID_FIELD", "must be a valid UUID", field="id"), 2,
     "id: must be a valid UUID [INVALID_FIELD]"),
    (errors.InvalidArgument("X", "tenant.name is too long", field="tenant.name"), 2, "tenant.name is too long [X]"),
    (errors.InvalidArgument("INVALID_FIELDS", "2", violations=[Violation("a", "is odd"), Violation("b.c", "is even")]),
     2, "a: is odd; b.c: is even [INVALID_FIELDS]"),
    (errors.NotFound("NOT_FOUND", "machine 7 does not exist"), 3, "machine 7 does not exist [NOT_FOUND]"),
    (errors.AlreadyExists("NAME_TAKEN", "choose another name", field="tenant.name"), 1,
     "tenant.name: choose another name [NAME_TAKEN]"),
    (errors.FailedPrecondition("HAS_PROJECTS", "it has projects; delete them first"), 1,
     "it has projects; delete them first [HAS_PROJECTS]"),
    (errors.Aborted("CHANGED", "read it again"), 1, "read it again [CHANGED]"),
    (errors.OutOfRange("OLD", "too old"), 1, "too old [OLD]"),
    (errors.ResourceExhausted("NO_MACHINE", "0 of 4 machines wait", retry_after=timedelta(seconds=30)), 1,
     "0 of 4 machines wait [NO_MACHINE]; try again in 30 s"),
    (errors.PermissionDenied("ROLE", "needs editor"), 4,
     "needs editor [ROLE]; what you have: metalctl whoami"),
    (errors.Unauthenticated("TOKEN_INVALID", "the token does not hold"), 4,
     "the token does not hold [TOKEN_INVALID]; the token is from $METALPLANE_TOKEN"),
    (errors.Unauthenticated("CERTIFICATE_EXPIRED", "the certificate has expired"), 4,
     "the certificate has expired [CERTIFICATE_EXPIRED]; it is {cert}"),
    (errors.Unavailable("NO_DATABASE", "try again"), 5, "try again [NO_DATABASE]"),
    (errors.Unavailable("TRANSPORT_UNAVAILABLE", "not there", metadata={"peer": "ipam"}), 5,
     "ipam at 10.0.0.1:9 cannot be reached; is the plane of context lab ({path}) running? [TRANSPORT_UNAVAILABLE]"),
    (errors.DeadlineExceeded("TRANSPORT_DEADLINE_EXCEEDED", "late", metadata={"peer": "ipam"}), 5,
     "ipam at 10.0.0.1:9 did not answer in time [TRANSPORT_DEADLINE_EXCEEDED]"),
    (errors.Unimplemented("TRANSPORT_UNIMPLEMENTED", "does not know the method"), 1,
     "does not know the method [TRANSPORT_UNIMPLEMENTED]"),
    (errors.PeerFailed("INTERNAL", "an internal error, log id 4711"), 1, "an internal error, log id 4711 [INTERNAL]"),
    (errors.FailedPrecondition("PEER_NOT_CONFIGURED", "no endpoint for bmc"), 1,
     "no endpoint for bmc [PEER_NOT_CONFIGURED]; look at endpoints in {path}"),
]  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        tmp_path / "context.json", "lab", {"ipam": "10.0.0.1:9"}, tmp_path / "ca.crt", tmp_path / "tls.crt",
        tmp_path / "tls.key", "very.secret.token", "$METALPLANE_TOKEN",
    )  # fmt: skip


@pytest.mark.parametrize(("problem", "code", "text"), CASES, ids=lambda value: getattr(value, "reason", ""))
def test_each_kind_of_problem_has_a_line_and_a_code(context: Context, problem: Problem, code: int, text: str) -> None:
    said = explain(problem, context)
    assert said == text.format(path=context.path, cert=context.cert)
    assert exit_code(problem) == code
    assert "very.secret" not in said


def test_every_kind_of_problem_that_there_is_was_tried() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Problem)}
    assert kinds - {Problem} == {type(problem) for problem, _, _ in CASES}


@pytest.mark.parametrize("code", sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK}, key=str))
def test_every_grpc_status_ends_with_a_documented_code(context: Context, code: grpc.StatusCode) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="very.secret.token inside")
    problem = problem_from_rpc(error)
    assert f" {exit_code(problem)} " in EXIT_HELP.replace(":", " ")
    said = explain(problem, context)
    assert f"[TRANSPORT_{code.name}]" in said
    assert "very.secret" not in said


@pytest.mark.parametrize(
    "details", ["Tls handshake failed: CERTIFICATE_VERIFY_FAILED", "ipv4:10.0.0.1:9: Socket closed"]
)
def test_a_server_that_hangs_up_is_told_apart_from_one_that_is_not_there(context: Context, details: str) -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
    problem = problem_from_rpc(error)
    problem.metadata["peer"] = "ipam"
    assert explain(problem, context) == (
        f"ipam at 10.0.0.1:9 answers, but not to this context: are {context.ca} and {context.cert} of the same plane? "
        "[TRANSPORT_UNAVAILABLE]"
    )


def test_a_problem_is_one_line_on_standard_error_and_nothing_on_standard_output(call: Any, plane: Any) -> None:
    for problem, code, _ in CASES:
        plane.answers["ListTenants"] = problem
        for output in ("table", "json"):
            outcome = call("tenant", "list", "-o", output)
            assert (outcome.code, outcome.out) == (code, "")
            assert outcome.err.startswith("metalctl: ")
            assert outcome.err.count("\n") == 1
            assert "Traceback" not in outcome.err


def test_what_a_service_says_cannot_reach_the_terminal(call: Any, plane: Any) -> None:
    plane.answers["ListTenants"] = errors.NotFound("NOT_FOUND", "no \x1b[31mproject\nmetalctl: all is well")
    outcome = call("tenant", "list")
    assert outcome.err == "metalctl: no \\x1b[31mproject\\nmetalctl: all is well [NOT_FOUND]\n"


def test_a_defect_is_not_dressed_up_as_a_result(call: Any, plane: Any) -> None:
    plane.answers["ListTenants"] = RuntimeError("a defect of metalctl")
    with pytest.raises(RuntimeError, match="a defect"):
        call("tenant", "list")
