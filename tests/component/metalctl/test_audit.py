"""`metalctl audit` against tenancy as it runs: what was done is listed, and what was tampered with is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from metalctl.commands.audit import ServiceName
from metalctl.context import SERVICES

LIST = ["audit", "list", "-o", "json"]


@pytest.fixture
async def used(tenancy: Any, new_context: Any, metalctl: Any) -> Any:
    """A tenancy in which something has been done; its context."""
    context = new_context(tenancy.running.address, tenancy.secret)
    done = await metalctl(
        context,
        ["tenant", "create", "acme"],
        ["project", "create", "web", "--tenant", "acme"],
        ["project", "set-member", "web", "bob", "editor"],
        ["project", "delete", "0198c1d2-0000-7000-8000-00000000dead"],
        ["tenant", "list"],
    )
    assert [each.code for each in done] == [0, 0, 0, 3, 0], [each.err for each in done]
    return context


async def tamper(url: str, *statements: str) -> None:
    """What a superuser can do with the triggers switched off."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET session_replication_role = replica; SET search_path = tenancy")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def test_every_service_with_an_address_can_be_chosen() -> None:
    assert {each.value for each in ServiceName} == set(SERVICES) - {"boot"}, "inventory keeps boot's"


async def test_what_was_done_is_listed_and_found_by_who_what_and_when(used: Path, metalctl: Any) -> None:
    all_, project, caller, outcome, past, limited, table = await metalctl(
        used,
        LIST,
        [*LIST, "--project", "web"],
        [*LIST, "--caller", "user:nobody"],
        [*LIST, "--outcome", "not_found"],
        [*LIST, "--until", "1h"],
        [*LIST, "--since", "1h", "--limit", "2", "--service", "tenancy"],
        ["audit", "list"],
    )
    methods = [each["entry"]["method"].rpartition("/")[2] for each in all_.json()]
    assert methods == ["DeleteProject", "SetProjectMember", "CreateProject", "CreateTenant"]
    newest = all_.json()[0]["entry"]
    assert (newest["caller"], newest["peer"], newest["code"]) == ("user:root", "127.0.0.1", "NOT_FOUND")
    assert project.json()[0]["entry"]["object"] == "bob"
    assert len(project.json()) == 2
    assert (caller.json(), past.json()) == ([], [])
    assert [each["sequence"] for each in outcome.json()] == [all_.json()[0]["sequence"]]
    assert [each["sequence"] for each in limited.json()] == [each["sequence"] for each in all_.json()[:2]]
    lines = table.out.splitlines()
    assert lines[0].split() == ["TIME", "CALLER", "FROM", "METHOD", "OBJECT", "PROJECT", "OUTCOME", "REQUEST"]
    assert len(lines) == 5


async def test_who_has_a_project_sees_what_was_done_with_it_and_no_more(
    tenancy: Any, used: Path, new_context: Any, metalctl: Any
) -> None:
    made = await metalctl(
        used,
        ["-o", "json", "token", "create", "--user", "olga", "--project", "web=owner"],
        ["-o", "json", "token", "create", "--user", "eddi", "--project", "web=editor"],
    )
    owner, editor = (new_context(tenancy.running.address, each.json()["secret"]) for each in made)
    seen, everything, chain = await metalctl(owner, [*LIST, "--project", "web"], ["audit", "list"], ["audit", "verify"])
    assert {each["entry"]["method"].rpartition("/")[2] for each in seen.json()} >= {"CreateProject", "SetProjectMember"}
    assert (everything.code, chain.code) == (2, 4)
    assert "project" in everything.err
    [refused] = await metalctl(editor, [*LIST, "--project", "web"])
    assert refused.code == 4
    assert "owner" in refused.err


async def test_a_chain_that_is_whole_is_verified_and_its_head_noted(used: Path, metalctl: Any, tmp_path: Path) -> None:
    noted = tmp_path / "anchors.json"
    first, again, told = await metalctl(
        used,
        ["audit", "verify", "--anchor", str(noted)],
        ["audit", "verify", "--anchor", str(noted)],
        ["audit", "verify", "-o", "json"],
    )
    assert (first.code, again.code) == (0, 0)
    assert first.out.splitlines()[0].split()[:2] == ["SERVICE", "ENTRIES"]
    [row] = told.json()
    assert (row["service"], row["verdict"], row["broken_at"]) == ("tenancy", "whole", None)
    assert json.loads(noted.read_text())["tenancy"]["hash"] == row["hash"]
    assert noted.stat().st_mode & 0o777 == 0o600


async def test_a_row_that_a_superuser_edits_is_found_with_its_number(tenancy: Any, used: Path, metalctl: Any) -> None:
    await tamper(
        tenancy.url,
        "UPDATE audit_entry SET entry = overlay(entry PLACING 'adam' FROM position('root' IN entry)) "
        "WHERE sequence = 3",
    )
    verified, as_json = await metalctl(used, ["audit", "verify"], ["audit", "verify", "-o", "json"])
    assert verified.code == 1
    assert "metalctl: the audit log of tenancy is broken at entry 3" in verified.err
    assert "broken at entry 3: the hash does not fit" in verified.out
    assert as_json.code == 1
    assert json.loads(as_json.out)[0]["broken_at"] == 3


async def test_a_tail_that_was_cut_off_is_found_by_its_anchor_which_is_kept(
    tenancy: Any, used: Path, metalctl: Any, tmp_path: Path
) -> None:
    noted = tmp_path / "anchors.json"
    [before] = await metalctl(used, ["audit", "verify", "--anchor", str(noted)])
    assert before.code == 0
    evidence = noted.read_text()
    await tamper(
        tenancy.url,
        "DELETE FROM audit_entry WHERE sequence > 4",
        "UPDATE audit_chain SET (head_sequence, head_hash) = "
        "(SELECT sequence, hash FROM audit_entry WHERE sequence = 4)",
    )
    without, with_anchor = await metalctl(used, ["audit", "verify"], ["audit", "verify", "--anchor", str(noted)])
    assert without.code == 0, "by itself the chain is whole"
    assert with_anchor.code == 1
    assert "the chain ends at 4; when the anchor was noted it went to" in with_anchor.out
    assert noted.read_text() == evidence


async def test_wrong_input_is_named_and_asks_nobody(used: Path, metalctl: Any, tmp_path: Path) -> None:
    broken = tmp_path / "anchors.json"
    broken.write_text('["none"]')
    since, service, anchor = await metalctl(
        used,
        ["audit", "list", "--since", "yesterday"],
        ["audit", "list", "--service", "boot"],
        ["audit", "verify", "--anchor", str(broken)],
    )
    assert (since.code, service.code, anchor.code) == (2, 2, 2)
    assert "--since yesterday: write an age such as" in since.err
    assert "holds no anchors of audit chains" in anchor.err
