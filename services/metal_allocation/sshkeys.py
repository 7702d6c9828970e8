"""SSH public keys in authorized_keys form, without options. Pure.

Each key is read to its end, so that one that lost its tail in a terminal is refused now and not by a login weeks later.
Whether a key is strong enough is not judged here.
"""

from __future__ import annotations

import base64
import binascii

from metal_kit.errors import InvalidArgument

# How many strings follow the name of the type in a key's blob: RFC 4253 section 6.6 (rsa: e, n), RFC 5656 section 3.1
# (ecdsa: curve, point), RFC 8709 section 4 (ed25519: key), OpenSSH's PROTOCOL.u2f (one more each: the application).
# ssh-dss is left out: OpenSSH dropped it.
FIELDS = {
    "ssh-rsa": 2,
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
ED25519_BYTES = 32


def check_ssh_key(key: str, *, field: str) -> None:
    """Raise InvalidArgument unless `key` is one public key: type, base64, optional comment."""
    if not key.isprintable():
        raise InvalidArgument("SSH_KEY", "write one key a line, without control characters", field=field)
    parts = key.split(maxsplit=2)
    if len(parts) < 2:
        raise InvalidArgument("SSH_KEY", "write one public key: type, base64, optional comment", field=field)
    kind, body = parts[0], parts[1]
    if kind not in FIELDS:
        raise InvalidArgument("SSH_KEY_TYPE", f"the key type {kind[:64]} is not supported", field=field)
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("SSH_KEY", "the key's base64 part does not decode; paste it again", field=field) from None
    strings = _strings(blob)
    whole = strings is not None and len(strings) == 1 + FIELDS[kind] and all(strings) and strings[0] == kind.encode()
    if not whole or (kind == "ssh-ed25519" and strings is not None and len(strings[1]) != ED25519_BYTES):
        raise InvalidArgument("SSH_KEY", f"the key is not a whole {kind} key; paste it again", field=field)


def _strings(blob: bytes) -> list[bytes] | None:
    """The length-prefixed strings (RFC 4251 section 5) that a blob consists of; None when it ends inside of one."""
    strings, at = [], 0
    while at < len(blob):
        length = int.from_bytes(blob[at : at + 4], "big")
        if len(blob) - at < 4 + length:
            return None
        strings.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return strings
