from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.identity import Match, judge, readings, serials

MACHINE = "00112233-4455-6677-8899-aabbccddeeff"
OTHER = UUID("6f8e2c1a-0b7d-4e55-9a10-0242ac120002").bytes
ORDERS = {
    Match.SMBIOS: UUID(MACHINE).bytes_le,
    Match.RFC4122: UUID(MACHINE).bytes,
    Match.IPMI: UUID(MACHINE).bytes[::-1],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_guid_is_the_machines_in_whatever_order_its_bytes_come(order: Match) -> None:
    assert judge(MACHINE, guid=ORDERS[order]) is order
    assert judge(MACHINE, guid=ORDERS[order], order=order) is order


def test_a_board_whose_order_is_known_is_read_in_that_order_only() -> None:
    assert judge(MACHINE, guid=ORDERS[Match.RFC4122], order="smbios") is Match.OTHER
    assert list(readings(ORDERS[Match.IPMI], "ipmi").values()) == [MACHINE]


@given(st.uuids(), st.sampled_from(["bytes", "bytes_le", "reversed"]))
def test_every_uuid_is_found_again_in_every_order(uuid: UUID, how: str) -> None:
    guid = uuid.bytes[::-1] if how == "reversed" else getattr(uuid, how)
    assert str(uuid) in readings(guid).values()
    assert judge(str(uuid), guid=guid) not in (Match.OTHER, Match.UNKNOWN)


@given(st.binary(max_size=40).filter(lambda raw: len(raw) != 16))
def test_what_is_no_guid_says_nothing(raw: bytes) -> None:
    assert readings(raw) == {}


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"guid": b""}, Match.UNKNOWN),
        ({"guid": OTHER}, Match.OTHER),
        ({"guid": OTHER, "serial": " SN-1", "said_serials": {"sn-1", "b2"}}, Match.SERIAL),
        ({"guid": b"", "serial": "SN-1", "said_serials": {"sn-1"}}, Match.SERIAL),
        ({"guid": OTHER, "serial": "SN-1"}, Match.OTHER),
        ({"guid": OTHER, "mac": "02:00:00:00:00:01", "said_mac": "02:00:00:00:00:01"}, Match.MAC),
        ({"guid": OTHER, "mac": "02:00:00:00:00:01"}, Match.OTHER),
        # A GUID that fits is no proof when boards share it, and something that is known says otherwise.
        ({"guid": ORDERS[Match.SMBIOS], "serial": "SN-1", "said_serials": {"sn-2"}}, Match.OTHER),
        ({"guid": ORDERS[Match.SMBIOS], "mac": "02:00:00:00:00:01", "said_mac": "02:00:00:00:00:02"}, Match.OTHER),
        ({"guid": ORDERS[Match.SMBIOS], "serial": "SN-1"}, Match.SMBIOS),
    ],
)
def test_serial_and_mac_decide_where_they_are_known(said: dict[str, object], match: Match) -> None:
    assert judge(MACHINE, **said) is match  # type: ignore[arg-type]


def test_serial_numbers_of_machine_board_and_chassis_count() -> None:
    fru = {"Serial Number": "A1", "Board serial number": " b2 ", "Chassis serial number": "", "Model": "m"}
    assert serials(fru) == {"a1", "b2"}
