from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.credentials import CredentialError, KeyRing

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
MACHINE = "8d0d2b5e-9a3c-4a5e-8e55-2f1d6b1f0a01"
OTHER = "8d0d2b5e-9a3c-4a5e-8e55-2f1d6b1f0a02"


@given(st.text(max_size=40), st.uuids().map(str))
def test_a_password_opens_for_its_machine(password: str, machine: str) -> None:
    ring = KeyRing({"k1": OLD})
    assert ring.open(machine, ring.seal(machine, password)) == password


def test_a_sealed_password_does_not_show_the_password_and_differs_each_time() -> None:
    ring = KeyRing({"k1": OLD})
    first, second = ring.seal(MACHINE, "correct horse"), ring.seal(MACHINE, "correct horse")
    assert first != second
    assert b"correct horse" not in first


def test_a_password_moved_to_another_machine_does_not_open() -> None:
    ring = KeyRing({"k1": OLD})
    with pytest.raises(CredentialError, match="of another machine"):
        ring.open(OTHER, ring.seal(MACHINE, "secret"))


def test_old_keys_open_and_the_first_key_seals() -> None:
    before = KeyRing({"k1": OLD})
    rotated = KeyRing({"k2": NEW, "k1": OLD})
    sealed = before.seal(MACHINE, "secret")
    assert rotated.open(MACHINE, sealed) == "secret"
    assert KeyRing.key_of(sealed) == "k1"
    assert KeyRing.key_of(rotated.seal(MACHINE, "secret")) == "k2"


def test_a_key_that_left_the_ring_is_named() -> None:
    sealed = KeyRing({"k1": OLD}).seal(MACHINE, "secret")
    with pytest.raises(CredentialError, match="'k1', which is not in the key ring"):
        KeyRing({"k2": NEW}).open(MACHINE, sealed)


@given(st.data())
def test_a_flipped_bit_anywhere_does_not_open(data: st.DataObject) -> None:
    ring = KeyRing({"k1": OLD})
    sealed = bytearray(ring.seal(MACHINE, "secret"))
    position = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[position // 8] ^= 1 << position % 8
    with pytest.raises(CredentialError):
        ring.open(MACHINE, bytes(sealed))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_do_not_open(sealed: bytes) -> None:
    with pytest.raises(CredentialError):
        KeyRing({"k1": OLD}).open(MACHINE, sealed)


def test_a_ring_is_read_from_text() -> None:
    text = f"k2:{base64.b64encode(NEW).decode()}, k1:{base64.b64encode(OLD).decode()}"
    assert KeyRing.parse(text).current == "k2"
    assert KeyRing.parse(text).open(MACHINE, KeyRing({"k1": OLD}).seal(MACHINE, "x")) == "x"


SHORT = base64.b64encode(b"short-key-value").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the key ring is empty"),
        (SHORT, "entry 1 of credential_keys has no"),
        (f"k1:{SHORT}", "'k1' has 15 bytes"),
        ("k1:!!!!", "'k1' is not base64"),
        (f"k1:{SHORT},k1:{SHORT}", "'k1' appears twice"),
        (f"k 1:{SHORT}", "letters, digits and dashes"),
    ],
)
def test_a_bad_ring_is_refused_without_showing_a_key(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KeyRing.parse(text)
    assert SHORT not in str(caught.value)
