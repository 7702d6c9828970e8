"""Domain ⇄ contract: the one place where an endpoint or a command becomes a message, for answers and events alike.

A password has no way out of here: the field is never written.
"""

from __future__ import annotations

from metal_kit.timestamps import to_timestamp
from metalplane.bmc.v1 import bmc_pb2
from metalplane.common.v1 import condition_pb2
from metalplane.inventory.v1 import hardware_pb2, machine_pb2

from metal_bmc import address
from metal_bmc.command import Command, State
from metal_bmc.drivers.interface import BootMode, Capability, DriverKind
from metal_bmc.endpoint import Endpoint, Observation, Policy
from metal_bmc.identity import Match
from metal_bmc.plan import Action
from metal_bmc.resealing import Resealing, Survey
from metal_bmc.task import Task, TaskState

_ACTIONS: dict[Action, bmc_pb2.CommandAction.ValueType] = {
    action: bmc_pb2.CommandAction.Value(f"COMMAND_ACTION_{action.name}") for action in Action
}
_ACTION_OF = {number: action for action, number in _ACTIONS.items()}
_DRIVERS: dict[DriverKind, bmc_pb2.DriverKind.ValueType] = {
    kind: bmc_pb2.DriverKind.Value(f"DRIVER_KIND_{kind.name}") for kind in DriverKind
}
_DRIVER_OF = {bmc_pb2.DRIVER_KIND_UNSPECIFIED: DriverKind.IPMI, **{number: kind for kind, number in _DRIVERS.items()}}
_CAPABILITIES: dict[Capability, bmc_pb2.Capability.ValueType] = {
    capability: bmc_pb2.Capability.Value(f"CAPABILITY_{capability.name}") for capability in Capability
}
_MATCHES: dict[Match, bmc_pb2.BmcIdentity.ValueType] = {
    match: bmc_pb2.BmcIdentity.Value(f"BMC_IDENTITY_{match.name}") for match in Match if match is not Match.UNKNOWN
}
_MATCHES[Match.UNKNOWN] = bmc_pb2.BMC_IDENTITY_UNSPECIFIED
_TASK_STATES: dict[TaskState, bmc_pb2.ManualTaskState.ValueType] = {
    state: bmc_pb2.ManualTaskState.Value(f"MANUAL_TASK_STATE_{state.name}") for state in TaskState
}
_LASTING: dict[bool | None, bmc_pb2.BootLasting.ValueType] = {
    None: bmc_pb2.BOOT_LASTING_UNSPECIFIED,
    False: bmc_pb2.BOOT_LASTING_ONCE,
    True: bmc_pb2.BOOT_LASTING_PERSISTENT,
}
_LASTING_OF = {number: persistent for persistent, number in _LASTING.items()}
_MODES: dict[BootMode | None, bmc_pb2.BootMode.ValueType] = {
    None: bmc_pb2.BOOT_MODE_UNSPECIFIED,
    BootMode.UEFI: bmc_pb2.BOOT_MODE_UEFI,
    BootMode.BIOS: bmc_pb2.BOOT_MODE_BIOS,
}
_MODE_OF = {number: mode for mode, number in _MODES.items()}
_STATES: dict[State, bmc_pb2.CommandState.ValueType] = {
    state: bmc_pb2.CommandState.Value(f"COMMAND_STATE_{state.name}") for state in State
}


_POLICIES: dict[Policy, bmc_pb2.PowerPolicy.ValueType] = {
    each: bmc_pb2.PowerPolicy.Value(f"POWER_POLICY_{each.name}") for each in Policy
}
_POLICY_OF = {number: each for each, number in _POLICIES.items()}


def power(powered: bool | None) -> bmc_pb2.Power.ValueType:
    """The contract's power; unspecified for None."""
    if powered is None:
        return bmc_pb2.POWER_UNSPECIFIED
    return bmc_pb2.POWER_ON if powered else bmc_pb2.POWER_OFF


def powered(value: bmc_pb2.Power.ValueType) -> bool | None:
    """The domain's power; None for unspecified."""
    return None if value == bmc_pb2.POWER_UNSPECIFIED else value == bmc_pb2.POWER_ON


def policy(number: bmc_pb2.PowerPolicy.ValueType) -> Policy:
    """The domain's policy; what is not said means that the wish is enforced."""
    return _POLICY_OF.get(number, Policy.ENFORCE)


def action(number: bmc_pb2.CommandAction.ValueType) -> Action:
    """The domain's action. KeyError for an unknown number, which validation refuses before."""
    return _ACTION_OF[number]


def boot_options(request: bmc_pb2.CreateCommandRequest) -> tuple[bool | None, BootMode | None]:
    """Whether the override shall last, and its mode; None for what is not set."""
    return _LASTING_OF[request.boot_lasting], _MODE_OF[request.boot_mode]


def driver(number: bmc_pb2.DriverKind.ValueType) -> DriverKind:
    """The domain's driver; IPMI for unspecified. KeyError for an unknown number, which validation refuses before."""
    return _DRIVER_OF[number]


def driver_number(kind: DriverKind) -> bmc_pb2.DriverKind.ValueType:
    """The contract's driver."""
    return _DRIVERS[kind]


def endpoint_message(endpoint: Endpoint) -> bmc_pb2.Bmc:
    """An endpoint as callers and events see it."""
    seen = endpoint.observation
    return bmc_pb2.Bmc(
        machine=endpoint.machine,
        partition=endpoint.partition,
        address=address.show(endpoint.host, endpoint.port),
        mac=endpoint.mac,
        user=endpoint.login,
        has_password=endpoint.sealed is not None,
        desired_power=power(endpoint.desired_on),
        reported_power=power(seen.powered),
        observed_time=to_timestamp(seen.observed_at),
        error=f"{seen.reason}: {seen.error}" if seen.reason else "",
        login_blocked=endpoint.blocked,
        version=seen.firmware,
        driver=_DRIVERS[endpoint.driver],
        capabilities=sorted(_CAPABILITIES[each] for each in seen.capabilities),
        serial=endpoint.serial,
        guid=seen.guid.hex(),
        identity=_MATCHES[endpoint.match],
        etag=str(endpoint.revision),
        create_time=to_timestamp(endpoint.created_at),
        update_time=to_timestamp(endpoint.updated_at),
        rack=endpoint.rack,
        power_policy=_POLICIES[endpoint.wish.policy],
        power_wish=_power_wish(endpoint),
        conditions=conditions(endpoint),
        failures=seen.failures,
        next_poll_time=to_timestamp(None if endpoint.blocked else endpoint.next_look_at),
    )


def _power_wish(endpoint: Endpoint) -> bmc_pb2.PowerWish:
    wish = endpoint.wish
    return bmc_pb2.PowerWish(
        generation=wish.generation,
        observed_generation=wish.observed_generation,
        deadline=to_timestamp(wish.deadline if endpoint.desired_on is not None else None),
        attempts=wish.attempts,
        reason=wish.reason,
        error=wish.error,
    )


def conditions(endpoint: Endpoint) -> list[condition_pb2.Condition]:
    """How the BMC is, and why. A BMC that was silent once or twice still counts as reachable."""
    seen, since = endpoint.observation, endpoint.silent_since
    found = [
        condition_pb2.Condition(
            type="Reachable",
            status=not endpoint.unreachable,
            reason=seen.reason if endpoint.unreachable else "",
            message=f"no answer to {seen.failures} exchanges in a row: {seen.error}" if endpoint.unreachable else "",
            transition_time=to_timestamp(since),
        ),
        condition_pb2.Condition(
            type="LoginAccepted",
            status=not endpoint.blocked,
            reason="LOGIN_BLOCKED" if endpoint.blocked else "",
            message="refused twice; nothing is tried until the credentials change" if endpoint.blocked else "",
        ),
    ]
    if endpoint.desired_on is not None:
        wish, reached = endpoint.wish, seen.powered == endpoint.desired_on
        found.append(
            condition_pb2.Condition(
                type="PowerAsDesired",
                status=reached,
                reason="" if reached else wish.reason or wish.policy.name,
                message="" if reached else wish.error,
            )
        )
    return found


def command_message(command: Command) -> bmc_pb2.Command:
    """A command as callers and events see it."""
    message = bmc_pb2.Command(
        id=command.id,
        machine=command.machine,
        action=_ACTIONS[command.action],
        state=_STATES[command.state],
        error=command.error,
        reason=command.reason,
        allocation=command.allocation,
        requester=command.requester,
        deadline=to_timestamp(command.deadline),
        create_time=to_timestamp(command.created_at),
        start_time=to_timestamp(command.started_at),
        end_time=to_timestamp(command.ended_at),
        boot_lasting=_LASTING[command.boot_persistent],
        boot_mode=_MODES[command.boot_mode],
    )
    if command.hard_after is not None:
        message.hard_after.FromTimedelta(command.hard_after)
    return message


def task_message(task: Task) -> bmc_pb2.ManualTask:
    """A task as callers and events see it."""
    return bmc_pb2.ManualTask(
        id=task.id,
        machine=task.machine,
        partition=task.partition,
        command=task.command,
        action=_ACTIONS[task.action],
        instruction=task.instruction,
        state=_TASK_STATES[task.state],
        note=task.note,
        person=task.person,
        deadline=to_timestamp(task.deadline),
        reminders=task.reminders,
        create_time=to_timestamp(task.created_at),
        end_time=to_timestamp(task.ended_at),
    )


def report_message(endpoint: Endpoint) -> machine_pb2.BmcReport:
    """What inventory hears of an endpoint."""
    seen = endpoint.observation
    return machine_pb2.BmcReport(
        machine=endpoint.machine,
        bmc=hardware_pb2.BmcInfo(
            address=address.show(endpoint.host, endpoint.port),
            mac=endpoint.mac,
            version=seen.firmware[:_TEXT],
            power=_power_state(seen.powered),
            observed_time=to_timestamp(seen.observed_at),
            fru=_fru(seen),
            fault=_fault(endpoint),
        ),
    )


_TEXT = 128


def _power_state(on: bool | None) -> hardware_pb2.PowerState.ValueType:
    if on is None:
        return hardware_pb2.POWER_STATE_UNSPECIFIED
    return hardware_pb2.POWER_STATE_ON if on else hardware_pb2.POWER_STATE_OFF


def _fault(endpoint: Endpoint) -> hardware_pb2.BmcFault | None:
    """What keeps the machine from being switched by its BMC."""
    if endpoint.blocked:
        return hardware_pb2.BmcFault(
            reason="LOGIN_BLOCKED", message="two logins were refused; nothing is tried until the credentials change"
        )
    if endpoint.unreachable:
        return hardware_pb2.BmcFault(
            reason="UNREACHABLE", message=endpoint.observation.error, since=to_timestamp(endpoint.silent_since)
        )
    return None


def _fru(seen: Observation) -> hardware_pb2.Fru:
    def text(name: str) -> str:
        return seen.fru.get(name, "")[:_TEXT]

    # The names on the right are those of pyghmi's FRU parser.
    return hardware_pb2.Fru(
        board_manufacturer=text("Board manufacturer"),
        board_part_number=text("Board model"),
        board_serial=text("Board serial number"),
        chassis_part_number=text("Chassis part number"),
        chassis_serial=text("Chassis serial number"),
        product_manufacturer=text("Manufacturer"),
        product_part_number=text("Model"),
        product_serial=text("Serial Number"),
    )


def credential_keys_message(resealing: Resealing, found: Survey) -> bmc_pb2.CredentialKeys:
    """The keys of the ring and what they seal; ids and counts only."""
    ring = resealing.ring
    message = bmc_pb2.CredentialKeys(partition=resealing.partition, unusable_count=found.unusable_count)
    others = sorted(found.passwords.keys() - set(ring.key_ids))
    for key_id in (*ring.key_ids, *others):
        message.keys.add(
            id=key_id,
            passwords=found.passwords[key_id],
            current=key_id == ring.current,
            in_ring=key_id in ring.key_ids,
        )
    for each in found.unusable:
        message.unusable.add(machine=each.machine, key=each.key_id, cause=each.cause)
    return message
