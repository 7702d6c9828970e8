"""Etags: the version of a row, as text. An update or delete that names one fails when the row has moved on."""

from __future__ import annotations

from metal_kit.errors import Aborted


def check_etag(etag: str, version: int, *, what: str) -> None:
    """Raise Aborted unless `etag` is empty, which takes whatever version there is, or names `version`."""
    if etag and etag != str(version):
        raise Aborted(
            "ETAG_MISMATCH", f"{what} has changed since you read it; read it again", metadata={"etag": str(version)}
        )
