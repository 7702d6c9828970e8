"""Tenants, projects and their members over real gRPC and Postgres."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Problem,
)
from metalplane.common.v1.access_pb2 import Role
from metalplane.common.v1.event_pb2 import Event
from metalplane.tenancy.v1 import project_pb2, tenant_pb2
from metalplane.tenancy.v1.events_pb2 import ProjectChanged, ProjectDeleted

VIEWER, EDITOR, OWNER = Role.ROLE_VIEWER, Role.ROLE_EDITOR, Role.ROLE_OWNER
NOBODY = "0198c1d2-0000-7000-8000-00000000dead"


async def refusal(call: Any) -> tuple[str, str]:
    """Kind and field of the refusal of a call."""
    with pytest.raises(Problem) as refused:
        await call
    return type(refused.value).__name__, refused.value.field


async def rows(url: str, table: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM tenancy.{table}"))
    finally:
        await connection.close()


async def test_a_tenant_and_a_project_are_as_they_were_asked_for(tenancy: Any) -> None:
    tenant = await tenancy.tenant("acme", description="makes anvils", labels={"a": "1"})
    project = await tenancy.project(tenant.id, "web", labels={"b": "2"}, machine_quota=3)
    assert (tenant.name, tenant.description, dict(tenant.labels), tenant.etag) == (
        "acme", "makes anvils", {"a": "1"}, "1",
    )  # fmt: skip
    assert tenant.create_time.seconds > 0
    got = await tenancy.projects().GetProject(project_pb2.GetProjectRequest(id=project.id))
    assert got == project
    assert (got.tenant, got.machine_quota, dict(got.labels)) == (tenant.id, 3, {"b": "2"})


async def test_names_are_taken_once_and_projects_once_a_tenant(tenancy: Any, tenancy_url: str) -> None:
    first, second = await tenancy.tenant("acme"), await tenancy.tenant("bolt")
    with pytest.raises(AlreadyExists, match="acme"):
        await tenancy.tenant("acme")
    await tenancy.project(first.id, "web")
    await tenancy.project(second.id, "web")
    with pytest.raises(AlreadyExists) as taken:
        await tenancy.project(first.id, "web")
    assert taken.value.field == "project.name"
    with pytest.raises(NotFound, match=NOBODY):
        await tenancy.project(NOBODY)
    assert (await rows(tenancy_url, "tenant"), await rows(tenancy_url, "project")) == (2, 2)


async def test_bad_input_names_the_field_and_writes_nothing(tenancy: Any, tenancy_url: str) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    events = await rows(tenancy_url, "change")
    create = tenancy.tenants().CreateTenant
    update = tenancy.projects().UpdateProject
    mask = FieldMask(paths=["name"])
    cases = [
        (create(tenant_pb2.CreateTenantRequest()), "tenant"),
        (create(tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(name="Not-Lower"))), "tenant.name"),
        (create(tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(name="x" * 64))), "tenant.name"),
        (create(tenant_pb2.CreateTenantRequest(request_id="7", tenant={"name": "x"})), "request_id"),
        (create(tenant_pb2.CreateTenantRequest(tenant={"name": "x", "labels": {"a": "\0"}})), ""),
        (create(tenant_pb2.CreateTenantRequest(tenant={"name": "x", "description": "\0"})), ""),
        (tenancy.project("no-uuid"), "project.tenant"),
        (tenancy.project(tenant.id, machine_quota=-1), "project.machine_quota"),
        (update(project_pb2.UpdateProjectRequest(project={"id": project.id, "name": ""}, update_mask=mask)),
         "project.name"),
        (update(project_pb2.UpdateProjectRequest(project={"id": project.id, "machine_quota": -4})),
         "project.machine_quota"),
        (update(project_pb2.UpdateProjectRequest(project={"id": "nonsense", "name": "x"})), "project.id"),
        (update(project_pb2.UpdateProjectRequest(project={"name": "x"})), "project.id"),
        (update(project_pb2.UpdateProjectRequest(project={"id": project.id, "tenant": NOBODY},
                                                 update_mask=FieldMask(paths=["tenant"]))), "tenant"),
        (update(project_pb2.UpdateProjectRequest(project={"id": project.id},
                                                 update_mask=FieldMask(paths=["colour"]))), "update_mask"),
        (tenancy.tenants().UpdateTenant(tenant_pb2.UpdateTenantRequest(tenant={"id": tenant.id, "name": "A b"})),
         "tenant.name"),
        (tenancy.tenants().ListTenants(tenant_pb2.ListTenantsRequest(page_size=-1)), "page_size"),
        (tenancy.tenants().ListTenants(tenant_pb2.ListTenantsRequest(page_token="nonsense")), "page_token"),
        (tenancy.tenants().SetTenantMember(tenant_pb2.SetTenantMemberRequest(tenant=tenant.id, member={"user": "a"})),
         "member.role"),
        (tenancy.join("", VIEWER, tenant=tenant.id), "member.user"),
    ]  # fmt: skip
    found = [(await refusal(call), field) for call, field in cases]
    assert [got for got, _ in found] == [("InvalidArgument", field) for _, field in found]
    assert await rows(tenancy_url, "tenant") == 1
    assert await rows(tenancy_url, "change") == events
    assert (await tenancy.projects().GetProject(project_pb2.GetProjectRequest(id=project.id))) == project


async def test_an_update_changes_what_the_mask_names_and_nothing_else(tenancy: Any) -> None:
    tenant = await tenancy.tenant("acme", description="old", labels={"a": "1"})
    mask = FieldMask(paths=["description", "labels"])
    wish = tenant_pb2.Tenant(id=tenant.id, name="ignored", description="new", labels={"b": "2"})
    new = await tenancy.tenants().UpdateTenant(tenant_pb2.UpdateTenantRequest(tenant=wish, update_mask=mask))
    assert (new.name, new.description, dict(new.labels), new.etag) == ("acme", "new", {"b": "2"}, "2")
    assert new.update_time.ToNanoseconds() > tenant.update_time.ToNanoseconds()
    cleared = await tenancy.tenants().UpdateTenant(
        tenant_pb2.UpdateTenantRequest(tenant={"id": tenant.id}, update_mask=FieldMask(paths=["labels"]))
    )
    assert dict(cleared.labels) == {}


async def test_an_update_or_delete_of_an_old_version_is_refused(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    update = project_pb2.UpdateProjectRequest(project={"id": project.id, "etag": "1", "description": "a"})
    outcomes = await asyncio.gather(
        *(tenancy.projects().UpdateProject(update) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(each, project_pb2.Project) for each in outcomes) == 1
    assert sum(isinstance(each, Aborted) for each in outcomes) == 7
    with pytest.raises(Aborted, match="read it again"):
        await tenancy.projects().DeleteProject(project_pb2.DeleteProjectRequest(id=project.id, etag="1"))
    await tenancy.projects().DeleteProject(project_pb2.DeleteProjectRequest(id=project.id, etag="2"))
    assert await refusal(tenancy.projects().GetProject(project_pb2.GetProjectRequest(id=project.id))) == (
        "NotFound", "",
    )  # fmt: skip


async def test_a_tenant_with_projects_stays_and_an_empty_one_goes_with_its_members(
    tenancy: Any, tenancy_url: str
) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    await tenancy.join("alice", OWNER, tenant=tenant.id, project=project.id)
    with pytest.raises(FailedPrecondition) as refused:
        await tenancy.tenants().DeleteTenant(tenant_pb2.DeleteTenantRequest(id=tenant.id))
    assert refused.value.reason == "HAS_PROJECTS"
    await tenancy.projects().DeleteProject(project_pb2.DeleteProjectRequest(id=project.id))
    await tenancy.tenants().DeleteTenant(tenant_pb2.DeleteTenantRequest(id=tenant.id))
    counts = [await rows(tenancy_url, table) for table in ("tenant", "project", "tenant_member", "project_member")]
    assert counts == [0, 0, 0, 0]


async def test_a_create_that_is_sent_many_times_at_once_has_one_effect_and_one_answer(
    tenancy: Any, tenancy_url: str
) -> None:
    tenant = await tenancy.tenant()
    request = project_pb2.CreateProjectRequest(request_id=str(uuid4()), project={"tenant": tenant.id, "name": "web"})
    answers = await asyncio.gather(*(tenancy.projects().CreateProject(request) for _ in range(16)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert await rows(tenancy_url, "project") == 1
    request.project.name = "other"
    with pytest.raises(InvalidArgument) as reused:
        await tenancy.projects().CreateProject(request)
    assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_creates_of_one_name_by_different_requests_leave_one(tenancy: Any, tenancy_url: str) -> None:
    requests = [tenant_pb2.CreateTenantRequest(request_id=str(uuid4()), tenant={"name": "acme"}) for _ in range(8)]
    outcomes = await asyncio.gather(
        *(tenancy.tenants().CreateTenant(each) for each in requests), return_exceptions=True
    )
    assert sum(isinstance(each, tenant_pb2.Tenant) for each in outcomes) == 1
    assert sum(isinstance(each, AlreadyExists) for each in outcomes) == 7
    assert await rows(tenancy_url, "tenant") == 1


async def test_lists_page_over_what_the_caller_may_see(tenancy: Any) -> None:
    ours, theirs = await tenancy.tenant("ours"), await tenancy.tenant("theirs")
    mine = [(await tenancy.project(ours.id, f"p{number}")).id for number in range(5)]
    shared = await tenancy.project(theirs.id, "shared")
    await tenancy.project(theirs.id, "hidden")
    await tenancy.join("alice", VIEWER, tenant=ours.id)
    alice = await tenancy.person("alice", VIEWER, project=shared.id)

    seen: list[str] = []
    token = ""
    pages = 0
    while True:
        request = project_pb2.ListProjectsRequest(page_size=2, page_token=token)
        page = await tenancy.projects(alice).ListProjects(request)
        seen += [project.id for project in page.projects]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert seen == [*mine, shared.id]
    assert pages == 3
    first = await tenancy.projects(alice).ListProjects(project_pb2.ListProjectsRequest(page_size=2))
    other = project_pb2.ListProjectsRequest(page_size=2, tenant=ours.id, page_token=first.next_page_token)
    assert await refusal(tenancy.projects(alice).ListProjects(other)) == ("InvalidArgument", "page_token")

    everything = await tenancy.projects().ListProjects(project_pb2.ListProjectsRequest(page_size=500))
    assert len(everything.projects) == 7
    filtered = await tenancy.projects(alice).ListProjects(project_pb2.ListProjectsRequest(tenant=theirs.id))
    assert [project.id for project in filtered.projects] == [shared.id]
    named = await tenancy.projects().ListProjects(project_pb2.ListProjectsRequest(name="p3"))
    assert [project.id for project in named.projects] == [mine[3]]
    tenants = await tenancy.tenants(alice).ListTenants(tenant_pb2.ListTenantsRequest())
    assert [tenant.id for tenant in tenants.tenants] == [ours.id], "a member of a project is none of its tenant"


async def test_roles_open_what_they_say_and_strangers_find_nothing(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    viewer = await tenancy.person("victor", VIEWER, tenant=tenant.id)
    editor = await tenancy.person("eve", EDITOR, project=project.id)
    owner = await tenancy.person("olga", OWNER, tenant=tenant.id)
    stranger = (await tenancy.token("sam")).secret

    get = project_pb2.GetProjectRequest(id=project.id)
    update = project_pb2.UpdateProjectRequest(project={"id": project.id, "description": "new"})
    delete = project_pb2.DeleteProjectRequest(id=project.id)
    for secret in (viewer, editor, owner):
        assert (await tenancy.projects(secret).GetProject(get)).id == project.id
    await tenancy.projects(editor).UpdateProject(update)
    for call in (
        tenancy.projects(viewer).UpdateProject(update),
        tenancy.projects(editor).DeleteProject(delete),
        tenancy.join("eve", OWNER, project=project.id, as_=editor),
        tenancy.tenants(owner).DeleteTenant(tenant_pb2.DeleteTenantRequest(id=tenant.id)),
        tenancy.tenants(owner).CreateTenant(tenant_pb2.CreateTenantRequest(tenant={"name": "mine"})),
    ):
        assert (await refusal(call))[0] == "PermissionDenied"
    for call in (
        tenancy.projects(stranger).GetProject(get),
        tenancy.projects(stranger).UpdateProject(update),
        tenancy.projects(stranger).DeleteProject(delete),
        tenancy.tenants(stranger).GetTenant(tenant_pb2.GetTenantRequest(id=tenant.id)),
        tenancy.tenants(editor).GetTenant(tenant_pb2.GetTenantRequest(id=tenant.id)),
        tenancy.project(tenant.id, "sub", as_=editor),
    ):
        assert (await refusal(call))[0] == "NotFound"
    assert (await tenancy.projects(stranger).ListProjects(project_pb2.ListProjectsRequest())).projects == []
    made = await tenancy.project(tenant.id, "more", as_=owner)
    await tenancy.projects(owner).DeleteProject(project_pb2.DeleteProjectRequest(id=made.id))


async def test_a_project_does_not_lift_its_own_quota(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    owner = await tenancy.person("olga", OWNER, tenant=tenant.id)
    assert await refusal(tenancy.project(tenant.id, "p", as_=owner, machine_quota=9)) == (
        "PermissionDenied", "project.machine_quota",
    )  # fmt: skip
    project = await tenancy.project(tenant.id, "web", machine_quota=2)
    for wish, mask in (({"machine_quota": 9}, []), ({}, ["machine_quota"]), ({}, ["*"])):
        request = project_pb2.UpdateProjectRequest(
            project={"id": project.id, "name": "web", **wish}, update_mask=FieldMask(paths=mask)
        )
        with pytest.raises(PermissionDenied, match="operators"):
            await tenancy.projects(owner).UpdateProject(request)
    same = project_pb2.UpdateProjectRequest(project={"id": project.id, "machine_quota": 2, "description": "d"})
    assert (await tenancy.projects(owner).UpdateProject(same)).machine_quota == 2


async def test_members_are_set_changed_listed_and_removed(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    for number in range(5):
        await tenancy.join(f"user{number}", VIEWER, tenant=tenant.id)
    await tenancy.join("user3", OWNER, tenant=tenant.id)
    for _ in range(2):
        await tenancy.tenants().RemoveTenantMember(tenant_pb2.RemoveTenantMemberRequest(tenant=tenant.id, user="user0"))
    listed: list[tuple[str, int]] = []
    token = ""
    while True:
        page = await tenancy.tenants().ListTenantMembers(
            tenant_pb2.ListTenantMembersRequest(tenant=tenant.id, page_size=3, page_token=token)
        )
        listed += [(member.user, member.role) for member in page.members]
        token = page.next_page_token
        if not token:
            break
    assert listed == [("user1", VIEWER), ("user2", VIEWER), ("user3", OWNER), ("user4", VIEWER)]


async def test_a_tenant_that_does_not_exist_has_no_members_to_list_or_to_set(tenancy: Any) -> None:
    members = project_pb2.ListProjectMembersRequest(project=NOBODY)
    assert await refusal(tenancy.projects().ListProjectMembers(members)) == ("NotFound", "")
    assert await refusal(tenancy.join("a", VIEWER, tenant=NOBODY)) == ("NotFound", "tenant")
    assert await refusal(tenancy.join("a", VIEWER, project=NOBODY)) == ("NotFound", "project")


async def test_each_change_of_a_project_is_an_event(tenancy: Any, nats_url: str) -> None:
    import nats

    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    await tenancy.projects().UpdateProject(
        project_pb2.UpdateProjectRequest(project={"id": project.id, "description": "new"})
    )
    await tenancy.projects().DeleteProject(project_pb2.DeleteProjectRequest(id=project.id))
    client = await nats.connect(nats_url)
    try:
        subscription = await client.jetstream().pull_subscribe("metalplane.tenancy.project.>", durable="test")
        messages: list[Any] = []
        while len(messages) < 3:
            messages += await subscription.fetch(3 - len(messages), timeout=10)
    finally:
        await client.close()
    events = [Event.FromString(message.data) for message in messages]
    assert [(event.subject.rpartition(".")[2], event.entity_version, event.deleted) for event in events] == [
        ("changed", 1, False), ("changed", 2, False), ("deleted", 3, True),
    ]  # fmt: skip
    changed, gone = ProjectChanged(), ProjectDeleted()
    assert events[1].payload.Unpack(changed)
    assert changed.project.description == "new"
    assert events[2].payload.Unpack(gone)
    assert gone.project.id == events[2].entity_id == project.id
