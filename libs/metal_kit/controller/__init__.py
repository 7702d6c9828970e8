"""Reconcilers: everything that takes longer than a request.

A thing to reconcile is a row of `reconcile_queue`, named by (kind, key). A worker claims it under a lease with a
fencing number, loads a snapshot, acts with no transaction open, and writes outcome, state, history and events in one
transaction that checks the object's version (the reconciler does, in `save`) and the fencing number (the queue does).
So a worker that was given up for dead can still act late, but can no longer write.

Level-triggered: what `act` does is decided by the snapshot alone, never by what woke it, so that a lost or doubled
wake-up costs time and nothing else. `act` runs again after any crash and must be safe to repeat.

Replicas share all keys, unless a service gives each replica shards of its own (`Controller(shards=…)`).

Not here: fan-out, priorities, ordering between keys, and remembering results of steps. The object's own row does that.
"""

from __future__ import annotations

from metal_kit.controller.history import HistoryEntry, read_history
from metal_kit.controller.outcome import Done, Failed, Go, Outcome, Reconciler, Snapshot, StaleSnapshot, Wait
from metal_kit.controller.queue import SHARDS, enqueue, shard_of
from metal_kit.controller.worker import Controller

__all__ = [
    "SHARDS",
    "Controller",
    "Done",
    "Failed",
    "Go",
    "HistoryEntry",
    "Outcome",
    "Reconciler",
    "Snapshot",
    "StaleSnapshot",
    "Wait",
    "enqueue",
    "read_history",
    "shard_of",
]
