"""Answering a boot request: ask the control plane, within a bound; remember the answer for when it cannot be asked."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from typing import Protocol, TypeVar

from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_boot import metrics
from metal_boot.decision import Answer, Decision, decide, decide_without_plane
from metal_boot.plane import ASK_DEADLINE, View
from metal_boot.situation import INSTALLED, Known, Situation, Wanted

log = get_logger(__name__)

V = TypeVar("V")

REMEMBERED = 20_000
"""Machines of one partition whose last decision is kept; a few hundred bytes each."""


class Asked(Protocol):
    """The questions to the control plane."""

    async def view(self, machine_id: str, *, deadline: float = ...) -> View:
        """What is known of a machine."""

    async def find_by_mac(self, mac: str, *, deadline: float = ...) -> str:
        """UUID of the machine with this MAC, or empty."""


class Decider:
    """Decides what machines boot, and remembers it by UUID and by MAC."""

    def __init__(self, plane: Asked, *, deadline: float = ASK_DEADLINE) -> None:
        self._plane = plane
        self._deadline = deadline
        self._last: OrderedDict[str, Decision] = OrderedDict()
        self._macs: OrderedDict[str, str] = OrderedDict()

    async def decide(self, machine_id: str, mac: str) -> tuple[str, Decision]:
        """UUID and decision for a boot request; `machine_id` is empty when the firmware gave none. Never raises.

        The UUID in the answer is empty when nobody knows which machine it is.
        """
        try:
            async with asyncio.timeout(self._deadline):
                situation = await self._situation(machine_id, mac)
        except (Problem, TimeoutError) as error:
            found = machine_id or self._macs.get(mac, "")
            log.warning("decision.without_plane", machine=found, mac=mac, error=type(error).__name__)
            decision = decide_without_plane(self._last.get(found))
            metrics.DECISIONS.labels(decision.answer, "unreachable").inc()
            return found, decision
        decision = decide(situation)
        if not situation.machine_id:
            metrics.DECISIONS.labels(Answer.LOCAL_DISK, "asked").inc()
            return "", Decision(Answer.LOCAL_DISK, "the firmware gives no UUID and nobody knows its MAC address")
        metrics.DECISIONS.labels(decision.answer, "asked").inc()
        self.remember(situation.machine_id, decision)
        if mac:
            _put(self._macs, mac, situation.machine_id)
        return situation.machine_id, decision

    def remember(self, machine_id: str, decision: Decision) -> None:
        """Take note of what a machine is to boot, also from another source than a boot request."""
        _put(self._last, machine_id, decision)

    def learn(self, situation: Situation) -> None:
        """Take note of a situation that was seen elsewhere, so that what is remembered does not grow old.

        An installed machine that loses its power while the control plane is cut off has to get its local disk, although
        the last thing it asked for was the installer.
        """
        if situation.machine_id in self._last or situation.wanted in INSTALLED:
            self.remember(situation.machine_id, decide(situation))

    def learn_installed(self, machine_id: str) -> None:
        """Take note that a machine has just been installed."""
        self.learn(Situation(machine_id, known=Known.BY_UUID, wanted=Wanted.INSTALLED))

    async def _situation(self, machine_id: str, mac: str) -> Situation:
        if machine_id:
            # Also when nobody knows it: a known MAC must not lend a new machine another one's life (a NIC was moved).
            return (await self._plane.view(machine_id, deadline=self._deadline)).situation
        found = await self._plane.find_by_mac(mac, deadline=self._deadline) if mac else ""
        if not found:
            return Situation("")
        situation = (await self._plane.view(found, deadline=self._deadline)).situation
        return dataclasses.replace(situation, known=Known.BY_MAC)


def _put(kept: OrderedDict[str, V], key: str, value: V) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
