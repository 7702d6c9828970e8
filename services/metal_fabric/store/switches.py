"""Switches and their ports."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import asyncpg
from metal_kit.db import Connection

from metal_fabric.cabling import host_key
from metal_fabric.ports import AdminState, LinkState, SwitchOs
from metal_fabric.problems import Refused
from metal_fabric.switch import Port, Switch, SwitchFacts, SwitchKind, SwitchMode

# Not FOR UPDATE, which keeps reports out too: each is a row that refers to the switch, and its writer holds the leaf.
_LOCK = "SELECT id FROM switch WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE"
_LOAD = "SELECT * FROM switch WHERE id = ANY ($1)"
_BY_HOST = "SELECT * FROM switch WHERE host_key = ANY ($1) AND kind = 'leaf'"
_PORTS = "SELECT * FROM port WHERE switch_id = ANY ($1)"
_INSERT = """
    INSERT INTO switch (id, host_key, partition, rack, os, os_version, core_version, management_address, loopback, asn,
                        pxe_vlan, kind, description)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    ON CONFLICT (id) DO NOTHING RETURNING id
"""
_UPDATE = """
    UPDATE switch SET rack = $2, os = $3, os_version = $4, core_version = $5, management_address = $6, loopback = $7,
                      asn = $8, pxe_vlan = $9, mode = $10
    WHERE id = $1
"""
_TOUCH = """
    UPDATE switch SET version = nextval('version'), update_time = clock_timestamp() WHERE id = $1 RETURNING version
"""
_DROP_PORTS = "DELETE FROM port WHERE switch_id = $1 AND name <> ALL ($2)"
_PUT_PORTS = """
    INSERT INTO port (switch_id, name, alias, uplink, wish, reported)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::boolean[], $5::text[], $6::text[])
    ON CONFLICT (switch_id, name) DO UPDATE
    SET alias = excluded.alias, uplink = excluded.uplink, wish = excluded.wish, reported = excluded.reported
    WHERE (port.alias, port.uplink, port.wish, port.reported)
        IS DISTINCT FROM (excluded.alias, excluded.uplink, excluded.wish, excluded.reported)
"""
_REPORT = """
    UPDATE port SET reported = seen.state
    FROM unnest($2::text[], $3::text[]) AS seen (name, state)
    WHERE port.switch_id = $1 AND port.name = seen.name AND port.reported <> seen.state
    RETURNING port.name
"""


class SwitchStore:
    """Switches, by id (host name)."""

    async def lock(self, conn: Connection, ids: Collection[str]) -> set[str]:
        """Keep others from changing these switches until the transaction ends; gives those that exist.

        Always in the order of their ids: two transactions over one pair of leaves would otherwise wait for each other.
        """
        return {row["id"] for row in await conn.fetch(_LOCK, sorted(ids))}

    async def load(self, conn: Connection, ids: Collection[str]) -> dict[str, Switch]:
        """Switches with their ports, by id; those that do not exist are left out."""
        return await self._with_ports(conn, await conn.fetch(_LOAD, list(ids)))

    async def by_host(self, conn: Connection, names: Collection[str]) -> dict[str, Switch]:
        """Leaves that neighbours with these LLDP system names may be, by id."""
        keys = {host_key(name) for name in names} - {""}
        return await self._with_ports(conn, await conn.fetch(_BY_HOST, sorted(keys)))

    async def insert(self, conn: Connection, switch: Switch) -> bool:
        """Insert a switch without its ports; False when one with this id exists by now.

        Raises Refused `HOST_NAME_TAKEN` when another one's name differs in case only.
        """
        facts = switch.facts
        try:
            # A savepoint, so that the caller's transaction survives the refusal.
            async with conn.transaction():
                inserted = await conn.fetchval(
                    _INSERT,
                    *(switch.id, host_key(switch.id), facts.partition, facts.rack, facts.os.value),
                    *(facts.os_version, facts.core_version, facts.management_address, facts.loopback),
                    *(facts.asn, facts.pxe_vlan, switch.kind.value, switch.description),
                )
        except asyncpg.UniqueViolationError:
            raise Refused(
                "HOST_NAME_TAKEN",
                f"another switch is called {switch.id}, in other letters; rename one of them",
                field="hello.switch_id" if switch.kind is SwitchKind.LEAF else "id",
            ) from None
        return inserted is not None

    async def update(self, conn: Connection, switch: Switch) -> None:
        """Write the facts and the mode of a switch; id, kind, partition and description stay."""
        facts = switch.facts
        await conn.execute(
            _UPDATE,
            *(switch.id, facts.rack, facts.os.value, facts.os_version, facts.core_version),
            *(facts.management_address, facts.loopback, facts.asn, facts.pxe_vlan, switch.mode.value),
        )

    async def add_ports(self, conn: Connection, switch: Switch) -> None:
        """Write the ports of a switch; others that it had stay."""
        ports = list(switch.ports.values())
        await conn.execute(
            _PUT_PORTS,
            switch.id,
            [port.name for port in ports],
            [port.alias for port in ports],
            [port.uplink for port in ports],
            [port.admin.wish.value if port.admin.wish else None for port in ports],
            [port.admin.actual.value for port in ports],
        )

    async def drop_ports(self, conn: Connection, switch: Switch) -> None:
        """Delete the ports that the switch no longer has. The database refuses to drop one that a machine hangs on."""
        await conn.execute(_DROP_PORTS, switch.id, list(switch.ports))

    async def report(self, conn: Connection, switch_id: str, states: Mapping[str, LinkState]) -> int:
        """Record what the leaf reports of its ports; gives how many of them changed. Unknown ports are left out."""
        names = list(states)
        return len(await conn.fetch(_REPORT, switch_id, names, [states[name].value for name in names]))

    async def describe(self, conn: Connection, switch_id: str, description: str) -> None:
        """Set the description."""
        await conn.execute("UPDATE switch SET description = $2 WHERE id = $1", switch_id, description)

    async def wish(self, conn: Connection, switch_id: str, port: str, state: LinkState | None) -> None:
        """Set what an operator wants of a port; None for nothing."""
        await conn.execute(
            "UPDATE port SET wish = $3 WHERE switch_id = $1 AND name = $2", switch_id, port, state and state.value
        )

    async def switch_on(self, conn: Connection, switch_id: str, port: str) -> None:
        """Want a port up that was wanted down; others stay as they are."""
        query = "UPDATE port SET wish = 'up' WHERE switch_id = $1 AND name = $2 AND wish = 'down'"
        await conn.execute(query, switch_id, port)

    async def touch(self, conn: Connection, switch_id: str) -> int:
        """Mark the switch as changed; gives its new version."""
        return int(await conn.fetchval(_TOUCH, switch_id))

    async def delete(self, conn: Connection, switch_id: str) -> int:
        """Delete a switch with everything that is its own; gives the version of the deletion."""
        await conn.execute("DELETE FROM switch WHERE id = $1", switch_id)
        return int(await conn.fetchval("SELECT nextval('version')"))

    async def _with_ports(self, conn: Connection, rows: list[asyncpg.Record]) -> dict[str, Switch]:
        ports: dict[str, dict[str, Port]] = {row["id"]: {} for row in rows}
        for row in await conn.fetch(_PORTS, list(ports)):
            ports[row["switch_id"]][row["name"]] = port_of(row)
        return {row["id"]: switch_of(row, ports[row["id"]]) for row in rows}


def switch_of(row: asyncpg.Record, ports: dict[str, Port]) -> Switch:
    """The switch in a row of `switch`, with these ports by name."""
    kind, mode = SwitchKind(row["kind"]), SwitchMode(row["mode"])
    return Switch(row["id"], facts_of(row), ports, row["description"], kind, mode)


def port_of(row: asyncpg.Record) -> Port:
    """The port in a row of `port`."""
    wish = LinkState(row["wish"]) if row["wish"] else None
    return Port(row["name"], row["alias"], row["uplink"], AdminState(wish, LinkState(row["reported"])))


def facts_of(row: asyncpg.Record) -> SwitchFacts:
    """The facts in a row of `switch`."""
    return SwitchFacts(
        partition=row["partition"],
        rack=row["rack"],
        os=SwitchOs(row["os"]),
        os_version=row["os_version"],
        core_version=row["core_version"],
        management_address=row["management_address"],
        loopback=row["loopback"],
        asn=row["asn"],
        pxe_vlan=row["pxe_vlan"],
    )
