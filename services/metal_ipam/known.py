"""Networks and their leaf prefixes, remembered for a short while, so that the common call need not read them again.

Only what cannot change is believed: what a network is, whose it is, and which prefix of it an address lies in. A prefix
that is gone or full says so when it is asked for an address; then everything is read anew. Whoever makes more of a
network changeable must not decide by what is remembered here.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from metal_kit.db import Database

from metal_ipam.addresses import Leaf
from metal_ipam.cidr import Address, contains
from metal_ipam.networks import Network
from metal_ipam.store import networks, prefixes

SECONDS = 30.0
MOST = 10_000
# A prefix that had nothing free is not asked again for so long, unless this process sees an address of it released.
FULL_SECONDS = 1.0


@dataclass(slots=True)
class Known:
    """A network as it was read at `read`, with its leaves in the order of their ids."""

    network: Network
    leaves: tuple[Leaf, ...]
    read: float
    full: dict[int, float] = field(default_factory=dict)
    # CIDRs as text by the leaf's id: to write one takes as long as to serve it.
    texts: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = {leaf.id: str(leaf.cidr) for leaf in self.leaves}

    def home(self, address: Address) -> Leaf | None:
        """The leaf that the address lies in."""
        return next((leaf for leaf in self.leaves if contains(leaf.cidr, address)), None)


class KnownNetworks:
    """The networks that were asked for last. Reads of one network at the same moment are one."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._reading: dict[str, asyncio.Task[Known | None]] = {}

    async def get(self, network: str) -> Known | None:
        """The network; None when there is none, which is not remembered. Raises what the database raises."""
        known = self._known.get(network)
        if known is not None and self._clock() - known.read < SECONDS:
            return known
        reading = self._reading.get(network)
        if reading is None:
            # An empty context: those who share the answer must not share one caller's deadline.
            reading = asyncio.create_task(self._read(network), context=contextvars.Context())
            self._reading[network] = reading
            reading.add_done_callback(lambda done: self._reading.pop(network, None))
        return await asyncio.shield(reading)

    def forget(self, network: str) -> None:
        """Read the network anew the next time."""
        self._known.pop(network, None)

    def is_full(self, known: Known, leaf: Leaf) -> bool:
        """Whether the leaf had nothing free a moment ago."""
        since = known.full.get(leaf.id)
        return since is not None and self._clock() - since < FULL_SECONDS

    def note_full(self, known: Known, leaf: Leaf) -> None:
        """The leaf has just said that it has nothing free."""
        known.full[leaf.id] = self._clock()

    async def _read(self, network: str) -> Known | None:
        began = self._clock()
        async with self._db.connection() as connection:
            found = await networks.get_many(connection, [network])
            if network not in found:
                self.forget(network)
                return None
            leaves = await prefixes.leaves(connection, [network])
        known = self._known[network] = Known(found[network], tuple(leaves), began)
        self._known.move_to_end(network)
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return known
