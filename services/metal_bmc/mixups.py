"""Issues of BMCs that do not seem to be their machine's: what is switched there may be another machine."""

from __future__ import annotations

from datetime import datetime

from metal_kit.db import Database
from metal_kit.issues import Issue, Severity

from metal_bmc import identity
from metal_bmc.endpoint import Endpoint
from metal_bmc.store import EndpointStore

_MOST = 500


class Mixups:
    """Looks for such BMCs of one partition."""

    def __init__(self, db: Database, *, partition: str) -> None:
        self._db, self._partition = db, partition
        self._endpoints = EndpointStore()

    async def issues(self, now: datetime) -> list[Issue]:
        """At most 500 of them. Raises what the database raises."""
        del now
        async with self._db.connection() as connection:
            found = await self._endpoints.of_other_machines(connection, self._partition, most=_MOST)
        return [issue_of(endpoint) for endpoint in found]


def issue_of(endpoint: Endpoint) -> Issue:
    """What the BMC says, and what would settle it."""
    seen = endpoint.observation
    says = [f"GUID {seen.guid.hex()}"] if seen.guid else []
    said_serials = sorted(identity.serials(seen.fru))
    says += [f"serial numbers {', '.join(said_serials)}"] if said_serials else []
    says += [f"MAC {seen.said_mac}"] if seen.said_mac else []
    known = [f"serial number {endpoint.serial}"] if endpoint.serial else []
    known += [f"MAC {endpoint.mac}"] if endpoint.mac else []
    details = (
        f"its BMC says {', '.join(says)}; known is {', '.join([f'UUID {endpoint.machine}', *known])}: it may be "
        "another machine's; look at the address, and set `serial` of the BMC to the number on the machine"
    )
    since = seen.inspected_at or endpoint.updated_at
    return Issue(f"bmc-identity/{endpoint.machine}", Severity.MAJOR, f"machine {endpoint.machine}", details, since)
