"""What an operator watches: whether BMCs answer, how commands end, whether driver processes die."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EXCHANGES = Histogram(
    "metalplane_bmc_exchange_seconds",
    "Exchanges with BMCs by result: OK, or the reason of the failure.",
    ["result"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20),
)
COMMANDS = Counter("metalplane_bmc_commands_total", "Commands that ended.", ["action", "state", "reason"])
DRIVER_ENDS = Counter(
    "metalplane_bmc_driver_ends_total", "Driver processes that ended, by cause: worn, died, overran.", ["cause"]
)
DROPPED_DATAGRAMS = Counter(
    "metalplane_bmc_dropped_datagrams_total",
    "Datagrams on the RMCP+ sockets that belonged to no exchange or session, by cause.",
    ["cause"],
)
CONSOLES = Gauge("metalplane_bmc_consoles", "Serial consoles that are open or being opened.")
CONSOLE_LOSSES = Counter("metalplane_bmc_console_losses_total", "Times that an open serial console was lost.")
LEASE_PROBLEMS = Counter(
    "metalplane_bmc_lease_problems_total", "Records of lease files, and whole files, that could not be read."
)
OWNED_BUCKETS = Gauge(
    "metalplane_bmc_owned_buckets", "Buckets of BMCs that this replica owns, of the partition's 256.", ["partition"]
)
