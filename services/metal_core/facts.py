"""Which of the facts that a plan waits for hold: read from STATE_DB, COUNTERS_DB, ASIC_DB and APPL_DB.

A row in CONFIG_DB is a wish; these databases say what orchagent and the ASIC made of it. VRFs and VLANs announce
themselves in STATE_DB. Router interfaces and bridge ports are SAI objects in ASIC_DB, found by the name maps of
COUNTERS_DB. Speed and error correction of a port are in APPL_DB's PORT_TABLE as they were handed to orchagent, and in
STATE_DB's as the port really runs, while its link is up.
"""

from __future__ import annotations

from collections.abc import Iterable

from metal_core.plan import Condition, Fact
from metal_core.sonic import Hash, Sonic, hashes, scan

_FIELDS = {Fact.SPEED: "speed", Fact.FEC: "fec"}
_PRESENT = frozenset({Fact.RIF_PRESENT, Fact.BRIDGE_PORT_PRESENT, Fact.VRF_PRESENT, Fact.VLAN_PRESENT})


async def unmet(sonic: Sonic, conditions: Iterable[Condition]) -> list[Condition]:
    """Those of `conditions` that do not hold now. Raises SonicUnavailable."""
    wanted = list(conditions)

    def about(*facts: Fact) -> set[str]:
        return {condition.name for condition in wanted if condition.fact in facts}

    there: dict[Fact, set[str]] = {}
    there[Fact.RIF_PRESENT] = await _router_interfaces(sonic, about(Fact.RIF_PRESENT, Fact.RIF_GONE))
    there[Fact.BRIDGE_PORT_PRESENT] = await _bridge_ports(sonic, about(Fact.BRIDGE_PORT_PRESENT, Fact.BRIDGE_PORT_GONE))
    there[Fact.VRF_PRESENT] = await _objects(sonic, "VRF_OBJECT_TABLE", about(Fact.VRF_PRESENT, Fact.VRF_GONE))
    there[Fact.VLAN_PRESENT] = await _objects(sonic, "VLAN_TABLE", about(Fact.VLAN_PRESENT, Fact.VLAN_GONE))
    there[Fact.RIF_GONE] = there[Fact.RIF_PRESENT]
    there[Fact.BRIDGE_PORT_GONE] = there[Fact.BRIDGE_PORT_PRESENT]
    there[Fact.VRF_GONE] = there[Fact.VRF_PRESENT]
    there[Fact.VLAN_GONE] = there[Fact.VLAN_PRESENT]
    ports = await _ports(sonic, about(*_FIELDS))
    return [
        condition
        for condition in wanted
        if (condition.fact in _FIELDS and not _runs(_FIELDS[condition.fact], condition.value, *ports[condition.name]))
        or (
            condition.fact not in _FIELDS
            and (condition.name in there[condition.fact]) is not (condition.fact in _PRESENT)
        )
    ]


async def _ports(sonic: Sonic, names: set[str]) -> dict[str, tuple[Hash, Hash]]:
    """The rows of ports in APPL_DB and in STATE_DB, empty where there is none."""
    if not names:
        return {}
    handed, real = await sonic.rows("APPL_DB", "PORT_TABLE", names), await sonic.rows("STATE_DB", "PORT_TABLE", names)
    return {name: (handed.get(name, {}), real.get(name, {})) for name in names}


def _runs(field: str, value: str, handed: Hash, real: Hash) -> bool:
    """Whether a port has taken the value; of one without a link, or in a release that does not say, nothing is known
    but that it was handed on. What is negotiated with the other end may well be something else."""
    if handed.get(field) != value:
        return False
    negotiated = value == "auto" or handed.get("autoneg") == "on"
    unknown = handed.get("oper_status") != "up" or real.get(field, "") in {"", "0", "N/A"}
    return negotiated or unknown or real[field] == value


async def _objects(sonic: Sonic, table: str, names: set[str]) -> set[str]:
    if not names:
        return set()
    keys = {sonic.key("STATE_DB", table, name): name for name in names}
    async with sonic.database("STATE_DB") as db:
        return {keys[key] for key in await hashes(db, keys)}


async def _router_interfaces(sonic: Sonic, names: set[str]) -> set[str]:
    """Names whose router interface exists; the name map lags behind, so each entry is checked against ASIC_DB."""
    if not names:
        return set()
    async with sonic.database("COUNTERS_DB") as db:
        oids = (await hashes(db, ["COUNTERS_RIF_NAME_MAP"])).get("COUNTERS_RIF_NAME_MAP", {})
    keys = {
        sonic.key("ASIC_DB", "ASIC_STATE", "SAI_OBJECT_TYPE_ROUTER_INTERFACE", oid): name
        for name, oid in oids.items()
        if name in names
    }
    async with sonic.database("ASIC_DB") as db:
        return {keys[key] for key in await hashes(db, keys)}


async def _bridge_ports(sonic: Sonic, names: set[str]) -> set[str]:
    """Ports with a SAI bridge port. Such an object names its port by the oid of COUNTERS_PORT_NAME_MAP."""
    if not names:
        return set()
    async with sonic.database("COUNTERS_DB") as db:
        oids = (await hashes(db, ["COUNTERS_PORT_NAME_MAP"])).get("COUNTERS_PORT_NAME_MAP", {})
    async with sonic.database("ASIC_DB") as db:
        keys = await scan(db, sonic.key("ASIC_DB", "ASIC_STATE", "SAI_OBJECT_TYPE_BRIDGE_PORT", "*"))
        objects = await hashes(db, keys)
    bridged = {row.get("SAI_BRIDGE_PORT_ATTR_PORT_ID", "") for row in objects.values()}
    return {name for name in names if oids.get(name) in bridged}
