"""Rows of `endpoint`: registration, login accounting, observation. When to poll and report is in `schedule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists

from metal_bmc.drivers.interface import Capability, DriverKind
from metal_bmc.endpoint import MAX_REFUSED_LOGINS, WISH_SPAN, Configuration, Endpoint, Observation, Policy, PowerWish

_COLUMNS = """machine::text, partition, host, port, mac, login, sealed, desired_on, driver, serial, reported_on,
    observed_at, error_reason, error, failures, refused_logins, firmware, fru, inspected_at, capabilities, guid,
    manufacturer, said_mac, rack, silent_since, poll_at, policy, wish_generation, wish_seen, wish_deadline,
    wish_attempts, wish_reason, wish_error, revision, version, created_at, updated_at"""
_FIRST = "00000000-0000-0000-0000-000000000000"
# A newer service may know more of them.
_CAPABILITIES = {capability.value: capability for capability in Capability}
_TAKEN = {
    "endpoint_address": ("ADDRESS_TAKEN", "another machine's BMC has this address", "bmc.address"),
    "endpoint_mac": ("MAC_TAKEN", "another machine's BMC has this MAC address", "bmc.mac"),
    "endpoint_pkey": ("BMC_EXISTS", "the machine has a BMC", "bmc.machine"),
}


def from_row(row: asyncpg.Record) -> Endpoint:
    """The endpoint of a row with the columns that this module selects."""
    seen = Observation(
        powered=row["reported_on"],
        observed_at=row["observed_at"],
        reason=row["error_reason"],
        error=row["error"],
        failures=row["failures"],
        firmware=row["firmware"],
        fru=row["fru"],
        inspected_at=row["inspected_at"],
        capabilities=frozenset(_CAPABILITIES[name] for name in row["capabilities"] if name in _CAPABILITIES),
        guid=row["guid"] or b"",
        manufacturer=row["manufacturer"],
        said_mac=row["said_mac"],
    )
    plain = (
        "machine",
        "partition",
        "host",
        "port",
        "mac",
        "login",
        "sealed",
        "desired_on",
        "serial",
        "rack",
        "refused_logins",
        "silent_since",
    )
    counters = ("revision", "version", "created_at", "updated_at")
    wish = PowerWish(
        policy=Policy(row["policy"]),
        generation=row["wish_generation"],
        observed_generation=row["wish_seen"],
        deadline=row["wish_deadline"],
        attempts=row["wish_attempts"],
        reason=row["wish_reason"],
        error=row["wish_error"],
    )
    values = {name: row[name] for name in (*plain, *counters)}
    return Endpoint(
        **values, driver=DriverKind(row["driver"]), observation=seen, next_look_at=row["poll_at"], wish=wish
    )


def selected() -> str:
    """The columns that `from_row` needs."""
    return _COLUMNS


class EndpointStore:
    """Endpoints by machine."""

    async def get(self, connection: Connection, machine: str, *, lock: bool = False) -> Endpoint | None:
        """One endpoint; `lock` keeps the row until the transaction ends."""
        tail = "FOR UPDATE" if lock else ""
        row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM endpoint WHERE machine = $1 {tail}", machine)
        return None if row is None else from_row(row)

    async def by_mac(self, connection: Connection, partition: str, mac: str) -> Endpoint | None:
        """The endpoint whose BMC has the MAC address."""
        row = await connection.fetchrow(
            f"SELECT {_COLUMNS} FROM endpoint WHERE partition = $1 AND mac = $2",
            partition,
            mac,
        )
        return None if row is None else from_row(row)

    async def page(self, connection: Connection, *, partition: str, after: str | None, limit: int) -> list[Endpoint]:
        """Endpoints by machine, after that machine."""
        arguments: list[object] = [after or _FIRST]
        of_partition = ""
        if partition:
            arguments.append(partition)
            of_partition = "AND partition = $2"
        # Two statements, as one has one plan; endpoint.machine, since a bare one would be the text of the result.
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM endpoint WHERE machine > $1 {of_partition}
            ORDER BY endpoint.machine LIMIT {limit:d}""",
            *arguments,
        )
        return [from_row(row) for row in rows]

    async def of_machines(self, connection: Connection, machines: Sequence[str]) -> list[Endpoint]:
        """Those of the machines that have one."""
        rows = await connection.fetch(
            f"SELECT {_COLUMNS} FROM endpoint WHERE machine = ANY($1::uuid[])", list(machines)
        )
        return [from_row(row) for row in rows]

    async def mark_discovered(self, connection: Connection, machine: str) -> None:
        """Note that nobody registered it by hand."""
        await connection.execute(
            "UPDATE endpoint SET discovered_at = coalesce(discovered_at, now()) WHERE machine = $1", machine
        )

    async def insert(
        self, connection: Connection, wanted: Configuration, capabilities: frozenset[Capability] = frozenset()
    ) -> Endpoint:
        """Add an endpoint; `capabilities` is what is known of them before the BMC was asked.

        Raises AlreadyExists when the machine, the address or the MAC has one.
        """
        try:
            row = await connection.fetchrow(
                f"""INSERT INTO endpoint (machine, partition, host, port, mac, login, sealed, desired_on, driver,
                serial, capabilities, rack, policy, wish_generation, wish_deadline, version)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, ($8::boolean IS NOT NULL)::int,
                    now() + $14::interval, nextval('endpoint_version'))
                RETURNING {_COLUMNS}""",
                *_values(wanted),
                sorted(capabilities),
                wanted.rack,
                wanted.policy,
                WISH_SPAN,
            )
        except asyncpg.UniqueViolationError as error:
            raise _taken(error) from error
        assert row is not None
        return from_row(row)

    async def configure(
        self,
        connection: Connection,
        wanted: Configuration,
        *,
        forgive: bool,
        capabilities: frozenset[Capability] = frozenset(),
    ) -> Endpoint:
        """Write what people decide. `forgive` starts the login account anew, as new credentials or an address do, and
        what is known of the BMC's identity; `capabilities` is then what is known of the new one.

        Raises AlreadyExists when another machine has the address or the MAC.
        """
        try:
            row = await connection.fetchrow(
                f"""UPDATE endpoint SET partition = $2, host = $3, port = $4, mac = $5, login = $6, sealed = $7,
                desired_on = $8, driver = $9, serial = $10,
                off_event = CASE WHEN desired_on IS DISTINCT FROM $8 THEN NULL ELSE off_event END,
                revision = revision + 1, version = nextval('endpoint_version'), updated_at = now(),
                refused_logins = CASE WHEN $11 THEN 0 ELSE refused_logins END,
                failures = CASE WHEN $11 THEN 0 ELSE failures END,
                error = CASE WHEN $11 THEN '' ELSE error END,
                error_reason = CASE WHEN $11 THEN '' ELSE error_reason END,
                rack = $13, policy = $14,
                silent_since = CASE WHEN $11 THEN NULL ELSE silent_since END,
                wish_generation = wish_generation + (desired_on IS DISTINCT FROM $8)::int,
                wish_deadline = CASE WHEN desired_on IS DISTINCT FROM $8 THEN now() + $15::interval
                    ELSE wish_deadline END,
                wish_attempts = CASE WHEN desired_on IS DISTINCT FROM $8 THEN 0 ELSE wish_attempts END,
                wish_reason = CASE WHEN desired_on IS DISTINCT FROM $8 THEN '' ELSE wish_reason END,
                wish_error = CASE WHEN desired_on IS DISTINCT FROM $8 THEN '' ELSE wish_error END,
                inspected_at = CASE WHEN $11 THEN NULL ELSE inspected_at END,
                guid = CASE WHEN $11 THEN NULL ELSE guid END,
                manufacturer = CASE WHEN $11 THEN 0 ELSE manufacturer END,
                said_mac = CASE WHEN $11 THEN '' ELSE said_mac END,
                capabilities = CASE WHEN $11 THEN $12 ELSE capabilities END,
                poll_at = CASE WHEN $11 THEN now() ELSE poll_at END
                WHERE machine = $1 RETURNING {_COLUMNS}""",
                *_values(wanted),
                forgive,
                sorted(capabilities),
                wanted.rack,
                wanted.policy,
                WISH_SPAN,
            )
        except asyncpg.UniqueViolationError as error:
            raise _taken(error) from error
        assert row is not None
        return from_row(row)

    async def delete(self, connection: Connection, machine: str) -> Endpoint | None:
        """Remove an endpoint and its credentials; returns it with the version of its deletion."""
        row = await connection.fetchrow(
            f"DELETE FROM endpoint WHERE machine = $1 RETURNING {_COLUMNS}, nextval('endpoint_version') AS last",
            machine,
        )
        return None if row is None else replace(from_row(row), version=row["last"])

    async def free_address(
        self, connection: Connection, *, partition: str, host: str, port: int, but: str
    ) -> list[Endpoint]:
        """Take an address away from all other machines; for a newcomer that proved to answer there."""
        rows = await connection.fetch(
            f"""UPDATE endpoint SET host = '', revision = revision + 1, version = nextval('endpoint_version'),
            updated_at = now(), error_reason = 'ADDRESS_TAKEN',
            error = 'the BMC of another machine answers at its address'
            WHERE partition = $1 AND host = $2 AND port = $3 AND machine <> $4 RETURNING {_COLUMNS}""",
            partition,
            host,
            port,
            but,
        )
        return [from_row(row) for row in rows]

    async def reseal(self, connection: Connection, machine: str, *, old: bytes, new: bytes) -> bool:
        """Replace the sealed password by the same one under a newer key, unless it changed meanwhile."""
        status = await connection.execute(
            "UPDATE endpoint SET sealed = $3 WHERE machine = $1 AND sealed = $2", machine, old, new
        )
        return status == "UPDATE 1"

    async def take_second_try(self, connection: Connection, machine: str) -> bool:
        """Claim the one login that is left after a refused one; False when somebody else has it."""
        status = await connection.execute(
            "UPDATE endpoint SET refused_logins = $2 WHERE machine = $1 AND refused_logins = $2 - 1",
            machine,
            MAX_REFUSED_LOGINS,
        )
        return status == "UPDATE 1"

    async def count_refusal(self, connection: Connection, endpoint: Endpoint) -> None:
        """Count a refused login, unless address or credentials changed since `endpoint` was read."""
        await connection.execute(
            """UPDATE endpoint SET refused_logins = least(refused_logins + 1, $7)
            WHERE machine = $1 AND login = $2 AND sealed = $3 AND host = $4 AND port = $5 AND driver = $6""",
            *_way_in(endpoint),
            MAX_REFUSED_LOGINS,
        )

    async def settle_login(self, connection: Connection, endpoint: Endpoint, refused: int) -> None:
        """Write what a login that was not refused leaves of the account; same condition as `count_refusal`."""
        await connection.execute(
            """UPDATE endpoint SET refused_logins = $7
            WHERE machine = $1 AND login = $2 AND sealed = $3 AND host = $4 AND port = $5 AND driver = $6""",
            *_way_in(endpoint),
            refused,
        )

    async def observe(
        self,
        connection: Connection,
        endpoint: Endpoint,
        seen: Observation,
        *,
        news: bool,
        unreachable: bool = False,
        next_look: timedelta | None = None,
    ) -> Endpoint:
        """Write an observation. `news` gives it a new version and has inventory hear of it soon; `next_look` is when
        the BMC is to be polled again, None leaves that as it is."""
        row = await connection.fetchrow(
            f"""UPDATE endpoint SET reported_on = $2, observed_at = $3, error_reason = $4, error = $5, failures = $6,
            firmware = $7, fru = $8, inspected_at = $9, capabilities = $11, guid = $12, manufacturer = $13,
            said_mac = $14, identity = $17, off_event = CASE WHEN $2 THEN off_event END,
            silent_since = CASE WHEN $15 THEN coalesce(silent_since, now()) END,
            poll_at = CASE WHEN $16::interval IS NULL THEN poll_at ELSE now() + $16 END,
            wish_seen = CASE WHEN $3 > coalesce(observed_at, '-infinity') AND $2 = desired_on THEN wish_generation
                ELSE wish_seen END,
            version = CASE WHEN $10 THEN nextval('endpoint_version') ELSE version END,
            updated_at = CASE WHEN $10 THEN now() ELSE updated_at END,
            report_at = CASE WHEN $3::timestamptz IS NULL THEN report_at WHEN $10 THEN now()
                WHEN report_at = 'infinity' THEN now() ELSE report_at END
            WHERE machine = $1 RETURNING {_COLUMNS}""",
            endpoint.machine,
            seen.powered,
            seen.observed_at,
            seen.reason,
            seen.error,
            seen.failures,
            seen.firmware,
            dict(seen.fru),
            seen.inspected_at,
            news,
            sorted(seen.capabilities),
            seen.guid or None,
            seen.manufacturer,
            seen.said_mac,
            unreachable,
            next_look,
            replace(endpoint, observation=seen).match,
        )
        assert row is not None
        return from_row(row)

    async def judge(self, connection: Connection, endpoint: Endpoint) -> None:
        """Write whether the BMC is the machine's own, after something that it is told by has changed."""
        query = "UPDATE endpoint SET identity = $2 WHERE machine = $1"
        await connection.execute(query, endpoint.machine, endpoint.match)

    async def of_other_machines(self, connection: Connection, partition: str, *, most: int) -> list[Endpoint]:
        """Endpoints whose BMC does not seem to be the machine's own."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM endpoint WHERE partition = $1 AND identity = 'other'
            ORDER BY endpoint.machine LIMIT {most:d}""",
            partition,
        )
        return [from_row(row) for row in rows]

    async def known(self, connection: Connection, machines: Sequence[str]) -> list[str]:
        """Those of the machines that have an endpoint."""
        rows = await connection.fetch("SELECT machine::text FROM endpoint WHERE machine = ANY ($1::uuid[])", machines)
        return [str(row["machine"]) for row in rows]

    async def tried(self, connection: Connection, endpoint: Endpoint, reason: str, message: str) -> None:
        """Note an attempt to bring about the power that is wanted, and what came of it; empty when it did."""
        await connection.execute(
            """UPDATE endpoint SET wish_attempts = wish_attempts + 1, wish_reason = $3, wish_error = $4
            WHERE machine = $1 AND wish_generation = $2""",
            *(endpoint.machine, endpoint.wish.generation, reason, message),
        )

    async def off_event(self, connection: Connection, machine: str) -> str:
        """Id of the event that announces that the machine is being switched off as desired: the same one until the
        machine is seen off, or is no longer to be. Empty when there is no such endpoint."""
        return str(
            await connection.fetchval(
                """UPDATE endpoint SET off_event = coalesce(off_event, gen_random_uuid()) WHERE machine = $1
                RETURNING off_event""",
                machine,
            )
            or ""
        )

    async def unsettled(self, connection: Connection, partition: str) -> list[str]:
        """Machines whose power is not the one that is wanted, and whose BMC may be talked to or who have none."""
        rows = await connection.fetch(
            """SELECT machine::text FROM endpoint WHERE partition = $1 AND desired_on IS NOT NULL
            AND reported_on IS DISTINCT FROM desired_on AND refused_logins < $2
            AND silent_since IS NULL AND policy = 'enforce'
            AND sealed IS NOT NULL AND host <> ''""",
            partition,
            MAX_REFUSED_LOGINS,
        )
        by_hand = await connection.fetch(
            """SELECT machine::text FROM endpoint WHERE partition = $1 AND driver = 'manual'
            AND desired_on IS NOT NULL AND reported_on IS DISTINCT FROM desired_on""",
            partition,
        )
        return [str(row["machine"]) for row in (*rows, *by_hand)]


def _way_in(endpoint: Endpoint) -> tuple[object, ...]:
    return (endpoint.machine, endpoint.login, endpoint.sealed, endpoint.host, endpoint.port, endpoint.driver)


def _values(wanted: Configuration) -> tuple[object, ...]:
    place = (wanted.machine, wanted.partition, wanted.host, wanted.port, wanted.mac)
    return (*place, wanted.login, wanted.sealed, wanted.desired_on, wanted.driver, wanted.serial)


def _taken(error: asyncpg.UniqueViolationError) -> AlreadyExists:
    reason, message, field = _TAKEN.get(str(error.constraint_name), ("TAKEN", "already in use", ""))
    return AlreadyExists(reason, message, field=field)
