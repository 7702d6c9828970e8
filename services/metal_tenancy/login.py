"""Logging in at the provider: an ID token against one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from metal_kit.errors import FailedPrecondition, Unauthenticated
from metal_kit.logs import get_logger

from metal_tenancy.issuing import Issuer, Wish
from metal_tenancy.oidc.id_token import read_header, verify
from metal_tenancy.oidc.keys import ProviderKeys
from metal_tenancy.oidc.provider import Provider
from metal_tenancy.roles import Grants
from metal_tenancy.store import TokenRow

log = get_logger(__name__)


@dataclass(slots=True)
class Login:
    """Exchanges ID tokens of one provider, each of them once."""

    issuer: Issuer
    provider: Provider
    keys: ProviderKeys
    lifetime: timedelta

    async def exchange(self, id_token: str, nonce: str) -> tuple[TokenRow, str]:
        """A token for whom the ID token is about, and its secret.

        Raises Unauthenticated when it does not hold or was exchanged before, PermissionDenied when it names nobody
        usable, Unavailable while the provider's keys are not known, ResourceExhausted for too many logins.
        """
        keys = await self.keys.meant_by(read_header(id_token))
        now = self.issuer.clock.now()
        found = verify(id_token, keys, self.provider, nonce=nonce, now=now)
        user, plane = self.provider.user(found.claims), self.provider.plane_role(found.claims)
        expires = now + self.lifetime
        wish = Wish(
            user,
            Grants(plane=plane),
            now,
            expires,
            description="login",
            creator=f"oidc:{self.provider.issuer}",
            login=True,
            plane_until=expires,
        )
        async with self.issuer.db.transaction(purpose="log in") as conn:
            if not await self.issuer.tokens.exchange(conn, found.digest, found.useless_after):
                raise Unauthenticated("ID_TOKEN_USED", "the ID token was exchanged before; log in again")
            await self.issuer.check_room(conn, user, login=True)
            row, secret = await self.issuer.issue(conn, wish)
        log.info("login", user=user, token_id=row.id, plane_role=plane, subject=str(found.claims["sub"])[:256])
        return row, secret


def not_configured() -> FailedPrecondition:
    """What a plane without a provider answers."""
    return FailedPrecondition("NO_PROVIDER", "this plane has no identity provider; ask an operator for a token")
