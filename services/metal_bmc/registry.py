"""Registering, changing and forgetting BMCs: the rules between the stored row, the sealed password and the events.

Every method joins the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from metal_kit.controller import enqueue
from metal_kit.db import Connection
from metal_kit.errors import InvalidArgument, NotFound
from metal_kit.etag import check_etag

from metal_bmc import address, events
from metal_bmc.command import Finish, State
from metal_bmc.credentials import KeyRing
from metal_bmc.endpoint import Configuration, Endpoint
from metal_bmc.exchange import reconcile_kind
from metal_bmc.store import CommandStore, EndpointStore, SightingStore

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


def checked_address(text: str) -> tuple[str, int]:
    """Host and port. Raises InvalidArgument for `bmc.address`."""
    try:
        return address.parse(text)
    except ValueError as error:
        raise InvalidArgument("INVALID_ADDRESS", str(error), field="bmc.address") from None


def check_login(login: str, password: str | None) -> None:
    """Raise InvalidArgument for what RAKP cannot carry: the limits are bytes, not characters (IPMI 2.0 §13.28)."""
    if len(login.encode()) > _MAX_USER or not login.isprintable():
        raise InvalidArgument("INVALID_USER", f"must have at most {_MAX_USER} printable bytes", field="bmc.user")
    if password is not None and (len(password.encode()) > _MAX_PASSWORD or "\x00" in password):
        raise InvalidArgument(
            "INVALID_PASSWORD", f"must have at most {_MAX_PASSWORD} bytes and no NUL", field="bmc.password"
        )


class Registry:
    """BMC endpoints of one partition. `partition` is the only one that this service can reach."""

    def __init__(self, ring: KeyRing, *, partition: str) -> None:
        self._ring, self._partition = ring, partition
        self._endpoints, self._commands, self._sightings = EndpointStore(), CommandStore(), SightingStore()

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
        check_login(wish.login, wish.password)
        added = await self._endpoints.insert(connection, self._configuration(wish, None))
        return await self._announce(connection, added)

    async def change(self, connection: Connection, before: Endpoint, wish: Wish) -> Endpoint:
        """Write a wish over an endpoint that the caller has locked; same errors as `register`."""
        check_login(wish.login, wish.password)
        new_login = wish.password is not None or wish.login != before.login
        moved = (wish.host, wish.port) != (before.host, before.port)
        wanted = self._configuration(wish, before.sealed)
        return await self._announce(
            connection, await self._endpoints.configure(connection, wanted, forgive=new_login or moved)
        )

    async def desire(self, connection: Connection, before: Endpoint, desired_on: bool | None) -> Endpoint:
        """Change nothing but the power that is wanted."""
        wish = Wish(
            before.machine, before.partition, before.host, before.port, before.mac, before.login, None, desired_on
        )
        return await self.change(connection, before, wish)

    async def forget(self, connection: Connection, machine: str, etag: str) -> None:
        """Remove a BMC with its credentials; its open commands fail. Raises NotFound, Aborted for a stale etag."""
        endpoint = await self._endpoints.get(connection, machine, lock=True)
        if endpoint is None:
            raise missing(machine)
        check_etag(etag, endpoint.revision, what=f"the BMC of machine {machine}")
        end = Finish(State.FAILED, "BMC_DELETED", "the BMC was deleted before the command ended")
        for command in await self._commands.finish_all(connection, machine, end):
            await events.command_finished(connection, command)
        gone = await self._endpoints.delete(connection, machine)
        assert gone is not None
        await events.endpoint_deleted(connection, gone)

    async def _announce(self, connection: Connection, endpoint: Endpoint) -> Endpoint:
        await events.endpoint_changed(connection, endpoint)
        if endpoint.mac:
            await self._sightings.forget(connection, endpoint.partition, endpoint.mac)
        if endpoint.desired_on is not None:
            await enqueue(connection, reconcile_kind(endpoint.partition), endpoint.machine)
        return endpoint

    def _configuration(self, wish: Wish, sealed: bytes | None) -> Configuration:
        if wish.password is not None:
            sealed = self._ring.seal(wish.machine, wish.password)
        return Configuration(
            machine=wish.machine,
            partition=wish.partition,
            host=wish.host,
            port=wish.port,
            mac=wish.mac,
            login=wish.login,
            sealed=sealed,
            desired_on=wish.desired_on,
        )


def missing(machine: str) -> NotFound:
    """The NotFound for a machine without a BMC on record."""
    return NotFound("BMC_NOT_FOUND", f"no BMC is registered for machine {machine}", field="machine")
