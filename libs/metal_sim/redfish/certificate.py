"""The TLS identity of a simulated BMC: a key, and a certificate that it signed itself, as from the factory."""

from __future__ import annotations

import datetime
import hashlib
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True)
class Certificate:
    """Certificate and key in PEM, and the SHA-256 of the certificate in DER, which is what clients pin."""

    certificate: bytes
    key: bytes = field(repr=False)
    fingerprint: bytes


def self_signed(name: str) -> Certificate:
    """A new identity for `name`, at most 64 characters. Nobody vouches for it but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate=made.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        fingerprint=hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).digest(),
    )


def server_context(identity: Certificate) -> ssl.SSLContext:
    """What a server with this identity accepts connections with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ssl module reads keys from files only.
    with tempfile.TemporaryDirectory(prefix="redfish-") as directory:
        certificate, key = Path(directory, "crt"), Path(directory, "key")
        certificate.write_bytes(identity.certificate)
        key.write_bytes(identity.key)
        context.load_cert_chain(certificate, key)
    return context
