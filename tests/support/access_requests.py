"""Requests that the rightful caller would be let through with, for every RPC, made from the contracts by rules.

A field is filled in by its name (`machine`, `project`, …) or, where it is an id, by what it is the id of. Whatever the
rules of the contract (protovalidate) still miss gets the first plain value that they take. What that cannot find out,
because only the handler knows it, stands in `OVERRIDES`, one entry an RPC.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import access_objects as made
import metalplane
import protovalidate
from access_objects import Owned
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from metal_kit.access import Rule
from metalplane.allocation.v1 import allocation_pb2
from metalplane.audit.v1 import audit_pb2
from metalplane.bmc.v1 import bmc_pb2, expected_pb2
from metalplane.common.v1.access_pb2 import Role
from metalplane.fabric.v1 import switch_pb2
from metalplane.inventory.v1 import machine_pb2, partition_pb2
from metalplane.ipam.v1 import ip_pb2, namespace_pb2, network_pb2, prefix_pb2
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2

SESSION = "5e55104e-0000-4000-8000-000000000001"
_ROUNDS = 20
_TEXTS = (SESSION, "a", "192.0.2.1", "192.0.2.0/24", "http://a.example/", "debian-1.0", "ab" * 32)
_validator = protovalidate.Validator()


@dataclass(frozen=True)
class View:
    """Whose objects a request is about, and where. `turn` chooses among the things that can be deleted only once."""

    owned: Owned
    partition: str
    leaf: str
    secret: str
    turn: int = 0

    def missing(self) -> View:
        """The same about objects that do not exist."""
        return replace(
            self,
            owned=replace(
                self.owned, tenant=str(uuid4()), project=str(uuid4()), network=str(uuid4()), machine=str(uuid4()),
                allocation=str(uuid4()), token=str(uuid4()), command=str(uuid4()), task=str(uuid4()),
                expected=str(uuid4()), address="10.131.255.1",
                **{name: tuple(str(uuid4()) for _ in getattr(self.owned, name)) for name in _SPARE_IDS},
                spare_addresses=tuple(f"10.131.255.{2 + number}" for number in range(len(self.owned.spare_addresses))),
            ),
        )  # fmt: skip

    def spare(self, of: str) -> str:
        """The thing to be deleted in this turn."""
        things: tuple[str, ...] = getattr(self.owned, of)
        return things[self.turn % len(things)]

    def by_name(self) -> Mapping[str, str]:
        """What a field of this name holds."""
        own = self.owned
        return {
            "project": own.project, "tenant": own.tenant, "machine": own.machine, "allocation": own.allocation,
            "network": own.network, "address": own.address, "user": own.user, "partition": self.partition,
            "switch_id": self.leaf, "size": made.SIZE, "image": made.IMAGE, "secret": self.secret, "session": SESSION,
            "pool": "asn",
        }  # fmt: skip

    def by_kind(self) -> Mapping[str, str]:
        """What the id of such a thing is."""
        own = self.owned
        return {
            "Project": own.project, "Tenant": own.tenant, "Machine": own.machine, "Allocation": own.allocation,
            "Network": own.network, "Token": own.token, "Command": own.command, "Partition": self.partition,
            "ExpectedMachine": own.expected,
            "Switch": self.leaf, "Size": made.SIZE, "Image": made.IMAGE, "FilesystemLayout": made.LAYOUT,
            "FabricSettings": self.partition,
        }  # fmt: skip


_SPARE_IDS = ("spare_projects", "spare_tenants", "spare_networks", "spare_tokens", "spare_expected")
_NEW = "new"
Override = Callable[[View], Mapping[str, Any]]
_CONTAINER, _LEAF = made.CONTAINER, made.LEAF
_DUMP = ('{"kind": "head", "version": 1}', '{"kind": "end", "lines": 0}')
_OTHER = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_OTHER, id="a thing")


def _spec(view: View) -> allocation_pb2.AllocationSpec:
    return allocation_pb2.AllocationSpec(
        name=_NEW, image=made.IMAGE, partition=view.partition, size=made.SIZE,
        networks=[allocation_pb2.AllocationNetwork(network=view.owned.network)],
    )  # fmt: skip


def _new_network(view: View) -> network_pb2.Network:
    return network_pb2.Network(type=network_pb2.NETWORK_TYPE_CHILD, project=view.owned.project, parent=made.SUPER)


def _new_token(view: View) -> token_pb2.Token:
    return token_pb2.Token(project_roles={view.owned.project: Role.ROLE_VIEWER})


def _wishes(view: View) -> list[ip_pb2.IpWish]:
    return [ip_pb2.IpWish(network=view.owned.network, count=1)]


def _change(view: View) -> ip_pb2.IpChange:
    return ip_pb2.IpChange(number=1, acquire=ip_pb2.AcquireIpChange(network=view.owned.network))


# Field paths and what they hold; the first part of a method's name is its service.
OVERRIDES: Mapping[str, Override] = {
    "AllocationService.CreateAllocation": lambda view: {"spec": _spec(view)},
    "AllocationService.UpdateAllocation": lambda _: {"update_mask": FieldMask(paths=["spec.description"])},
    "AuditService.AppendAuditEntries": lambda view: {"entries": [_audit_entry(view)]},
    "BmcService.ConfirmManualTask": lambda view: {"id": view.owned.task},
    "BmcService.Console": lambda view: {"open": bmc_pb2.ConsoleOpen(machine=view.owned.machine)},
    "BmcService.RegisterBmc": lambda view: {"bmc": _bmc(view), "bmc.password": "y"},
    "BmcService.UpdateBmc": lambda _: {"update_mask": FieldMask(paths=["user"]), "bmc.user": "metal"},
    "BootService.Register": lambda view: {"hardware": made.hardware(view.owned.machine, "Ethernet0")},
    "ExpectedMachineService.CreateExpectedMachine": lambda view: {"expected_machine": _expected(view)},
    "ExpectedMachineService.DeleteExpectedMachine": lambda view: {"id": view.spare("spare_expected")},
    "ExpectedMachineService.UpdateExpectedMachine": lambda view: {
        "update_mask": FieldMask(paths=["rack"]), "expected_machine.id": view.owned.expected,
    },
    "FabricSettingsService.UpdateFabricSettings": lambda _: {"update_mask": FieldMask(paths=["drift_policy"])},
    "FilesystemLayoutService.CreateFilesystemLayout": lambda _: {"filesystem_layout": made.layout(_NEW, made.SIZE)},
    "FilesystemLayoutService.DeleteFilesystemLayout": lambda view: {"id": f"spare-{view.turn}"},
    "ImageService.CreateImage": lambda _: {"image": made.image("new-1.0")},
    "ImageService.DeleteImage": lambda view: {"id": f"spare-1.{view.turn}"},
    "IpService.AcquireIps": lambda view: {"wishes": _wishes(view)},
    "IpService.AttachIp": lambda _: {"owner": _OTHER},
    "IpService.ExchangeIps": lambda view: {"changes": [_change(view)]},
    "IpService.ReleaseIp": lambda view: {"address": view.spare("spare_addresses")},
    "IpService.ReleaseOwned": lambda _: {"owner": _OTHER},
    "MachineService.RegisterMachine": lambda view: {"hardware": made.hardware(view.owned.machine, "Ethernet0")},
    "MachineService.SetMachineState": lambda _: {"state": machine_pb2.MACHINE_STATE_AVAILABLE},
    "NamespaceService.CreateNamespace": lambda _: {"namespace": namespace_pb2.Namespace(id=_NEW)},
    "NamespaceService.DeleteNamespace": lambda view: {"id": f"spare-{view.turn}"},
    "NamespaceService.DumpNamespace": lambda _: {"id": "default"},
    "NamespaceService.GetNamespace": lambda _: {"id": "default"},
    "NamespaceService.LoadNamespace": lambda _: {"id": "empty", "lines": _DUMP},
    "NetworkService.CreateNetwork": lambda view: {"network": _new_network(view)},
    "NetworkService.DeleteNetwork": lambda view: {"id": view.spare("spare_networks")},
    "PartitionService.CreatePartition": lambda _: {"partition": partition_pb2.Partition(id=_NEW)},
    "PartitionService.DeletePartition": lambda view: {"id": f"spare-{view.turn}"},
    "PoolService.AcquireNumber": lambda _: {"owner": _OTHER},
    "PoolService.GrowPool": lambda _: {"id": "asn", "first": 4_220_000_000, "last": 4_220_000_009},
    "PrefixService.AcquireChildPrefix": lambda _: {"parent": _CONTAINER, "length": 28},
    "PrefixService.CreatePrefix": lambda view: {"prefix": prefix_pb2.Prefix(cidr=f"172.30.{view.turn}.0/24")},
    "PrefixService.DeletePrefix": lambda view: {"cidr": f"172.29.{view.turn}.0/24"},
    "PrefixService.GetPrefix": lambda _: {"cidr": _CONTAINER},
    "PrefixService.GrowPrefix": lambda _: {"cidr": made.SMALL, "length": 23},
    "PrefixService.UpdatePrefix": lambda _: {"prefix.cidr": _LEAF},
    "PrefixService.ListHistory": lambda _: {"object": _CONTAINER},
    "PrefixService.ListReservedRanges": lambda _: {"cidr": _LEAF},
    "PrefixService.ReserveRange": lambda _: {"cidr": _LEAF, "first": "172.28.0.9", "last": "", "label": "a"},
    "PrefixService.UnreserveRange": lambda _: {"cidr": _LEAF, "first": "172.28.0.9"},
    "ProjectService.CreateProject": lambda view: {
        "project": project_pb2.Project(tenant=view.owned.tenant, name=_NEW)
    },
    "ProjectService.DeleteProject": lambda view: {"id": view.spare("spare_projects")},
    "ProjectService.RemoveProjectMember": lambda view: {"user": view.spare("members")},
    "SizeService.CreateSize": lambda _: {"size": made.size(_NEW, cores=99)},
    "SizeService.DeleteSize": lambda view: {"id": f"spare-{view.turn}"},
    "SwitchAgentService.Connect": lambda view: {"hello": made.hello(view.partition, view.leaf).hello},
    "SwitchService.AttachMachine": lambda _: {"role": switch_pb2.PORT_ROLE_MACHINE, "vrf": 20},
    "SwitchService.MigrateSwitch": lambda view: {"target": view.leaf},
    "SwitchService.RecordDevice": lambda view: {"id": "spine-new", "kind": switch_pb2.SWITCH_KIND_SPINE},
    "SwitchService.SetPortState": lambda _: {"port": "Ethernet28"},
    "SwitchService.UpdateSwitch": lambda _: {"update_mask": FieldMask(paths=["description"])},
    "TenantService.CreateTenant": lambda _: {"tenant": tenant_pb2.Tenant(name=_NEW)},
    "TenantService.DeleteTenant": lambda view: {"id": view.spare("spare_tenants")},
    "TenantService.RemoveTenantMember": lambda view: {"user": view.spare("members")},
    "TokenService.CreateToken": lambda view: {"token": _new_token(view), "lifetime": Duration(seconds=600)},
    "TokenService.RevokeToken": lambda view: {"id": view.spare("spare_tokens")},
}  # fmt: skip


def _audit_entry(view: View) -> audit_pb2.AuditEntry:
    return audit_pb2.AuditEntry(
        call=SESSION, phase=audit_pb2.AUDIT_PHASE_ENDED, service="boot", partition=view.partition,
        time=Timestamp(seconds=1_790_000_000), begin_time=Timestamp(seconds=1_790_000_000), code="OK",
    )  # fmt: skip


def _bmc(view: View) -> bmc_pb2.Bmc:
    return bmc_pb2.Bmc(machine=view.owned.machine, partition=view.partition, address="127.0.0.1:1", user="metal")


def _expected(view: View) -> expected_pb2.ExpectedMachine:
    mac = f"02:00:00:00:{view.turn >> 8:02x}:{view.turn & 255:02x}"
    return expected_pb2.ExpectedMachine(partition=view.partition, mac=mac)


class NoGoodRequest(Exception):
    """No rule finds a request that the contract of an RPC allows; the text says what to do about it."""


def methods() -> Iterator[MethodDescriptor]:
    """Every RPC of the contracts."""
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)
    for name in sorted(name for name in sys.modules if name.startswith("metalplane.") and name.endswith("_pb2")):
        for service in sys.modules[name].DESCRIPTOR.services_by_name.values():
            yield from service.methods


def name_of(method: MethodDescriptor) -> str:
    """`MachineService.GetMachine`."""
    return f"{method.containing_service.name}.{method.name}"


def request_for(method: MethodDescriptor, rule: Rule, view: View) -> Message:
    """A good request about the objects of a view. Raises NoGoodRequest."""
    message: Message = GetMessageClass(method.input_type)()
    fill(message, method, view)
    if rule.scope_path[1:]:
        fill(getattr(message, rule.scope_path[0]), method, view)
    if method.name.startswith(("Create", "Update")):
        for field in message.DESCRIPTOR.fields:
            if (
                field.message_type is not None
                and field.message_type.file is not None
                and method.name.endswith(field.message_type.name)
            ):
                fill(getattr(message, field.name), method, view)
                if method.name.startswith("Update") and "description" in field.message_type.fields_by_name:
                    message.update_mask.CopyFrom(FieldMask(paths=["description"]))  # type: ignore[attr-defined]
    for path, value in OVERRIDES.get(name_of(method), lambda _: {})(view).items():
        _set(message, path.split("."), value)
    _mend(message, method, view)
    return message


def unfiltered(method: MethodDescriptor) -> Message:
    """The request of a list or a watch that asks for everything. Raises NoGoodRequest."""
    message: Message = GetMessageClass(method.input_type)()
    if _validator.collect_violations(message):
        raise NoGoodRequest(f"{method.full_name} cannot be asked for everything")
    return message


def in_scope(method: MethodDescriptor, rule: Rule, view: View, scope: str) -> Message:
    """The good request about the objects of a view, but in another scope than theirs."""
    message: Any = request_for(method, rule, view)
    _set(message, list(rule.scope_path), scope)
    return message  # type: ignore[no-any-return]


def fill(message: Message, method: MethodDescriptor, view: View) -> None:
    """Fill in the texts whose name says what they hold."""
    for field in message.DESCRIPTOR.fields:
        text = field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
        if text and (value := _text(field, message.DESCRIPTOR, method, view)):
            setattr(message, field.name, value)


def _text(field: FieldDescriptor, of: Descriptor, method: MethodDescriptor, view: View) -> str:
    if field.name != "id":
        return view.by_name().get(field.name, "")
    kinds = view.by_kind()
    if of is not method.input_type:
        return kinds.get(of.name, "")
    fitting = [kind for kind in kinds if kind in method.name] or [method.containing_service.name[: -len("Service")]]
    return kinds.get(max(fitting, key=len), "")


def _set(message: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        message = getattr(message, name)
    field = message.DESCRIPTOR.fields_by_name[path[-1]]
    if field.is_repeated:
        del getattr(message, field.name)[:]
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _mend(message: Message, method: MethodDescriptor, view: View) -> None:
    """Give what breaks a rule the first value that breaks none."""
    for _ in range(_ROUNDS):
        broken = _validator.collect_violations(message)
        if not broken:
            return
        violation = broken[0].proto
        steps = [(each.field_name, each.subscript) for each in violation.field.elements]
        if not _mend_one(message, steps, len(broken), method, view):
            break
    rule = broken[0].proto.rule_id
    raise NoGoodRequest(
        f"no rule makes a good request of {method.full_name}: {broken[0].proto.field} breaks {rule}; "
        f"say in tests/support/access_requests.py, in OVERRIDES[{name_of(method)!r}], what its fields shall hold"
    )


def _mend_one(message: Any, steps: list[Any], broken: int, method: MethodDescriptor, view: View) -> bool:
    target = message
    for name, subscript in steps[:-1]:
        target = getattr(target, name)
        if subscript is not None:
            target = target[subscript.value]
    field = target.DESCRIPTOR.fields_by_name[steps[-1][0]]
    for candidate in _candidates(field):
        if field.message_type is not None and not isinstance(candidate, Message):
            entry = getattr(target, field.name)
            entry = entry.add() if field.is_repeated else entry
            entry.SetInParent()
            fill(entry, method, view)
            return True
        _set(target, [field.name], [candidate] if field.is_repeated else candidate)
        if len(_validator.collect_violations(message)) < broken:
            return True
    return False


def _candidates(field: FieldDescriptor) -> list[Any]:
    if field.message_type is not None:
        return [Duration(seconds=60)] if field.message_type.full_name == "google.protobuf.Duration" else [None]
    if field.enum_type is not None:
        return [value.number for value in field.enum_type.values if value.number]
    if field.type == FieldDescriptor.TYPE_STRING:
        return list(_TEXTS)
    return [1, 60]
