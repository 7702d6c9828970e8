"""What an exchange is asked for as is what it waits for its turn as."""

from __future__ import annotations

from typing import Any

import pytest
from metal_bmc.doors import Rank
from metal_bmc.exchange import BmcExchange


@pytest.mark.parametrize("rank", [Rank.USER, Rank.RECONCILE])
async def test_an_order_to_switch_waits_its_turn_as_what_it_was_given_as(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = object.__new__(BmcExchange)
    ranks: list[object] = []

    async def passed(machine: str, deadline: float, ask: Any, see: Any, rank: Rank = Rank.USER) -> bool:
        ranks.append(rank)
        return True

    monkeypatch.setattr(exchange, "_exchange", passed)
    await exchange.set_power("machine", on=True, deadline=1.0, rank=rank)
    await exchange.powered("machine", deadline=1.0, rank=rank)
    assert ranks == [rank, rank]
