"""Figures of inventory for the metrics page; the kit counts calls, this counts what they were about."""

from __future__ import annotations

from prometheus_client import Counter

EVENTS = Counter(
    "metalplane_inventory_provisioning_events_total", "Provisioning events by type and verdict.", ["type", "verdict"]
)
REFUSED_BINDS = Counter(
    "metalplane_inventory_refused_binds_total", "Machines that an allocation asked for and did not get.", ["reason"]
)
SILENCED = Counter("metalplane_inventory_silent_machines_total", "Machines that were found to have fallen silent.")
