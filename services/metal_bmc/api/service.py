"""The servicer of BmcService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency, validation, watch
from metal_kit.controller import enqueue
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unimplemented
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller
from metal_kit.ids import parse_uuid, uuid7
from metal_kit.paging import Paging
from metalplane.bmc.v1 import bmc_pb2 as pb

from metal_bmc import events
from metal_bmc.api import watching
from metal_bmc.api.console import ConsoleApi
from metal_bmc.api.tasks import TaskApi
from metal_bmc.command import Command
from metal_bmc.desk import TaskDesk
from metal_bmc.endpoint import Endpoint, Policy
from metal_bmc.exchange import reconcile_kind
from metal_bmc.messages import (
    action,
    boot_options,
    command_message,
    credential_keys_message,
    driver,
    endpoint_message,
    policy,
    powered,
)
from metal_bmc.order import Order
from metal_bmc.plan import PLANS, Action, Step, desired_after, needs
from metal_bmc.registry import Registry, Wish, checked_address, missing
from metal_bmc.resealing import Resealing
from metal_bmc.store import CommandStore, EndpointStore

SERVICE = "metalplane.bmc.v1.BmcService"
MUTABLE = ("address", "mac", "user", "password", "desired_power", "driver", "serial", "rack", "power_policy")
MAX_OPEN_COMMANDS = 20
"""Of one machine: what waits behind that many is no longer wanted by the time it is its turn."""


class BmcApi(TaskApi):
    """Answers BmcService. Passwords come in and never go out."""

    def __init__(
        self,
        db: Database,
        registry: Registry,
        resealing: Resealing,
        desk: TaskDesk,
        paging: Paging,
        consoles: ConsoleApi,
        stopping: asyncio.Event,
    ) -> None:
        super().__init__(db, desk, paging)
        self._registry, self._consoles, self._stopping = registry, consoles, stopping
        self._resealing, self._ring = resealing, resealing.ring
        self._endpoints, self._commands = EndpointStore(), CommandStore()

    async def RegisterBmc(self, request: pb.RegisterBmcRequest, context: Any) -> pb.Bmc:
        """Add the BMC of a machine, or replace what is known of it."""
        wish = _wish(request.bmc)
        # The answer's memory keeps a hash of the request; a plain hash of a password invites guessing.
        plain = pb.RegisterBmcRequest()
        plain.CopyFrom(request)
        plain.bmc.password = self._ring.fingerprint(wish.machine, request.bmc.password)
        call = _call("RegisterBmc", request.request_id)
        async with self._db.transaction(purpose="register a BMC") as connection:
            known = await idempotency.remembered(connection, **call, request=plain, response_type=pb.Bmc)
            if known is not None:
                return known
            message = endpoint_message(await self._registry.register(connection, wish))
            await idempotency.remember(connection, **call, request=plain, response=message)
        return message

    async def GetBmc(self, request: pb.GetBmcRequest, context: Any) -> pb.Bmc:
        """One BMC, without its password."""
        machine = parse_uuid(request.machine, field="machine")
        async with self._db.connection() as connection:
            endpoint = await self._endpoints.get(connection, machine)
        if endpoint is None:
            raise missing(machine)
        return endpoint_message(endpoint)

    async def ListBmcs(self, request: pb.ListBmcsRequest, context: Any) -> pb.ListBmcsResponse:
        """BMCs by machine, without passwords."""
        page = self._paging.page(request.page_size, request.page_token, filter_key=f"bmcs:{request.partition}")
        async with self._db.connection() as connection:
            rows = await self._endpoints.page(
                connection, partition=request.partition, after=page.after_text() or None, limit=page.limit
            )
        shown, token = page.cut(rows, lambda row: (row.machine,))
        return pb.ListBmcsResponse(
            bmcs=[endpoint_message(endpoint) for endpoint in shown],
            next_page_token=token,
        )

    async def UpdateBmc(self, request: pb.UpdateBmcRequest, context: Any) -> pb.Bmc:
        """Change address, mac, user, password or desired power."""
        machine = parse_uuid(request.bmc.machine, field="bmc.machine")
        if "password" in request.update_mask.paths and not request.bmc.password:
            raise InvalidArgument(
                "PASSWORD_EMPTY", "name a new password, or leave it out of the mask", field="bmc.password"
            )
        async with self._db.transaction(purpose="update a BMC") as connection:
            before = await self._locked(connection, machine)
            check_etag(request.bmc.etag, before.revision, what=f"the BMC of machine {machine}")
            target = endpoint_message(before)
            apply_update(target, request.bmc, request.update_mask, mutable=MUTABLE)
            validation.check(target, field="bmc")
            return endpoint_message(await self._registry.change(connection, before, _wish(target)))

    async def DeleteBmc(self, request: pb.DeleteBmcRequest, context: Any) -> Empty:
        """Forget a BMC and its credentials."""
        machine = parse_uuid(request.machine, field="machine")
        async with self._db.transaction(purpose="delete a BMC") as connection:
            await self._registry.forget(connection, machine, request.etag)
        return Empty()

    async def CreateCommand(self, request: pb.CreateCommandRequest, context: Any) -> pb.Command:
        """Give a command; it is carried out after the answer."""
        order = _order(request)
        order.check()
        call = _call("CreateCommand", request.request_id)
        async with self._db.transaction(purpose="create a BMC command") as connection:
            known = await idempotency.remembered(connection, **call, request=request, response_type=pb.Command)
            if known is not None:
                return known
            endpoint = await self._locked(connection, order.machine)
            _refuse_impossible(endpoint, order)
            _refuse_in_maintenance(endpoint, order)
            if await self._commands.open_count(connection, order.machine) >= MAX_OPEN_COMMANDS:
                raise ResourceExhausted(
                    "TOO_MANY_COMMANDS",
                    f"{MAX_OPEN_COMMANDS} commands wait for this machine already",
                    retry_after=timedelta(seconds=10),
                )
            command = await self._commands.insert(
                connection,
                order,
                command_id=uuid7(),
                partition=endpoint.partition,
                requester=current_caller().label,
                timeout=order.time(by_hand=endpoint.by_hand),
                by_hand=endpoint.by_hand,
            )
            await events.command_changed(connection, command)
            await self._follow(connection, endpoint, order.action)
            await enqueue(connection, reconcile_kind(endpoint.partition), order.machine)
            message = command_message(command)
            await idempotency.remember(connection, **call, request=request, response=message)
        return message

    async def GetCommand(self, request: pb.GetCommandRequest, context: Any) -> pb.Command:
        """One command."""
        command_id = parse_uuid(request.id, field="id")
        async with self._db.connection() as connection:
            command = await self._commands.get(connection, command_id)
        if command is None:
            raise NotFound("COMMAND_NOT_FOUND", f"command {command_id} does not exist", field="id")
        return command_message(command)

    async def WatchCommands(
        self, request: pb.WatchCommandsRequest, context: Any
    ) -> AsyncIterator[pb.WatchCommandsResponse]:
        """Commands as they change, from a position on or from the present."""
        machine = parse_uuid(request.machine, field="machine") if request.machine else ""
        command_id = parse_uuid(request.command, field="command") if request.command else ""
        position = request.position
        if not position:
            async with self._db.connection() as connection:
                position = await watch.current_position(connection)
                # Read after the position was taken: nothing falls between the two.
                command = await self._commands.get(connection, command_id) if command_id else None
            if command_id and command is None:
                raise NotFound("COMMAND_NOT_FOUND", f"command {command_id} does not exist", field="command")
            first = [command_message(command)] if command is not None else []
            yield pb.WatchCommandsResponse(commands=first, position=position)
        async for response in watching.follow(
            self._db, self._stopping, position=position, machine=machine, command=command_id
        ):
            yield response

    async def ListCommands(self, request: pb.ListCommandsRequest, context: Any) -> pb.ListCommandsResponse:
        """Commands, newest first."""
        machine = parse_uuid(request.machine, field="machine") if request.machine else ""
        page = self._paging.page(request.page_size, request.page_token, filter_key=f"commands:{machine}")
        async with self._db.connection() as connection:
            rows: list[Command] = await self._commands.page(
                connection, machine=machine, before=page.after_text() or None, limit=page.limit
            )
        shown, token = page.cut(rows, lambda row: (row.id,))
        return pb.ListCommandsResponse(
            commands=[command_message(command) for command in shown],
            next_page_token=token,
        )

    async def GetCredentialKeys(self, request: pb.GetCredentialKeysRequest, context: Any) -> pb.CredentialKeys:
        """How many passwords each key seals."""
        return credential_keys_message(self._resealing, await self._resealing.survey())

    async def ResealCredentials(
        self, request: pb.ResealCredentialsRequest, context: Any
    ) -> pb.ResealCredentialsResponse:
        """Seal every password of the partition with the ring's first key, and look what is left."""
        resealed = await self._resealing.reseal()
        keys = credential_keys_message(self._resealing, await self._resealing.survey())
        return pb.ResealCredentialsResponse(resealed=resealed, keys=keys)

    def Console(self, requests: AsyncIterator[pb.ConsoleRequest], context: Any) -> AsyncIterator[pb.ConsoleResponse]:
        """The serial console of a machine."""
        return self._consoles.stream(requests)

    async def _locked(self, connection: Connection, machine: str) -> Endpoint:
        endpoint = await self._endpoints.get(connection, machine, lock=True)
        if endpoint is None:
            raise missing(machine)
        return endpoint

    async def _follow(self, connection: Connection, endpoint: Endpoint, given: Action) -> None:
        if endpoint.by_hand:
            return  # A person may decline, and then the wish stays what it was.
        desired_on = desired_after(given, endpoint.desired_on)
        if desired_on != endpoint.desired_on:
            await self._registry.desire(connection, endpoint, desired_on)


def _order(request: pb.CreateCommandRequest) -> Order:
    persistent, mode = boot_options(request)
    return Order(
        machine=parse_uuid(request.machine, field="machine"),
        action=action(request.action),
        allocation=parse_uuid(request.allocation, field="allocation") if request.allocation else "",
        boot_persistent=persistent,
        boot_mode=mode,
        hard_after=request.hard_after.ToTimedelta() if request.HasField("hard_after") else None,
        timeout=request.timeout.ToTimedelta() if request.HasField("timeout") else None,
    )


def _refuse_impossible(endpoint: Endpoint, order: Order) -> None:
    lacking = endpoint.lacks(needs(order.action, order.boot_persistent, order.boot_mode))
    if lacking:
        names = ", ".join(each.name for each in lacking)
        who = "a person at a machine without a BMC" if endpoint.by_hand else "the machine's BMC"
        raise Unimplemented("BMC_CANNOT", f"{who} cannot do that: it lacks {names}", field="action")


def _refuse_in_maintenance(endpoint: Endpoint, order: Order) -> None:
    """Whoever works on a machine must not find it running; to switch it off stays possible, as freeing it may need."""
    if endpoint.wish.policy is Policy.MAINTENANCE and {Step.TURN_ON, Step.RESET} & set(PLANS[order.action]):
        raise FailedPrecondition(
            "BMC_IN_MAINTENANCE",
            "somebody works on the machine: it may be switched off, but not on; change the BMC's power_policy first",
            field="action",
        )


def _call(method: str, request_id: str) -> dict[str, str]:
    return {"caller": current_caller().label, "method": f"/{SERVICE}/{method}", "request_id": request_id}


def _wish(message: pb.Bmc) -> Wish:
    kind = driver(message.driver)
    host, port = checked_address(message.address, kind)
    return Wish(
        machine=parse_uuid(message.machine, field="bmc.machine"),
        partition=message.partition,
        host=host,
        port=port,
        mac=message.mac,
        login=message.user,
        password=message.password or None,
        desired_on=powered(message.desired_power),
        driver=kind,
        serial=message.serial,
        rack=message.rack,
        policy=policy(message.power_policy),
    )
