"""Discovery from Kea's lease files, and from files that are not what they should be."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from metal_bmc.sources.lease import Place
from metal_bmc.sources.lease_files import Filter, LeaseFileSource, isc_file, kea_file
from metal_kit import clock
from metal_sim.bmc import SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.plane.v1 import issue_pb2
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
FACTORY = "factory-secret"
MAC = "0c:c4:7a:00:00:{:02x}"
HEADER = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n"
HEADER_6 = "address,duid,valid_lifetime,expire,lease_type,hwaddr,state\n"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def show(file: Path, *lines: str, beside: str = "") -> None:
    """Write a file, or the one beside it with that ending; a few hundred bytes."""
    file.with_name(file.name + beside).write_text("".join(lines))


def line(address: str, number: int, *, lifetime: int = 3600, state: int = 0, later: int = 0) -> str:
    expire = int(clock.now().timestamp()) + 3600 + later
    return f"{address},{MAC.format(number)},,{lifetime},{expire},1,0,0,bmc&#x2c 1,{state},\n"


@pytest.fixture
def port() -> int:
    """A UDP port that is free on the loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kea-leases4.csv"


@pytest.fixture
def options(file: Path, port: int) -> dict[str, Any]:
    files = f"{file}, {file.with_name('kea-leases6.csv')}"
    factory = {"factory_user": "ADMIN", "factory_password": FACTORY, "factory_port": port}
    return {"kea_lease_files": files, "lease_seconds": 0.1, **factory}


async def issues(plane: Any) -> dict[str, issue_pb2.PlaneIssue]:
    """What the service says is wrong with its discovery."""
    answer = await plane.stub("viewer", IssueServiceStub).ListPlaneIssues(issue_pb2.ListPlaneIssuesRequest())
    return {each.id: each for each in answer.issues if each.id.startswith("discovery/")}


async def test_bmcs_in_keas_files_are_registered_whatever_is_beside_them(
    plane: Any, new_bmc: NewBmc, file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.1.1", port, user="ADMIN", password=FACTORY, powered=True)
    other = await new_bmc("127.9.1.2", port, user="ADMIN", password=FACTORY)
    # What a clean-up that goes on leaves: the result of the one before, and what it works on.
    show(file, HEADER, line("127.9.1.9", 1, later=-60), beside=".2")
    show(file, HEADER, line("127.9.1.1", 1), line("127.9.1.9", 1, state=2), beside=".1")
    show(file, HEADER, "rubbish\n", line("127.9.1.2", 2), line("127.9.1.3", 3)[:20])
    await plane.start(**options)
    await eventually(lambda: plane.inventory.reports.get(bmc.machine), seconds=30)
    await eventually(lambda: plane.inventory.reports.get(other.machine), seconds=30)
    answer = await plane.stub("viewer").ListBmcs(pb.ListBmcsRequest())
    assert {(each.machine, each.address, each.mac) for each in answer.bmcs} == {
        (bmc.machine, f"127.9.1.1:{port}", MAC.format(1)),
        (other.machine, f"127.9.1.2:{port}", MAC.format(2)),
    }
    assert (await plane.command(bmc, "POWER_OFF")).state == pb.COMMAND_STATE_SUCCEEDED
    found = await issues(plane)
    assert found["discovery/source/kea-leases4.csv"].details.startswith(f"{file}, line 2: 1 fields, where the header")
    assert "No such file" in found["discovery/source/kea-leases6.csv"].details


async def test_an_issue_of_a_source_ends_when_its_file_is_right_again(
    plane: Any, file: Path, options: dict[str, Any], eventually: Eventually
) -> None:
    _directory(file)
    show(file.with_name("kea-leases6.csv"), HEADER_6)
    await plane.start(**options)

    async def one() -> bool:
        return list(await issues(plane)) == ["discovery/source/kea-leases4.csv"]

    async def none() -> bool:
        return not await issues(plane)

    await eventually(one)
    (issue,) = (await issues(plane)).values()
    assert issue.severity == issue_pb2.PLANE_ISSUE_SEVERITY_MAJOR
    assert "it is not a regular file" in issue.details
    os.rmdir(file)
    show(file, HEADER)
    await eventually(none)


def _directory(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _under_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


UNREADABLE = {
    _directory: "it is not a regular file",
    _pipe: "it is not a regular file",
    _under_a_file: "Not a directory",
    _loop: "Too many levels of symbolic links",
    _large: "it has 100 MiB, more than 64: is it cleaned up?",
}


@pytest.mark.parametrize("spoil", UNREADABLE)
@pytest.mark.parametrize("source_of", [isc_file, kea_file])
async def test_what_cannot_be_read_is_told_with_its_file(
    tmp_path: Path, spoil: Callable[[Path], None], source_of: Callable[[Path, Filter], LeaseFileSource]
) -> None:
    path = tmp_path / "dir" / "leases"
    path.parent.mkdir()
    spoil(path)
    look = await source_of(path, Filter()).look(NOW)
    assert [(each.where, each.line, each.lost) for each in look.troubles] == [(str(path), 0, True)]
    assert look.troubles[0].reason == f"cannot be read: {UNREADABLE[spoil]}"
    assert (look.places, look.trouble_count) == ({}, 1)


@pytest.mark.parametrize("source_of", [isc_file, kea_file])
async def test_a_file_of_binary_garbage_is_told_with_its_lines(
    tmp_path: Path, source_of: Callable[[Path, Filter], LeaseFileSource]
) -> None:
    path = tmp_path / "leases"
    path.write_bytes(b"\x00\xff" * 40_000 + b"\n" + bytes(range(256)) * 400)
    look = await source_of(path, Filter()).look(NOW)
    assert look.places == {}
    assert (look.troubles[0].line, look.troubles[0].reason) == (1, "a line of more than 64 KiB, cut")
    assert len(look.troubles) <= 100


async def test_a_record_with_a_name_that_is_no_text_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    named = b'lease 10.1.0.1 {\n ends never;\n hardware ethernet 0c:c4:7a:00:00:01;\n client-hostname "\xff";\n}\n'
    path.write_bytes(named)
    look = await isc_file(path, Filter()).look(NOW)
    assert look.places == {"0c:c4:7a:00:00:01": Place("10.1.0.1")}
    assert [(each.line, each.reason) for each in look.troubles] == [(4, "the line is not text")]


async def test_a_clean_up_that_ended_counts_instead_of_what_it_was_made_from(file: Path) -> None:
    show(file, HEADER, line("127.9.1.2", 2), beside=".2")
    show(file, HEADER, line("127.9.1.1", 1), beside=".1")
    show(file, HEADER, line("127.9.1.3", 3), beside=".completed")
    show(file, HEADER)
    source = kea_file(file, Filter())
    assert (await source.look(clock.now())).places == {MAC.format(3): Place("127.9.1.3")}
    # Its end, and a lease that is new.
    os.replace(f"{file}.completed", f"{file}.2")
    os.unlink(f"{file}.1")
    show(file, HEADER, line("127.9.1.4", 4))
    places = (await source.look(clock.now())).places
    assert places == {MAC.format(3): Place("127.9.1.3"), MAC.format(4): Place("127.9.1.4")}
