"""A machine's message from its row: what Get and List answer and what events carry. Never holds credentials.

The stored report is merged first and the columns are written over it, so a column always wins.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from metalplane.inventory.v1 import hardware_pb2, machine_pb2

from metal_inventory.binding import Bindable
from metal_inventory.contract import (
    ADMIN_STATE_NUMBERS,
    EVENT_TYPE_NUMBERS,
    LIVELINESS_NUMBERS,
    STATE_NUMBERS,
)
from metal_inventory.issues import Facts
from metal_inventory.lifecycle import Event, EventType, Progress, State
from metal_inventory.liveliness import Liveliness, liveliness
from metal_inventory.state import AdminState

if TYPE_CHECKING:
    import asyncpg
    from google.protobuf.timestamp_pb2 import Timestamp

_ADMIN_STATES = {each.name: number for each, number in ADMIN_STATE_NUMBERS.items()}
_STATES = {each.name: number for each, number in STATE_NUMBERS.items()}
_LIVELINESS = {each.name: number for each, number in LIVELINESS_NUMBERS.items()}
_EVENT_TYPES = {each.name: number for each, number in EVENT_TYPE_NUMBERS.items()}
_POWER = {
    "UNSPECIFIED": hardware_pb2.POWER_STATE_UNSPECIFIED,
    "ON": hardware_pb2.POWER_STATE_ON,
    "OFF": hardware_pb2.POWER_STATE_OFF,
}
POWER_NAMES = {number: name for name, number in _POWER.items()}


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _set(timestamp: Timestamp, time: datetime) -> None:
    """Like FromDatetime, which took more than half of the time of a list: it goes through the calendar."""
    since = time - _EPOCH
    timestamp.seconds = since.days * 86400 + since.seconds
    timestamp.nanos = since.microseconds * 1000


def machine(row: asyncpg.Record) -> machine_pb2.Machine:
    """The machine that the row describes."""
    message = machine_pb2.Machine()
    fill(message, row)
    return message


def fill(message: machine_pb2.Machine, row: asyncpg.Record) -> None:
    """Write the machine that the row describes into an empty message."""
    message.MergeFromString(row["report"])
    message.id = str(row["id"])
    message.partition = row["partition"] or ""
    message.rack = row["rack"]
    message.size = row["size"]
    message.description = row["description"]
    message.labels.update(row["labels"])
    message.state = _ADMIN_STATES[row["state"]]
    message.state_description = row["state_description"]
    message.waiting = row["waiting"] and row["lease_expires_at"] is not None and row["lease_expires_at"] > row["now"]
    message.generation = row["generation"]
    message.disks_clean = row["disks_clean"]
    message.cabling_error = row["cabling_error"]
    message.installer_version = row["installer_version"]
    message.etag = str(row["version"])
    _set(message.create_time, row["created_at"])
    _set(message.update_time, row["updated_at"])
    held = binding(row)
    if held is not None:
        message.binding.CopyFrom(held)
    _fill_lifecycle(message.lifecycle, row)
    if row["bmc"]:
        _fill_bmc(message.bmc, row)


def binding(row: asyncpg.Record) -> machine_pb2.Binding | None:
    """Who holds the machine; None when nobody does."""
    if row["allocation_id"] is None:
        return None
    message = machine_pb2.Binding(allocation=str(row["allocation_id"]), project=str(row["project_id"]))
    _set(message.bind_time, row["bound_at"])
    return message


def _fill_lifecycle(message: machine_pb2.Lifecycle, row: asyncpg.Record) -> None:
    message.state = _STATES[row["lifecycle"]]
    message.liveliness = _LIVELINESS[row["liveliness"]]
    message.crash_loop = row["crash_loop"]
    message.failed_reclaim = row["failed_reclaim"]
    if row["last_event_at"] is not None:
        _set(message.last_event_time, row["last_event_at"])
    if row["error_at"] is not None:
        message.last_error.type = _EVENT_TYPES[row["error_type"]]
        message.last_error.message = row["error_message"]
        _set(message.last_error.time, row["error_at"])
        if row["error_reported_at"] is not None:
            _set(message.last_error.reported_time, row["error_reported_at"])


def _fill_bmc(message: hardware_pb2.BmcInfo, row: asyncpg.Record) -> None:
    message.address = row["bmc_address"]
    message.mac = row["bmc_mac"]
    message.version = row["bmc_firmware"]
    message.power = _POWER[row["bmc_power"]]
    if row["bmc_observed_at"] is not None:
        _set(message.observed_time, row["bmc_observed_at"])
    if row["bmc_fault_reason"]:
        message.fault.reason, message.fault.message = row["bmc_fault_reason"], row["bmc_fault"]
        if row["bmc_fault_since"] is not None:
            _set(message.fault.since, row["bmc_fault_since"])
    if row["bmc_fru"]:
        message.fru.MergeFromString(row["bmc_fru"])


def event(row: asyncpg.Record) -> machine_pb2.ProvisioningEvent:
    """One line of a machine's history."""
    message = machine_pb2.ProvisioningEvent(
        sequence=row["sequence"], type=_EVENT_TYPES[row["type"]], message=row["message"]
    )
    _set(message.time, row["received_at"])
    if row["reported_at"] is not None:
        _set(message.reported_time, row["reported_at"])
    return message


def progress(row: asyncpg.Record) -> Progress:
    """How far the machine has come."""
    error = None
    if row["error_at"] is not None:
        error = Event(EventType[row["error_type"]], row["error_at"], row["error_message"], row["error_reported_at"])
    return Progress(State[row["lifecycle"]], row["last_event_at"], error, row["crash_loop"], row["failed_reclaim"])


def bindable(row: asyncpg.Record) -> Bindable:
    """What decides whether the machine can be bound."""
    return Bindable(
        admin_state=AdminState[row["state"]],
        allocation_id=str(row["allocation_id"] or ""),
        waiting_expires=row["lease_expires_at"] if row["waiting"] else None,
        last_event_time=row["last_event_at"],
        disks_clean=row["disks_clean"],
        cabled=row["cabled"],
        failed_machine_reclaim=row["failed_reclaim"],
    )


def stored_liveliness(row: asyncpg.Record) -> Liveliness:
    """The liveliness as last written, at most one sweep old."""
    return Liveliness[row["liveliness"]]


def facts(row: asyncpg.Record, sharing: Collection[str]) -> Facts:
    """What the rules for issues look at; `sharing` are the machines with this one's BMC address, itself included."""
    so_far, id_ = progress(row), str(row["id"])
    return Facts(
        machine_id=id_,
        now=row["now"],
        partition=row["partition"] or "",
        allocated=row["allocation_id"] is not None,
        state=so_far.state,
        # Now, and not as the last sweep left it: an operator looks at this while it happens.
        liveliness=liveliness(so_far.last_event_time, allocated=row["allocation_id"] is not None, now=row["now"]),
        last_event_time=so_far.last_event_time,
        last_error=so_far.last_error,
        crash_loop=so_far.crash_loop,
        failed_machine_reclaim=so_far.failed_machine_reclaim,
        bmc_mac=row["bmc_mac"] or "",
        bmc_address=row["bmc_address"] or "",
        bmc_updated=row["bmc_observed_at"],
        bmc_fault=f"{row['bmc_fault_reason']}, {row['bmc_fault']}" if row["bmc_fault_reason"] else "",
        bmc_address_shared_with=tuple(other for other in sharing if other != id_),
        quarantined_disks=tuple(row["quarantined_disks"]),
        cabling_problem=row["cabling_error"],
        matching_sizes=tuple(row["matching_sizes"]),
    )
