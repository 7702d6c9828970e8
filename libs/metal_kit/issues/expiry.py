"""When the end of a certificate becomes an issue. Pure: certificates and the time come from the caller.

MINOR in the last third of its lifetime, which is when `metal-init` renews it; MAJOR when a renewal has evidently not
happened; CRITICAL when an outage is next. Long-lived authorities do not spend years as issues, and short-lived
certificates have less than days for each of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from metal_kit.issues.issue import Issue, Severity

_MINOR_AT_MOST = timedelta(days=180)
_MAJOR_AT_LEAST, _MAJOR_AT_MOST = timedelta(days=7), timedelta(days=30)
_CRITICAL = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """From when until when a certificate holds."""

    begins: datetime
    ends: datetime

    @property
    def span(self) -> timedelta:
        """How long it holds altogether."""
        return self.ends - self.begins

    def severity(self, now: datetime) -> Severity | None:
        """How bad it is that so much, or so little, of the lifetime is left; None when all is well."""
        left = self.ends - now
        for severity in (Severity.CRITICAL, Severity.MAJOR, Severity.MINOR):
            if left <= limit(severity, self.span):
                return severity
        return None

    def issue(self, id_: str, subject: str, help_: str, now: datetime) -> Issue | None:
        """The issue of a certificate; None when all is well."""
        severity = self.severity(now)
        if severity is None:
            return None
        end = f"{self.ends:%Y-%m-%d %H:%MZ}"
        details = f"ended at {end}" if self.ends <= now else f"ends at {end}, {_left(self.ends - now)} from now"
        since = self.ends - limit(Severity.MINOR, self.span)
        return Issue(id_, severity, subject, f"{details}; {help_}", since)


def limit(severity: Severity, span: timedelta) -> timedelta:
    """The time before its end at which a certificate that lasts `span` becomes an issue of this severity."""
    minor = min(span / 3, _MINOR_AT_MOST)
    if severity is Severity.MINOR:
        return minor
    # Seven days or a tenth; of short ones no more than a fifth, or there would be nothing between well and bad.
    major = min(max(span / 10, min(_MAJOR_AT_LEAST, span / 5)), _MAJOR_AT_MOST)
    return major if severity is Severity.MAJOR else min(_CRITICAL, span / 20)


def _left(span: timedelta) -> str:
    hours = int(span.total_seconds() // 3600)
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours} h {int(span.total_seconds() // 60) % 60} min"
