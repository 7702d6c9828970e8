"""Machines that are expected: a manifest of them in a file, and taking one back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict, ParseError
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.bmc.v1 import expected_pb2 as pb
from metalplane.bmc.v1.expected_pb2_grpc import ExpectedMachineServiceStub

from metalctl import command
from metalctl.failure import USAGE, fail
from metalctl.output import note
from metalctl.session import run

_PAGE = 500
_MOST_BYTES = 16 << 20
_FIELDS = ("mac", "serial", "user", "password", "vendor", "model", "driver", "rack")
_HELP = (
    "YAML or JSON: `partition: …` and `machines:`, each with mac or serial, and user, password, vendor, model, driver "
)
File = Annotated[Path, typer.Option("--file", "-f", help=f"{_HELP}(ipmi, redfish), rack; - reads standard input")]


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their groups."""
    command.add(groups["bmc"], "expect", expect, "declare the machines of a manifest as expected")
    command.add(groups["expected"], "delete", delete, "expect a machine no more; its BMC stays registered")


def expect(ctx: typer.Context, file: File) -> None:
    """Declare what a manifest lists: new ones are added, known ones changed, others left as they are."""
    wanted = read(_text(file), str(file))

    async def body(peers: Peers) -> tuple[int, int]:
        stub = peers.stub(ExpectedMachineServiceStub, "bmc")
        known = await _known(stub, wanted[0].partition)
        added = changed = 0
        for each in wanted:
            before = next((found for key in _keys(each) if (found := known.get(key)) is not None), None)
            if before is None:
                await stub.CreateExpectedMachine(
                    pb.CreateExpectedMachineRequest(request_id=str(uuid7()), expected_machine=each)
                )
                added += 1
            elif paths := _changes(before, each):
                each.id, each.etag = before.id, before.etag
                await stub.UpdateExpectedMachine(
                    pb.UpdateExpectedMachineRequest(expected_machine=each, update_mask=FieldMask(paths=paths))
                )
                changed += 1
        return added, changed

    added, changed = run(ctx.obj, body, interrupted="what is declared stays so; call it again for the rest")
    note(f"{added} added, {changed} changed, {len(wanted) - added - changed} as they were")


def delete(
    ctx: typer.Context, id_: Annotated[str, typer.Argument(metavar="ID", help="id of what is expected")]
) -> None:
    """Expect a machine no more."""

    async def body(peers: Peers) -> None:
        stub = peers.stub(ExpectedMachineServiceStub, "bmc")
        await stub.DeleteExpectedMachine(pb.DeleteExpectedMachineRequest(id=id_))

    run(ctx.obj, body)


def read(text: str, name: str) -> list[pb.ExpectedMachine]:
    """The machines of a manifest. Ends the program for one that cannot be used, naming the entry and the field."""
    # Here, as no other command needs it, and each starts the faster without.
    import yaml  # noqa: PLC0415

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        fail(f"{name}: neither YAML nor JSON{f', line {mark.line + 1}' if mark else ''}", USAGE)
    if not isinstance(document, dict) or set(document) != {"partition", "machines"}:
        fail(f"{name}: has `partition` and `machines`, and nothing else", USAGE)
    entries, partition = document["machines"], document["partition"]
    if not isinstance(entries, list) or not entries or not isinstance(partition, str):
        fail(f"{name}: `partition` is a text, and `machines` a list with something in it", USAGE)
    machines = [_machine(entry, partition, f"{name}: machine {number}") for number, entry in enumerate(entries, 1)]
    seen: dict[tuple[str, str], int] = {}
    for number, machine in enumerate(machines, start=1):
        for key in _keys(machine):
            if key in seen:
                fail(f"{name}: machines {seen[key]} and {number} have the same {key[0]}", USAGE)
            seen[key] = number
    return machines


def _machine(entry: object, partition: str, where: str) -> pb.ExpectedMachine:
    if not isinstance(entry, dict):
        fail(f"{where} is not a set of fields", USAGE)
    values: dict[str, Any] = {}
    for field, value in entry.items():
        if field not in _FIELDS:
            fail(f"{where}: there is no field {field!r}; there are {', '.join(_FIELDS)}", USAGE)
        # YAML reads a serial number of digits, and some MAC addresses, as numbers: what was written is lost then.
        if not isinstance(value, str):
            fail(f"{where}: {field} is not a text; put it in quotes", USAGE)
        values[field] = value
    if "driver" in values:
        if values["driver"] not in ("ipmi", "redfish"):
            fail(f"{where}: driver is ipmi or redfish", USAGE)
        values["driver"] = f"DRIVER_KIND_{values['driver'].upper()}"
    if "mac" in values:
        values["mac"] = values["mac"].lower().replace("-", ":")
    if not values.get("mac") and not values.get("serial"):
        fail(f"{where}: name its mac or its serial", USAGE)
    try:
        return ParseDict({**values, "partition": partition}, pb.ExpectedMachine())
    except ParseError:
        fail(f"{where}: a field is not of the kind that it should be", USAGE)


def _text(file: Path) -> str:
    try:
        if str(file) == "-":
            return sys.stdin.read(_MOST_BYTES)
        with file.open(encoding="utf-8") as opened:
            return opened.read(_MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {getattr(error, 'strerror', '') or 'is not text'}", USAGE)


async def _known(stub: Any, partition: str) -> dict[tuple[str, str], pb.ExpectedMachine]:
    found: dict[tuple[str, str], pb.ExpectedMachine] = {}
    token = ""
    while True:
        request = pb.ListExpectedMachinesRequest(partition=partition, page_size=_PAGE, page_token=token)
        page = await stub.ListExpectedMachines(request)
        for each in page.expected_machines:
            found.update(dict.fromkeys(_keys(each), each))
        if not (token := page.next_page_token):
            return found


def _keys(machine: pb.ExpectedMachine) -> list[tuple[str, str]]:
    keys = (("mac", machine.mac), ("serial", machine.serial.lower()))
    return [key for key in keys if key[1]]


def _changes(before: pb.ExpectedMachine, now: pb.ExpectedMachine) -> list[str]:
    """The fields that a manifest names otherwise. A password is sent until it was used: it cannot be compared."""
    plain = [name for name in _FIELDS if name != "password"]
    named = [name for name in plain if getattr(now, name) and getattr(now, name) != getattr(before, name)]
    return [*named, "password"] if now.password and not before.machine else named
