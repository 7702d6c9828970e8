"""Composition of the agent: settings, the parts, and the loops that run until it is told to stop.

What speaks to the plane is loaded after the leaf has got back what it had: it is a good part of what a start takes, and
the leaf's tenants wait for the rest. For the same reason an agent whose certificate is of no use restores before it
ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from metal_kit import agent as frame
from metal_kit import logs
from metal_kit.agent import Agent
from metal_kit.backoff import pause
from metal_kit.process import StartError
from metal_kit.settings import Endpoint
from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from metal_core import identity
from metal_core.condition import Condition, Progress
from metal_core.drift import LookingAfter
from metal_core.following import RETRY, Following
from metal_core.identity import IdentityError, LeafIdentity, Told
from metal_core.leaf import LeafSettings, open_leaf
from metal_core.lock import LockHeld
from metal_core.outcome import Outcome
from metal_core.quarantine import Quarantine
from metal_core.reports import Reports
from metal_core.sonic import SonicUnavailable
from metal_core.watching import Watching

if TYPE_CHECKING:
    from metalplane.fabric.v1.agent_pb2 import Hello

NAME = "metal-core"
# Seconds between two looks whether the switch has its ports: one key of Redis, and the leaf's tenants wait for it.
_FIRST_LOOK, _LAST_LOOK = 0.02, 0.25
_log = logs.get_logger("metal_core.service")


class CoreSettings(LeafSettings):
    """Settings of the agent. What is empty or 0 is taken from SONiC's own configuration."""

    partition: str = Field(min_length=1, max_length=63, description="partition that the leaf is in")
    rack: str = Field(min_length=1, max_length=63, description="rack that the leaf is in")
    uplinks: Annotated[tuple[str, ...], NoDecode] = Field(
        min_length=1, description="ports to the spines: `Ethernet120,Ethernet124`"
    )
    asn: int = Field(0, ge=0, lt=1 << 32, description="ASN; 0: DEVICE_METADATA|localhost bgp_asn")
    loopback: str = Field("", description="loopback address; empty: that of Loopback0")
    pxe_vlan: int = Field(4000, ge=1, le=4094, description="VLAN that machines boot in")
    management_address: str = ""
    init_seconds: float = Field(120.0, ge=0, le=3600, description="how long to wait for the switch's ports at start")
    observe_seconds: float = Field(1.0, ge=0.05, le=60, description="time between two looks at ports and neighbours")
    confirm_seconds: float = Field(
        120.0,
        ge=0,
        le=3600,
        description="how long the plane may be silent after a change before it is taken back; 0: for ever",
    )
    sessions_seconds: float = Field(5.0, ge=0.2, le=300, description="time between two looks at BGP sessions")
    metrics_listen: Endpoint = Field("", description="where /metrics and /health are served; empty: nowhere")
    compare_seconds: float = Field(60.0, ge=0.1, le=3600, description="time between two comparisons with the leaf")

    @field_validator("uplinks", mode="before")
    @classmethod
    def _read_uplinks(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Core:
    """The agent's parts on one leaf."""

    def __init__(self, agent: Agent[CoreSettings]) -> None:
        settings = agent.settings
        self._agent, self._settings, self._stopping = agent, settings, agent.stopping
        self._leaf = open_leaf(settings, trial_seconds=settings.confirm_seconds)
        self._sonic, self._trials = self._leaf.sonic, self._leaf.trials
        self._quarantine = Quarantine(settings.state_directory)
        self._reports, self._condition = Reports(), Condition()
        self._applier = LookingAfter(self._leaf.applier, self._reports.drifted, self._condition.ran)
        self._os_version = ""
        frr = "vtysh" if self._leaf.frr.present else "none, by the settings"
        _log.info("core.start", frr=frr, state=str(settings.state_directory))

    async def run(self) -> None:
        """Restore, then follow the plane. Returns when the agent is told to stop."""
        self._os_version = await asyncio.to_thread(identity.sonic_version)
        try:
            with ExitStack() as stack:
                if await self._lock_patiently(stack):
                    await self._follow()
        finally:
            await self._leaf.close()

    async def _follow(self) -> None:
        leaf = await self._identify_patiently()
        if leaf is None:
            return
        following = Following(
            self._applier,
            self._reports,
            switch_id=leaf.switch_id,
            compare_every=self._settings.compare_seconds,
            trials=self._trials,
            quarantine=self._quarantine,
        )
        self._condition.progress = lambda: Progress(
            following.newest_generation,
            following.applied.generation if following.applied else 0,
            self._applier.drifted,
            self._reports.waiting,
        )
        watching = Watching(
            self._sonic,
            self._leaf.frr,
            self._reports,
            self._condition,
            following.look_again,
            ports_every=self._settings.observe_seconds,
            sessions_every=self._settings.sessions_seconds,
        )
        with self._page():
            await self._run(following, watching)

    async def _run(self, following: Following, watching: Watching) -> None:
        await self._restore(following)
        from metal_core.plane import PlaneStream  # noqa: PLC0415 - see above

        stream = PlaneStream(self._agent.peers, lambda: self._introduce(following, watching), following, self._reports)
        async with asyncio.TaskGroup() as group:
            group.create_task(following.run(self._stopping), name="following")
            group.create_task(stream.run(self._stopping), name="plane")
            group.create_task(watching.ports(self._identify, self._stopping), name="ports")
            group.create_task(watching.sessions(self._stopping), name="sessions")
            group.create_task(watching.changes(self._stopping), name="changes")

    @contextmanager
    def _page(self) -> Iterator[None]:
        """The page of metrics and health, where one is wanted."""
        if not self._settings.metrics_listen:
            yield
            return
        from metal_core.page import listen  # noqa: PLC0415 - it takes its time, and agents without a page do without

        try:
            page = listen(self._condition, self._settings.metrics_listen)
        except OSError as error:
            raise StartError(f"METALPLANE_METRICS_LISTEN: {error}") from error
        try:
            yield
        finally:
            page.close()

    async def _lock_patiently(self, stack: ExitStack) -> bool:
        """Have `stack` hold the leaf: a person's command may be at work, or an agent that is about to end.

        False when told to stop meanwhile.
        """
        attempt = 0
        while not self._stopping.is_set():
            try:
                stack.enter_context(self._leaf.lock.held("the agent"))
            except LockHeld as held:
                _log.warning("core.leaf_held", by=str(held))
            except OSError as error:
                raise StartError(f"METALPLANE_STATE_DIRECTORY: {error}") from error
            else:
                return True
            await pause(self._stopping, RETRY.delay(attempt))
            attempt += 1
        return False

    async def _identify(self) -> LeafIdentity:
        settings = self._settings
        told = Told(
            partition=settings.partition,
            rack=settings.rack,
            uplinks=settings.uplinks,
            switch_id=settings.switch_id,
            asn=settings.asn,
            loopback=settings.loopback,
            pxe_vlan=settings.pxe_vlan,
            management_address=settings.management_address,
        )
        return identity.identify(told, await self._sonic.config(identity.TABLES), os_version=self._os_version)

    async def _identify_patiently(self) -> LeafIdentity | None:
        """Redis may come up after the agent, and CONFIG_DB be filled after that. None when told to stop meanwhile."""
        attempt = 0
        while not self._stopping.is_set():
            try:
                return await self._identify()
            except (SonicUnavailable, IdentityError) as error:
                _log.warning("core.not_ready", error=str(error))
            await pause(self._stopping, RETRY.delay(attempt))
            attempt += 1
        return None

    async def _introduce(self, following: Following, watching: Watching) -> Hello:
        leaf = await self._identify()
        states = await self._sonic.oper_states(leaf.ports)
        # A port that is up for this moment only would stay so for the plane: between two looks it has not changed.
        watching.forget()
        from metal_core.wire import hello_of  # noqa: PLC0415 - see above

        return hello_of(leaf, states, following.introduce())

    async def _restore(self, following: Following) -> None:
        """Bring back what was on trial or the last known good state before the plane is asked: it may be away."""
        await self._quarantine.load()
        try:
            await self._trials.load()
        except OSError as error:
            raise StartError(f"METALPLANE_STATE_DIRECTORY: {error}") from error
        good, candidate = self._trials.good, self._trials.candidate
        if good is None:
            _log.info("restore.nothing_known")
            return
        await self._ports_created()
        # A failure is not the end: the loop tries again, and the plane may meanwhile say something newer.
        if candidate is None:
            desired, outcome = good.desired, await self._applier.restore(good)
            following.resume(good, outcome)
        elif self._trials.left == 0:
            desired, outcome = good.desired, Outcome(False, "the trial of a newer generation has ended")
            following.resume(good, outcome)
        else:
            desired, outcome = candidate.desired, await self._applier.apply(candidate.desired)
            following.resume_trial(candidate, outcome)
        phases = {name: round(seconds, 3) for name, seconds in outcome.durations.items()}
        _log.info(
            "restore.ended", generation=desired.generation, applied=outcome.applied, error=outcome.error, seconds=phases
        )

    async def _ports_created(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.init_seconds
        look, told = _FIRST_LOOK, False
        while not self._stopping.is_set() and loop.time() < end:
            try:
                if await self._sonic.port_init_done():
                    return
            except SonicUnavailable as error:
                if not told:
                    _log.warning("core.not_ready", error=str(error))
                told = True
            await pause(self._stopping, timedelta(seconds=look))
            look = min(2 * look, _LAST_LOOK)
        _log.error("core.ports_not_created", waited=self._settings.init_seconds)


async def run(agent: Agent[CoreSettings]) -> None:
    """The agent's body; raises StartError for settings that cannot work."""
    await Core(agent).run()


def main() -> NoReturn:
    """Run the agent until a signal."""
    frame.main(NAME, CoreSettings, run)
