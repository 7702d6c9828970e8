"""What a console printed last, by position: the number of bytes that were printed before it."""

from __future__ import annotations

_SLACK = 4


class Ring:
    """Keeps `size` bytes at least. `start` is the oldest position that is still there, `end` the next one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()
        self.start = 0

    @property
    def end(self) -> int:
        """How much was ever printed."""
        return self.start + len(self._kept)

    def append(self, data: bytes) -> None:
        """Print."""
        self._kept += data
        # Not at each append: cutting moves all that is kept.
        if len(self._kept) > self._size + self._size // _SLACK:
            surplus = len(self._kept) - self._size
            del self._kept[:surplus]
            self.start += surplus

    def read(self, position: int, most: int) -> bytes:
        """Up to `most` bytes from a position on that is not before `start`."""
        offset = position - self.start
        return bytes(self._kept[offset : offset + most])
