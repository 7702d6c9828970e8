"""The events of this service, written to the outbox in the caller's transaction. None carries a secret."""

from __future__ import annotations

from metal_kit import outbox
from metal_kit.db import Connection
from metalplane.bmc.v1.events_pb2 import (
    BmcChanged,
    BmcDeleted,
    CommandChanged,
    CommandFinished,
    ManualTaskChanged,
)

from metal_bmc.command import Command
from metal_bmc.endpoint import Endpoint
from metal_bmc.messages import command_message, endpoint_message, task_message
from metal_bmc.task import Task, TaskState


async def endpoint_changed(connection: Connection, endpoint: Endpoint) -> None:
    """A BMC was registered, changed, or answered differently than before."""
    await outbox.emit(
        connection,
        subject="metalplane.bmc.endpoint.changed",
        entity="bmc",
        entity_id=endpoint.machine,
        version=endpoint.version,
        payload=BmcChanged(bmc=endpoint_message(endpoint)),
        partition=endpoint.partition,
    )


async def endpoint_deleted(connection: Connection, endpoint: Endpoint) -> None:
    """A BMC was forgotten."""
    await outbox.emit(
        connection,
        subject="metalplane.bmc.endpoint.deleted",
        entity="bmc",
        entity_id=endpoint.machine,
        version=endpoint.version,
        payload=BmcDeleted(bmc=endpoint_message(endpoint)),
        partition=endpoint.partition,
        deleted=True,
    )


async def task_changed(connection: Connection, task: Task) -> None:
    """A task for a person was opened, is waited for still, or has ended."""
    await outbox.emit(
        connection,
        subject="metalplane.bmc.task.changed",
        entity="manual_task",
        entity_id=task.id,
        version=task.version,
        payload=ManualTaskChanged(task=task_message(task)),
        partition=task.partition,
        deleted=task.state is not TaskState.OPEN,
    )


async def command_changed(connection: Connection, command: Command) -> None:
    """A command was given, begun, or has to be tried again."""
    await outbox.emit(
        connection,
        subject="metalplane.bmc.command.changed",
        entity="command",
        entity_id=command.id,
        version=command.version,
        payload=CommandChanged(command=command_message(command)),
        partition=command.partition,
    )


async def command_finished(connection: Connection, command: Command) -> None:
    """A command succeeded, failed or expired."""
    await outbox.emit(
        connection,
        subject="metalplane.bmc.command.finished",
        entity="command",
        entity_id=command.id,
        version=command.version,
        payload=CommandFinished(command=command_message(command)),
        partition=command.partition,
        deleted=True,
    )
