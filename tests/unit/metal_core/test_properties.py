"""Properties that hold for any two desired states of a leaf: what leads from one to the other."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from metal_core.checks import check_desired, check_frr
from metal_core.configdb import owned, render
from metal_core.desired import Admin, Desired, Fec, Port, PortRole, Vrf, from_json, to_json
from metal_core.frr import parse as frr_parse
from metal_core.frr import render as frr_render
from metal_core.frr.delta import converge, detach, retire
from metal_core.frr.managed import differences, managed
from metal_core.frr.model import Configuration
from metal_core.plan import Condition, DeleteRows, Fact, FrrConverge, FrrDetach, SetRows, Step, Wait, plan
from metal_sim.leaf.frr import SimFrr

# No deadline: the machine that runs the tests may be busy with something else.
modest = settings(max_examples=60)

PORTS = [*(f"Ethernet{4 * number}" for number in range(7)), "Ethernet96"]
PREFIXES = st.lists(
    st.sampled_from(["10.0.0.0/8", "10.1.2.3/32", "10.1.0.0/16", "192.168.0.0/24", "2001:db8::/48", "2001:db8::1/128"]),
    max_size=4,
).map(tuple)
FOREIGN = {
    "VLAN|Vlan100": {"vlanid": "100"},
    "VLAN_MEMBER|Vlan100|Ethernet200": {"tagging_mode": "tagged"},
    "VRF|Vrf_blue": {"vni": "7"},
    "INTERFACE|Ethernet200": {"vrf_name": "Vrf_blue"},
    "VLAN|Vlan4000": {"vlanid": "4000"},
    "VXLAN_TUNNEL|vtep": {"src_ip": "10.0.0.11"},
}


@st.composite
def desired_states(draw: st.DrawFn) -> Desired:
    """Consistent states of one leaf with eight ports and up to four VRFs whose VLAN ids are drawn freely."""
    vnis = draw(st.lists(st.sampled_from([2000, 2001, 2002, 2003]), unique=True, max_size=4))
    vlans = draw(st.permutations([1001, 1002, 1003, 1004]))
    vrfs = tuple(Vrf(f"Vrf{vni}", vni, vlan) for vni, vlan in zip(vnis, vlans, strict=False))
    ports = [Port("Ethernet96", PortRole.UPLINK)]
    for name in PORTS[:-1]:
        role = draw(st.sampled_from([role for role in PortRole if role is not PortRole.MACHINE or vrfs]))
        filtered = role in {PortRole.MACHINE, PortRole.FIREWALL}
        firewall = role is PortRole.FIREWALL
        ports.append(
            Port(
                name,
                role,
                admin=draw(st.sampled_from(list(Admin))),
                mtu=draw(st.sampled_from([0, 1500])) if role is not PortRole.ADDITIONAL else 0,
                speed=draw(st.sampled_from([0, 10_000])) if role is not PortRole.ADDITIONAL else 0,
                fec=draw(st.sampled_from([Fec.KEEP, Fec.RS])) if role is not PortRole.ADDITIONAL else Fec.KEEP,
                vrf=draw(st.sampled_from(vrfs)).name if role is PortRole.MACHINE else "",
                allowed_prefixes=draw(PREFIXES) if filtered else (),
                vnis=draw(st.lists(st.sampled_from([2000, 2001, 9]), max_size=3).map(tuple)) if firewall else (),
            )
        )
    asn = draw(st.sampled_from([4200000011, 4200000011, 4200000011, 4200000012]))
    hold = draw(st.sampled_from([0, 9]))
    gateway = draw(st.sampled_from(["", "192.0.2.1", "192.0.2.2"]))
    routes = st.lists(st.sampled_from(["198.51.100.0/24", "203.0.113.0/24"]), unique=True)
    return Desired(
        "leaf01",
        1,
        "x",
        asn,
        draw(st.sampled_from(["10.0.0.11", "10.0.0.12"])),
        4000,
        tuple(ports),
        vrfs,
        management_gateway=gateway,
        management_routes=tuple(draw(routes)) if gateway else (),
        source_loopback=draw(st.booleans()),
        bgp_keepalive=hold // 3,
        bgp_hold=hold,
    )


Database = dict[str, dict[str, str]]


def hardware() -> Database:
    """A leaf as it is built: ports with fields of their own and rows of an operator."""
    return {f"PORT|{name}": {"speed": "25000", "mtu": "9100"} for name in PORTS} | {
        k: dict(v) for k, v in FOREIGN.items()
    }


def execute(database: Database, steps: tuple[Step, ...]) -> None:
    """What the applier does to CONFIG_DB, on a dict."""
    for step in steps:
        if isinstance(step, DeleteRows):
            for key in step.keys:
                del database[key]
        elif isinstance(step, SetRows):
            for key, fields in step.rows.items():
                row = database.setdefault(key, {})
                row.update(fields)
                for name in step.drop.get(key, ()):
                    del row[name]


def holds(database: Mapping[str, Mapping[str, str]], wanted: Desired) -> bool:
    """Whether all wanted rows are there with the wanted fields, and no owned row besides."""
    target, current = render(wanted, "vtep"), owned(database, wanted)
    return set(target) == set(current) and all(current[key].items() >= target[key].items() for key in target)


@modest
@given(desired_states(), desired_states())
def test_a_plan_leads_to_the_wanted_rows_and_spares_everyone_elses(first: Desired, second: Desired) -> None:
    database = hardware()
    speeds = dict.fromkeys(PORTS, "25000")
    for wanted in (first, second):
        speeds |= {port.name: str(port.speed) for port in wanted.ports if port.speed}
        execute(database, plan(owned(database, wanted), render(wanted, "vtep")))
        assert holds(database, wanted)
        assert database.items() >= FOREIGN.items()
        assert {name: database[f"PORT|{name}"]["speed"] for name in PORTS} == speeds
    assert plan(owned(database, second), render(second, "vtep")) == (FrrConverge(),)


@modest
@given(desired_states(), desired_states(), st.data())
def test_a_plan_that_is_cut_off_anywhere_is_completed_by_the_next_one(
    first: Desired, second: Desired, data: st.DataObject
) -> None:
    database = hardware()
    execute(database, plan(owned(database, first), render(first, "vtep")))
    steps = plan(owned(database, second), render(second, "vtep"))
    execute(database, steps[: data.draw(st.integers(0, len(steps)))])
    execute(database, plan(owned(database, second), render(second, "vtep")))
    assert holds(database, second)


@modest
@given(desired_states(), desired_states())
def test_no_vlan_and_no_vrf_is_both_deleted_and_added(first: Desired, second: Desired) -> None:
    steps = plan(render(first, "vtep"), render(second, "vtep"))
    deleted = [key for step in steps if isinstance(step, DeleteRows) for key in step.keys]
    added = [key for step in steps if isinstance(step, SetRows) for key in step.rows]
    assert not {key for key in deleted if key.startswith(("VLAN|", "VRF|"))} & set(added)
    assert len(deleted) == len(set(deleted))
    assert len(added) == len(set(added))


@modest
@given(desired_states(), desired_states())
def test_a_row_comes_back_only_after_the_hardware_has_let_go_of_it(first: Desired, second: Desired) -> None:
    waited: set[Condition] = set()
    detached: set[str] = set()
    deleted: set[str] = set()
    for step in plan(render(first, "vtep"), render(second, "vtep")):
        if isinstance(step, Wait):
            waited.update(step.conditions)
        elif isinstance(step, FrrDetach):
            detached.update(step.ports)
        elif isinstance(step, DeleteRows):
            tables = {key.split("|")[0] for key in step.keys}
            if "VLAN" in tables:
                assert not {"VRF", "VLAN_INTERFACE", "VXLAN_TUNNEL_MAP"} & tables
            for key in step.keys:
                if key.startswith("INTERFACE|"):
                    assert key.split("|")[1] in detached
                if key.startswith("VRF|"):
                    maps = {k for k in render(first, "vtep") if k.endswith(f"_{key}") and k.startswith("VXLAN")}
                    assert maps <= deleted
            deleted.update(step.keys)
        elif isinstance(step, SetRows):
            for key in step.rows:
                table, _, name = key.partition("|")
                if table == "INTERFACE" and key not in render(first, "vtep"):
                    assert {Condition(Fact.RIF_GONE, name), Condition(Fact.BRIDGE_PORT_GONE, name)} <= waited
                if table in {"INTERFACE", "VLAN_INTERFACE"} and key in deleted:
                    assert Condition(Fact.RIF_GONE, name) in waited
                if table == "VLAN_MEMBER":
                    assert Condition(Fact.RIF_GONE, name.split("|")[1]) in waited or key in render(first, "vtep")


@modest
@given(desired_states(), st.randoms(use_true_random=False))
def test_rendering_does_not_depend_on_the_order_of_ports_and_vrfs(wanted: Desired, rng: random.Random) -> None:
    ports, vrfs = list(wanted.ports), list(wanted.vrfs)
    rng.shuffle(ports)
    rng.shuffle(vrfs)
    shuffled = replace(wanted, ports=tuple(ports), vrfs=tuple(vrfs))
    assert list(render(shuffled, "vtep").items()) == list(render(wanted, "vtep").items())
    assert frr_render.render(shuffled).text() == frr_render.render(wanted).text()


@modest
@given(desired_states())
def test_every_rendered_configuration_is_free_of_dangling_references(wanted: Desired) -> None:
    assert check_desired(wanted) == []
    assert check_frr(frr_render.render(wanted)) == []


@modest
@given(desired_states())
def test_what_is_printed_reads_back_as_the_same_configuration(wanted: Desired) -> None:
    configuration = frr_render.render(wanted)
    assert frr_parse.parse(configuration.text()) == configuration
    assert managed(configuration, wanted.own_ports).text().count("!") == len(configuration.blocks) + 1 + sum(
        len(block.children) for block in configuration.blocks
    ), "all that is rendered is also managed"


@modest
@given(desired_states(), desired_states())
def test_the_way_to_the_management_network_is_never_interrupted(first: Desired, second: Desired) -> None:
    commands = converge(frr_render.render(first), frr_render.render(second), PORTS).splitlines()
    ways = [line for line in commands if " nexthop-vrf mgmt" in line]
    assert ways == sorted(ways, key=lambda line: line.startswith("no "))


@modest
@given(desired_states())
def test_a_state_survives_the_disk(wanted: Desired) -> None:
    assert from_json(to_json(wanted)) == wanted


@modest
@given(st.text(max_size=400))
def test_the_parser_reads_any_text_without_failing(text: str) -> None:
    assert isinstance(frr_parse.parse(text), Configuration)


def running(frr: SimFrr) -> Configuration:
    """The running configuration as the agent reads it."""
    return frr_parse.parse(frr.running())


@settings(max_examples=150)
@given(desired_states(), desired_states())
def test_the_delta_leads_from_any_configuration_to_any_other(first: Desired, second: Desired) -> None:
    frr = SimFrr()
    for wanted in (first, second):
        target = frr_render.render(wanted)
        frr.load(converge(running(frr), target, PORTS))
        assert differences(running(frr), target, PORTS) == []
        assert converge(running(frr), target, PORTS) == ""


@modest
@given(desired_states(), desired_states(), st.data())
def test_detaching_and_retiring_first_leads_to_the_same_end(
    first: Desired, second: Desired, data: st.DataObject
) -> None:
    frr = SimFrr()
    frr.load(converge(running(frr), frr_render.render(first), PORTS))
    going = [vrf.name for vrf in first.vrfs if vrf.name not in {v.name for v in second.vrfs}]
    frr.load(detach(running(frr), data.draw(st.lists(st.sampled_from(PORTS), unique=True))))
    frr.load(retire(running(frr), going))
    frr.load(converge(running(frr), frr_render.render(second), PORTS))
    assert differences(running(frr), frr_render.render(second), PORTS) == []


@modest
@given(desired_states())
def test_what_others_configured_in_frr_is_never_touched(wanted: Desired) -> None:
    theirs = frr_parse.parse(
        "ip route 0.0.0.0/0 192.0.2.1\n"
        "ip route 0.0.0.0/0 192.0.2.9 nexthop-vrf mgmt\n"
        "ip route 198.51.100.0/24 192.0.2.1 tag 7 nexthop-vrf mgmt\n"
        "ip route 198.51.100.0/24 192.0.2.9 tag 4242 nexthop-vrf mgmt\n"
        "ip prefix-list blue seq 5 permit 10.0.0.0/8\n"
        "route-map blue permit 10\n match ip address prefix-list blue\nexit\n"
        "vrf Vrf_blue\n vni 7\nexit-vrf\n"
        "interface Ethernet200\n ipv6 nd ra-interval 30\n no ipv6 nd suppress-ra\nexit\n"
        "router bgp 65000 vrf Vrf_blue\n neighbor 10.0.0.1 remote-as 65001\nexit\n"
        "router ospf\n network 10.0.0.0/8 area 0\nexit\n"
    )
    commands = converge(theirs, frr_render.render(wanted), PORTS)
    assert not any(line.strip().startswith("no ") and "suppress" not in line for line in commands.splitlines())
    assert "blue" not in commands
    assert "Ethernet200" not in commands
