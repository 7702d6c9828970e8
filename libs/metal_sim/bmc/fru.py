"""The FRU inventory of a simulated machine, as the bytes of an IPMI FRU device (FRU storage definition v1.0 rev 1.2).

Writes chassis, board and product areas. Internal-use and multi-record areas are not needed and left out.
"""

from __future__ import annotations

from dataclasses import dataclass

_END_OF_FIELDS = 0xC1
_TEXT = 0xC0
_MAX_FIELD = 63
_ENGLISH = 25
_RACK_MOUNT_CHASSIS = 0x17


@dataclass(frozen=True)
class FruInfo:
    """The strings of FRU 0; each at most 63 Latin-1 characters."""

    chassis_part: str = "CSE-SIM-1U"
    chassis_serial: str = ""
    board_manufacturer: str = "metalplane"
    board_name: str = "SIM-BOARD"
    board_serial: str = ""
    board_part: str = "SIM-B1"
    product_manufacturer: str = "metalplane"
    product_name: str = "Simulated machine"
    product_part: str = "SIM-M1"
    product_version: str = "1"
    product_serial: str = ""
    asset_tag: str = ""


def encode(info: FruInfo) -> bytes:
    """The content of the FRU device. Raises ValueError for a string that does not fit."""
    chassis = _area(
        bytes((_RACK_MOUNT_CHASSIS,)),
        (info.chassis_part, info.chassis_serial),
    )
    # Three bytes of manufacturing date: minutes since 1996, 0 = unspecified.
    board = _area(
        bytes((_ENGLISH, 0, 0, 0)),
        (info.board_manufacturer, info.board_name, info.board_serial, info.board_part, ""),
    )
    product = _area(
        bytes((_ENGLISH,)),
        (
            info.product_manufacturer,
            info.product_name,
            info.product_part,
            info.product_version,
            info.product_serial,
            info.asset_tag,
            "",
        ),
    )
    chassis_at = 1
    board_at = chassis_at + len(chassis) // 8
    product_at = board_at + len(board) // 8
    header = bytes((1, 0, chassis_at, board_at, product_at, 0, 0))
    return header + bytes((_zero_sum(header),)) + chassis + board + product


def _area(prefix: bytes, fields: tuple[str, ...]) -> bytes:
    body = prefix + b"".join(_field(text) for text in fields) + bytes((_END_OF_FIELDS,))
    length = -(-(len(body) + 3) // 8) * 8
    area = bytes((1, length // 8)) + body
    area += b"\x00" * (length - len(area) - 1)
    return area + bytes((_zero_sum(area),))


def _field(text: str) -> bytes:
    raw = text.encode("latin-1")
    # A text field of one character has the same type/length byte as the end marker.
    if len(raw) == 1:
        raw += b" "
    if len(raw) > _MAX_FIELD:
        raise ValueError(f"FRU field {text!r} is longer than {_MAX_FIELD} characters")
    return bytes((_TEXT | len(raw),)) + raw if raw else b"\x00"


def _zero_sum(data: bytes) -> int:
    return -sum(data) & 0xFF
