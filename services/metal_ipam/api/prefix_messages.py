"""Between the messages of prefixes and namespaces and the domain's dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from google.protobuf.duration_pb2 import Duration
from metal_kit.timestamps import to_timestamp
from metalplane.ipam.v1 import namespace_pb2
from metalplane.ipam.v1 import prefix_pb2 as pb

from metal_ipam.cidr import parse_prefix
from metal_ipam.store.namespaces import Namespace
from metal_ipam.store.prefixes import PrefixRow
from metal_ipam.store.ranges import Range

INT64_MAX = 2**63 - 1

STATUSES: Mapping[int, str] = MappingProxyType(
    {
        pb.PREFIX_STATUS_UNSPECIFIED: "active",
        pb.PREFIX_STATUS_ACTIVE: "active",
        pb.PREFIX_STATUS_RESERVED: "reserved",
        pb.PREFIX_STATUS_DEPRECATED: "deprecated",
    }
)
_STATUS_NUMBERS = {
    "active": pb.PREFIX_STATUS_ACTIVE,
    "reserved": pb.PREFIX_STATUS_RESERVED,
    "deprecated": pb.PREFIX_STATUS_DEPRECATED,
}
_KIND_NUMBERS = {"container": pb.PREFIX_KIND_CONTAINER, "leaf": pb.PREFIX_KIND_LEAF}


def prefix_of(message: pb.Prefix) -> PrefixRow:
    """What a message says of a new prefix.

    Raises:
        InvalidArgument: the CIDR is not canonical.
    """
    return PrefixRow(
        id=0,
        namespace_id=0,
        network=message.network,
        cidr=parse_prefix(message.cidr, field="prefix.cidr"),
        parent=None,
        kind=kind_of(message.kind),
        size=0,
        used=0,
        quarantined=0,
        reserved=0,
        children=0,
        child_used=0,
        namespace=message.namespace,
        status=STATUSES[message.status],
        labels=dict(message.labels),
        description=message.description,
        all_usable=message.all_usable,
        quarantine=timedelta(milliseconds=message.quarantine.ToMilliseconds()),
    )


def kind_of(number: pb.PrefixKind.ValueType) -> str:
    """A leaf unless the request says container."""
    return "container" if number == pb.PREFIX_KIND_CONTAINER else "leaf"


def prefix_message(row: PrefixRow) -> pb.Prefix:
    """The message of a prefix."""
    return pb.Prefix(
        cidr=str(row.cidr),
        network=row.network,
        parent=str(row.parent or ""),
        size=_saturated(row.size),
        used=row.used,
        reserved=_saturated(row.reserved),
        free=_saturated(row.free),
        children=row.children,
        namespace=row.namespace,
        kind=_KIND_NUMBERS[row.kind],
        status=_STATUS_NUMBERS[row.status],
        labels=dict(row.labels),
        description=row.description,
        all_usable=row.all_usable,
        quarantine=duration(row.quarantine),
        quarantined=row.quarantined,
        child_used=_saturated(row.child_used),
        exact_free=str(row.free),
        # Divided as integers first: the difference of two floats near 1 would hide one address of a /64.
        utilisation=(row.size - row.free) / row.size,
        etag=str(row.version),
        create_time=to_timestamp(row.create_time),
    )


def duration(value: timedelta) -> Duration:
    """The message of a span of time."""
    message = Duration()
    message.FromTimedelta(value)
    return message


def range_message(found: Range) -> pb.ReservedRange:
    """The message of a reserved range."""
    return pb.ReservedRange(
        first=str(found.first),
        last=str(found.last),
        label=found.label,
        create_time=to_timestamp(found.create_time),
    )


def namespace_message(namespace: Namespace) -> namespace_pb2.Namespace:
    """The message of a namespace."""
    return namespace_pb2.Namespace(
        id=namespace.name,
        project=namespace.project,
        description=namespace.description,
        create_time=to_timestamp(namespace.create_time),
    )


def _saturated(value: int) -> int:
    return min(value, INT64_MAX)
