"""MachineService, put together from its parts."""

from __future__ import annotations

from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceServicer

from metal_inventory.api.agents import Agents
from metal_inventory.api.binding import Binding
from metal_inventory.api.changing import Changing
from metal_inventory.api.history import History
from metal_inventory.api.reading import Reading
from metal_inventory.api.tools import Tools


class MachineServicer(Reading, Changing, History, Agents, Binding, MachineServiceServicer):
    """Machines."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
