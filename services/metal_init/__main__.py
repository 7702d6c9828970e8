"""`metal-init`, `python -m metal_init`: makes what a plane in containers needs before its first service starts.

metal-init plane [--renew]          folders of secrets for every container; run it again to renew certificates
metal-init database                 a database role for each service
metal-init partition NAME           folders for the bmc and boot services of one more partition
metal-init authority STEP            another authority, step by step: next, switch, retire
metal-init leaf PARTITION HOST      certificate of a leaf's agent, as a tar archive on standard output
metal-init client NAME              certificate of a person's tools, the same way
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from metal_init import database, files, handout, partition, plane, rollover
from metal_init.certificates import AUTHORITY, Certificates
from metal_init.settings import Settings, checked_label


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="metal-init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_ in (("plane", "folders of secrets"), ("partition", "folders for one more partition")):
        each = sub.add_parser(name, help=help_)
        each.add_argument("--renew", action="store_true", help="issue every certificate anew")
        if name == "partition":
            each.add_argument("name")
            each.add_argument("--into", type=Path, default=Path("/partition"), help="where its folders go (/partition)")
    sub.add_parser("database", help="a database role for each service")
    authority = sub.add_parser("authority", help="another authority for the plane, step by step")
    authority.add_argument("step", choices=[step.value for step in rollover.Step])
    leaf = sub.add_parser("leaf", help="certificate of a leaf's agent")
    leaf.add_argument("partition")
    leaf.add_argument("host")
    sub.add_parser("client", help="certificate of a person's tools").add_argument("name")
    return top


def main() -> None:
    """Run one command. Exit codes: 69 for a server or directory that is not there, 78 for wrong settings."""
    options = parser().parse_args()
    try:
        settings = Settings()
        if options.command == "database":
            _database(settings)
        else:
            with files.locked(settings.root / AUTHORITY):
                _with_authority(settings, options)
    except ValidationError as error:
        faults = [
            f"METALPLANE_INIT_{'__'.join(str(part) for part in each['loc']).upper()}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        _exit("; ".join(faults), os.EX_CONFIG)
    except (ValueError, partition.NoPlane, rollover.OutOfOrder) as error:
        _exit(str(error), os.EX_CONFIG)
    except OSError as error:
        _exit(f"{error.filename}: {error.strerror}" if error.filename else str(error), os.EX_UNAVAILABLE)
    except database.DatabaseRefused as error:
        _exit(str(error), os.EX_UNAVAILABLE)


def _with_authority(settings: Settings, options: argparse.Namespace) -> None:
    if options.command == "authority":
        sys.stdout.write(f"{rollover.take(rollover.Step(options.step), settings.root)}\n")
        return
    certificates = Certificates(settings.root, settings.lifetime, renew=getattr(options, "renew", False))
    match options.command:
        case "plane":
            _say(plane.set_up(settings, certificates))
        case "partition":
            name = checked_label(options.name, what="a partition")
            settings = settings.model_copy(update={"partition": name})
            _say(partition.set_up(settings, certificates, options.into))
        case "leaf":
            place = checked_label(options.partition, what="a partition")
            _hand_out(handout.leaf(certificates, place, checked_label(options.host, what="a leaf")))
        case _:
            _hand_out(handout.client(certificates, _client_name(options.name)))


def _client_name(text: str) -> str:
    if text in plane.OWN_CLIENTS:
        raise ValueError(f"{text!r} is a part of the plane; name the client after who uses it")
    return checked_label(text, what="a client")


def _database(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    passwords = {name: secret.get_secret_value() for name, secret in settings.database_roles.items()}
    if not url or not passwords:
        raise ValueError("METALPLANE_INIT_DATABASE_URL and METALPLANE_INIT_DATABASE_ROLES have to be set")
    made = asyncio.run(database.make_roles(url, passwords))
    sys.stdout.write(f"roles made: {', '.join(made) or 'none, all were there'}\n")


def _say(issued: list[str]) -> None:
    sys.stdout.write(f"certificates issued: {', '.join(issued) or 'none, all are good'}\n")


def _hand_out(archive: bytes) -> None:
    if sys.stdout.isatty():
        raise ValueError("standard output is a terminal: pipe it into `tar -x`, the archive holds a private key")
    sys.stdout.buffer.write(archive)
    sys.stdout.flush()


def _exit(line: str, code: int) -> NoReturn:
    sys.stderr.write(f"metal-init: {line}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
