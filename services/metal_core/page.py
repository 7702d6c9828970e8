"""The metrics of a leaf's agent, as Prometheus reads them.

Labels are bounded: phases, groups and states are known beforehand, ports and VRFs are no labels. Each agent has a
registry of its own, since several may run in one process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from metal_kit import metrics
from metal_kit.metrics import MetricsPage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from metal_core.bgp_state import Session
from metal_core.condition import FABRIC, Condition
from metal_core.outcome import Outcome

PHASES = ("prepare", "apply", "verify", "commit", "rollback")
GROUPS = (FABRIC, "FIREWALL", "MACHINE")
OTHER = "other"
# A session that reaches its limit is ended by FRR.
_NEAR_TENTHS = 9


def listen(condition: Condition, endpoint: str) -> MetricsPage:
    """Serve `/metrics` and `/health` on `host:port`. Raises OSError when the address cannot be had."""
    page = Page(condition)
    served = metrics.listen(endpoint, page.registry, {"/health": condition.health})
    condition.count = page.ran
    return served


class Page:
    """What the page tells of `condition`."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self.registry = CollectorRegistry()
        self._phases = Histogram(
            "metalplane_core_phase_seconds",
            "Time of each phase of a run that brings the leaf to its desired state.",
            ["phase"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self._runs = Counter(
            "metalplane_core_runs", "Runs, by whether the leaf had its state after them.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self._size = Gauge("metalplane_core_last_delta", "What the last run changed.", ["kind"], registry=self.registry)
        self.registry.register(self)

    def ran(self, outcome: Outcome) -> None:
        """A run has ended."""
        for phase, seconds in outcome.durations.items():
            self._phases.labels(phase if phase in PHASES else OTHER).observe(seconds)
        self._runs.labels("applied" if outcome.applied else "failed").inc()
        self._size.labels("rows").set(outcome.changed)
        self._size.labels("frr_commands").set(outcome.frr_commands)

    def collect(self) -> Iterator[Metric]:
        """What is read when somebody looks, for the registry."""
        seen, progress = self._condition.seen, self._condition.progress()
        generations = GaugeMetricFamily("metalplane_core_generation", "Generations of the leaf.", labels=["what"])
        generations.add_metric(["desired"], progress.desired)
        generations.add_metric(["applied"], progress.applied)
        yield generations
        yield GaugeMetricFamily(
            "metalplane_core_drift", "Differences made by others that are still there.", value=progress.drifted
        )
        yield GaugeMetricFamily(
            "metalplane_core_report_age_seconds", "How long the oldest report waits to be acknowledged.",
            value=progress.waiting,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "metalplane_core_last_success_timestamp_seconds", "When the leaf was last seen to have its state.",
            value=seen.succeeded_at,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "metalplane_core_lldp_neighbours", "Ports with an LLDP neighbour.", value=seen.neighbours
        )
        uplinks = GaugeMetricFamily("metalplane_core_uplinks", "Uplinks, by their state.", labels=["state"])
        up = sum(seen.states.get(port) == "up" for port in seen.uplinks)
        uplinks.add_metric(["up"], up)
        uplinks.add_metric(["down"], len(seen.uplinks) - up)
        yield uplinks
        yield from _session_metrics(seen.sessions or ())


def _session_metrics(sessions: Collection[Session]) -> Iterator[Metric]:
    counted = {(group, state): 0 for group in (*GROUPS, OTHER) for state in ("established", "down")}
    near = 0
    for each in sessions:
        group = each.peer_group if each.peer_group in GROUPS else OTHER
        counted[group, "established" if each.established else "down"] += 1
        near += sum(
            1 for _, family in each.families if family.limit and family.accepted * 10 >= family.limit * _NEAR_TENTHS
        )
    metric = GaugeMetricFamily("metalplane_core_bgp_sessions", "BGP sessions.", labels=["group", "state"])
    for labels, number in counted.items():
        metric.add_metric(labels, number)
    yield metric
    yield GaugeMetricFamily(
        "metalplane_core_prefix_limits_near",
        "Sessions near the prefixes that they may announce, by family.",
        value=near,
    )
