"""A simulated SONiC leaf on a real Redis: the databases of a switch, and as much of orchagent as an agent waits for.

What is real: Redis, the tables and fields, the order in which objects come and go. What is not: there is no ASIC and no
FRR, so nothing forwards; `vrf_of` and `vlan_of` answer from CONFIG_DB what a forwarding ASIC would do. With a `Kernel`
as its hardware, Linux forwards in its place.
"""

from metal_sim.leaf.faults import LeafFaults
from metal_sim.leaf.hardware import Hardware
from metal_sim.leaf.kernel import Kernel
from metal_sim.leaf.leaf import SimLeaf
from metal_sim.leaf.rows import LeafSpec

__all__ = ["Hardware", "Kernel", "LeafFaults", "LeafSpec", "SimLeaf"]
