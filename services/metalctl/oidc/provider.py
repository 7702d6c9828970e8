"""The provider: what it says of itself, and one request to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

TIMEOUT = 10.0
MOST_BYTES = 256 * 1024
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class LoginError(Exception):
    """The login did not come about; the text says why. `refused` when the provider or the person said no."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


class ProviderUnreachable(LoginError):
    """The provider cannot be spoken to, now."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the discovery document names; `device` is empty where the provider has no device flow."""

    issuer: str
    authorization: str
    token: str
    device: str


def discover(issuer: str) -> Endpoints:
    """The provider's endpoints (OpenID Connect Discovery 1.0, section 4). Raises LoginError."""
    document = request(_safe(issuer, "issuer").removesuffix("/") + "/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        raise LoginError(f"{issuer} says that it is {str(document.get('issuer'))[:200]!r}; the plane is set up wrongly")
    device = document.get("device_authorization_endpoint")
    return Endpoints(
        issuer=issuer,
        authorization=_safe(document.get("authorization_endpoint"), "authorization_endpoint"),
        token=_safe(document.get("token_endpoint"), "token_endpoint"),
        device=_safe(device, "device_authorization_endpoint") if device else "",
    )


def request(url: str, form: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    """Get a JSON object, or post a form and get one. An OAuth error (RFC 6749, section 5.2) is an answer with `error`.

    Raises ProviderUnreachable, or LoginError for an answer that is neither.
    """
    data = urlencode(form).encode() if form is not None else None
    asked = Request(_safe(url, "address"), data, {"Accept": "application/json"})  # noqa: S310 - https, or this host
    handlers: list[Any] = [_NoDetour]
    if urlsplit(url).hostname in _LOOPBACK:
        handlers.append(ProxyHandler({}))
    try:
        with build_opener(*handlers).open(asked, timeout=TIMEOUT) as response:
            status, body = response.status, response.read(MOST_BYTES + 1)
    except HTTPError as error:
        with error:
            status, body = error.code, error.read(MOST_BYTES + 1)
    except (OSError, HTTPException) as error:
        raise ProviderUnreachable(f"{url}: {getattr(error, 'reason', '') or error or type(error).__name__}") from error
    if status >= 500:
        raise ProviderUnreachable(f"{url} answers {status}")
    try:
        content = json.loads(body) if len(body) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or (status != 200 and "error" not in content):
        raise LoginError(f"{url} answers {status}, and not as an OpenID provider does")
    return content


def said(answer: Mapping[str, Any]) -> str:
    """An OAuth error in the provider's words."""
    words = (answer.get("error"), answer.get("error_description"))
    return ": ".join(str(word)[:200] for word in words if word)


def id_token_of(answer: Mapping[str, Any], nonce: str, *, may_lack_nonce: bool = False) -> tuple[str, str]:
    """The ID token of a token response, and the nonce to send along. Raises LoginError.

    The plane verifies it. Here it is only looked whether it is an answer to our question: one with the nonce of another
    login was put into this one by somebody.
    """
    token = answer.get("id_token")
    try:
        payload = str(token).split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        claimed = claims.get("nonce")
    except (ValueError, IndexError, AttributeError, RecursionError):
        raise LoginError("the provider gave no ID token") from None
    if claimed is None and may_lack_nonce:
        return str(token), ""
    if claimed != nonce:
        raise LoginError("the provider's answer belongs to another login; it is not used")
    return str(token), nonce


class _NoDetour(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: what the provider is asked for has an address that it has named itself."""


def _safe(url: Any, what: str) -> str:
    """The URL, when nobody can listen. Raises LoginError."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        return str(url)
    raise LoginError(f"the provider's {what} must be an https URL, and is {str(url)[:200]!r}")
