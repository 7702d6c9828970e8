"""Authorisation code with PKCE (RFC 7636): the browser asks the person, the answer comes to a port of this host."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from metalctl.oidc.listener import Listener
from metalctl.oidc.provider import Endpoints, LoginError, id_token_of, request, said

# Seconds; whoever has not logged in by then has gone away.
PATIENCE = 300.0


def log_in(
    endpoints: Endpoints, client_id: str, scopes: Sequence[str], *, port: int, show: Callable[[str], None]
) -> tuple[str, str]:
    """An ID token and its nonce. `show` is given the address that the person has to open. Raises LoginError."""
    verifier, state, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    try:
        listener = Listener(state, port)
    except OSError as error:
        raise LoginError(f"port {port} of this host cannot be listened on: {error.strerror}") from None
    with listener:
        redirect_uri = listener.redirect_uri
        parameters = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        # It may have parameters of its own (RFC 6749, section 3.1).
        joint = "&" if "?" in endpoints.authorization else "?"
        show(f"{endpoints.authorization}{joint}{urlencode(parameters)}")
        answer = listener.wait(PATIENCE)
    if answer is None:
        raise LoginError(f"nobody has logged in within {PATIENCE / 60:.0f} minutes")
    if "iss" in answer and answer["iss"] != endpoints.issuer:
        raise LoginError("another provider has answered (RFC 9207); nothing was done with that")
    if "code" not in answer:
        raise LoginError(f"the provider refused the login: {said(answer) or 'without a reason'}", refused=True)
    form = {
        "grant_type": "authorization_code",
        "code": answer["code"],
        "redirect_uri": redirect_uri,
        "client_id": client_id,
        "code_verifier": verifier,
    }
    tokens = request(endpoints.token, form)
    if "error" in tokens:
        raise LoginError(f"the provider refused the login: {said(tokens)}", refused=True)
    return id_token_of(tokens, nonce)


def challenge(verifier: str) -> str:
    """The S256 challenge of a verifier (RFC 7636, section 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
