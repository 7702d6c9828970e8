"""Registering, changing and forgetting BMCs: the rules between the stored row, the sealed password and the events.

Every method joins the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from metal_kit.controller import enqueue
from metal_kit.db import Connection
from metal_kit.errors import InvalidArgument, NotFound
from metal_kit.etag import check_etag

from metal_bmc import address, events
from metal_bmc.command import Finish, State
from metal_bmc.credentials import KeyRing
from metal_bmc.drivers.interface import Capability, DriverKind
from metal_bmc.endpoint import Configuration, Endpoint, Policy
from metal_bmc.exchange import reconcile_kind
from metal_bmc.store import CommandStore, EndpointStore, SightingStore, TaskStore
from metal_bmc.task import CAPABILITIES

_MAX_USER, _MAX_PASSWORD = 16, 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What a BMC shall be like. `password` None keeps the stored one."""

    machine: str
    partition: str
    host: str
    port: int
    mac: str
    login: str
    password: str | None = field(repr=False)
    desired_on: bool | None
    driver: DriverKind = DriverKind.IPMI
    serial: str = ""
    rack: str = ""
    policy: Policy = Policy.ENFORCE

    @classmethod
    def keeping(cls, endpoint: Endpoint) -> Wish:
        """The wish that changes nothing."""
        return cls(
            machine=endpoint.machine,
            partition=endpoint.partition,
            host=endpoint.host,
            port=endpoint.port,
            mac=endpoint.mac,
            login=endpoint.login,
            password=None,
            desired_on=endpoint.desired_on,
            driver=endpoint.driver,
            serial=endpoint.serial,
            rack=endpoint.rack,
            policy=endpoint.wish.policy,
        )


def checked_address(text: str, driver: DriverKind) -> tuple[str, int]:
    """Host and port. Raises InvalidArgument for `bmc.address`."""
    if driver is DriverKind.MANUAL and not text:
        return "", address.RMCP_PORT
    try:
        return address.parse(text, address.HTTPS_PORT if driver is DriverKind.REDFISH else address.RMCP_PORT)
    except ValueError as error:
        raise InvalidArgument("INVALID_ADDRESS", str(error), field="bmc.address") from None


def check_login(login: str, password: str | None, *, of: str = "bmc") -> None:
    """Raise InvalidArgument for what RAKP cannot carry: the limits are bytes, not characters (IPMI 2.0 §13.28)."""
    if not login or len(login.encode()) > _MAX_USER or not login.isprintable():
        raise InvalidArgument("INVALID_USER", f"must have 1 to {_MAX_USER} printable bytes", field=f"{of}.user")
    if password is not None and (len(password.encode()) > _MAX_PASSWORD or "\x00" in password):
        raise InvalidArgument(
            "INVALID_PASSWORD", f"must have at most {_MAX_PASSWORD} bytes and no NUL", field=f"{of}.password"
        )


class Registry:
    """BMC endpoints of one partition. `partition` is the only one that this service can reach, `kinds` the drivers that
    it has."""

    def __init__(
        self, ring: KeyRing, *, partition: str, kinds: frozenset[DriverKind] = frozenset({DriverKind.IPMI})
    ) -> None:
        self._ring, self._partition, self._kinds = ring, partition, kinds
        self._endpoints, self._commands = EndpointStore(), CommandStore()
        self._sightings, self._tasks = SightingStore(), TaskStore()

    async def register(self, connection: Connection, wish: Wish) -> Endpoint:
        """Add the BMC of a machine, or replace what is known of it.

        Raises InvalidArgument for another partition or a login that IPMI cannot carry, AlreadyExists when another
        machine's BMC has the address or the MAC.
        """
        if wish.partition != self._partition:
            raise InvalidArgument(
                "WRONG_PARTITION", f"this service serves the partition {self._partition}", field="bmc.partition"
            )
        before = await self._endpoints.get(connection, wish.machine, lock=True)
        if before is not None:
            return await self.change(connection, before, wish)
        self._check(wish)
        added = await self._endpoints.insert(connection, self._configuration(wish, None), _known(wish))
        return await self._announce(connection, added)

    async def change(self, connection: Connection, before: Endpoint, wish: Wish) -> Endpoint:
        """Write a wish over an endpoint that the caller has locked; same errors as `register`."""
        self._check(wish)
        new_login = wish.password is not None or wish.login != before.login
        moved = (wish.driver, wish.host, wish.port) != (before.driver, before.host, before.port)
        wanted = self._configuration(wish, before.sealed)
        if before.by_hand != (wish.driver is DriverKind.MANUAL):
            why = "the machine got another driver before the command ended"
            await self._end_all(connection, before.machine, Finish(State.FAILED, "DRIVER_CHANGED", why))
        after = await self._endpoints.configure(
            connection, wanted, forgive=new_login or moved, capabilities=_known(wish)
        )
        await self._endpoints.judge(connection, after)
        return await self._announce(connection, after)

    async def desire(self, connection: Connection, before: Endpoint, desired_on: bool | None) -> Endpoint:
        """Change nothing but the power that is wanted."""
        return await self.change(connection, before, replace(Wish.keeping(before), desired_on=desired_on))

    async def forget(self, connection: Connection, machine: str, etag: str) -> None:
        """Remove a BMC with its credentials; its open commands fail. Raises NotFound, Aborted for a stale etag."""
        endpoint = await self._endpoints.get(connection, machine, lock=True)
        if endpoint is None:
            raise missing(machine)
        check_etag(etag, endpoint.revision, what=f"the BMC of machine {machine}")
        end = Finish(State.FAILED, "BMC_DELETED", "the BMC was deleted before the command ended")
        await self._end_all(connection, machine, end)
        gone = await self._endpoints.delete(connection, machine)
        assert gone is not None
        await events.endpoint_deleted(connection, gone)

    async def _end_all(self, connection: Connection, machine: str, end: Finish) -> None:
        for command in await self._commands.finish_all(connection, machine, end):
            await events.command_finished(connection, command)
        for task in await self._tasks.withdraw_all(connection, machine, end.message):
            await events.task_changed(connection, task)

    def _check(self, wish: Wish) -> None:
        if wish.driver not in self._kinds:
            there = ", ".join(sorted(kind.name for kind in self._kinds))
            raise InvalidArgument(
                "DRIVER_NOT_THERE", f"this service has no such driver; it has {there}", field="bmc.driver"
            )
        if wish.driver is not DriverKind.MANUAL:
            check_login(wish.login, wish.password)
            return
        for field_, value in (("address", wish.host), ("mac", wish.mac), ("user", wish.login)):
            if value:
                raise InvalidArgument("NO_BMC", "a machine without a BMC has none: empty it", field=f"bmc.{field_}")
        if wish.password is not None:
            raise InvalidArgument("NO_BMC", "a machine without a BMC has none: leave it out", field="bmc.password")

    async def _announce(self, connection: Connection, endpoint: Endpoint) -> Endpoint:
        await events.endpoint_changed(connection, endpoint)
        if endpoint.mac:
            await self._sightings.forget(connection, endpoint.partition, endpoint.mac)
        # A person's task for a power that is wanted no more is to be withdrawn.
        if endpoint.desired_on is not None or endpoint.by_hand:
            await enqueue(connection, reconcile_kind(endpoint.partition), endpoint.machine)
        return endpoint

    def _configuration(self, wish: Wish, sealed: bytes | None) -> Configuration:
        if wish.password is not None:
            sealed = self._ring.seal(wish.machine, wish.password)
        if wish.driver is DriverKind.MANUAL:
            sealed = None
        return Configuration(
            machine=wish.machine,
            partition=wish.partition,
            host=wish.host,
            port=wish.port,
            mac=wish.mac,
            login=wish.login,
            sealed=sealed,
            desired_on=wish.desired_on,
            driver=wish.driver,
            serial=wish.serial,
            rack=wish.rack,
            policy=wish.policy,
        )


def _known(wish: Wish) -> frozenset[Capability]:
    """What is known of the capabilities before anybody is asked."""
    return CAPABILITIES if wish.driver is DriverKind.MANUAL else frozenset()


def missing(machine: str) -> NotFound:
    """The NotFound for a machine without a BMC on record."""
    return NotFound("BMC_NOT_FOUND", f"no BMC is registered for machine {machine}", field="machine")
