"""Wiping disks: which method, doing it, and proving it."""
