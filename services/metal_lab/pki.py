"""The lab's authority and the certificates of everybody in it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from metal_kit.ca import Authority
from metal_kit.identity import client_id, leaf_id, partition_agent_id, service_id
from metal_kit.tls import Identity

SERVICES = ("tenancy", "inventory", "ipam", "allocation", "fabric", "bmc", "boot")
PARTITION_AGENTS = ("bmc", "boot")
# A lab is thrown away; a certificate that ends while somebody looks at it would only confuse.
TTL = timedelta(days=365)
SIGNING_KEY = "tokens.pem"
MACHINE_AUTHORITY = "machines"


class LabPki:
    """Certificates below one directory, made when they are missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._authority = Authority.load(directory)
        except FileNotFoundError:
            self._authority = Authority.create("metalplane lab")
            self._authority.save(directory)

    @property
    def ca(self) -> Path:
        """What everybody trusts."""
        return self._directory / "ca.crt"

    @property
    def token_key(self) -> Path:
        """Ed25519 key that tenancy signs tokens with."""
        path = self._directory / SIGNING_KEY
        if not path.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            path.touch(mode=0o600)
            path.write_bytes(pem)
        return path

    def machine_authority(self) -> Path:
        """Directory with the authority that boot signs machine certificates with."""
        cert, key = (self._directory / f"{MACHINE_AUTHORITY}.{kind}" for kind in ("crt", "key"))
        if not (cert.exists() and key.exists()):
            self._authority.machine_intermediate("machines of the lab").save(self._directory, MACHINE_AUTHORITY)
        return self._directory

    def service(self, name: str, partition: str) -> Identity:
        """A service's certificate; bmc and boot are agents of their partition."""
        spiffe = (
            partition_agent_id(partition, "bmc" if name == "bmc" else "boot")
            if name in PARTITION_AGENTS
            else service_id(name)
        )
        return self._identity(name, spiffe, [f"{name}.metalplane", "localhost"])

    def leaf(self, partition: str, host: str) -> Identity:
        """A leaf's certificate."""
        return self._identity(f"leaf-{host}", leaf_id(partition, host), [])

    def client(self, name: str) -> Identity:
        """A certificate that opens connections and authorises nothing."""
        return self._identity(f"client-{name}", client_id(name), [])

    def _identity(self, name: str, spiffe: str, dns: list[str]) -> Identity:
        cert, key = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        if not (cert.exists() and key.exists()):
            ips = ["127.0.0.1"] if dns else []
            self._authority.issue(name, spiffe, dns, ips, TTL).save(self._directory, name)
        return Identity(self.ca, cert, key)
