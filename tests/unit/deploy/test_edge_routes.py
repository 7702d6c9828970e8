"""The edge routes every call that a person may make."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import metalplane
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from metalplane.common.v1 import access_pb2

# People never call these: their callers are agents and services, whose certificates a proxy cannot show for them.
NOT_FOR_PEOPLE = {
    "metalplane.allocation.v1.InstallationService",
    "metalplane.boot.v1.BootService",
    "metalplane.fabric.v1.SwitchAgentService",
}
# Domains that every service serves, about itself.
SERVED_BY_ALL = {"plane", "audit"}


@pytest.fixture(scope="module")
def contracts() -> list[ServiceDescriptor]:
    found = []
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            found += list(descriptor.services_by_name.values())
    return found


@pytest.fixture(scope="module")
def backends(root: Path) -> dict[str, str]:
    text = (root / "deploy" / "edge" / "backends.conf").read_text()
    return dict(re.findall(r"^(\w+)\s+(\S+);$", text, re.MULTILINE))


def _routes(root: Path) -> list[re.Pattern[str]]:
    """The locations of nginx.conf; nginx and Python write such groups differently."""
    configuration = (root / "deploy" / "edge" / "nginx.conf").read_text()
    found = re.findall(r"location ~ (\^/metalplane\S+) \{", configuration)
    return [re.compile(each.replace("(?<", "(?P<")) for each in found]


@pytest.fixture(scope="module")
def route(root: Path) -> re.Pattern[str]:
    """The location that goes by the path alone."""
    (found,) = [each for each in _routes(root) if "domain" in each.groupindex]
    return found


@pytest.fixture(scope="module")
def shared(root: Path) -> re.Pattern[str]:
    """The location of what all services serve, which goes by the service that the caller names."""
    (found,) = [each for each in _routes(root) if "shared" in each.groupindex]
    return found


def open_to_people(service: ServiceDescriptor) -> bool:
    rules: list[Any] = [method.GetOptions().Extensions[access_pb2.access] for method in service.methods]
    return any(rule.public or rule.authenticated or rule.users or rule.role or rule.plane_role for rule in rules)


def test_every_method_that_people_may_call_has_a_route_to_its_service(
    contracts: list[ServiceDescriptor], backends: dict[str, str], route: re.Pattern[str], shared: re.Pattern[str]
) -> None:
    routed = 0
    for service in contracts:
        for method in service.methods:
            if not open_to_people(service):
                continue
            if service.full_name.split(".")[1] in SERVED_BY_ALL:
                assert shared.fullmatch(f"/{service.full_name}/{method.name}"), service.full_name
                continue
            match = route.fullmatch(f"/{service.full_name}/{method.name}")
            assert match is not None, f"deploy/edge/nginx.conf has no route for {service.full_name}/{method.name}"
            domain = service.full_name.split(".")[1]
            assert match["domain"] == domain
            assert backends[domain] == f"{domain}:9000"
            routed += 1
    assert routed > 40


def test_what_is_not_for_people_is_what_we_think(contracts: list[ServiceDescriptor]) -> None:
    assert {service.full_name for service in contracts if not open_to_people(service)} == NOT_FOR_PEOPLE


def test_each_route_has_a_backend_and_each_backend_a_route(backends: dict[str, str], route: re.Pattern[str]) -> None:
    alternatives = re.search(r"\(\?P<domain>([a-z|]+)\)", route.pattern)
    assert alternatives is not None
    assert set(alternatives[1].split("|")) == set(backends)


@pytest.mark.parametrize(
    "path",
    [
        "/metalplane.boot.v1.BootService/Work",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/metalplane.tenancy.v2.TokenService/CheckToken",
        "/metalplane.tenancy.v1.TokenService/CheckToken/more",
        "/metalplane.tenancy.v1.TokenService",
        "/x/metalplane.tenancy.v1.TokenService/CheckToken",
        "/metalplane.tenancyXv1.TokenService/CheckToken",
    ],
)
def test_other_paths_have_no_route(path: str, route: re.Pattern[str]) -> None:
    assert route.match(path) is None
