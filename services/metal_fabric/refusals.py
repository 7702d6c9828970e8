"""From a rule's refusal to the answer of an RPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metal_kit.errors import FailedPrecondition, InvalidArgument, Problem, ResourceExhausted

from metal_fabric.problems import Exhausted, Invalid, Refused


@contextmanager
def answered() -> Iterator[None]:
    """Raise the Problem for a Refused that the block raises."""
    try:
        yield
    except Refused as refused:
        raise problem_of(refused) from refused


def problem_of(refused: Refused) -> Problem:
    """INVALID_ARGUMENT when the request contradicts itself, RESOURCE_EXHAUSTED when something is used up, otherwise
    FAILED_PRECONDITION."""
    kind: type[Problem] = FailedPrecondition
    if isinstance(refused, Invalid):
        kind = InvalidArgument
    elif isinstance(refused, Exhausted):
        kind = ResourceExhausted
    return kind(refused.reason, refused.message, field=refused.field)
