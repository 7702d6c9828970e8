"""The folders of secrets: one for each bearer, holding what that bearer needs and nothing else.

Making them again changes only what is missing, about to end or no longer right. Keys and passwords are never made
twice: what is sealed, signed or stored under them would be lost.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from metal_kit.identity import client_id, partition_agent_id, service_id

from metal_init import files, nats
from metal_init.certificates import Bearer, Certificates
from metal_init.settings import Settings

# Services of the whole plane, and those of one partition.
CENTRAL = ("tenancy", "inventory", "ipam", "allocation", "fabric")
OF_PARTITION = ("bmc", "boot")
SERVICES = CENTRAL + OF_PARTITION
WITH_DATABASE = tuple(name for name in SERVICES if name != "boot")
MACHINE_AUTHORITY = "machines"
EDGE_SERVER = "server"
# Certificates of clients that are not people's. Services believe the edge where a call came from.
OWN_CLIENTS = frozenset({"edge", "nats"})
ENVIRONMENT = "env"
# Where every container finds its own folder.
MOUNTED = "/run/metalplane"
NATS_STORE = "/data"
NATS_LISTEN = "0.0.0.0:4222"
NATS_MONITOR = "127.0.0.1:8222"


@dataclass(frozen=True)
class Passwords:
    """Passwords that two sides have to know, kept beside the authority."""

    directory: Path

    def of(self, server: str, name: str) -> str:
        """Of `name` on the server (`postgres`, `nats`)."""
        return files.kept(self.directory / f"{server}-{name}.password", token)


def token() -> str:
    """A new secret that needs no quoting anywhere: 64 hexadecimal digits, 256 bits."""
    return secrets.token_hex(32)


def set_up(settings: Settings, certificates: Certificates) -> list[str]:
    """Make the folders of the whole plane; the names of the certificates that were issued."""
    root = settings.root
    passwords = Passwords(root / "authority")
    issued = []
    for name in SERVICES:
        folder = root / name
        if certificates.put(folder, bearer_of(name, settings.partition)):
            issued.append(name)
        values = common_values(settings, passwords, name) | own_values(folder, name)
        files.write_if_changed(folder / ENVIRONMENT, files.environment(values))
    if put_machine_authority(certificates, root / "boot", settings.partition):
        issued.append("machine authority")
    files.kept(root / "tenancy" / "token.pem", signing_key)
    issued += _edge(settings, certificates)
    issued += _servers(settings, certificates, passwords)
    return issued


def bearer_of(name: str, partition: str) -> Bearer:
    """Whom a service's certificate names: bmc and boot are agents of their partition."""
    spiffe = service_id(name)
    if name in OF_PARTITION:
        spiffe = partition_agent_id(partition, "bmc" if name == "bmc" else "boot")
    return Bearer(spiffe, (f"{name}.metalplane",))


def common_values(settings: Settings, passwords: Passwords, name: str) -> dict[str, str]:
    """Secret settings that services share in kind."""
    values = {"METALPLANE_NATS_URL": f"tls://{name}:{passwords.of('nats', name)}@{settings.nats_server}"}
    if name in WITH_DATABASE:
        login = f"{name}:{passwords.of('postgres', name)}"
        database = quote(settings.database_name, safe="")
        values["METALPLANE_DATABASE_URL"] = f"postgresql://{login}@{settings.database_server}/{database}"
        values["METALPLANE_PAGING_KEY"] = passwords.of("paging", name)
    return values


def own_values(folder: Path, name: str) -> dict[str, str]:
    """Secret settings that only this service has."""
    makers: dict[str, tuple[str, Callable[[], str]]] = {
        "bmc": ("METALPLANE_CREDENTIAL_KEYS", _key_ring),
        "boot": ("METALPLANE_TOKEN_KEY", token),
    }
    if name not in makers:
        return {}
    setting, make = makers[name]
    return {setting: files.kept(folder / f"{setting.removeprefix('METALPLANE_').lower()}.secret", make)}


def put_machine_authority(certificates: Certificates, folder: Path, partition: str) -> bool:
    """Have the authority that a partition's boot service signs machines with."""
    return certificates.put_machine_authority(folder, MACHINE_AUTHORITY, partition)


def signing_key() -> str:
    """A new Ed25519 key, PEM, for tenancy's tokens."""
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def _key_ring() -> str:
    return f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}"


def _edge(settings: Settings, certificates: Certificates) -> list[str]:
    """The edge shows one certificate to clients and another one to services. Neither bears a service's name: whoever
    takes the edge over reads what passes through it, and still cannot pose as tenancy towards the other services."""
    folder = settings.root / "edge"
    issued = []
    if certificates.put(folder, Bearer(client_id("edge"))):
        issued.append("edge")
    names = ("edge.metalplane", *settings.edge_names)
    if certificates.put(folder, Bearer(client_id("edge"), names), EDGE_SERVER):
        issued.append("edge server")
    return issued


def _servers(settings: Settings, certificates: Certificates, passwords: Passwords) -> list[str]:
    root = settings.root
    host = settings.nats_server.rpartition(":")[0].strip("[]")
    issued = ["nats"] if certificates.put(root / "nats", Bearer(client_id("nats"), (host, "nats.metalplane"))) else []
    logins = {name: passwords.of("nats", name) for name in SERVICES}
    configuration = nats.configuration(
        logins, listen=NATS_LISTEN, monitor=NATS_MONITOR, folder=MOUNTED, store=NATS_STORE
    )
    files.write_if_changed(root / "nats" / "nats.conf", configuration.encode())
    administrator = passwords.of("postgres", "postgres")
    files.write_if_changed(root / "postgres" / "password", administrator.encode())
    roles = {name: passwords.of("postgres", name) for name in WITH_DATABASE}
    database = quote(settings.database_name, safe="")
    values = {
        "METALPLANE_INIT_DATABASE_URL": f"postgresql://postgres:{administrator}@{settings.database_server}/{database}",
        "METALPLANE_INIT_DATABASE_ROLES": json.dumps(roles),
    }
    files.write_if_changed(root / "database" / ENVIRONMENT, files.environment(values))
    return issued
