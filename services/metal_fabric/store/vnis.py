"""Which network a VNI belongs to, as those say who attach machines."""

from __future__ import annotations

from collections.abc import Mapping

from metal_kit.db import Connection
from metal_kit.logs import get_logger

from metal_fabric.problems import Refused

log = get_logger(__name__)

_SHARE = "SELECT true FROM vni_network WHERE vni = $1 AND network = $2 FOR SHARE"
_INSERT = "INSERT INTO vni_network (vni, network) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true"
_OTHER = "SELECT network FROM vni_network WHERE vni = $1 FOR UPDATE"
# Two statements, so that an index serves each. Materialized: where the planner knows of the limit, it hopes to come
# upon such a row soon by reading all of them.
_USER = """
    WITH users AS MATERIALIZED (SELECT machine FROM attachment WHERE {with_vni})
    SELECT machine FROM users WHERE machine <> $2 LIMIT 1
"""
_IN_VRF = _USER.format(with_vni="vrf = $1 AND vrf <> 0")
_WITH_VNI = _USER.format(with_vni="vnis @> ARRAY[$1::int]")
_UPDATE = "UPDATE vni_network SET network = $2 WHERE vni = $1"


class VniStore:
    """VNIs, by number."""

    async def claim(self, conn: Connection, networks: Mapping[int, str], machine: str) -> None:
        """Let these VNIs belong to these networks while the machine is attached with them.

        Raises Refused `VNI_OF_OTHER_NETWORK` while another machine is attached with one that is another network's.
        """
        # In the order of their numbers, as everybody takes them. Attachments of one network do not wait for each other.
        for vni, network in sorted(networks.items()):
            if await conn.fetchval(_SHARE, vni, network) or await conn.fetchval(_INSERT, vni, network):
                continue
            known = await conn.fetchval(_OTHER, vni)
            if known == network:
                continue
            # Behind the lock: nobody else is about to attach a machine with this number.
            user = await conn.fetchval(_IN_VRF, vni, machine) or await conn.fetchval(_WITH_VNI, vni, machine)
            if user is not None:
                # The project's viewers read the refusal, and the other network and its machine may be another tenant's.
                log.warning(
                    "vni.of_other_network", vni=vni, network=network, machine=machine, owner=known, attached=str(user)
                )
                raise Refused(
                    "VNI_OF_OTHER_NETWORK",
                    f"VNI {vni} belongs to another network, with which machines are attached, so network {network} "
                    "cannot have it; give one of them another VRF. An operator finds the other one in fabric's log",
                    field=f"networks[{vni}]",
                )
            await conn.execute(_UPDATE, vni, network)
