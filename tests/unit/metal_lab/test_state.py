"""The state directory: one lab at a time, sockets that fit, nobody else's files touched, damage told."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_lab import state as state_module
from metal_lab.state import OWN, LabInfo, State, StateInUse, StateUnusable, short, state_directory

SOCKET_PATH_LIMIT = 107  # unix(7): sun_path, less its closing zero
HOLD = """
import sys
from pathlib import Path
from metal_lab.state import State
with State(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "lab")


def hold(state: State) -> subprocess.Popen[str]:
    """Another process that holds the directory."""
    command = [sys.executable, "-c", HOLD, str(state.directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_directory_is_the_argument_else_the_variable_else_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METALPLANE_LAB", raising=False)
    assert state_directory() == Path.cwd() / ".lab"
    monkeypatch.setenv("METALPLANE_LAB", "/by/variable")
    assert state_directory() == Path("/by/variable")
    assert state_directory(Path("given")) == Path.cwd() / "given"


def test_a_directory_that_nobody_holds_has_no_holder(state: State) -> None:
    assert state.holder() == 0
    state.prepare()
    assert state.holder() == 0
    with state.lock():
        assert state.holder() == os.getpid()
    assert state.holder() == 0


def test_a_held_directory_is_refused_and_the_holder_is_named(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "LOCK_SECONDS", 0.05)
    other = hold(state)
    try:
        assert state.holder() == other.pid
        with pytest.raises(StateInUse, match=f"in use by process {other.pid}; `metal-lab down` ends it"), state.lock():
            pytest.fail("two labs in one directory")
        assert state.holder() == other.pid, "asking took nothing away"
    finally:
        other.communicate("")


def test_the_kernel_lets_go_when_the_holder_is_killed(state: State) -> None:
    other = hold(state)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert state.holder() == 0
    with state.lock():
        assert state.holder() == os.getpid()


def test_a_lock_without_a_readable_pid_is_held_all_the_same(state: State) -> None:
    with state.lock():
        for text in ("", "nonsense", "0"):
            state.path("lab.lock").write_text(text)
            assert state.holder() == -1


def test_directories_are_for_their_owner_only(state: State) -> None:
    state.prepare()
    state.secrets()
    assert stat.S_IMODE(state.sockets.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.path("log").stat().st_mode) == 0o700
    assert stat.S_IMODE(state.path("secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.write_context({"token": "t"}).stat().st_mode) == 0o600


@given(st.integers(1, 400), st.sampled_from(["/t", "/very/deep/directory/for/temporary/files/of/somebody/else"]))
def test_sockets_fit_however_deep_the_directory_is(length: int, temporary: str) -> None:
    state = State(Path("/" + "d" * length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", temporary)
        longest = state.sockets / short("x" * 63) / "redis.sock"
        assert len(os.fsencode(longest)) <= SOCKET_PATH_LIMIT
        assert len(os.fsencode(state.control_socket)) <= SOCKET_PATH_LIMIT
        assert state.sockets == State(state.directory).sockets, "every command finds the same"


def test_paths_are_measured_in_bytes_not_in_letters() -> None:
    state = State(Path("/" + "ü" * 40))
    assert len(os.fsencode(state.sockets / short("x" * 63) / "redis.sock")) <= SOCKET_PATH_LIMIT


def test_two_deep_directories_do_not_share_their_sockets() -> None:
    assert State(Path("/" + "d" * 200 + "/1")).sockets != State(Path("/" + "d" * 200 + "/2")).sockets


@given(st.lists(st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True), unique=True, max_size=20))
def test_shortened_names_differ(names: list[str]) -> None:
    shortened = [short(name) for name in names]
    assert len(set(shortened)) == len(names)
    assert all(len(name) <= 20 for name in shortened)


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A directory so deep that its sockets are among the temporary files, which others can write to."""
    monkeypatch.setattr(state_module, "MAX_TEMPORARY_PARENT", 500)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return State(tmp_path / ("d" * 100))


def test_sockets_of_a_deep_directory_are_made_elsewhere_and_deleted_with_it(deep: State) -> None:
    deep.prepare()
    assert deep.sockets.is_dir()
    assert deep.directory not in deep.sockets.parents
    deep.delete()
    assert not deep.sockets.exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720])
def test_a_socket_directory_that_others_can_enter_is_refused(deep: State, mode: int) -> None:
    deep.sockets.mkdir()
    deep.sockets.chmod(mode)
    with pytest.raises(StateUnusable, match="is not a directory of yours alone; remove it"):
        deep.prepare()
    assert "not a directory of yours alone" in deep.obstacle()


def test_a_socket_directory_of_somebody_else_is_refused(deep: State, monkeypatch: pytest.MonkeyPatch) -> None:
    deep.sockets.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: deep.directory.parent.stat().st_uid + 1)
    deep.sockets.mkdir(mode=0o700)  # the name has the user in it
    with pytest.raises(StateUnusable, match="is not a directory of yours alone"):
        deep.prepare()


def test_a_link_in_place_of_the_socket_directory_is_refused(deep: State, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    deep.sockets.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateUnusable, match="is not a directory of yours alone"):
        deep.prepare()
    deep.sockets.unlink()
    deep.sockets.write_text("a file")
    with pytest.raises(StateUnusable):
        deep.prepare()


def test_a_place_where_nothing_can_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "lab", Path("/proc/lab"), tmp_path / ("n" * 300)):
        with pytest.raises(StateUnusable, match="name another place with --state"):
            State(place).prepare()


def test_a_directory_with_somebody_elses_files_of_our_names_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpeg").write_text("precious")
    with pytest.raises(StateUnusable, match="no lab was made here, but there is images"):
        State(tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["images"], "nothing was written"


def test_a_start_that_was_cut_off_after_its_first_step_is_recognised(state: State) -> None:
    state.prepare()
    assert state.exists
    State(state.directory).prepare()


def test_delete_takes_what_a_lab_made_and_leaves_the_rest(state: State) -> None:
    state.prepare()
    state.secrets()
    state.ports(["a"])
    state.write_info(LabInfo(rack="r"))
    state.write_context({})
    (state.directory / ".ports.json.123").write_text("half")
    for name in OWN:
        if not state.path(name).exists():
            state.path(name).mkdir()
            (state.path(name) / "content").write_text("x")
    (state.directory / "notes.txt").write_text("mine")
    (state.directory / ".settings.json.bak").write_text("mine")
    assert state.delete() == [".settings.json.bak", "notes.txt"]
    assert sorted(path.name for path in state.directory.iterdir()) == [".settings.json.bak", "notes.txt"]
    assert state.delete() == [".settings.json.bak", "notes.txt"], "again is harmless"


def test_delete_does_not_follow_links_out_of_the_directory(state: State, tmp_path: Path) -> None:
    state.prepare()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    state.path("images").symlink_to(outside)
    assert state.delete() == []
    assert not state.directory.exists()
    assert (outside / "file").read_text() == "mine"
    assert state.delete() == [], "a directory that is gone is no error"


def test_ports_are_chosen_once_and_new_names_get_more(state: State) -> None:
    state.prepare()
    first = state.ports(["a", "b"])
    again = State(state.directory).ports(["b", "c", "a"])
    assert {name: again[name] for name in first} == first
    assert len(set(again.values())) == 3
    assert state.known_ports() == again


def test_secrets_are_made_once_and_fit_a_bmc(state: State) -> None:
    state.prepare()
    made = state.secrets()
    assert State(state.directory).secrets() == made
    assert len(made["bmc_password"]) == 16
    assert len(bytes.fromhex(made["bmc_key"])) == 32
    assert len(set(made.values())) == len(made)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "\x00", '{"a": ' + "[" * 100_000])
@pytest.mark.parametrize("name", ["ports.json", "secrets.json"])
def test_damage_to_what_the_rest_depends_on_is_told_and_left_as_it_is(state: State, name: str, text: str) -> None:
    state.prepare()
    state.path(name).write_text(text)
    with pytest.raises(StateUnusable, match=f"{name} is not .*metal-lab destroy --yes"):
        state.ports(["a"]) if name == "ports.json" else state.secrets()
    assert state.path(name).read_text() == text


@pytest.mark.parametrize("port", ["x", "80", 0, -1, 65536, 80.5, True, None, [80]])
def test_ports_that_are_none_are_told(state: State, port: object) -> None:
    state.prepare()
    state.path("ports.json").write_text(json.dumps({"a": port}))
    with pytest.raises(StateUnusable, match="does not give each name a port"):
        state.ports(["a"])


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "\x00"])
def test_damage_to_what_is_written_at_each_start_is_as_good_as_nothing(state: State, text: str) -> None:
    state.prepare()
    for name in ("lab.json", "context.json"):
        state.path(name).write_text(text)
    assert state.info() is None
    assert state.context() is None


def test_a_later_versions_fields_in_the_info_are_passed_over(state: State) -> None:
    state.prepare()
    state.write_info(LabInfo(pid=7, rack="r", endpoints={"ipam": "127.0.0.1:1"}))
    content = json.loads(state.path("lab.json").read_text()) | {"colour": "red"}
    state.path("lab.json").write_text(json.dumps(content))
    assert state.info() == LabInfo(pid=7, rack="r", endpoints={"ipam": "127.0.0.1:1"})


def test_a_rack_file_is_kept_and_keeping_the_kept_one_changes_nothing(state: State, tmp_path: Path) -> None:
    source = tmp_path / "any.yaml"
    source.write_text("name: größe")
    kept = state.keep_rack_file(source)
    assert kept.read_text(encoding="utf-8") == "name: größe"
    assert state.keep_rack_file(kept) == kept
    assert kept.read_text(encoding="utf-8") == "name: größe"
    assert not [path for path in state.directory.iterdir() if path.name.startswith(".rack")]
