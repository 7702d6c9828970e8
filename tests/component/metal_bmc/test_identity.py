"""Whether the BMC that answers is the machine's own: GUIDs in every byte order, serial numbers, MAC addresses."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_sim.bmc import SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.plane.v1 import issue_pb2
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
MACHINE = uuid.UUID("6f8e2c1a-0b7d-4e55-9a10-0242ac120002")
SOMEBODY = uuid.UUID("11111111-2222-4333-8444-555555555555")
MAC = "0c:c4:7a:00:00:01"


async def inspected(plane: Any, eventually: Eventually) -> pb.Bmc:
    """The BMC of MACHINE once it was asked who it is."""
    await plane.rows("UPDATE endpoint SET inspected_at = NULL, poll_at = now()")
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE inspected_at IS NOT NULL"), seconds=30)
    bmc: pb.Bmc = await plane.stub().GetBmc(pb.GetBmcRequest(machine=str(MACHINE)))
    return bmc


async def issues(plane: Any) -> list[issue_pb2.PlaneIssue]:
    answer = await plane.stub("viewer", IssueServiceStub).ListPlaneIssues(issue_pb2.ListPlaneIssuesRequest())
    return [issue for issue in answer.issues if issue.id.startswith("bmc-identity/")]


@pytest.mark.parametrize(
    ("guid", "identity"),
    [
        (MACHINE.bytes_le, pb.BMC_IDENTITY_SMBIOS),
        (MACHINE.bytes, pb.BMC_IDENTITY_RFC4122),
        (MACHINE.bytes[::-1], pb.BMC_IDENTITY_IPMI),
        (bytes(16), pb.BMC_IDENTITY_UNSPECIFIED),
    ],
)
async def test_a_guid_is_kept_as_it_is_and_fits_in_any_byte_order(
    guid: bytes, identity: pb.BmcIdentity.ValueType, plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start()
    await plane.register(await new_bmc(machine=str(MACHINE), guid=guid))
    shown = await inspected(plane, eventually)
    assert (shown.guid, shown.identity) == (guid.hex() if any(guid) else "", identity)
    assert await issues(plane) == []


async def test_another_machines_guid_is_an_issue_until_something_known_confirms_the_bmc(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start()
    bmc = await new_bmc(machine=str(MACHINE), guid=SOMEBODY.bytes_le, mac=MAC)
    await plane.register(bmc)
    assert (await inspected(plane, eventually)).identity == pb.BMC_IDENTITY_OTHER
    (issue,) = await issues(plane)
    assert (issue.id, issue.severity) == (f"bmc-identity/{MACHINE}", issue_pb2.PLANE_ISSUE_SEVERITY_MAJOR)
    assert SOMEBODY.bytes_le.hex() in issue.details

    async def know(identity: pb.BmcIdentity.ValueType, **fields: str) -> None:
        known = pb.Bmc(machine=str(MACHINE), **fields)
        request = pb.UpdateBmcRequest(bmc=known, update_mask=FieldMask(paths=list(fields)))
        assert (await plane.stub().UpdateBmc(request)).identity == identity
        assert len(await issues(plane)) == (1 if identity == pb.BMC_IDENTITY_OTHER else 0)

    await know(pb.BMC_IDENTITY_SERIAL, serial=bmc.fru_info.board_serial.lower())
    await know(pb.BMC_IDENTITY_OTHER, serial="another")
    await know(pb.BMC_IDENTITY_MAC, serial="", mac=MAC)
    await know(pb.BMC_IDENTITY_OTHER, mac="0c:c4:7a:00:00:02")
