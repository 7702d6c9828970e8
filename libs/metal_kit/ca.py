"""A small certificate authority: for the lab, for `deploy` and for the certificates of machines.

ECDSA P-256 throughout. The root signs services and agents; an intermediate signs machines only: it has path length 0,
its certificates are good for client authentication alone, and `metal_kit.tls` refuses any identity but a machine's from
it, so a stolen intermediate key does not make a service. There is no revocation list: lifetimes are short instead.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from metal_kit import clock
from metal_kit.errors import InvalidArgument

# Subject of the intermediates; the organisational unit is what limits them to machines.
MACHINE_UNIT = "machines"
# Clocks of racks that just got power are off by minutes; a certificate must not be refused for being too young.
BACKDATE = timedelta(minutes=5)
DEFAULT_TTL = timedelta(days=30)
CA_TTL = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate chain (leaf first, without the root) and its private key, PEM. The key is never shown by repr."""

    cert: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Issued(cert={len(self.cert)} bytes)"

    def save(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write `<name>.crt` and `<name>.key` (mode 0600), each whole or not at all; returns both paths."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        _write(key, self.key, 0o600)
        _write(cert, self.cert, 0o644)
        return cert, key


class Authority:
    """A signing key with its certificate. Not safe to share between processes that both renew it."""

    def __init__(self, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> None:
        self._chain = tuple(chain)
        self._key = key

    @classmethod
    def create(cls, name: str = "metalplane", ttl: timedelta = CA_TTL) -> Authority:
        """A new self-signed root."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"{name} root")
        certificate = _ca_builder(subject, key.public_key(), ttl, path_length=1).issuer_name(subject)
        return cls([certificate.sign(key, hashes.SHA256())], key)

    @classmethod
    def load(cls, directory: Path, name: str = "ca") -> Authority:
        """Read what `save` wrote. Raises OSError or ValueError when a file is missing or damaged."""
        chain = x509.load_pem_x509_certificates((directory / f"{name}.crt").read_bytes())
        key = serialization.load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{directory / name}.key holds another kind of key")  # noqa: TRY004 - a bad file
        if key.public_key() != chain[0].public_key():
            raise ValueError(f"{directory / name}.key does not belong to {name}.crt")
        return cls(chain, key)

    def save(self, directory: Path, name: str = "ca") -> None:
        """Write `<name>.crt` (chain of this authority) and `<name>.key` (mode 0600)."""
        Issued(_pem(self._chain), _key_pem(self._key)).save(directory, name)

    @property
    def cert(self) -> bytes:
        """PEM of the authority's own certificate; of a root: what peers trust."""
        return _pem(self._chain[:1])

    @property
    def ends(self) -> datetime:
        """When the authority's certificate ends, and with it everything that it has signed."""
        return self._chain[0].not_valid_after_utc

    @property
    def is_root(self) -> bool:
        """Whether the authority signed itself."""
        return self._chain[0].subject == self._chain[0].issuer

    def machine_intermediate(self, name: str, ttl: timedelta = timedelta(days=365)) -> Authority:
        """An authority for machine certificates only, to be held by a partition's boot service."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name, MACHINE_UNIT)
        builder = (
            _ca_builder(subject, key.public_key(), ttl, path_length=0)
            .issuer_name(self._chain[0].subject)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        return Authority([builder.sign(self._key, hashes.SHA256()), *self._issued_chain()], key)

    def issue(
        self,
        name: str,
        spiffe_id: str,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        ttl: timedelta = DEFAULT_TTL,
    ) -> Issued:
        """A new key with a certificate for `spiffe_id`; servers also get the DNS name `<service>.metalplane`.

        A `ttl` of zero or less makes an expired certificate, which tests use.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return Issued(self._sign(name, key.public_key(), ttl, _names(spiffe_id, dns, ips)), _key_pem(key))

    def sign_request(self, csr_pem: bytes, name: str, spiffe_id: str, ttl: timedelta, serial: int = 0) -> bytes:
        """A certificate chain for the key of a signing request, whose private half never left its machine.

        `serial` is the certificate's serial number, below 2^159 and never used before; 0 takes a random one. Raises
        InvalidArgument as `requested_key` does.
        """
        return self._sign(name, requested_key(csr_pem), ttl, _names(spiffe_id), serial)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        ttl: timedelta,
        names: Sequence[x509.GeneralName],
        serial: int = 0,
    ) -> bytes:
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if len(names) > 1:  # a name to be found by, so it serves
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            # Nothing holds for longer than what signed it; a date that says otherwise would only mislead.
            _builder(_name(name), key, min(ttl, self.ends - clock.now()), serial)
            .issuer_name(self._chain[0].subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(_authority_key(self._key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem([certificate, *self._issued_chain()])

    def _issued_chain(self) -> tuple[x509.Certificate, ...]:
        """What goes with an issued certificate: every authority up to, and without, the root."""
        return tuple(each for each in self._chain if each.subject != each.issuer)


def requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a signing request, and nothing else: names and extensions in it are the asker's wishes, not facts.

    Raises InvalidArgument on `csr` when it is damaged, not signed by its key, or of another kind than P-256.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key, signed = request.public_key(), request.is_signature_valid
    except ValueError as error:
        raise InvalidArgument("INVALID_CSR", "must be a PEM certificate signing request", field="csr") from error
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument("INVALID_CSR", "must be signed by its own P-256 key", field="csr")
    return key


def _names(spiffe_id: str, dns: Sequence[str] = (), ips: Sequence[str] = ()) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)]
    names += [x509.DNSName(each) for each in dns]
    names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ips]
    return names


def _name(common: str, unit: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "metalplane")]
    if unit:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    # RFC 5280 appendix A limits a common name to 64 characters; identities live in the SAN, so cutting is harmless.
    attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common[:64]))
    return x509.Name(attributes)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, ttl: timedelta, serial: int = 0
) -> x509.CertificateBuilder:
    now = clock.now()
    end = now + ttl
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(min(now, end) - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _ca_builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, ttl: timedelta, path_length: int
) -> x509.CertificateBuilder:
    return (
        _builder(subject, key, ttl)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
    )


def _authority_key(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(chain: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write through a temporary file that has the right mode from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
