"""Which VLAN of a leaf carries which VNI.

Pure rule. The plane numbers them and keeps the numbers; deriving them from a leaf's kernel, as metal-core does, hands
out a new number on every run once a netdev is missing, until the range is used up.

A number outlives the VNI's last port on the leaf and comes back to the same VNI. Only when every number has been used
does the one that has been unused for longest change its VNI, and only once the leaf has confirmed that it is gone:
SONiC's orchagent does not survive a VLAN that is deleted and added again in one go (sonic-buildimage 11944, 23506).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from metal_fabric.problems import Exhausted

# Range that metal-core uses for the VLANs of tenant VRFs.
FIRST_VLAN = 1001
LAST_VLAN = 2000


class Vlan(NamedTuple):
    """VLAN `id` carries `vni`; `released` is the generation that no longer needs it, 0 while it is in use."""

    vni: int
    id: int
    released: int = 0


def assign(known: Iterable[Vlan], vnis: Collection[int], *, generation: int, applied: int) -> dict[int, Vlan]:
    """VLANs by VNI for a leaf that shall carry `vnis` from `generation` on and has applied generation `applied`.

    Deterministic: new VNIs get the lowest unused numbers in their order. Raises Exhausted `VLANS_EXHAUSTED`.
    """
    assigned: dict[int, Vlan] = {}
    for vlan in known:
        if vlan.vni in vnis:
            assigned[vlan.vni] = vlan._replace(released=0)
        else:
            assigned[vlan.vni] = vlan if vlan.released else vlan._replace(released=generation)
    used = {vlan.id for vlan in assigned.values()}
    free = (number for number in range(FIRST_VLAN, LAST_VLAN + 1) if number not in used)
    for vni in sorted(set(vnis) - assigned.keys()):
        number = next(free, None)
        if number is None:
            number = _reclaim(assigned, applied)
        assigned[vni] = Vlan(vni, number)
    return assigned


def _reclaim(assigned: dict[int, Vlan], applied: int) -> int:
    gone = [vlan for vlan in assigned.values() if 0 < vlan.released <= applied]
    if not gone:
        raise Exhausted(
            "VLANS_EXHAUSTED",
            f"all {LAST_VLAN - FIRST_VLAN + 1} VLANs of the leaf carry a VRF; choose a machine on other leaves",
        )
    oldest = min(gone, key=lambda vlan: (vlan.released, vlan.id))
    del assigned[oldest.vni]
    return oldest.id


def in_use(vlans: Mapping[int, Vlan]) -> dict[int, int]:
    """VLAN number by VNI, of those that the leaf shall carry."""
    return {vni: vlan.id for vni, vlan in sorted(vlans.items()) if not vlan.released}
