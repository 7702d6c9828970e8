"""Certificates for those outside of the containers, leaves and people, as a tar archive on standard output.

Nothing of it stays here: the private key exists once, where the archive is unpacked.
"""

from __future__ import annotations

import io
import tarfile
import time

from metal_kit.ca import Issued
from metal_kit.identity import client_id, leaf_id

from metal_init.certificates import CA, CERTIFICATE, Bearer, Certificates


def leaf(certificates: Certificates, partition: str, host: str) -> bytes:
    """`ca.crt`, `tls.crt` and `tls.key` of the agent on a leaf."""
    bearer = Bearer(leaf_id(partition, host))
    return _archive(certificates.trusted, certificates.issue(f"leaf-{host}", bearer))


def client(certificates: Certificates, name: str) -> bytes:
    """The same for a person's tools. It opens connections; what they may do is the bearer token's matter."""
    return _archive(certificates.trusted, certificates.issue(f"client-{name}", Bearer(client_id(name))))


def _archive(ca: bytes, issued: Issued) -> bytes:
    content = {CA: (ca, 0o644), f"{CERTIFICATE}.crt": (issued.cert, 0o644), f"{CERTIFICATE}.key": (issued.key, 0o600)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (data, mode) in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), mode, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
