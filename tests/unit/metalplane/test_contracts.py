"""The contracts keep to the shapes that every client may count on (Google AIPs 132-135, 155, 158), all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import metalplane
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from metalplane.common.v1 import access_pb2

# Its answer holds a secret that is kept nowhere, so it cannot be given a second time.
NOT_REPEATABLE = {"CreateToken"}


def files() -> Iterator[object]:
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            yield importlib.import_module(module.name).DESCRIPTOR


METHODS: list[MethodDescriptor] = [
    method
    for file in files()
    for service in file.services_by_name.values()  # type: ignore[attr-defined]
    for method in service.methods
]


def of(prefix: str) -> list[MethodDescriptor]:
    return [method for method in METHODS if method.name.startswith(prefix)]


def names(message: Descriptor) -> set[str]:
    return set(message.fields_by_name)


def by_name(methods: list[MethodDescriptor]) -> pytest.MarkDecorator:
    assert methods
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.full_name.split(".")[-1])


def test_there_are_contracts() -> None:
    assert len(METHODS) > 80


@by_name(METHODS)
def test_every_method_says_who_may_call_it(method: MethodDescriptor) -> None:
    assert method.GetOptions().HasExtension(access_pb2.access)
    assert method.GetOptions().Extensions[access_pb2.access].ByteSize()


@by_name(of("List"))
def test_lists_page(method: MethodDescriptor) -> None:
    assert {"page_size", "page_token"} <= names(method.input_type)
    assert "next_page_token" in names(method.output_type)
    repeated = [field for field in method.output_type.fields if field.is_repeated]
    assert len(repeated) == 1


@by_name([method for method in of("Create") if method.name not in NOT_REPEATABLE])
def test_creates_can_be_repeated(method: MethodDescriptor) -> None:
    assert "request_id" in names(method.input_type)


@by_name(of("Update"))
def test_updates_name_their_fields_and_the_state_they_know(method: MethodDescriptor) -> None:
    mask = method.input_type.fields_by_name["update_mask"]
    assert mask.message_type.full_name == "google.protobuf.FieldMask"
    assert "etag" in names(method.output_type)
    assert method.output_type in [field.message_type for field in method.input_type.fields]


@by_name([method for method in of("Watch") if method.output_type.fields_by_name.get("changes")])
def test_watches_resume_from_a_position(method: MethodDescriptor) -> None:
    assert "position" in names(method.input_type)
    assert "position" in names(method.output_type)


def test_machines_and_allocations_can_be_watched() -> None:
    assert {"WatchMachines", "WatchAllocations"} <= {method.name for method in of("Watch")}


def fields() -> Iterator[FieldDescriptor]:
    for file in files():
        waiting = list(file.message_types_by_name.values())  # type: ignore[attr-defined]
        while waiting:
            message = waiting.pop()
            waiting += message.nested_types
            yield from message.fields


def test_points_in_time_are_timestamps() -> None:
    wrong = [
        field.full_name
        for field in fields()
        if field.name.endswith(("_at", "_time"))
        and (field.message_type is None or field.message_type.full_name != "google.protobuf.Timestamp")
    ]
    assert not wrong


# Accepted in writes and cleared in every answer (AIP-203: input only); the component tests of bmc look for it.
INPUT_ONLY = {"metalplane.bmc.v1.Bmc.password", "metalplane.bmc.v1.ExpectedMachine.password"}


def test_no_list_get_or_event_has_a_field_for_a_secret() -> None:
    """Such fields stand in requests, and in the one answer that shows a secret once."""
    secret = {
        field.full_name: field.containing_type.full_name
        for field in fields()
        if field.name in {"password", "secret", "private_key", "token"} and field.message_type is None
    }
    assert secret
    reachable: set[str] = set()
    waiting = [method.output_type for method in METHODS if not method.name.startswith(("CreateToken", "Exchange"))]
    for file in files():
        if file.name.endswith("/events.proto"):  # type: ignore[attr-defined]
            waiting += file.message_types_by_name.values()  # type: ignore[attr-defined]
    while waiting:
        message = waiting.pop()
        if message.full_name not in reachable:
            reachable.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    assert {field for field, message in secret.items() if message in reachable} <= INPUT_ONLY
