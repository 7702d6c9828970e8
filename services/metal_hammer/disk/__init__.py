"""Disk layouts: what an image needs of the disks, the plan of commands that makes it, and carrying the plan out."""
