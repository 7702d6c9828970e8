"""What a controller shows about itself; labels are the service, the kind, the phase and the outcome, never a key."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from metal_kit.db import Connection

OUTCOMES = Counter("metalplane_reconcile_outcomes", "Attempts that ended, by outcome.", ["service", "kind", "outcome"])
SECONDS = Histogram(
    "metalplane_reconcile_seconds",
    "Time of one attempt from load to saved outcome.",
    ["service", "kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
RUNNING = Gauge("metalplane_reconcile_running", "Keys that this replica works on now.", ["service", "kind"])
QUEUED = Gauge("metalplane_reconcile_queued", "Keys in the queue, waiting ones included.", ["service", "kind"])
LATE = Gauge("metalplane_reconcile_late_seconds", "How long the longest due key has waited.", ["service", "kind"])
OVERDUE = Gauge(
    "metalplane_reconcile_overdue", "Objects that have been in the phase for too long.", ["service", "kind", "phase"]
)

_STATE = """
    SELECT count(*) AS queued,
        coalesce(extract(epoch FROM clock_timestamp() - min(ready_at)), 0)::float8 AS late
    FROM reconcile_queue WHERE kind = $1
"""
_OVERDUE = "SELECT phase, count(*) AS objects FROM reconcile_queue WHERE kind = $1 AND overdue GROUP BY phase"


async def measure(connection: Connection, service: str, kind: str, phases: set[str]) -> None:
    """Set the gauges from the queue; `phases` are those seen so far, so that a phase that empties goes back to 0."""
    state = await connection.fetchrow(_STATE, kind)
    assert state is not None
    QUEUED.labels(service, kind).set(state["queued"])
    LATE.labels(service, kind).set(max(0.0, state["late"]))
    overdue = {row["phase"]: row["objects"] for row in await connection.fetch(_OVERDUE, kind)}
    phases.update(overdue)
    for phase in phases:
        OVERDUE.labels(service, kind, phase).set(overdue.get(phase, 0))
