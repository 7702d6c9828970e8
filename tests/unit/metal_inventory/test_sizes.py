from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_inventory.globs import glob
from metal_inventory.hardware import Cpu, Disk, Gpu, Hardware
from metal_inventory.sizes import Constraint, ConstraintType, Size, match, matches, overlap, overlapping, validate

CORES, MEMORY, STORAGE, GPU = ConstraintType
GIB = 1 << 30

BOX = Hardware(
    memory_bytes=64 * GIB,
    cpus=(Cpu("AMD EPYC 7313P", 16),),
    disks=(Disk("/dev/sda", 480 * 10**9), Disk("/dev/nvme0n1", 960 * 10**9)),
)


def size(*constraints: Constraint, id_: str = "a") -> Size:
    return Size(id_, constraints)


def memory(low: int = 0, high: int = 1 << 50) -> Constraint:
    return Constraint(MEMORY, low, high)


def cores(low: int = 0, high: int = 4096, identifier: str = "") -> Constraint:
    return Constraint(CORES, low, high, identifier)


def storage(low: int = 0, high: int = 1 << 60, identifier: str = "") -> Constraint:
    return Constraint(STORAGE, low, high, identifier)


def gpu(low: int, high: int, identifier: str) -> Constraint:
    return Constraint(GPU, low, high, identifier)


def test_hardware_in_range_and_covered_matches() -> None:
    assert matches(size(memory(), cores(16, 16), storage()), BOX)


@pytest.mark.parametrize("constraint", [cores(17, 32), cores(1, 15)])
def test_a_value_outside_its_range_does_not_match(constraint: Constraint) -> None:
    assert not matches(size(memory(), storage(), constraint), BOX)


def test_the_ends_of_a_range_belong_to_it() -> None:
    for low, high in ((16, 16), (16, 99), (1, 16)):
        assert matches(size(memory(), storage(), cores(low, high)), BOX)


def test_a_gpu_never_matches_a_size_that_says_nothing_of_gpus() -> None:
    with_gpu = Hardware(BOX.memory_bytes, BOX.cpus, BOX.disks, (Gpu("NVIDIA H100"),))
    plain = size(memory(), cores(), storage())
    assert matches(plain, BOX)
    assert not matches(plain, with_gpu)
    assert matches(size(*plain.constraints, gpu(1, 1, "NVIDIA*")), with_gpu)
    assert not matches(size(*plain.constraints, gpu(0, 1, "AMD*")), with_gpu)


def test_a_size_without_memory_or_cores_constraint_matches_no_machine() -> None:
    assert not matches(size(cores(), storage()), BOX)
    assert not matches(size(memory(), storage()), BOX)
    assert not matches(size(), BOX)


def test_every_disk_must_be_covered_by_some_glob() -> None:
    assert not matches(size(memory(), cores(), storage(identifier="/dev/sd*")), BOX)
    both = size(memory(), cores(), storage(identifier="/dev/sd*"), storage(identifier="/dev/nvme*"))
    assert matches(both, BOX)


def test_a_glob_counts_only_what_it_matches() -> None:
    exact = storage(480 * 10**9, 480 * 10**9, "/dev/sd*")
    assert matches(size(memory(), cores(), exact, storage(identifier="/dev/nvme*")), BOX)


def test_all_matching_sizes_are_named_so_that_a_double_match_is_no_size() -> None:
    first, second = size(memory(), cores(), storage()), size(memory(), cores(), storage(), id_="b")
    assert match([first, second, size(id_="c")], BOX) == [first, second]


@pytest.mark.parametrize(
    ("constraints", "field"),
    [
        ([memory(2, 1)], "constraints[0].max"),
        ([memory(-1, 1)], "constraints[0].min"),
        ([memory(), memory()], "constraints[1].type"),
        ([cores(), cores(identifier="x*")], "constraints[1].type"),
        ([gpu(1, 1, "")], "constraints[0].identifier"),
        ([Constraint(MEMORY, 0, 1, "x")], "constraints[0].identifier"),
        ([storage(identifier="[")], "constraints[0].identifier"),
    ],
)
def test_a_wrong_constraint_is_refused_by_its_field(constraints: list[Constraint], field: str) -> None:
    assert [where for where, _ in validate(constraints)] == [field]


def test_storage_and_gpu_constraints_may_repeat() -> None:
    assert (
        validate([memory(), storage(identifier="a*"), storage(identifier="b*"), gpu(1, 1, "x"), gpu(1, 1, "y")]) == []
    )


# -- overlap

BASE = (memory(), cores())


@pytest.mark.parametrize(
    ("left", "right", "meet"),
    [
        ((memory(1, 5), cores()), (memory(5, 9), cores()), True),
        ((memory(1, 4), cores()), (memory(5, 9), cores()), False),
        # The field's blind spots: an exact copy with two storage globs, and different globs with common matches.
        (
            (*BASE, storage(1, 2, "sd*"), storage(1, 2, "nvme*")),
            (*BASE, storage(1, 2, "sd*"), storage(1, 2, "nvme*")),
            True,
        ),
        ((*BASE, storage(1, 9, "sd*")), (*BASE, storage(1, 9, "*a")), True),
        ((*BASE, storage(1, 9, "sd*")), (*BASE, storage(1, 9, "nvme*")), False),
        ((*BASE, gpu(8, 8, "H100*")), (*BASE, gpu(8, 8, "A100*")), False),
        ((*BASE, gpu(4, 4, "H100*")), (*BASE, gpu(8, 8, "*")), False),
        ((*BASE, gpu(1, 4, "H100*")), BASE, False),
        ((*BASE, gpu(0, 4, "H100*")), BASE, True),
        (
            (*BASE, storage(1, 2, "sd*"), storage(5, 5, "nvme*")),
            (*BASE, storage(1, 2, "sd*"), storage(9, 9, "nvme*")),
            False,
        ),
        ((cores(),), (memory(), cores()), False),
    ],
)
def test_overlap_of_known_pairs(left: tuple[Constraint, ...], right: tuple[Constraint, ...], meet: bool) -> None:
    a, b = size(*left), size(*right, id_="b")
    assert overlap(a, b) is meet
    assert overlap(b, a) is meet


def test_an_exact_copy_is_an_overlap_in_whatever_order_and_even_if_nothing_matches_it() -> None:
    constraints = (cores(), storage(1, 2, "sd*"))
    assert overlap(size(*constraints), size(*reversed(constraints), id_="b"))


def test_sizes_without_constraints_never_overlap_and_a_size_not_with_itself() -> None:
    assert not overlap(size(), size(id_="b"))
    assert overlapping(size(*BASE), [size(*BASE)]) == []
    assert overlapping(size(*BASE), [size(*BASE, id_="b")]) == [size(*BASE, id_="b")]


slack = st.integers(0, 2)
device_globs = st.sampled_from(["", "*", "s*", "n*", "*a", "sa", "[ns]?", "?"])
device_names = st.sampled_from(["sa", "sb", "na", "nb", "x"])
some_hardware = st.builds(
    Hardware,
    memory_bytes=st.integers(0, 6),
    cpus=st.lists(st.builds(Cpu, st.just("cpu"), st.integers(0, 3)), max_size=2).map(tuple),
    disks=st.lists(st.builds(Disk, device_names, st.integers(0, 3)), max_size=3).map(tuple),
    gpus=st.lists(st.builds(Gpu, device_names), max_size=2).map(tuple),
)


@st.composite
def sizes_of(draw: st.DrawFn, machine: Hardware, id_: str) -> Size:
    """A size that matches the machine, with ranges of random width and random globs."""

    def around(kind: ConstraintType, pattern: str, value: int) -> Constraint:
        return Constraint(kind, max(0, value - draw(slack)), value + draw(slack), pattern)

    constraints = [around(MEMORY, "", machine.memory_bytes)]
    if draw(st.booleans()) or machine.cpus:
        constraints.append(around(CORES, "", sum(cpu.cores for cpu in machine.cpus)))
    disks = [(disk.name, disk.size_bytes) for disk in machine.disks]
    for kind, items in ((STORAGE, disks), (GPU, [(gpu.model, 1) for gpu in machine.gpus])):
        patterns = draw(st.lists(device_globs, max_size=3))
        if any(not any(glob(p).matches(name) for p in patterns) for name, _ in items):
            patterns.append("*")
        counted = [(pattern, sum(n for name, n in items if glob(pattern).matches(name))) for pattern in patterns]
        constraints.extend(around(kind, pattern, value) for pattern, value in counted)
    return Size(id_, tuple(constraints))


@settings(max_examples=500)
@given(st.data(), some_hardware)
def test_two_sizes_that_match_one_machine_always_overlap(data: st.DataObject, machine: Hardware) -> None:
    left, right = data.draw(sizes_of(machine, "a")), data.draw(sizes_of(machine, "b"))
    assert match([left, right], machine) == [left, right]
    assert overlap(left, right)
    assert overlap(right, left)


@given(st.data(), some_hardware)
def test_a_size_overlaps_with_its_copy_and_with_every_widening(data: st.DataObject, machine: Hardware) -> None:
    one = data.draw(sizes_of(machine, "a"))
    wider = Size("b", tuple(Constraint(c.type, 0, c.max + 1, c.identifier) for c in one.constraints))
    assert overlap(one, Size("b", one.constraints))
    assert overlap(one, wider)
