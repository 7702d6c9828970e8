"""Addresses in use. Taking and giving back are the functions of the migrations; here they are called and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from metal_kit.db import Connection

from metal_ipam.addresses import Ip, IpType, Owner
from metal_ipam.cidr import Address

NOBODY = Owner()
# Looked up by each row of a list; IpType() itself takes ten times as long.
TYPES = {kind.value: kind for kind in IpType}

_SELECT = """
    SELECT i.addr, i.namespace_id, i.prefix_id, i.project_id, i.owner_kind, i.owner_id, i.kind, i.name, i.description,
           i.dns_name, i.labels, i.version, i.created_at, i.request_id, p.cidr,
           coalesce(p.network_id, '') AS network_id,
           (SELECT s.name FROM namespace s WHERE s.id = i.namespace_id) AS namespace
    FROM ip i JOIN prefix p ON p.id = i.prefix_id
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written with an acquired address. `request_id` is unique over all addresses; None: none. `actor` is who
    acquires, for the history."""

    project: str = ""
    owner: Owner = field(default_factory=Owner)
    type: IpType = IpType.EPHEMERAL
    name: str = ""
    description: str = ""
    dns_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    request_hash: str = ""
    actor: str = ""

    def as_json(self) -> dict[str, object]:
        """The form that the SQL functions read."""
        return {
            "project_id": self.project,
            "owner_kind": self.owner.kind,
            "owner_id": self.owner.id,
            "kind": self.type.value,
            "name": self.name,
            "description": self.description,
            "dns_name": self.dns_name,
            "labels": dict(self.labels),
            "request_id": self.request_id,
            "request_hash": self.request_hash,
            "actor": self.actor,
        }


@dataclass(frozen=True, slots=True)
class Acquired:
    """What became of one entry: `outcome` as the SQL functions name it, with the address when it is `ok`.

    `holder` and `holder_project` are set when a given address is taken.
    """

    outcome: str
    address: Address | None = None
    time: datetime | None = None
    holder: Owner = field(default_factory=Owner)
    holder_project: str = ""
    # Whether it was acquired just now, and not by the same request before.
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Release:
    """An address that shall be let go: of one of `projects` (None: whoever has it), used by `owner`, which is nobody
    unless somebody else is named. `seen`: only if it was acquired then. `request_id` makes a retry harmless."""

    address: Address
    projects: Sequence[str] | None
    owner: Owner = field(default_factory=Owner)
    seen: datetime | None = None
    request_id: str | None = None
    actor: str = ""

    def as_json(self) -> dict[str, object]:
        """The form that `release_entries` reads, without what is not set."""
        entry: dict[str, object] = {"addr": str(self.address), "actor": self.actor}
        if self.projects is not None:
            entry["projects"] = list(self.projects)
        if self.owner:
            entry |= {"owner_kind": self.owner.kind, "owner_id": self.owner.id}
        if self.seen is not None:
            entry["seen"] = self.seen.isoformat()
        if self.request_id is not None:
            entry["request_id"] = self.request_id
        return entry


@dataclass(frozen=True, slots=True)
class Released:
    """What became of a release: `outcome` as `release_entries` names it, whose it was, who uses it when that is in the
    way."""

    outcome: str
    project: str = ""
    holder: Owner = field(default_factory=Owner)


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked of one prefix."""

    prefix_id: int
    acquires: Sequence[Entry]
    releases: Sequence[Release]


@dataclass(frozen=True, slots=True)
class Served:
    """What became of a prefix's work, in its order."""

    acquired: list[Acquired]
    released: list[Released]


_ACQUIRE = """
    SELECT 1 AS prefix, 1 AS kind, ord, outcome, address, acquired_at, acquired_at = now() AS fresh, '' AS project,
           '' AS holder_kind, '' AS holder_id
    FROM acquire_n($1, $2, $3, '')
"""
_RELEASE = """
    SELECT 1 AS prefix, 0 AS kind, ord, outcome, NULL::inet AS address, NULL::timestamptz AS acquired_at,
           false AS fresh, project, holder_kind, holder_id
    FROM release_entries($1, ${})
"""
_SERVE = "SELECT * FROM serve_prefixes($1, $2, $3)"


async def serve(connection: Connection, works: Sequence[Work]) -> list[Served]:
    """Release addresses and acquire the next free ones, of each prefix in this order, in one statement, which commits
    when no transaction is open. Acquires beyond what is free get `full`. The prefixes are in the order of their ids."""
    if len(works) == 1:
        rows = await _serve_one(connection, works[0])
    else:
        rows = await connection.fetch(
            _SERVE,
            [work.prefix_id for work in works],
            [[each.as_json() for each in work.acquires] for work in works],
            [[each.as_json() for each in work.releases] for work in works],
        )
    served = [
        Served([Acquired("unknown_prefix")] * len(work.acquires), [Released("unknown")] * len(work.releases))
        for work in works
    ]
    for number, kind, ord_, outcome, address, time, fresh, project, holder_kind, holder_id in rows:
        one = served[number - 1]
        if kind:
            one.acquired[ord_ - 1] = Acquired(outcome, address, time, fresh=bool(fresh))
        else:
            holder = Owner(holder_kind, holder_id) if holder_id else NOBODY
            one.released[ord_ - 1] = Released(outcome, project, holder)
    return served


async def _serve_one(connection: Connection, work: Work) -> list[Any]:
    """The same for one prefix, without the function around the functions."""
    parts: list[str] = []
    arguments: list[object] = [work.prefix_id]
    if work.acquires:
        parts.append(_ACQUIRE)
        arguments += [[each.request_id for each in work.acquires], [each.as_json() for each in work.acquires]]
    if work.releases:
        # The functions run one after the other, and the second sees what the first has done: both are VOLATILE.
        parts.insert(0, _RELEASE.format(len(arguments) + 1))
        arguments.append([each.as_json() for each in work.releases])
    return list(await connection.fetch(" UNION ALL ".join(parts), *arguments))


async def acquire_next(connection: Connection, prefix_id: int, entries: Sequence[Entry]) -> list[Acquired]:
    """The next free addresses of a prefix for the entries, in their order; those beyond what is free get `full`."""
    rows = await connection.fetch(
        "SELECT ord, outcome, address, acquired_at FROM acquire_n($1, $2, $3, $4)",
        *(prefix_id, [e.request_id for e in entries], [e.as_json() for e in entries], ""),
    )
    by_ord = {row["ord"]: row for row in rows}
    return [
        Acquired(row["outcome"], row["address"], row["acquired_at"])
        for row in (by_ord[ord_] for ord_ in range(1, len(entries) + 1))
    ]


async def acquire_many(
    connection: Connection, prefix_id: int, count: int, entry: Entry, request: str | None
) -> tuple[str, list[str], datetime | None]:
    """Outcome of `acquire_many`, the addresses as text, and when; `request` is what the request ids begin with."""
    row = await connection.fetchrow(
        "SELECT outcome, addresses, acquired_at FROM acquire_many($1, $2, $3, $4)",
        *(prefix_id, count, entry.as_json(), request),
    )
    assert row is not None
    return row["outcome"], row["addresses"] or [], row["acquired_at"]


async def acquire_specific(
    connection: Connection, prefix_id: int, address: Address, entry: Entry, *, take: Sequence[str] = ()
) -> Acquired:
    """The given address. `take` may allow `reserved` and `quarantine`, which are refused otherwise."""
    row = await connection.fetchrow(
        "SELECT * FROM acquire_specific($1, $2, $3, $4, $5, $6)",
        *(prefix_id, address, entry.request_id, entry.as_json(), list(take), ""),
    )
    assert row is not None
    return Acquired(
        row["outcome"],
        row["address"],
        row["acquired_at"],
        Owner(row["holder_kind"], row["holder_id"]),
        row["holder_project"],
    )


async def by_requests(connection: Connection, request_ids: Sequence[str]) -> tuple[dict[str, tuple[Ip, str]], bool]:
    """Addresses that these requests got, by request id and with the hash of the request; and whether some are gone."""
    rows = await connection.fetch(
        f"SELECT q.*, i.request_hash FROM ({_SELECT} WHERE i.request_id = ANY ($1::text[])) AS q"
        " JOIN ip i ON i.request_id = q.request_id",
        list(request_ids),
    )
    spent = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM spent_request WHERE request_id = ANY ($1::text[]))", list(request_ids)
    )
    return {row["request_id"]: (ip_from(row), row["request_hash"]) for row in rows}, bool(spent)


async def hold(connection: Connection, ip: Ip) -> bool:
    """Whether the address is still held as `ip` was read, and nobody got it since; it stays so until the transaction
    ends, because addresses are taken and given back under the lock of their prefix."""
    await connection.execute(
        """SELECT FROM prefix WHERE id = (SELECT prefix_id FROM ip WHERE namespace_id = $1 AND addr = $2)
           FOR NO KEY UPDATE""",
        *(ip.namespace_id, ip.address),
    )
    # A statement of its own: this one sees what was committed while the one before waited.
    held: bool = await connection.fetchval(
        """SELECT EXISTS (SELECT FROM ip WHERE namespace_id = $1 AND addr = $2 AND project_id = $3 AND created_at = $4
                                            AND state <> 'quarantine')""",
        *(ip.namespace_id, ip.address, ip.project, ip.create_time),
    )
    return held


async def release(connection: Connection, ips: Sequence[Ip], *, actor: str, owner: Owner | None = None) -> list[str]:
    """Release addresses; per address `ok`, `unknown`, `foreign` or `moved`. `owner`: what all must belong to."""
    rows = await connection.fetch(
        "SELECT ord, outcome FROM release_n($1, $2, $3, $4, $5) ORDER BY ord",
        [ip.namespace_id for ip in ips],
        [ip.address for ip in ips],
        [None if owner is None else owner.kind for _ in ips],
        [None if owner is None else owner.id for _ in ips],
        actor,
    )
    return [row["outcome"] for row in rows]


async def find(
    connection: Connection,
    address: Address,
    network: str,
    namespace: str = "",
    *,
    projects: Sequence[str] | None = None,
    limit: int | None = 2,
) -> list[Ip]:
    """The address in use, in the network and the namespace or (empty) in any; held by one of the projects or (None) by
    any."""
    rows = await connection.fetch(
        f"""{_SELECT}
            JOIN namespace n ON n.id = i.namespace_id
            WHERE i.addr = $1 AND i.state <> 'quarantine' AND ($2 = '' OR p.network_id = $2)
              AND ($3 = '' OR n.name = $3) AND ($5::text[] IS NULL OR i.project_id = ANY ($5))
            ORDER BY n.id LIMIT $4""",
        *(address, network, namespace, limit, None if projects is None else list(projects)),
    )
    return [ip_from(row) for row in rows]


async def by_places(connection: Connection, places: Sequence[tuple[int, Address]]) -> dict[tuple[int, Address], Ip]:
    """The addresses of these (namespace, address) that are in use."""
    rows = await connection.fetch(
        f"""{_SELECT} JOIN unnest($1::int[], $2::inet[]) AS a (namespace_id, addr)
                ON a.namespace_id = i.namespace_id AND a.addr = i.addr
            WHERE i.state <> 'quarantine'""",
        *([place[0] for place in places], [place[1] for place in places]),
    )
    return {(row["namespace_id"], row["addr"]): ip_from(row) for row in rows}


async def lock_homes(connection: Connection, owner: Owner) -> None:
    """Lock the prefixes of all that the owner uses, in the order of their ids."""
    await connection.execute(
        """SELECT FROM prefix WHERE id IN (
               SELECT prefix_id FROM ip WHERE owner_kind = $1 AND owner_id = $2 AND owner_id <> ''
           ) ORDER BY id FOR NO KEY UPDATE""",
        *(owner.kind, owner.id),
    )


async def owned(connection: Connection, owner: Owner, *, limit: int) -> list[Ip]:
    """Ephemeral addresses that the owner uses. They stay ephemeral until the transaction ends, which holds their
    prefixes (`lock_homes`)."""
    rows = await connection.fetch(
        f"""{_SELECT} WHERE i.owner_kind = $1 AND i.owner_id = $2 AND i.owner_id <> '' AND i.kind = 'ephemeral'
            LIMIT $3 FOR NO KEY UPDATE OF i""",
        *(owner.kind, owner.id, limit),
    )
    return [ip_from(row) for row in rows]


async def update(connection: Connection, ip: Ip, *, seen: int, actor: str) -> Ip | None:
    """Write name, description, DNS name, labels and type; None when the version is not `seen` any more, or somebody
    else's. `actor` is for the history."""
    version = await connection.fetchval(
        """WITH changed AS (
               UPDATE ip SET name = $4, description = $5, labels = $6, kind = $7, dns_name = $10, version = version + 1,
                             updated_at = now()
               WHERE namespace_id = $1 AND addr = $2 AND version = $3 AND state <> 'quarantine'
                 AND project_id = $8 AND created_at = $9
               RETURNING namespace_id, addr, owner_kind, owner_id, project_id, version),
           told AS (
               INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
               SELECT $11, 'update', namespace_id, addr, owner_kind, owner_id, project_id FROM changed)
           SELECT version FROM changed""",
        *(ip.namespace_id, ip.address, seen, ip.name, ip.description, dict(ip.labels), ip.type.value),
        *(ip.project, ip.create_time, ip.dns_name, actor),
    )
    return None if version is None else _with(ip, version=version)


async def attach(connection: Connection, ip: Ip, owner: Owner, *, actor: str) -> bool:
    """Give an address that nobody uses to the owner; False when somebody does, or when it is gone."""
    # Releases rely on this lock: they read who uses an address in one statement and let it go in another.
    await connection.execute("SELECT FROM prefix WHERE id = $1 FOR NO KEY UPDATE", ip.prefix_id)
    done = await connection.fetchval(
        """WITH given AS (
               UPDATE ip SET owner_kind = $4, owner_id = $5, version = version + 1, updated_at = now()
               WHERE namespace_id = $1 AND addr = $2 AND project_id = $3 AND owner_id = '' AND state <> 'quarantine'
               RETURNING namespace_id, addr, project_id)
           INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
           SELECT $6, 'attach', namespace_id, addr, $4, $5, project_id FROM given RETURNING 1""",
        *(ip.namespace_id, ip.address, ip.project, owner.kind, owner.id, actor),
    )
    return done is not None


async def detach_static(connection: Connection, owner: Owner, *, actor: str) -> int:
    """Take the owner off its static addresses; how many there were."""
    rows = await connection.fetch(
        """WITH freed AS (
               UPDATE ip SET owner_kind = '', owner_id = '', version = version + 1, updated_at = now()
               WHERE owner_kind = $1 AND owner_id = $2 AND owner_id <> '' AND kind = 'static'
               RETURNING namespace_id, addr, project_id)
           INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
           SELECT $3, 'detach', namespace_id, addr, $1, $2, project_id FROM freed RETURNING 1""",
        *(owner.kind, owner.id, actor),
    )
    return len(rows)


async def end_quarantine(connection: Connection, limit: int) -> int:
    """Return rested addresses to their prefixes; how many."""
    count: int = await connection.fetchval("SELECT end_quarantine($1)", limit)
    return count


async def forget_requests(connection: Connection, limit: int) -> int:
    """Drop ids of requests whose address was released over a day ago: no retry comes that late."""
    rows = await connection.fetch(
        """DELETE FROM spent_request WHERE ctid = ANY (ARRAY(
               SELECT ctid FROM spent_request WHERE at < now() - interval '1 day' ORDER BY at LIMIT $1
               FOR UPDATE SKIP LOCKED)) RETURNING 1""",
        limit,
    )
    return len(rows)


def _with(ip: Ip, *, version: int) -> Ip:
    values = {name: getattr(ip, name) for name in Ip.__dataclass_fields__}
    return Ip(**(values | {"version": version}))


def ip_from(row: Any) -> Ip:
    """The address of a row."""
    return Ip(
        address=row["addr"],
        namespace_id=row["namespace_id"],
        network=row["network_id"],
        prefix=row["cidr"],
        project=row["project_id"],
        type=TYPES[row["kind"]],
        owner=Owner(row["owner_kind"], row["owner_id"]) if row["owner_id"] else NOBODY,
        name=row["name"],
        description=row["description"],
        dns_name=row["dns_name"],
        labels=row["labels"],
        version=row["version"],
        create_time=row["created_at"],
        namespace=row["namespace"],
        prefix_id=row["prefix_id"],
    )
