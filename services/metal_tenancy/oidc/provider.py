"""The provider as it is configured, and what its words mean on this plane. Pure.

The provider says who somebody is; what he may do is said here, by memberships of the name that he gets. Its names are
put behind a prefix, so that nobody can register as `admin` there and be `admin` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from metal_kit.errors import PermissionDenied

from metal_tenancy.roles import OPERATOR, VIEWER

LONGEST_USER = 256
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True, slots=True)
class Provider:
    """One OpenID provider.

    `audiences` are the client ids whose ID tokens count, `client_id` among them. `user_claim` holds the user's name and
    `groups_claim` his groups; who is in one of `operator_groups` or `viewer_groups` has that role on the plane for the
    length of his token.
    """

    issuer: str
    client_id: str
    audiences: frozenset[str]
    scopes: tuple[str, ...]
    user_claim: str
    user_prefix: str
    groups_claim: str
    operator_groups: frozenset[str]
    viewer_groups: frozenset[str]
    without_nonce: bool = False

    def user(self, claims: Mapping[str, Any]) -> str:
        """The plane's name for whom the claims are about. Raises PermissionDenied when they name nobody usable.

        An e-mail address counts only when the provider has verified it: others are what their bearers wrote there.
        """
        name = claims.get(self.user_claim)
        if not isinstance(name, str) or not name:
            raise PermissionDenied("NO_USER_NAME", f"the ID token has no claim {self.user_claim!r} with your name")
        if self.user_claim == "email" and claims.get("email_verified") is not True:
            raise PermissionDenied("EMAIL_NOT_VERIFIED", "your provider has not verified your e-mail address")
        user = self.user_prefix + name
        if len(user) > LONGEST_USER or not name.isprintable() or any(char.isspace() for char in name):
            raise PermissionDenied(
                "NO_USER_NAME",
                f"the claim {self.user_claim!r} is no name here: too long, or with spaces or invisible characters",
            )
        return user

    def plane_role(self, claims: Mapping[str, Any]) -> int:
        """The role on the plane that the user's groups give; 0 for none."""
        groups = _texts(claims.get(self.groups_claim))
        if groups & self.operator_groups:
            return OPERATOR
        return VIEWER if groups & self.viewer_groups else 0


def check_url(url: str) -> str:
    """The URL, when what comes from there can be trusted. Raises ValueError: it must be https, except on this host."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must be a URL with a host, without user, query and fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError(f"{url!r} must be https (http is for a provider on this host only)")
    return url


def discovery_url(issuer: str) -> str:
    """Where the provider describes itself (OpenID Connect Discovery 1.0, section 4.1)."""
    return issuer.removesuffix("/") + "/.well-known/openid-configuration"


def _texts(value: Any) -> frozenset[str]:
    """Strings of a claim that is one or a list of them; anything else has none."""
    if isinstance(value, str):
        return frozenset({value})
    return frozenset(each for each in value if isinstance(each, str)) if isinstance(value, list) else frozenset()
