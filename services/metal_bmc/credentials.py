"""BMC passwords at rest: AES-256-GCM under a key of a ring, bound to the machine by the associated data.

A sealed password that is copied to another machine's row does not open. New passwords are sealed with the ring's first
key; any key of the ring opens what it sealed. A new key goes to the end of every replica's ring first and then to the
front, since a replica cannot open what another seals with a key that it has not got yet. Does not store anything and
does not fetch keys from elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT = 1
_KEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_ID = 32


class CredentialError(Exception):
    """A sealed password does not open. The text names the key, never the content."""


class KeyRing:
    """Keys by id, the first one in use for sealing."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Raises ValueError for an empty ring, a key that is not 32 bytes long, or an unusable id."""
        if not keys:
            raise ValueError("the key ring is empty: credential_keys needs at least one `id:base64-of-32-bytes`")
        for key_id, key in keys.items():
            if not key_id or len(key_id) > _MAX_ID or not key_id.isascii() or not key_id.replace("-", "").isalnum():
                raise ValueError(f"key id {key_id!r}: up to {_MAX_ID} letters, digits and dashes")
            if len(key) != _KEY_BYTES:
                raise ValueError(f"key {key_id!r} has {len(key)} bytes, AES-256 needs {_KEY_BYTES}")
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.current = next(iter(keys))
        self._fingerprint_key = hmac.digest(keys[self.current], b"metalplane bmc fingerprint", "sha256")

    @property
    def key_ids(self) -> Sequence[str]:
        """Ids of the keys, in the order of the ring."""
        return tuple(self._ciphers)

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read `id:base64,id:base64,…` as in the settings. The error of a bad ring quotes ids, never keys."""
        keys: dict[str, bytes] = {}
        for number, part in enumerate((item.strip() for item in text.split(",") if item.strip()), start=1):
            key_id, colon, encoded = part.partition(":")
            if not colon:
                raise ValueError(f"entry {number} of credential_keys has no `id:` in front")
            if key_id in keys:
                raise ValueError(f"key id {key_id!r} appears twice in credential_keys")
            try:
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise ValueError(f"key {key_id!r} is not base64") from None
        return cls(keys)

    def seal(self, machine: str, password: str) -> bytes:
        """Encrypt the password of the machine's BMC."""
        nonce = os.urandom(_NONCE_BYTES)
        head = bytes((_FORMAT, len(self.current))) + self.current.encode()
        return head + nonce + self._ciphers[self.current].encrypt(nonce, password.encode(), head + _bound_to(machine))

    def open(self, machine: str, sealed: bytes) -> str:
        """Decrypt. Raises CredentialError: key not in the ring, another machine's password, or damaged bytes."""
        key_id = self.key_of(sealed)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise CredentialError(f"sealed with key {key_id!r}, which is not in the key ring")
        start = 2 + len(key_id)
        nonce, body = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, body, sealed[:start] + _bound_to(machine)).decode()
        except (InvalidTag, ValueError):
            raise CredentialError(f"key {key_id!r} does not open it: damaged, or of another machine") from None

    def fingerprint(self, machine: str, password: str) -> str:
        """Tells two passwords apart without being of use for guessing them: an HMAC under a key of the ring."""
        return hmac.digest(self._fingerprint_key, _bound_to(machine) + b"\0" + password.encode(), "sha256").hex()

    @staticmethod
    def key_of(sealed: bytes) -> str:
        """Id of the key that sealed it. Raises CredentialError when the bytes are no sealed password."""
        if len(sealed) < 2 or sealed[0] != _FORMAT or len(sealed) < 2 + sealed[1]:
            raise CredentialError("not a sealed password")
        try:
            return sealed[2 : 2 + sealed[1]].decode("ascii")
        except UnicodeDecodeError:
            raise CredentialError("not a sealed password") from None


def _bound_to(machine: str) -> bytes:
    return b"metalplane bmc password " + machine.encode()
