from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from metal_boot.decider import Decider
from metal_boot.decision import Answer
from metal_boot.plane import View
from metal_boot.situation import Known, Situation, Wanted
from metal_kit.errors import Unavailable

M1 = "4c4c4544-0051-3510-8052-b4c04f4e3131"
M2 = "4c4c4544-0051-3510-8052-b4c04f4e3132"


@dataclass
class Plane:
    situations: dict[str, Situation] = field(default_factory=dict)
    macs: dict[str, str] = field(default_factory=dict)
    down: bool = False
    stalled: bool = False

    async def view(self, machine_id: str, *, deadline: float = 0) -> View:
        await self._answer()
        return View(self.situations.get(machine_id, Situation(machine_id)))

    async def find_by_mac(self, mac: str, *, deadline: float = 0) -> str:
        await self._answer()
        return self.macs.get(mac, "")

    async def _answer(self) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        if self.down:
            raise Unavailable("TRANSPORT_UNAVAILABLE", "no connection")


async def test_a_machine_without_a_uuid_is_recognised_by_its_mac() -> None:
    plane = Plane({M1: Situation(M1, known=Known.BY_UUID)}, {"02:00:00:00:00:01": M1})
    found, decision = await Decider(plane).decide("", "02:00:00:00:00:01")
    assert (found, decision.answer) == (M1, Answer.INSTALLER)


async def test_a_machine_that_nothing_is_known_of_gets_its_local_disk() -> None:
    for mac in ("", "02:00:00:00:00:09"):
        found, decision = await Decider(Plane()).decide("", mac)
        assert (found, decision.answer) == ("", Answer.LOCAL_DISK)


async def test_a_known_mac_does_not_lend_an_unknown_machine_another_ones_life() -> None:
    plane = Plane({M1: Situation(M1, known=Known.BY_UUID, locked=True)}, {"02:00:00:00:00:01": M1})
    found, decision = await Decider(plane).decide(M2, "02:00:00:00:00:01")
    assert (found, decision.answer) == (M2, Answer.DISCOVER)


async def test_without_the_plane_the_last_answer_stands_also_by_mac() -> None:
    plane = Plane({M1: Situation(M1, known=Known.BY_UUID)}, {"02:00:00:00:00:01": M1})
    decider = Decider(plane)
    await decider.decide(M1, "02:00:00:00:00:01")
    plane.down = True
    for machine_id, mac in ((M1, ""), ("", "02:00:00:00:00:01")):
        found, decision = await decider.decide(machine_id, mac)
        assert (found, decision.answer) == (M1, Answer.INSTALLER)
    assert (await decider.decide(M2, ""))[1].answer is Answer.LOCAL_DISK


async def test_a_plane_that_does_not_answer_is_not_waited_for() -> None:
    plane = Plane(stalled=True)
    loop = asyncio.get_running_loop()
    began = loop.time()
    _, decision = await Decider(plane, deadline=0.05).decide(M1, "")
    assert decision.answer is Answer.LOCAL_DISK
    assert loop.time() - began < 2


async def test_an_installed_machine_gets_its_local_disk_although_it_last_asked_for_the_installer() -> None:
    plane = Plane({M1: Situation(M1, known=Known.BY_UUID, allocation_id="a1", bound_to="a1", wanted=Wanted.INSTALL)})
    decider = Decider(plane)
    assert (await decider.decide(M1, ""))[1].answer is Answer.INSTALLER
    decider.learn_installed(M1)
    plane.down = True
    assert (await decider.decide(M1, ""))[1].answer is Answer.LOCAL_DISK


async def test_what_a_work_stream_sees_refreshes_what_is_remembered() -> None:
    decider = Decider(Plane(down=True))
    decider.learn(Situation(M1, known=Known.BY_UUID, allocation_id="a1", wanted=Wanted.RUNNING))
    assert "allocated" in (await decider.decide(M1, ""))[1].reason
    decider.learn(Situation(M1, known=Known.BY_UUID))
    assert (await decider.decide(M1, ""))[1].answer is Answer.INSTALLER
