"""Broken rules of the contracts, named as people write paths; and no rule of ours that does not compile."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import metalplane
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from metal_kit import validation
from metal_kit.errors import MAX_VIOLATIONS, InvalidArgument
from metalplane.common.v1.access_pb2 import Role
from metalplane.tenancy.v1.token_pb2 import CreateTokenRequest, RevokeTokenRequest, Token

UUID = "0198c1d2-0000-7000-8000-000000000001"


def _violations(message: Any, field: str = "") -> set[str]:
    with pytest.raises(InvalidArgument) as caught:
        validation.check(message, field=field)
    return {violation.field for violation in caught.value.violations}


def test_every_broken_rule_is_named() -> None:
    request = CreateTokenRequest(token=Token(user="x" * 300, project_roles={"a": Role.ROLE_VIEWER}))
    assert _violations(request) == {"token.user", 'token.project_roles["a"]', "lifetime"}


def test_the_path_to_the_message_comes_first() -> None:
    assert _violations(Token(user="x" * 300), field="token") == {"token.user"}


def test_a_message_that_holds_passes() -> None:
    validation.check(RevokeTokenRequest(id=UUID))


def test_unknown_enum_values_are_refused() -> None:
    assert _violations(Token(project_roles={UUID: 99})) == {f'project_roles["{UUID}"]'}  # type: ignore[dict-item]


def test_the_number_of_violations_is_bounded() -> None:
    token = Token(project_roles={f"{n}": Role.ROLE_VIEWER for n in range(200)})
    with pytest.raises(InvalidArgument) as caught:
        validation.check(token)
    assert len(caught.value.violations) == MAX_VIOLATIONS
    assert "(and 180 more)" in caught.value.message or "more)" in caught.value.message


def test_every_rule_of_the_contracts_compiles() -> None:
    descriptors = []
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(module.name).DESCRIPTOR
            descriptors += list(file.message_types_by_name.values())
    assert len(descriptors) > 100
    validation.warm(descriptors)


@given(st.binary(max_size=200))
def test_no_bytes_break_parsing_and_checking(raw: bytes) -> None:
    """What arrives is parsed or refused, and checked or refused; nothing else happens."""
    try:
        message = CreateTokenRequest.FromString(raw)
    except DecodeError:
        return
    refused: InvalidArgument | None = None
    try:
        validation.check(message)
    except InvalidArgument as error:
        refused = error
    # Both fields are required: a message without one of them cannot have passed.
    assert refused is not None or (message.HasField("lifetime") and message.HasField("token"))
