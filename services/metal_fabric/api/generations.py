"""GenerationService: what a switch was wanted to be, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from metal_kit.paging import Paging
from metal_kit.timestamps import to_timestamp
from metalplane.fabric.v1 import agent_pb2, generation_pb2, switch_pb2
from metalplane.fabric.v1.generation_pb2_grpc import GenerationServiceServicer

from metal_fabric.differences import Difference
from metal_fabric.filters import PortRole
from metal_fabric.history import History
from metal_fabric.messages import desired_of, switch_message
from metal_fabric.refusals import answered
from metal_fabric.store import Kept

# Above every number: a bigint's greatest.
_ABOVE_ALL = (1 << 63) - 1


class GenerationApi(GenerationServiceServicer):
    """Implements GenerationService."""

    def __init__(self, history: History, paging: Paging) -> None:
        self._history = history
        self._paging = paging

    async def ListGenerations(
        self, request: generation_pb2.ListGenerationsRequest, context: Any
    ) -> generation_pb2.ListGenerationsResponse:
        page = self._paging.page(request.page_size, request.page_token, filter_key=f"generations\0{request.switch_id}")
        before = int(str(page.after[0])) if page.after else _ABOVE_ALL
        kept = await self._history.page(request.switch_id, before=before, limit=page.limit)
        shown, token = page.cut(kept, lambda each: (each.number,))
        return generation_pb2.ListGenerationsResponse(
            generations=[_generation(request.switch_id, each) for each in shown], next_page_token=token
        )

    async def GetDesiredState(
        self, request: generation_pb2.GetDesiredStateRequest, context: Any
    ) -> agent_pb2.DesiredState:
        return await self._history.state(request.switch_id, request.generation)

    async def DiffGenerations(
        self, request: generation_pb2.DiffGenerationsRequest, context: Any
    ) -> generation_pb2.DiffGenerationsResponse:
        compared = await self._history.compare(request.switch_id, request.before, request.after)
        return generation_pb2.DiffGenerationsResponse(
            before=compared.before, after=compared.after, changes=_changes(compared.found)
        )

    async def PlanSwitch(
        self, request: generation_pb2.PlanSwitchRequest, context: Any
    ) -> generation_pb2.PlanSwitchResponse:
        with answered():
            newest, compared = await self._history.plan(request.switch_id, request.rollback_to)
        return generation_pb2.PlanSwitchResponse(
            applied_generation=compared.before, desired_generation=newest.number, changes=_changes(compared.found)
        )

    async def RollbackSwitch(self, request: generation_pb2.RollbackSwitchRequest, context: Any) -> switch_pb2.Switch:
        with answered():
            view = await self._history.rollback(request.switch_id, request.generation, request.reason)
        return switch_message(view)

    async def UnpinSwitch(self, request: generation_pb2.UnpinSwitchRequest, context: Any) -> switch_pb2.Switch:
        with answered():
            view = await self._history.unpin(request.switch_id)
        return switch_message(view)

    async def RetrySwitch(
        self, request: generation_pb2.RetrySwitchRequest, context: Any
    ) -> generation_pb2.RetrySwitchResponse:
        with answered():
            view, set_aside = await self._history.retry(request.switch_id)
        return generation_pb2.RetrySwitchResponse(switch=switch_message(view), set_aside=set_aside)


def _generation(switch_id: str, kept: Kept) -> generation_pb2.Generation:
    state = desired_of(agent_pb2.DesiredState.FromString(kept.state))
    roles = Counter(port.role.value for port in state.ports if port.role is not PortRole.UNPROVISIONED)
    return generation_pb2.Generation(
        switch_id=switch_id,
        number=kept.number,
        hash=kept.hash,
        create_time=to_timestamp(kept.made),
        applied=kept.applied,
        wanted=kept.wanted,
        pinned_to=kept.pinned_to,
        ports=roles,
        vrfs=len(state.vrfs),
    )


def _changes(found: Iterable[Difference]) -> list[generation_pb2.StateChange]:
    return [
        generation_pb2.StateChange(object=each.object, field=each.field, before=each.before, after=each.after)
        for each in found
    ]
