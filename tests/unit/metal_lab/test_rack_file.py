"""Rack files: the examples load, and each broken one is refused with the file, the place in it, and what to do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_lab.rack.model import RackFile, RackFileError, load
from metal_lab.rack.wiring import leaves, machines

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
Content = dict[str, Any]
Change = Callable[[Content], object]


def mini() -> Content:
    """The mini rack, to break something in it."""
    content = yaml.safe_load((EXAMPLES / "mini-rack.yaml").read_text())
    assert isinstance(content, dict)
    return content


def refused(path: Path, text: str | bytes) -> str:
    """What is said about a file with this text; it has to name the file, and not to be a stack of internals."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RackFileError) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "pydantic" not in said
    assert "Traceback" not in said
    assert len(said) < 4000
    return said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rack.yaml"


@pytest.mark.parametrize(("name", "count", "leaf_count"), [("mini-rack", 4, 2), ("rack-16", 16, 8)])
def test_the_examples_load(name: str, count: int, leaf_count: int) -> None:
    rack = load(EXAMPLES / f"{name}.yaml")
    assert rack.name == name
    assert len(machines(rack)) == count
    assert len(leaves(rack)) == leaf_count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; begin with a copy of examples/mini-rack.yaml"),
        ("# nothing but a comment\n", "is empty"),
        ("- a\n- b\n", "has to be a mapping"),
        ("just words", "has to be a mapping"),
        ("name: [unclosed", "is not YAML"),
        ("name: a\n\tpartition: b", "is not YAML"),
        (b"\xff\xfe\x00binary", "is not YAML"),
        (b"name: \x00", "is not YAML"),
        ("name: !!python/object/apply:os.system [id]", "is not YAML"),
        ("a: &a [x]\nb: *a\n", "aliases are not used in rack files"),
        ("[" * 20_000, "nested too deeply"),
        ("name: " + "9" * 5000, "is not YAML"),
        ("name: 2026-99-99", "is not YAML"),
        ("name: one\nname: two\n", "'name' is there twice"),
        ("a: " + "x" * 2_000_000, "larger than 1024 KiB"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(file: Path, text: str | bytes, said: str) -> None:
    assert said in refused(file, text)


def test_a_mistake_in_the_yaml_is_placed_by_its_line(file: Path) -> None:
    assert "line 3" in refused(file, "name: a\npartition: b\nname: c\n")


def test_a_file_that_is_not_there_is_named_and_so_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(RackFileError, match=r"none\.yaml: cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RackFileError, match="cannot be read: Is a directory"):
        load(tmp_path)


def put(path: str, value: Any) -> Change:
    """A change that puts a value at a path like `racks.0.name`."""

    def change(content: Content) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        place: Any = content
        for step in way:
            place = place[step]
        place[last] = value

    return change


def add(path: str, **fields: Any) -> Change:
    """A change that appends a copy of the first item of a list, with some fields different."""

    def change(content: Content) -> None:
        place: Any = content
        for step in path.split("."):
            place = place[int(step) if step.isdigit() else step]
        place.append(copy.deepcopy(place[0]) | fields)

    return change


def another_rack(**fields: Any) -> Change:
    """A change that adds a second rack, right but for the fields that are given."""
    leaf_pair = [
        {"name": "leaf3", "asn": 4200000013, "loopback": "10.0.0.13"},
        {"name": "leaf4", "asn": 4200000014, "loopback": "10.0.0.14"},
    ]
    rack: Content = {"name": "rack-2", "leaves": leaf_pair, "machines": [{"hardware": "mini-pc"}]}
    return lambda content: content["racks"].append(rack | fields)


LEAF1 = {"name": "leaf1", "asn": 4200000013, "loopback": "10.0.0.13"}
LEAF3 = {"name": "leaf3", "asn": 4200000013, "loopback": "10.0.0.13"}

BROKEN: list[tuple[Change, str, str]] = [
    # Keys that are missing or unknown, at every depth.
    (lambda content: content.pop("hardware"), "hardware", "is missing"),
    (put("colour", "red"), "colour", "is not known here; known are name, partition, spines"),
    (put("racks.0.height", 42), "racks.0.height", "is not known here; known are name, leaves, machines"),
    (put("racks.0.leaves.0.mac", "x"), "racks.0.leaves.0.mac", "is not known here; known are name, asn, loopback"),
    (put("racks.0.machines.0.uuid", "x"), "racks.0.machines.0.uuid", "known are hardware, count"),
    (put("hardware.mini-pc.disks.0.size", 1), "hardware.mini-pc.disks.0.size", "known are device, kind, size_gib"),
    (lambda content: content["racks"][0]["leaves"][1].pop("asn"), "racks.0.leaves.1.asn", "is missing"),
    # Types and ranges.
    (put("name", "Mini Rack"), "name", "'Mini Rack' has to be lower-case letters"),
    (put("name", 7), "name", "should be a valid string, not 7"),
    (put("partition", "mini.rack"), "partition", "lower-case letters, digits and hyphens"),
    (put("name", "a" * 64), "name", "at most 63 characters"),
    (put("pxe_vlan", 4095), "pxe_vlan", "less than or equal to 4094, not 4095"),
    (put("pxe_vlan", 1), "pxe_vlan", "greater than or equal to 2"),
    (put("racks.0.machines.0.count", 0), "racks.0.machines.0.count", "greater than or equal to 1"),
    (put("racks.0.machines.0.count", 10**30), "racks.0.machines.0.count", "less than or equal to 48"),
    (put("racks.0.machines.0.count", "four"), "racks.0.machines.0.count", "valid integer"),
    (put("racks.0.leaves.0.asn", 2**32), "racks.0.leaves.0.asn", "less than or equal to 4294967294"),
    (put("hardware.mini-pc.memory_gib", 10**12), "hardware.mini-pc.memory_gib", "less than or equal to 65536"),
    (put("hardware.mini-pc.cores", -1), "hardware.mini-pc.cores", "greater than or equal to 1"),
    (put("hardware.mini-pc.disks.0.size_gib", float("inf")), "hardware.mini-pc.disks.0.size_gib", "100000"),
    (put("hardware.mini-pc.disks.0.size_gib", float("nan")), "hardware.mini-pc.disks.0.size_gib", "not nan"),
    (put("hardware.mini-pc.disks", []), "hardware.mini-pc.disks", "at least 1 item"),
    (put("hardware.mini-pc.disks.0.device", "sda"), "hardware.mini-pc.disks.0.device", "a device like /dev/nvme0n1"),
    (put("hardware.mini-pc.disks.0.kind", "tape"), "hardware.mini-pc.disks.0.kind", "'nvme', 'ssd' or 'hdd'"),
    (put("hardware", {}), "hardware", "at least 1 item"),
    (put("racks", []), "racks", "at least 1 item"),
    (put("racks", "rack-1"), "racks", "valid tuple"),
    (put("images.0.id", "debian"), "images.0.id", "name, hyphen, version"),
    (put("images.0.size_mib", 10**9), "images.0.size_mib", "less than or equal to 1024"),
    (put("networks.0.type", "child"), "networks.0.type", "'super', 'external' or 'underlay'"),
    (put("networks.0.vrf", 2**24), "networks.0.vrf", "less than or equal to 16777215"),
    (put("spines", [f"s{number}" for number in range(9)]), "spines", "at most 8 items"),
    # Addresses and prefixes.
    (put("racks.0.leaves.0.loopback", "10.0.0.11/32"), "racks.0.leaves.0.loopback", "is no IPv4 address"),
    (put("racks.0.leaves.0.loopback", "2001:db8::1"), "racks.0.leaves.0.loopback", "looks like 10.0.0.11"),
    (put("dns_servers", ["dns.example"]), "dns_servers.0", "is no address; one looks like 192.0.2.53"),
    (put("networks.1.prefixes.0", "10.1.0.0/33"), "networks.1.prefixes.0", "is no prefix; one looks like"),
    (put("networks.1.prefixes.0", "10.1.0.1/22"), "networks.1.prefixes.0", "write 10.1.0.0/22"),
    (put("networks.0.destination_prefixes.0", "all"), "networks.0.destination_prefixes.0", "is no prefix"),
    (put("networks.2.default_child_prefix_length", {"ipv4": 0}), "networks.2.default_child_prefix_length.ipv4", "1"),
    # Overlaps, of equal and of nested prefixes, in one network and between two.
    (put("networks.1.prefixes", ["10.128.0.0/14"]), "networks.2.prefixes.0", "overlaps 10.128.0.0/14 of network under"),
    (put("networks.1.prefixes", ["10.0.0.0/8"]), "networks.2.prefixes.0", "overlaps 10.0.0.0/8"),
    (put("networks.1.prefixes", ["10.1.0.0/22", "10.1.1.0/24"]), "networks.1.prefixes.1", "overlaps 10.1.0.0/22"),
    # Names that are given twice.
    (add("racks.0.leaves"), "racks.0.leaves", "a rack has exactly two leaves, not 3"),
    (put("racks.0.leaves", []), "racks.0.leaves", "exactly two leaves, not 0"),
    (another_rack(name="rack-1"), "racks.1.name", "a rack rack-1 already, at racks.0.name"),
    (another_rack(leaves=[LEAF1, LEAF3]), "racks.1.leaves.0.name", "a switch leaf1 already, at racks.0.leaves.0.name"),
    (put("racks.0.leaves.1.name", "leaf1"), "racks.0.leaves.1.name", "a switch leaf1 already"),
    (put("racks.0.leaves.1.name", "spine1"), "racks.0.leaves.1.name", "a switch spine1 already, at spines.0"),
    (put("racks.0.leaves.1.asn", 4200000011), "racks.0.leaves.1.asn", "AS number 4200000011 already"),
    (put("racks.0.leaves.1.loopback", "10.0.0.11"), "racks.0.leaves.1.loopback", "loopback 10.0.0.11 already"),
    (add("sizes"), "sizes.1.id", "a size n1-mini already"),
    (add("sizes", id="other"), "sizes.1.hardware", "a size of hardware mini-pc already"),
    (add("images"), "images.2.id", "an image debian-13.0.20261101 already"),
    (add("layouts"), "layouts.1.id", "a layout one-nvme already"),
    (add("networks", prefixes=["198.51.100.0/24"]), "networks.3.id", "a network internet already"),
    (add("networks", id="two", prefixes=["198.51.100.0/24"]), "networks.3.vrf", "VRF 104009 already"),
    (add("layouts.0.partitions"), "layouts.0.partitions.2.label", "a partition efi already"),
    # References that lead nowhere.
    (
        put("racks.0.machines.0.hardware", "big"),
        "racks.0.machines.0.hardware",
        "not described under hardware; there is",
    ),
    (put("sizes.0.hardware", "big"), "sizes.0.hardware", "there is mini-pc"),
    (put("layouts.0.sizes", ["n2"]), "layouts.0.sizes.0", "no size n2; there is n1-mini"),
    (put("layouts.0.device", "/dev/sda"), "layouts.0.device", "have no /dev/sda; they have /dev/nvme0n1"),
    (put("layouts.0.partitions.0.size_mib", 0), "layouts.0.partitions.0.size_mib", "only the last partition"),
    # More machines than ports, in two groups that are each small enough.
    (add("racks.0.machines", count=48), "racks.0.machines", "52 machines, but a leaf has 48 ports"),
]


@pytest.mark.parametrize(
    ("change", "place", "said"), BROKEN, ids=[f"{place}-{n}" for n, (_, place, _) in enumerate(BROKEN)]
)
def test_a_broken_file_is_refused_with_the_place_and_the_remedy(
    file: Path, change: Change, place: str, said: str
) -> None:
    content = mini()
    change(content)
    lines = refused(file, yaml.safe_dump(content)).splitlines()
    of_the_place = [line for line in lines if line.startswith(f"  {place}: ")]
    assert of_the_place, lines
    assert any(said in line for line in of_the_place), lines


def test_all_mistakes_are_told_at_once_and_a_flood_is_cut(file: Path) -> None:
    content = mini()
    content["pxe_vlan"], content["racks"][0]["machines"][0]["count"] = 0, 0
    assert refused(file, yaml.safe_dump(content)).splitlines()[0].endswith("2 mistakes")
    content |= {f"key-{number}": number for number in range(500)}
    said = refused(file, yaml.safe_dump(content)).splitlines()
    assert said[0].endswith("502 mistakes")
    assert said[-1] == "  … and 482 more"


def test_two_hardware_models_of_one_name_are_not_taken_for_one(file: Path) -> None:
    text = (EXAMPLES / "mini-rack.yaml").read_text()
    model = text[text.index("  mini-pc:") : text.index("racks:")]
    assert "'mini-pc' is there twice" in refused(file, text.replace(model, model + model))


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,12}[a-z0-9])?", fullmatch=True)


@st.composite
def rack_files(draw: st.DrawFn) -> RackFile:
    """Any racks that a file can describe."""
    count = draw(st.integers(1, 5))
    rack_names = draw(st.lists(NAMES, min_size=count, max_size=count, unique=True))
    leaf_names = draw(st.lists(NAMES, min_size=2 * count, max_size=2 * count, unique=True))
    content = mini()
    content["spines"] = []
    content["racks"] = [
        {
            "name": rack,
            "leaves": [
                {"name": leaf_names[2 * n + side], "asn": 1 + 2 * n + side, "loopback": f"10.0.{n}.{side}"}
                for side in (0, 1)
            ],
            "machines": [
                {"hardware": "mini-pc", "count": machine_count}
                for machine_count in draw(st.lists(st.integers(1, 16), max_size=3))
            ],
        }
        for n, rack in enumerate(rack_names)
    ]
    return RackFile.model_validate(content)


@settings(max_examples=60)
@given(rack_files())
def test_every_machine_hangs_on_the_two_leaves_of_one_rack_and_no_port_is_used_twice(file: RackFile) -> None:
    placed = machines(file)
    switches = {leaf.leaf.name: leaf for leaf in leaves(file)}
    assert len(placed) == sum(group.count for rack in file.racks for group in rack.machines)
    used: set[tuple[str, str]] = set()
    for machine in placed:
        pair = [cable.leaf for cable in machine.cables]
        rack = next(rack for rack in file.racks if rack.name == machine.rack)
        assert pair == [leaf.name for leaf in rack.leaves]
        assert [cable.mac for cable in machine.cables] == [nic.mac for nic in machine.facts.nics]
        for cable in machine.cables:
            assert cable.port in switches[cable.leaf].machine_ports, "the leaf has this port, and it is no uplink"
            assert (cable.leaf, cable.port) not in used
            used.add((cable.leaf, cable.port))
    for leaf in switches.values():
        assert not set(leaf.machine_ports) & set(leaf.uplinks)
        assert leaf.uplinks, "a leaf without a spine above it has no way out"


@settings(max_examples=60)
@given(rack_files())
def test_no_two_things_share_a_name_a_uuid_a_mac_or_a_serial(file: RackFile) -> None:
    placed = machines(file)
    macs = [nic.mac for machine in placed for nic in machine.facts.nics]
    macs += [machine.facts.bmc.mac for machine in placed if machine.facts.bmc]
    macs += [leaf.mac for leaf in leaves(file)]
    serials = [disk.serial for machine in placed for disk in machine.facts.disks]
    for what in ([machine.name for machine in placed], [machine.uuid for machine in placed], macs, serials):
        assert len(set(what)) == len(what)
    for mac in macs:
        assert int(mac[:2], 16) & 3 == 2, "a locally administered address of one station"
    assert machines(file) == placed, "a lab that is started again has the same machines"


@settings(max_examples=80)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                    max_leaves=12), st.sampled_from(sorted(RackFile.model_fields)))  # fmt: skip
def test_no_content_whatever_makes_it_fall_over(
    tmp_path_factory: pytest.TempPathFactory, value: object, key: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(mini() | {key: value}, allow_unicode=True), encoding="utf-8")
    with contextlib.suppress(RackFileError):
        assert load(path).name
