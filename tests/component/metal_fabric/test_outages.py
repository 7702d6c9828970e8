"""Fabric without its database, and after it came back."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from metal_kit.ids import uuid7
from metal_lab.servers import Postgres
from metalplane.fabric.v1.switch_pb2 import GetAttachmentRequest


@pytest.fixture
async def own_postgres(server_directory: Path) -> AsyncIterator[Postgres]:
    """A Postgres that the test may stop, with everything on disk."""
    directory = server_directory / "fabric-outage"
    server = Postgres(directory, durable=True)
    await server.start()
    yield server
    await server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def database_url(own_postgres: Postgres) -> str:
    return own_postgres.url


async def test_a_leaf_and_its_confirmations_survive_an_outage_of_the_database(
    own_postgres: Postgres, fabric: Any, pair: Any, eventually: Any
) -> None:
    machine = await fabric.machine()
    await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7()))
    await eventually(lambda: all(leaf.generation == 2 for leaf in pair))
    report = await pair[0].apply()
    await eventually(lambda: report in pair[0].acks)

    await own_postgres.stop()
    await eventually(lambda: pair[0].ended and pair[1].ended)
    assert {leaf.failure.code.name for leaf in pair} == {"UNAVAILABLE"}
    await own_postgres.start()

    async def back() -> bool:
        for leaf in pair:
            if leaf.ended:
                leaf.states.clear()
                await leaf.open()
        return all(leaf.states and not leaf.ended for leaf in pair)

    await eventually(back, seconds=60)
    assert [leaf.generation for leaf in pair] == [2, 2]
    attachment = await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))
    assert [leaf.confirmed for leaf in attachment.leaves] == [True, False]
    report = await pair[1].apply()
    await eventually(lambda: report in pair[1].acks)
    assert (await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))).confirmed
