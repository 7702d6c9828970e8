"""Contexts with an edge: one address for all services, known by its own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metalctl.context import SERVICES, ContextError, load

FILES = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key", "token": "t"}


def write(directory: Path, **content: object) -> Path:
    path = directory / "context.json"
    path.write_text(json.dumps(FILES | content))
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (directory / name).write_text("-----BEGIN CERTIFICATE-----\n")
    return path


def test_behind_an_edge_every_service_has_its_address_and_name(tmp_path: Path) -> None:
    context = load(write(tmp_path, endpoint="edge.example.org:8443"))
    assert context.endpoints == dict.fromkeys(SERVICES, "edge.example.org:8443")
    assert context.server_names == dict.fromkeys(SERVICES, "edge.example.org")


def test_an_edge_may_be_reached_by_another_address_than_its_name(tmp_path: Path) -> None:
    context = load(write(tmp_path, endpoint="[::1]:8443", server_name="edge.metalplane"))
    assert set(context.server_names.values()) == {"edge.metalplane"}


def test_a_service_that_is_reached_directly_keeps_its_own_name(tmp_path: Path) -> None:
    context = load(write(tmp_path, endpoint="edge.example.org:8443", endpoints={"bmc": "10.0.0.1:9445"}))
    assert context.endpoints["bmc"] == "10.0.0.1:9445"
    assert "bmc" not in context.server_names
    assert context.server_names["ipam"] == "edge.example.org"


def test_without_an_edge_services_are_known_by_their_own_names(tmp_path: Path) -> None:
    assert load(write(tmp_path, endpoints={"ipam": "127.0.0.1:1"})).server_names == {}


@pytest.mark.parametrize("endpoint", ["edge.example.org", "edge:port", "::1:8443"])
def test_an_endpoint_without_a_port_is_named(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(ContextError, match="endpoint: "):
        load(write(tmp_path, endpoint=endpoint))
