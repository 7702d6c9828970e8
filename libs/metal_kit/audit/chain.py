"""The chain: what a hash covers, and whether a chain that somebody shows us is whole. Pure.

A chain proves that nothing was changed, taken out, put in or swapped since its head was seen. It cannot prove that the
head is the true one: whoever can write the database can compute every hash anew. That is what anchors are for, heads
that were noted elsewhere: a chain that is shorter than its anchor, or says something else there, was rewritten.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import DecodeError
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditLink, AuditPhase, ChainEnds

# Retention keeps entries at least as long: an anchor that is younger is still in its chain.
LEAST_KEPT = timedelta(days=30)


class Broken(Exception):
    """The chain is not whole: from `sequence` on nothing is proved."""

    def __init__(self, sequence: int, what: str) -> None:
        super().__init__(what)
        self.sequence = sequence
        self.what = what


@dataclass(frozen=True, slots=True)
class Anchor:
    """A head that was noted outside of the database, and when."""

    sequence: int
    hash: bytes
    time: datetime


def origin(service: str) -> bytes:
    """What stands before the first entry of a service's chain."""
    return hashlib.sha256(f"metalplane audit {service}".encode()).digest()


def link_hash(before: bytes, sequence: int, entry: bytes) -> bytes:
    """The hash of a link; the migration's SQL computes the same."""
    return hashlib.sha256(before + sequence.to_bytes(8, "big") + entry).digest()


class Verification:
    """Follows one chain from its floor to its head. `take` each link, then `finish`; both raise Broken."""

    def __init__(self, service: str, ends: ChainEnds, anchor: Anchor | None, now: datetime) -> None:
        self.service = service
        self.entries = 0
        self.since: datetime | None = None
        self.until: datetime | None = None
        # Calls whose end has not come yet.
        self.open: set[str] = set()
        self._ends = ends
        self._anchor = anchor
        self._sequence, self._hash = ends.floor_sequence, ends.floor_hash
        self._floor_told = ends.floor_sequence == 0
        if self._floor_told and ends.floor_hash != origin(service):
            raise Broken(0, "the chain does not begin as the one of this service")
        self._meet_anchor_at_floor(now)

    @property
    def head(self) -> Anchor:
        """The last link that was taken, to be noted as an anchor."""
        return Anchor(self._sequence, self._hash, self.until or datetime.now(UTC))

    def take(self, link: AuditLink) -> AuditEntry:
        """Check the next link; its entry."""
        expected = self._sequence + 1
        if link.sequence != expected:
            last = link.sequence - 1
            missing = f"entry {expected} is" if last == expected else f"entries {expected} to {last} are"
            raise Broken(expected, f"{missing} missing" if last >= expected else f"{link.sequence} stands out of order")
        if link_hash(self._hash, link.sequence, link.entry) != link.hash:
            raise Broken(expected, "the hash does not fit: this entry or the one before was changed")
        if link.misfiled:
            raise Broken(expected, "the columns that lists search by were changed; the entry itself was not")
        try:
            entry = AuditEntry.FromString(link.entry)
        except DecodeError:
            raise Broken(expected, "this is no entry of an audit log") from None
        self._sequence, self._hash = link.sequence, link.hash
        self._meet_anchor()
        self._note(entry)
        return entry

    def finish(self) -> None:
        """Check what only the end shows."""
        head = self._ends
        if self._sequence < head.head_sequence:
            raise Broken(self._sequence + 1, f"the chain ends at {self._sequence} and should at {head.head_sequence}")
        if self._sequence > head.head_sequence:
            raise Broken(head.head_sequence + 1, f"entries stand beyond the chain's end at {head.head_sequence}")
        if self._hash != head.head_hash:
            raise Broken(self._sequence, "the head's hash is not the one of the last entry")
        if not self._floor_told:
            raise Broken(
                head.floor_sequence,
                f"entries up to {head.floor_sequence} are gone, and no entry says that retention did it",
            )
        if self._anchor is not None and self._anchor.sequence > self._sequence:
            raise Broken(
                self._sequence + 1,
                f"the chain ends at {self._sequence}; when the anchor was noted it went to {self._anchor.sequence}",
            )

    def _meet_anchor_at_floor(self, now: datetime) -> None:
        anchor = self._anchor
        if anchor is None or anchor.sequence > self._sequence:
            return
        if anchor.sequence == self._sequence:
            self._meet_anchor()
        elif now - anchor.time < LEAST_KEPT:
            raise Broken(
                anchor.sequence,
                f"entry {anchor.sequence} of the anchor is gone, younger than anything retention removes",
            )

    def _meet_anchor(self) -> None:
        anchor = self._anchor
        if anchor is not None and anchor.sequence == self._sequence and anchor.hash != self._hash:
            raise Broken(self._sequence, "the anchor has another hash for this entry: the chain was rewritten")

    def _note(self, entry: AuditEntry) -> None:
        self.entries += 1
        time = entry.time.ToDatetime(tzinfo=UTC)
        self.since, self.until = self.since or time, time
        if entry.phase == AuditPhase.AUDIT_PHASE_BEGUN:
            self.open.add(entry.call)
        elif entry.phase in {AuditPhase.AUDIT_PHASE_ENDED, AuditPhase.AUDIT_PHASE_REFUSED}:
            self.open.discard(entry.call)
        elif entry.phase == AuditPhase.AUDIT_PHASE_PRUNED:
            said = entry.pruned
            if (said.sequence, said.hash) == (self._ends.floor_sequence, self._ends.floor_hash):
                self._floor_told = True
