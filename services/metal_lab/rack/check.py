"""What is wrong with a rack file whose every part is right by itself: names that are given twice, and references that
lead nowhere. Pure; `model` says what a part may be.

The plane's own rules (which networks may be what, when sizes overlap) are not repeated here beyond what would let the
lab come half up: it asks the plane, and tells what the plane refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from metal_lab.rack.model import Layout, RackFile

Value = TypeVar("Value")
# A mistake: the path of the field in the file, and what is wrong with it and would be right.
Mistake = tuple[str, str]
MAX_MACHINES_A_RACK = 48


def mistakes(file: RackFile) -> list[Mistake]:
    """All of them, in the order of the file."""
    return [*_twice(file), *_references(file), *_ports(file), *_prefixes(file), *_layouts(file)]


def _twice(file: RackFile) -> Iterator[Mistake]:
    racks = list(enumerate(file.racks))
    leaves = [(f"racks.{r}.leaves.{n}", leaf) for r, rack in racks for n, leaf in enumerate(rack.leaves)]
    switches = [(f"spines.{n}", name) for n, name in enumerate(file.spines)]
    switches += [(f"{path}.name", leaf.name) for path, leaf in leaves]
    yield from _unique("a switch", switches)
    yield from _unique("a leaf with the AS number", ((f"{path}.asn", leaf.asn) for path, leaf in leaves))
    yield from _unique("a leaf with the loopback", ((f"{path}.loopback", leaf.loopback) for path, leaf in leaves))
    yield from _unique("a rack", ((f"racks.{n}.name", rack.name) for n, rack in racks))
    yield from _unique("a size", ((f"sizes.{n}.id", size.id) for n, size in enumerate(file.sizes)))
    # A size takes all of a hardware model's figures: two of one model would both match each machine.
    yield from _unique(
        "a size of hardware", ((f"sizes.{n}.hardware", size.hardware) for n, size in enumerate(file.sizes))
    )
    yield from _unique("an image", ((f"images.{n}.id", image.id) for n, image in enumerate(file.images)))
    yield from _unique("a layout", ((f"layouts.{n}.id", layout.id) for n, layout in enumerate(file.layouts)))
    yield from _unique("a network", ((f"networks.{n}.id", network.id) for n, network in enumerate(file.networks)))
    numbered = ((f"networks.{n}.vrf", network.vrf) for n, network in enumerate(file.networks) if network.vrf)
    yield from _unique("a network with VRF", numbered)


def _unique(what: str, values: Iterable[tuple[str, Value]]) -> Iterator[Mistake]:
    first: dict[Value, str] = {}
    for path, value in values:
        if value in first:
            yield path, f"there is {what} {value} already, at {first[value]}; give this one another"
        first.setdefault(value, path)


def _references(file: RackFile) -> Iterator[Mistake]:
    used = [(f"sizes.{n}.hardware", size.hardware) for n, size in enumerate(file.sizes)]
    for r, rack in enumerate(file.racks):
        used += [(f"racks.{r}.machines.{n}.hardware", group.hardware) for n, group in enumerate(rack.machines)]
    known = ", ".join(sorted(file.hardware))
    for path, name in used:
        if name not in file.hardware:
            yield path, f"{name} is not described under hardware; there is {known}"
    sizes = {size.id for size in file.sizes}
    for number, layout in enumerate(file.layouts):
        for place, size in enumerate(layout.sizes):
            if size not in sizes:
                yield f"layouts.{number}.sizes.{place}", f"no size {size}; there is {', '.join(sorted(sizes))}"


def _ports(file: RackFile) -> Iterator[Mistake]:
    for number, rack in enumerate(file.racks):
        count = sum(group.count for group in rack.machines)
        if count > MAX_MACHINES_A_RACK:
            text = f"{count} machines, but a leaf has {MAX_MACHINES_A_RACK} ports for them; spread them over more racks"
            yield f"racks.{number}.machines", text


def _prefixes(file: RackFile) -> Iterator[Mistake]:
    all_of_them = [
        (f"networks.{n}.prefixes.{place}", network.id, ipaddress.ip_network(prefix))
        for n, network in enumerate(file.networks)
        for place, prefix in enumerate(network.prefixes)
    ]
    for (_, name, one), (path, _, other) in combinations(all_of_them, 2):
        # Of different families they do not: a comparison of their numbers would say so by accident.
        if one.version == other.version and one.overlaps(other):
            yield path, f"{other} overlaps {one} of network {name}; networks of one lab have to be apart"


def _layouts(file: RackFile) -> Iterator[Mistake]:
    for number, layout in enumerate(file.layouts):
        path = f"layouts.{number}"
        labels = ((f"{path}.partitions.{n}.label", part.label) for n, part in enumerate(layout.partitions))
        yield from _unique("a partition", labels)
        for place, part in enumerate(layout.partitions[:-1]):
            if not part.size_mib:
                yield f"{path}.partitions.{place}.size_mib", "only the last partition can take the rest; give a size"
        yield from _devices(file, path, layout)


def _devices(file: RackFile, path: str, layout: Layout) -> Iterator[Mistake]:
    """The disk of a layout has to be in the machines that the layout is for."""
    for size in file.sizes:
        model = file.hardware.get(size.hardware)
        if size.id not in layout.sizes or model is None:
            continue
        disks = [disk.device for disk in model.disks]
        if layout.device not in disks:
            yield f"{path}.device", f"machines of size {size.id} have no {layout.device}; they have {', '.join(disks)}"
