"""Figures of allocation for the metrics page; the kit counts calls and outcomes, this counts what they were about."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

CREATED = Counter("metalplane_allocation_created_total", "Allocations that got a machine, by role.", ["role"])
NO_MACHINE = Counter("metalplane_allocation_no_machine_total", "Requests that found no machine.", ["partition", "size"])
REFUSED = Counter(
    "metalplane_allocation_refused_machines_total",
    "Machines that were chosen and then refused, by inventory's reason or the layout's.",
    ["reason"],
)
PHASE_SECONDS = Histogram(
    "metalplane_allocation_phase_seconds",
    "How long allocations were in a phase before they left it.",
    ["phase"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
)
INSTALL_FAILURES = Counter("metalplane_allocation_install_failures_total", "Installations that failed.")
UNKNOWN_BINDINGS = Counter(
    "metalplane_allocation_unknown_bindings_total",
    "Machines that were found bound to an allocation that does not exist; an operator has to look.",
)
