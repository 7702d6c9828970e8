"""The parts of a login: the listener, the device flow, what is written to the context, who one is then."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from metal_kit.errors import PermissionDenied, Unauthenticated, Unavailable
from metalctl import values
from metalctl.context import ContextError
from metalctl.context_file import set_token
from metalctl.oidc import device_flow
from metalctl.oidc.code_flow import challenge
from metalctl.oidc.listener import Listener
from metalctl.oidc.provider import Endpoints, LoginError, ProviderUnreachable, id_token_of
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2

ISSUER = "https://id.example.org"
ENDPOINTS = Endpoints(ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", f"{ISSUER}/device")
TENANT, PROJECT, HIDDEN = (f"0198c1d2-0000-7000-8000-00000000000{n}" for n in (1, 2, 3))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_challenge_is_that_of_the_specification() -> None:
    """RFC 7636, appendix B."""
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def get(uri: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(uri).netloc, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_listener_takes_the_answer_to_its_own_question_only() -> None:
    with Listener("mine") as listener:
        uri = listener.redirect_uri
        assert urlsplit(uri).hostname == "127.0.0.1", "nobody on the network reaches it"
        # As browsers do: a connection in advance, with nothing on it.
        with socket.create_connection(("127.0.0.1", urlsplit(uri).port or 0)):
            assert get(uri, "/favicon.ico")[0] == 404
            for path in (
                "/callback",
                "/callback?code=c",
                "/callback?code=c&state=other",
                "/callback?code=c&state=%C3%A9",
            ):
                status, text = get(uri, path)
                assert (status, "another login" in text) == (400, True)
            assert listener.wait(0) is None, "none of these counts"
            assert get(uri, "/callback?code=c1&state=mine")[0] == 200
            assert get(uri, "/callback?code=c2&state=mine")[0] == 200
            assert listener.wait(5) == {"code": "c1", "state": "mine"}, "the first one"
    with pytest.raises(OSError, match="refused"):
        get(uri, "/callback?code=c&state=mine")


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Listener("s", taken.getsockname()[1])


def id_token(nonce: str | None) -> str:
    claims = {} if nonce is None else {"nonce": nonce}
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.AA"


def test_an_id_token_with_the_nonce_of_another_login_is_not_used() -> None:
    assert id_token_of({"id_token": id_token("n")}, "n") == (id_token("n"), "n")
    assert id_token_of({"id_token": id_token(None)}, "n", may_lack_nonce=True) == (id_token(None), "")
    for answer, may in (({"id_token": id_token("m")}, True), ({"id_token": id_token(None)}, False)):
        with pytest.raises(LoginError, match="another login"):
            id_token_of(answer, "n", may_lack_nonce=may)
    for answer in ({}, {"id_token": 7}, {"id_token": "a.!.c"}, {"id_token": "a.W10.c"}, {"id_token": "x"}):
        with pytest.raises(LoginError, match="no ID token"):
            id_token_of(answer, "n")


class Device:
    """A provider's answers in the device flow, and a clock that its pauses move."""

    def __init__(self, *answers: Mapping[str, Any] | Exception, **begun: Any) -> None:
        self.answers = list(answers)
        self.begun = {"device_code": "d", "user_code": "WDJB-MJHT", "verification_uri": f"{ISSUER}/activate",
                      "expires_in": 600, "interval": 5} | begun  # fmt: skip
        self.now = 0.0
        self.pauses: list[float] = []
        self.nonce = ""
        self.shown: list[tuple[str, str]] = []

    def ask(self, url: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        if url == ENDPOINTS.device:
            self.nonce = form["nonce"]
            return {name: value for name, value in self.begun.items() if value is not None}
        assert form == {"grant_type": device_flow.GRANT, "device_code": "d", "client_id": "metalctl"}
        answer = self.answers.pop(0) if self.answers else {"error": "authorization_pending"}
        if isinstance(answer, Exception):
            raise answer
        return {"id_token": id_token(self.nonce)} if answer == {} else answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += max(seconds, 0.1)

    def log_in(self) -> tuple[str, str]:
        return device_flow.log_in(
            ENDPOINTS, "metalctl", ["openid"], show=lambda *said: self.shown.append(said), ask=self.ask,
            sleep=self.sleep, monotonic=lambda: self.now,
        )  # fmt: skip


def test_the_device_flow_asks_as_often_as_it_may_until_the_person_has_agreed() -> None:
    pending, slower = {"error": "authorization_pending"}, {"error": "slow_down"}
    device = Device(pending, slower, pending, ProviderUnreachable("away"), {})
    assert device.log_in()[1] == device.nonce
    assert device.shown == [(f"{ISSUER}/activate", "WDJB-MJHT")]
    assert device.pauses == [5, 5, 10, 10, 20]


def test_the_device_flow_ends_with_the_code() -> None:
    device = Device(expires_in=60)
    with pytest.raises(LoginError, match="before it ended"):
        device.log_in()
    assert 60 <= device.now <= 65
    for_ever = Device(expires_in=1e9, interval=1e9)
    with pytest.raises(LoginError, match="before it ended"):
        for_ever.log_in()
    assert for_ever.now <= device_flow.LONGEST + device_flow.SLOWEST


@pytest.mark.parametrize("error", ["access_denied", "expired_token", "invalid_grant"])
def test_a_refusal_ends_the_device_flow_with_the_providers_words(error: str) -> None:
    with pytest.raises(LoginError, match=f"refused the login: {error}: said so") as refused:
        Device({"error": error, "error_description": "said so"}).log_in()
    assert refused.value.refused


@pytest.mark.parametrize("begun", [{"device_code": None}, {"expires_in": "soon"}, {"verification_uri": None}])
def test_a_device_flow_that_begins_otherwise_is_not_followed(begun: dict[str, Any]) -> None:
    with pytest.raises(LoginError, match="RFC 8628"):
        Device(**begun).log_in()


def test_a_provider_without_a_device_flow_says_so() -> None:
    bare = Endpoints(ISSUER, "", "", "")
    with pytest.raises(LoginError, match="leave --device out"):
        device_flow.log_in(bare, "metalctl", ["openid"], show=lambda *_: None)


def test_the_token_of_a_file_is_replaced_and_the_rest_stays(context_file: Path) -> None:
    before = json.loads(context_file.read_text())
    context_file.write_text(json.dumps(before | {"note": "Zürich", "later": {"a": [1]}}))
    context_file.chmod(0o644)
    link = context_file.parent / "link.json"
    link.symlink_to(context_file)
    set_token(link, "new.token")
    assert json.loads(context_file.read_text()) == before | {
        "note": "Zürich",
        "later": {"a": [1]},
        "token": "new.token",
    }
    assert stat.S_IMODE(context_file.stat().st_mode) == 0o600
    assert link.is_symlink()
    set_token(context_file, "")
    assert "token" not in json.loads(context_file.read_text())
    assert {path.name for path in context_file.parent.iterdir()} == {
        "link.json", "context.json", "ca.crt", "tls.crt", "tls.key",
    }, "nothing is left over"  # fmt: skip


def test_a_file_that_cannot_be_replaced_stays_as_it_is(context_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = context_file.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ContextError, match="cannot be written: No space left"):
        set_token(context_file, "new.token")
    assert context_file.read_text() == before
    assert not list(context_file.parent.glob(".context.json.*"))


def test_nobody_sees_half_a_file(context_file: Path) -> None:
    ended = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not ended.is_set():
            seen.add(json.loads(context_file.read_text()).get("token", ""))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(50):
            set_token(context_file, f"t{number}" * 500)
    finally:
        ended.set()
        reader.join()
    assert seen <= {"secret.of.test", *(f"t{number}" * 500 for number in range(50))}


@pytest.fixture
def at_noon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[timedelta], Timestamp]]:
    """The present stands still; gives stamps relative to it."""
    monkeypatch.setattr(values, "now", lambda: NOW)

    def later(by: timedelta) -> Timestamp:
        stamp = Timestamp()
        stamp.FromDatetime(NOW + by)
        return stamp

    return later


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (timedelta(hours=7, minutes=12, seconds=40), "in 7 h 12 min"), (timedelta(seconds=59), "in 59 s"),
        (timedelta(minutes=3, seconds=5), "in 3 min 5 s"), (timedelta(days=2), "in 2 d 0 h"),
        (timedelta(0), "in 0 s"), (timedelta(seconds=-1), "over"), (timedelta(hours=1), "in 1 h 0 min"),
    ],
)  # fmt: skip
def test_an_end_is_told_by_the_time_that_is_left(at_noon: Any, left: timedelta, said: str) -> None:
    assert values.until(at_noon(left)) == said


def test_whoami_names_what_the_caller_may_read_and_shows_ids_of_the_rest(call: Any, plane: Any, at_noon: Any) -> None:
    token = token_pb2.Token(
        id="t-1", user="oidc:anna@example.org", description="login", plane_role=PlaneRole.PLANE_ROLE_VIEWER,
        tenant_roles={TENANT: Role.ROLE_EDITOR}, project_roles={PROJECT: Role.ROLE_OWNER, HIDDEN: Role.ROLE_VIEWER},
        expire_time=at_noon(timedelta(hours=7, minutes=12)),
    )  # fmt: skip
    plane.answers |= {
        "WhoAmI": token_pb2.WhoAmIResponse(kind="user", name=token.user, token=token),
        "ListProjects": project_pb2.ListProjectsResponse(projects=[{"id": PROJECT, "name": "web", "tenant": TENANT}]),
        "ListTenants": tenant_pb2.ListTenantsResponse(tenants=[{"id": TENANT, "name": "acme"}]),
    }
    assert call("whoami").out == (
        "kind        user\n"
        "name        oidc:anna@example.org\n"
        "plane role  viewer\n"
        "token       t-1 (login)\n"
        "expires     2026-03-01 19:12Z, in 7 h 12 min\n"
        "\n"
        f"TENANT  ROLE    ID\nacme    editor  {TENANT}\n"
        "\n"
        f"PROJECT  TENANT  ROLE    ID\nweb      acme    owner   {PROJECT}\n-        -       viewer  {HIDDEN}\n"
    )
    as_json = json.loads(call("whoami", "-o", "json").out)
    assert as_json["token"]["project_roles"] == {PROJECT: "ROLE_OWNER", HIDDEN: "ROLE_VIEWER"}
    plane.answers["ListProjects"] = plane.answers["ListTenants"] = PermissionDenied("NO", "no")
    assert f"-        -       owner   {PROJECT}" in call("whoami").out, "who may not read names still learns who he is"


def test_whoami_says_when_there_are_no_roles(call: Any, plane: Any) -> None:
    plane.answers["WhoAmI"] = token_pb2.WhoAmIResponse(kind="user", name="bob", token={"id": "t", "user": "bob"})
    assert "no roles: an owner of a project or tenant, or an operator" in call("whoami").out


def test_a_context_without_a_token_says_how_to_get_one(call: Any, plane: Any, context_file: Path) -> None:
    set_token(context_file, "")
    outcome = call("whoami")
    assert (outcome.code, outcome.err) == (2, f"metalctl: {context_file}: lacks token; log in: metalctl login\n")
    plane.answers["GetLoginMethods"] = token_pb2.GetLoginMethodsResponse()
    outcome = call("login")
    assert outcome.code == 1
    assert outcome.err == (
        "metalctl: this plane has no identity provider; put a token in: metalctl login --token-stdin\n"
    )
    assert (call("logout").code, plane.requests("RevokeToken")) == (1, [])


def test_a_token_that_does_not_hold_any_more_says_how_to_get_another(call: Any, plane: Any, context_file: Path) -> None:
    plane.answers["WhoAmI"] = Unauthenticated("TOKEN_INVALID", "the token does not hold")
    outcome = call("whoami")
    assert outcome.code == 4
    assert outcome.err.endswith(f"the token is from {context_file}; log in again: metalctl login\n")


def test_a_token_from_standard_input_is_tried_before_it_is_kept(
    call: Any, plane: Any, context_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = context_file.read_text()
    for text, answer, code, said in (
        ("", None, 2, "standard input: has no token"),
        ("two words\n", None, 2, "standard input: has no token"),
        ("not.a.token\n", Unauthenticated("TOKEN_INVALID", "no"), 4, "the token is from standard input\n"),
        ("a.good.one\n", Unavailable("TRANSPORT_UNAVAILABLE", "no", metadata={"peer": "tenancy"}), 5, "reached"),
    ):
        plane.answers["WhoAmI"] = answer
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        outcome = call("login", "--token-stdin")
        assert (outcome.code, said in outcome.err) == (code, True), outcome
        assert context_file.read_text() == before
    plane.answers["WhoAmI"] = token_pb2.WhoAmIResponse(kind="user", name="bob", token={"id": "t", "user": "bob"})
    monkeypatch.setattr("sys.stdin", io.StringIO("a.good.one\n"))
    outcome = call("login", "--token-stdin")
    assert (outcome.code, "logged in as bob" in outcome.out) == (0, True)
    assert "a.good.one" not in outcome.out + outcome.err
    assert json.loads(context_file.read_text()) == json.loads(before) | {"token": "a.good.one"}


def test_a_token_of_the_environment_is_neither_kept_nor_ended(
    call: Any, plane: Any, context_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALPLANE_TOKEN", "of.the.environment")
    plane.answers |= {
        "WhoAmI": token_pb2.WhoAmIResponse(kind="user", name="bob", token={"id": TENANT, "user": "bob"}),
        "RevokeToken": token_pb2.Token(),
    }
    outcome = call("logout")
    assert (outcome.code, outcome.out) == (0, "logged out\n")
    assert "$METALPLANE_TOKEN is still set" in outcome.err
    assert [each.id for each in plane.requests("RevokeToken")] == [TENANT]
    assert "token" not in json.loads(context_file.read_text())


def test_logging_out_of_what_has_ended_tidies_up_and_an_outage_does_not(
    call: Any, plane: Any, context_file: Path
) -> None:
    plane.answers["WhoAmI"] = Unavailable("NO_DATABASE", "later")
    assert call("logout").code == 5
    assert "token" in json.loads(context_file.read_text()), "a token that may still hold is not lost sight of"
    plane.answers["WhoAmI"] = Unauthenticated("TOKEN_INVALID", "the token does not hold")
    outcome = call("logout")
    assert (outcome.code, outcome.out) == (0, "the token had ended before; it is out of the file\n")
    assert "token" not in json.loads(context_file.read_text())


def test_only_the_login_loads_an_http_client() -> None:
    """Every other command would wait for it."""
    seen = subprocess.run(
        [sys.executable, "-c", "import sys, metalctl.app; print(*sys.modules)"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert "metalctl.commands.login" in seen
    assert not {"aiohttp", "http.server", "urllib.request", "webbrowser", "metalctl.oidc.provider"} & set(seen)
