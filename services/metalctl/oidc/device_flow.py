"""The device flow (RFC 8628): the person opens a page anywhere and types a code in; we ask until he has."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metalctl.oidc.provider import Endpoints, LoginError, ProviderUnreachable, id_token_of, request, said

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# Seconds: how long we ask whatever the provider allows, how often unless it says, and how much slower on its wish.
LONGEST = 900.0
INTERVAL = 5.0
SLOWER = 5.0
SLOWEST = 60.0

Request = Callable[[str, Mapping[str, str]], Mapping[str, Any]]


def log_in(
    endpoints: Endpoints,
    client_id: str,
    scopes: Sequence[str],
    *,
    show: Callable[[str, str], None],
    ask: Request = request,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> tuple[str, str]:
    """An ID token and its nonce, which is empty where the provider leaves it out. `show` is given the address and the
    code that the person has to type in there. Raises LoginError."""
    if not endpoints.device:
        raise LoginError(f"{endpoints.issuer} has no device flow; leave --device out")
    nonce = secrets.token_urlsafe(24)
    # No parameter of the specification; providers that know it put it into the ID token.
    begun = ask(endpoints.device, {"client_id": client_id, "scope": " ".join(scopes), "nonce": nonce})
    if "error" in begun:
        raise LoginError(f"the provider refused the login: {said(begun)}", refused=True)
    try:
        code, user_code = str(begun["device_code"]), str(begun["user_code"])
        address = str(begun["verification_uri"])
        ends = monotonic() + min(float(begun["expires_in"]), LONGEST)
        interval = max(0.0, float(begun.get("interval", INTERVAL)))
    except (KeyError, TypeError, ValueError):
        raise LoginError("the provider did not begin the device flow as RFC 8628 says") from None
    show(address, user_code)
    form = {"grant_type": GRANT, "device_code": code, "client_id": client_id}
    while monotonic() < ends:
        sleep(min(interval, SLOWEST))
        try:
            answer = ask(endpoints.token, form)
        except ProviderUnreachable:
            # Section 3.5: slower and slower, until the code ends.
            interval = max(2 * interval, 1.0)
            continue
        error = answer.get("error")
        if error is None:
            return id_token_of(answer, nonce, may_lack_nonce=True)
        if error == "slow_down":
            interval += SLOWER
        elif error != "authorization_pending":
            raise LoginError(f"the provider refused the login: {said(answer)}", refused=True)
    raise LoginError("nobody has typed the code in before it ended")
