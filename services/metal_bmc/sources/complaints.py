"""What a source has trouble with: a log line and a count for what is new, an issue for as long as it is so."""

from __future__ import annotations

from datetime import datetime

from metal_kit.issues import Issue, Severity
from metal_kit.logs import get_logger

from metal_bmc import metrics
from metal_bmc.sources.source import Look, Trouble

log = get_logger(__name__)

_MOST_LOGGED = 20


class Complaints:
    """Of one source, by its name."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._known: frozenset[Trouble] = frozenset()
        self._since: datetime | None = None
        self._last = Look()

    def hear(self, look: Look, now: datetime) -> None:
        """Take what a look at the source gave."""
        troubles = frozenset(look.troubles)
        new = sorted(troubles - self._known, key=lambda each: (each.where, each.line))
        metrics.LEASE_PROBLEMS.inc(len(new))
        for each in new[:_MOST_LOGGED]:
            log.warning("bmc.discovery.trouble", file=each.where, line=each.line, cause=each.reason)
        if len(new) > _MOST_LOGGED:
            log.warning("bmc.discovery.more_trouble", source=self._source, count=look.trouble_count - _MOST_LOGGED)
        self._since = (self._since or now) if troubles else None
        self._known, self._last = troubles, look

    def issue(self) -> Issue | None:
        """What is wrong with the source; None when all of it can be read."""
        if not self._last.troubles or self._since is None:
            return None
        first = self._last.troubles[0]
        place = f"{first.where}, line {first.line}" if first.line else first.where
        others = self._last.trouble_count - 1
        rest = f", and {others} more" if others else ""
        help_ = "; the log has them (bmc.discovery.trouble). What could be read was used"
        severity, tail = (Severity.MAJOR, "; BMCs are not found there") if first.lost else (Severity.MINOR, help_)
        return Issue(
            f"discovery/source/{self._source}",
            severity,
            f"source {self._source} of BMCs",
            f"{place}: {first.reason}{rest}{tail}",
            self._since,
        )
