"""The part of BmcService that people at machines without a BMC use."""

from __future__ import annotations

from typing import Any

from metal_kit.db import Database
from metal_kit.identity import current_caller
from metal_kit.ids import parse_uuid
from metal_kit.paging import Paging
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceServicer

from metal_bmc.desk import TaskDesk
from metal_bmc.messages import task_message
from metal_bmc.store import TaskStore


class TaskApi(BmcServiceServicer):
    """Lists tasks and takes in what people say of them."""

    def __init__(self, db: Database, desk: TaskDesk, paging: Paging) -> None:
        self._db, self._desk, self._paging = db, desk, paging
        self._tasks = TaskStore()

    async def ListManualTasks(self, request: pb.ListManualTasksRequest, context: Any) -> pb.ListManualTasksResponse:
        """Tasks, oldest first."""
        machine = parse_uuid(request.machine, field="machine") if request.machine else ""
        filter_key = f"tasks:{machine}:{request.partition}:{request.include_ended}"
        page = self._paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self._db.connection() as connection:
            rows = await self._tasks.page(
                connection,
                machine=machine,
                partition=request.partition,
                ended=request.include_ended,
                after=page.after_text() or None,
                limit=page.limit,
            )
        shown, token = page.cut(rows, lambda row: (row.id,))
        return pb.ListManualTasksResponse(tasks=[task_message(task) for task in shown], next_page_token=token)

    async def ConfirmManualTask(self, request: pb.ConfirmManualTaskRequest, context: Any) -> pb.ManualTask:
        """End a task by what a person says of it."""
        task_id = parse_uuid(request.id, field="id")
        async with self._db.transaction(purpose="confirm a task") as connection:
            task = await self._desk.answer(
                connection, task_id, decline=request.decline, note=request.note, person=current_caller().label
            )
        return task_message(task)
