"""What is wrong with a service, or soon will be, told by itself (`metalplane.plane.v1.IssueService`).

A source looks when it is asked and answers with what is wrong now; nothing is stored. A source that cannot look is an
issue too.
"""

from __future__ import annotations

from metal_kit.issues.issue import Issue, Severity, Source

__all__ = ["Issue", "Severity", "Source"]
