"""`criu-relay make-certs`: a CA of one's own and certificates from it, for a first try."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from criu_relay.errors import Conflict, Invalid, NotFound, RelayError
from criu_relay.wire.names import host_name, is_address

AUTHORITY = "ca"
"""The name of the CA's files."""

KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644
DIRECTORY_MODE = 0o700

AUTHORITY_TIME = datetime.timedelta(days=3650)
CERTIFICATE_TIME = datetime.timedelta(days=365)

SKEW = datetime.timedelta(hours=1)
"""The clocks of two hosts may differ: certificates are valid this long before they are made."""

COMMON_NAME = 64
"""Characters in a common name (ub-common-name, RFC 5280); what counts is the subjectAltName."""


@dataclass(frozen=True)
class Authority:
    """A CA and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(directory: Path, names: Sequence[str]) -> list[Path]:
    """Write a certificate with its key for each name, and before them the CA when there is none.

    @param names: DNS names or IP addresses.
    @return: the files written.
    @raise RelayError: a name is wrong or is there already, or a file cannot be read or written. Names that are wrong
        or there already are found before anything is written; what was written before another error is removed.
    """
    checked = list(dict.fromkeys(host_name(name, "NAME") for name in names))
    with _whole_or_nothing() as begun:
        _make_directory(directory, begun)
        for name in checked:
            _absent(directory, name)
        authority, written = _authority(directory, begun)
        for name in checked:
            key = ec.generate_private_key(ec.SECP256R1())
            written += _write(directory, name, _certificate(authority, name, key.public_key()), key, begun)
    return written


@contextlib.contextmanager
def _whole_or_nothing() -> Iterator[list[Path]]:
    """A list for the files and directories that are begun; they are removed when the block ends with an error.

    @raise RelayError: in place of an OSError.
    """
    begun: list[Path] = []
    try:
        yield begun
    except BaseException as error:
        for path in reversed(begun):
            # What cannot be removed is found by the next run; why there is one is said below.
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            hint = "give a directory that can be written, and has room"
            raise RelayError(f"{error.filename}: {error.strerror}", hint=hint) from error
        raise


def _make_directory(directory: Path, begun: list[Path]) -> None:
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            path.mkdir(mode=DIRECTORY_MODE if path == directory else 0o777)
            begun.append(path)


def _absent(directory: Path, name: str) -> None:
    if name == AUTHORITY:
        raise Invalid(f"{AUTHORITY} is the name of the CA's own files", hint="give another NAME")
    for path in _files(directory, name):
        if path.exists():
            raise Conflict(f"{path} is there already", hint="remove it to make a new one, or give another NAME")


def _files(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.crt", directory / f"{name}.key"


def _authority(directory: Path, begun: list[Path]) -> tuple[Authority, list[Path]]:
    """The CA of a directory, and the files that were written for it."""
    certificate, key = _files(directory, AUTHORITY)
    if certificate.exists() or key.exists():
        return _stored(certificate, key), []
    made = _new_authority()
    return made, _write(directory, AUTHORITY, made.certificate, made.key, begun)


def _stored(certificate: Path, key: Path) -> Authority:
    for one, other in ((certificate, key), (key, certificate)):
        if not one.exists():
            hint = f"put {one.name} back for as long as this takes, or give another DIR"
            raise NotFound(f"there is {other}, but no {one}", hint=hint)
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = load_pem_private_key(key.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise Invalid(f"{certificate} and {key} are no CA", hint="remove both, or give another DIR") from error
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.public_key() != found.public_key():
        raise Invalid(f"{key} is not the key of {certificate}", hint="remove both, or give another DIR")
    return Authority(found, secret)


def _new_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(f"criu-relay CA {secrets.token_hex(4)}")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _begun(name, name, key.public_key(), AUTHORITY_TIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )
    return Authority(certificate, key)


def _certificate(authority: Authority, name: str, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
    own = x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        _begun(_subject(name), authority.certificate.subject, public, CERTIFICATE_TIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([own]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority.key, SHA256())
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME])])


def _begun(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, lasts: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _write(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, begun: list[Path]
) -> list[Path]:
    public, private = _files(directory, name)
    _create(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), KEY_MODE, begun)
    _create(public, certificate.public_bytes(Encoding.PEM), CERTIFICATE_MODE, begun)
    return [public, private]


def _create(path: Path, data: bytes, mode: int, begun: list[Path]) -> None:
    """A new file, never one that is there."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            begun.append(path)
            file.write(data)
    except OSError as error:
        # One of a descriptor does not say where.
        error.filename = str(path)
        raise
