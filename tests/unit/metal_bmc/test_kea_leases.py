from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.sources.kea import parse as parse_lines
from metal_bmc.sources.lease import Lease, LeaseFile, Place, current

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EXPIRE = int(NOW.timestamp()) + 3600
MAC_1, MAC_2 = "0c:c4:7a:00:00:01", "0c:c4:7a:00:00:02"
HEADER_4 = (
    "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id\n"
)
HEADER_6 = (
    "address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname,"
    "hwaddr,state,user_context,hwtype,hwaddr_source,pool_id\n"
)


def parse(text: str) -> LeaseFile:
    return parse_lines(text.splitlines(keepends=True))


def line(
    address: str = "10.1.0.11",
    mac: str = MAC_1,
    *,
    lifetime: object = 7200,
    expire: object = EXPIRE,
    state: object = 0,
    name: str = "bmc-1",
    context: str = "",
) -> str:
    return f"{address},{mac},01:{mac},{lifetime},{expire},1,0,0,{name},{state},{context},0\n"


def line_6(
    address: str = "2001:db8::11", duid: str = "00:02:00:00:ab:11:01:02", mac: str = MAC_1, kind: int = 0
) -> str:
    return f"{address},{duid},7200,{EXPIRE},1,3600,{kind},7,128,0,0,,{mac},0,,1,2,0\n"


def hosts(text: str) -> dict[str, str]:
    return {mac: place.host for mac, place in current(parse(text).leases, NOW).items()}


def test_a_line_as_kea_writes_it_is_read() -> None:
    file = parse(HEADER_4 + line(context='{ "comment": "rack 1&#x2c unit 3" }'))
    assert file.problems == ()
    starts, ends = (datetime.fromtimestamp(EXPIRE - back, UTC) for back in (7200, 0))
    assert file.leases == (Lease(IPv4Address("10.1.0.11"), MAC_1, starts, ends, "active", 2),)


def test_columns_go_by_their_names_and_unknown_ones_are_passed_over() -> None:
    text = f"expire,color,hwaddr,valid_lifetime,address\n{EXPIRE},blue,{MAC_1},60,10.1.0.9\n"
    assert hosts(text) == {MAC_1: "10.1.0.9"}


def test_the_later_line_of_an_address_is_right() -> None:
    assert hosts(HEADER_4 + line() + line(mac=MAC_2)) == {MAC_2: "10.1.0.11"}
    assert hosts(HEADER_4 + line() + line(lifetime=0)) == {}
    assert hosts(HEADER_4 + line(lifetime=0) + line()) == {MAC_1: "10.1.0.11"}


def test_a_lease_that_ended_without_its_client_ends_the_one_before() -> None:
    assert hosts(HEADER_4 + line() + line(mac="", state=2)) == {}


@pytest.mark.parametrize("state", [1, 2, 3, 4, 99])
def test_only_state_0_is_a_lease_in_force(state: int) -> None:
    assert hosts(HEADER_4 + line(state=state)) == {}


def test_a_lease_is_over_at_its_end_and_an_infinite_one_never() -> None:
    assert hosts(HEADER_4 + line(expire=int(NOW.timestamp()))) == {}
    assert hosts(HEADER_4 + line(lifetime=0xFFFFFFFF, expire=60)) == {MAC_1: "10.1.0.11"}
    assert hosts(HEADER_4 + line(lifetime=0xFFFFFFFF, expire=EXPIRE + 0xFFFFFFFF)) == {MAC_1: "10.1.0.11"}


def test_ipv6_leases_go_by_hardware_address_or_by_a_duid_that_is_made_of_it() -> None:
    assert hosts(HEADER_6 + line_6()) == {MAC_1: "2001:db8::11"}
    assert hosts(HEADER_6 + line_6(duid=f"00:03:00:01:{MAC_2}", mac="")) == {MAC_2: "2001:db8::11"}
    assert hosts(HEADER_6 + line_6(duid=f"00:01:00:01:2a:2b:2c:2d:{MAC_2}", mac="")) == {MAC_2: "2001:db8::11"}
    assert [each.reason.split(":")[0] for each in parse(HEADER_6 + line_6(mac="")).problems] == ["no Ethernet address"]


def test_a_delegated_prefix_is_nobodys_address() -> None:
    assert parse(HEADER_6 + line_6(kind=2)) == LeaseFile((), ())


def test_a_bmc_with_both_families_is_at_its_ipv4_address_and_also_at_the_other() -> None:
    both = (*parse(HEADER_6 + line_6()).leases, *parse(HEADER_4 + line(expire=EXPIRE - 60)).leases)
    assert current(both, NOW) == {MAC_1: Place("10.1.0.11", ("2001:db8::11",))}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (line("10.1.0.999"), "`address` is not an IP address"),
        (line(mac="0c:c4:7a:00:00"), "`hwaddr` is not an Ethernet address"),
        (line(mac=""), "no Ethernet address: neither `hwaddr` nor a `duid` made of one"),
        (line(expire="soon"), "`expire` is not a number"),
        (line(expire="-1"), "`expire` is not a number"),
        (line(expire="٣"), "`expire` is not a number"),
        (line(expire=10**19), "`expire` is not a time"),
        (line(expire="9" * 5000), "`expire` is not a number"),
        (line(lifetime=""), "`valid_lifetime` is not a number"),
        (line(state="held"), "`state` is not a number"),
        (line(name="a,b"), "13 fields, where the header names 12"),
        ("10.1.0.11\n", "1 fields, where the header names 12"),
        ("\x00\x01,\x02\n", "2 fields, where the header names 12"),
    ],
)
def test_one_bad_line_is_reported_and_does_not_cost_the_others(broken: str, reason: str) -> None:
    file = parse(HEADER_4 + line("10.1.0.1", MAC_2) + broken + line("10.1.0.3", "02:00:00:00:00:03"))
    assert [str(lease.address) for lease in file.leases] == ["10.1.0.1", "10.1.0.3"]
    assert [(problem.line, problem.reason) for problem in file.problems] == [(3, reason)]


def test_a_half_written_last_line_is_reported_wherever_it_is_cut() -> None:
    for cut in range(1, len(line())):
        file = parse(HEADER_4 + line("10.1.0.1", MAC_2) + line()[:cut])
        assert [str(lease.address) for lease in file.leases] == ["10.1.0.1"], cut
        assert [(problem.line, problem.reason) for problem in file.problems] == [(3, "the line has no end")], cut


@pytest.mark.parametrize("text", ["root:x:0:0\n" * 99, "a,a\n", "address,hwaddr\n", "lease 10.1.0.1 {\n"])
def test_a_file_that_is_no_lease_file_is_reported_once(text: str) -> None:
    file = parse(text + line())
    assert file.leases == ()
    assert [(each.line, each.reason.split(" does")[0]) for each in file.problems] == [(1, "the header")]


def test_an_empty_file_is_no_problem() -> None:
    assert parse("") == LeaseFile((), ())


macs = st.integers(0, 2**48 - 1).map(lambda n: ":".join(f"{n:012x}"[i : i + 2] for i in range(0, 12, 2)))
records = st.tuples(st.ip_addresses(v=4).map(str), macs, st.integers(1, 2**31), st.integers(0, 2**33), st.text())


def written(record: tuple[str, str, int, int, str]) -> str:
    address, mac, lifetime, expire, name = record
    escaped = "".join(f"&#x{ord(c):02x}" if c in ",\r\n" else c for c in name if c.isprintable() or c in ",\r\n")
    return line(address, mac, lifetime=lifetime, expire=expire, name=escaped)


@given(st.lists(records, max_size=8))
def test_what_is_written_is_read_back(original: list[tuple[str, str, int, int, str]]) -> None:
    file = parse_lines([HEADER_4, *map(written, original)])
    assert file.problems == ()
    assert [(i.address, i.mac) for i in file.leases] == [(ip_address(i[0]), i[1]) for i in original]
    assert [i.ends for i in file.leases] == [datetime.fromtimestamp(i[3], UTC) for i in original]


@given(st.lists(st.text()))
def test_no_text_makes_the_parser_fail(lines: list[str]) -> None:
    parse_lines(lines)
    parse_lines([HEADER_4, *lines])


@given(st.lists(records, min_size=1, max_size=4), st.text(alphabet="0123456789.,:abcdef&#x;-", max_size=60))
def test_garbage_between_never_costs_a_whole_line(original: list[tuple[str, str, int, int, str]], junk: str) -> None:
    file = parse_lines([HEADER_4, junk + "\n", *map(written, original)])
    assert [i.mac for i in file.leases][-len(original) :] == [i[1] for i in original]
