"""Number pools: VRF numbers, which are VNIs too, and ASNs. Numbers here include the pool's base."""

from __future__ import annotations

from dataclasses import dataclass

from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, ResourceExhausted

from metal_ipam.addresses import Owner

VRF_POOL = "vrf"
ASN_POOL = "asn"
# A VRF number is the VNI too, which has 24 bits (RFC 7348).
_LAST = {VRF_POOL: 2**24 - 1}


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool with its bounds and counters."""

    name: str
    min: int
    max: int
    used: int
    size: int


async def ensure(connection: Connection, name: str, *, base: int, lo: int, hi: int, actor: str) -> None:
    """Create the pool with the numbers base + lo .. base + hi, or grow it upwards to hi. It never shrinks.

    Raises:
        ValueError: a pool of that name exists with another base, so that its numbers would change their meaning.
    """
    await connection.execute("INSERT INTO id_pool (name, base) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, base)
    pool = await connection.fetchrow("SELECT id, base FROM id_pool WHERE name = $1 FOR NO KEY UPDATE", name)
    assert pool is not None
    if pool["base"] != base:
        raise ValueError(f"pool {name} has the base {pool['base']}, the settings say {base}")
    top = await connection.fetchval("SELECT max(hi) FROM id_range WHERE pool_id = $1", pool["id"])
    start = lo if top is None else top + 1
    if start <= hi:
        await connection.execute("SELECT pool_grow($1, $2, $3, true, $4)", pool["id"], start, hi, actor)


async def grow(connection: Connection, pool: str, first: int, last: int, *, on_request: bool, actor: str) -> PoolRow:
    """Add the numbers to the pool, base included.

    Raises:
        NotFound: POOL_NOT_FOUND. AlreadyExists: NUMBERS_IN_POOL.
        OutOfRange: NUMBER_OUTSIDE_POOL, below the base or above what a VNI can be.
    """
    known = await connection.fetchrow("SELECT id, base FROM id_pool WHERE name = $1", pool)
    if known is None:
        raise NotFound("POOL_NOT_FOUND", f"there is no pool {pool}", field="id")
    base: int = known["base"]
    if first < base:
        raise OutOfRange("NUMBER_OUTSIDE_POOL", f"numbers of pool {pool} begin at {base}", field="first")
    if last > (most := _LAST.get(pool, last)):
        raise OutOfRange("NUMBER_OUTSIDE_POOL", f"numbers of pool {pool} end at {most}", field="last")
    outcome = await connection.fetchval(
        "SELECT pool_grow($1, $2, $3, $4, $5)", known["id"], first - base, last - base, not on_request, actor
    )
    if outcome != "ok":
        raise AlreadyExists("NUMBERS_IN_POOL", f"pool {pool} has some of {first} to {last} already", field="first")
    [row] = await pools(connection, after="", limit=1, name=pool)
    return row


async def acquire(
    connection: Connection, pool: str, owner: Owner, *, number: int = 0, project: str = "", actor: str, field: str = ""
) -> int:
    """A number for the owner: `number`, or with 0 the lowest free one. The owner's own number, if it has one already.

    `field` names the request's field in errors about a given number.

    Raises:
        NotFound, ResourceExhausted, OutOfRange, AlreadyExists (with the holder), FailedPrecondition (has another).
    """
    known = await connection.fetchrow("SELECT id, base, used, size FROM id_pool WHERE name = $1", pool)
    if known is None:
        raise NotFound("POOL_NOT_FOUND", f"there is no pool {pool}", field="pool")
    base: int = known["base"]
    row = await connection.fetchrow(
        "SELECT * FROM pool_acquire($1, $2, $3, $4, $5, $6)",
        *(known["id"], number - base if number else None, owner.kind, owner.id, project, actor),
    )
    assert row is not None
    match row["outcome"]:
        case "ok":
            return base + int(row["value"])
        case "full":
            raise ResourceExhausted(
                "POOL_FULL",
                f"pool {pool} is full: {known['used']} of {known['size']} numbers are in use",
                metadata={"pool": pool, "used": str(known["used"]), "size": str(known["size"])},
            )
        case "taken":
            holder = Owner(row["holder_kind"] or "", row["holder_id"] or "")
            raise AlreadyExists(
                "NUMBER_TAKEN",
                f"{pool} {number} is in use by {holder}",
                field=field,
                metadata={"pool": pool, "number": str(number), "owner_kind": holder.kind, "owner": holder.id},
            )
        case "outside":
            raise OutOfRange("NUMBER_OUTSIDE_POOL", f"{number} does not belong to pool {pool}", field=field)
        case "has_other":
            has = base + int(row["value"])
            raise FailedPrecondition(
                "OWNER_HAS_NUMBER", f"{owner} has {pool} {has} already", metadata={"number": str(has)}
            )
        case _:
            raise NotFound("POOL_NOT_FOUND", f"there is no pool {pool}", field="pool")


async def release(connection: Connection, owner: Owner, *, pool: str = "", actor: str) -> int:
    """Release the owner's numbers in the pool, or (empty) in all; how many there were."""
    if pool and not await connection.fetchval("SELECT 1 FROM id_pool WHERE name = $1", pool):
        raise NotFound("POOL_NOT_FOUND", f"there is no pool {pool}", field="pool")
    count: int = await connection.fetchval(
        "SELECT pool_release((SELECT id FROM id_pool WHERE name = $1), $2, $3, $4)",
        *(pool, owner.kind, owner.id, actor),
    )
    return count


async def pools(connection: Connection, *, after: str, limit: int, name: str = "") -> list[PoolRow]:
    """Pools by name; only the one of this name when it is given."""
    rows = await connection.fetch(
        """SELECT p.name, p.base + min(r.lo) AS min, p.base + max(r.hi) AS max, p.used, p.size
           FROM id_pool p JOIN id_range r ON r.pool_id = p.id
           WHERE p.name > $1 AND ($3 = '' OR p.name = $3) GROUP BY p.id ORDER BY p.name LIMIT $2""",
        *(after, limit, name),
    )
    return [PoolRow(**dict(row)) for row in rows]


async def numbers(connection: Connection, pool: str, *, after: int, limit: int) -> list[tuple[int, Owner]] | None:
    """Numbers in use with their owners, by number; resting ones are nobody's and left out. None: no such pool."""
    known = await connection.fetchrow("SELECT id, base FROM id_pool WHERE name = $1", pool)
    if known is None:
        return None
    rows = await connection.fetch(
        """SELECT value, owner_kind, owner_id FROM id_used
           WHERE pool_id = $1 AND value > $2 AND state = 'active' ORDER BY value LIMIT $3""",
        *(known["id"], after - known["base"], limit),
    )
    return [(known["base"] + row["value"], Owner(row["owner_kind"], row["owner_id"])) for row in rows]


async def verify(connection: Connection) -> list[str]:
    """What is wrong in the accounts of the pools; empty when all is right."""
    rows = await connection.fetch("SELECT p.name, v FROM id_pool p, verify_pool(p.id) AS v ORDER BY 1, 2")
    return [f"pool {row['name']}: {row['v']}" for row in rows]


async def end_quarantine(connection: Connection, limit: int) -> int:
    """Return rested numbers to their pools."""
    count: int = await connection.fetchval("SELECT end_number_quarantine($1)", limit)
    return count
