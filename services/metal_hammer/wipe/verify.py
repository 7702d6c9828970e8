"""Proof that a disk was erased: canaries before, samples after.

Zeros alone prove nothing on a disk that was empty, and a crypto erase does not leave zeros. So random canaries are
written at sample positions first; after the erase none of them may be there, and where the method promises zeros every
sample must be zeros. Both ends of the disk are always sampled, because that is where partition tables and RAID metadata
live. Nothing here decides whether a disk may be touched: the caller holds the grant.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass

from metal_hammer.hardware.base import Hardware
from metal_hammer.wipe.methods import After

BLOCK = 4096
"""Bytes of one sample; also the largest sector size of today's disks, so that direct reads are aligned."""

SAMPLES = 64
"""Samples of one disk, the first and the last block among them."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Random blocks that were written to a disk, by offset."""

    device: str
    blocks: dict[int, bytes]


def positions(size_bytes: int, *, samples: int = SAMPLES, seed: int) -> list[int]:
    """Offsets to sample, ascending, aligned to `BLOCK`, without duplicates, all inside of the disk.

    The first and the last block are always among them; the others are one in each of equal slices, at a place in the
    slice that the seed decides.
    """
    blocks = size_bytes // BLOCK
    if blocks <= 0:
        return []
    chosen = {0, blocks - 1}
    inner = max(0, min(samples, blocks) - 2)
    choose = random.Random(seed)
    for number in range(inner):
        low, high = number * blocks // inner, (number + 1) * blocks // inner
        chosen.add(choose.randrange(low, max(low + 1, high)))
    return [block * BLOCK for block in sorted(chosen)]


async def plant(hardware: Hardware, *, device: str, size_bytes: int) -> Canaries:
    """Write canaries to the disk. Raises OSError, also when a canary does not read back: such a disk proves nothing."""
    offsets = positions(size_bytes, seed=secrets.randbits(64))
    if not offsets:
        raise OSError(f"{device} is smaller than one block of {BLOCK} bytes")
    canaries = Canaries(device, {offset: secrets.token_bytes(BLOCK) for offset in offsets})
    for offset, block in canaries.blocks.items():
        await hardware.write_at(device, offset, block)
    await hardware.flush(device)
    for offset, block in canaries.blocks.items():
        if await hardware.read_at(device, offset, BLOCK) != block:
            raise OSError(f"{device} does not hold at {offset} what was written there")
    return canaries


async def check(hardware: Hardware, canaries: Canaries, after: After) -> str:
    """Read the samples back. Returns why the disk is not erased, or an empty string. Raises OSError."""
    for offset, block in canaries.blocks.items():
        read = await hardware.read_at(canaries.device, offset, BLOCK)
        if len(read) != BLOCK:
            return f"short read at {offset}"
        if read == block:
            return f"old data at {offset}"
        if after is After.ZEROS and any(read):
            return f"not zero at {offset}"
    return ""
