"""Serial consoles over our own RMCP+ client, each in a session of its own."""

from __future__ import annotations

import asyncio

from metal_kit import guard

from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.ipmi import bmc_error
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.console import USUAL, ConsoleRefused, Ears, Mode, SolConsole, Watch
from metal_bmc.rmcp.failures import RmcpFailure
from metal_bmc.rmcp.handshake import Login


class SolConsoles:
    """Opens the serial console of a BMC."""

    def __init__(self, client: RmcpClient, *, watch: Watch = USUAL) -> None:
        self._client, self._watch = client, watch

    async def open(self, target: Target, ears: Ears, mode: Mode, *, deadline: float) -> SolConsole | ConsoleRefused:
        """The console, or why the BMC does not give it: that is no failure of the exchange. Raises BmcError."""
        guard.refuse_in_transaction("a BMC exchange")
        give_up = asyncio.get_running_loop().time() + deadline
        login = Login(target.host, target.port, target.user, target.password)
        try:
            link = await self._client.open(login, give_up=give_up)
            try:
                return await SolConsole.open(link, ears, mode, give_up=give_up, watch=self._watch)
            except BaseException:
                link.part()
                raise
        except ConsoleRefused as refused:
            return refused
        except RmcpFailure as failure:
            raise bmc_error(failure) from None
