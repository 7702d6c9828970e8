"""The plane's authority, and certificates that are made when they are missing, about to end, or for other names.

The authority's key never leaves its folder, which only the set-up mounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from metal_kit import clock
from metal_kit.ca import Authority, Issued

from metal_init import files
from metal_init.settings import is_address

AUTHORITY = "authority"
# During a roll-over: the authority that will sign, and the certificate of the one that did.
NEXT, PREVIOUS = "next", "previous"
CA = "ca.crt"
CERTIFICATE = "tls"
# Renewed in the last third of its lifetime: two missed renewals a month apart still leave a month.
RENEW_BELOW = 1 / 3


@dataclass(frozen=True)
class Bearer:
    """Whom a certificate is for: its identity, and the names and addresses that it is found at."""

    spiffe: str
    names: Sequence[str] = ()

    @property
    def dns(self) -> list[str]:
        """The names that are no addresses."""
        return [name for name in self.names if not is_address(name)]

    @property
    def addresses(self) -> list[str]:
        """The IP addresses."""
        return [name for name in self.names if is_address(name)]


class Certificates:
    """The authority below `root`, made at the first use. `renew` issues everything anew."""

    def __init__(self, root: Path, lifetime: timedelta, *, renew: bool = False) -> None:
        self._lifetime, self._renew = lifetime, renew
        folder = root / AUTHORITY
        # A lost certificate must not lead to a new authority: every certificate out there would be worthless.
        if not any((folder / f"ca.{end}").exists() for end in ("crt", "key")):
            Authority.create("metalplane").save(folder)
        self.authority = Authority.load(folder)
        self._folder = folder
        self._own = x509.load_pem_x509_certificate(self.authority.cert)

    @property
    def trusted(self) -> bytes:
        """What everybody verifies peers by, PEM: the authority, and its successor or predecessor during a roll-over."""
        others = (self._folder / f"{name}.crt" for name in (NEXT, PREVIOUS))
        return b"".join([self.authority.cert, *(path.read_bytes() for path in others if path.exists())])

    def put(self, folder: Path, bearer: Bearer, name: str = CERTIFICATE) -> bool:
        """Have `<name>.crt`, `<name>.key` and `ca.crt` in `folder`; whether a certificate was issued."""
        files.write_if_changed(folder / CA, self.trusted)
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        if not self._renew and _belong_together(certificate, key) and self._holds(certificate, bearer):
            return False
        self.issue(name, bearer).save(folder, name)
        return True

    def put_machine_authority(self, folder: Path, name: str, partition: str) -> bool:
        """Have an authority for machine certificates in `folder`; whether it was made now."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        if not self._renew and _belong_together(certificate, key):
            intermediate = x509.load_pem_x509_certificate(certificate.read_bytes())
            if self._issued_by_us(intermediate) and _fresh(intermediate):
                return False
        self.authority.machine_intermediate(f"machines of {partition}").save(folder, name)
        return True

    def issue(self, name: str, bearer: Bearer) -> Issued:
        """A certificate with its key, not stored anywhere."""
        return self.authority.issue(name, bearer.spiffe, bearer.dns, bearer.addresses, self._lifetime)

    def _holds(self, path: Path, bearer: Bearer) -> bool:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        found = (
            names.get_values_for_type(x509.UniformResourceIdentifier),
            set(names.get_values_for_type(x509.DNSName)),
            {str(each) for each in names.get_values_for_type(x509.IPAddress)},
        )
        wanted = ([bearer.spiffe], set(bearer.dns), set(bearer.addresses))
        return found == wanted and self._issued_by_us(certificate) and _fresh(certificate)

    def _issued_by_us(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._own)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def _belong_together(certificate: Path, key: Path) -> bool:
    """Whether both files are there, whole, and a pair: a set-up that was killed may have replaced one of them."""
    try:
        public = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        return serialization.load_pem_private_key(key.read_bytes(), password=None).public_key() == public
    except (OSError, ValueError):
        return False


def _fresh(certificate: x509.Certificate) -> bool:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - clock.now() > lifetime * RENEW_BELOW
