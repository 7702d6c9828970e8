"""One simulated leaf: its databases, its orchagent, and what the machines on its ports do to it.

The Redis server is somebody else's: the leaf takes the path of its socket. It does not run the agent either.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from metal_sim.leaf.faults import LeafFaults
from metal_sim.leaf.hardware import Hardware
from metal_sim.leaf.orchagent import Orchagent
from metal_sim.leaf.rows import DATABASES, DATABASES_PER_LEAF, LeafSpec, Rows, appl_db, config_db, port_oids

# Seconds that a neighbour is remembered after its last frame (TTL of IEEE 802.1AB: 30 s interval times 4).
LLDP_TTL = 120
_LOOK_ANYWAY = 1.0


class SimLeaf:
    """A leaf on the Redis at `socket`. Several leaves share one server by different values of `slot` (0 or 1).

    Nothing forwards unless `hardware` does.
    """

    def __init__(
        self,
        spec: LeafSpec,
        socket: Path,
        directory: Path,
        *,
        slot: int = 0,
        faults: LeafFaults | None = None,
        hardware: Hardware | None = None,
    ) -> None:
        self.spec = spec
        self.faults = faults or LeafFaults()
        self.database_config = directory / "database_config.json"
        self._socket = socket
        self._numbers = {name: number + slot * DATABASES_PER_LEAF for name, (number, _) in DATABASES.items()}
        self._databases = {
            name: Redis(
                unix_socket_path=str(socket),
                db=number,
                decode_responses=True,
                encoding_errors="surrogateescape",
                socket_timeout=10,
            )
            for name, number in self._numbers.items()
        }
        self._orchagent = Orchagent(self._databases, port_oids(spec), self.faults, hardware)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def __aenter__(self) -> SimLeaf:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def violations(self) -> list[str]:
        """Changes of CONFIG_DB in an order that a real switch would not have survived."""
        return self._orchagent.violations

    async def start(self) -> None:
        """Boot: what CONFIG_DB has stays, an empty one is seeded; everything derived is built anew."""
        text = json.dumps(self._database_config(), indent=1)
        await asyncio.to_thread(_write, self.database_config, text)
        if not await self._databases["CONFIG_DB"].exists("DEVICE_METADATA|localhost"):
            await self._seed("CONFIG_DB", config_db(self.spec))
        await self._databases["APPL_DB"].flushdb()
        await self._orchagent.cold_start()
        await self._orchagent.follow(await self._config())
        await self._seed("APPL_DB", appl_db(self.spec))
        self._stopping = False
        self._task = asyncio.create_task(self._follow(), name=f"orchagent {self.spec.name}")

    async def stop(self) -> None:
        """End the simulation; what is in the databases stays there."""
        # The client library can turn a cancellation into a timeout of its own; the flag makes the end certain.
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for database in self._databases.values():
            await database.aclose()

    async def die(self) -> None:
        """The leaf loses its power: no link is up, no neighbour is seen, nothing follows CONFIG_DB any more."""
        self.faults.dead = True
        for port in self.spec.ports:
            await self._set_oper(port, "down")
            await self.lldp_gone(port)

    async def revive(self) -> None:
        """The power comes back. CONFIG_DB is what the switch had saved; links to machines come up when they say so."""
        self.faults.dead = False
        for port in self.spec.uplinks:
            await self._set_oper(port, "up")

    async def link_up(self, port: str) -> None:
        """The other end of the cable on `port` has a signal."""
        if not self.faults.dead:
            await self._set_oper(port, "up")

    async def link_down(self, port: str) -> None:
        """The other end of the cable on `port` has no signal; the neighbour is forgotten with it."""
        await self._set_oper(port, "down")
        await self.lldp_gone(port)

    async def lldp(
        self,
        port: str,
        *,
        chassis: str,
        system_name: str,
        description: str,
        management: str = "",
        port_id: str = "",
        ttl: int = LLDP_TTL,
    ) -> None:
        """A neighbour announced itself on `port`; it is forgotten after `ttl` seconds unless it does so again."""
        self._known(port)
        if self.faults.dead or self.faults.lldp_silent:
            return
        row = {
            "lldp_rem_chassis_id_subtype": "4",
            "lldp_rem_chassis_id": chassis,
            "lldp_rem_port_id_subtype": "3",
            "lldp_rem_port_id": port_id or chassis,
            "lldp_rem_sys_name": system_name,
            "lldp_rem_sys_desc": description,
            "lldp_rem_man_addr": management,
            "lldp_rem_time_mark": "0",
            "lldp_rem_index": "1",
        }
        async with self._databases["APPL_DB"].pipeline(transaction=True) as batch:
            for name, value in row.items():
                batch.hset(f"LLDP_ENTRY_TABLE:{port}", name, value)
            batch.expire(f"LLDP_ENTRY_TABLE:{port}", ttl)
            await batch.execute()

    async def lldp_gone(self, port: str) -> None:
        """The neighbour on `port` is forgotten at once."""
        await self._databases["APPL_DB"].delete(f"LLDP_ENTRY_TABLE:{self._known(port)}")

    async def change_by_hand(self, *, delete: str) -> None:
        """Somebody deletes a row of CONFIG_DB, as `sonic-db-cli` or the `config` command would."""
        await self._databases["CONFIG_DB"].delete(delete)

    async def is_up(self, port: str) -> bool:
        """Whether the link on `port` has a signal and is administratively up."""
        row = await self._row(f"PORT|{self._known(port)}")
        oper = await self._databases["APPL_DB"].hget(f"PORT_TABLE:{port}", "oper_status")
        return oper == "up" and row.get("admin_status") == "up"

    async def vrf_of(self, port: str) -> str:
        """The VRF that a routed port forwards in by CONFIG_DB, `default` without one; empty when it is not routed."""
        key = f"INTERFACE|{self._known(port)}"
        if not await self._databases["CONFIG_DB"].exists(key):
            return ""
        return (await self._row(key)).get("vrf_name", "") or "default"

    async def vlan_of(self, port: str) -> int | None:
        """The VLAN that untagged frames on `port` belong to by CONFIG_DB; None when the port is not bridged."""
        self._known(port)
        for key, row in (await self._config()).items():
            parts = key.split("|")
            if parts[0] == "VLAN_MEMBER" and parts[2] == port and row.get("tagging_mode") == "untagged":
                return int(parts[1].removeprefix("Vlan"))
        return None

    async def vni_of(self, port: str) -> int | None:
        """The VNI of the tenant VRF that `port` forwards in; None when it is in none."""
        vrf = await self.vrf_of(port)
        row = await self._row(f"VRF|{vrf}") if vrf not in {"", "default"} else {}
        return int(row["vni"]) if "vni" in row else None

    def _known(self, port: str) -> str:
        if port not in self.spec.ports:
            raise ValueError(f"{self.spec.name} has no port {port!r}")
        return port

    async def _set_oper(self, port: str, state: str) -> None:
        await self._databases["APPL_DB"].hset(f"PORT_TABLE:{self._known(port)}", "oper_status", state)

    async def _row(self, key: str) -> dict[str, str]:
        return {str(name): str(value) for name, value in (await self._databases["CONFIG_DB"].hgetall(key)).items()}

    async def _config(self) -> Rows:
        database = self._databases["CONFIG_DB"]
        keys = [key async for key in database.scan_iter(count=1000, _type="hash")]
        async with database.pipeline(transaction=False) as batch:
            for key in keys:
                batch.hgetall(key)
            return {key: row for key, row in zip(keys, await batch.execute(), strict=True) if row}

    async def _seed(self, name: str, rows: Rows) -> None:
        async with self._databases[name].pipeline(transaction=True) as batch:
            for key, row in rows.items():
                for field, value in row.items():
                    batch.hset(key, field, value)
            await batch.execute()

    async def _follow(self) -> None:
        """Look at CONFIG_DB whenever Redis says that it changed, and now and then in case an event was lost."""
        channel = f"__keyspace@{self._numbers['CONFIG_DB']}__:*"
        while not self._stopping:
            try:
                async with self._databases["CONFIG_DB"].pubsub() as events:
                    await events.psubscribe(channel)
                    while not self._stopping:
                        await events.get_message(timeout=_LOOK_ANYWAY)
                        # A transaction comes as one event a row; they are worth one look together.
                        while await events.get_message(timeout=0) is not None:
                            pass
                        await self._pass()
            except (RedisError, OSError):
                # The switch's Redis went away; a real orchagent is restarted together with it.
                await asyncio.sleep(_LOOK_ANYWAY)

    async def _pass(self) -> None:
        seen = await self._config()
        await asyncio.sleep(self.faults.orchagent_delay)
        if not self.faults.dead:
            await self._orchagent.follow(seen)

    def _database_config(self) -> dict[str, object]:
        """In the form of SONiC's file, so that an agent finds the databases as it does on a switch."""
        return {
            "INSTANCES": {"redis": {"hostname": "127.0.0.1", "port": 0, "unix_socket_path": str(self._socket)}},
            "DATABASES": {
                name: {"id": self._numbers[name], "separator": separator, "instance": "redis"}
                for name, (_, separator) in DATABASES.items()
            },
            "VERSION": "1.0",
        }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
