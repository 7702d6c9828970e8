from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from metal_hammer import lldp

SOURCE = bytes.fromhex("020000000001")
MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
NAMES = st.text(string.ascii_letters + string.digits + "/-._", min_size=1, max_size=60)
TEXTS = st.text(string.printable[:95], max_size=200)
FRAMES = st.builds(
    lldp.Frame,
    chassis_id=MACS | NAMES,
    port_id=MACS | NAMES,
    ttl=st.integers(0, 0xFFFF),
    port_description=TEXTS,
    system_name=TEXTS,
    system_description=TEXTS,
)
LEAF = lldp.Frame(
    chassis_id="02:00:00:aa:00:01", port_id="Ethernet0", ttl=120, port_description="m1", system_name="leaf01"
)


@given(FRAMES)
def test_a_frame_survives_the_way_through_bytes(frame: lldp.Frame) -> None:
    assert lldp.parse(lldp.encode(frame, source=SOURCE)) == frame


@given(FRAMES, st.integers(0, 4094))
def test_a_vlan_tag_in_front_changes_nothing(frame: lldp.Frame, vlan: int) -> None:
    plain = lldp.encode(frame, source=SOURCE)
    tagged = plain[:12] + b"\x81\x00" + vlan.to_bytes(2, "big") + plain[12:]
    assert lldp.parse(tagged) == frame


@given(st.binary(max_size=200))
@example(b"")
@example(lldp.MULTICAST + SOURCE + b"\x88\xcc")
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes) -> None:
    with pytest.raises(lldp.LldpError):
        lldp.parse(garbage)


@given(st.binary(max_size=120))
def test_garbage_behind_an_lldp_header_parses_or_is_refused(garbage: bytes) -> None:
    try:
        frame = lldp.parse(lldp.MULTICAST + SOURCE + b"\x88\xcc" + garbage)
    except lldp.LldpError:
        return
    assert frame.chassis_id.isprintable()
    assert frame.port_id.isprintable()


@given(FRAMES, st.data())
def test_a_frame_cut_in_its_mandatory_part_is_refused(frame: lldp.Frame, data: st.DataObject) -> None:
    whole = lldp.encode(lldp.Frame(frame.chassis_id, frame.port_id, frame.ttl), source=SOURCE)
    cut = data.draw(st.integers(0, len(whole) - 3))
    with pytest.raises(lldp.LldpError):
        lldp.parse(whole[:cut])


def test_the_bytes_of_a_known_frame_are_as_the_standard_lays_them_out() -> None:
    frame = lldp.Frame(chassis_id="02:00:00:aa:00:01", port_id="Ethernet0", ttl=120, system_name="leaf01")
    assert lldp.encode(frame, source=SOURCE).hex() == (
        "0180c200000e020000000001" "88cc"
        "0207" "04" "020000aa0001"
        "040a" "05" "45746865726e657430"
        "0602" "0078"
        "0a06" "6c6561663031"
        "0000"
    )  # fmt: skip


def test_unknown_tlvs_are_skipped() -> None:
    frame = lldp.encode(LEAF, source=SOURCE)
    organisation = (127 << 9 | 6).to_bytes(2, "big") + b"\x00\x80\xc2\x01\x00\x01"
    assert lldp.parse(frame[:-2] + organisation + b"\x00\x00") == LEAF


def test_a_repeated_mandatory_tlv_is_refused() -> None:
    frame = lldp.encode(LEAF, source=SOURCE)
    ttl = (3 << 9 | 2).to_bytes(2, "big") + b"\x00\x01"
    with pytest.raises(lldp.LldpError, match="repeated"):
        lldp.parse(frame[:-2] + ttl + b"\x00\x00")


def test_a_management_address_as_chassis_id_is_shown_as_an_address() -> None:
    tlvs = b"\x02\x06\x05\x01\xc6\x33\x64\x01" + b"\x04\x02\x07a" + b"\x06\x02\x00\x78" + b"\x00\x00"
    assert lldp.parse_payload(tlvs).chassis_id == "198.51.100.1"


def test_control_characters_never_leave_the_parser() -> None:
    frame = lldp.encode(LEAF, source=SOURCE).replace(b"leaf01", b"l\x1b[2J\n")
    assert lldp.parse(frame).system_name == "l\ufffd[2J\ufffd"


@pytest.mark.parametrize(
    "frame",
    [
        lldp.Frame("", "Ethernet0", 1),
        lldp.Frame("c", "p", -1),
        lldp.Frame("c", "p", 65536),
        lldp.Frame("c", "p", 1, system_name="x" * 512),
    ],
)
def test_values_that_do_not_fit_are_not_encoded(frame: lldp.Frame) -> None:
    with pytest.raises(lldp.LldpError):
        lldp.encode(frame, source=SOURCE)
