"""ProjectService."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency, validation
from metal_kit.db import Connection, Database
from metal_kit.errors import PermissionDenied
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller, missing
from metal_kit.ids import parse_uuid, uuid7
from metal_kit.outbox import emit
from metal_kit.paging import Paging
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.tenancy.v1 import project_pb2 as pb
from metalplane.tenancy.v1.events_pb2 import ProjectChanged, ProjectDeleted
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceServicer
from metalplane.tenancy.v1.tenant_pb2 import Member

from metal_tenancy.api.membership import Membership
from metal_tenancy.api.messages import project_message
from metal_tenancy.store import NewProject, ProjectRow, ProjectStore, Visible

MUTABLE = ("name", "description", "labels", "machine_quota")
FIRST_ID = "00000000-0000-0000-0000-000000000000"
CREATE = "/metalplane.tenancy.v1.ProjectService/CreateProject"


@dataclass(slots=True)
class ProjectApi(ProjectServiceServicer):
    """Projects and their members."""

    db: Database
    paging: Paging
    projects: ProjectStore = field(default_factory=ProjectStore)
    _membership: Membership = field(init=False)

    def __post_init__(self) -> None:
        self._membership = Membership("project", self.db, self.paging, self._exists)

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Any) -> pb.Project:
        wanted = request.project
        _check_quota(0, wanted.machine_quota)
        call = {"caller": current_caller().label, "method": CREATE, "request_id": request.request_id}
        async with self.db.transaction(purpose="create a project") as conn:
            known = await idempotency.remembered(conn, **call, request=request, response_type=pb.Project)
            if known is not None:
                return known
            new = NewProject(
                id=uuid7(),
                tenant=wanted.tenant,
                name=wanted.name,
                description=wanted.description,
                labels=wanted.labels,
                machine_quota=wanted.machine_quota,
            )
            row = await self.projects.insert(conn, new)
            message = await _changed(conn, row)
            await idempotency.remember(conn, **call, request=request, response=message)
        return message

    async def GetProject(self, request: pb.GetProjectRequest, context: Any) -> pb.Project:
        async with self.db.connection() as conn:
            row = await self.projects.get(conn, request.id)
        if row is None:
            raise missing(f"project {request.id}")
        return project_message(row)

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Any) -> pb.ListProjectsResponse:
        caller = current_caller()
        # By the tenants as well: a project that was made since the token was checked is in none of its roles.
        every = caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER)
        seen = None if every else Visible(caller.projects, caller.tenants)
        who = "" if every else caller.label
        filter_key = f"projects:{request.tenant}:{request.name}:{who}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as conn:
            rows = await self.projects.page(
                conn, seen, request.tenant, request.name, after=page.after_text(FIRST_ID), limit=page.limit
            )
        shown, token = page.cut(rows, lambda row: (row.id,))
        return pb.ListProjectsResponse(
            projects=[project_message(row) for row in shown],
            next_page_token=token,
        )

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Any) -> pb.Project:
        wanted = request.project
        id_ = parse_uuid(wanted.id, field="project.id")
        async with self.db.transaction(purpose="update a project") as conn:
            row = await self._locked(conn, id_, wanted.etag)
            target = project_message(row)
            apply_update(target, wanted, request.update_mask, mutable=MUTABLE)
            validation.check(target, field="project")
            _check_quota(row.machine_quota, target.machine_quota)
            new = replace(
                row,
                name=target.name,
                description=target.description,
                labels=dict(target.labels),
                machine_quota=target.machine_quota,
            )
            return await _changed(conn, await self.projects.update(conn, new))

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Any) -> Empty:
        async with self.db.transaction(purpose="delete a project") as conn:
            row = await self._locked(conn, request.id, request.etag)
            await self.projects.delete(conn, row.id)
            await emit(
                conn,
                subject="metalplane.tenancy.project.deleted",
                entity="project",
                entity_id=row.id,
                version=row.version + 1,
                payload=ProjectDeleted(project=project_message(row)),
                scope=row.id,
                deleted=True,
            )
        return Empty()

    async def SetProjectMember(self, request: pb.SetProjectMemberRequest, context: Any) -> Member:
        return await self._membership.set(request.project, request.member)

    async def RemoveProjectMember(self, request: pb.RemoveProjectMemberRequest, context: Any) -> Empty:
        return await self._membership.remove(request.project, request.user)

    async def ListProjectMembers(
        self, request: pb.ListProjectMembersRequest, context: Any
    ) -> pb.ListProjectMembersResponse:
        members, token = await self._membership.page(request.project, request.page_size, request.page_token)
        return pb.ListProjectMembersResponse(members=members, next_page_token=token)

    async def _exists(self, conn: Connection, project: str) -> bool:
        return await self.projects.get(conn, project) is not None

    async def _locked(self, conn: Connection, project: str, etag: str) -> ProjectRow:
        row = await self.projects.get(conn, project, lock=True)
        if row is None:
            raise missing(f"project {project}")
        check_etag(etag, row.version, what=f"project {project}")
        return row


def _check_quota(before: int, after: int) -> None:
    """A quota that a project could lift itself would limit nobody."""
    if before != after and not current_caller().may_plane(PlaneRole.PLANE_ROLE_OPERATOR):
        raise PermissionDenied(
            "QUOTA_BY_OPERATOR", "only plane operators set a machine quota; leave it out", field="project.machine_quota"
        )


async def _changed(conn: Connection, row: ProjectRow) -> pb.Project:
    message = project_message(row)
    await emit(
        conn,
        subject="metalplane.tenancy.project.changed",
        entity="project",
        entity_id=row.id,
        version=row.version,
        payload=ProjectChanged(project=message),
        scope=row.id,
    )
    return message
