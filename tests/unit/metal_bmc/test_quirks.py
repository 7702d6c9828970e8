from __future__ import annotations

from datetime import UTC, datetime

import pytest
from metal_bmc.drivers.interface import Capability, DriverKind
from metal_bmc.drivers.quirks import PLAIN, TABLE, Board, Quirks, Row, quirks_of, unknown_changes
from metal_bmc.endpoint import Endpoint, Observation

REMOTE = 0x24
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def endpoint(seen: Observation) -> Endpoint:
    return Endpoint("m", "p", "h", 623, "", "u", None, None, DriverKind.IPMI, "", seen, 0, 1, 1, NOW, NOW)


@pytest.mark.parametrize(
    ("board", "selector"),
    [
        (Board(("Supermicro",)), REMOTE),
        (Board(("SUPERMICRO Inc.",), ("X11DPT-B",)), REMOTE),
        (Board(("somebody", "Novarion-Systems")), REMOTE),
        (Board(manufacturer=10876), REMOTE),
        # Names of its own outweigh a number, which boards inherit from whoever made their BMC's firmware.
        (Board(("Gigabyte",), manufacturer=10876), PLAIN.disk_selector),
        (Board(("Dell Inc.",)), PLAIN.disk_selector),
        (Board(), PLAIN.disk_selector),
    ],
)
def test_boards_want_the_disk_selector_of_their_maker(board: Board, selector: int) -> None:
    assert quirks_of(board).disk_selector == selector


def test_the_table_speaks_of_quirks_and_capabilities_that_exist() -> None:
    assert unknown_changes() == []
    assert unknown_changes([Row("a", {"disk_selecter": 1})]) == ["disk_selecter"]
    names = {capability.value for capability in Capability}
    for row in TABLE:
        assert (row.maker, row.model) == (row.maker.lower(), row.model.lower())
        assert quirks_of(Board((row.maker,), (row.model,)), [row]).lacks <= names


@pytest.mark.parametrize(
    ("firmware", "settle"),
    [("1.9", 0), ("1.10", 2), ("2.00", 2), ("2.30", 2), ("2.31", 0), ("v1.10-beta", 2), ("", 0), ("none", 0)],
)
def test_a_row_is_for_a_range_of_firmware_with_both_ends(firmware: str, settle: float) -> None:
    table = [Row("acme", {"settle_seconds": 2.0}, since="1.10", until="2.30")]
    assert quirks_of(Board(("Acme",), firmware=firmware), table).settle_seconds == settle


def test_rows_add_up_and_the_later_one_wins() -> None:
    table = [
        Row("acme", {"settle_seconds": 2.0, "disk_selector": REMOTE}),
        Row("acme", {"settle_seconds": 5.0}, model="mega"),
        Row("other", {"settle_seconds": 9.0}),
    ]
    assert quirks_of(Board(("Acme",), ("MegaRack 1",)), table) == Quirks(disk_selector=REMOTE, settle_seconds=5.0)
    assert quirks_of(Board(("Acme",), ("Mini",)), table) == Quirks(disk_selector=REMOTE, settle_seconds=2.0)
    assert quirks_of(Board(("Nobody",)), table) is PLAIN


@pytest.mark.parametrize("name", ["Board manufacturer", "Manufacturer"])
def test_an_endpoint_is_known_by_what_its_fru_says(name: str) -> None:
    assert endpoint(Observation(fru={name: "Supermicro"})).quirks.disk_selector == REMOTE
    assert endpoint(Observation(manufacturer=47488)).quirks.disk_selector == REMOTE
    assert endpoint(Observation()).quirks is PLAIN


def test_nothing_is_lacking_as_long_as_nothing_is_known() -> None:
    wanted = (Capability.IDENTIFY, Capability.SEL)
    assert endpoint(Observation()).lacks(wanted) == []
    assert endpoint(Observation(capabilities=frozenset({Capability.SEL}))).lacks(wanted) == [Capability.IDENTIFY]
