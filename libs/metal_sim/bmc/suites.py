"""The cryptography of an RMCP+ session (IPMI 2.0 §13.27-13.32): cipher suites 3 and 17, keys, payload sealing.

Offers no other suite on purpose: suite 0 means no authentication at all, and the MD5 suites are obsolete.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK = 16
_K1_CONSTANT = b"\x01" * 20
_K2_CONSTANT = b"\x02" * 20


@dataclass(frozen=True)
class CipherSuite:
    """One row of IPMI 2.0 table 22-20: the three algorithm numbers, the hash behind them, the length of the code."""

    number: int
    authentication: int
    integrity: int
    confidentiality: int
    hash_name: str
    code_length: int

    def digest(self, key: bytes, data: bytes) -> bytes:
        """The full HMAC of `data`."""
        return hmac.digest(key, data, self.hash_name)

    def short_digest(self, key: bytes, data: bytes) -> bytes:
        """The HMAC truncated to what the suite puts on the wire: 12 bytes (SHA1-96) or 16 bytes (SHA256-128)."""
        return self.digest(key, data)[: self.code_length]

    def record(self) -> bytes:
        """The suite as listed by Get Channel Cipher Suites (IPMI 2.0 table 22-18)."""
        return bytes(
            (0xC0, self.number, self.authentication, 0x40 | self.integrity, 0x80 | self.confidentiality),
        )


SUITE_3 = CipherSuite(3, 1, 1, 1, "sha1", 12)
SUITE_17 = CipherSuite(17, 3, 4, 1, "sha256", 16)
SUITES = (SUITE_3, SUITE_17)


def suite_for(
    offered: Sequence[CipherSuite], authentication: int, integrity: int, confidentiality: int
) -> CipherSuite | None:
    """The offered suite with exactly these algorithms, or None. Never a near match: a silent downgrade is a defect."""
    wanted = (authentication, integrity, confidentiality)
    for suite in offered:
        if (suite.authentication, suite.integrity, suite.confidentiality) == wanted:
            return suite
    return None


@dataclass(frozen=True)
class SessionKeys:
    """What both ends derive from the password and the two random numbers (IPMI 2.0 §13.31, §13.32)."""

    session: bytes
    integrity: bytes
    encryption: bytes

    @classmethod
    def derive(
        cls, suite: CipherSuite, key: bytes, *, console_random: bytes, bmc_random: bytes, role: int, user: bytes
    ) -> SessionKeys:
        """Derive SIK, K1 and the AES key. `key` is the BMC key Kg, or the password where no Kg is set."""
        seed = console_random + bmc_random + bytes((role, len(user))) + user
        session = suite.digest(key, seed)
        return cls(session, suite.digest(session, _K1_CONSTANT), suite.digest(session, _K2_CONSTANT)[:_BLOCK])


def encrypt(key: bytes, message: bytes) -> bytes:
    """AES-CBC-128 with a random IV in front and the confidentiality trailer of IPMI 2.0 table 13-20."""
    pad = -(len(message) + 1) % _BLOCK
    plain = message + bytes(range(1, pad + 1)) + bytes((pad,))
    iv = os.urandom(_BLOCK)
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return iv + encryptor.update(plain) + encryptor.finalize()


def decrypt(key: bytes, payload: bytes) -> bytes | None:
    """Undo `encrypt`; None when the length or the padding cannot be right."""
    if len(payload) < 2 * _BLOCK or len(payload) % _BLOCK:
        return None
    decryptor = Cipher(algorithms.AES(key), modes.CBC(payload[:_BLOCK])).decryptor()
    plain = decryptor.update(payload[_BLOCK:]) + decryptor.finalize()
    pad = plain[-1]
    message = plain[: -(pad + 1)]
    if pad >= _BLOCK or plain[len(message) : -1] != bytes(range(1, pad + 1)):
        return None
    return message
