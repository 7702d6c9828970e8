"""Fabric: switches, their ports, the cabling of machines, and the desired state of every leaf.

Invariants of this service:

* A machine hangs on exactly two leaves of one rack in one partition, over mirrored ports.
* A leaf gets its whole desired state with a generation; only a real change makes a new generation.
* An attachment counts as confirmed only when each leaf involved echoed a generation that contains it.
* A stale owner changes nothing: attach and detach are bound to the allocation's id.

It never decides about VRFs, prefixes or owners: it is told. It never talks to a switch by itself: leaves call in.
"""
