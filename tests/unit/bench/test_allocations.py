"""The count of double bindings can fail: each way in which a machine could be given away twice is found in the rows."""

from __future__ import annotations

from typing import Any

from allocations import Figures, answers_of, double_bindings, handovers
from metalplane.allocation.v1.allocation_pb2 import Allocation, AllocationStatus
from metalplane.inventory.v1.events_pb2 import MachineChanged
from metalplane.inventory.v1.machine_pb2 import Binding, Machine


class Rows:
    """Answers the three queries with what it was given."""

    def __init__(
        self, holders: dict[str, str], changes: list[tuple[str, str]], given: int = 2, owners: int = 2
    ) -> None:
        self.holders, self.changes, self.given, self.owners = holders, changes, given, owners

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        if "inventory.machine" in query:
            return [{"id": machine, "allocation_id": holder} for machine, holder in self.holders.items()]
        if "ipam.ip" in query:
            return [{"given": self.given, "owners": self.owners}]
        return [
            {
                "entity_id": machine,
                "payload": MachineChanged(
                    machine=Machine(id=machine, binding=Binding(allocation=holder) if holder else None)
                ).SerializeToString(),
            }
            for machine, holder in self.changes
        ]


def made(**machines: str) -> list[Allocation]:
    return [Allocation(id=id_, status=AllocationStatus(machine=machine)) for id_, machine in machines.items()]


CLEAN = [("m1", ""), ("m1", "a"), ("m2", "b"), ("m1", "a")]


async def doubles(rows: Rows, answers: list[Allocation]) -> int:
    bench: Any = rows
    return await double_bindings(bench, answers)


async def test_a_clean_run_has_none() -> None:
    assert await doubles(Rows({"m1": "a", "m2": "b"}, CLEAN), made(a="m1", b="m2")) == 0


async def test_two_answers_with_one_machine_are_found() -> None:
    assert await doubles(Rows({"m1": "b"}, CLEAN), made(a="m1", b="m1")) > 0


async def test_a_machine_that_inventory_gives_to_somebody_else_is_found() -> None:
    assert await doubles(Rows({"m1": "a", "m2": "stranger"}, CLEAN), made(a="m1", b="m2")) == 1


async def test_an_allocation_with_two_machines_is_found() -> None:
    assert await doubles(Rows({"m1": "a", "m2": "b", "m3": "b"}, CLEAN), made(a="m1", b="m2")) == 1


async def test_a_shared_or_missing_address_is_found() -> None:
    holders = {"m1": "a", "m2": "b"}
    assert await doubles(Rows(holders, CLEAN, given=1), made(a="m1", b="m2")) == 1
    assert await doubles(Rows(holders, CLEAN, given=1, owners=1), made(a="m1", b="m2")) == 2


async def test_a_machine_that_changes_hands_without_having_been_free_is_found() -> None:
    bench: Any = Rows({}, [("m1", "a"), ("m1", "b"), ("m2", "a"), ("m2", ""), ("m2", "b")])
    assert await handovers(bench) == 1


def test_one_double_binding_misses_the_goal() -> None:
    figures = Figures(*([0.1, 0.2] for _ in range(7)))
    assert answers_of(figures, count=2, machines=10, runs=1)[0].holds is True
    figures.doubles = 1
    assert answers_of(figures, count=2, machines=10, runs=1)[0].holds is False
