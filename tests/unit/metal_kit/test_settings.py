"""Settings from the environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.endpoint import parse_endpoint
from metal_kit.settings import ServiceSettings
from pydantic import ValidationError


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALPLANE_LISTEN", "0.0.0.0:8443")
    monkeypatch.setenv("METALPLANE_PEERS", "ipam=ipam.example:443, inventory=[2001:db8::1]:444")
    settings = ServiceSettings()
    assert settings.listen == "0.0.0.0:8443"
    assert settings.peers == {"ipam": "ipam.example:443", "inventory": "[2001:db8::1]:444"}
    monkeypatch.setenv("METALPLANE_PEERS", '{"ipam": "h:1"}')
    assert ServiceSettings().peers == {"ipam": "h:1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN", "8443"), ("LISTEN", "host:"), ("LISTEN", "host:99999"), ("LISTEN", "::1:80"), ("LISTEN", "host:٣"),
        ("PEERS", "ipam"), ("PEERS", "ipam=host"), ("PEERS", "{"), ("PEERS", "=h:1"), ("LOG_LEVEL", "loud"),
        ("DRAIN_SECONDS", "-1"), ("MAX_MESSAGE_BYTES", "1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"METALPLANE_{name}", value)
    with pytest.raises(ValidationError) as caught:
        ServiceSettings()
    assert caught.value.errors()[0]["loc"][0] == name.lower()


def test_secrets_do_not_show_in_the_representation() -> None:
    settings = ServiceSettings(database_url="postgresql://u:hunter2@h/d", nats_url="nats://u:hunter2@h")
    assert "hunter2" not in repr(settings)


@given(st.ip_addresses(v=6), st.integers(0, 65535))
def test_v6_endpoints_read_back(address: object, port: int) -> None:
    assert parse_endpoint(f"[{address}]:{port}") == (str(address), port)


@given(st.text(max_size=30))
def test_no_text_breaks_the_endpoint_parser(text: str) -> None:
    try:
        host, port = parse_endpoint(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535
