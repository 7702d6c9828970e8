"""The Compose files say what the services understand, and give each container its own secrets and no others."""

from __future__ import annotations

import copy
import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from metal_init.plane import CENTRAL, MOUNTED, OF_PARTITION, SERVICES
from metal_init.settings import Settings as InitSettings
from metal_kit.endpoint import parse_endpoint

Compose = dict[str, Any]
PREFIX = "METALPLANE_"
INIT_PREFIX = "METALPLANE_INIT_"
# What these settings name is a file or secret of the container's folder, or a place that only the deployment knows.
NEEDED = {
    "tenancy": {"token_key"},
    "bmc": {"partition"},
    "boot": {"partition", "machine_ca", "machine_ca_name", "http_listen", "http_url", "grpc_endpoint"},
}


@pytest.fixture(scope="session")
def schema() -> Any:
    return json.loads((Path(__file__).parent / "compose_spec.json").read_text())


@pytest.mark.parametrize("name", ["compose", "partition"])
def test_the_file_is_valid_by_the_schema_of_compose(name: str, schema: Any, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(name)
    jsonschema.Draft201909Validator(schema).validate(content)
    assert content["version"] == "3.7"


def test_the_schema_would_notice_a_misspelt_key(compose: Compose, schema: Any) -> None:
    broken = copy.deepcopy(compose)
    broken["services"]["ipam"]["health_check"] = broken["services"]["ipam"].pop("healthcheck")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft201909Validator(schema).validate(broken)


def test_there_is_a_container_for_each_service_and_each_server(compose: Compose) -> None:
    assert set(compose["services"]) == {*SERVICES, "init", "database", "postgres", "nats", "edge"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_exists_in_its_service(name: str, compose: Compose) -> None:
    check_settings(name, compose["services"][name]["environment"])


def test_every_setting_of_a_further_partition_exists_in_its_service(partition: Compose) -> None:
    for name in OF_PARTITION:
        check_settings(name, partition["services"][f"partition-{name}"]["environment"])


def check_settings(name: str, environment: dict[str, str]) -> None:
    fields = importlib.import_module(f"metal_{name}.service").SPEC.settings.model_fields
    given = {key.removeprefix(PREFIX).lower() for key in environment}
    assert all(key.startswith(PREFIX) for key in environment)
    assert given <= set(fields), f"{name} does not know {given - set(fields)}"
    assert NEEDED.get(name, set()) <= given


@pytest.mark.parametrize("name", ["compose", "partition"])
def test_every_setting_of_the_set_up_exists(name: str, request: pytest.FixtureRequest) -> None:
    environment = request.getfixturevalue(name)["services"]["init"]["environment"]
    known = {f"{INIT_PREFIX}{field.upper()}" for field in InitSettings.model_fields}
    assert set(environment) <= known


@pytest.mark.parametrize("name", ["compose", "partition"])
def test_every_command_is_a_console_script(name: str, root: Path, request: pytest.FixtureRequest) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    ours = [each for each in request.getfixturevalue(name)["services"].values() if "metalplane:" in each["image"]]
    assert len(ours) >= 3
    for service in ours:
        assert service["command"][0] in scripts


def test_every_service_is_told_where_the_peers_are_that_its_code_calls(compose: Compose, root: Path) -> None:
    for name in SERVICES:
        told = peers_of(compose["services"][name])
        assert called_by(root / "services" / f"metal_{name}") <= set(told), f"{name} is not told all of its peers"
        assert all(host == peer and port == 9000 for peer, (host, port) in told.items())
        # Whoever takes bearer tokens has to ask tenancy about them, and all tell people what is wrong with them.
        assert ("tenancy" in told) == (name != "tenancy")


def called_by(package: Path) -> set[str]:
    """Names of services that the package makes stubs for."""
    pattern = re.compile(r"\.stub\(\s*\w+,\s*\"(\w+)\"")
    return {name for file in package.rglob("*.py") for name in pattern.findall(file.read_text())}


def test_the_peers_of_a_service_are_found_in_its_code(root: Path) -> None:
    assert called_by(root / "services" / "metal_allocation") == {"tenancy", "inventory", "ipam", "fabric", "bmc"}


def peers_of(service: Compose) -> dict[str, tuple[str, int]]:
    text = service["environment"].get("METALPLANE_PEERS", "")
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    return {name: parse_endpoint(endpoint) for name, _, endpoint in pairs}


def test_a_container_gets_its_own_secrets_read_only_and_no_others(compose: Compose) -> None:
    for name, service in compose["services"].items():
        if name == "init":
            continue
        secret = [mount for mount in service["volumes"] if f":{MOUNTED}" in mount]
        assert secret == [f"{name}:{MOUNTED}:ro"], name
        rest = {mount.partition(":")[0] for mount in service["volumes"]} - {name}
        assert rest <= {"postgres-data", "nats-store", "./deploy/edge"}, name


def test_the_set_up_reaches_every_volume_and_no_network(compose: Compose) -> None:
    init = compose["services"]["init"]
    mounts = dict(mount.split(":") for mount in init["volumes"])
    assert set(mounts) == set(compose["volumes"]) - {"postgres-data"}
    assert all(target == f"/secrets/{volume}" for volume, target in mounts.items())
    assert init["network_mode"] == "none"


def test_the_image_has_a_folder_for_every_volume_of_the_set_up(compose: Compose, root: Path) -> None:
    dockerfile = (root / "deploy" / "Dockerfile").read_text()
    listed = re.search(r"for each in ([a-z -]+); do", dockerfile)
    assert listed is not None
    assert set(listed[1].split()) == {mount.partition(":")[0] for mount in compose["services"]["init"]["volumes"]}


def test_every_running_container_is_watched_and_comes_back(compose: Compose) -> None:
    for name, service in compose["services"].items():
        if name in {"init", "database"}:
            assert service["restart"] == "no"
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["init"] is True, name
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
    for name in SERVICES:
        assert compose["services"][name]["healthcheck"]["test"][-2:] == ["127.0.0.1:9000", name]


def test_nothing_starts_before_its_secrets_and_its_role_are_there(compose: Compose) -> None:
    services = compose["services"]
    for name in SERVICES:
        assert services[name]["depends_on"]["database"] == {"condition": "service_completed_successfully"}
    assert services["database"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    for name in ("postgres", "nats", "edge"):
        assert services[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}


def test_containers_of_ours_have_no_more_rights_than_they_need(compose: Compose, partition: Compose) -> None:
    for name, service in (compose["services"] | partition["services"]).items():
        if name == "postgres":  # its image starts as root and gives that up itself
            continue
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_what_machines_leaves_and_people_need_is_published(compose: Compose) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"edge", "fabric", "boot"}
    assert all(port.startswith("${METALPLANE_") for ports in published.values() for port in ports)


def test_every_image_can_be_chosen(compose: Compose, partition: Compose, root: Path) -> None:
    for service in (compose["services"] | partition["services"]).values():
        assert re.fullmatch(r"\$\{METALPLANE_[A-Z_]*IMAGE:-[^}]+\}", service["image"])
    dockerfile = (root / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["${BASE_IMAGE}", "${BASE_IMAGE}"]
    assert "# syntax=" not in dockerfile


def test_the_image_does_not_run_as_root(root: Path) -> None:
    dockerfile = (root / "deploy" / "Dockerfile").read_text()
    assert re.search(r"^USER \$\{UID\}:\$\{UID\}$", dockerfile, re.MULTILINE)
    assert re.search(r"^ARG UID=10001$", dockerfile, re.MULTILINE)


def test_a_further_partition_does_not_take_the_names_of_the_first_ones_services(
    compose: Compose, partition: Compose
) -> None:
    assert set(partition["services"]) & set(compose["services"]) == {"init"}
    assert partition["services"]["init"]["network_mode"] == "none"
    shared = {volume["name"] for volume in partition["volumes"].values() if volume.get("external")}
    assert shared <= {volume.get("name") for volume in compose["volumes"].values()}
    assert partition["networks"]["default"]["name"] == compose["networks"]["default"]["name"]


def test_the_services_are_those_of_the_set_up(root: Path) -> None:
    with_a_server = {
        package.name.removeprefix("metal_")
        for package in (root / "services").iterdir()
        if (package / "service.py").exists() and "ServiceSpec(" in (package / "service.py").read_text()
    }
    assert with_a_server == {*CENTRAL, *OF_PARTITION}
