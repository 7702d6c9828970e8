"""Certificates for machines: a good token and a signing request in, a short-lived client certificate out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from metal_kit.ca import Authority, requested_key
from metal_kit.errors import Unauthenticated
from metal_kit.identity import machine_id as machine_spiffe_id
from metal_kit.ids import parse_uuid
from metal_kit.logs import get_logger

from metal_boot import metrics
from metal_boot.tokens import RamdiskTokens, TokenRefused

log = get_logger(__name__)

LIFETIME = timedelta(hours=28)
"""Longer than an installer waits before it starts anew, which is at most a day, and then installs; there is no renewal
and no revocation."""


class MachineAuthorityFiles:
    """The authority that signs machines, and what they verify the plane with: as the files are now.

    Both are renewed while the service runs. While a renewal has replaced one file and not yet the other, or when the
    new files are damaged, those before them go on being used.
    """

    def __init__(self, directory: Path, name: str, roots: Path) -> None:
        """Raises OSError or ValueError when a file is missing or damaged: a service does not start like that."""
        self._directory, self._name, self._roots = directory, name, roots
        self._authority = Authority.load(directory, name)
        self._pem = roots.read_bytes()
        self._complained = ""

    @property
    def certificate(self) -> Path:
        """The file with the authority's certificate."""
        return self._directory / f"{self._name}.crt"

    def authority(self) -> Authority:
        """The authority to sign with."""
        try:
            self._authority = Authority.load(self._directory, self._name)
            self._complained = ""
        except (OSError, ValueError) as error:
            self._complain(error)
        return self._authority

    def roots(self) -> bytes:
        """What machines verify boot with, PEM."""
        try:
            self._pem = self._roots.read_bytes() or self._pem
        except OSError as error:
            self._complain(error)
        return self._pem

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complained:
            self._complained = str(error)
            log.warning("machine_authority.unreadable", error=str(error), hint="the one before it is still used")


@dataclass(frozen=True, slots=True)
class MachineCertificates:
    """Issues certificates; `lifetime` bounds each of them."""

    files: MachineAuthorityFiles
    tokens: RamdiskTokens
    lifetime: timedelta = LIFETIME

    def issue(self, machine: str, token: str, csr: bytes) -> bytes:
        """A certificate chain (PEM) for the machine that the token was issued to.

        The request is checked before the token is used up, so that a broken request can be sent again. Raises
        InvalidArgument for `machine` or `csr`, and Unauthenticated, which does not say why.
        """
        uuid = parse_uuid(machine, field="machine")
        requested_key(csr)
        try:
            redeemed = self.tokens.redeem(token, uuid)
        except TokenRefused as refused:
            metrics.TOKENS.labels(refused.refusal).inc()
            log.warning("token.refused", machine=uuid, refusal=refused.refusal)
            raise Unauthenticated("TOKEN_REFUSED", "the token is not good for this machine") from refused
        metrics.TOKENS.labels("redeemed").inc()
        # The session is the serial number: what the certificate may register is this boot and no other.
        chain = self.files.authority().sign_request(
            csr, uuid, machine_spiffe_id(uuid), self.lifetime, serial=UUID(redeemed.session).int
        )
        log.info("certificate.issued", machine=uuid, session=redeemed.session)
        return chain
