from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from metal_hammer import configure
from metal_hammer.disk.layout import Layout
from metal_hammer.failure import Code, StepFailed
from metal_hammer.hardware.facts import Facts, Nic
from metal_hammer.image.fetch import Source
from metal_hammer.work import InstallSpec

FACTS = Facts("uuid-1", 0, nics=(Nic("eth0", "02:00:00:00:00:01"), Nic("eth1", "02:00:00:00:00:02")))


def spec(**changes: Any) -> InstallSpec:
    values: dict[str, Any] = {
        "allocation_id": "a1",
        "role": "machine",
        "hostname": "web-1",
        "image_id": "debian-13.0.1",
        "source": Source("http://x/", ""),
        "layout": Layout((), ()),
        "disk_serials": frozenset(),
        "networks": ({"vrf": 100, "ips": ["10.0.0.1"], "prefixes": ["10.0.0.0/22"]},),
        "asn": 4200000001,
        "ssh_keys": ("ssh-ed25519 AAAA a", "ssh-rsa BBBB b"),
        "userdata": b"\x00\xff any bytes",
        "dns_servers": ("192.0.2.53",),
        "ntp_servers": ("ntp.example",),
    }
    return InstallSpec(**(values | changes))


def test_the_document_is_the_one_that_images_read(tmp_path: Path) -> None:
    document = configure.install_document(
        spec(),
        FACTS,
        root_uuid="r-uuid",
        console="ttyS1",
        cabled=["02:00:00:00:00:02"],
        now=datetime(2026, 11, 21, tzinfo=UTC),
    )
    configure.write_all(tmp_path, spec(), document, "UUID=r-uuid / ext4 defaults 0 1\n")
    written = yaml.safe_load((tmp_path / "etc/metal/install.yaml").read_text())
    assert written == {
        "version": 1,
        "hostname": "web-1",
        "machineuuid": "uuid-1",
        "allocation": "a1",
        "image": "debian-13.0.1",
        "role": "machine",
        "networks": [{"vrf": 100, "ips": ["10.0.0.1"], "prefixes": ["10.0.0.0/22"]}],
        "asn": 4200000001,
        "nics": [{"mac": "02:00:00:00:00:02", "name": "eth1"}],
        "sshpublickey": "ssh-ed25519 AAAA a\nssh-rsa BBBB b",
        "console": "ttyS1",
        "timestamp": "2026-11-21T00:00:00+00:00",
        "raidenabled": False,
        "root_uuid": "r-uuid",
        "dns_servers": [{"ip": "192.0.2.53"}],
        "ntp_servers": [{"address": "ntp.example"}],
        "firewall_rules": {},
    }
    assert (tmp_path / "etc/metal/userdata").read_bytes() == b"\x00\xff any bytes"
    assert (tmp_path / "etc/hostname").read_text() == "web-1\n"
    assert (tmp_path / "etc/fstab").read_text() == "UUID=r-uuid / ext4 defaults 0 1\n"
    for name in ("install.yaml", "userdata", "authorized_keys"):
        assert stat.S_IMODE((tmp_path / "etc/metal" / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("hostname", ["", "a b", "a\nb", "-a", "../x", "a" * 64, "a." * 127 + "aa"])
def test_a_host_name_that_is_none_is_not_written(tmp_path: Path, hostname: str) -> None:
    with pytest.raises(StepFailed):
        configure.write_all(tmp_path, spec(hostname=hostname), {}, "")
    assert list(tmp_path.iterdir()) == []


def test_user_data_does_not_show_in_a_log_line() -> None:
    assert "any bytes" not in repr(spec())


@pytest.mark.parametrize(
    ("line", "console"),
    [
        ("", "ttyS0"),
        ("quiet console=tty0 console=ttyS1,115200n8 x", "ttyS1,115200n8"),
        ("noconsole=tty9", "ttyS0"),
    ],
)
def test_the_console_is_the_last_one_of_the_command_line(line: str, console: str) -> None:
    assert configure.console_of(line) == console


def info(root: Path, text: str) -> None:
    (root / "etc/metal").mkdir(parents=True)
    (root / "etc/metal/boot-info.yaml").write_text(text)


def test_how_the_system_starts_is_read_from_the_image(tmp_path: Path) -> None:
    info(tmp_path, "kernel: /boot/k\ninitrd: /boot/i\ncmdline: root=UUID=1 ro\nbootloader_id: debian\n")
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/k").write_text("k")
    (tmp_path / "boot/i").write_text("i")
    found = configure.read_boot_info(tmp_path)
    assert (found.kernel, found.initrd, found.command_line) == ("/boot/k", "/boot/i", "root=UUID=1 ro")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: b: c",
        "kernel: /boot/none",
        "initrd: /etc/metal/boot-info.yaml",
        "kernel: /etc",
        "\x00",
        "- " * 5000,
    ],
)
def test_an_image_that_does_not_say_how_it_starts_is_refused(tmp_path: Path, text: str) -> None:
    info(tmp_path, text)
    with pytest.raises(StepFailed) as failed:
        configure.read_boot_info(tmp_path)
    assert failed.value.code is Code.NO_KERNEL


def test_an_image_without_boot_info_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as failed:
        configure.read_boot_info(tmp_path)
    assert failed.value.code is Code.NO_KERNEL
