from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.sources.isc import parse as parse_lines
from metal_bmc.sources.lease import Lease, LeaseFile, Place, current

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MAC_1, MAC_2 = "0c:c4:7a:00:00:01", "0c:c4:7a:00:00:02"


def parse(text: str) -> LeaseFile:
    return parse_lines(text.split("\n"))


def record(
    address: str = "10.1.0.11",
    mac: str = MAC_1,
    starts: str = "0 2026/03/01 10:00:00",
    ends: str = "0 2026/03/01 14:00:00",
    state: str = "active",
) -> str:
    return f"""lease {address} {{
  starts {starts};
  ends {ends};
  cltt 0 2026/03/01 10:00:00;
  binding state {state};
  next binding state free;
  rewind binding state free;
  hardware ethernet {mac};
  uid "\\001\\014\\304z{{\\";";
  client-hostname "bmc{{1}}";
  set vendor-class-identifier = "udhcp; 1.2";
}}
"""


def addresses(text: str, **options: object) -> dict[str, str]:
    return {mac: place.host for mac, place in current(parse(text).leases, NOW, **options).items()}  # type: ignore[arg-type]


def test_a_record_as_dhcpd_writes_it_is_read() -> None:
    text = "# All times in this file are in UTC\nauthoring-byte-order little-endian;\n\n" + record()
    file = parse(text)
    assert file.problems == ()
    assert file.leases == (
        Lease(
            IPv4Address("10.1.0.11"),
            MAC_1,
            datetime(2026, 3, 1, 10, tzinfo=UTC),
            datetime(2026, 3, 1, 14, tzinfo=UTC),
            "active",
            4,
        ),
    )


def test_a_lease_that_never_ends_is_in_force() -> None:
    assert addresses(record(ends="never")) == {MAC_1: "10.1.0.11"}


def test_epoch_times_with_their_comment_are_read() -> None:
    seconds = int(NOW.timestamp())
    text = record(
        starts=f"epoch {seconds - 10}; # Sun Mar 01 11:59:50 2026",
        ends=f"epoch {seconds + 10}; # Sun Mar 01 12:00:10 2026",
    ).replace("2026;\n", "2026\n")
    assert addresses(text) == {MAC_1: "10.1.0.11"}


@pytest.mark.parametrize("state", ["free", "expired", "released", "abandoned", "backup", "reset"])
def test_a_lease_that_is_not_held_is_left_out(state: str) -> None:
    assert addresses(record(state=state)) == {}


def test_a_lease_that_ended_is_left_out() -> None:
    assert addresses(record(ends="0 2026/03/01 12:00:00")) == {}


def test_the_latest_lease_of_a_mac_wins_whatever_the_order() -> None:
    older = record("10.1.0.11", starts="0 2026/03/01 09:00:00")
    newer = record("10.1.0.12", starts="0 2026/03/01 11:00:00")
    assert addresses(older + newer) == addresses(newer + older) == {MAC_1: "10.1.0.12"}


def test_a_later_record_replaces_an_earlier_one_of_the_same_address() -> None:
    assert addresses(record(mac=MAC_1) + record(mac=MAC_2)) == {MAC_2: "10.1.0.11"}
    assert addresses(record() + record(state="free")) == {}


def test_only_addresses_of_the_given_networks_count() -> None:
    text = record("10.1.0.11", MAC_1) + record("192.0.2.7", MAC_2)
    assert addresses(text, networks=[ip_network("10.1.0.0/16")]) == {MAC_1: "10.1.0.11"}
    assert addresses(text, networks=[ip_network("2001:db8::/32")]) == {}
    assert addresses(text, ignored_macs={MAC_1}) == {MAC_2: "192.0.2.7"}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record("10.1.0.999"), "the address is not an IP address"),
        (record("2001:db8::1"), "the address is not an IPv4 address"),
        (record(mac="0c:c4:7a:00:00"), "the Ethernet address is malformed"),
        (record().replace(f"  hardware ethernet {MAC_1};\n", ""), "no Ethernet address"),
        (record(ends="0 2026/13/01 12:00:00"), "`ends` is not a time"),
        (record(starts="yesterday"), "`starts` is not a time"),
        (record(ends="epoch 99999999999999999999"), "`ends` is not a time"),
        (record().replace("  ends 0 2026/03/01 14:00:00;\n", ""), "no end time"),
        (record().replace("\n}\n", "\n"), "the record has no end"),
        (record().replace('"bmc{1}"', '"bmc{1}'), "a quoted text has no end"),
    ],
)
def test_one_bad_record_is_reported_and_does_not_cost_the_others(broken: str, reason: str) -> None:
    file = parse(record("10.1.0.1", MAC_2) + broken + record("10.1.0.3", "02:00:00:00:00:03"))
    assert [str(lease.address) for lease in file.leases] == ["10.1.0.1", "10.1.0.3"]
    assert [(problem.line, problem.reason) for problem in file.problems] == [(13, reason)]


def test_a_half_written_last_record_is_reported() -> None:
    whole = record("10.1.0.1", MAC_2)
    for cut in range(len("lease 10.1.0.11 {"), len(record()) - 3):
        file = parse(whole + record()[:cut])
        assert [str(lease.address) for lease in file.leases] == ["10.1.0.1"], cut
        assert [problem.reason for problem in file.problems] == ["the record has no end"], cut


def test_other_declarations_are_passed_over() -> None:
    text = """server-duid "\\000\\001";
failover peer "one" state {
  my state normal at 0 2026/03/01 09:00:00;
}
ia-na "\\001\\000" {
  cltt 0 2026/03/01 09:00:00;
  iaaddr 2001:db8::5 {
    binding state active;
    ends never;
  }
}
"""
    file = parse(text + record().replace("}\n", "  on expiry {\n    set x = 1;\n    ends never;\n  }\n}\n"))
    assert file.problems == ()
    assert [lease.ends for lease in file.leases] == [datetime(2026, 3, 1, 14, tzinfo=UTC)]


macs = st.integers(0, 2**48 - 1).map(lambda n: ":".join(f"{n:012x}"[i : i + 2] for i in range(0, 12, 2)))
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))  # noqa: DTZ001
leases = st.builds(
    Lease,
    address=st.ip_addresses(v=4),
    mac=macs,
    starts=times,
    ends=st.none() | times,
    state=st.sampled_from(["active", "free", "abandoned"]),
    line=st.just(0),
)


def written(lease: Lease) -> str:
    def stamp(time: datetime | None) -> str:
        return "never" if time is None else f"3 {time:%Y/%m/%d %H:%M:%S}"

    return record(str(lease.address), lease.mac, stamp(lease.starts), stamp(lease.ends), lease.state)


@given(st.lists(leases, max_size=8))
def test_what_is_written_is_read_back(original: list[Lease]) -> None:
    file = parse("".join(written(lease) for lease in original))
    assert file.problems == ()
    assert [(i.address, i.mac, i.starts, i.ends, i.state) for i in file.leases] == [
        (i.address, i.mac, i.starts, i.ends, i.state) for i in original
    ]


@given(st.text())
def test_no_text_makes_the_parser_fail(text: str) -> None:
    parse(text)


@given(st.lists(leases, min_size=1, max_size=4), st.text(alphabet='{};"# \nleasendx0123456789./:', max_size=60))
def test_garbage_in_front_never_costs_a_whole_record(original: list[Lease], garbage: str) -> None:
    file = parse(garbage + "\n" + "".join(written(lease) for lease in original))
    assert [i.mac for i in file.leases][-len(original) :] == [i.mac for i in original]


@given(st.lists(leases, max_size=12), times)
def test_the_selection_has_one_held_unexpired_lease_for_a_mac(original: list[Lease], now: datetime) -> None:
    last = {lease.address: lease for lease in original}
    for mac, place in current(original, now).items():
        lease = last[ip_address(place.host)]
        assert (lease.mac, lease.state) == (mac, "active")
        assert lease.ends is None or lease.ends > now
        rivals = [i for i in last.values() if i.mac == mac and i.state == "active" and (i.ends is None or i.ends > now)]
        assert all(i.starts <= lease.starts for i in rivals)


def test_a_renewal_moves_the_end() -> None:
    later = NOW + timedelta(hours=3)
    text = record() + record(ends=f"0 {later:%Y/%m/%d %H:%M:%S}")
    assert current(parse(text).leases, later - timedelta(seconds=1)) == {MAC_1: Place("10.1.0.11")}
    assert current(parse(text).leases, later) == {}


@pytest.mark.parametrize("text", ["root:x:0:0:root:/root:/bin/sh\n", "{}\n" * 3, '{"Dhcp4": {}}'])
def test_a_file_that_is_no_lease_file_is_reported_once(text: str) -> None:
    file = parse(text)
    assert [(each.line, each.reason.split(":")[0]) for each in file.problems] == [(1, "nothing that dhcpd writes")]


def test_of_very_many_bad_records_the_first_are_named_and_all_are_counted() -> None:
    file = parse(record("10.1.0.999") * 300)
    assert (len(file.problems), file.problem_count) == (50, 300)
