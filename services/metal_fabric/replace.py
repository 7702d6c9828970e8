"""One box takes the place of another: under the same name, or another leaf of the same rack.

Pure rules. What hangs on a port of the old box hangs on the port of the new one that has the same place on the front,
also where the two systems name it otherwise (SONiC `Ethernet4`, Cumulus `swp2`). A port that is broken out has to be
broken out alike: half a port is no place for a whole one's cable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from metal_fabric.attachment import HeldPorts
from metal_fabric.cabling import Cable
from metal_fabric.ports import counterparts
from metal_fabric.problems import Refused
from metal_fabric.switch import Switch, SwitchKind, SwitchMode, merge
from metal_fabric.vlans import Vlan

_SHOWN = 5


def translated(old: Switch, new: Switch, ports: Collection[str], *, field: str = "hello.ports") -> dict[str, str]:
    """Names on `new` of these ports of `old`; `field` is what a request has the new box in.

    Raises Refused `PORT_NOT_TRANSLATABLE` for a port that has no counterpart, `PORT_IS_UPLINK` for one whose
    counterpart leads to a spine.
    """
    names: dict[str, str] = {}
    there = counterparts(old.ports, old.facts.os, new.ports, new.facts.os)
    for port in sorted(ports):
        name = there.get(port)
        if name is None or name not in new.ports:
            raise Refused(
                "PORT_NOT_TRANSLATABLE",
                f"port {port} of {old.id} has no counterpart on the new box; its ports have to be the same, and be "
                "broken out alike",
                field=field,
            )
        if new.ports[name].uplink:
            raise Refused(
                "PORT_IS_UPLINK",
                f"a machine hangs on port {port}, which would be {name} of the new box, and that is an uplink",
                field=field,
            )
        names[port] = name
    return names


def successor(known: Switch, reported: Switch, *, connected: Collection[str]) -> tuple[Switch, dict[str, str]]:
    """The switch after another box took its place that reports itself as `reported`, and the new names of the ports
    `connected`, which machines hang on.

    Raises Refused as `translated` and `switch.merge` do.
    """
    names = translated(known, reported, connected)
    ports = {}
    there = counterparts(known.ports, known.facts.os, reported.ports, reported.facts.os)
    for port in known.ports.values():
        name = there.get(port.name)
        if name is not None and name in reported.ports:
            # By the alias that the new box has, or it would look as if a port had been renamed.
            ports[name] = replace(port, name=name, alias=reported.ports[name].alias)
    before = replace(known, ports=ports, mode=SwitchMode.OPERATIONAL)
    return merge(before, reported, connected=set(names.values())), names


def check_migration(
    old: Switch,
    new: Switch,
    *,
    cables: Iterable[Cable],
    new_vlans: Iterable[Vlan],
    new_applied: int,
    pinned: Collection[str],
    leaving: Collection[str],
    held: Collection[HeldPorts],
) -> None:
    """Raise Refused unless `new` may take over from `old`.

    `cables` are those of both, `new_vlans` and `new_applied` the VLANs of the new leaf and the generation that it has,
    `pinned` those of the two that are held at an old content, `leaving` machines whose departure the old leaf has not
    confirmed, `held` ports that the new one has to let go of: `SWITCH_IS_NO_LEAF`, `MIGRATION_TO_ITSELF`,
    `SWITCH_IN_OTHER_PARTITION`, `SWITCH_IN_OTHER_RACK`, `MIGRATION_TARGET_IN_USE`, `MIGRATION_TARGET_BEHIND`,
    `SWITCH_PINNED`, `DETACHMENT_UNCONFIRMED`.
    """
    _check_place(old, new)
    taken = sorted(cable.port for cable in cables if cable.switch_id == new.id)
    if taken:
        raise Refused(
            "MIGRATION_TARGET_IN_USE",
            f"machines hang on {', '.join(taken[:_SHOWN])} of {new.id}; a leaf that takes over has none",
            field="target",
        )
    if any(vlan.released == 0 or vlan.released > new_applied for vlan in new_vlans):
        raise Refused(
            "MIGRATION_TARGET_BEHIND",
            f"{new.id} has not yet confirmed that VRFs which it had are gone; wait for its newest generation",
            field="target",
        )
    if held:
        names = ", ".join(sorted(port for each in held for port in each.ports)[:_SHOWN])
        raise Refused(
            "MIGRATION_TARGET_BEHIND",
            f"{new.id} has not yet let go of {names}, which others have taken over; wait for its generation "
            f"{max(each.wanted for each in held)}",
            field="target",
        )
    if pinned:
        raise Refused("SWITCH_PINNED", f"{', '.join(sorted(pinned))} is held at an old content; unpin it first")
    if leaving:
        raise Refused(
            "DETACHMENT_UNCONFIRMED",
            f"{old.id} has not confirmed that {', '.join(sorted(leaving)[:_SHOWN])} left a tenant's network; nobody "
            "would wait for that any more",
        )


def _check_place(old: Switch, new: Switch) -> None:
    if old.id == new.id:
        raise Refused("MIGRATION_TO_ITSELF", "a leaf is relieved by another one", field="target")
    for each, field in ((old, "id"), (new, "target")):
        if each.kind is not SwitchKind.LEAF:
            raise Refused("SWITCH_IS_NO_LEAF", f"{each.id} is a device of kind {each.kind.value}", field=field)
    if old.facts.partition != new.facts.partition:
        raise Refused(
            "SWITCH_IN_OTHER_PARTITION",
            f"{old.id} is in partition {old.facts.partition}, {new.id} in {new.facts.partition}",
            field="target",
        )
    if old.facts.rack != new.facts.rack:
        raise Refused(
            "SWITCH_IN_OTHER_RACK",
            f"{old.id} is in rack {old.facts.rack}, {new.id} in rack {new.facts.rack}; machines stay in their rack",
            field="target",
        )
