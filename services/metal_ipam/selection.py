"""Choosing networks by their labels: for each wish the first network, by id, that has room for it besides what the
wishes before it take. The counters decide; when other calls are faster, the choice is made anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition, NotFound, OutOfRange, Problem, ResourceExhausted

from metal_ipam.addresses import Wish, expand, spread
from metal_ipam.store import networks, prefixes

# More networks with the same labels than this are not looked at.
CANDIDATES = 200


async def choose(connection: Connection, project: str, wishes: Sequence[Wish]) -> list[Wish]:
    """The wishes, each with a network.

    Raises:
        NotFound: no network of the project, or that serves it, has the labels.
        ResourceExhausted: none of those that have them has room.
        FailedPrecondition, OutOfRange: none has a prefix of the family, or around the given address.
        InvalidArgument: as `addresses.expand`.
    """
    chosen: list[Wish] = []
    named = {wish.network for wish in wishes if not wish.labels}
    known = await networks.get_many(connection, list(named))
    for index, wish in enumerate(wishes):
        if not wish.labels:
            chosen.append(wish)
            continue
        candidates = await networks.with_labels(connection, project, wish.labels, limit=CANDIDATES)
        known |= {network.id: network for network in candidates}
        ids = {each.network for each in chosen} & known.keys()
        leaves = await prefixes.leaves(connection, sorted(ids | {network.id for network in candidates}))
        # A network that does not exist is named by its own check, later.
        before = [each for each in chosen if each.network in known]
        problems: list[Problem] = []
        for network in candidates:
            trial = replace(wish, network=network.id, labels={})
            try:
                spread(expand([*before, trial], known), leaves)
            except (ResourceExhausted, FailedPrecondition, OutOfRange) as problem:
                problems.append(problem)
            else:
                chosen.append(trial)
                break
        else:
            raise _none(wish.labels, problems, field=f"wishes[{index}].network_labels")
    return chosen


def _none(labels: Mapping[str, str], problems: Sequence[Problem], *, field: str) -> Problem:
    what = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
    if not problems:
        return NotFound("NO_SUCH_NETWORK", f"no network for the project has the labels {what}", field=field)
    full = next((each for each in problems if isinstance(each, ResourceExhausted)), problems[0])
    more = f"; {len(problems) - 1} more with the labels {what} do not serve either" if len(problems) > 1 else ""
    return type(full)(full.reason, full.message + more, field=field, metadata=full.metadata)
