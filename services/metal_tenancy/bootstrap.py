"""The first operator's token: made from the service's own settings, where nobody could be asked for leave yet."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

from metal_kit.clock import Clock
from metal_kit.db import Database, DatabaseUnreachable
from metal_kit.migrations import MigrationError, migrate
from metal_kit.process import StartError, run

from metal_tenancy.issuing import Issuer, Wish
from metal_tenancy.roles import OPERATOR, Grants
from metal_tenancy.service import Settings, load_signer

MOST_HOURS = 24 * 366.0
LEAST_HOURS = 1 / 60
LONGEST_USER = 256


async def operator_token(settings: Settings, *, user: str, lifetime: timedelta, description: str) -> str:
    """Make a token with the role of plane operator. Needs the database and the signing key, and so their owner.

    Raises StartError when one of them cannot be used.
    """
    signer = load_signer(settings)
    try:
        await migrate(settings.database_url, "tenancy", "metal_tenancy")
        db = await Database.open(settings.database_url, "tenancy", max_size=2)
    except DatabaseUnreachable as error:
        raise StartError(str(error), os.EX_UNAVAILABLE) from error
    except MigrationError as error:
        raise StartError(str(error)) from error
    try:
        issuer = Issuer(db, signer, Clock())
        # No limit of number: whoever has too many tokens needs this one to revoke them.
        now = issuer.clock.now()
        wish = Wish(
            user,
            Grants(plane=OPERATOR),
            now,
            now + lifetime,
            description=description,
            creator="bootstrap",
            by_operator=True,
        )
        async with db.transaction(purpose="make the first token") as conn:
            _, secret = await issuer.issue(conn, wish)
    finally:
        await db.close()
    return secret


def command(arguments: Sequence[str]) -> NoReturn:
    """`metal-tenancy bootstrap [--user NAME] [--hours N]`: prints the token, once, on standard output."""
    parser = argparse.ArgumentParser(prog="metal-tenancy bootstrap", description=__doc__)
    parser.add_argument("--user", default="admin", help="user that the token speaks for (admin)")
    parser.add_argument("--hours", type=float, default=8.0, help="hours that the token holds (8)")
    options = parser.parse_args(arguments)
    if not LEAST_HOURS <= options.hours <= MOST_HOURS:
        parser.error(f"--hours has to be a minute to a year: {LEAST_HOURS:.3f} to {MOST_HOURS:.0f}")
    if not 1 <= len(options.user) <= LONGEST_USER:
        parser.error(f"--user has to have 1 to {LONGEST_USER} characters")

    async def body(settings: Settings, _stopping: asyncio.Event) -> None:
        if not settings.database_url:
            raise StartError("METALPLANE_DATABASE_URL is not set")
        lifetime = timedelta(hours=options.hours)
        secret = await operator_token(settings, user=options.user, lifetime=lifetime, description="bootstrap")
        sys.stdout.write(secret + "\n")

    run("metal-tenancy bootstrap", Settings, body)
