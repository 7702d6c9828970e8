"""Who may see which machines: the plane and services all, agents their partition's, people their projects'."""

from __future__ import annotations

import asyncpg
from metal_kit.identity import current_caller, missing
from metalplane.common.v1.access_pb2 import PlaneRole, Role

from metal_inventory.store.queries import Visible


def visible() -> Visible:
    """What the present caller may see."""
    caller = current_caller()
    if caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER):
        return Visible(everything=True)
    if caller.kind in ("boot", "bmc"):
        return Visible(partition=caller.partition)
    return Visible(projects=[each for each in caller.projects if caller.may_project(each, Role.ROLE_VIEWER)])


def may_see(view: Visible, project: str, partition: str) -> bool:
    """Whether a machine that this project holds (empty: none) in this partition is in the view."""
    if view.everything:
        return True
    if view.partition:
        return view.partition == partition
    return bool(project) and project in view.projects


def require_visible(row: asyncpg.Record | None, id_: str) -> asyncpg.Record:
    """The row, if it exists and the present caller may see it; otherwise the same NotFound for both."""
    what = f"machine {id_}"
    if row is None:
        raise missing(what)
    caller = current_caller()
    if caller.kind == "user" and row["project_id"]:
        caller.require_project(str(row["project_id"]), Role.ROLE_VIEWER, what=what)
    else:
        caller.require_partition(row["partition"] or "", what=what)
    return row
