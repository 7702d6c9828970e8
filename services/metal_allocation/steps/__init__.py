"""What each phase does: one module a group of phases, one function a phase.

A step gets the allocation and the peers, acts, and answers an outcome. It may change the record; the controller saves
that together with the outcome, in one transaction that fails when somebody else changed the allocation meanwhile. A
step can be killed anywhere and runs again to the same end: its calls carry ids that are derived from the allocation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from metal_kit.clock import Clock
from metal_kit.controller import Outcome

from metal_allocation.clients import Clients
from metal_allocation.phase import Phase
from metal_allocation.record import Record
from metal_allocation.steps import addressing, binding, free, install, run, start

Step = Callable[[Record, Clients, Clock], Awaitable[Outcome]]

STEPS: Mapping[Phase, Step] = {
    Phase.BINDING: binding.bind,
    Phase.ADDRESSING: addressing.address,
    Phase.INSTALLING: install.install,
    Phase.ATTACHING: start.attach,
    Phase.BOOT_ORDER: start.boot_order,
    Phase.STARTING: start.start,
    Phase.RUNNING: run.look,
    Phase.FENCING: free.fence,
    Phase.RECLAIMING: free.reclaim,
    Phase.RELEASING: free.release,
    Phase.UNBINDING: free.unbind,
    Phase.RELEASED: free.settle,
}
