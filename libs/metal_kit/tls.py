"""Mutual TLS: this process's certificate as gRPC credentials, and the peer's certificate as a Caller.

grpcio asks a client for its certificate only when it also requires one: with `require_client_auth=False` the
certificate is not even requested (tried with 1.85, for static and for dynamic credentials). So every connection needs a
certificate of our authority. Tools that people run get one for `spiffe://metalplane/client/<name>`; it opens the
connection, authorises nothing, and the bearer token says who the person is.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from metal_kit.ca import MACHINE_UNIT
from metal_kit.errors import Unauthenticated
from metal_kit.identity import ANONYMOUS, Caller, parse_spiffe

_CACHED_PEERS = 4096
_now = time.time


class Identity:
    """The certificate of this process, its key and the authority it trusts, as paths of PEM files."""

    def __init__(self, ca: str | Path, cert: str | Path, key: str | Path) -> None:
        self.ca, self.cert, self.key = Path(ca), Path(cert), Path(key)

    def load(self) -> tuple[bytes, bytes, bytes]:
        """Authorities, certificate chain and key, PEM.

        Raises OSError for a file that cannot be read, and ValueError for files that are damaged or do not belong
        together: a renewal replaces one after the other, and between the two they are of no use.
        """
        ca, cert, key = self.ca.read_bytes(), self.cert.read_bytes(), self.key.read_bytes()
        public = serialization.load_pem_private_key(key, password=None).public_key()
        if x509.load_pem_x509_certificate(cert).public_key() != public:
            raise ValueError(f"{self.key} does not belong to {self.cert}")
        if not x509.load_pem_x509_certificates(ca):
            raise ValueError(f"{self.ca} has no certificate")
        return ca, cert, key

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that require a client certificate; renewed files are taken up by the next connection."""
        seen = [self._stamp()]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # Called by gRPC's own thread before each handshake. Half-written files keep the old certificate.
            with contextlib.suppress(OSError, ValueError):
                stamp = self._stamp()
                if stamp != seen[0]:
                    configuration = self._configuration()
                    seen[0] = stamp
                    return configuration
            return None

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            renewed,  # type: ignore[arg-type] # the stubs forget that None means "no change"
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a client that verifies servers by the authority and shows this certificate.

        Raises like `load`.
        """
        ca, cert, key = self.load()
        return grpc.ssl_channel_credentials(ca, key, cert)

    def client_context(self) -> ssl.SSLContext:
        """The same for what speaks TLS without gRPC."""
        self.load()
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key)
        return context

    def stamp(self) -> tuple[int, ...]:
        """Changes when one of the files does; clients compare it to know when to connect anew."""
        return self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in (self.ca, self.cert, self.key))

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        ca, cert, key = self.load()
        return grpc.ssl_server_certificate_configuration([(key, cert)], ca)


@dataclass(slots=True)
class Shown:
    """A certificate that a peer has shown: whom it names, how long it holds, and when it was last used (seconds since
    the epoch)."""

    caller: Caller
    begins: float
    ends: float
    used: float = 0.0

    def use(self) -> Caller:
        """The caller, while the certificate holds. Raises Unauthenticated when its lifetime has ended: TLS looks at it
        in the handshake only, and a connection may stay open for weeks."""
        now = _now()
        if now >= self.ends:
            raise Unauthenticated("CERTIFICATE_EXPIRED", "the client certificate has expired; renew it and reconnect")
        self.used = now
        return self.caller


NOBODY = Shown(ANONYMOUS, 0.0, float("inf"))


class PeerCertificates:
    """Whom a verified peer certificate names; each certificate is parsed once, and the last few thousand are kept."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Shown] = OrderedDict()

    def shown(self, auth_context: Mapping[str, Iterable[bytes]]) -> Shown:
        """The certificate of a connection. Raises Unauthenticated for one that names nobody of this plane."""
        chain = auth_context.get("x509_pem_cert")
        if not chain:
            return NOBODY
        pem = next(iter(chain))
        known = self._known.get(pem)
        if known is None:
            known = self._known[pem] = read_certificate(pem)
            if len(self._known) > _CACHED_PEERS:
                self._known.popitem(last=False)
        return known

    def caller(self, auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
        """The caller of a connection; raises Unauthenticated also for a certificate that has expired since."""
        return self.shown(auth_context).use()

    def latest(self) -> list[Shown]:
        """The certificate of each peer that was used last, without those that it has replaced."""
        latest: dict[str, Shown] = {}
        for each in self._known.values():
            label = each.caller.label
            if label not in latest or each.used > latest[label].used:
                latest[label] = each
        return list(latest.values())


def read_certificate(pem: bytes) -> Shown:
    """A certificate that TLS has verified.

    Exactly one URI name is accepted, as the X.509-SVID specification demands (section 2), and none but a machine's from
    an authority that is for machines. A machine's serial number is the session of its boot. Raises Unauthenticated
    otherwise.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    uris: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    caller = parse_spiffe(uris[0]) if len(uris) == 1 else None
    if caller is None:
        raise Unauthenticated(
            "CERTIFICATE_UNKNOWN_IDENTITY", "the client certificate must carry one URI name spiffe://metalplane/…"
        )
    units = certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if any(unit.value == MACHINE_UNIT for unit in units) and caller.kind != "machine":
        raise Unauthenticated("CERTIFICATE_WRONG_ISSUER", "this authority may sign machine certificates only")
    if caller.kind == "machine" and certificate.serial_number < 1 << 128:
        caller = replace(caller, session=str(UUID(int=certificate.serial_number)))
    return Shown(caller, certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())
