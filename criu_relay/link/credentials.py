"""What a daemon shows of itself under TLS and whom it believes: three files, read again when they change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.logger import Logger

from criu_relay.errors import Invalid
from criu_relay.link.handshake import Handshake, verify

PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_CTX_set_mode(3): with it OpenSSL takes one record of what it is given."""

LARGEST_FILE = 1 << 20
"""Bytes in a PEM file: several hundred certificates; what is larger is something else."""

T = TypeVar("T")

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Files:
    """Where they are, as PEM.

    @ivar certificate: ours, and behind it those between it and the CA.
    @ivar key: of the first of them, without a passphrase.
    @ivar authorities: whoever has a certificate from one of these is believed.
    """

    certificate: Path
    key: Path
    authorities: Path


def new_context(
    chain: list[x509.Certificate], key: PrivateKeyTypes, authorities: list[x509.Certificate]
) -> SSL.Context:
    """What connections are made from. Nobody can resume a session of it: each peer is verified anew.

    @raise SSL.Error: OpenSSL does not take the certificate or the key.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.clear_mode(PARTIAL_WRITE)
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)  # type: ignore[arg-type]
    context.check_privatekey()
    store = context.get_cert_store()
    assert store is not None
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for certificate in authorities:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
    return context


class Credentials:
    """The files of one daemon, and whom it lets in.

    @ivar names: a peer's certificate must carry one of these; empty: any name will do.
    @ivar client: our side begins the handshake.
    """

    log = Logger()

    def __init__(self, files: Files, names: tuple[str, ...], client: bool) -> None:
        self.names = names
        self.client = client
        self._files = files
        self._stamp: Stamp | None = None
        self._context: SSL.Context | None = None

    def load(self) -> None:
        """Read them, for the first time.

        @raise Invalid: one cannot be used; it says which and what to do.
        """
        self._stamp = self._look()
        self._context = self._read()
        if not self.names:
            self.log.warn("there is no --tls-peer: whoever has a certificate from --tls-ca is let in")

    def refresh(self, force: bool = False) -> None:
        """Read them again when one has changed; when that fails the old ones stay in use.

        @param force: whether they have changed or not.
        """
        stamp = self._look()
        if stamp == self._stamp and not force:
            return
        self._stamp = stamp
        try:
            self._context = self._read()
        except Invalid as error:
            self.log.error("the certificates of before stay in use: {reason}", reason=error.line)
        else:
            self.log.info("the certificates were read again")

    def handshake(self) -> Handshake:
        """For one new connection, with the files as they are now."""
        self.refresh()
        assert self._context is not None
        return Handshake(self._context, self.client, self.names)

    def _look(self) -> Stamp:
        return tuple(_stamp(path) for path in (self._files.certificate, self._files.key, self._files.authorities))

    def _read(self) -> SSL.Context:
        files = self._files
        chain = _parsed(files.certificate, "--tls-cert", "certificates in PEM", x509.load_pem_x509_certificates)
        authorities = _parsed(files.authorities, "--tls-ca", "certificates in PEM", x509.load_pem_x509_certificates)
        key = _parsed(
            files.key,
            "--tls-key",
            "a private key in PEM without a passphrase",
            lambda data: load_pem_private_key(data, None),
        )
        try:
            return new_context(chain, key, authorities)
        except (SSL.Error, crypto.Error, TypeError) as error:
            raise Invalid(
                f"--tls-key {files.key} is not the key of --tls-cert {files.certificate}, or OpenSSL refuses them: "
                f"{_openssl(error)}",
                hint="give a certificate and the key that it was made for",
            ) from error


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _parsed(path: Path, option: str, what: str, parse: Callable[[bytes], T]) -> T:
    hint = f"give a file with {what}, such as criu-relay make-certs writes"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE)
    except OSError as error:
        raise Invalid(f"{option} {path}: {error.strerror}", hint=hint) from error
    try:
        return parse(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Invalid(f"{option} {path} has none of what it must have", hint=hint) from error


def _openssl(error: Exception) -> str:
    """The reasons in an error of pyOpenSSL."""
    found = error.args[0] if error.args else ""
    return ", ".join(entry[2] for entry in found) if isinstance(found, list) else str(found)
