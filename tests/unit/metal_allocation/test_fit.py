"""Whether a layout fits a machine's disks, and which disks it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_allocation.fit import GPT_OVERHEAD_MIB, MIB, disk_serials
from metal_kit.errors import FailedPrecondition
from metalplane.inventory.v1.hardware_pb2 import Hardware
from metalplane.inventory.v1.layout_pb2 import FilesystemLayout


def layout(**disks: list[int]) -> FilesystemLayout:
    """Partitions in MiB by device name."""
    made = FilesystemLayout(id="plain")
    for name, sizes in disks.items():
        disk = made.disks.add(device=f"/dev/{name}")
        for number, size in enumerate(sizes):
            disk.partitions.add(number=number + 1, size_mib=size)
    return made


def hardware(**disks: tuple[str, int]) -> Hardware:
    """Serial and size in MiB by device name."""
    made = Hardware()
    for name, (serial, size) in disks.items():
        made.disks.add(name=f"/dev/{name}", serial=serial, size_bytes=size * MIB)
    return made


def refusal(wanted: FilesystemLayout, machine: Hardware) -> FailedPrecondition:
    with pytest.raises(FailedPrecondition) as caught:
        disk_serials(wanted, machine)
    assert caught.value.field == "spec.filesystem_layout"
    return caught.value


def test_the_serials_come_in_the_order_of_the_layout() -> None:
    machine = hardware(sda=("A", 1000), sdb=("B", 1000), sdc=("C", 1000))
    assert disk_serials(layout(sdc=[10], sda=[10]), machine) == ["C", "A"]


def test_a_missing_disk_is_named_with_those_that_are_there() -> None:
    problem = refusal(layout(nvme0n1=[10]), hardware(sda=("A", 1000)))
    assert problem.reason == "LAYOUT_DISK_MISSING"
    assert "/dev/nvme0n1" in problem.message
    assert "/dev/sda" in problem.message
    assert "none" in refusal(layout(sda=[10]), Hardware()).message


def test_a_disk_has_to_hold_its_partitions_and_the_tables() -> None:
    wanted = layout(sda=[100, 200])
    assert disk_serials(wanted, hardware(sda=("A", 300 + GPT_OVERHEAD_MIB))) == ["A"]
    assert refusal(wanted, hardware(sda=("A", 299 + GPT_OVERHEAD_MIB))).reason == "LAYOUT_DISK_SMALL"


def test_a_partition_that_takes_the_rest_needs_nothing_of_its_own() -> None:
    assert disk_serials(layout(sda=[100, 0]), hardware(sda=("A", 102))) == ["A"]


def test_a_disk_that_no_grant_could_name_does_not_fit() -> None:
    assert refusal(layout(sda=[1]), hardware(sda=("", 10))).reason == "LAYOUT_DISK_UNNAMED"
    twins = hardware(sda=("A", 10), sdb=("A", 10))
    assert refusal(layout(sda=[1]), twins).reason == "LAYOUT_DISK_UNNAMED"
    assert disk_serials(layout(sda=[1]), hardware(sda=("A", 10), sdb=("", 10), sdc=("", 10))) == ["A"]


@given(st.lists(st.integers(0, 1000), max_size=6), st.integers(0, 8000))
def test_it_fits_exactly_when_the_disk_is_large_enough(sizes: list[int], size: int) -> None:
    wanted, machine = layout(sda=sizes), hardware(sda=("A", size))
    if size >= sum(sizes) + GPT_OVERHEAD_MIB:
        assert disk_serials(wanted, machine) == ["A"]
    else:
        assert refusal(wanted, machine).reason == "LAYOUT_DISK_SMALL"
