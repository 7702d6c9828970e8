"""Which context is taken, and what is said of one that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from metalctl.context import ContextError, load

NAMES = ("ca.crt", "tls.crt", "tls.key")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a working directory without contexts."""
    for variable in ("METALPLANE_CONTEXT", "METALPLANE_TOKEN", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (path.parent / name).write_text("-----BEGIN CERTIFICATE-----\n")
    content = {"endpoints": {"ipam": "127.0.0.1:1"}, "ca": NAMES[0], "cert": NAMES[1], "key": NAMES[2], "token": "t"}
    path.write_text(json.dumps({name: value for name, value in (content | changes).items() if value is not None}))
    path.chmod(0o600)
    return path


def test_without_any_context_the_places_and_the_remedy_are_named() -> None:
    with pytest.raises(ContextError, match=r"\.lab/context\.json and .*/\.config/metalplane/context\.json; .*make lab"):
        load(None)


def test_the_first_context_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = write(tmp_path / "home" / ".config" / "metalplane" / "context.json", name="home")
    assert load(None).name == "home"
    moved = write(tmp_path / "xdg" / "metalplane" / "context.json", name="xdg")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert load(None).path == moved
    write(tmp_path / ".lab" / "context.json", name="lab")
    assert load(None).name == "lab"
    monkeypatch.setenv("METALPLANE_CONTEXT", str(home))
    assert load(None).name == "home"
    assert load(moved).name == "xdg"


def test_a_context_that_was_named_is_not_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / ".lab" / "context.json")
    monkeypatch.setenv("METALPLANE_CONTEXT", str(tmp_path / "gone.json"))
    with pytest.raises(ContextError, match=r"gone\.json: cannot be read: No such file"):
        load(None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1]", "has to be a JSON object"),
        (b"null", "has to be a JSON object"),
    ],
)
def test_a_corrupt_file_is_told_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ContextError, match=said) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_directory_is_no_context(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token": None}, "lacks token"),
        ({"token": ""}, "lacks token"),
        ({"ca": None, "key": None}, "lacks ca, key"),
        ({"endpoints": None}, "lacks endpoints"),
        ({"endpoints": {}}, "lacks endpoints"),
        ({"endpoints": ["ipam"]}, "endpoints: has to be an object"),
        ({"endpoints": "127.0.0.1:1"}, "endpoints: has to be an object"),
        ({"endpoints": {"ipam": "127.0.0.1"}}, r"endpoints\.ipam: '127\.0\.0\.1' must be host:port"),
        ({"endpoints": {"ipam": "127.0.0.1:0"}}, r"endpoints\.ipam: port of .* from 1 to 65535"),
        ({"endpoints": {"ipam": None}}, r"endpoints\.ipam: "),
        ({"token": "two words"}, "token: has characters that no token has"),
        ({"token": "a\nb"}, "token: has characters that no token has"),
        ({"token": "ключ"}, "token: has characters that no token has"),
        ({"ca": "gone.crt"}, r"ca: .*gone\.crt: No such file"),
        ({"key": "context.json"}, r"key: .*context\.json: is not a PEM file"),
    ],
)
def test_what_is_wrong_in_a_context_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "context.json", **changes)
    with pytest.raises(ContextError, match=said) as refused:
        load(path)
    assert str(refused.value).startswith(str(path))


def test_files_are_looked_for_beside_the_context(tmp_path: Path) -> None:
    context = load(write(tmp_path / "deep" / "context.json"))
    assert context.cert == tmp_path / "deep" / "tls.crt"
    assert load(write(tmp_path / "context.json", cert=str(context.cert))).cert == context.cert


def test_the_environments_token_goes_before_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "context.json", token=None)
    monkeypatch.setenv("METALPLANE_TOKEN", "other.token\n")
    context = load(path)
    assert (context.token, context.token_source) == ("other.token", "$METALPLANE_TOKEN")
    monkeypatch.setenv("METALPLANE_TOKEN", "")
    with pytest.raises(ContextError, match="lacks token"):
        load(path)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_token_that_others_can_read_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, warned: bool
) -> None:
    path = write(tmp_path / "context.json")
    path.chmod(mode)
    warning = load(path).warning
    assert bool(warning) == warned
    if warned:
        assert warning == f"{path} has a token that others can read (mode {mode:04o}); chmod 600 it"
    monkeypatch.setenv("METALPLANE_TOKEN", "other")
    assert load(path).warning == "", "the file's token is not used"


def test_a_context_does_not_show_its_token(tmp_path: Path) -> None:
    assert "very.secret" not in repr(load(write(tmp_path / "context.json", token="very.secret")))


def test_the_warning_is_printed_beside_the_result(call: Any, plane: Any, context_file: Path) -> None:
    from metalplane.tenancy.v1 import tenant_pb2

    plane.answers["ListTenants"] = tenant_pb2.ListTenantsResponse()
    context_file.chmod(0o644)
    outcome = call("tenant", "list", "--context", str(context_file), "-o", "json")
    assert (outcome.code, outcome.out) == (0, "[]\n")
    assert outcome.err.startswith("metalctl: warning: ")
    assert outcome.err.count("\n") == 1
