"""YAML as rack files use it: PyYAML's safe subset, and no key twice in a mapping.

PyYAML takes the last of two equal keys in silence; of two hardware models with one name, one would be gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1024 * 1024


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML overlooks."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of aliases of aliases unfold to gigabytes.
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not used in rack files; write it out", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                problem = f"{key!r} is there twice; names have to be unique"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> Any:
    """The content of a file. Raises OSError, yaml.YAMLError, ValueError (UTF-8, numbers, dates) or RecursionError."""
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1024} KiB")
    return yaml.load(raw.decode(), Loader=_Loader)  # noqa: S506 - a safe loader
