"""RMCP+ without sockets: packets, ciphers, windows and the handshake against the simulated BMC's session table."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_bmc.rmcp import failures, packets
from metal_bmc.rmcp.handshake import Handshake, Login, Stage
from metal_bmc.rmcp.messages import Request, Response, parse_response
from metal_bmc.rmcp.packets import PayloadType
from metal_bmc.rmcp.session import Dropped, SequenceWindow, Session
from metal_bmc.rmcp.suites import PREFERRED, SUITE_3, SUITE_17, CipherSuite, Confidentiality, SessionKeys
from metal_sim.bmc import Faults, packet, suites
from metal_sim.bmc.session import SessionTable
from metal_sim.bmc.users import UserTable

LOGIN = Login("bmc", 623, "metal", "pw-Tr0ub4dor-do-leak")
KEYS = SessionKeys(b"s" * 32, b"i" * 32, b"e" * 16)
by_suite = pytest.mark.parametrize("suite", PREFERRED, ids=lambda suite: f"suite {suite.number}")
Payload = tuple[PayloadType, bytes]


def bmc(*, password: str = LOGIN.password, offered: tuple[suites.CipherSuite, ...] = suites.SUITES) -> SessionTable:
    return SessionTable(
        users=UserTable("metal", password), guid=bytes(range(16)), faults=Faults(), clock=lambda: 0.0, slots=1,
        idle_seconds=60, suites=offered,
    )  # fmt: skip


def answer(table: SessionTable, payload_type: int, payload: bytes) -> tuple[int, bytes]:
    """What the BMC says to one step."""
    steps: dict[int, tuple[Callable[[bytes], bytes | None], int]] = {
        PayloadType.OPEN_SESSION_REQUEST: (table.open, PayloadType.OPEN_SESSION_RESPONSE),
        PayloadType.RAKP_1: (table.rakp_1, PayloadType.RAKP_2),
        PayloadType.RAKP_3: (table.rakp_3, PayloadType.RAKP_4),
    }
    function, kind = steps[payload_type]
    said = function(payload)
    assert said is not None
    return kind, said


def log_in(handshake: Handshake, table: SessionTable) -> Session:
    step: Payload | None = handshake.start()
    while step is not None:
        step = handshake.take(*answer(table, *step))
    assert handshake.session is not None
    return handshake.session


def handshake(suite: CipherSuite = SUITE_17, login: Login = LOGIN) -> Handshake:
    return Handshake(login, suite, tag=7, console_id=0x01020304)


@given(st.binary(max_size=200), st.sampled_from(list(PayloadType)))
def test_a_plain_packet_is_read_back(payload: bytes, kind: PayloadType) -> None:
    assert packets.parse(packets.plain(kind, payload)) == packets.Packet(kind, False, False, 0, 0, payload, b"")


@given(st.binary(max_size=200), st.integers(0, 30))
def test_a_packet_of_ipmi_1_5_is_read_back_and_a_cut_one_is_not(message: bytes, cut: int) -> None:
    data = packets.plain_v15(message)
    assert packets.parse_v15(data) == message
    assert packets.parse(data) is None
    assert packet.parse_packet(data) == packet.Packet(15, 0, False, False, 0, 0, message)
    assert packets.parse_v15(data[: -1 - cut]) is None


@given(
    st.integers(0, 31).map(lambda n: 2 * n), st.integers(0, 255), st.binary(max_size=60), st.integers(0, 63),
    st.integers(0, 255),
)  # fmt: skip
def test_the_simulated_bmc_and_we_mean_the_same_message(
    netfn: int, command: int, data: bytes, sequence: int, code: int
) -> None:
    request = packet.parse_request(Request(netfn, command, data).encode(sequence))
    assert request is not None
    assert (request.netfn, request.command, request.data) == (netfn, command, data)
    assert parse_response(request.response(code, data)) == Response(netfn + 1, command, sequence, code, data)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=6), st.binary(min_size=16, max_size=16))
def test_messages_of_a_session_are_encrypted_and_decrypted_one_after_the_other(
    messages: list[bytes], key: bytes
) -> None:
    ours, theirs = Confidentiality(key), Confidentiality(key)
    for message in messages:
        sealed = ours.encrypt(message)
        assert suites.decrypt(key, sealed) == message
        assert theirs.decrypt(sealed) == message
        assert theirs.decrypt(suites.encrypt(key, message)) == message


def test_equal_messages_look_different_each_time() -> None:
    sealer = Confidentiality(b"k" * 16)
    sealed = [sealer.encrypt(b"power status") for _ in range(50)]
    blocks = {block[start : start + 16] for block in sealed for start in range(0, len(block), 16)}
    assert len(blocks) == 100


@given(st.lists(st.integers(0, 120), max_size=60))
def test_a_sequence_number_is_taken_once_and_not_from_far_behind(numbers: list[int]) -> None:
    window, seen, highest = SequenceWindow(), set[int](), 0
    for number in numbers:
        expected = number != 0 and number not in seen and number > highest - 32
        assert window.accept(number) is expected, (number, highest)
        if expected:
            seen.add(number)
            highest = max(highest, number)


@by_suite
@given(message=st.binary(max_size=60), flip=st.integers(0, 10_000))
@settings(max_examples=40)
def test_a_sealed_packet_is_opened_once_and_no_bit_may_differ(suite: CipherSuite, message: bytes, flip: int) -> None:
    ours = Session(suite, KEYS, console_id=5, managed_id=9)
    theirs = Session(suite, KEYS, console_id=9, managed_id=5)
    data = theirs.seal(message)
    damaged = bytearray(data)
    # The RMCP header is not covered by the code.
    damaged[4 + flip // 8 % (len(data) - 4)] ^= 1 << flip % 8
    broken = packets.parse(bytes(damaged))
    if broken is not None:
        with pytest.raises(Dropped):
            ours.open(bytes(damaged), broken)
    parsed = packets.parse(data)
    assert parsed is not None
    assert ours.open(data, parsed) == message
    with pytest.raises(Dropped, match="replayed"):
        ours.open(data, parsed)


def test_a_thousand_random_and_truncated_packets_are_dropped() -> None:
    chance = random.Random(4)
    session = Session(SUITE_17, KEYS, console_id=5, managed_id=9)
    good = Session(SUITE_17, KEYS, console_id=9, managed_id=5)
    for number in range(1000):
        kind = number % 4
        data = chance.randbytes(chance.randrange(90))
        if kind == 1:
            data = packets.RMCP_HEADER + b"\x06" + data
        elif kind == 2:
            data = packets.RMCP_HEADER + bytes((6, 0xC0)) + (5).to_bytes(4, "little") + data
        elif kind == 3:
            whole = good.seal(data)
            data = whole[: chance.randrange(len(whole))]
        parsed = packets.parse(data)
        if parsed is not None:
            with pytest.raises(Dropped):
                session.open(data, parsed)
        parse_response(data)
    parsed = packets.parse(data := good.seal(b"still here"))
    assert parsed is not None
    assert session.open(data, parsed) == b"still here"


@by_suite
def test_a_handshake_ends_in_a_session_whose_packets_the_bmc_reads(suite: CipherSuite) -> None:
    table = bmc()
    session = log_in(handshake(suite), table)
    theirs = table.active(session.managed_id)
    assert theirs is not None
    assert theirs.keys is not None
    data = session.seal(b"hello")
    parsed = packet.parse_packet(data, code_length=suite.code_length)
    assert parsed is not None
    assert theirs.suite.short_digest(theirs.keys.integrity, parsed.signed) == parsed.code
    assert suites.decrypt(theirs.keys.encryption, parsed.payload) == b"hello"


def test_a_wrong_password_is_noticed_before_the_bmc_hears_a_proof() -> None:
    table, console = bmc(password="another"), handshake()
    with pytest.raises(failures.LoginRefused, match="same password"):
        log_in(console, table)
    assert console.stage is Stage.DENIED
    last_word = console.renounce()
    assert last_word is not None
    assert table.rakp_3(last_word[1]) is None
    assert (table.counters.started, table.counters.failed) == (1, 1)


def test_an_unknown_user_is_refused() -> None:
    with pytest.raises(failures.LoginRefused, match="refuses the user"):
        log_in(handshake(login=Login("bmc", 623, "nobody", "x")), bmc())


def test_a_suite_that_the_bmc_lacks_is_told_apart() -> None:
    table = bmc(offered=(suites.SUITE_3,))
    with pytest.raises(failures.SuiteRefused):
        log_in(handshake(SUITE_17), table)
    assert log_in(handshake(SUITE_3), table).suite is SUITE_3


def test_a_bmc_that_quietly_chooses_a_weaker_suite_is_not_followed() -> None:
    console, weaker = handshake(SUITE_17), handshake(SUITE_3)
    console.start()
    with pytest.raises(failures.SuiteRefused, match="other algorithms"):
        console.take(*answer(bmc(), *weaker.start()))


def test_a_full_session_table_is_told_apart() -> None:
    table = bmc()
    log_in(handshake(), table)
    with pytest.raises(failures.SlotsFull):
        log_in(handshake(), table)


def test_a_bmc_that_cannot_prove_the_keys_is_not_believed() -> None:
    table, console = bmc(), handshake()
    step = console.start()
    for _ in range(2):
        following = console.take(*answer(table, *step))
        assert following is not None
        step = following
    kind, last = answer(table, *step)
    with pytest.raises(failures.LoginRefused, match="does not prove"):
        console.take(kind, last[:-1] + bytes((last[-1] ^ 1,)))


@pytest.mark.parametrize("status", range(1, 256))
def test_every_refusal_of_a_bmc_is_a_failure_with_a_name(status: int) -> None:
    console = handshake()
    console.start()
    with pytest.raises(failures.RmcpFailure):
        console.take(PayloadType.OPEN_SESSION_RESPONSE, bytes((7, status)))


def test_garbage_does_not_disturb_a_handshake() -> None:
    table, console, chance = bmc(), handshake(), random.Random(5)
    step: Payload | None = console.start()
    while step is not None:
        kind, said = answer(table, *step)
        for _ in range(100):
            cut = said[: chance.randrange(2)] or chance.randbytes(40)
            wrong_tag = bytes(((console.tag + 1) % 256,)) + said[1:]
            other_session = said[:4] + os.urandom(4) + said[8:]
            for noise in (cut, wrong_tag, other_session):
                if noise[:1] != bytes((console.tag,)) or noise is other_session or len(noise) < 2:
                    with pytest.raises(Dropped):
                        console.take(kind, noise)
        step = console.take(kind, said)
    assert console.stage is Stage.DONE


@pytest.mark.parametrize(
    "login", [Login("bmc", 623, "a" * 17, "x"), Login("bmc", 623, "a", "x" * 21)], ids=["name", "password"]
)
def test_what_ipmi_cannot_carry_is_refused_before_anything_is_sent(login: Login) -> None:
    with pytest.raises(failures.SessionRefused, match="at most"):
        handshake(login=login)


def test_no_secret_is_shown() -> None:
    assert LOGIN.password not in repr(LOGIN)
    assert "eeee" not in repr(KEYS)
