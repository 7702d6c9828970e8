from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_hammer.wipe import verify
from metal_hammer.wipe.erase import CHUNK, erase, erase_all
from metal_hammer.wipe.methods import OVERWRITE, methods
from metal_sim.machine import Disk, MachineFacts, Nic, PowerLost, SimulatedHardware
from metal_sim.machine.facts import Completed

MIB = 1024 * 1024
PATTERN = b"a tenant's secret. " * 27


def machine(directory: Path, *disks: Disk, **more: object) -> SimulatedHardware:
    facts = MachineFacts("uuid", (Nic("eth0", "02:00:00:00:00:01"),), disks)
    return SimulatedHardware(facts, directory, **more)  # type: ignore[arg-type]


async def scan(hardware: SimulatedHardware, disk: Disk) -> bool:
    """Whether the pattern is anywhere on the disk."""
    found = False
    for offset in range(0, disk.size_bytes, MIB):
        found |= PATTERN[:19] in await hardware.read_at(disk.device, offset, MIB)
    return found


@given(st.integers(1, 2**40), st.integers(0, 2**64 - 1))
def test_samples_lie_inside_the_disk_and_hold_both_ends(size: int, seed: int) -> None:
    offsets = verify.positions(size, seed=seed)
    blocks = size // verify.BLOCK
    assert offsets == sorted(set(offsets))
    assert all(offset % verify.BLOCK == 0 and 0 <= offset <= size - verify.BLOCK for offset in offsets)
    assert len(offsets) <= verify.SAMPLES
    if blocks:
        assert offsets[0] == 0
        assert offsets[-1] == (blocks - 1) * verify.BLOCK
        assert len(offsets) >= min(blocks, 2)


@given(st.integers(verify.BLOCK * 1000, 2**40), st.integers(0, 2**64 - 1))
def test_no_part_of_a_disk_is_left_without_a_sample(size: int, seed: int) -> None:
    offsets = verify.positions(size, seed=seed)
    gaps = [after - before for before, after in itertools.pairwise(offsets)]
    assert max(gaps) <= 2 * size // (verify.SAMPLES - 2) + 2 * verify.BLOCK


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nvme", ["nvme-format-crypto", "nvme-format-erase", "zero-out", "overwrite"]),
        ("ssd", ["ata-secure-erase-enhanced", "ata-secure-erase", "zero-out", "overwrite"]),
        ("hdd", ["ata-secure-erase", "overwrite"]),
        ("never heard of", ["ata-secure-erase", "overwrite"]),
    ],
)
def test_each_kind_of_disk_has_its_order_and_ends_with_an_overwrite(kind: str, expected: list[str]) -> None:
    found = methods(kind=kind, device="/dev/x")
    assert [method.name for method in found] == expected
    assert found[-1] is OVERWRITE


def test_a_password_that_was_set_for_an_erase_is_always_taken_off_again() -> None:
    for method in methods(kind="ssd", device="/dev/sda"):
        sets = any("--security-set-pass" in command.argv for command in method.commands)
        clears = any("--security-disable" in command.argv for command in method.undo)
        assert sets == clears


@pytest.mark.parametrize("kind", ["nvme", "ssd", "hdd"])
async def test_no_byte_of_the_old_data_is_left(tmp_path: Path, kind: str) -> None:
    disk = Disk("/dev/d", "S", kind, 8 * MIB + 1024)
    hardware = machine(tmp_path, disk)
    for offset in (0, 3 * MIB, disk.size_bytes - len(PATTERN)):
        await hardware.write_at("/dev/d", offset, PATTERN)
    assert await scan(hardware, disk)
    result = await erase(hardware, disk)
    assert (result.error, result.verified) == ("", True)
    assert not await scan(hardware, disk)


async def test_a_disk_that_cannot_be_written_is_reported_with_every_attempt(tmp_path: Path) -> None:
    bad, good = Disk("/dev/nvme0n1", "BAD", "nvme", MIB), Disk("/dev/nvme1n1", "GOOD", "nvme", MIB)
    hardware = machine(tmp_path, bad, good)
    hardware.faults.wipe_fails.add("BAD")
    results = {result.serial: result for result in await erase_all(hardware, [bad, good])}
    assert results["GOOD"].error == ""
    assert not results["BAD"].verified
    for method in methods(kind="nvme", device=""):
        assert method.name in results["BAD"].error


@pytest.mark.parametrize("kind", ["nvme", "ssd"])
async def test_a_disk_that_claims_to_have_erased_and_kept_everything_is_found_out(tmp_path: Path, kind: str) -> None:
    disk = Disk("/dev/d", "LIAR", kind, 2 * MIB)
    hardware = machine(tmp_path, disk)
    hardware.faults.wipe_lies.add("LIAR")
    result = await erase(hardware, disk)
    assert not result.verified
    assert "old data at 0" in result.error


async def test_a_read_only_disk_is_not_called_clean(tmp_path: Path) -> None:
    disk = Disk("/dev/d", "S", "ssd", MIB, read_only=True)
    result = await erase(machine(tmp_path, disk), disk)
    assert (result.verified, result.error) == (False, "the disk is read-only")


async def test_a_disk_too_small_to_prove_anything_is_not_called_clean(tmp_path: Path) -> None:
    disk = Disk("/dev/d", "S", "hdd", 512)
    result = await erase(machine(tmp_path, disk), disk)
    assert not result.verified
    assert "smaller than one block" in result.error


class Frozen(SimulatedHardware):
    """A drive whose firmware has frozen the security feature set."""

    async def run(self, argv: object, *, deadline: float, stdin: bytes = b"") -> Completed:
        done = await super().run(argv, deadline=deadline, stdin=stdin)  # type: ignore[arg-type]
        return Completed(done.returncode, done.stdout.replace(b"not\tfrozen", b"frozen"), done.stderr)


async def test_a_frozen_drive_gets_no_password_and_is_erased_another_way(tmp_path: Path) -> None:
    disk = Disk("/dev/sda", "S", "ssd", MIB)
    hardware = Frozen(MachineFacts("uuid", (), (disk,)), tmp_path)
    result = await erase(hardware, disk)
    assert result.method == "zero-out"
    assert not any("--security-set-pass" in argv for argv in hardware.history)


class FailsAfterPassword(SimulatedHardware):
    """A drive that takes the password and then refuses to erase."""

    async def run(self, argv: object, *, deadline: float, stdin: bytes = b"") -> Completed:
        done = await super().run(argv, deadline=deadline, stdin=stdin)  # type: ignore[arg-type]
        refused = any(str(word).startswith("--security-erase") for word in argv)  # type: ignore[attr-defined]
        return Completed(5, b"", b"SG_IO: bad/missing sense data") if refused else done


async def test_a_drive_that_refuses_to_erase_is_not_left_locked(tmp_path: Path) -> None:
    disk = Disk("/dev/sda", "S", "ssd", MIB)
    hardware = FailsAfterPassword(MachineFacts("uuid", (), (disk,)), tmp_path)
    result = await erase(hardware, disk)
    assert (result.method, result.error) == ("zero-out", "")
    disabled = sum("--security-disable" in argv for argv in hardware.history)
    assert disabled == sum("--security-set-pass" in argv for argv in hardware.history) == 2


async def test_a_power_cut_in_the_middle_of_an_overwrite_stops_it_there(tmp_path: Path) -> None:
    disk = Disk("/dev/sda", "S", "hdd", 64 * MIB)
    raw = tmp_path / "disks/S/raw"

    def powered() -> bool:
        # Two blocks of one slice: at most one of them holds a canary, both are zero once the overwrite has passed.
        with raw.open("rb") as file:
            file.seek(6 * CHUNK + CHUNK // 2)
            return any(file.read(2 * verify.BLOCK))

    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"x" * disk.size_bytes)
    hardware = machine(tmp_path, disk, powered=powered)
    with pytest.raises(PowerLost):
        await erase(hardware, disk)
    left = raw.read_bytes()
    assert not any(left[: 7 * CHUNK])
    assert left[7 * CHUNK :].count(b"x") > 8 * CHUNK
