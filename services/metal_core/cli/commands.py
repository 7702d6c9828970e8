"""What each command does; every one answers an exit code."""

from __future__ import annotations

import argparse
import asyncio
import sys

from metal_core.cli import tell
from metal_core.cli.failure import DIFFERS, HELD, REFUSED, USAGE, CommandFailed
from metal_core.cli.look import Preview, preview, view, vtep_of
from metal_core.cli.parser import file_of
from metal_core.cli.printing import note, print_json, print_lines
from metal_core.cli.retry import retry
from metal_core.cli.status import show_status
from metal_core.cli.wish import Wish, read_file, remembered
from metal_core.configdb import render
from metal_core.desired import to_json
from metal_core.frr.render import render as render_frr
from metal_core.leaf import Leaf
from metal_core.lock import LockHeld


async def run(leaf: Leaf, options: argparse.Namespace) -> int:
    """Carry out one command. Raises CommandFailed."""
    match options.command:
        case "render":
            return await _render(leaf, options)
        case "diff":
            return await _diff(leaf, options)
        case "plan":
            return await _change(leaf, options, await _wish(leaf, options), dry_run=True)
        case "apply":
            return await _change(leaf, options, await _wish(leaf, options), dry_run=options.dry_run)
        case "rollback":
            return await _change(leaf, options, await _way_back(leaf, options), dry_run=options.dry_run)
        case "retry":
            return await retry(leaf, options)
        case _:
            return await show_status(leaf, options)


async def _render(leaf: Leaf, options: argparse.Namespace) -> int:
    if options.only and options.output == "json":
        raise CommandFailed("--only and -o json do not go together: rows are JSON already, FRR's text is none", USAGE)
    desired = (await _wish(leaf, options)).desired
    text = render_frr(desired, leaf.frr.backend).text()
    if options.only == "frr":
        sys.stdout.write(text)
        return 0
    vtep = options.vtep or (await vtep_of(leaf.sonic) if desired.vrfs else "")
    if desired.vrfs and not vtep:
        raise CommandFailed("CONFIG_DB does not have exactly one VXLAN_TUNNEL row; name the tunnel by --vtep", REFUSED)
    rows = render(desired, vtep)
    if options.output == "json":
        print_json({"desired": to_json(desired), "configdb": rows, "frr": text})
    elif options.only == "configdb":
        print_json(_by_table(rows))
    else:
        print_lines([f"{key} {' '.join(f'{k}={v}' for k, v in row.items())}".rstrip() for key, row in rows.items()])
        print_lines(["", text.rstrip("\n")])
    return 0


async def _diff(leaf: Leaf, options: argparse.Namespace) -> int:
    wish = await _wish(leaf, options)
    found = (await preview(leaf, await view(leaf, wish.desired), wish.desired)).differences
    if options.output == "json":
        print_json(tell.differences_json(found))
    else:
        print_lines(tell.differences_text(found))
        note(f"{len(found.rows)} fields or rows and {len(found.lines)} lines differ from {wish.origin}")
    return DIFFERS if found else 0


async def _change(leaf: Leaf, options: argparse.Namespace, wish: Wish, *, dry_run: bool) -> int:
    if dry_run:
        found = await preview(leaf, await view(leaf, wish.desired), wish.desired)
        _show_plan(options, found, wish)
        return REFUSED if found.findings else 0
    try:
        # Held from the first look on: what is shown is what is then done.
        with leaf.lock.held(f"metal-core {options.command}"):
            return await _carry_out(leaf, options, wish)
    except LockHeld as held:
        raise CommandFailed(
            f"{held} holds this leaf and would change it back; stop it first, or use --dry-run", HELD
        ) from held
    except OSError as error:
        raise CommandFailed(f"{leaf.lock.path}: {error.strerror}; METALPLANE_STATE_DIRECTORY", REFUSED) from error


async def _carry_out(leaf: Leaf, options: argparse.Namespace, wish: Wish) -> int:
    found = await preview(leaf, await view(leaf, wish.desired), wish.desired)
    if found.findings:
        _show_plan(options, found, wish)
        return REFUSED
    outcome = await leaf.applier.apply(wish.desired)
    if options.output == "json":
        print_json(
            {
                "applied": outcome.applied,
                "error": outcome.error,
                "notes": list(outcome.notes),
                "rows": outcome.changed,
                "frr_commands": outcome.frr_commands,
                "seconds": dict(outcome.durations),
            }
        )
    elif outcome.applied:
        print_lines([f"note: {note}" for note in outcome.notes])
        print_lines(
            [f"The leaf has {wish.origin}: {outcome.changed} rows changed, {outcome.frr_commands} lines for FRR."]
        )
    if not outcome.applied:
        raise CommandFailed(f"not applied: {outcome.error}", REFUSED)
    return 0


def _show_plan(options: argparse.Namespace, found: Preview, wish: Wish) -> None:
    if options.output == "json":
        print_json(tell.plan_json(found))
        return
    if found.findings:
        for finding in found.findings:
            note(f"refused: {finding}")
        note(f"nothing would be done for {wish.origin}")
    elif found.nothing_to_do:
        print_lines([f"Nothing to do: the leaf has {wish.origin}."])
    else:
        print_lines(tell.plan_text(found))


async def _wish(leaf: Leaf, options: argparse.Namespace) -> Wish:
    if not options.wish:
        return await remembered(leaf.known_good)
    memory = await leaf.known_good.load()
    return await asyncio.to_thread(read_file, file_of(options.wish), memory)


async def _way_back(leaf: Leaf, options: argparse.Namespace) -> Wish:
    if options.previous:
        return await remembered(leaf.known_good.previous, "known good state before the last one")
    return await remembered(leaf.known_good)


def _by_table(rows: dict[str, dict[str, str]]) -> dict[str, dict[str, dict[str, str]]]:
    """The rows as config_db.json has them."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for key, row in rows.items():
        table, _, name = key.partition("|")
        tables.setdefault(table, {})[name] = row
    return tables
