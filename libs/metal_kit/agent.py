"""The frame of an agent (on a leaf, in the ramdisk): settings, logs, signals, and its calls to the plane.

Base dependencies only. An agent serves nothing; whatever it keeps running it awaits in its own body. Half of what it
takes to load it is for calls to the plane, so that is loaded when they are asked for: what an agent has to do without
the plane does not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from metal_kit import logs, process
from metal_kit.process import StartError
from metal_kit.settings import AgentSettings

if TYPE_CHECKING:
    from metal_kit.client import Peers
    from metal_kit.tls import Identity

Settings = TypeVar("Settings", bound=AgentSettings)


class Agent(Generic[Settings]):
    """What an agent's body works with. `stopping` is set by SIGTERM and SIGINT.

    `connect` makes `peers` when they are first asked for; it may raise StartError.
    """

    def __init__(
        self, name: str, settings: Settings, connect: Callable[[], Peers], stopping: asyncio.Event, log: logs.Logger
    ) -> None:
        self.name, self.settings, self.stopping, self.log = name, settings, stopping, log
        self._connect = connect

    @cached_property
    def peers(self) -> Peers:
        """The services of the plane. Raises StartError when the certificate cannot be used."""
        return self._connect()

    async def close(self) -> None:
        """Close the connections to the plane, where there are any."""
        if "peers" in vars(self):
            await self.peers.close()


def main(name: str, settings_type: type[Settings], body: Callable[[Agent[Settings]], Awaitable[None]]) -> NoReturn:
    """Run `body` until it returns, then exit. Raise `metal_kit.process.StartError` in it for a clear last word."""

    async def run(settings: Settings, stopping: asyncio.Event) -> None:
        _named(settings)
        agent = Agent(name, settings, lambda: _peers(settings), stopping, logs.get_logger(name))
        try:
            await body(agent)
        finally:
            await agent.close()

    process.run(name, settings_type, run)


def identity_of(settings: AgentSettings) -> Identity:
    """The certificate that the settings name. Raises StartError for a setting or a file that is missing."""
    from metal_kit.tls import Identity  # noqa: PLC0415 - see above

    _named(settings)
    identity = Identity(settings.tls_ca, settings.tls_cert, settings.tls_key)
    try:
        identity.channel_credentials()
    except OSError as error:
        raise StartError(f"cannot read the certificate file {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise StartError(f"the certificate cannot be used: {error}") from error
    return identity


def _named(settings: AgentSettings) -> None:
    paths = {"TLS_CA": settings.tls_ca, "TLS_CERT": settings.tls_cert, "TLS_KEY": settings.tls_key}
    for setting, path in paths.items():
        if not path:
            raise StartError(
                f"METALPLANE_{setting} is not set: everything speaks mutual TLS, so a certificate is needed"
            )


def _peers(settings: AgentSettings) -> Peers:
    from metal_kit.client import Peers  # noqa: PLC0415 - see above

    return Peers(settings.peers, identity_of(settings))
