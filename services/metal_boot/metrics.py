"""What metal-boot counts. Labels are answers, orders and reasons from fixed lists; never a machine."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

DECISIONS = Counter(
    "metalplane_boot_decisions",
    "Boot requests answered, by answer and whether the plane was asked.",
    ["answer", "plane"],
)
DECISION_SECONDS = Histogram(
    "metalplane_boot_decision_seconds",
    "Time from a boot request to its answer, in seconds.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
UNEXPECTED = Counter(
    "metalplane_boot_unexpected", "Network boots of machines that should have booted their local disk."
)
REPORTS_DROPPED = Counter("metalplane_boot_reports_dropped", "Boots that inventory was never told of.")
TOKENS = Counter("metalplane_boot_tokens", "Ramdisk tokens that were presented, by what became of them.", ["outcome"])
ORDERS = Counter("metalplane_boot_orders", "New orders given to installers, by kind.", ["order"])
STREAMS = Gauge("metalplane_boot_work_streams", "Work streams that are open now.")
WIPES_FAILED = Counter("metalplane_boot_wipes_failed", "Disks that could not be wiped.")
INSTALLATIONS = Counter(
    "metalplane_boot_installations", "Installations that ended, by step that failed.", ["failed_step"]
)
