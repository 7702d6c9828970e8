"""The set-up of a plane: everybody gets what he needs, once, and nothing that is not his."""

from __future__ import annotations

import re
import shlex
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from joserfc.jwk import OKPKey
from metal_bmc.credentials import KeyRing
from metal_boot.tokens import RamdiskTokens
from metal_init import files, partition, plane
from metal_init.certificates import Certificates
from metal_init.settings import Settings
from metal_kit import clock
from metal_kit.ca import Authority
from metal_kit.tls import Identity, read_certificate


def settings_for(root: Path, **more: object) -> Settings:
    return Settings(root=root / "secrets", **more)  # type: ignore[arg-type]


def make(settings: Settings, *, renew: bool = False) -> list[str]:
    return plane.set_up(settings, Certificates(settings.root, settings.lifetime, renew=renew))


def environment_of(folder: Path) -> dict[str, str]:
    words = shlex.split((folder / "env").read_text())
    return dict(word.split("=", 1) for word in words)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def names_of(path: Path) -> tuple[list[str], list[str], list[str]]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        san.get_values_for_type(x509.UniformResourceIdentifier),
        san.get_values_for_type(x509.DNSName),
        [str(each) for each in san.get_values_for_type(x509.IPAddress)],
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path, partition="rack-a", edge_names="edge.example.org,192.0.2.7")


def test_every_service_gets_a_certificate_that_the_kit_takes_and_the_name_that_clients_look_for(
    settings: Settings,
) -> None:
    make(settings)
    callers = {}
    for name in plane.SERVICES:
        folder = settings.root / name
        Identity(folder / "ca.crt", folder / "tls.crt", folder / "tls.key").channel_credentials()
        caller = read_certificate((folder / "tls.crt").read_bytes()).caller
        callers[name] = caller.label
        assert names_of(folder / "tls.crt")[1] == [f"{name}.metalplane"]
    assert callers["ipam"] == "service:ipam"
    assert (callers["bmc"], callers["boot"]) == ("bmc:rack-a", "boot:rack-a")


def test_the_edge_cannot_pose_as_a_service(settings: Settings) -> None:
    make(settings)
    for name in ("tls", "server"):
        path = settings.root / "edge" / f"{name}.crt"
        caller = read_certificate(path.read_bytes()).caller
        assert not caller.authenticated
        assert not {f"{service}.metalplane" for service in plane.SERVICES} & set(names_of(path)[1])
    assert names_of(settings.root / "edge" / "server.crt")[1:] == (
        ["edge.metalplane", "edge.example.org"],
        ["192.0.2.7"],
    )


def test_doing_it_again_changes_nothing(settings: Settings) -> None:
    make(settings)
    before = contents(settings.root)
    assert make(settings) == []
    assert contents(settings.root) == before


def test_renewing_changes_certificates_and_keeps_keys_and_passwords(settings: Settings) -> None:
    make(settings)
    before = contents(settings.root)
    assert len(make(settings, renew=True)) == len(plane.SERVICES) + 4
    changed = {name for name, content in contents(settings.root).items() if before[name] != content}
    assert changed == {name for name in before if re.search(r"(tls|server|machines)\.(crt|key)$", name)}


def test_a_certificate_near_its_end_is_renewed_and_others_are_not(settings: Settings, tmp_path: Path) -> None:
    make(settings)
    folder = settings.root / "ipam"
    issuer = Authority.load(settings.root / "authority")
    uri, dns, _ = names_of(folder / "tls.crt")
    # Backdated by the kit's 5 minutes, so of its 6 minutes this one has one left.
    issuer.issue("ipam", uri[0], dns, ttl=timedelta(minutes=1)).save(folder, "tls")
    assert make(settings) == ["ipam"]
    renewed = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    assert renewed.not_valid_after_utc - clock.now() > timedelta(days=89)


def test_a_new_name_of_the_edge_gets_a_new_certificate(settings: Settings) -> None:
    make(settings)
    assert make(settings.model_copy(update={"edge_names": ("other.example.org",)})) == ["edge server"]


def test_another_partition_gets_new_certificates(settings: Settings) -> None:
    make(settings)
    assert make(settings.model_copy(update={"partition": "rack-b"})) == ["bmc", "boot"]


def test_a_pair_that_was_cut_in_two_by_a_crash_is_repaired(settings: Settings) -> None:
    make(settings)
    (settings.root / "ipam" / "tls.key").write_bytes((settings.root / "fabric" / "tls.key").read_bytes())
    (settings.root / "boot" / "machines.crt").write_bytes(b"half")
    assert make(settings) == ["ipam", "machine authority"]


def test_a_certificate_of_another_authority_is_replaced(settings: Settings, tmp_path: Path) -> None:
    make(settings)
    uri, dns, _ = names_of(settings.root / "ipam" / "tls.crt")
    Authority.create("stranger").issue("ipam", uri[0], dns).save(settings.root / "ipam", "tls")
    assert make(settings) == ["ipam"]


@pytest.mark.parametrize("lost", ["ca.crt", "ca.key"])
def test_an_authority_that_lost_a_file_is_not_replaced_by_a_new_one(settings: Settings, lost: str) -> None:
    make(settings)
    (settings.root / "authority" / lost).unlink()
    with pytest.raises(OSError, match="No such file"):
        make(settings)


def test_secrets_are_for_their_owner_only(settings: Settings) -> None:
    make(settings)
    for path in settings.root.rglob("*"):
        allowed = 0o700 if path.is_dir() else 0o644 if path.suffix == ".crt" else 0o600
        assert stat.S_IMODE(path.stat().st_mode) & ~allowed == 0, path


def test_the_authority_key_and_other_peoples_passwords_stay_out_of_a_services_folder(settings: Settings) -> None:
    make(settings)
    root = settings.root
    key = (root / "authority" / "ca.key").read_bytes()
    passwords = {path.name: path.read_bytes() for path in (root / "authority").glob("*.password")}
    assert len(passwords) == 2 * len(plane.WITH_DATABASE) + len(plane.SERVICES) + 1
    assert len(set(passwords.values())) == len(passwords)
    for name in plane.SERVICES:
        folder = b"".join(path.read_bytes() for path in (root / name).iterdir())
        assert key not in folder
        mine = {f"{server}-{name}.password" for server in ("postgres", "nats", "paging")}
        assert not [other for other, password in passwords.items() if other not in mine and password in folder]


def test_the_secrets_are_of_the_form_that_the_services_want(settings: Settings) -> None:
    make(settings)
    root = settings.root
    ring = KeyRing.parse(environment_of(root / "bmc")["METALPLANE_CREDENTIAL_KEYS"])
    assert ring.current == "k1"
    RamdiskTokens(environment_of(root / "boot")["METALPLANE_TOKEN_KEY"].encode(), clock=lambda: 0.0)
    assert not Authority.load(root / "boot", "machines").is_root
    assert OKPKey.import_key((root / "tenancy" / "token.pem").read_bytes()).is_private
    url = environment_of(root / "ipam")["METALPLANE_DATABASE_URL"]
    assert re.fullmatch(r"postgresql://ipam:[0-9a-f]{64}@postgres:5432/metalplane", url)
    assert "METALPLANE_DATABASE_URL" not in environment_of(root / "boot")


def test_a_further_partition_shares_the_key_ring_and_has_its_own_boot_secrets(
    settings: Settings, tmp_path: Path
) -> None:
    make(settings)
    other = settings.model_copy(update={"partition": "rack-b"})
    certificates = Certificates(other.root, other.lifetime)
    into = tmp_path / "partition"
    assert partition.set_up(other, certificates, into) == ["bmc", "boot", "machine authority"]
    assert partition.set_up(other, certificates, into) == []
    first, second = (environment_of(folder / "bmc") for folder in (settings.root, into))
    assert first == second
    first, second = (environment_of(folder / "boot") for folder in (settings.root, into))
    assert first["METALPLANE_NATS_URL"] == second["METALPLANE_NATS_URL"]
    assert first["METALPLANE_TOKEN_KEY"] != second["METALPLANE_TOKEN_KEY"]
    assert read_certificate((into / "boot" / "tls.crt").read_bytes()).caller.partition == "rack-b"
    assert (into / "boot" / "machines.key").read_bytes() != (settings.root / "boot" / "machines.key").read_bytes()


def test_a_further_partition_without_the_first_ones_key_ring_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(partition.NoPlane, match="metal-init plane"):
        partition.set_up(settings, Certificates(settings.root, settings.lifetime), tmp_path / "partition")
    assert not (tmp_path / "partition").exists()


def test_a_file_is_not_written_again_when_it_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    assert files.write_if_changed(path, b"1")
    stamp = path.stat().st_mtime_ns, path.stat().st_ino
    assert not files.write_if_changed(path, b"1")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == stamp
    assert files.write_if_changed(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
