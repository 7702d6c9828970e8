"""One session with a BMC (DSP0266 §13.3): logging in, asking with its token, logging out. No session outlives its use.

A BMC without a session service gets user and password with every request instead.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from metal_bmc.redfish import document
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.failures import (
    BadAnswer,
    Busy,
    LoginRefused,
    NotThere,
    RedfishFailure,
    Refused,
    SlotsFull,
)
from metal_bmc.redfish.wire import Place, Reply, Wire

ROOT = "/redfish/v1/"
_SUCCESS = range(200, 300)
# A login that is wrong is 401 by the standard; makes that answer 400 or 403 count it as a failure all the same.
_LOGIN_REFUSALS = {400, 401, 403}
_FULL = {"SessionLimitExceeded", "CreateLimitReachedForResource"}
_UNKNOWN_STATUS = {404, 405, 501}
_UNKNOWN_MESSAGES = {"ActionNotSupported", "ActionParameterNotSupported", "ActionParameterUnknown", "PropertyUnknown"}
_LONGEST_PAUSE = 3600.0


@dataclass(frozen=True, slots=True)
class Login:
    """Who to be. `fingerprint` is the SHA-256 of the certificate that the BMC has to show, empty for any."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    fingerprint: bytes = b""


@dataclass(slots=True)
class Session:
    """One that is open. Without `token` it is basic authentication, and there is nothing to close. `proven` is whether
    anything was answered in it yet."""

    root: Document
    opened: float
    token: str = field(default="", repr=False)
    location: str = ""
    proven: bool = False


async def open_session(wire: Wire, place: Place, login: Login, *, now: float, give_up: float) -> Session:
    """Log in. Raises RedfishFailure; nothing is left open then, unless the answer to the login was lost."""
    root = await _root(wire, place, give_up)
    links = root.optional_inner("Links")
    path = links.optional_link("Sessions") if links is not None else ""
    if not path:
        return Session(root, now)
    body = {"UserName": login.user, "Password": login.password}
    reply = await wire.send(place, "POST", path, headers={}, body=body, give_up=give_up, headers_matter=True)
    if reply.status not in _SUCCESS:
        raise _login_failure(reply)
    # Only headers count: the session is open, whatever the body looks like.
    token, location = reply.headers.get("x-auth-token", ""), _location(reply)
    if not document.fit_for_header(token):
        if location:
            await wire.send(place, "DELETE", location, headers=basic(login), give_up=give_up)
        raise BadAnswer("the BMC opened a session and told no token for it")
    return Session(root, now, token, location)


async def close_session(wire: Wire, place: Place, login: Login, session: Session, *, give_up: float) -> bool:
    """Log out. True when the BMC says that the session is gone."""
    if not session.location:
        return True
    if await delete(wire, place, session.location, {"X-Auth-Token": session.token}, give_up=give_up):
        return True
    # Some refuse the token of a session that they still count. The password is known to hold: it opened the session.
    return await delete(wire, place, session.location, basic(login), give_up=give_up)


async def delete(wire: Wire, place: Place, location: str, headers: Mapping[str, str], *, give_up: float) -> bool:
    """Delete a session by its location. True when it is gone."""
    try:
        reply = await wire.send(place, "DELETE", location, headers=headers, give_up=give_up)
    except RedfishFailure:
        return False
    return reply.status in _SUCCESS or reply.status in (404, 410)


def authority(login: Login, session: Session) -> dict[str, str]:
    """The headers that say who asks."""
    return {"X-Auth-Token": session.token} if session.token else basic(login)


def basic(login: Login) -> dict[str, str]:
    """User and password as a header."""
    return {"Authorization": "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()}


def read(path: str, reply: Reply) -> Document:
    """The document of a successful reply. Raises RedfishFailure."""
    if reply.status not in _SUCCESS:
        raise failure(path, reply)
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadAnswer(f"{path}: the answer is no JSON by its content type")
    if reply.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadAnswer(f"{path}: the answer is compressed, which nobody asked for")
    etag = reply.headers.get("etag", "")
    return document.parse(path, reply.body, etag if document.fit_for_header(etag) else "")


def failure(path: str, reply: Reply) -> RedfishFailure:
    """What a reply without success means."""
    ids = document.message_ids(reply.body)
    name = f" ({ids[0]})" if ids else ""
    if reply.status in range(300, 400):
        return BadAnswer(f"{path}: the BMC refers to another place, which is not followed")
    if reply.status in (429, 503):
        return Busy(f"the BMC is busy{name}", retry_after(reply))
    if reply.status in _UNKNOWN_STATUS or _UNKNOWN_MESSAGES.intersection(ids):
        return NotThere(f"the BMC does not have {path}{name}")
    if reply.status == 403:
        return Refused("the user lacks the privilege", 403, *ids[:1])
    return Refused(f"the BMC refuses {path} with status {reply.status}{name}", reply.status, *ids[:1])


def retry_after(reply: Reply) -> float:
    """The seconds that Retry-After names, 0 for none. A date is none: nobody knows what the BMC's clock shows."""
    value = reply.headers.get("retry-after", "").strip()
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        return 0.0
    return min(float(value), _LONGEST_PAUSE)


async def _root(wire: Wire, place: Place, give_up: float) -> Document:
    # Needs no login by the standard (DSP0266 §13.2.2).
    return read(ROOT, await wire.send(place, "GET", ROOT, headers={}, give_up=give_up))


def _login_failure(reply: Reply) -> RedfishFailure:
    ids = document.message_ids(reply.body)
    if _FULL.intersection(ids):
        return SlotsFull("all sessions of the BMC are taken")
    if reply.status in _LOGIN_REFUSALS:
        return LoginRefused("the BMC refuses user or password")
    if reply.status in (429, 503):
        return failure("the session service", reply)
    # Says nothing about user and password, so it must not look like an answer that came after they were taken.
    return BadAnswer(f"the BMC answers to a login with status {reply.status}")


def _location(reply: Reply) -> str:
    value = reply.headers.get("location", "")
    try:
        if value:
            return document.location_path(value)
        return document.parse("session", reply.body).target()
    except BadAnswer:
        return ""
