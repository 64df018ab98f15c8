"""`criu-relay make-certs`: what it writes, what it keeps, and that OpenSSL takes it."""

from __future__ import annotations

import ipaddress
import os
import resource
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from criu_relay.admin.certificates import AUTHORITY_TIME, CERTIFICATE_TIME, SKEW, make
from criu_relay.errors import Conflict, Invalid, RelayError
from criu_relay.link.credentials import Credentials, Files


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names(path: Path) -> list[Any]:
    found = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name.value for name in found]


def test_what_it_writes(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "certs"
    written = make(directory, ["Node-A", "192.0.2.7", "2001:db8::7"])
    expected = [f"{name}.{end}" for name in ("ca", "node-a", "192.0.2.7", "2001:db8::7") for end in ("crt", "key")]
    assert [path.name for path in written] == expected
    assert sorted(contents(directory)) == sorted(expected)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    assert names(directory / "node-a.crt") == ["node-a"]
    assert names(directory / "192.0.2.7.crt") == [ipaddress.ip_address("192.0.2.7")]
    assert names(directory / "2001:db8::7.crt") == [ipaddress.ip_address("2001:db8::7")]


def test_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make(tmp_path / "certs", ["a"])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "certs" / "a.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "certs" / "ca.key").stat().st_mode) == 0o600


def test_extensions(tmp_path: Path) -> None:
    make(tmp_path, ["a"])
    authority, own = certificate(tmp_path / "ca.crt"), certificate(tmp_path / "a.crt")
    own.verify_directly_issued_by(authority)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca
    usage = own.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    for made, lasts in ((authority, AUTHORITY_TIME), (own, CERTIFICATE_TIME)):
        assert made.not_valid_after_utc - made.not_valid_before_utc == lasts + SKEW


def test_openssl_takes_them(tmp_path: Path) -> None:
    make(tmp_path, ["a.example"])
    program = shutil.which("openssl")
    assert program, "install openssl"
    files = ["-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "a.example.crt")]
    for purpose in ("sslclient", "sslserver"):
        done = subprocess.run(
            [program, "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", "a.example", *files],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_our_own_daemons_take_them(tmp_path: Path) -> None:
    make(tmp_path, ["x" * 63 + "." + "y" * 63 + ".example"])
    [own] = tmp_path.glob("x*.crt")
    Credentials(Files(own, own.with_suffix(".key"), tmp_path / "ca.crt"), (), True).load()


def test_a_ca_that_is_there_is_kept(tmp_path: Path) -> None:
    make(tmp_path, ["a"])
    before = contents(tmp_path)
    assert [path.name for path in make(tmp_path, ["b", "b"])] == ["b.crt", "b.key"]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    certificate(tmp_path / "b.crt").verify_directly_issued_by(certificate(tmp_path / "ca.crt"))


@pytest.mark.parametrize("there", ["b.crt", "b.key"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    make(tmp_path, ["a"])
    (tmp_path / there).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(Conflict, match="is there already"):
        make(tmp_path, ["c", "b"])
    assert contents(tmp_path) == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    make(tmp_path, ["a"])
    target = tmp_path / "target"
    (tmp_path / "b.key").symlink_to(target)
    with pytest.raises(RelayError):
        make(tmp_path, ["b"])
    assert not target.exists()


@pytest.mark.parametrize("name", ["ca", "CA", "../x", "a/b", "", "*", "a b"])
def test_wrong_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        make(tmp_path / "certs", ["a", name])
    assert not list((tmp_path).rglob("*.*"))


@pytest.mark.parametrize("broken", ["ca.crt", "ca.key"])
@pytest.mark.parametrize("how", ["missing", "garbage", "another"])
def test_half_a_ca(tmp_path: Path, broken: str, how: str) -> None:
    directory = tmp_path / "certs"
    make(directory, ["a"])
    if how == "missing":
        (directory / broken).unlink()
    elif how == "garbage":
        (directory / broken).write_text("-----BEGIN")
    else:
        make(tmp_path / "other", ["a"])
        shutil.copy(tmp_path / "other" / broken, directory / broken)
    before = contents(directory)
    with pytest.raises(RelayError, match=r"ca\.(crt|key)"):
        make(directory, ["b"])
    assert contents(directory) == before


@pytest.mark.parametrize(
    ("most", "there", "what"),
    [(0, False, "ca.key"), (300, False, "ca.crt"), (0, True, "b.key"), (300, True, "b.crt")],
)
def test_no_space_leaves_nothing(tmp_path: Path, most: int, there: bool, what: str) -> None:
    """A key has some 240 bytes, a certificate more than 500."""
    directory = tmp_path / "new" / "certs"
    if there:
        make(directory, ["a"])
    before = contents(directory) if there else {}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(RelayError) as caught:
            make(directory, ["b", "c"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    hint = "give a directory that can be written, and has room"
    assert caught.value.line == f"{directory / what}: File too large: {hint}"
    assert (tmp_path / "new").exists() is there
    assert not there or contents(directory) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_ca_of_which_half_is_kept_elsewhere(tmp_path: Path, name: str) -> None:
    make(tmp_path, ["a"])
    (tmp_path / name).unlink()
    with pytest.raises(RelayError) as caught:
        make(tmp_path, ["b"])
    assert caught.value.reason.endswith(f"but no {tmp_path / name}")
    assert caught.value.hint == f"put {name} back for as long as this takes, or give another DIR"


def test_the_command(world: Any, tmp_path: Path) -> None:
    """It needs no daemon, and says what it wrote."""
    directory = tmp_path / "certs"
    ran = world.command("make-certs", str(directory), "node-a", "10.0.0.1")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.split() == [
        str(directory / f"{name}.{end}") for name in ("ca", "node-a", "10.0.0.1") for end in ("crt", "key")
    ]
    again = world.command("make-certs", str(directory), "node-a")
    assert again.code == 1
    assert again.err.count("\n") == 1
    assert "node-a.crt is there already: remove it" in again.err
    assert world.command("make-certs", str(directory)).code == 2
    (tmp_path / "file").write_text("")
    assert world.command("make-certs", str(tmp_path / "file"), "x").code == 1
