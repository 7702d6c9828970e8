"""Whatever bytes arrive, parsers say "garbage" and state machines drop or refuse: nothing else is ever raised."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_bmc.rmcp import failures, packets
from metal_bmc.rmcp.handshake import Handshake, Login, Stage
from metal_bmc.rmcp.messages import CHASSIS_STATUS, parse_response
from metal_bmc.rmcp.packets import PayloadType
from metal_bmc.rmcp.session import Dropped, Session
from metal_bmc.rmcp.suites import SUITE_3, SUITE_17, SessionKeys
from metal_sim.bmc import Faults, packet
from metal_sim.bmc.session import SessionTable
from metal_sim.bmc.users import UserTable

LOGIN = Login("bmc", 623, "metal", "pw-Tr0ub4dor-do-leak")
KEYS = SessionKeys(b"s" * 32, b"i" * 32, b"e" * 16)
HEADS = st.sampled_from([
    b"", packets.RMCP_HEADER, packets.RMCP_HEADER + b"\x06\x00", packets.RMCP_HEADER + b"\x06\xc0\x05\0\0\0",
    packets.RMCP_HEADER + b"\x06\x11", packets.RMCP_HEADER + b"\x00" * 9,
])  # fmt: skip
datagrams = st.tuples(HEADS, st.binary(max_size=90)).map(b"".join)


def bmc() -> SessionTable:
    return SessionTable(
        users=UserTable("metal", LOGIN.password), guid=bytes(range(16)), faults=Faults(), clock=lambda: 0.0, slots=2,
        idle_seconds=60,
    )  # fmt: skip


@given(datagrams)
def test_no_parser_fails(data: bytes) -> None:
    parsed = packets.parse(data)
    assert parsed is None or len(parsed.payload) + len(parsed.rest) <= len(data)
    message = packets.parse_v15(data)
    assert message is None or len(message) < len(data)
    parse_response(data)
    packet.parse_request(data)
    for length in (0, SUITE_3.code_length, SUITE_17.code_length):
        packet.parse_packet(data, code_length=length)
        if parsed is not None:
            packets.code_of(data, parsed, length)
    packet.session_id_of(data)


@pytest.mark.parametrize("suite", [SUITE_3, SUITE_17], ids=["3", "17"])
@given(data=datagrams)
@settings(max_examples=40)
def test_nothing_that_has_no_key_is_opened(suite: object, data: bytes) -> None:
    session = Session(suite, KEYS, console_id=5, managed_id=9)  # type: ignore[arg-type]
    parsed = packets.parse(data)
    if parsed is not None:
        with pytest.raises(Dropped):
            session.open(data, parsed)


@given(cut=st.integers(0, 200), flips=st.lists(st.integers(0, 800), max_size=3), at=st.integers(0, 2))
def test_a_damaged_answer_never_makes_a_session(cut: int, flips: list[int], at: int) -> None:
    """Each answer of a true handshake, cut and damaged: it is dropped, or refused by name, or it was whole."""
    table, console = bmc(), Handshake(LOGIN, SUITE_17, tag=7, console_id=0x01020304)
    steps = ((table.open, PayloadType.OPEN_SESSION_RESPONSE), (table.rakp_1, PayloadType.RAKP_2),
             (table.rakp_3, PayloadType.RAKP_4))  # fmt: skip
    following = console.start()
    for number, (answer, kind) in enumerate(steps):
        true = answer(following[1])
        assert true is not None
        said = true
        if number == at:
            damaged = bytearray(true[: len(true) - cut] if cut < len(true) else b"")
            for flip in flips:
                if damaged:
                    damaged[flip // 8 % len(damaged)] ^= 1 << flip % 8
            said = bytes(damaged)
        try:
            taken = console.take(kind, said)
        except (Dropped, failures.RmcpFailure):
            # At once, or by what the true BMC says to our next step.
            assert number >= at
            assert console.stage is not Stage.DONE
            return
        if taken is None:
            break
        following = taken
    # What passed was whole in all that proves who speaks: only the reserved bytes and the highest role are not.
    assert console.stage is Stage.DONE
    assert console.session is not None


@given(st.sampled_from(list(Stage)[:4]), st.sampled_from([*PayloadType, 0x3F]), st.binary(max_size=90))
def test_a_handshake_takes_any_bytes_at_any_stage(stage: Stage, kind: int, payload: bytes) -> None:
    console = Handshake(LOGIN, SUITE_17, tag=7, console_id=0x01020304)
    console.start()
    console.stage = stage
    for said in (payload, b"\x07" + payload, b"\x07\x00\x00\x00" + (0x01020304).to_bytes(4, "little") + payload):
        try:
            console.take(kind, said)
        except (Dropped, failures.RmcpFailure):
            continue


@given(st.lists(st.tuples(st.sampled_from(["open", "rakp_1", "rakp_3"]), st.binary(max_size=60)), max_size=30))
def test_the_simulated_bmc_takes_any_bytes_and_keeps_few_half_open_sessions(steps: list[tuple[str, bytes]]) -> None:
    table = bmc()
    asked = Handshake(LOGIN, SUITE_17, tag=7, console_id=1).start()[1]
    for name, payload in steps:
        table.open(asked)
        getattr(table, name)(payload)
    assert len(table) <= 8
    assert table.active_count() == 0


@given(st.binary(max_size=40))
def test_a_message_with_a_good_checksum_and_nonsense_inside_is_an_answer_or_nothing(data: bytes) -> None:
    request = packet.parse_request(CHASSIS_STATUS.encode(3))
    assert request is not None
    answer = parse_response(request.response(0, data))
    assert answer is not None
    assert (answer.sequence, answer.data) == (3, data)
