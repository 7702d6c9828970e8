"""Mutual TLS: this process's certificate as gRPC credentials, and the peer's certificate as a Caller.

grpcio asks a client for its certificate only when it also requires one: with `require_client_auth=False` the
certificate is not even requested (tried with 1.85, for static and for dynamic credentials). So every connection needs a
certificate of our authority. Tools that people run get one for `spiffe://metalplane/client/<name>`; it opens the
connection, authorises nothing, and the bearer token says who the person is.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from metal_kit.ca import MACHINE_UNIT
from metal_kit.errors import Unauthenticated
from metal_kit.identity import ANONYMOUS, Caller, parse_spiffe

_CACHED_PEERS = 4096


class Identity:
    """The certificate of this process, its key and the authority it trusts, as paths of PEM files."""

    def __init__(self, ca: str | Path, cert: str | Path, key: str | Path) -> None:
        self.ca, self.cert, self.key = Path(ca), Path(cert), Path(key)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that require a client certificate; renewed files are taken up by the next connection."""
        seen = [self._stamp()]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # Called by gRPC's own thread before each handshake. Half-written files keep the old certificate.
            with contextlib.suppress(OSError):
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
        """Credentials of a client that verifies servers by the authority and shows this certificate."""
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())

    def stamp(self) -> tuple[int, ...]:
        """Changes when one of the files does; clients compare it to know when to connect anew."""
        return self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in (self.ca, self.cert, self.key))

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key.read_bytes(), self.cert.read_bytes())], self.ca.read_bytes()
        )


class PeerCertificates:
    """Whom a verified peer certificate names; each certificate is parsed once, and the last few thousand are kept."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    def caller(self, auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
        """The caller of a connection. Raises Unauthenticated for a certificate that names nobody of this plane, or
        whose lifetime ended while the connection stayed open (TLS looks at it in the handshake only)."""
        chain = auth_context.get("x509_pem_cert")
        if not chain:
            return ANONYMOUS
        pem = next(iter(chain))
        known = self._known.get(pem)
        if known is None:
            known = self._known[pem] = read_certificate(pem)
            if len(self._known) > _CACHED_PEERS:
                self._known.popitem(last=False)
        caller, ends = known
        if time.time() >= ends:
            raise Unauthenticated("CERTIFICATE_EXPIRED", "the client certificate has expired; renew it and reconnect")
        return caller


def read_certificate(pem: bytes) -> tuple[Caller, float]:
    """Caller and end (seconds since the epoch) of a certificate that TLS has verified.

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
    return caller, certificate.not_valid_after_utc.timestamp()
