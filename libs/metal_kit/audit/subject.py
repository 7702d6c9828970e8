"""What a call is about: which fields of a method's messages hold the object's id, its project and its tenant.

Found once a method, from the contract: the scope that the access rule names, then the names that the contracts give to
ids. An object's id may be known only from the answer (a create), its project only from what the handler asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from metalplane.common.v1.access_pb2 import ScopeKind

from metal_kit.access import Rule
from metal_kit.audit.entry import MOST_FIELDS, clean

Read = Callable[[Any], str]

_IDS = ("id", "machine", "address", "cidr", "switch_id", "user")
_NESTED = ("id", "machine", "address", "cidr")
# Messages within a request that are values of the object, or name somebody else.
_OTHERS = ("spec", "hardware", "bios", "boot_info")
_SPEAKERS = {ScopeKind.SCOPE_KIND_MACHINE, ScopeKind.SCOPE_KIND_LEAF}


class Subject:
    """Reads the subject of one method's calls."""

    def __init__(self, method: MethodDescriptor, rule: Rule) -> None:
        asked, answer = method.input_type, method.output_type
        scope = [rule.scope_path] if rule.scope_path else []
        tops = scope if rule.scope in _SPEAKERS else [(name,) for name in _IDS]
        nested = [] if rule.scope in _SPEAKERS else _nested_ids(asked)
        partition = scope if rule.scope == ScopeKind.SCOPE_KIND_PARTITION else []
        # What the request names by itself, else what came of it, else what it carries.
        self._named = _reader(_known(asked, tops))
        self._made = _reader(_known(answer, [*((name,) for name in _IDS), ("token", "id")]))
        self._carried = _reader(_known(asked, [*nested, *partition]))
        self._project = _reader(scope if rule.scope == ScopeKind.SCOPE_KIND_PROJECT else [])
        created = [("id",)] if answer.name == "Project" else []
        self._project_made = _reader(_known(answer, [*created, ("project",)]))
        self._project_named = _reader(_known(asked, [("project",)]))
        self.tenant = _reader(scope if rule.scope == ScopeKind.SCOPE_KIND_TENANT else [])
        mask = asked.fields_by_name.get("update_mask")
        self._mask = mask.name if mask is not None else ""

    def object(self, request: Any, answer: Any = None) -> str:
        """Id of the object; `answer` is None while there is none."""
        return self._named(request) or (self._made(answer) if answer is not None else "") or self._carried(request)

    def project(self, request: Any, answer: Any = None, asked: str = "") -> str:
        """Id of the project. `asked` is the one that the handler asked the caller's role on; what a request says of an
        object that exists is no more than a claim, and comes last."""
        return (
            self._project(request)
            or (self._project_made(answer) if answer is not None else "")
            or clean(asked)
            or self._project_named(request)
        )

    def fields(self, request: Any) -> list[str]:
        """Paths that an update is to change, as the caller wrote them."""
        if not self._mask:
            return []
        return [clean(path) for path in getattr(request, self._mask).paths[:MOST_FIELDS]]


def _nested_ids(message: Descriptor) -> list[tuple[str, ...]]:
    """Where the id of what the request carries may stand, or of the owner that it names."""
    carried = [
        field.name
        for field in message.fields
        if _is_one(field, FieldDescriptor.TYPE_MESSAGE) and field.name not in _OTHERS
    ]
    return [*((parent, name) for name in _NESTED for parent in carried), ("member", "user"), ("quota", "project")]


def _known(message: Descriptor, paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those of the paths that lead to a single text."""
    return [path for path in dict.fromkeys(paths) if _leads_to_text(message, path)]


def _leads_to_text(message: Descriptor | None, path: tuple[str, ...]) -> bool:
    *parents, last = path
    for name in parents:
        field = message.fields_by_name.get(name) if message is not None else None
        message = field.message_type if field is not None else None
    field = message.fields_by_name.get(last) if message is not None else None
    return field is not None and _is_one(field, FieldDescriptor.TYPE_STRING)


def _is_one(field: FieldDescriptor, kind: int) -> bool:
    return field.type == kind and not field.is_repeated


def _reader(paths: Sequence[tuple[str, ...]]) -> Read:
    """Reads the first path that has a value; empty when none has."""
    if not paths:
        return _nothing

    def read(message: Any) -> str:
        for path in paths:
            value = message
            for name in path:
                value = getattr(value, name)
            if value:
                return clean(value)
        return ""

    return read


def _nothing(_message: Any) -> str:
    return ""
