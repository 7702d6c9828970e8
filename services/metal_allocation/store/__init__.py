"""SQL of allocation, one class an aggregate; every method joins the caller's connection."""

from __future__ import annotations

from metal_allocation.store.allocations import AllocationStore, ListFilter, changing
from metal_allocation.store.placements import CandidateFacts, PlacementStore

__all__ = ["AllocationStore", "CandidateFacts", "ListFilter", "PlacementStore", "changing"]
