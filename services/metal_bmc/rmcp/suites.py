"""The cryptography of a session (IPMI 2.0 §13.27-13.32): cipher suites 17 and 3, keys, confidentiality.

No other suite on purpose: suite 0 is no authentication at all, and those with MD5 are obsolete.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK = 16
_PADDINGS = tuple(bytes(range(1, pad + 1)) + bytes((pad,)) for pad in range(_BLOCK))


@dataclass(frozen=True, slots=True)
class CipherSuite:
    """One row of IPMI 2.0 table 22-20: algorithm numbers, the hash behind them, the length of the integrity code."""

    number: int
    authentication: int
    integrity: int
    confidentiality: int
    hash_name: str
    code_length: int

    @property
    def algorithms(self) -> tuple[int, int, int]:
        """Authentication, integrity, confidentiality."""
        return (self.authentication, self.integrity, self.confidentiality)

    def digest(self, key: bytes, data: bytes) -> bytes:
        """The full HMAC."""
        return hmac.digest(key, data, self.hash_name)

    def code(self, key: bytes, data: bytes) -> bytes:
        """The HMAC cut to what goes over the wire: SHA1-96 or SHA256-128."""
        return hmac.digest(key, data, self.hash_name)[: self.code_length]


SUITE_3 = CipherSuite(3, 1, 1, 1, "sha1", 12)
SUITE_17 = CipherSuite(17, 3, 4, 1, "sha256", 16)
PREFERRED = (SUITE_17, SUITE_3)
"""In the order of asking."""


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What both ends derive from the password and the two random numbers (§13.31, §13.32)."""

    session: bytes = field(repr=False)
    integrity: bytes = field(repr=False)
    encryption: bytes = field(repr=False)

    @classmethod
    def derive(cls, suite: CipherSuite, password: bytes, seed: bytes) -> SessionKeys:
        """`seed` is both random numbers, role, length of the name, name. No Kg: BMCs are reached by the password."""
        session = suite.digest(password, seed)
        encryption = suite.digest(session, b"\x02" * 20)[:_BLOCK]
        return cls(session, suite.digest(session, b"\x01" * 20), encryption)


class Confidentiality:
    """AES-CBC-128 with an initialisation vector a message and the trailer of table 13-20.

    One cipher context a direction for the whole session, where one a message would cost more than all else. Sending, a
    random block goes first through the running chain: what it becomes is as unpredictable as a random vector and stands
    in its place. Receiving, the vector is the first block that goes through: it comes out as noise and is cut off.
    """

    __slots__ = ("_decryptor", "_encryptor")

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.AES(key), modes.CBC(os.urandom(_BLOCK)))
        self._encryptor, self._decryptor = cipher.encryptor(), cipher.decryptor()

    def encrypt(self, message: bytes) -> bytes:
        """Vector and ciphertext."""
        return self._encryptor.update(os.urandom(_BLOCK) + message + _PADDINGS[-(len(message) + 1) % _BLOCK])

    def decrypt(self, payload: bytes) -> bytes | None:
        """The message; None when length or padding cannot be right."""
        if len(payload) < 2 * _BLOCK or len(payload) % _BLOCK:
            return None
        message = self._decryptor.update(payload)[_BLOCK:]
        pad = message[-1]
        if pad >= _BLOCK or not message.endswith(_PADDINGS[pad]):
            return None
        return message[: -(pad + 1)]
