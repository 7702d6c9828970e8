"""CreateAllocation: what a request gets wrong is told by its field, and what it asks for is done once."""

from __future__ import annotations

from typing import Any

import pytest
from metal_kit.errors import InvalidArgument, NotFound, Problem
from metalplane.allocation.v1.allocation_pb2 import AllocationNetwork

UNKNOWN_UUID = "01980000-0000-7000-8000-00000000ffff"


def fields_of(problem: Problem) -> set[str]:
    return {problem.field} | {each.field for each in problem.violations}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"partition": "nowhere"}, "spec.partition"),
        ({"size": "no-such-size"}, "spec.size"),
        ({"image": "plan9-4"}, "spec.image"),
        ({"filesystem_layout": "no-such-layout"}, "spec.filesystem_layout"),
        ({"networks": [AllocationNetwork(network=UNKNOWN_UUID)]}, "spec.networks[0].network"),
    ],
)
async def test_what_does_not_exist_is_not_found_at_its_own_field(world: Any, wrong: dict[str, Any], field: str) -> None:
    await world.add_machines(1)
    with pytest.raises(NotFound) as caught:
        await world.create(**wrong)
    assert field in fields_of(caught.value)
    (name,) = wrong
    value = wrong[name] if isinstance(wrong[name], str) else UNKNOWN_UUID
    assert value in caught.value.message
    assert await world.value("SELECT count(*) FROM allocation") == 0


async def test_an_unknown_project_is_not_found_at_its_own_field(world: Any) -> None:
    with pytest.raises(NotFound) as caught:
        await world.create(token="operator", project=UNKNOWN_UUID)
    assert "project" in fields_of(caught.value)


async def test_an_image_without_a_version_is_refused_at_its_own_field(world: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await world.create(image="debian")
    assert "spec.image" in fields_of(caught.value)


async def test_of_several_unknown_things_the_first_is_told_whichever_answer_comes_first(world: Any) -> None:
    for _ in range(3):
        with pytest.raises(NotFound) as caught:
            await world.create(partition="nowhere", size="no-such-size", image="plan9-4")
        assert "spec.partition" in fields_of(caught.value)
