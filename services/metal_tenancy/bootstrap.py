"""The first operator's token: made from the service's own settings, where nobody could be asked for leave yet."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.db import Database
from metal_kit.migrations import migrate

from metal_tenancy.issuing import Issuer
from metal_tenancy.roles import OPERATOR, Grants
from metal_tenancy.service import Settings
from metal_tenancy.signing import Signer


async def operator_token(settings: Settings, *, user: str, lifetime: timedelta, description: str) -> str:
    """Make a token with the role of plane operator. Needs the database and the signing key, and so their owner."""
    await migrate(settings.database_url, "tenancy", "metal_tenancy")
    db = await Database.open(settings.database_url, "tenancy", max_size=2)
    try:
        issuer = Issuer(db, Signer.load(settings.token_key), Clock())
        _, secret = await issuer.issue(
            user,
            Grants(plane=OPERATOR),
            lifetime,
            description=description,
            creator="bootstrap",
            by_operator=True,
        )
    finally:
        await db.close()
    return secret


def command(arguments: Sequence[str]) -> None:
    """`metal-tenancy bootstrap [--user NAME] [--hours N]`: prints the token, once."""
    parser = argparse.ArgumentParser(prog="metal-tenancy bootstrap", description=__doc__)
    parser.add_argument("--user", default="admin", help="user that the token speaks for (admin)")
    parser.add_argument("--hours", type=float, default=8.0, help="hours that the token holds (8)")
    options = parser.parse_args(arguments)
    if not 0 < options.hours <= 24 * 366:
        parser.error("--hours has to be above 0 and at most 8784")
    secret = asyncio.run(
        operator_token(Settings(), user=options.user, lifetime=timedelta(hours=options.hours), description="bootstrap")
    )
    sys.stdout.write(secret + "\n")
