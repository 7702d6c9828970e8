"""From the rows that are there to the rows that shall be: an ordered plan of typed steps, as a pure function.

SONiC's orchagent sees a transaction as single row events and takes some orders badly: a VLAN deleted under its VNI, a
port that is a bridge member and a router interface at once, a VRF that is deleted while something refers to it, a row
that is deleted and added again before the hardware has followed. The order of the steps and the waits between them
prevent these. FRR lets go of a neighbour before its port moves, because bgpd has crashed on link-local addresses that
vanish under it.

The plan does not execute anything and knows no I/O; `apply` does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from metal_core.configdb import Fields, Rows, is_tenant_vrf, name_of, table_of

# Fields that bind one object to another. orchagent ignores or mishandles a binding that changes in place, so a row in
# which one of them changes is deleted and, after the waits, added again.
_BINDINGS: Mapping[str, frozenset[str]] = {
    "INTERFACE": frozenset({"vrf_name"}),
    "VLAN_INTERFACE": frozenset({"vrf_name"}),
    "VLAN_MEMBER": frozenset({"tagging_mode"}),
    "VXLAN_TUNNEL_MAP": frozenset({"vlan", "vni"}),
}


class Fact(StrEnum):
    """Something that the switch reports about itself and that a step has to wait for."""

    RIF_PRESENT = "router interface present"
    RIF_GONE = "router interface gone"
    BRIDGE_PORT_PRESENT = "bridge port present"
    BRIDGE_PORT_GONE = "bridge port gone"
    VRF_PRESENT = "VRF object present"
    VRF_GONE = "VRF object gone"
    VLAN_PRESENT = "VLAN present"
    VLAN_GONE = "VLAN gone"
    SPEED = "runs at speed"
    FEC = "runs with error correction"


@dataclass(frozen=True, slots=True, order=True)
class Condition:
    """`fact` about the object `name` (a port, `Vlan<id>` or `Vrf<vni>`), of those that have one with its `value`."""

    fact: Fact
    name: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.fact.value} {self.value}".rstrip()


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on when all `conditions` hold; how long to wait is the executor's limit."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class DeleteRows:
    """Delete `keys` in one transaction."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetRows:
    """In one transaction set the fields of `rows` and drop the fields named in `drop`; other fields stay."""

    rows: Mapping[str, Mapping[str, str]]
    drop: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrrDetach:
    """Remove the BGP neighbours on `ports`, whatever VRF they are in."""

    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrrRetire:
    """Remove the VNIs and the BGP instances of `vrfs`."""

    vrfs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrrConverge:
    """Bring FRR to the whole configuration that belongs to the target rows."""


Step = Wait | DeleteRows | SetRows | FrrDetach | FrrRetire | FrrConverge


@dataclass(frozen=True, slots=True)
class _Changes:
    """What a plan has to do, by table: keys to delete, keys to add and keys to change in place."""

    delete: dict[str, list[str]]
    add: dict[str, list[str]]
    change: dict[str, list[str]]


def plan(
    current: Rows, target: Rows, *, going_back: bool = False, absent: Mapping[str, frozenset[str]] | None = None
) -> tuple[Step, ...]:
    """The steps from `current` to `target`, both reduced to owned rows. `FrrConverge` is last, and alone if equal.

    PORT rows are only ever changed: a leaf's ports come and go with its hardware, and `checks` reports missing ones. A
    field of theirs that `target` does not mention stays, except when `going_back` to a snapshot that did not have it,
    or when it is among the fields to be `absent` of its row.
    """
    stale = _stale(current, target, absent or {}, going_back=going_back)
    changes = _changes(current, target, stale)
    return (*_removals(changes, target), *_additions(changes, current, target, stale), FrrConverge())


def expected(target: Rows) -> tuple[Condition, ...]:
    """What the switch reports about itself when it has followed all of `target`."""
    found = []
    for key in sorted(target):
        match table_of(key):
            case "VRF":
                found.append(Condition(Fact.VRF_PRESENT, name_of(key)))
            case "VLAN":
                found.append(Condition(Fact.VLAN_PRESENT, name_of(key)))
            case "INTERFACE" | "VLAN_INTERFACE":
                found.append(Condition(Fact.RIF_PRESENT, name_of(key)))
            case "VLAN_MEMBER":
                found.append(Condition(Fact.BRIDGE_PORT_PRESENT, _member_port(key)))
    return tuple(found)


def touched(steps: Iterable[Step]) -> int:
    """How many rows the steps write or delete."""
    return sum(
        len(step.keys) if isinstance(step, DeleteRows) else len(step.rows) if isinstance(step, SetRows) else 0
        for step in steps
    )


def takes_away(steps: Iterable[Step], current: Rows) -> list[str]:
    """The rows among those that `steps` delete which keep tenants connected: their VRFs and the ports in them."""
    keys = [key for step in steps if isinstance(step, DeleteRows) for key in step.keys]
    return [
        key
        for key in keys
        if table_of(key) == "VRF"
        or (table_of(key) == "INTERFACE" and is_tenant_vrf(current.get(key, {}).get("vrf_name", "")))
    ]


def _stale(
    current: Rows, target: Rows, absent: Mapping[str, frozenset[str]], *, going_back: bool
) -> dict[str, tuple[str, ...]]:
    """The fields that PORT rows have to lose. Without a wish for a field, its value is usually somebody else's."""
    stale = {}
    for key, row in current.items():
        if table_of(key) == "PORT":
            names = set(row) - set(target.get(key, ())) if going_back else set(row) & absent.get(key, frozenset())
            if names:
                stale[key] = tuple(sorted(names))
    return stale


def _changes(current: Rows, target: Rows, stale: Mapping[str, tuple[str, ...]]) -> _Changes:
    changes = _Changes({}, {}, {})
    for key in sorted(set(current) | set(target)):
        table = table_of(key)
        if table == "PORT":
            if key in current and (key in stale or _port_differs(current[key], target.get(key, {}))):
                changes.change.setdefault(table, []).append(key)
        elif key not in target:
            changes.delete.setdefault(table, []).append(key)
        elif key not in current:
            changes.add.setdefault(table, []).append(key)
        elif dict(current[key]) != dict(target[key]):
            if any(current[key].get(name) != target[key].get(name) for name in _BINDINGS.get(table, ())):
                changes.delete.setdefault(table, []).append(key)
                changes.add.setdefault(table, []).append(key)
            else:
                changes.change.setdefault(table, []).append(key)
    return changes


def _port_differs(current: Fields, target: Fields) -> bool:
    return any(current.get(name) != value for name, value in target.items())


def _removals(changes: _Changes, target: Rows) -> list[Step]:
    """Waits for "gone" ask for what an interrupted run may have deleted as well, so that no later step overtakes it."""
    gone = changes.delete
    interfaces, members = gone.get("INTERFACE", []), gone.get("VLAN_MEMBER", [])
    svis, vlans, vrfs = gone.get("VLAN_INTERFACE", []), gone.get("VLAN", []), gone.get("VRF", [])
    steps: list[Step] = []
    if interfaces:
        steps.append(FrrDetach(tuple(name_of(key) for key in interfaces)))
    _delete(steps, interfaces + members)
    leaving = dict.fromkeys(name_of(key) for key in interfaces)
    if svis or vlans or vrfs:
        leaving |= dict.fromkeys(_not_routed_yet(changes, target))
    _wait(
        steps,
        [Condition(Fact.RIF_GONE, name) for name in leaving]
        + [Condition(Fact.BRIDGE_PORT_GONE, _member_port(key)) for key in members],
    )
    _delete(steps, gone.get("VXLAN_TUNNEL_MAP", []))
    if vrfs:
        steps.append(FrrRetire(tuple(name_of(key) for key in vrfs)))
    _delete(steps, svis)
    _wait(steps, [Condition(Fact.RIF_GONE, name) for name in dict.fromkeys(name_of(key) for key in svis + vlans)])
    _delete(steps, gone.get("SUPPRESS_VLAN_NEIGH", []))
    _delete(steps, vlans)
    _wait(steps, [Condition(Fact.VLAN_GONE, name_of(key)) for key in vlans])
    _delete(steps, vrfs)
    _wait(steps, [Condition(Fact.VRF_GONE, name_of(key)) for key in vrfs])
    return steps


def _not_routed_yet(changes: _Changes, target: Rows) -> list[str]:
    """The ports that have no business as router interfaces before the additions."""
    ports = [name_of(key) for key in sorted(target) if table_of(key) == "PORT"]
    adding = changes.add.get("INTERFACE", ())
    return [name for name in ports if f"INTERFACE|{name}" not in target or f"INTERFACE|{name}" in adding]


def _additions(changes: _Changes, current: Rows, target: Rows, stale: Mapping[str, tuple[str, ...]]) -> list[Step]:
    """Waits for "gone" come before each addition as well: the deletion may have been another, interrupted run's."""
    new = changes.add
    interfaces, members = new.get("INTERFACE", []), new.get("VLAN_MEMBER", [])
    vrfs, vlans, svis = new.get("VRF", []), new.get("VLAN", []), new.get("VLAN_INTERFACE", [])
    steps: list[Step] = []
    _set_ports(steps, changes.change.get("PORT", []), target, stale)
    _wait(steps, [Condition(Fact.VRF_GONE, name_of(key)) for key in vrfs])
    _set(steps, changes, vrfs + changes.change.get("VRF", []), current, target)
    _wait(
        steps,
        [Condition(Fact.VRF_PRESENT, name_of(key)) for key in vrfs]
        + [Condition(Fact.VLAN_GONE, name_of(key)) for key in vlans],
    )
    _set(steps, changes, vlans + changes.change.get("VLAN", []), current, target)
    _wait(
        steps,
        [Condition(Fact.VLAN_PRESENT, name_of(key)) for key in vlans]
        + [Condition(Fact.RIF_GONE, name_of(key)) for key in svis],
    )
    _set(steps, changes, svis, current, target)
    _wait(steps, [Condition(Fact.RIF_PRESENT, name_of(key)) for key in svis])
    _set(steps, changes, new.get("VXLAN_TUNNEL_MAP", []), current, target)
    suppress = new.get("SUPPRESS_VLAN_NEIGH", []) + changes.change.get("SUPPRESS_VLAN_NEIGH", [])
    _set(steps, changes, suppress, current, target)
    _wait(
        steps,
        [Condition(Fact.RIF_GONE, name_of(key)) for key in interfaces]
        + [Condition(Fact.BRIDGE_PORT_GONE, name_of(key)) for key in interfaces]
        + [Condition(Fact.RIF_GONE, _member_port(key)) for key in members],
    )
    _set(steps, changes, interfaces + changes.change.get("INTERFACE", []) + members, current, target)
    _wait(
        steps,
        [Condition(Fact.RIF_PRESENT, name_of(key)) for key in interfaces]
        + [Condition(Fact.BRIDGE_PORT_PRESENT, _member_port(key)) for key in members],
    )
    return steps


def _member_port(key: str) -> str:
    return name_of(key).partition("|")[2]


def _delete(steps: list[Step], keys: list[str]) -> None:
    if keys:
        steps.append(DeleteRows(tuple(keys)))


def _wait(steps: list[Step], conditions: list[Condition]) -> None:
    if conditions:
        steps.append(Wait(tuple(conditions)))


def _set(steps: list[Step], changes: _Changes, keys: list[str], current: Rows, target: Rows) -> None:
    """Adds the step that sets `keys`; a row that changes in place also loses what it has too much."""
    if not keys:
        return
    drop: dict[str, tuple[str, ...]] = {}
    for key in keys:
        if key in changes.change.get(table_of(key), ()):
            stale = tuple(sorted(set(current[key]) - set(target[key])))
            if stale:
                drop[key] = stale
    steps.append(SetRows({key: dict(target[key]) for key in keys}, drop))


def _set_ports(steps: list[Step], keys: list[str], target: Rows, stale: Mapping[str, tuple[str, ...]]) -> None:
    if keys:
        rows = {key: dict(target.get(key, {})) for key in keys}
        steps.append(SetRows(rows, {key: stale[key] for key in keys if key in stale}))
