"""How the installer gets its certificate: the one-time ramdisk token from the kernel command line, for a short-lived
one.

The key is made here and never leaves the machine. The token works once and only for this machine and this boot, so that
a command line that somebody reads later is worth nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from metal_hammer.failure import Code, Step, StepFailed

DEADLINE = 15.0
"""Seconds for one attempt."""

ATTEMPTS = 5
_MAX_ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True)
class BootParameters:
    """What the kernel command line says to the installer. The token is a secret until it has been used."""

    boot_url: str
    machine_id: str
    token: str
    session: str

    def __repr__(self) -> str:
        return f"BootParameters(boot_url={self.boot_url!r}, machine_id={self.machine_id!r})"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Paths of the certificate files, and the address of boot's gRPC API.

    `clock_behind` is how many seconds this machine's clock is behind boot's, to the second; negative when it is ahead.
    A hardware clock that runs in local time is hours off, and the ends of grants are in boot's time.
    """

    ca: Path
    cert: Path
    key: Path
    endpoint: str
    clock_behind: float = 0.0


def parse_command_line(text: str) -> BootParameters:
    """Read `metal.url`, `metal.machine`, `metal.token`, `metal.session`. Raises StepFailed, naming what is missing."""
    found: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals and name.startswith("metal."):
            found[name] = value
    missing = [name for name in ("metal.url", "metal.machine", "metal.token", "metal.session") if not found.get(name)]
    if missing:
        raise StepFailed(Step.ENROL, Code.ENROL_FAILED, f"the kernel command line lacks {', '.join(missing)}")
    return BootParameters(
        found["metal.url"].rstrip("/"), found["metal.machine"].lower(), found["metal.token"], found["metal.session"]
    )


async def enrol(parameters: BootParameters, directory: Path) -> Enrolment:
    """Exchange the token for a certificate; writes ca.crt, machine.crt and machine.key to `directory` (0700).

    Raises StepFailed: at once when boot refuses, after some attempts when it cannot be reached.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, parameters.machine_id)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    body = {
        "machine": parameters.machine_id,
        "token": parameters.token,
        "csr": request.public_bytes(serialization.Encoding.PEM).decode(),
    }
    answer, behind = await _exchange(f"{parameters.boot_url}/v1/certificate", body)
    try:
        ca, chain, endpoint = str(answer["ca"]), str(answer["certificate"]), str(answer["endpoint"])
        x509.load_pem_x509_certificates(ca.encode())
        leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    except (KeyError, ValueError) as error:
        raise StepFailed(Step.ENROL, Code.ENROL_FAILED, "boot answered with something else") from error
    if leaf.public_key() != key.public_key():
        raise StepFailed(Step.ENROL, Code.ENROL_FAILED, "the certificate is for another key")
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    enrolment = await asyncio.to_thread(_save, directory, ca.encode(), chain.encode(), private, endpoint)
    return replace(enrolment, clock_behind=behind)


async def _exchange(url: str, body: Mapping[str, str]) -> tuple[Mapping[str, object], float]:
    """Boot's answer, and how far this machine's clock is behind the answer's date."""
    problem = ""
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(min(8.0, 0.5 * 2.0**attempt))
            try:
                async with session.post(url, json=body, allow_redirects=False) as response:
                    if response.status == 200:
                        behind = _behind(response.headers.get("Date", ""))
                        return _mapping(await _body(response)), behind
                    problem = f"HTTP status {response.status}"
                    if response.status < 500 and response.status != 429:
                        break
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = type(error).__name__
    raise StepFailed(Step.ENROL, Code.ENROL_FAILED, f"no certificate from boot: {problem}")


def _behind(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer. One read gives no more than has arrived: on a real network the first segment of several."""
    raw = b""
    async for piece in response.content.iter_any():
        raw += piece
        if len(raw) > _MAX_ANSWER:
            break
    return raw


def _mapping(raw: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _save(directory: Path, ca: bytes, chain: bytes, key: bytes, endpoint: str) -> Enrolment:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = [directory / name for name in ("ca.crt", "machine.crt", "machine.key")]
    for path, content in zip(paths, (ca, chain, key), strict=True):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return Enrolment(paths[0], paths[1], paths[2], endpoint)
