"""Every resource of the plane: which calls list and get it, and which columns a list shows."""

from __future__ import annotations

from datetime import UTC
from typing import Literal

from metalplane.allocation.v1 import allocation_pb2, allocation_pb2_grpc
from metalplane.bmc.v1 import bmc_pb2, bmc_pb2_grpc, expected_pb2, expected_pb2_grpc
from metalplane.fabric.v1 import cabling_pb2, cabling_pb2_grpc, switch_pb2, switch_pb2_grpc
from metalplane.inventory.v1 import (
    image_pb2,
    image_pb2_grpc,
    layout_pb2,
    layout_pb2_grpc,
    machine_pb2,
    machine_pb2_grpc,
    partition_pb2,
    partition_pb2_grpc,
    size_pb2,
    size_pb2_grpc,
)
from metalplane.ipam.v1 import (
    ip_pb2,
    ip_pb2_grpc,
    namespace_pb2,
    namespace_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    prefix_pb2,
    prefix_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
)
from metalplane.tenancy.v1 import (
    project_pb2,
    project_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)

from metalctl.resource import Getting, Listing, Resource
from metalctl.values import age, count, enum, minute, now

PARTITION = ("partition", "only of this partition")
PROJECT = ("project", "only of this project (id or name)")


def _token_state(token: token_pb2.Token) -> str:
    if token.HasField("revoke_time"):
        return "revoked"
    return "ended" if token.expire_time.ToDatetime(tzinfo=UTC) <= now() else "valid"


def _attached(allocation: allocation_pb2.Allocation) -> str:
    """Whether every leaf has the machine in its network; a dash before that was asked for."""
    return next(
        ("yes" if each.status else "no" for each in allocation.status.conditions if each.type == "Attached"), "-"
    )


def _limit(quota: quota_pb2.Quota, kind: Literal["ipv4_addresses", "ipv6_addresses", "prefixes"]) -> str:
    return str(getattr(quota, kind)) if quota.HasField(kind) else "-"


RESOURCES: tuple[Resource, ...] = (
    Resource(
        "tenant", "tenants", "tenancy", tenant_pb2_grpc.TenantServiceStub,
        Listing(
            "ListTenants", tenant_pb2.ListTenantsRequest, "tenants",
            (("ID", lambda t: t.id), ("NAME", lambda t: t.name), ("AGE", lambda t: age(t.create_time))),
        ),
        Getting("GetTenant", tenant_pb2.GetTenantRequest),
    ),
    Resource(
        "project", "projects of tenants", "tenancy", project_pb2_grpc.ProjectServiceStub,
        Listing(
            "ListProjects", project_pb2.ListProjectsRequest, "projects",
            (
                ("ID", lambda p: p.id), ("NAME", lambda p: p.name), ("TENANT", lambda p: p.tenant),
                ("QUOTA", lambda p: str(p.machine_quota or "-")), ("AGE", lambda p: age(p.create_time)),
            ),
            {"tenant": ("tenant", "only of this tenant (id or name)"), "name": ("name", "only of this name")},
        ),
        Getting("GetProject", project_pb2.GetProjectRequest),
    ),
    Resource(
        "token", "bearer tokens, without their secrets", "tenancy", token_pb2_grpc.TokenServiceStub,
        Listing(
            "ListTokens", token_pb2.ListTokensRequest, "tokens",
            (
                ("ID", lambda t: t.id), ("USER", lambda t: t.user), ("DESCRIPTION", lambda t: t.description),
                ("STATE", _token_state), ("ENDS", lambda t: minute(t.expire_time)),
            ),
            {"user": ("user", "only of this user")},
        ),
    ),
    Resource(
        "partition", "partitions", "inventory", partition_pb2_grpc.PartitionServiceStub,
        Listing(
            "ListPartitions", partition_pb2.ListPartitionsRequest, "partitions",
            (("ID", lambda p: p.id), ("DESCRIPTION", lambda p: p.description), ("AGE", lambda p: age(p.create_time))),
        ),
        Getting("GetPartition", partition_pb2.GetPartitionRequest),
    ),
    Resource(
        "machine", "machines", "inventory", machine_pb2_grpc.MachineServiceStub,
        Listing(
            "ListMachines", machine_pb2.ListMachinesRequest, "machines",
            (
                ("ID", lambda m: m.id), ("RACK", lambda m: m.rack or "-"), ("SIZE", lambda m: m.size or "-"),
                ("STATE", lambda m: enum(machine_pb2.MachineState, m.state)),
                ("LIFECYCLE", lambda m: enum(machine_pb2.LifecycleState, m.lifecycle.state)),
                ("LIVE", lambda m: enum(machine_pb2.Liveliness, m.lifecycle.liveliness)),
                ("WAITING", lambda m: "yes" if m.waiting else "-"),
                ("ALLOCATION", lambda m: m.binding.allocation or "-"),
            ),
            {
                "partition": ("filter.partition", PARTITION[1]), "rack": ("filter.rack", "only of this rack"),
                "size": ("filter.size", "only of this size"), "project": ("filter.project", PROJECT[1]),
                "mac": ("filter.mac", "only the one with this MAC address: 02:00:00:00:00:01"),
            },
            {"waiting": ("filter.waiting", "only those that wait for a tenant")},
        ),
        Getting("GetMachine", machine_pb2.GetMachineRequest),
    ),
    Resource(
        "size", "classes of hardware", "inventory", size_pb2_grpc.SizeServiceStub,
        Listing(
            "ListSizes", size_pb2.ListSizesRequest, "sizes",
            (("ID", lambda s: s.id), ("DESCRIPTION", lambda s: s.description)),
        ),
        Getting("GetSize", size_pb2.GetSizeRequest),
    ),
    Resource(
        "image", "operating system images", "inventory", image_pb2_grpc.ImageServiceStub,
        Listing(
            "ListImages", image_pb2.ListImagesRequest, "images",
            (
                ("ID", lambda i: i.id),
                ("FEATURES", lambda i: ", ".join(enum(image_pb2.ImageFeature, each) for each in i.features)),
                ("CLASS", lambda i: enum(image_pb2.ImageClassification, i.classification)),
                ("ENDS", lambda i: minute(i.expire_time)[:10]),
            ),
        ),
        Getting("GetImage", image_pb2.GetImageRequest),
    ),
    Resource(
        "layout", "filesystem layouts", "inventory", layout_pb2_grpc.FilesystemLayoutServiceStub,
        Listing(
            "ListFilesystemLayouts", layout_pb2.ListFilesystemLayoutsRequest, "filesystem_layouts",
            (
                ("ID", lambda f: f.id), ("SIZES", lambda f: ", ".join(f.size_ids)),
                ("IMAGES", lambda f: ", ".join(f"{os} {v}" for os, v in sorted(f.image_constraints.items()))),
            ),
        ),
        Getting("GetFilesystemLayout", layout_pb2.GetFilesystemLayoutRequest),
    ),
    Resource(
        "network", "networks", "ipam", network_pb2_grpc.NetworkServiceStub,
        Listing(
            "ListNetworks", network_pb2.ListNetworksRequest, "networks",
            (
                ("ID", lambda n: n.id), ("NAME", lambda n: n.name or "-"),
                ("TYPE", lambda n: enum(network_pb2.NetworkType, n.type)), ("PROJECT", lambda n: n.project or "-"),
                ("PREFIXES", lambda n: ", ".join(n.prefixes)), ("VRF", lambda n: str(n.vrf or "-")),
                ("USED", lambda n: count(n.ipv4.used_ips + n.ipv6.used_ips)),
            ),
            {"project": PROJECT, "partition": PARTITION, "parent": ("parent", "only children of this network")},
        ),
        Getting("GetNetwork", network_pb2.GetNetworkRequest),
    ),
    Resource(
        "namespace", "spaces of addresses that know nothing of each other", "ipam",
        namespace_pb2_grpc.NamespaceServiceStub,
        Listing(
            "ListNamespaces", namespace_pb2.ListNamespacesRequest, "namespaces",
            (
                ("ID", lambda n: n.id), ("PROJECT", lambda n: n.project or "-"),
                ("DESCRIPTION", lambda n: n.description), ("AGE", lambda n: age(n.create_time)),
            ),
        ),
        Getting("GetNamespace", namespace_pb2.GetNamespaceRequest),
    ),
    Resource(
        "prefix", "prefixes and how full they are", "ipam", prefix_pb2_grpc.PrefixServiceStub,
        Listing(
            "ListPrefixes", prefix_pb2.ListPrefixesRequest, "prefixes",
            (
                ("CIDR", lambda p: p.cidr), ("NAMESPACE", lambda p: p.namespace or "default"),
                ("NETWORK", lambda p: p.network or "-"), ("SIZE", lambda p: count(p.size)),
                ("USED", lambda p: count(p.used)), ("RESERVED", lambda p: str(p.reserved)),
                ("FREE", lambda p: count(p.free)), ("CHILDREN", lambda p: str(p.children)),
            ),
            {
                "network": ("network", "only of this network (id or name)"),
                "namespace": ("namespace", "only of this namespace"),
                "parent": ("parent", "only what was cut from this prefix (CIDR)"),
            },
        ),
    ),
    Resource(
        "ip", "addresses in use", "ipam", ip_pb2_grpc.IpServiceStub,
        Listing(
            "ListIps", ip_pb2.ListIpsRequest, "ips",
            (
                ("ADDRESS", lambda i: i.address), ("NAMESPACE", lambda i: i.namespace or "default"),
                ("NETWORK", lambda i: i.network), ("NAME", lambda i: i.name or "-"),
                ("TYPE", lambda i: enum(ip_pb2.IpType, i.type)), ("PROJECT", lambda i: i.project),
                ("OWNER", lambda i: f"{enum(ip_pb2.OwnerKind, i.owner.kind)} {i.owner.id}".strip()),
            ),
            {"project": PROJECT, "network": ("network", "only of this network (id or name)")},
        ),
        Getting(
            "GetIp", ip_pb2.GetIpRequest, "address",
            {
                "network": "its network (id or name), where the address exists more than once",
                "namespace": "its namespace, where the address exists more than once",
            },
        ),
    ),
    Resource(
        "pool", "pools of VRFs and ASNs", "ipam", pool_pb2_grpc.PoolServiceStub,
        Listing(
            "ListPools", pool_pb2.ListPoolsRequest, "pools",
            (
                ("ID", lambda p: p.id), ("MIN", lambda p: str(p.min)), ("MAX", lambda p: str(p.max)),
                ("USED", lambda p: count(p.used)), ("FREE", lambda p: count(p.free)),
            ),
        ),
    ),
    Resource(
        "quota", "limits of the addresses that projects may hold", "ipam", quota_pb2_grpc.QuotaServiceStub,
        Listing(
            "ListQuotas", quota_pb2.ListQuotasRequest, "quotas",
            (
                ("PROJECT", lambda q: q.project), ("IPV4", lambda q: _limit(q, "ipv4_addresses")),
                ("IPV6", lambda q: _limit(q, "ipv6_addresses")), ("PREFIXES", lambda q: _limit(q, "prefixes")),
            ),
        ),
        Getting("GetQuota", quota_pb2.GetQuotaRequest, "project"),
    ),
    Resource(
        "allocation", "machines in the hands of projects", "allocation", allocation_pb2_grpc.AllocationServiceStub,
        Listing(
            "ListAllocations", allocation_pb2.ListAllocationsRequest, "allocations",
            (
                ("ID", lambda a: a.id), ("NAME", lambda a: a.spec.name), ("PROJECT", lambda a: a.project),
                ("PHASE", lambda a: enum(allocation_pb2.AllocationPhase, a.status.phase)),
                ("ATTACHED", _attached),
                ("MACHINE", lambda a: a.status.machine), ("RACK", lambda a: a.status.rack),
                ("IPS", lambda a: ", ".join(ip for each in a.status.networks for ip in each.ips) or "-"),
                ("AGE", lambda a: age(a.create_time)),
            ),
            {"project": PROJECT, "machine": ("machine", "only the one on this machine (UUID)")},
            {"all": ("include_released", "those too that are gone")},
        ),
        Getting("GetAllocation", allocation_pb2.GetAllocationRequest),
    ),
    Resource(
        "switch", "leaf switches", "fabric", switch_pb2_grpc.SwitchServiceStub,
        Listing(
            "ListSwitches", switch_pb2.ListSwitchesRequest, "switches",
            (
                ("ID", lambda s: s.id), ("RACK", lambda s: s.rack), ("ASN", lambda s: str(s.asn)),
                ("LOOPBACK", lambda s: s.loopback), ("HEALTH", lambda s: enum(switch_pb2.SwitchHealth, s.sync.health)),
                ("CONNECTED", lambda s: "yes" if s.sync.connected else "no"),
                ("DESIRED", lambda s: str(s.sync.desired_generation)),
                ("APPLIED", lambda s: str(s.sync.applied_generation)), ("ERROR", lambda s: s.sync.error or "-"),
            ),
            {"partition": PARTITION, "rack": ("rack", "only of this rack")},
        ),
        Getting("GetSwitch", switch_pb2.GetSwitchRequest),
    ),
    Resource(
        "cable", "cables between machines and leaves", "fabric", cabling_pb2_grpc.CablingServiceStub,
        Listing(
            "ListCables", cabling_pb2.ListCablesRequest, "cables",
            (
                ("SWITCH", lambda c: c.switch_id), ("PORT", lambda c: c.port), ("MACHINE", lambda c: c.machine),
                ("NIC", lambda c: c.nic_mac),
            ),
            {"switch": ("switch_id", "only of this switch"), "machine": ("machine", "only of this machine (UUID)")},
        ),
    ),
    Resource(
        "bmc", "BMCs, without their passwords", "bmc", bmc_pb2_grpc.BmcServiceStub,
        Listing(
            "ListBmcs", bmc_pb2.ListBmcsRequest, "bmcs",
            (
                ("MACHINE", lambda b: b.machine), ("ADDRESS", lambda b: b.address),
                ("POWER", lambda b: enum(bmc_pb2.Power, b.reported_power)),
                ("WANTED", lambda b: enum(bmc_pb2.Power, b.desired_power)),
                ("SEEN", lambda b: age(b.observed_time)), ("ERROR", lambda b: b.error or "-"),
            ),
            {"partition": PARTITION},
        ),
        Getting("GetBmc", bmc_pb2.GetBmcRequest, "machine"),
    ),
    Resource(
        "expected", "machines that are expected, without passwords", "bmc",
        expected_pb2_grpc.ExpectedMachineServiceStub,
        Listing(
            "ListExpectedMachines", expected_pb2.ListExpectedMachinesRequest, "expected_machines",
            (
                ("ID", lambda e: e.id), ("MAC", lambda e: e.mac or "-"), ("SERIAL", lambda e: e.serial or "-"),
                ("RACK", lambda e: e.rack or "-"), ("MACHINE", lambda e: e.machine or "-"),
                ("DIFFERS", lambda e: ", ".join(each.field for each in e.differences) or "-"),
            ),
            {"partition": PARTITION},
        ),
        Getting("GetExpectedMachine", expected_pb2.GetExpectedMachineRequest),
    ),
    Resource(
        "command", "commands to BMCs and their results", "bmc", bmc_pb2_grpc.BmcServiceStub,
        Listing(
            "ListCommands", bmc_pb2.ListCommandsRequest, "commands",
            (
                ("ID", lambda c: c.id), ("MACHINE", lambda c: c.machine),
                ("ACTION", lambda c: enum(bmc_pb2.CommandAction, c.action)),
                ("STATE", lambda c: enum(bmc_pb2.CommandState, c.state)), ("BY", lambda c: c.requester),
                ("AGE", lambda c: age(c.create_time)), ("ERROR", lambda c: c.error or "-"),
            ),
            {"machine": ("machine", "only of this machine (UUID)")},
        ),
        Getting("GetCommand", bmc_pb2.GetCommandRequest),
    ),
)  # fmt: skip
