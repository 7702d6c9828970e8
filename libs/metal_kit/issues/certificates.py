"""The certificates that a service works with, as its files are now, and those that its peers have shown.

Their ends are a metric, a log line an hour when one is near, and issues. Files are read anew each minute: what was
renewed is well again without a word to anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from prometheus_client import Gauge

from metal_kit import clock
from metal_kit.backoff import pause
from metal_kit.issues.expiry import Lifetime
from metal_kit.issues.issue import Issue, Severity
from metal_kit.logs import get_logger
from metal_kit.origin import EDGE
from metal_kit.tls import Identity, PeerCertificates

log = get_logger(__name__)

ENDS = Gauge(
    "metalplane_certificate_expiry_timestamp_seconds",
    "When a certificate of the service ends, in seconds since the epoch: its own, the authority above it (the one that "
    "ends first), the trust bundle (the authority that ends last), the authority for machines.",
    ["service", "certificate"],
)
LOOK_EVERY = timedelta(minutes=1)
WARN_EVERY_SECONDS = 3600.0
# A peer that has not called for so long is not there any more, and its certificate nobody's concern.
PEER_FORGOTTEN = timedelta(days=3)
# Machines are not renewed but boot again; people's tools are theirs to renew.
_PEER_KINDS = frozenset({"service", "leaf", "bmc", "boot"})
_RENEW = "metal-init renews what is in its last third (deploy/README.md)"
OWN, ISSUER, TRUST, MACHINES = "own", "issuer", "trust", "machine_authority"


@dataclass(frozen=True, slots=True)
class Watched:
    """A certificate of the service: what it is to it, the file that it is in, and how long it holds."""

    kind: str
    file: Path
    lifetime: Lifetime

    def issue(self, now: datetime) -> Issue | None:
        """What is wrong with it."""
        return self.lifetime.issue(f"certificate/{self.kind}", f"{_NAMES[self.kind]} in {self.file.name}", _RENEW, now)


_NAMES = {
    OWN: "certificate of the service",
    ISSUER: "authority above the service's certificate",
    TRUST: "authorities that peers are verified by",
    MACHINES: "authority for machines",
}


def read(identity: Identity, machine_authority: Path | None) -> list[Watched]:
    """The certificates of a service. Raises OSError or ValueError for files that cannot be used."""
    ca, cert, _ = identity.load()
    chain, trusted = x509.load_pem_x509_certificates(cert), x509.load_pem_x509_certificates(ca)
    found = [Watched(OWN, identity.cert, _lifetime(chain[0]))]
    above = [*chain[1:], *(each for each in trusted if each.subject == chain[-1].issuer)]
    if above:
        # An authority that was made anew keeps its name: while both are trusted, the later one counts.
        latest: dict[x509.Name, Lifetime] = {}
        for each in above:
            lifetime = _lifetime(each)
            if each.subject not in latest or lifetime.ends > latest[each.subject].ends:
                latest[each.subject] = lifetime
        found.append(Watched(ISSUER, identity.cert, min(latest.values(), key=_end)))
    found.append(Watched(TRUST, identity.ca, max(map(_lifetime, trusted), key=_end)))
    if machine_authority is not None:
        (machines, *_) = x509.load_pem_x509_certificates(machine_authority.read_bytes())
        found.append(Watched(MACHINES, machine_authority, _lifetime(machines)))
    return found


class CertificateWatch:
    """Looks after the certificates of a service. `machine_authority` is the file of the one that signs machines, where
    the service has it."""

    def __init__(
        self, service: str, identity: Identity, peers: PeerCertificates, machine_authority: Path | None = None
    ) -> None:
        self._service, self._identity, self._peers = service, identity, peers
        self._machine_authority = machine_authority
        self._warned_at = float("-inf")

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep the metric, and warn, until `stopping` is set."""
        while not stopping.is_set():
            await self.look()
            await pause(stopping, LOOK_EVERY)

    async def look(self) -> None:
        """Look once."""
        try:
            watched = await asyncio.to_thread(read, self._identity, self._machine_authority)
        except (OSError, ValueError) as error:
            self._warn([{"certificate": "unreadable", "error": str(error)}])
            return
        for each in watched:
            ENDS.labels(self._service, each.kind).set(each.lifetime.ends.timestamp())
        now = clock.now()
        near = [each for each in watched if each.lifetime.severity(now) is not None]
        self._warn([{"certificate": each.kind, "ends": each.lifetime.ends.isoformat()} for each in near])

    async def issues(self, now: datetime) -> list[Issue]:
        """What is wrong with the service's own certificates, and with those that peers show."""
        return [*await self._own_issues(now), *peer_issues(self._peers, now)]

    async def _own_issues(self, now: datetime) -> list[Issue]:
        try:
            watched = await asyncio.to_thread(read, self._identity, self._machine_authority)
        except (OSError, ValueError) as error:
            details = f"cannot be used, those before them are: {error}"
            return [Issue("certificate/files", Severity.MAJOR, "certificate files", details, self._changed(now))]
        # A root that is both above the service and all that it trusts is one thing to look after.
        issuer = next((each.lifetime for each in watched if each.kind == ISSUER), None)
        told = [each for each in watched if not (each.kind == TRUST and each.lifetime == issuer)]
        return [issue for each in told if (issue := each.issue(now)) is not None]

    def _changed(self, now: datetime) -> datetime:
        """When the files were last touched, which is what made them unusable."""
        changed = []
        for path in (self._identity.ca, self._identity.cert, self._identity.key, self._machine_authority):
            try:
                changed += [path.stat().st_mtime] if path is not None else []
            except OSError:
                return now
        return datetime.fromtimestamp(max(changed), UTC)

    def _warn(self, near: Sequence[dict[str, str]]) -> None:
        if near and time.monotonic() - self._warned_at >= WARN_EVERY_SECONDS:
            self._warned_at = time.monotonic()
            for each in near:
                log.warning("certificate.ends_soon", service=self._service, hint=_RENEW, **each)


def peer_issues(peers: PeerCertificates, now: datetime) -> Iterable[Issue]:
    """What is wrong with the certificates that peers have shown, of those that still call."""
    for shown in peers.latest():
        caller = shown.caller
        if caller.kind not in _PEER_KINDS and caller != EDGE:
            continue
        if now.timestamp() - shown.used > PEER_FORGOTTEN.total_seconds():
            continue
        lifetime = Lifetime(datetime.fromtimestamp(shown.begins, UTC), datetime.fromtimestamp(shown.ends, UTC))
        issue = lifetime.issue(f"certificate/peer/{caller.label}", f"certificate of {caller.label}", _RENEW, now)
        if issue is not None:
            yield issue


def _lifetime(certificate: x509.Certificate) -> Lifetime:
    return Lifetime(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _end(lifetime: Lifetime) -> datetime:
    return lifetime.ends
