"""Faults by name, memory, certificates, health: the parts of the lab that stand alone."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from cryptography import x509
from metal_kit.errors import AlreadyExists, InvalidArgument, Unavailable
from metal_kit.process import StartError
from metal_lab import faults, footprint
from metal_lab.fault_catalogue import FAULTS, UnknownFault
from metal_lab.health import Health
from metal_lab.pki import SERVICES, LabPki
from metal_lab.rack.model import load
from metal_lab.rack.wiring import machines
from metal_lab.seed import Seed
from metal_sim.bmc import SimulatedBmc
from metal_sim.machine import MachineFaults

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
Eventually = Callable[..., Awaitable[None]]


def test_the_catalogue_names_each_fault_once_and_says_who_has_it() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert {"bmc-hangs", "wipe-fails", "crash-during-install", "no-lldp", "leaf-dead"} <= set(names)
    assert {fault.target for fault in FAULTS} == {"machine", "leaf"}
    assert all(fault.text for fault in FAULTS)


class FakeRack:
    """One machine and one leaf, as far as faults go: the real BMC and the real fault switches, no servers."""

    def __init__(self) -> None:
        placed = machines(load(EXAMPLES / "mini-rack.yaml"))[0]
        self.links: list[str] = []
        bmc = SimulatedBmc(placed.uuid, user="metal", password="p")
        self.machine: Any = SimpleNamespace(
            placed=placed, bmc=bmc, hardware=SimpleNamespace(faults=MachineFaults()), no_lldp=False,
            link_returns=self._link_returns,
        )  # fmt: skip
        self.leaf: Any = SimpleNamespace(
            set_dead=self._set_dead, switch=SimpleNamespace(faults=SimpleNamespace(dead=False))
        )

    async def _link_returns(self, leaf: str) -> None:
        self.links.append(leaf)

    async def _set_dead(self, dead: bool) -> None:
        self.leaf.switch.faults.dead = dead

    async def switch(self, name: str, target: str, *, on: bool) -> str:
        return await faults.switch({"m1": self.machine}, {"leaf1": self.leaf}, name, target, on=on)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_every_fault_of_the_catalogue_is_switched_on_shown_and_switched_off(fault: Any) -> None:
    rack = FakeRack()
    target = "m1" if fault.target == "machine" else "leaf1"

    def shown() -> list[str]:
        return faults.of_machine(rack.machine) if fault.target == "machine" else faults.of_leaf(rack.leaf)

    assert await rack.switch(fault.name, target, on=True) == f"{target}: {fault.text}"
    assert shown() == [fault.name]
    await rack.switch(fault.name, target, on=True)
    assert await rack.switch(fault.name, target, on=False) == f"{target}: no longer {fault.name}"
    assert shown() == []


async def test_a_leaf_that_gets_its_power_back_sees_its_machines_again() -> None:
    rack = FakeRack()
    await rack.switch("leaf-dead", "leaf1", on=True)
    assert rack.links == []
    await rack.switch("leaf-dead", "leaf1", on=False)
    assert rack.links == ["leaf1"]


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("fire", "m1", "no fault 'fire'; there are: bmc-hangs, "),
        ("bmc-hangs", "m9", "no machine 'm9'; there are: m1"),
        ("bmc-hangs", "leaf1", "no machine 'leaf1'; there are: m1"),
        ("leaf-dead", "m1", "no leaf 'm1'; there are: leaf1"),
    ],
)
async def test_an_unknown_fault_or_target_is_answered_with_what_exists(name: str, target: str, said: str) -> None:
    with pytest.raises(UnknownFault, match=said):
        await FakeRack().switch(name, target, on=True)


def test_the_footprint_counts_a_process_with_its_descendants() -> None:
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        process = psutil.Process(parent.pid)
        while not process.children():
            assert parent.poll() is None
        found = footprint.measure(parent.pid)
        assert found.processes == 2
        assert 1 < found.rss_mib < 500
    finally:
        for child in psutil.Process(parent.pid).children():
            child.kill()
        parent.kill()
        parent.wait()
    assert footprint.measure(parent.pid) == footprint.Footprint(0, 0)


def test_where_the_kernel_hides_shares_the_resident_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    assert footprint.measure(psutil.Process().pid).rss_mib > 1


def uris(path: Path) -> list[str]:
    names = x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return [*names.value.get_values_for_type(x509.UniformResourceIdentifier)]


def test_certificates_name_their_bearer_and_survive_a_restart(tmp_path: Path) -> None:
    pki = LabPki(tmp_path)
    made = {name: pki.service(name, "mini") for name in SERVICES}
    assert uris(Path(made["ipam"].cert)) == ["spiffe://metalplane/service/ipam"]
    assert uris(Path(made["boot"].cert)) == ["spiffe://metalplane/partition/mini/boot"]
    assert uris(Path(made["bmc"].cert)) == ["spiffe://metalplane/partition/mini/bmc"]
    assert uris(Path(pki.leaf("mini", "leaf1").cert)) == ["spiffe://metalplane/partition/mini/leaf/leaf1"]
    key = pki.token_key.read_bytes()
    pki.machine_authority()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = LabPki(tmp_path)
    for name in SERVICES:
        again.service(name, "mini")
    again.leaf("mini", "leaf1")
    again.machine_authority()
    assert again.token_key.read_bytes() == key
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    pki = LabPki(tmp_path)
    pki.service("ipam", "mini")
    _ = pki.token_key
    pki.machine_authority()
    keys = [path for path in tmp_path.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert len(keys) == 4, "the authority's, the service's, the tokens', the machines' authority's"
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in keys)


async def test_a_part_that_ends_is_told_once_and_not_when_the_lab_stops(eventually: Eventually) -> None:
    changes: list[int] = []
    health = Health(lambda: changes.append(1))
    gone, other = asyncio.Event(), asyncio.Event()

    async def ends(event: asyncio.Event) -> str:
        await event.wait()
        return "has ended"

    health.watch("postgres", ends(gone))
    health.watch("nats", ends(other))
    assert health.failures == {}
    gone.set()
    await eventually(lambda: health.failures)
    assert health.failures == {"postgres": "has ended"}
    health.failed("postgres", "another reason")
    assert (health.failures, changes) == ({"postgres": "has ended"}, [1])
    health.expect_end()
    other.set()
    await health.stop()
    assert (health.failures, changes) == ({"postgres": "has ended"}, [1])


async def test_a_part_that_cannot_be_watched_is_not_taken_for_well(eventually: Eventually) -> None:
    health = Health(lambda: None)

    async def breaks() -> str:
        raise RuntimeError

    health.watch("redis", breaks())
    await eventually(lambda: health.failures)
    assert health.failures == {"redis": "can no longer be watched"}
    await health.stop()


class FakePeers:
    """Answers each create as told, and remembers which were called."""

    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer
        self.calls: list[str] = []

    def stub(self, stub_class: Any, service: str) -> Any:
        return self

    def __getattr__(self, name: str) -> Callable[[object], Awaitable[None]]:
        async def call(request: object) -> None:
            self.calls.append(name)
            if self.answer is not None:
                raise self.answer

        return call


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def seed(tmp_path: Path, peers: Any) -> Seed:
    return Seed(load(EXAMPLES / "mini-rack.yaml"), peers, tmp_path, "http://127.0.0.1:1")


async def test_what_is_there_from_an_earlier_start_is_passed_over_and_the_rest_is_made(tmp_path: Path) -> None:
    first, second = FakePeers(None), FakePeers(AlreadyExists("EXISTS", "there"))
    await seed(tmp_path, first).catalogue()
    images = contents(tmp_path)
    await seed(tmp_path, second).catalogue()
    assert second.calls == first.calls
    assert first.calls.count("CreateNetwork") == 3
    assert contents(tmp_path) == images, "an image keeps its checksum"


async def test_what_the_plane_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"refuses the partition mini of the rack file: .*wrong"):
        await seed(tmp_path, FakePeers(InvalidArgument("WRONG", "wrong"))).catalogue()
    with pytest.raises(Unavailable):
        await seed(tmp_path, FakePeers(Unavailable("AWAY", "away"))).catalogue()
