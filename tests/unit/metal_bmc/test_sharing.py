from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.sharing import share_of
from metal_kit.controller import SHARDS

fleets = st.sets(st.text("abc012/", min_size=1, max_size=12), min_size=1, max_size=6)


@given(fleets)
def test_each_bucket_belongs_to_exactly_one_replica(living: set[str]) -> None:
    shares = [share_of(replica, living) for replica in living]
    assert sorted(bucket for share in shares for bucket in share) == list(range(SHARDS))


@given(fleets, st.just("newcomer"))
def test_a_replica_that_comes_takes_only_what_becomes_its_own(living: set[str], newcomer: str) -> None:
    mine = share_of(newcomer, {*living, newcomer})
    for replica in living:
        assert share_of(replica, {*living, newcomer}) == share_of(replica, living) - mine


def test_four_replicas_have_about_a_quarter_each() -> None:
    living = {f"bmc-{number}/1/abcd" for number in range(4)}
    assert all(SHARDS / 8 < len(share_of(replica, living)) < SHARDS / 2 for replica in living)
