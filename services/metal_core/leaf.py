"""What the agent and each command have of a leaf: its databases, its FRR, its memory, and the lock on them.

None of it needs the plane. The agent puts its stream on top (`service`), a person's commands are in `cli`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from metal_kit.process import StartError
from metal_kit.settings import AgentSettings
from pydantic import Field

from metal_core import databases, vtysh
from metal_core.apply import Applier
from metal_core.confirm import Trials
from metal_core.frr.dialect import VrfBackend
from metal_core.known_good import KnownGoodFile
from metal_core.lock import LeafLock
from metal_core.sonic import Sonic
from metal_core.vtysh import Frr


class LeafSettings(AgentSettings):
    """Where things are on a leaf. Each has a default, so that a command works without any setting."""

    switch_id: str = Field("", max_length=63, description="host name; empty: DEVICE_METADATA|localhost hostname")
    state_directory: Path = Field(Path("/etc/sonic/metal_core"), description="where the last known good state is kept")
    frr_conf: Path = Field(Path("/etc/sonic/frr/frr.conf"), description="where FRR reads its configuration at boot")
    vtysh: str = Field("vtysh", description="command that is FRR's vtysh; empty: there is no FRR")
    vrf_backend: VrfBackend = Field(
        VrfBackend.LITE, description="what VRFs are to FRR: devices (SONiC), or namespaces (netns)"
    )
    database_config: Path = Path("/var/run/redis/sonic-db/database_config.json")
    redis_password_file: Path | None = None
    wait_seconds: float = Field(10.0, gt=0, le=300, description="how long the switch may take to follow one step")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf; `close` it when done."""

    settings: LeafSettings
    sonic: Sonic
    frr: Frr
    known_good: KnownGoodFile
    trials: Trials
    applier: Applier
    lock: LeafLock

    async def close(self) -> None:
        """Close the connections to Redis and to FRR."""
        await self.frr.close()
        await self.sonic.close()


def open_leaf(settings: LeafSettings, *, scratch: Path | None = None, trial_seconds: float = 0.0) -> Leaf:
    """The leaf that `settings` describe; nothing is connected yet. Raises StartError for what cannot work.

    Texts for vtysh go to `scratch`, the state directory when left out; a command has one of its own, so that it does
    not write over the texts of the agent. `trial_seconds` as in `Trials`: without a plane that could be heard there are
    none.
    """
    sonic = _sonic(settings)
    frr = vtysh.find(shlex.split(settings.vtysh), scratch or settings.state_directory, settings.vrf_backend)
    known_good = KnownGoodFile(settings.state_directory)
    trials = Trials(known_good, limit=trial_seconds)
    applier = Applier(sonic, frr, trials, settings.frr_conf, wait_limit=settings.wait_seconds)
    return Leaf(settings, sonic, frr, known_good, trials, applier, LeafLock(settings.state_directory))


def _sonic(settings: LeafSettings) -> Sonic:
    try:
        locations = databases.read(settings.database_config)
        password = settings.redis_password_file.read_text().strip() if settings.redis_password_file else ""
    except databases.DatabaseConfigError as error:
        raise StartError(str(error)) from error
    except OSError as error:
        raise StartError(f"METALPLANE_REDIS_PASSWORD_FILE: {error}") from error
    return Sonic(locations, password)
