"""Allocation: who gets which machine; allocate, install, free.

Owns allocations, claims and a projection of inventory's machines to choose from. Everything that takes longer than a
request is done by one controller, phase by phase (`phase.py`, `steps/`). Never writes into another service's tables.
"""
