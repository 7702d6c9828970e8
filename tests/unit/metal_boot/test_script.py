from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_boot.script import BootConfig, InstallerParameters, again, installer, local_disk
from metal_hammer.enrol import parse_command_line
from metal_sim.machine.firmware import ScriptError, read_script

CONFIG = BootConfig("http://images.example/k", "http://images.example/i", "console=ttyS1,115200n8 quiet")
PARAMETERS = InstallerParameters("http://boot:8080", "4c4c4544-0051-3510-8052-b4c04f4e3132", "s-1", "tok.en", "install")


def test_the_installer_script_is_the_golden_one() -> None:
    assert installer(CONFIG, PARAMETERS, reason="installer: free") == (
        "#!ipxe\n"
        "# installer: free\n"
        "kernel http://images.example/k initrd=metal-initrd console=ttyS1,115200n8 quiet"
        " metal.url=http://boot:8080 metal.machine=4c4c4544-0051-3510-8052-b4c04f4e3132"
        " metal.session=s-1 metal.mode=install metal.token=tok.en\n"
        "initrd --name metal-initrd http://images.example/i\n"
        "boot\n"
    )


def test_what_the_script_says_is_what_the_installer_reads() -> None:
    found = read_script(installer(CONFIG, PARAMETERS, reason="x"))
    assert (found.kernel, found.initrd) == (CONFIG.kernel_url, CONFIG.initrd_url)
    parameters = parse_command_line(found.command_line)
    assert (parameters.boot_url, parameters.machine_id) == (PARAMETERS.boot_url, PARAMETERS.machine_id)
    assert (parameters.token, parameters.session) == (PARAMETERS.token, PARAMETERS.session)


def test_the_local_disk_is_started_for_bios_and_left_to_the_firmware_for_uefi() -> None:
    text = local_disk(reason="local disk: allocated")
    assert "iseq ${platform} efi && exit 1 ||" in text.splitlines()
    assert "sanboot --no-describe --drive 0x80 || exit 1" in text.splitlines()
    assert read_script(text).command_line == ""


def test_a_machine_can_be_told_to_ask_again() -> None:
    assert read_script(again(reason="no configuration", seconds=7)).again_after == 7


@given(st.text(max_size=80))
def test_no_reason_can_add_a_command(reason: str) -> None:
    for text in (local_disk(reason=reason), again(reason=reason), installer(CONFIG, PARAMETERS, reason=reason)):
        assert len(text.splitlines()) == text.count("\n")
    assert local_disk(reason=reason).count("\n") == local_disk(reason="").count("\n")


@pytest.mark.parametrize("url", ["", "ftp://x/k", "http://", "http://x/k\nboot", "http://x/ k", "k"])
def test_a_boot_configuration_that_would_break_the_script_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        installer(BootConfig(url, CONFIG.initrd_url), PARAMETERS, reason="")
    with pytest.raises(ValueError, match="url"):
        installer(BootConfig(CONFIG.kernel_url, url), PARAMETERS, reason="")


def test_line_breaks_in_the_command_line_become_blanks() -> None:
    text = installer(BootConfig(CONFIG.kernel_url, CONFIG.initrd_url, "a\nboot\nb"), PARAMETERS, reason="")
    assert text.count("\n") == 5


@pytest.mark.parametrize("text", ["", "kernel x", "#!ipxe\nkernel http://x/k\nboot\n", "#!ipxe\nshell\n", "#!ipxe\n"])
def test_firmware_stops_at_a_script_that_starts_nothing(text: str) -> None:
    with pytest.raises(ScriptError):
        read_script(text)
