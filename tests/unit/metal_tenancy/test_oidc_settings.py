"""Settings of the login: read from the environment as people write them, refused with their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from metal_tenancy.service import Settings
from pydantic import ValidationError

ISSUER = "https://id.example.org"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METALPLANE_TOKEN_KEY", str(tmp_path / "key"))


def read(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"METALPLANE_OIDC_{name.upper()}", value)
    return Settings()


def test_without_an_issuer_there_is_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch).provider() is None
    assert read(monkeypatch, issuer="", client_id="", ca="", operator_groups="").provider() is None


def test_names_in_lists_are_separated_by_commas_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(
        monkeypatch, issuer=ISSUER, client_id="metalctl", audiences="console, web", scopes="openid,groups",
        operator_groups='["cn=ops,dc=example"]', viewer_groups="a,,b",
    )  # fmt: skip
    provider = settings.provider()
    assert provider is not None
    assert provider.audiences == {"metalctl", "console", "web"}
    assert provider.scopes == ("openid", "groups")
    assert provider.operator_groups == {"cn=ops,dc=example"}
    assert provider.viewer_groups == {"a", "b"}
    assert (provider.user_claim, provider.user_prefix, settings.oidc_token_hours) == ("email", "oidc:", 8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"issuer": "http://id.example.org"}, "must be https"),
        ({"issuer": ISSUER, "client_id": ""}, "oidc_client_id: must be set"),
        ({"scopes": "email"}, "oidc_scopes: must have openid"),
        ({"user_prefix": ""}, "end with a colon"),
        ({"user_prefix": "corp"}, "end with a colon"),
        ({"user_prefix": ":"}, "end with a colon"),
        ({"token_hours": "25"}, "less than or equal to 24"),
        ({"token_hours": "0"}, "greater than"),
        ({"user_claim": ""}, "oidc_user_claim"),
        ({"operator_groups": "[1"}, "oidc_operator_groups"),
    ],
)
def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], said: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=said):
        read(monkeypatch, **{"issuer": ISSUER, "client_id": "metalctl"} | values)


def passed_through() -> dict[str, str]:
    """What Compose gives tenancy when nothing is set, by variable."""
    return dict(re.findall(r'(METALPLANE_OIDC_\w+): "\$\{\1:-(.*)\}"', (ROOT / "docker-compose.yml").read_text()))


def test_the_documents_and_the_containers_know_every_setting_and_no_other() -> None:
    known = {f"METALPLANE_{name.upper()}" for name in Settings.model_fields if name.startswith("oidc_")}
    table = re.findall(r"^\| `(METALPLANE_OIDC_\w+)` \|", (ROOT / "docs/login.md").read_text(), re.MULTILINE)
    assert (set(table), len(table)) == (known, len(known))
    assert set(passed_through()) == known


def test_the_defaults_of_the_containers_are_those_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Settings()
    for name, value in passed_through().items():
        monkeypatch.setenv(name, value)
    assert Settings() == bare
