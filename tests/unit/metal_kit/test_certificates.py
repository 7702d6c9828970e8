"""The authority and what is read from certificates."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.errors import InvalidArgument, Unauthenticated
from metal_kit.identity import ANONYMOUS, Caller
from metal_kit.tls import Identity, PeerCertificates, read_certificate

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority.create("test")


def _request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, common: str = "wish") -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    wish = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.service_id("allocation"))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(wish, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_an_authority_reads_back_and_its_key_is_for_its_owner_only(root: Authority, tmp_path: Path) -> None:
    root.save(tmp_path / "pki")
    assert stat.S_IMODE((tmp_path / "pki" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    again = Authority.load(tmp_path / "pki")
    assert again.cert == root.cert
    leaf = x509.load_pem_x509_certificate(again.issue("a", identity.service_id("a")).cert)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(root.cert))


def test_a_key_of_another_authority_is_noticed(root: Authority, tmp_path: Path) -> None:
    root.save(tmp_path)
    Authority.create("other").issue("x", "spiffe://metalplane/service/x").save(tmp_path, "other")
    (tmp_path / "other.key").replace(tmp_path / "ca.key")
    with pytest.raises(ValueError, match="does not belong"):
        Authority.load(tmp_path)


def test_a_certificate_has_its_names_and_its_lifetime(root: Authority) -> None:
    issued = root.issue("ipam", identity.service_id("ipam"), ["ipam.metalplane"], ["127.0.0.1"], timedelta(hours=1))
    leaf = x509.load_pem_x509_certificate(issued.cert)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ipam.metalplane"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity.service_id("ipam")]
    assert leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=1)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH in usage
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert b"PRIVATE" not in repr(issued).encode()


def test_a_certificate_without_a_name_to_be_found_by_cannot_serve(root: Authority) -> None:
    leaf = x509.load_pem_x509_certificate(root.issue("m", identity.machine_id(MACHINE)).cert)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_request_gives_its_key_and_none_of_its_wishes(root: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    intermediate = root.machine_intermediate("boot p1")
    chain = intermediate.sign_request(_request(key), "m", identity.machine_id(MACHINE), timedelta(minutes=10))
    leaf, issuer = x509.load_pem_x509_certificates(chain)
    assert leaf.public_key() == key.public_key()
    leaf.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(x509.load_pem_x509_certificate(root.cert))
    assert read_certificate(chain).caller == Caller("machine", MACHINE, machine=MACHINE)
    assert issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


@pytest.mark.parametrize("kind", ["garbage", "rsa", "p384", "tampered"])
def test_a_request_that_does_not_hold_is_refused_by_its_field(root: Authority, kind: str) -> None:
    if kind == "garbage":
        csr = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    elif kind == "rsa":
        csr = _request(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    elif kind == "p384":
        csr = _request(ec.generate_private_key(ec.SECP384R1()))
    else:
        der = x509.load_pem_x509_csr(_request(ec.generate_private_key(ec.SECP256R1()))).public_bytes(
            serialization.Encoding.DER
        )
        request = x509.load_der_x509_csr(der.replace(b"wish", b"lies"))
        csr = request.public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InvalidArgument) as caught:
        root.sign_request(csr, "m", identity.machine_id(MACHINE), timedelta(minutes=10))
    assert caught.value.field == "csr"


def test_the_machine_authority_names_machines_only(root: Authority) -> None:
    intermediate = root.machine_intermediate("boot p1")
    with pytest.raises(Unauthenticated) as caught:
        read_certificate(intermediate.issue("x", identity.service_id("ipam")).cert)
    assert caught.value.reason == "CERTIFICATE_WRONG_ISSUER"


def test_two_identities_in_one_certificate_are_none(root: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "two")])
    uris = [x509.UniformResourceIdentifier(identity.service_id(each)) for each in ("ipam", "boot")]
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(hours=1))
    for names in ([uris[0], uris[1]], [x509.DNSName("a")]):
        both = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
        with pytest.raises(Unauthenticated):
            read_certificate(both.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(Unauthenticated):
        read_certificate(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def test_a_peer_is_known_by_its_certificate_until_that_ends(root: Authority) -> None:
    peers = PeerCertificates()
    assert peers.caller({}) is ANONYMOUS
    good = root.issue("a", identity.service_id("a")).cert
    assert peers.caller({"x509_pem_cert": [good]}) is peers.caller({"x509_pem_cert": [bytes(bytearray(good))]})
    old = root.issue("a", identity.service_id("a"), ttl=timedelta(seconds=-1)).cert
    with pytest.raises(Unauthenticated) as caught:
        peers.caller({"x509_pem_cert": [old]})
    assert caught.value.reason == "CERTIFICATE_EXPIRED"


def test_a_foreign_signature_is_not_ours(root: Authority) -> None:
    leaf = x509.load_pem_x509_certificate(Authority.create("test").issue("a", identity.service_id("a")).cert)
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(root.cert))


def test_the_stamp_of_an_identity_changes_with_its_files(root: Authority, tmp_path: Path) -> None:
    root.save(tmp_path)
    cert, key = root.issue("a", identity.service_id("a")).save(tmp_path, "a")
    files = Identity(tmp_path / "ca.crt", cert, key)
    before = files.stamp()
    root.issue("a", identity.service_id("a")).save(tmp_path, "a")
    assert files.stamp() != before
    assert not list(tmp_path.glob(".*")), "a temporary file was left behind"
