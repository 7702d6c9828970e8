"""From installed to running: ports into the VRF, boot order, kexec, phone home."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Failed, Go, Outcome, Wait
from metal_kit.errors import FailedPrecondition, NotFound
from metalplane.allocation.v1.allocation_pb2 import MachineNetwork
from metalplane.bmc.v1.bmc_pb2 import CommandAction
from metalplane.fabric.v1.switch_pb2 import AttachMachineRequest, PortRole
from metalplane.inventory.v1.machine_pb2 import GetMachineRequest, LifecycleState, Machine

from metal_allocation.clients import Clients
from metal_allocation.phase import Phase
from metal_allocation.record import Record
from metal_allocation.steps.commands import HOPELESS, POLL, again, command
from metal_allocation.steps.leaves import confirmations, outstanding

ATTACHED = "Attached"
BOOT_ORDER_SET = "BootOrderSet"
MAX_BOOT_ORDER_ATTEMPTS = 3
REFUSED_RETRY = timedelta(seconds=15)
# The phone home is an event; this is for the one that gets lost.
LOOK_AGAIN = timedelta(seconds=5)


async def attach(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Ask fabric for the machine's ports in the tenant's VRF, and go on when every leaf has confirmed."""
    if not record.firewall and not vrf_of(record):
        # Number 0 is the fabric's own VRF: no tenant's machine gets into that.
        return Failed("NO_VRF", "the machine's private network has no VRF", REFUSED_RETRY)
    try:
        attachment = await clients.switches.AttachMachine(attach_request(record))
    except (FailedPrecondition, NotFound) as refused:
        record.set_condition(ATTACHED, False, refused.reason, refused.message, clock.now())
        return Failed(refused.reason, refused.message, REFUSED_RETRY)
    if not attachment.confirmed or attachment.allocation != record.id:
        waiting = outstanding(attachment)
        record.set_condition(ATTACHED, False, "LEAVES_OUTSTANDING", waiting, clock.now())
        return Wait("LEAVES_OUTSTANDING", waiting, POLL)
    leaves = confirmations(attachment)
    record.set_condition(ATTACHED, True, "CONFIRMED", f"confirmed by {leaves}", clock.now())
    return Go(Phase.BOOT_ORDER, "PORTS_ATTACHED", f"confirmed by {leaves}")


def attach_request(record: Record) -> AttachMachineRequest:
    """What fabric is asked for. Asked again, it changes nothing but whose the numbers are."""
    vrf = 0 if record.firewall else vrf_of(record)
    return AttachMachineRequest(
        machine=record.machine,
        allocation=record.id,
        role=PortRole.PORT_ROLE_FIREWALL if record.firewall else PortRole.PORT_ROLE_MACHINE,
        vrf=vrf,
        allowed_prefixes=allowed_prefixes(record),
        vnis=sorted({each.vrf for each in record.networks if each.vrf}) if record.firewall else [],
        networks=vrf_networks(record, vrf),
    )


async def boot_order(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Set the boot order to disk.

    A BMC that cannot do it does not stop the machine: boot sends a machine with a running allocation to its disk
    whatever the BMC made it boot. The condition stays, for an operator to see.
    """
    result = await command(record, clients, clock, CommandAction.COMMAND_ACTION_BOOT_DISK, "boot-disk")
    if result.succeeded:
        record.set_condition(BOOT_ORDER_SET, True, "SET", "", clock.now())
        return Go(Phase.STARTING, "BOOT_ORDER_SET", "the BMC has read back boot from disk")
    if result.failed:
        record.set_condition(BOOT_ORDER_SET, False, result.reason, result.error, clock.now())
        if record.command_attempts >= MAX_BOOT_ORDER_ATTEMPTS or result.reason in HOPELESS:
            return Go(Phase.STARTING, "BOOT_ORDER_NOT_SET", f"{result.error}; boot will send the machine to its disk")
    return again(result)


async def start(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Wait for the installed system. That the installer may start it is said by the phase itself."""
    machine = await clients.machines.GetMachine(GetMachineRequest(id=record.machine))
    if machine.binding.allocation != record.id:
        return Failed("BINDING_LOST", "inventory no longer binds the machine to this allocation", REFUSED_RETRY)
    if machine.lifecycle.state == LifecycleState.LIFECYCLE_STATE_PHONED_HOME:
        return Go(Phase.RUNNING, "PHONED_HOME", "the installed system has announced itself on its leaves")
    return Wait("STARTING", f"the installed system is awaited; the machine is at {_state(machine)}", LOOK_AGAIN)


def _state(machine: Machine) -> str:
    """Name of the machine's state for people; a number for one that this release does not know."""
    number = machine.lifecycle.state
    if number not in LifecycleState.values():
        return str(number)
    return LifecycleState.Name(number).removeprefix("LIFECYCLE_STATE_").lower().replace("_", " ")


def vrf_of(record: Record) -> int:
    """VRF of the machine: its unshared private network's, else its shared one's."""
    private = [each for each in record.networks if each.private]
    private.sort(key=lambda each: each.type != "child")
    return private[0].vrf if private else 0


def vrf_networks(record: Record, vrf: int) -> dict[int, str]:
    """The networks that the numbers of the machine's VRF, or for a firewall of all of its VRFs, belong to."""
    return {
        each.vrf: each.vrf_network
        for each in record.networks
        if each.vrf and each.vrf_network and (record.firewall or each.vrf == vrf)
    }


def allowed_prefixes(record: Record) -> list[str]:
    """What the machine may announce: a machine its private prefixes and own addresses, a firewall its underlay address.

    Addresses inside the private prefixes are covered by them; those of other networks are added as host routes.
    """
    if record.firewall:
        return _host_routes([each for each in record.networks if each.type == "underlay"])
    private = [
        prefix
        for each in record.networks
        if each.private
        for prefix in (*each.prefixes, *each.additional_announcable_prefixes)
    ]
    return sorted({*private, *_host_routes([each for each in record.networks if not each.private])})


def _host_routes(networks: list[MachineNetwork]) -> list[str]:
    return sorted({f"{ip}/{128 if ':' in ip else 32}" for each in networks for ip in each.ips})
