"""What each phase means for the installer, every cell; and where giving back begins."""

from __future__ import annotations

from itertools import product

import pytest
from metal_allocation.phase import (
    DEADLINES,
    FREEING,
    SETTLED,
    InstallationState,
    Phase,
    freeing_begins,
    installation_state,
)
from metalplane.allocation.v1.allocation_pb2 import AllocationPhase
from metalplane.allocation.v1.installation_pb2 import InstallationState as WireState

S = InstallationState
# phase: (not installed, installed)
TABLE = {
    Phase.BINDING: (S.PREPARING, S.PREPARING),
    Phase.ADDRESSING: (S.PREPARING, S.PREPARING),
    Phase.INSTALLING: (S.INSTALL, S.INSTALLED),
    Phase.ATTACHING: (S.INSTALLED, S.INSTALLED),
    Phase.BOOT_ORDER: (S.INSTALLED, S.INSTALLED),
    Phase.STARTING: (S.START, S.START),
    Phase.RUNNING: (S.RUNNING, S.RUNNING),
    Phase.FENCING: (S.RECLAIMING, S.RUNNING),
    Phase.RECLAIMING: (S.RECLAIMING, S.RECLAIMING),
    Phase.RELEASING: (S.RECLAIMING, S.RECLAIMING),
    Phase.UNBINDING: (S.RECLAIMING, S.RECLAIMING),
    Phase.RELEASED: (S.NONE, S.NONE),
}


def test_the_table_has_every_phase() -> None:
    assert set(TABLE) == set(Phase)


@pytest.mark.parametrize(("phase", "installed"), list(product(Phase, [False, True])))
def test_what_the_installer_is_wanted_to_do(phase: Phase, installed: bool) -> None:
    assert installation_state(phase, installed=installed) is TABLE[phase][installed]


@pytest.mark.parametrize("phase", list(Phase))
def test_an_installed_machine_is_never_told_to_install(phase: Phase) -> None:
    assert installation_state(phase, installed=True) is not S.INSTALL


def test_only_one_phase_ever_lets_a_machine_install() -> None:
    cells = product(Phase, [False, True])
    assert [cell for cell in cells if installation_state(cell[0], installed=cell[1]) is S.INSTALL] == [
        (Phase.INSTALLING, False)
    ]


def test_the_contract_names_every_phase_and_state() -> None:
    assert {f"ALLOCATION_PHASE_{each.name}" for each in Phase} == set(AllocationPhase.keys()) - {
        "ALLOCATION_PHASE_UNSPECIFIED"
    }
    wire = {name.removeprefix("INSTALLATION_STATE_") for name in list(WireState.keys())}
    assert {each.name for each in S} - {"NONE"} == wire - {"UNSPECIFIED"}


def test_every_phase_that_does_not_settle_has_a_deadline() -> None:
    assert set(DEADLINES) == set(Phase) - SETTLED


@pytest.mark.parametrize(
    ("phase", "begins"),
    [
        (Phase.BINDING, Phase.RELEASING),
        (Phase.ADDRESSING, Phase.RELEASING),
        (Phase.INSTALLING, Phase.FENCING),
        (Phase.ATTACHING, Phase.FENCING),
        (Phase.BOOT_ORDER, Phase.FENCING),
        (Phase.STARTING, Phase.FENCING),
        (Phase.RUNNING, Phase.FENCING),
        *((phase, phase) for phase in sorted(FREEING)),
    ],
)
def test_where_giving_back_begins(phase: Phase, begins: Phase) -> None:
    assert freeing_begins(phase) is begins


@pytest.mark.parametrize("phase", list(Phase))
def test_whoever_was_told_anything_is_fenced_first(phase: Phase) -> None:
    told = any(installation_state(phase, installed=each) not in {S.PREPARING, S.NONE} for each in (False, True))
    if told and phase not in FREEING:
        assert freeing_begins(phase) is Phase.FENCING
