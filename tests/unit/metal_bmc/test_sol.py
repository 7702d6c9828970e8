"""Serial over LAN without a network: two ends and a line between them that loses, repeats and cuts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.rmcp.sol import SolEnd, SolPacket, most_characters, parse

NACK, OVERRUN, ENDED = 0x40, 0x08, 0x10


@given(st.binary(max_size=300))
def test_any_bytes_are_a_packet_or_none(payload: bytes) -> None:
    packet = parse(payload)
    assert (packet is None) == (len(payload) < 4)
    if packet is not None:
        SolEnd().hear(packet)


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=200))
def test_a_packet_is_read_back(number: int, acknowledged: int, accepted: int, flags: int, characters: bytes) -> None:
    packet = SolPacket(number, acknowledged, accepted, flags, characters)
    assert parse(packet.encode()) == packet


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=40), st.randoms(use_true_random=False))
def test_what_the_machine_prints_arrives_once_and_in_order(prints: list[bytes], chance: random.Random) -> None:
    """A BMC that sends each packet until it hears of it, over a line that loses half of either direction."""
    end, heard = SolEnd(), b""
    for index, printed in enumerate(prints):
        packet = SolPacket(index % 15 + 1, 0, 0, 0, printed)
        while True:
            if chance.random() < 0.5:
                continue
            taken = end.hear(packet)
            heard += taken.characters
            answer = parse(taken.reply)
            assert answer is not None
            assert (answer.number, answer.acknowledged, answer.accepted) == (0, packet.number, len(printed))
            assert not taken.gone
            if chance.random() < 0.5:
                break
    assert heard == b"".join(prints)


def test_a_packet_that_comes_again_longer_brings_the_rest() -> None:
    end = SolEnd()
    brought = [end.hear(SolPacket(1, 0, 0, 0, text)).characters for text in (b"lo", b"login", b"log", b"login:")]
    assert brought == [b"lo", b"gin", b"", b":"]


def test_packets_that_the_bmc_gave_up_are_counted() -> None:
    end = SolEnd()
    assert [end.hear(SolPacket(number, 0, 0, 0, b"x")).gone for number in (7, 8, 11, 15, 2)] == [0, 0, 2, 3, 1]


def test_numbers_go_from_one_to_fifteen_and_around() -> None:
    end = SolEnd()
    assert [end.send(b"x")[0] for _ in range(17)] == [*range(1, 16), 1, 2]


@pytest.mark.parametrize(
    ("answer", "settled", "rest"),
    [
        (SolPacket(0, 1, 5, 0, b""), True, b""),
        (SolPacket(0, 1, 2, 0, b""), True, b"llo"),
        (SolPacket(0, 1, 0, NACK, b""), True, b"hello"),
        (SolPacket(0, 1, 0, 0, b""), True, b""),
        (SolPacket(0, 2, 5, 0, b""), False, b""),
        (SolPacket(3, 0, 0, 0, b"text"), False, b""),
        (SolPacket(3, 1, 5, 0, b"text"), True, b""),
    ],
)
def test_an_acknowledgement_settles_what_it_names(answer: SolPacket, settled: bool, rest: bytes) -> None:
    end = SolEnd()
    end.send(b"hello")
    assert end.hear(answer).settled is settled
    assert end.rest == rest
    assert not end.hear(answer).settled, "the second time nothing is under way"


def test_status_bits_are_told() -> None:
    end = SolEnd()
    assert end.hear(SolPacket(1, 0, 0, OVERRUN, b"x")).overrun
    assert end.hear(SolPacket(0, 0, 0, ENDED, b"")).ended


@pytest.mark.parametrize(("inbound", "most"), [(0, 8), (11, 8), (12, 8), (64, 60), (255, 200), (0xFF00, 8)])
def test_a_packet_is_as_long_as_the_bmc_takes_it(inbound: int, most: int) -> None:
    assert most_characters(inbound) == most
