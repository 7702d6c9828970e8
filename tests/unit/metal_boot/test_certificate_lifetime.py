"""A machine's certificate lasts for what its installer does with it, and not for much longer."""

from __future__ import annotations

from datetime import timedelta

from metal_boot.certificates import LIFETIME
from metal_hammer.contact import Rules

LONGEST_INSTALLATION = timedelta(hours=3)


def test_a_certificate_outlasts_the_longest_wait_and_the_installation_after_it() -> None:
    longest_wait = timedelta(seconds=Rules().idle_reboot) * 2
    assert longest_wait + LONGEST_INSTALLATION <= LIFETIME <= longest_wait + 2 * LONGEST_INSTALLATION
