"""The frame of an agent (on a leaf, in the ramdisk): settings, logs, signals, and its calls to the plane.

Base dependencies only. An agent serves nothing; whatever it keeps running it awaits in its own body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from metal_kit import logs, process
from metal_kit.client import Peers
from metal_kit.process import StartError
from metal_kit.settings import AgentSettings
from metal_kit.tls import Identity

Settings = TypeVar("Settings", bound=AgentSettings)


@dataclass(frozen=True)
class Agent(Generic[Settings]):
    """What an agent's body works with. `stopping` is set by SIGTERM and SIGINT."""

    name: str
    settings: Settings
    peers: Peers
    stopping: asyncio.Event
    log: logs.Logger


def main(name: str, settings_type: type[Settings], body: Callable[[Agent[Settings]], Awaitable[None]]) -> NoReturn:
    """Run `body` until it returns, then exit. Raise `metal_kit.process.StartError` in it for a clear last word."""

    async def run(settings: Settings, stopping: asyncio.Event) -> None:
        peers = Peers(settings.peers, identity_of(settings))
        try:
            await body(Agent(name, settings, peers, stopping, logs.get_logger(name)))
        finally:
            await peers.close()

    process.run(name, settings_type, run)


def identity_of(settings: AgentSettings) -> Identity:
    """The certificate that the settings name. Raises StartError for a setting or a file that is missing."""
    paths = {"TLS_CA": settings.tls_ca, "TLS_CERT": settings.tls_cert, "TLS_KEY": settings.tls_key}
    for setting, path in paths.items():
        if not path:
            raise StartError(
                f"METALPLANE_{setting} is not set: everything speaks mutual TLS, so a certificate is needed"
            )
    identity = Identity(settings.tls_ca, settings.tls_cert, settings.tls_key)
    try:
        identity.channel_credentials()
    except OSError as error:
        raise StartError(f"cannot read the certificate file {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise StartError(f"the certificate cannot be used: {error}") from error
    return identity
