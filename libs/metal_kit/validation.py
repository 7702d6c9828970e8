"""Rules of the contracts (protovalidate), with the offending field named in the answer.

The interceptor checks every request; handlers check what results from an update, since a request with a field mask is
valid when its outcome is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import protovalidate
from google.protobuf import message_factory
from google.protobuf.message import Message

from metal_kit.errors import MAX_VIOLATIONS, InvalidArgument, Violation

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

_validator = protovalidate.Validator()


def check(message: Message, *, field: str = "") -> None:
    """Raise InvalidArgument with one violation a broken rule; `field` is the path that leads to the message."""
    found = _validator.collect_violations(message)
    if not found:
        return
    violations = [_translate(each.proto, field) for each in found[:MAX_VIOLATIONS]]
    first = violations[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    text = f"{first.field}: {first.description}{more}" if first.field else f"{first.description}{more}"
    raise InvalidArgument("INVALID_FIELD", text, violations=violations)


def warm(descriptors: Iterable[Descriptor]) -> None:
    """Compile the rules of these messages now: the first check of a type costs some 20 ms, and a rule that does not
    compile is a defect to find at the start. Raises `protovalidate.CompilationError` for such a rule."""
    for descriptor in descriptors:
        _validator.collect_violations(message_factory.GetMessageClass(descriptor)())


def _translate(violation: protovalidate.ViolationPb, prefix: str) -> Violation:
    path = _path(violation)
    return Violation(
        f"{prefix}.{path}" if prefix and path else prefix or path,
        violation.message or violation.rule_id,
        _reason(violation.rule_id),
    )


def _path(violation: protovalidate.ViolationPb) -> str:
    """`networks[2].prefixes`, `labels["a"]`: the path of a violation as people write it."""
    parts: list[str] = []
    for element in violation.field.elements if violation.field else ():
        name = str(element.field_name)
        if element.subscript is not None:
            value = element.subscript.value
            name += f'["{value}"]' if isinstance(value, str) else f"[{value}]"
        parts.append(name)
    return ".".join(parts)


def _reason(rule_id: str) -> str:
    """`string.max_len` becomes `STRING_MAX_LEN`; BadRequest demands UPPER_SNAKE_CASE."""
    return "".join(sign if sign.isalnum() else "_" for sign in rule_id).upper()[:63]
