"""Inventory: partitions, machines, sizes, images and filesystem layouts, and where each machine is in its life.

Inventory knows what a machine *is* and *does*; who gets a machine is decided by the allocation service.
"""
