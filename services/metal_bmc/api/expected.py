"""The servicer of ExpectedMachineService."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency, validation
from metal_kit.db import Connection, Database
from metal_kit.errors import InvalidArgument, NotFound
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller
from metal_kit.ids import parse_uuid, uuid7
from metal_kit.paging import Paging
from metal_kit.timestamps import to_timestamp
from metalplane.bmc.v1 import expected_pb2 as pb
from metalplane.bmc.v1.expected_pb2_grpc import ExpectedMachineServiceServicer

from metal_bmc.contact import NOT_EXPECTED
from metal_bmc.credentials import KeyRing
from metal_bmc.drivers.interface import DriverKind
from metal_bmc.expected import Expectation, ExpectedMachine, bound_to
from metal_bmc.messages import driver, driver_number
from metal_bmc.registry import check_login
from metal_bmc.store import ExpectedStore, SightingStore

SERVICE = "metalplane.bmc.v1.ExpectedMachineService"
MUTABLE = ("mac", "serial", "user", "password", "vendor", "model", "driver", "rack")


class ExpectedMachineApi(ExpectedMachineServiceServicer):
    """Answers ExpectedMachineService for one partition. Passwords come in and never go out."""

    def __init__(
        self, db: Database, ring: KeyRing, paging: Paging, *, partition: str, kinds: frozenset[DriverKind]
    ) -> None:
        self._db, self._ring, self._paging, self._partition = db, ring, paging, partition
        self._kinds = kinds - {DriverKind.MANUAL}
        self._expected, self._sightings = ExpectedStore(), SightingStore()

    async def CreateExpectedMachine(self, request: pb.CreateExpectedMachineRequest, context: Any) -> pb.ExpectedMachine:
        """Add one."""
        message = request.expected_machine
        self._check(message)
        if message.partition != self._partition:
            raise InvalidArgument(
                "WRONG_PARTITION",
                f"this service serves the partition {self._partition}",
                field="expected_machine.partition",
            )
        # The answer's memory keeps a hash of the request; a plain hash of a password invites guessing.
        plain = pb.CreateExpectedMachineRequest()
        plain.CopyFrom(request)
        plain.expected_machine.password = self._ring.fingerprint(message.mac + message.serial, message.password)
        caller, method = current_caller().label, f"/{SERVICE}/CreateExpectedMachine"
        call = {"caller": caller, "method": method, "request_id": request.request_id}
        async with self._db.transaction(purpose="expect a machine") as connection:
            known = await idempotency.remembered(connection, **call, request=plain, response_type=pb.ExpectedMachine)
            if known is not None:
                return known
            wish = self._wish(str(uuid7()), message, None)
            answer = expected_message(await self._expected.insert(connection, wish))
            await self._ask_again(connection, wish)
            await idempotency.remember(connection, **call, request=plain, response=answer)
        return answer

    async def GetExpectedMachine(self, request: pb.GetExpectedMachineRequest, context: Any) -> pb.ExpectedMachine:
        """One, without its password."""
        expected = parse_uuid(request.id, field="id")
        async with self._db.connection() as connection:
            found = await self._expected.get(connection, expected)
        if found is None:
            raise _missing(expected)
        return expected_message(found)

    async def ListExpectedMachines(
        self, request: pb.ListExpectedMachinesRequest, context: Any
    ) -> pb.ListExpectedMachinesResponse:
        """In the order in which they were added."""
        page = self._paging.page(request.page_size, request.page_token, filter_key=f"expected:{request.partition}")
        async with self._db.connection() as connection:
            rows = await self._expected.page(
                connection, partition=request.partition, after=page.after_text() or None, limit=page.limit
            )
        shown, token = page.cut(rows, lambda row: (row.expectation.id,))
        messages = [expected_message(each) for each in shown]
        return pb.ListExpectedMachinesResponse(expected_machines=messages, next_page_token=token)

    async def UpdateExpectedMachine(self, request: pb.UpdateExpectedMachineRequest, context: Any) -> pb.ExpectedMachine:
        """Change one."""
        expected = parse_uuid(request.expected_machine.id, field="expected_machine.id")
        if "password" in request.update_mask.paths and not request.expected_machine.password:
            raise InvalidArgument(
                "PASSWORD_EMPTY", "name a new password, or leave it out of the mask", field="expected_machine.password"
            )
        async with self._db.transaction(purpose="change an expected machine") as connection:
            before = await self._locked(connection, expected, request.expected_machine.etag)
            target = expected_message(before)
            apply_update(target, request.expected_machine, request.update_mask, mutable=MUTABLE)
            validation.check(target, field="expected_machine")
            self._check(target)
            old = before.expectation
            wish = self._wish(expected, target, old.sealed)
            anew = (wish.mac, wish.serial) != (old.mac, old.serial)
            changed = await self._expected.change(connection, wish, anew=anew)
            if anew or (wish.login, wish.sealed, wish.driver) != (old.login, old.sealed, old.driver):
                await self._ask_again(connection, wish)
        return expected_message(changed)

    async def DeleteExpectedMachine(self, request: pb.DeleteExpectedMachineRequest, context: Any) -> Empty:
        """Expect it no more."""
        expected = parse_uuid(request.id, field="id")
        async with self._db.transaction(purpose="expect a machine no more") as connection:
            await self._locked(connection, expected, request.etag)
            await self._expected.delete(connection, expected)
        return Empty()

    async def _ask_again(self, connection: Connection, wish: Expectation) -> None:
        """A BMC that refused what it was asked before, or was left alone, has not seen this login."""
        if wish.mac:
            await self._sightings.forget(connection, wish.partition, wish.mac)
        if wish.serial:
            await self._sightings.reopen(connection, wish.partition, NOT_EXPECTED)

    async def _locked(self, connection: Connection, expected: str, etag: str) -> ExpectedMachine:
        found = await self._expected.get(connection, expected, lock=True)
        if found is None:
            raise _missing(expected)
        check_etag(etag, found.revision, what=f"expected machine {expected}")
        return found

    def _check(self, message: pb.ExpectedMachine) -> None:
        if not message.mac and not message.serial.strip():
            raise InvalidArgument(
                "NOT_RECOGNIZABLE", "name the MAC address of the BMC, or a serial number", field="expected_machine.mac"
            )
        if message.serial != message.serial.strip() or not message.serial.isprintable():
            raise InvalidArgument(
                "INVALID_SERIAL", "must be printable, without blanks around it", field="expected_machine.serial"
            )
        if driver(message.driver) not in self._kinds:
            there = ", ".join(sorted(kind.name for kind in self._kinds))
            raise InvalidArgument(
                "DRIVER_NOT_THERE", f"must be one of {there}: others find no BMC", field="expected_machine.driver"
            )
        if message.password and not message.user:
            raise InvalidArgument("USER_MISSING", "a password needs its user", field="expected_machine.user")
        if message.user and not (message.password or message.has_password or message.machine):
            raise InvalidArgument("PASSWORD_MISSING", "a user needs a password", field="expected_machine.password")
        if message.user and not message.mac:
            raise InvalidArgument(
                "MAC_MISSING",
                "a login of its own needs it: nothing else tells the BMC before",
                field="expected_machine.mac",
            )
        if message.user:
            check_login(message.user, message.password or None, of="expected_machine")

    def _wish(self, expected: str, message: pb.ExpectedMachine, sealed: bytes | None) -> Expectation:
        if message.password:
            sealed = self._ring.seal(bound_to(expected), message.password)
        return Expectation(
            id=expected,
            partition=message.partition,
            mac=message.mac,
            serial=message.serial,
            login=message.user,
            sealed=sealed if message.user else None,
            vendor=message.vendor,
            model=message.model,
            driver=driver(message.driver),
            rack=message.rack,
        )


def expected_message(found: ExpectedMachine) -> pb.ExpectedMachine:
    """An expected machine as callers see it. The password is never written."""
    wish = found.expectation
    message = pb.ExpectedMachine(
        id=wish.id,
        partition=wish.partition,
        mac=wish.mac,
        serial=wish.serial,
        user=wish.login,
        has_password=wish.sealed is not None,
        vendor=wish.vendor,
        model=wish.model,
        driver=driver_number(wish.driver),
        rack=wish.rack,
        machine=found.machine,
        found_time=to_timestamp(found.found_at),
        etag=str(found.revision),
        create_time=to_timestamp(found.created_at),
        update_time=to_timestamp(found.updated_at),
    )
    for known in found.differences:
        what = known.difference
        message.differences.add(field=what.field, expected=what.wanted, seen=what.seen, since=to_timestamp(known.since))
    return message


def _missing(expected: str) -> NotFound:
    return NotFound("EXPECTED_MACHINE_NOT_FOUND", f"no machine {expected} is expected", field="id")
