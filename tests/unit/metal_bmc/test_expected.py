"""What about a machine that was found is not as expected."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.drivers.interface import DriverKind
from metal_bmc.endpoint import Endpoint, Observation
from metal_bmc.expected import Attempt, Difference, Expectation, ExpectedMachine, differences

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MAC, OTHER = "0c:c4:7a:00:00:01", "0c:c4:7a:00:00:02"
ID = "0198c1d2-0000-7000-8000-000000000001"


def wish(**fields: Any) -> ExpectedMachine:
    blank = {"mac": "", "serial": "", "login": "", "sealed": None, "vendor": "", "model": "", "rack": ""}
    expectation = Expectation(**{"id": ID, "partition": "p", "driver": DriverKind.IPMI, **blank, **fields})
    return ExpectedMachine(expectation, "", None, 1, NOW - timedelta(hours=1), NOW)


def found(mac: str = MAC, seen_at: datetime | None = NOW, **fru: str) -> Endpoint:
    return Endpoint(
        machine=ID, partition="p", host="10.1.0.1", port=623, mac=mac, login="", sealed=None, desired_on=None,
        driver=DriverKind.IPMI, serial="", observation=Observation(fru=fru, observed_at=seen_at), refused_logins=0,
        revision=1, version=1, created_at=NOW - 2 * DAY, updated_at=NOW,
    )  # fmt: skip


def fields(expected: ExpectedMachine, endpoint: Endpoint | None, attempt: Attempt | None = None) -> set[str]:
    return {each.field for each in differences(expected, endpoint, attempt, NOW, DAY)}


def test_both_are_named() -> None:
    machine = found(**{"Serial Number": "S1", "Board serial number": "B1"})
    assert differences(wish(mac=OTHER, serial="S2"), machine, None, NOW, DAY) == [
        Difference("mac", OTHER, MAC),
        Difference("serial", "S2", "S1, B1"),
    ]


@pytest.mark.parametrize("name", ["Serial Number", "Board serial number", "Chassis serial number"])
def test_any_serial_number_of_the_machine_will_do(name: str) -> None:
    assert fields(wish(serial="s1"), found(**{name: " S1 ", "Manufacturer": "x"})) == set()


@pytest.mark.parametrize(
    ("wanted", "told", "fits"),
    [
        ("Supermicro", "Super Micro Computer, Inc.", True),
        ("Dell Inc.", "DELL", True),
        ("Dell", "Lenovo", False),
        ("--", "Lenovo", False),
    ],
)
def test_makers_write_themselves_in_many_ways(wanted: str, told: str, fits: bool) -> None:
    assert (fields(wish(vendor=wanted), found(Manufacturer=told)) == set()) is fits


def test_a_model_is_that_model_and_no_other_that_begins_like_it() -> None:
    machine = found(**{"Board product name": "X11DPT-B"})
    assert fields(wish(model="x11 dpt b"), machine) == set()
    assert fields(wish(model="X11DPT"), machine) == {"model"}


def test_what_a_bmc_does_not_tell_is_no_difference() -> None:
    everything = wish(mac=MAC, serial="S1", vendor="Dell", model="R650")
    assert fields(everything, found(mac="")) == set()


def test_a_login_that_was_refused_is_one_until_the_machine_is_found() -> None:
    refused = Attempt("10.1.0.1", "AUTH_FAILED")
    assert fields(wish(mac=MAC), None, refused) == {"login"}
    assert fields(wish(mac=MAC), None, Attempt("10.1.0.1", "NO_MACHINE_UUID")) == {"onboarding"}
    assert fields(wish(mac=MAC), found(), refused) == set()


def test_a_machine_is_missing_when_the_time_is_over_and_not_before() -> None:
    young, old = (replace(wish(mac=MAC), created_at=NOW - age) for age in (DAY - timedelta(seconds=1), DAY))
    assert (fields(young, None), fields(old, None)) == (set(), {"presence"})
    answered = (found(seen_at=NOW - age) for age in (DAY - timedelta(seconds=1), DAY))
    assert [fields(old, each) for each in answered] == [set(), {"presence"}]


def test_another_driver_is_one() -> None:
    assert fields(wish(driver=DriverKind.REDFISH), found()) == {"driver"}


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_is_told_just_as_expected_is_never_a_difference(serial: str, vendor: str, model: str) -> None:
    machine = found(**{"Serial Number": serial, "Manufacturer": f"A {vendor}", "Model": f"1{model}"})
    assert fields(wish(mac=MAC, serial=serial, vendor=f"A {vendor}", model=f"1{model}"), machine) == set()


@given(st.dictionaries(st.sampled_from(["Serial Number", "Manufacturer", "Model"]), st.text()), st.text(), st.text())
def test_each_field_differs_once_at_most(told: dict[str, str], serial: str, vendor: str) -> None:
    names = [each.field for each in differences(wish(serial=serial, vendor=vendor), found(**told), None, NOW, DAY)]
    assert len(names) == len(set(names))
