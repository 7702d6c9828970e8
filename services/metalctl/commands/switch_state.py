"""How a leaf switch is: its health with the reasons, its last attempt, what others changed, sessions, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from metal_kit.client import Peers
from metalplane.fabric.v1 import observation_pb2 as seen
from metalplane.fabric.v1 import switch_pb2 as pb
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub

from metalctl import command
from metalctl.output import Format, show_one, write
from metalctl.session import run
from metalctl.table import render, render_pairs
from metalctl.values import age, enum, instant

# In the order in which they happen.
PHASES = ("prepare", "apply", "verify", "commit", "rollback")
FAMILIES = ("ipv4", "ipv6", "evpn")


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(
        groups["switch"], "describe", describe, "how a switch is: health, attempts, drift, sessions, neighbours"
    )


def describe(ctx: typer.Context, switch: Annotated[str, typer.Argument(help="host name of the switch")]) -> None:
    """Show how a switch is, and why."""

    async def body(peers: Peers) -> pb.Switch:
        return await peers.stub(SwitchServiceStub, "fabric").GetSwitch(pb.GetSwitchRequest(id=switch))

    found = run(ctx.obj, body)
    if ctx.obj.output is Format.JSON:
        show_one(found, ctx.obj.output)
    else:
        write(text_of(found))


def text_of(switch: pb.Switch) -> str:
    """The whole of it, in paragraphs; those that would be empty are left out."""
    sync = switch.sync
    parts = [
        render_pairs(list(_overview(switch))),
        _table("reasons", ("HEALTH", "CODE", "SINCE", "MESSAGE"), [_reason(each) for each in sync.health_reasons]),
        _table("ports to let go of", ("PORT", "MACHINE", "BY GENERATION"), [_held(each) for each in switch.held_ports]),
        _table("differences of the last attempt", ("WHERE", "WANTED", "FOUND"), list(_differences(sync.differences))),
        _drift(sync.drift),
        _table(f"BGP sessions, {_when(sync.bgp)}", _SESSION, [_session(each) for each in sync.bgp.sessions]),
        _table(f"LLDP neighbours, {_when(sync.lldp)}", _NEIGHBOUR, [_neighbour(each) for each in sync.lldp.neighbours]),
    ]
    return "\n\n".join(part for part in parts if part)


_SESSION = ("VRF", "PORT", "GROUP", "STATE", "SINCE", "DROPS", *(f"{name.upper()} IN/OUT" for name in FAMILIES), "PEER")
_NEIGHBOUR = ("PORT", "SYSTEM", "PORT ID", "CHASSIS", "MANAGEMENT")


def _overview(switch: pb.Switch) -> Iterator[tuple[str, str]]:
    sync = switch.sync
    yield "switch", switch.id
    yield "rack", f"{switch.rack or '-'} in {switch.partition}"
    yield "health", enum(pb.SwitchHealth, sync.health)
    heard = f", heard of {age(sync.seen_time)} ago" if sync.seen_time.seconds else ""
    yield "connected", ("yes" if sync.connected else "no") + heard
    yield "generation", f"{sync.desired_generation} wanted, {sync.applied_generation or 'none'} applied"
    if sync.apply_time.seconds:
        yield "applied", instant(sync.apply_time)
    if sync.durations:
        names = sorted(sync.durations, key=lambda name: (PHASES.index(name) if name in PHASES else len(PHASES), name))
        yield "phases", ", ".join(f"{name} {_seconds(sync.durations[name])}" for name in names)
    if sync.error:
        yield "error", f"{sync.phase}: {sync.error}" if sync.phase else sync.error
    if sync.quarantine:
        yield "quarantine", sync.quarantine
    for text in sync.notes:
        yield "note", text


def _held(held: pb.HeldPort) -> Sequence[str]:
    return (held.port, held.machine, str(held.wanted_generation))


def _reason(reason: pb.HealthReason) -> Sequence[str]:
    return (enum(pb.SwitchHealth, reason.health), reason.code, instant(reason.since_time), reason.message)


def _drift(drift: seen.Drift) -> str:
    if not drift.state:
        return ""
    what = drift.differences
    title = (
        f"drift from generation {drift.generation}, {enum(seen.DriftState, drift.state)}, {age(drift.time)} ago "
        f"({what.row_count} in CONFIG_DB, {what.frr_line_count} in FRR)"
    )
    return _table(title, ("WHERE", "WANTED", "FOUND"), list(_differences(what)))


def _differences(differences: seen.LeafDifferences) -> Iterator[Sequence[str]]:
    for row in differences.rows:
        where = f"{row.table}|{row.key}" + (f" {row.field}" if row.field else "")
        yield (where, *(_value(row, name) for name in ("wanted", "found")))
    for line in differences.frr_lines:
        missing = line.startswith("+")
        text = line[1:].strip()
        yield ("FRR", text if missing else "none", "none" if missing else text)


def _value(row: seen.RowDifference, name: str) -> str:
    return str(getattr(row, name)) if row.HasField(name) else "none"  # type: ignore[arg-type]


def _session(session: seen.BgpSession) -> Sequence[str]:
    families = [getattr(session, name) if session.HasField(name) else None for name in FAMILIES]  # type: ignore[arg-type]
    return (
        session.vrf,
        session.port,
        session.peer_group,
        enum(seen.BgpState, session.state),
        age(session.establish_time),
        str(session.drops),
        *(_counted(family) for family in families),
        session.hostname,
    )


def _counted(family: seen.BgpFamily | None) -> str:
    if family is None:
        return "-"
    limit = f" of {family.prefix_limit}" if family.prefix_limit else ""
    return f"{family.accepted}{limit}/{family.sent}"


def _neighbour(neighbour: seen.LldpNeighbour) -> Sequence[str]:
    return (
        neighbour.port,
        neighbour.system_name,
        neighbour.port_id,
        neighbour.chassis_id,
        neighbour.management_address,
    )


def _when(message: seen.BgpSessions | seen.LldpNeighbours) -> str:
    return f"{age(message.time)} ago"


def _seconds(lasted: Duration) -> str:
    return f"{lasted.seconds + lasted.nanos / 1e9:.3f} s"


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{title}:\n{render(headers, rows)}" if rows else ""
