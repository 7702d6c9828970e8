"""What each list shows, to the letter, and that JSON holds all of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from metalctl import resources, values
from metalctl.resources import RESOURCES
from metalplane.allocation.v1 import allocation_pb2
from metalplane.bmc.v1 import bmc_pb2, expected_pb2
from metalplane.fabric.v1 import cabling_pb2, switch_pb2
from metalplane.inventory.v1 import image_pb2, layout_pb2, machine_pb2, partition_pb2, size_pb2
from metalplane.ipam.v1 import ip_pb2, namespace_pb2, network_pb2, pool_pb2, prefix_pb2, quota_pb2
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
A, B = "0198c1d2-0000-7000-8000-00000000000a", "0198c1d2-0000-7000-8000-00000000000b"


def ago(**parts: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(NOW - timedelta(**parts))
    return stamp


MESSAGES: dict[str, list[Message]] = {
    "tenant": [tenant_pb2.Tenant(id=A, name="acme", create_time=ago(days=3)), tenant_pb2.Tenant(id=B, name="b")],
    "project": [
        project_pb2.Project(id=A, tenant=B, name="web", machine_quota=3, create_time=ago(minutes=59)),
        project_pb2.Project(id=B, tenant=B, name="a-rather-long-name-of-a-project", create_time=ago(seconds=-5)),
    ],
    "token": [
        token_pb2.Token(id=A, user="alice", description="for\nthe \x1b[2Jscript", expire_time=ago(hours=-1)),
        token_pb2.Token(id=B, user="bob", expire_time=ago(hours=1)),
        token_pb2.Token(id=B, user="eve", expire_time=ago(hours=-1), revoke_time=ago(hours=1)),
    ],
    "partition": [partition_pb2.Partition(id="mini", description="Zürich 東京", create_time=ago(hours=23))],
    "machine": [
        machine_pb2.Machine(
            id=A, rack="rack-1", size="n1-mini", state=machine_pb2.MACHINE_STATE_AVAILABLE, waiting=True,
            lifecycle={"state": machine_pb2.LIFECYCLE_STATE_WAITING, "liveliness": machine_pb2.LIVELINESS_ALIVE},
        ),
        machine_pb2.Machine(
            id=B, state=machine_pb2.MACHINE_STATE_LOCKED, binding={"allocation": A},
            lifecycle={"state": machine_pb2.LIFECYCLE_STATE_PHONED_HOME, "liveliness": machine_pb2.LIVELINESS_DEAD},
        ),
        machine_pb2.Machine(id=B),
    ],
    "size": [size_pb2.Size(id="n1-mini", description="mini PC"), size_pb2.Size(id="c1")],
    "image": [
        image_pb2.Image(
            id="debian-13.0.20261101", features=[image_pb2.IMAGE_FEATURE_MACHINE, image_pb2.IMAGE_FEATURE_FIREWALL],
            classification=image_pb2.IMAGE_CLASSIFICATION_SUPPORTED, expire_time=ago(days=-30),
        ),
        image_pb2.Image(id="old-1"),
    ],
    "layout": [
        layout_pb2.FilesystemLayout(id="l", size_ids=["a", "b"], image_constraints={"ubuntu": ">= 24", "debian": "*"})
    ],
    "network": [
        network_pb2.Network(
            id=A, name="private", type=network_pb2.NETWORK_TYPE_CHILD_SHARED, project=B, vrf=7,
            prefixes=["10.128.0.0/22", "2001:db8::/64"], ipv4={"used_ips": 2}, ipv6={"used_ips": 1},
        ),
        network_pb2.Network(id="internet", type=network_pb2.NETWORK_TYPE_EXTERNAL),
        network_pb2.Network(id="tenants", type=network_pb2.NETWORK_TYPE_SUPER_NAMESPACED, prefixes=["10.0.0.0/8"]),
    ],
    "namespace": [
        namespace_pb2.Namespace(id="two words", project=A, description="a lab", create_time=ago(days=1)),
        namespace_pb2.Namespace(id="default", create_time=ago(days=2)),
    ],
    "prefix": [
        prefix_pb2.Prefix(cidr="10.0.0.0/22", network=A, size=1024, used=3, reserved=2, free=1019, children=1),
        prefix_pb2.Prefix(cidr="2001:db8::/48", namespace="two words", size=2**63 - 1, free=2**63 - 1),
    ],
    "ip": [
        ip_pb2.Ip(address="10.0.0.1", network=A, name="web", type=ip_pb2.IP_TYPE_EPHEMERAL, project=B,
                  owner={"kind": ip_pb2.OWNER_KIND_ALLOCATION, "id": A}),
        ip_pb2.Ip(address="2001:db8::1", network=A, type=ip_pb2.IP_TYPE_STATIC, project=B, namespace=f"project-{B}"),
    ],
    "quota": [
        quota_pb2.Quota(project=A, ipv4_addresses=0, prefixes=4, used={"ipv4_addresses": 3}), quota_pb2.Quota(project=B)
    ],
    "pool": [pool_pb2.Pool(id="vrf", min=1, max=131072, used=2, free=131070)],
    "allocation": [
        allocation_pb2.Allocation(
            id=A, project=B, spec={"name": "web-1"}, create_time=ago(minutes=1),
            status={"phase": allocation_pb2.ALLOCATION_PHASE_BOOT_ORDER, "machine": B, "rack": "rack-1",
                    "networks": [{"ips": ["10.0.0.1", "2001:db8::1"]}, {"ips": ["1.2.3.4"]}]},
        ),
        allocation_pb2.Allocation(id=B),
    ],
    "switch": [
        switch_pb2.Switch(id="leaf1", rack="rack-1", asn=4200000011, loopback="10.0.0.11",
                          sync={"connected": True, "desired_generation": 5, "applied_generation": 5,
                                "health": switch_pb2.SWITCH_HEALTH_HEALTHY}),
        switch_pb2.Switch(id="leaf2", sync={"desired_generation": 5, "applied_generation": 4, "error": "no vtysh"}),
    ],
    "cable": [cabling_pb2.Cable(switch_id="leaf1", port="Ethernet0", machine=A, nic_mac="02:00:00:00:00:01")],
    "bmc": [
        bmc_pb2.Bmc(machine=A, address="10.0.0.1:623", reported_power=bmc_pb2.POWER_ON, desired_power=bmc_pb2.POWER_OFF,
                    observed_time=ago(seconds=7)),
        bmc_pb2.Bmc(machine=B, address="10.0.0.2:623", error="no answer for 3 min"),
    ],
    "expected": [
        expected_pb2.ExpectedMachine(id=A, mac="0c:c4:7a:00:00:01", serial="S1", rack="r1", machine=B,
                                     differences=[{"field": "model"}, {"field": "serial"}]),
        expected_pb2.ExpectedMachine(id=B, serial="S2"),
    ],
    "command": [
        bmc_pb2.Command(id=A, machine=B, action=bmc_pb2.COMMAND_ACTION_BOOT_DISK, requester="user:alice",
                        state=bmc_pb2.COMMAND_STATE_FAILED, create_time=ago(days=400), error="timed out"),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (values, resources):
        monkeypatch.setattr(module, "now", lambda: NOW)


def listed(plane: Any, resource: Any, messages: list[Message]) -> None:
    page_type = type(resource.listing.request())
    name = page_type.DESCRIPTOR.full_name.replace("Request", "Response")
    response = page_type.DESCRIPTOR.file.pool.FindMessageTypeByName(name)
    from google.protobuf.message_factory import GetMessageClass

    page = GetMessageClass(response)()
    getattr(page, resource.listing.items).extend(messages)
    plane.answers[resource.listing.method] = page


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: each.name)
def test_a_list_shows_its_columns_to_the_letter(call: Any, plane: Any, resource: Any) -> None:
    listed(plane, resource, MESSAGES[resource.name])
    outcome = call(resource.name, "list")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (GOLDEN / f"{resource.name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: each.name)
def test_an_empty_list_is_a_header_or_an_empty_array(call: Any, plane: Any, resource: Any) -> None:
    listed(plane, resource, [])
    header = "  ".join(name for name, _ in resource.listing.columns)
    assert call(resource.name, "list").out == header + "\n"
    assert call(resource.name, "list", "-o", "json").out == "[]\n"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: each.name)
def test_json_holds_all_of_a_message_and_is_stable(call: Any, plane: Any, resource: Any) -> None:
    messages = MESSAGES[resource.name]
    listed(plane, resource, messages)
    printed = call(resource.name, "list", "-o", "json").out
    assert call(resource.name, "list", "-o", "json").out == printed
    found = json.loads(printed)
    assert [ParseDict(each, type(message)()) for each, message in zip(found, messages, strict=True)] == messages
    assert printed == json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_json_has_enums_by_name_and_fields_that_are_empty(call: Any, plane: Any) -> None:
    plane.answers["GetMachine"] = MESSAGES["machine"][1]
    found = json.loads(call("machine", "get", B, "-o", "json").out)
    assert found["state"] == "MACHINE_STATE_LOCKED"
    assert found["lifecycle"]["liveliness"] == "LIVELINESS_DEAD"
    assert found["waiting"] is False
    assert found["rack"] == ""


def test_one_object_is_shown_with_its_lists_as_tables(call: Any, plane: Any) -> None:
    plane.answers["GetAllocation"] = allocation_pb2.Allocation(
        id=A, project=B, create_time=ago(minutes=1),
        spec={"name": "web-1", "labels": {"b": "2", "a": "1"}, "userdata": b"12345", "ssh_keys": ["k1", "k2"]},
        status={
            "phase": allocation_pb2.ALLOCATION_PHASE_RUNNING,
            "conditions": [{"type": "Ready", "status": True}, {"type": "Attached", "message": "leaf2 is\naway"}],
            "networks": [{"network": "n", "ips": ["10.0.0.1", "2001:db8::1"], "vrf": 7}],
        },
    )  # fmt: skip
    assert call("allocation", "get", A).out == (GOLDEN / "allocation-get.txt").read_text(encoding="utf-8")


def test_lists_in_lists_are_numbered(call: Any, plane: Any) -> None:
    plane.answers["GetMachine"] = machine_pb2.Machine(
        id=A,
        hardware={
            "nics": [
                {"name": "eth0", "neighbours": [{"system_name": "leaf1", "port_id": "Ethernet0"}]},
                {"name": "eth1"},
            ],
            "disks": [{"name": "/dev/sda", "size_bytes": 7}],
        },
        wipe_results=[{"serial": "S", "verified": True, "duration": {"nanos": 215000000}}],
    )
    assert call("machine", "get", A).out == (GOLDEN / "machine-get.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (86400, "1d"), (10**8, "1157d"),
     (-30, "0s")],
)  # fmt: skip
def test_an_age_is_in_one_unit_and_never_negative(seconds: int, text: str) -> None:
    assert values.age(ago(seconds=seconds)) == text


def test_times_that_are_not_set_are_a_dash_and_others_are_utc() -> None:
    empty = Timestamp()
    assert (values.age(empty), values.instant(empty), values.minute(empty)) == ("-", "-", "-")
    stamp = Timestamp(seconds=1772625600, nanos=7_999_999)
    assert (values.instant(stamp), values.minute(stamp)) == ("2026-03-04T12:00:00.007Z", "2026-03-04 12:00Z")


def test_an_enum_value_of_a_newer_plane_is_its_number(call: Any, plane: Any) -> None:
    plane.answers["GetMachine"] = machine_pb2.Machine.FromString(
        machine_pb2.Machine(id=A).SerializeToString() + b"\x38\x63"  # field 7 (state), value 99
    )
    assert values.enum(machine_pb2.MachineState, 99) == "99"
    assert "99" in call("machine", "get", A).out
    assert json.loads(call("machine", "get", A, "-o", "json").out)["state"] == 99
