"""Requests that are refused before anything is looked up: each rule, by the field that it names."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_allocation.request import MAX_SPEC_BYTES, check, check_server
from metal_allocation.sshkeys import FIELDS, check_ssh_key
from metal_kit.errors import InvalidArgument
from metalplane.allocation.v1.allocation_pb2 import AllocationNetwork, AllocationRole, AllocationSpec, FirewallRule

# Made by OpenSSH for this test; the private halves are gone.
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDMNF2N+yGe8tXRQDxPFe1hW0r3tF2Hk0s6c2pYgvJ2e"


def packed(*strings: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(each)) + each for each in strings)


def key(kind: str, *strings: bytes, comment: str = "") -> str:
    return f"{kind} {base64.b64encode(packed(kind.encode(), *strings)).decode()} {comment}".strip()


def spec(**fields: Any) -> AllocationSpec:
    return AllocationSpec(**({"name": "m", "partition": "p", "size": "s", "image": "debian-13"} | fields))


def firewall(**fields: Any) -> AllocationSpec:
    return spec(role=AllocationRole.ALLOCATION_ROLE_FIREWALL, **fields)


def refusal(wanted: AllocationSpec) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        check(wanted)
    assert caught.value.message
    return caught.value.reason, caught.value.field


def test_a_plain_request_passes() -> None:
    check(spec(ssh_keys=[ED25519, f"{ED25519} somebody@somewhere"], ntp_servers=["0.pool.example.org", "2001:db8::1"]))


@pytest.mark.parametrize("field", ["partition", "size"])
def test_a_partition_and_a_size_are_needed(field: str) -> None:
    assert refusal(spec(**{field: ""})) == ("REQUIRED", f"spec.{field}")


@pytest.mark.parametrize("field", ["partition", "size"])
def test_a_machine_by_its_uuid_excludes_partition_and_size(field: str) -> None:
    named = AllocationSpec(name="m", machine="4c4c4544-0051-3510-8052-b4c04f4e3132", image="i")
    check(named)
    setattr(named, field, "x")
    assert refusal(named) == ("MACHINE_EXCLUDES", f"spec.{field}")


def test_an_address_is_wanted_once_however_it_is_written() -> None:
    wanted = AllocationNetwork(network="n", ips=["10.0.0.1", "2001:db8::1", "2001:db8::2"])
    check(spec(networks=[wanted]))
    wanted.ips.append("2001:DB8:0::1")
    assert refusal(spec(networks=[wanted])) == ("ADDRESS_TWICE", "spec.networks[0].ips[3]")
    wanted.ips[3] = "fe80::1%eth0"
    assert refusal(spec(networks=[wanted])) == ("ADDRESS", "spec.networks[0].ips[3]")


@pytest.mark.parametrize("field", ["egress_rules", "ingress_rules"])
def test_only_firewalls_have_rules(field: str) -> None:
    rules = [FirewallRule(ports=[443])]
    check(firewall(**{field: rules}))
    assert refusal(spec(**{field: rules})) == ("FIREWALL_ONLY", f"spec.{field}")


def test_egress_rules_have_no_sources() -> None:
    rules = [FirewallRule(to_prefixes=["10.0.0.0/8"]), FirewallRule(from_prefixes=["10.0.0.0/8"])]
    check(firewall(ingress_rules=rules))
    assert refusal(firewall(egress_rules=rules)) == ("EGRESS_FROM", "spec.egress_rules[1].from_prefixes")


def test_one_rule_has_one_address_family() -> None:
    mixed = FirewallRule(from_prefixes=["10.0.0.0/8"], to_prefixes=["2001:db8::/32"])
    assert refusal(firewall(ingress_rules=[mixed])) == ("MIXED_FAMILIES", "spec.ingress_rules[0]")


@pytest.mark.parametrize("prefix", ["10.0.0.1/24", "2001:db8::1/64", "fe80::%eth0/64", "10.0.0.0/33", ""])
def test_a_prefix_with_host_bits_is_refused_and_is_no_accident(prefix: str) -> None:
    for side in ("from_prefixes", "to_prefixes"):
        rule = FirewallRule(**{side: [prefix]})
        assert refusal(firewall(ingress_rules=[rule])) == ("PREFIX", f"spec.ingress_rules[0].{side}")


def test_a_spec_that_no_event_could_carry_is_refused() -> None:
    rules = [FirewallRule(to_prefixes=[f"10.{number}.{rule}.0/24" for number in range(256)]) for rule in range(64)]
    wanted = firewall(egress_rules=rules)
    assert wanted.ByteSize() > MAX_SPEC_BYTES
    assert refusal(wanted) == ("SPEC_TOO_LARGE", "spec")


def test_user_data_does_not_count_for_it() -> None:
    check(spec(userdata=bytes(MAX_SPEC_BYTES + 1)))


@pytest.mark.parametrize("field", ["labels", "placement_labels"])
@pytest.mark.parametrize("labels", [{"": "x"}, {"a" * 257: ""}, {"a": "b" * 257}])
def test_labels_have_a_key_and_a_length(field: str, labels: dict[str, str]) -> None:
    assert refusal(spec(**{field: labels})) == ("LABEL", f"spec.{field}")


@pytest.mark.parametrize(
    "server",
    [
        "ntp.example.org\nserver evil",
        "a b",
        "-a",
        "a..b",
        "",
        "x" * 64,
        "a/b",
        "a;b",
        "fe80::1%eth0\nserver evil",
    ],
)
def test_a_time_server_that_says_more_than_its_name_is_refused(server: str) -> None:
    assert refusal(spec(ntp_servers=["ok", server])) == ("HOST_NAME", "spec.ntp_servers[1]")


@pytest.mark.parametrize("server", ["fe80::1%eth0", "fe80::1%\nnameserver 192.0.2.1", "ns.example.org"])
def test_a_name_server_is_an_address_and_nothing_more(server: str) -> None:
    check(spec(dns_servers=["192.0.2.1", "2001:db8::1"]))
    assert refusal(spec(dns_servers=["192.0.2.1", server])) == ("ADDRESS", "spec.dns_servers[1]")


@pytest.mark.parametrize("server", ["ntp", "ntp.example.org.", "_ntp._udp.example.org", "192.0.2.1", "2001:db8::1"])
def test_host_names_and_addresses_are_time_servers(server: str) -> None:
    check_server(server, field="f")


# -- SSH keys


def ssh_refusal(text: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check_ssh_key(text, field="spec.ssh_keys[0]")
    assert caught.value.field == "spec.ssh_keys[0]"
    return caught.value.reason


@pytest.mark.parametrize(
    "text",
    [
        key("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"n" * 256),
        key("ecdsa-sha2-nistp256", b"nistp256", b"\x04" + b"p" * 64, comment="two words"),
        key("sk-ssh-ed25519@openssh.com", b"k" * 32, b"ssh:"),
        key("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", b"\x04" + b"p" * 64, b"ssh:"),
        ED25519,
    ],
)
def test_each_type_of_openssh_passes(text: str) -> None:
    check_ssh_key(text, field="f")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "SSH_KEY"),
        ("ssh-ed25519", "SSH_KEY"),
        ("ssh-dss AAAA", "SSH_KEY_TYPE"),
        (f"no-pty {ED25519}", "SSH_KEY_TYPE"),
        (ED25519.replace("AAAAC3", "!!!!C3"), "SSH_KEY"),
        (f"{ED25519}\n{ED25519}", "SSH_KEY"),
        (f"{ED25519} a\rb", "SSH_KEY"),
        (f"{ED25519} a\x00b", "SSH_KEY"),
        (ED25519.replace("ssh-ed25519", "ssh-rsa"), "SSH_KEY"),
        (key("ssh-ed25519", b"k" * 31), "SSH_KEY"),
        (key("ssh-ed25519", b"k" * 32, b"more"), "SSH_KEY"),
        (key("ssh-rsa", b"", b"n" * 256), "SSH_KEY"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH_KEY_TYPE"),
    ],
)
def test_what_is_not_one_whole_public_key_is_refused(text: str, reason: str) -> None:
    assert ssh_refusal(text) == reason


def test_a_private_key_does_not_come_back_in_the_refusal() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_ssh_key("-----BEGIN b3BlbnNzaC1rZXktdjEAAAAA", field="f")
    assert "b3BlbnNz" not in caught.value.message


KEYS = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda kind: st.builds(
        lambda strings: key(kind, *strings),
        st.lists(
            st.binary(min_size=32, max_size=32) if kind == "ssh-ed25519" else st.binary(min_size=1, max_size=80),
            min_size=FIELDS[kind],
            max_size=FIELDS[kind],
        ),
    )
)


@given(KEYS, st.text(st.characters(categories=["L", "N", "P"]), max_size=20))
def test_a_whole_key_passes_with_any_comment(text: str, comment: str) -> None:
    check_ssh_key(f"{text} {comment}", field="f")


@given(KEYS, st.data())
def test_a_key_that_lost_its_tail_is_refused(text: str, data: st.DataObject) -> None:
    kind, body = text.split()
    blob = base64.b64decode(body)
    cut = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(InvalidArgument):
        check_ssh_key(f"{kind} {base64.b64encode(blob[:cut]).decode()}", field="f")


@given(st.text(max_size=200))
def test_garbage_is_refused_and_never_breaks_anything(text: str) -> None:
    with pytest.raises(InvalidArgument):
        check_ssh_key(text, field="f")


@given(st.sampled_from(sorted(FIELDS)), st.binary(max_size=100))
def test_a_blob_of_garbage_is_refused(kind: str, blob: bytes) -> None:
    with pytest.raises(InvalidArgument):
        check_ssh_key(f"{kind} {base64.b64encode(blob).decode()}", field="f")
