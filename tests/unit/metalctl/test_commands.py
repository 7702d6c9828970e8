"""Arguments, options and help of every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from metal_kit.errors import NotFound
from metalctl.app import app
from metalplane.allocation.v1 import allocation_pb2
from metalplane.bmc.v1 import bmc_pb2
from metalplane.inventory.v1 import machine_pb2
from metalplane.ipam.v1 import ip_pb2, network_pb2
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2
from typer.main import get_command

UUID = "0198c1d2-0000-7000-8000-000000000001"
OTHER = "0198c1d2-0000-7000-8000-000000000002"


def commands(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every group and command of the tree."""
    yield path, node
    for name, inner in getattr(node, "commands", {}).items():
        yield from commands(inner, (*path, name))


TREE = dict(commands(get_command(app)))
LEAVES = [path for path, node in TREE.items() if not hasattr(node, "commands")]


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_has_help_that_names_its_arguments_and_options(call: Any, path: tuple[str, ...]) -> None:
    outcome = call(*path, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: {' '.join(('metalctl', *path))} ")
    for parameter in TREE[path].params:
        assert parameter.help, f"{parameter.name} says nothing"
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.display_name_raw
        assert shown in outcome.out
    assert TREE[path].help
    for name in getattr(TREE[path], "commands", {}):
        assert f"  {name} " in outcome.out


def test_the_whole_tree_is_there() -> None:
    groups = {path[0] for path in LEAVES if len(path) > 1}
    assert groups == {
        "tenant", "project", "token", "partition", "machine", "size", "image", "layout", "namespace", "network",
        "prefix", "ip", "pool", "quota", "allocation", "switch", "cable", "bmc", "expected", "command", "audit",
    }  # fmt: skip
    assert all((group, "list") in TREE for group in groups)
    assert {group for group in groups if (group, "get") not in TREE} == {"token", "pool", "cable", "audit"}
    assert {path for path in LEAVES if path[-1] not in {"list", "get"}} == {
        ("login",), ("logout",), ("whoami",), ("issues",),
        ("tenant", "create"), ("tenant", "delete"), ("project", "create"), ("project", "delete"),
        ("namespace", "create"), ("namespace", "delete"), ("namespace", "dump"), ("namespace", "load"),
        ("prefix", "create"), ("prefix", "child"), ("prefix", "grow"), ("prefix", "delete"), ("prefix", "reserve"),
        ("prefix", "unreserve"), ("prefix", "reserved"), ("prefix", "lookup"), ("prefix", "history"),
        ("prefix", "overlaps"), ("network", "create"), ("network", "create-super"), ("network", "delete"),
        ("ip", "acquire"), ("ip", "release"), ("quota", "set"), ("token", "create"),
        ("token", "revoke"), ("machine", "power"), ("machine", "console"),
        ("machine", "state"), ("machine", "events"), ("machine", "issues"), ("allocation", "create"),
        ("allocation", "watch"), ("allocation", "free"), ("switch", "ports"), ("switch", "describe"),
        ("switch", "port", "up"), ("switch", "port", "down"), ("switch", "history"), ("switch", "diff"),
        ("switch", "plan"), ("switch", "rollback"), ("switch", "unpin"), ("switch", "retry"), ("switch", "replace"),
        ("switch", "migrate"), ("switch", "record"), ("switch", "settings"), ("switch", "set"), ("switch", "delete"),
        ("bmc", "keys"), ("bmc", "tasks"), ("bmc", "confirm"), ("bmc", "reseal"), ("bmc", "expect"),
        ("expected", "delete"), ("audit", "verify"),
        *((scope, verb) for scope in ("tenant", "project") for verb in ("members", "set-member", "remove-member")),
    }  # fmt: skip


@pytest.mark.parametrize(
    "quantity",
    [
        ("token", "create", "--hours", "hours"),
        ("network", "create", "--ipv4-length", "bits"),
        ("network", "create-super", "--ipv6-length", "bits"),
        ("allocation", "create", "--userdata", "KiB"),
    ],
)
def test_quantities_name_their_unit(call: Any, quantity: tuple[str, str, str, str]) -> None:
    *path, option, unit = quantity
    described = call(*path, "--help").out.partition(option)[2].partition("\n  -")[0]
    assert unit in described


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["machne", "list"], "No such command 'machne'. Did you mean 'machine'?"),
        (["machine", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["machine", "list", "--colour"], "No such option: --colour"),
        (["machine", "list", "surplus"], "surplus"),
        (["machine", "get"], "Missing argument 'ID'"),
        (["machine", "power", UUID, "explode"], "'explode' is not one of 'on', 'off', 'reset'"),
        (["machine", "list", "--limit", "many"], "--limit"),
        (["machine", "list", "--limit", "-1"], "--limit"),
        (["machine", "list", "-o", "yaml"], "'yaml' is not one of 'table', 'json'"),
        (["project", "create", "demo"], "--tenant"),
        (["allocation", "create", "web", "--project", "p", "--image", "i"], "--network"),
        (["network", "create", "--project", "p", "--ipv4-length", "33"], "--ipv4-length"),
        (["network", "create-super", "s"], "--prefix"),
        (["ip", "acquire", "--network", "n"], "--project"),
        (["ip", "acquire", "--project", "p", "--network", "n", "--family", "5"], "is not one of 4, 6"),
        (["ip", "acquire", "--project", "p", "--network", "n", "--label", "rack"], "'rack' is no KEY=VALUE"),
        (["token", "create", "--hours", "0"], "--hours"),
        (["token", "create", "--hours", "9000"], "--hours"),
        (["token", "create", "--plane", "king"], "--plane"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_ends_with_2_and_says_where_help_is(call: Any, plane: Any, arguments: list[str], said: str) -> None:
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert "--help' for help." in outcome.err
    assert plane.asked == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project", "web=king"], "--project web=king: write NAME=viewer, NAME=editor or NAME=owner"),
        (["--tenant", "=owner"], "--tenant =owner: write"),
        (["--tenant", "acme"], "--tenant acme: write"),
    ],
)
def test_a_mistyped_role_names_the_option_and_asks_nobody(
    call: Any, plane: Any, arguments: list[str], said: str
) -> None:
    outcome = call("token", "create", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert plane.asked == []


@pytest.mark.parametrize("arguments", [["-o", "json", "tenant", "list"], ["tenant", "list", "-o", "json"],
                                       ["tenant", "list", "--output=json"],
                                       ["-o", "table", "tenant", "list", "-o", "json"]])  # fmt: skip
def test_the_output_option_stands_before_or_after_the_command(call: Any, plane: Any, arguments: list[str]) -> None:
    plane.answers["ListTenants"] = tenant_pb2.ListTenantsResponse()
    assert call(*arguments).out == "[]\n"


def test_the_context_option_goes_before_the_environment(
    call: Any, plane: Any, context_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.answers["ListTenants"] = tenant_pb2.ListTenantsResponse()
    monkeypatch.setenv("METALPLANE_CONTEXT", "/nowhere/context.json")
    refused = call("tenant", "list")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "metalctl: /nowhere/context.json: cannot be read: No such file or directory\n"
    assert call("tenant", "list", "--context", str(context_file)).code == 0
    assert call("--context", str(context_file), "tenant", "list").code == 0


def test_the_version_is_shown(call: Any) -> None:
    outcome = call("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("metalctl 0.")


def test_exit_codes_are_in_the_help(call: Any) -> None:
    said = " ".join(call("--help").out.split())
    assert "0 done, 1 refused or failed, 2 wrong usage or input, 3 not found, 4 not allowed, 5 not reachable" in said


def test_filters_and_limits_become_fields_of_the_request(call: Any, plane: Any) -> None:
    plane.answers["ListMachines"] = machine_pb2.ListMachinesResponse()
    assert call("machine", "list", "--rack", "r1", "--mac", "02:00:00:00:00:01", "--waiting", "--limit", "7").code == 0
    [request] = plane.requests("ListMachines")
    assert request == machine_pb2.ListMachinesRequest(
        filter=machine_pb2.MachineFilter(rack="r1", mac="02:00:00:00:00:01", waiting=True), page_size=7
    )
    call("machine", "list")
    assert not plane.requests("ListMachines")[1].HasField("filter"), "what was not asked for is not there, not false"


def test_all_pages_are_asked_for_and_a_limit_ends_in_the_midst_of_one(call: Any, plane: Any) -> None:
    def page(request: tenant_pb2.ListTenantsRequest) -> tenant_pb2.ListTenantsResponse:
        start = int(request.page_token or 0)
        ids = range(start, min(start + min(request.page_size, 3), 8))
        return tenant_pb2.ListTenantsResponse(
            tenants=[tenant_pb2.Tenant(id=str(n), name=f"t{n}") for n in ids],
            next_page_token=str(ids.stop) if ids.stop < 8 else "",
        )

    plane.answers["ListTenants"] = page
    lines = call("tenant", "list").out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == [f"t{n}" for n in range(8)]
    assert [request.page_token for request in plane.requests("ListTenants")] == ["", "3", "6"]
    assert len(call("tenant", "list", "--limit", "4").out.splitlines()) == 1 + 4
    assert [request.page_size for request in plane.requests("ListTenants")][3:] == [4, 1]


def test_a_create_names_ids_by_names_and_has_a_request_id(call: Any, plane: Any) -> None:
    plane.answers |= {
        "ListTenants": tenant_pb2.ListTenantsResponse(
            tenants=[{"id": OTHER, "name": "x"}, {"id": UUID, "name": "acme"}]
        ),
        "CreateProject": project_pb2.Project(id=OTHER, name="web"),
    }
    assert call("project", "create", "web", "--tenant", "acme", "--quota", "3").code == 0
    [request] = plane.requests("CreateProject")
    assert len(request.request_id) == 36
    assert request.project == project_pb2.Project(tenant=UUID, name="web", machine_quota=3)


def test_a_namespaced_super_network_is_made_and_shown(call: Any, plane: Any) -> None:
    kind = network_pb2.NETWORK_TYPE_SUPER_NAMESPACED
    plane.answers["CreateNetwork"] = network_pb2.Network(id="tenants", type=kind, prefixes=["10.0.0.0/8"])
    outcome = call(
        "network", "create-super", "tenants", "--namespaced", "--prefix", "10.0.0.0/8", "--prefix", "fd00::/32",
        "--ipv4-length", "22", "--ipv6-length", "64",
    )  # fmt: skip
    assert outcome.code == 0
    assert "super namespaced" in outcome.out.lower().replace("_", " ")
    [request] = plane.requests("CreateNetwork")
    assert len(request.request_id) == 36
    assert request.network == network_pb2.Network(
        id="tenants", type=kind, prefixes=["10.0.0.0/8", "fd00::/32"],
        default_child_prefix_length={"ipv4": 22, "ipv6": 64},
    )  # fmt: skip


def test_an_address_that_exists_twice_is_named_by_network_or_namespace(call: Any, plane: Any) -> None:
    plane.answers |= {"GetIp": ip_pb2.Ip(address="10.0.0.1"), "GetNetwork": network_pb2.Network(id="tenants")}
    assert call("ip", "get", "10.0.0.1").code == 0
    assert call("ip", "get", "10.0.0.1", "--namespace", f"project-{UUID}").code == 0
    assert call("ip", "get", "10.0.0.1", "--network", "tenants").code == 0
    assert plane.requests("GetIp") == [
        ip_pb2.GetIpRequest(address="10.0.0.1"),
        ip_pb2.GetIpRequest(address="10.0.0.1", namespace=f"project-{UUID}"),
        ip_pb2.GetIpRequest(address="10.0.0.1", network="tenants"),
    ]


def test_addresses_are_taken_for_a_project_and_given_back_as_they_were_held(call: Any, plane: Any) -> None:
    held = ip_pb2.Ip(address="10.0.0.7", network="internet", prefix="10.0.0.0/24", create_time={"seconds": 1700000000})
    plane.answers |= {
        "ListProjects": project_pb2.ListProjectsResponse(projects=[{"id": UUID, "name": "demo"}]),
        "GetNetwork": network_pb2.Network(id="internet"),
        "AcquireIps": ip_pb2.AcquireIpsResponse(ips=[held]),
        "GetIp": held,
        "ReleaseIp": Empty(),
    }
    outcome = call(
        "ip", "acquire", "--project", "demo", "--network", "internet", "--family", "4", "--count", "2", "--static",
        "--name", "web", "--dns-name", "web.example", "--label", "rack=a",
    )  # fmt: skip
    assert (outcome.code, "10.0.0.7" in outcome.out) == (0, True)
    [request] = plane.requests("AcquireIps")
    assert len(request.request_id) == 36
    request.request_id = ""
    assert request == ip_pb2.AcquireIpsRequest(
        project=UUID, type=ip_pb2.IP_TYPE_STATIC, name="web", dns_name="web.example", labels={"rack": "a"},
        wishes=[{"network": "internet", "family": "ADDRESS_FAMILY_IPV4", "count": 2}],
    )  # fmt: skip
    assert call("ip", "release", "10.0.0.7", "--network", "internet").code == 0
    assert plane.requests("ReleaseIp") == [
        ip_pb2.ReleaseIpRequest(address="10.0.0.7", network="internet", create_time=held.create_time)
    ]


def test_an_allocation_is_asked_for_as_it_was_written(call: Any, plane: Any, tmp_path: Path) -> None:
    key, data = tmp_path / "id.pub", tmp_path / "data"
    key.write_text("ssh-ed25519 AAAA me\n")
    data.write_bytes(b"\x00\xff")
    plane.answers |= {
        "ListProjects": project_pb2.ListProjectsResponse(projects=[{"id": UUID, "name": "demo"}]),
        "GetNetwork": [network_pb2.Network(id="internet"), NotFound("NOT_FOUND", "no")],
        "ListNetworks": network_pb2.ListNetworksResponse(networks=[{"id": OTHER, "name": "private"}]),
        "CreateAllocation": allocation_pb2.Allocation(id=OTHER),
    }
    outcome = call(
        "allocation", "create", "fw-1", "--project", "demo", "--image", "firewall-3",
        "--network", "internet=1.2.3.4,1.2.3.5", "--network", "private", "--partition", "mini", "--size", "s",
        "--firewall", "--hostname", "h", "--ssh-key", str(key), "--userdata", str(data), "--description", "a wall",
    )  # fmt: skip
    assert outcome.code == 0
    [request] = plane.requests("CreateAllocation")
    assert request.project == UUID
    assert request.spec == allocation_pb2.AllocationSpec(
        name="fw-1", description="a wall", role=allocation_pb2.ALLOCATION_ROLE_FIREWALL, partition="mini", size="s",
        image="firewall-3", hostname="h", ssh_keys=["ssh-ed25519 AAAA me"], userdata=b"\x00\xff",
        networks=[{"network": "internet", "ips": ["1.2.3.4", "1.2.3.5"]}, {"network": OTHER}],
    )  # fmt: skip
    assert plane.requests("ListNetworks")[0].project == UUID, "a name is looked for in the allocation's project"


@pytest.mark.parametrize("content", [b"-----BEGIN OPENSSH PRIVATE KEY-----\nsecret", b"", b"\xff\xfe"])
def test_what_is_no_public_key_is_not_sent(call: Any, plane: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "id_ed25519"
    path.write_bytes(content)
    outcome = call(
        "allocation", "create", "w", "--project", UUID, "--image", "i", "--network", UUID, "--ssh-key", str(path)
    )
    assert (outcome.code, plane.asked) == (2, [])
    assert outcome.err == f"metalctl: {path}: is not a public key; its name mostly ends with .pub\n"


def test_files_that_are_not_there_are_named(call: Any, plane: Any) -> None:
    base = ["allocation", "create", "w", "--project", UUID, "--image", "i", "--network", UUID]
    for option in ("--ssh-key", "--userdata"):
        outcome = call(*base, option, "/nowhere/file")
        assert (outcome.code, outcome.err) == (2, "metalctl: /nowhere/file: No such file or directory\n")
    assert plane.asked == []


def test_a_power_command_that_failed_ends_with_1_and_says_why(call: Any, plane: Any) -> None:
    running = bmc_pb2.Command(id=OTHER, machine=UUID, state=bmc_pb2.COMMAND_STATE_RUNNING)
    failed = bmc_pb2.Command(
        id=OTHER, machine=UUID, state=bmc_pb2.COMMAND_STATE_FAILED, reason="BMC_TIMEOUT", error="no answer"
    )
    plane.answers |= {"CreateCommand": running, "GetCommand": [running, failed]}
    outcome = call("machine", "power", UUID, "cycle")
    assert plane.requests("CreateCommand")[0].action == bmc_pb2.COMMAND_ACTION_CYCLE
    assert (outcome.code, outcome.err) == (1, "metalctl: cycle failed: no answer [BMC_TIMEOUT]\n")
    assert "BMC_TIMEOUT" in outcome.out


def test_a_power_command_takes_how_long_and_how(call: Any, plane: Any) -> None:
    done = bmc_pb2.Command(id=OTHER, machine=UUID, state=bmc_pb2.COMMAND_STATE_SUCCEEDED)
    plane.answers["CreateCommand"] = done
    assert call("machine", "power", UUID, "disk", "--once", "--mode", "bios").code == 0
    assert call("machine", "power", UUID, "pxe", "--persistent").code == 0
    assert call("machine", "power", UUID, "soft-off", "--hard-after", "5m", "--timeout", "1h").code == 0
    disk, pxe, soft = plane.requests("CreateCommand")
    assert (disk.boot_lasting, disk.boot_mode) == (bmc_pb2.BOOT_LASTING_ONCE, bmc_pb2.BOOT_MODE_BIOS)
    assert (pxe.boot_lasting, pxe.boot_mode) == (bmc_pb2.BOOT_LASTING_PERSISTENT, bmc_pb2.BOOT_MODE_UNSPECIFIED)
    assert (soft.action, soft.hard_after.seconds, soft.timeout.seconds) == (bmc_pb2.COMMAND_ACTION_SOFT_OFF, 300, 3600)
    outcome = call("machine", "power", UUID, "soft-off", "--hard-after", "soon")
    assert (outcome.code, outcome.err) == (
        2, "metalctl: --hard-after soon: write a length of time such as 30s, 5m or 24h\n"
    )  # fmt: skip
    assert len(plane.requests("CreateCommand")) == 3


def test_tasks_of_people_are_listed_confirmed_and_declined(call: Any, plane: Any) -> None:
    task = bmc_pb2.ManualTask(
        id=OTHER, machine=UUID, state=bmc_pb2.MANUAL_TASK_STATE_OPEN, instruction="switch the machine on"
    )
    plane.answers |= {"ListManualTasks": bmc_pb2.ListManualTasksResponse(tasks=[task]), "ConfirmManualTask": task}
    outcome = call("bmc", "tasks", "--machine", UUID, "--all")
    assert (outcome.code, outcome.err) == (0, "")
    assert "switch the machine on" in outcome.out
    assert plane.requests("ListManualTasks")[0].include_ended
    assert call("bmc", "confirm", OTHER).code == 0
    assert call("bmc", "confirm", OTHER, "--decline", "--note", "no power").code == 0
    assert [(each.decline, each.note) for each in plane.requests("ConfirmManualTask")] == [
        (False, ""), (True, "no power")
    ]  # fmt: skip
    outcome = call("bmc", "confirm", OTHER, "--decline")
    assert (outcome.code, outcome.err) == (2, "metalctl: --decline needs --note: say why\n")


def test_a_machines_state_is_set_with_its_reason(call: Any, plane: Any) -> None:
    plane.answers["SetMachineState"] = machine_pb2.Machine(id=UUID)
    assert call("machine", "state", UUID, "locked", "--reason", "broken fan").code == 0
    [request] = plane.requests("SetMachineState")
    assert (request.state, request.description) == (machine_pb2.MACHINE_STATE_LOCKED, "broken fan")


def test_the_secret_of_a_token_is_shown_once_and_its_maker_is_asked_for_roles(call: Any, plane: Any) -> None:
    plane.answers |= {
        "ListProjects": project_pb2.ListProjectsResponse(projects=[{"id": UUID, "name": "demo"}]),
        "CreateToken": token_pb2.CreateTokenResponse(token={"id": OTHER}, secret="the.secret.itself"),
    }
    outcome = call("token", "create", "--user", "bob", "--project", "demo=editor", "--tenant", f"{OTHER}=viewer",
                   "--plane", "viewer", "--hours", "0.5")  # fmt: skip
    assert outcome.code == 0
    assert outcome.out.count("the.secret.itself") == 1
    assert "secret" not in outcome.err
    [request] = plane.requests("CreateToken")
    assert (dict(request.token.project_roles), dict(request.token.tenant_roles)) == ({UUID: 2}, {OTHER: 1})
    assert (request.token.user, request.token.plane_role, request.lifetime.seconds) == ("bob", 1, 1800)


def _credential_keys(**more: Any) -> bmc_pb2.CredentialKeys:
    found = bmc_pb2.CredentialKeys(partition="mini", **more)
    found.keys.add(id="k3", passwords=7, current=True, in_ring=True)
    found.keys.add(id="k2", passwords=2, in_ring=True)
    found.keys.add(id="k1", in_ring=True)
    found.keys.add(id="k0", passwords=1)
    return found


def test_the_keys_of_bmc_passwords_show_which_can_go(call: Any, plane: Any) -> None:
    plane.answers["GetCredentialKeys"] = _credential_keys()
    outcome = call("bmc", "keys")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split(maxsplit=2) for line in outcome.out.splitlines()] == [
        ["KEY", "PASSWORDS", "USE"], ["k3", "7", "seals"], ["k2", "2", "opens"], ["k1", "0", "can go"],
        ["k0", "1", "not in the ring"],
    ]  # fmt: skip


def test_resealing_names_the_machines_whose_passwords_do_not_open_and_fails(call: Any, plane: Any) -> None:
    keys = _credential_keys(unusable_count=3)
    keys.unusable.add(machine=UUID, key="k0", cause="sealed with key 'k0', which is not in the key ring")
    plane.answers["ResealCredentials"] = bmc_pb2.ResealCredentialsResponse(resealed=7, keys=keys)
    outcome = call("bmc", "reseal")
    assert outcome.code == 1
    assert "7 of partition mini sealed anew" in outcome.err
    assert f"machine {UUID}: sealed with key 'k0', which is not in the key ring\nand 2 more" in outcome.err
    plane.answers["ResealCredentials"] = bmc_pb2.ResealCredentialsResponse(resealed=7, keys=_credential_keys())
    assert call("bmc", "reseal").code == 0
