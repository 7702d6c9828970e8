"""Records as tests need them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from metal_allocation.phase import Phase
from metal_allocation.record import Record
from metalplane.allocation.v1.allocation_pb2 import AllocationSpec
from metalplane.inventory.v1.image_pb2 import Image
from metalplane.inventory.v1.layout_pb2 import FilesystemLayout

MakeRecord = Callable[..., Record]


@pytest.fixture
def now() -> datetime:
    """A moment."""
    return datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def make_record(now: datetime) -> MakeRecord:
    """An allocation in a phase, with any of its fields."""

    def make(phase: Phase = Phase.INSTALLING, **fields: Any) -> Record:
        known: dict[str, Any] = {
            "id": "01980000-0000-7000-8000-00000000000a",
            "project": "01980000-0000-7000-8000-000000000001",
            "creator": "user:somebody",
            "name": "web",
            "role": "machine",
            "spec": AllocationSpec(name="web", placement_labels={"a": "b"}),
            "userdata": b"#cloud-config\npassword: hunter2\n",
            "description": "a web server",
            "labels": {"app": "web"},
            "placement_labels": {"a": "b"},
            "phase": phase,
            "phase_time": now,
            "phase_deadline": None,
            "machine": "4c4c4544-0051-3510-8052-b4c04f4e3132",
            "partition": "mini",
            "rack": "r1",
            "size": "n1",
            "image": Image(id="debian-13.0.1", url="http://images/d.tar", sha256="ab" * 32, size_bytes=7),
            "layout": FilesystemLayout(id="plain"),
            "dns_servers": ["192.0.2.53"],
            "ntp_servers": [],
        }
        return Record(**(known | fields))

    return make
