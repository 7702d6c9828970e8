"""Which replica a bucket of BMCs should belong to. Pure rules, no I/O.

Rendezvous hashing: each bucket goes to the living replica with the highest score for it. So all replicas come to the
same answer without talking to each other, and one that comes or goes moves only what it gets or had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from metal_kit.controller import SHARDS


@dataclass(frozen=True, slots=True)
class Tenure:
    """That a machine's bucket is ours, as long as the fence is the bucket's."""

    bucket: int
    fence: int


def score(replica: str, bucket: int) -> bytes:
    """How much a replica is meant for a bucket; the highest has it."""
    return hashlib.md5(f"{bucket}:{replica}".encode(), usedforsecurity=False).digest()


def share_of(replica: str, living: Collection[str]) -> frozenset[int]:
    """The buckets that should be this replica's. `living` holds itself, too."""
    others = [each for each in living if each != replica]
    return frozenset(
        bucket
        for bucket in range(SHARDS)
        if all(score(replica, bucket) > score(other, bucket) for other in others)
    )  # fmt: skip
