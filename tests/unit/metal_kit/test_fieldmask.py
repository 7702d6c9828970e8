"""Partial updates."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.errors import InvalidArgument
from metal_kit.fieldmask import apply_update
from metalplane.common.v1.access_pb2 import Role
from metalplane.tenancy.v1.token_pb2 import CreateTokenRequest, Token

MUTABLE = ("user", "description", "project_roles", "create_time")


def _target() -> Token:
    target = Token(id="1", user="ada", description="old", project_roles={"a": Role.ROLE_VIEWER})
    target.create_time.seconds = 10
    target.create_time.nanos = 5
    return target


def _update(source: Token, *paths: str, mutable: tuple[str, ...] = MUTABLE) -> Token:
    target = _target()
    apply_update(target, source, FieldMask(paths=paths), mutable=mutable)
    return target


def test_only_fields_of_the_mask_change() -> None:
    result = _update(Token(user="bob", description="new"), "user")
    assert (result.user, result.description) == ("bob", "old")


def test_an_unset_field_in_the_mask_is_cleared() -> None:
    result = _update(Token(), "description", "create_time")
    assert not result.description
    assert not result.HasField("create_time")


def test_a_map_is_replaced_as_a_whole() -> None:
    result = _update(Token(project_roles={"b": Role.ROLE_OWNER}), "project_roles")
    assert dict(result.project_roles) == {"b": Role.ROLE_OWNER}


def test_a_message_is_replaced_as_a_whole() -> None:
    source = Token()
    source.create_time.seconds = 7
    result = _update(source, "create_time")
    assert (result.create_time.seconds, result.create_time.nanos) == (7, 0)


def test_a_path_below_a_message_changes_that_alone() -> None:
    source = Token()
    source.create_time.seconds = 7
    result = _update(source, "create_time.seconds")
    assert (result.create_time.seconds, result.create_time.nanos) == (7, 5)


def test_a_field_below_an_unset_message_is_cleared() -> None:
    result = _update(Token(), "create_time.seconds")
    assert (result.create_time.seconds, result.create_time.nanos) == (0, 5)
    fresh = Token()
    apply_update(fresh, Token(), FieldMask(paths=["create_time.seconds"]), mutable=MUTABLE)
    assert not fresh.HasField("create_time")


def test_an_empty_mask_means_what_is_populated_and_may_change() -> None:
    result = _update(Token(id="9", user="bob"))
    assert (result.id, result.user, result.description) == ("1", "bob", "old")
    assert dict(result.project_roles) == {"a": Role.ROLE_VIEWER}


def test_a_star_replaces_all_that_may_change() -> None:
    result = _update(Token(id="9", user="bob"), "*")
    assert (result.id, result.user, result.description) == ("1", "bob", "")
    assert not result.project_roles


@pytest.mark.parametrize(
    ("path", "reason", "field"),
    [
        ("nonsense", "UNKNOWN_FIELD", "update_mask"),
        ("", "UNKNOWN_FIELD", "update_mask"),
        ("user.name", "UNKNOWN_FIELD", "update_mask"),
        ("project_roles.a", "INVALID_MASK", "update_mask"),
        ("createTime", "UNKNOWN_FIELD", "update_mask"),
        ("id", "IMMUTABLE_FIELD", "id"),
        ("tenant_roles", "IMMUTABLE_FIELD", "tenant_roles"),
    ],
)
def test_a_path_that_cannot_be_is_named_and_nothing_changes(path: str, reason: str, field: str) -> None:
    target = _target()
    source = Token(id="2", user="bob", tenant_roles={"t": Role.ROLE_OWNER})
    with pytest.raises(InvalidArgument) as caught:
        apply_update(target, source, FieldMask(paths=["user", path]), mutable=MUTABLE)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert target == _target()


def test_an_immutable_field_with_the_same_value_may_be_in_the_mask() -> None:
    assert _update(Token(id="1", user="bob"), "id", "user").user == "bob"


def test_a_whole_message_is_not_mutable_because_a_part_of_it_is() -> None:
    with pytest.raises(InvalidArgument):
        apply_update(
            CreateTokenRequest(token=_target()), CreateTokenRequest(token=Token(user="bob")),
            FieldMask(paths=["token"]), mutable=["token.user"],
        )  # fmt: skip


TOKENS = st.builds(
    Token, user=st.text(max_size=5), description=st.text(max_size=5),
    project_roles=st.dictionaries(st.text(max_size=3), st.sampled_from([1, 2, 3]), max_size=3),
)  # fmt: skip


@given(TOKENS, TOKENS, st.lists(st.sampled_from(["user", "description", "project_roles"]), min_size=1))
def test_masked_fields_equal_the_source_and_the_others_the_target(
    before: Token, source: Token, paths: list[str]
) -> None:
    target = Token()
    target.CopyFrom(before)
    apply_update(target, source, FieldMask(paths=paths), mutable=MUTABLE)
    for name in ("user", "description", "project_roles"):
        origin = source if name in paths else before
        assert getattr(target, name) == getattr(origin, name)
