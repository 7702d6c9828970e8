"""Another authority for the plane: three steps, in order, each of which survives a crash."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from metal_init import handout, plane
from metal_init.certificates import Certificates
from metal_init.rollover import OutOfOrder, Step, take
from metal_init.settings import Settings
from metal_kit.ca import Authority


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path / "secrets")


def _init(settings: Settings) -> tuple[list[str], int]:
    """Run `metal-init plane`: what was issued, and how many authorities everybody trusts."""
    issued = plane.set_up(settings, Certificates(settings.root, settings.lifetime))
    bundles = {(settings.root / name / "ca.crt").read_bytes() for name in (*plane.SERVICES, "edge", "nats")}
    assert len(bundles) == 1
    return issued, len(x509.load_pem_x509_certificates(bundles.pop()))


def _signed_by(settings: Settings) -> Authority:
    return Authority.load(settings.root / "authority")


def test_first_all_trust_both_then_the_new_one_signs_then_the_old_one_is_forgotten(settings: Settings) -> None:
    everything = len(_init(settings)[0])
    old = _signed_by(settings)
    take(Step.NEXT, settings.root)
    assert _init(settings) == ([], 2)
    assert _signed_by(settings).cert == old.cert
    take(Step.SWITCH, settings.root)
    issued, trusted = _init(settings)
    assert (len(issued), trusted) == (everything, 2)
    new = _signed_by(settings)
    assert new.cert != old.cert
    leaf = x509.load_pem_x509_certificate((settings.root / "ipam" / "tls.crt").read_bytes())
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(new.cert))
    archive = handout.client(Certificates(settings.root, settings.lifetime), "anna")
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        bundle = content.extractfile("ca.crt")
        assert bundle is not None
        assert set(bundle.read().split(b"-----END CERTIFICATE-----\n")) == {
            *new.cert.split(b"-----END CERTIFICATE-----\n"), *old.cert.split(b"-----END CERTIFICATE-----\n")
        }  # fmt: skip
    take(Step.RETIRE, settings.root)
    assert _init(settings) == ([], 1)
    assert (settings.root / "ipam" / "ca.crt").read_bytes() == new.cert
    take(Step.NEXT, settings.root)
    assert _init(settings) == ([], 2)


@pytest.mark.parametrize(
    ("before", "step", "said"),
    [
        ([], Step.SWITCH, "authority next"),
        ([], Step.RETIRE, "authority next"),
        ([Step.NEXT], Step.RETIRE, "switch"),
        ([Step.NEXT, Step.SWITCH], Step.NEXT, "authority retire"),
        ([Step.NEXT, Step.SWITCH], Step.SWITCH, "authority next"),
    ],
)
def test_a_step_out_of_order_changes_nothing_and_says_which_is_next(
    settings: Settings, before: list[Step], step: Step, said: str
) -> None:
    _init(settings)
    for each in before:
        take(each, settings.root)
    folder = settings.root / "authority"
    files = {path: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(OutOfOrder, match=said):
        take(step, settings.root)
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == files


def test_asking_for_the_next_one_twice_makes_one(settings: Settings) -> None:
    _init(settings)
    take(Step.NEXT, settings.root)
    first = (settings.root / "authority" / "next.crt").read_bytes()
    take(Step.NEXT, settings.root)
    assert (settings.root / "authority" / "next.crt").read_bytes() == first


@pytest.mark.parametrize("steps", range(6))
def test_a_switch_that_is_cut_off_anywhere_is_finished_by_doing_it_again(
    settings: Settings, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _init(settings)
    folder = settings.root / "authority"
    old = _signed_by(settings).cert
    take(Step.NEXT, settings.root)
    new = (folder / "next.crt").read_bytes()
    left = steps

    def dies(original: object) -> object:
        def call(*arguments: object, **named: object) -> object:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return original(*arguments, **named)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(Path, name, dies(getattr(Path, name)))
        with contextlib.suppress(KeyboardInterrupt):
            take(Step.SWITCH, settings.root)
    if (folder / "next.crt").exists():
        take(Step.SWITCH, settings.root)
    assert _signed_by(settings).cert == new
    assert (folder / "previous.crt").read_bytes() == old
    assert _init(settings)[1] == 2
    take(Step.RETIRE, settings.root)
    take(Step.NEXT, settings.root)
    assert _init(settings)[1] == 2
