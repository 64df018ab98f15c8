"""Certificates for tests, right ones and wrong ones; and what a daemon is told of them."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from criu_relay.link.credentials import Credentials, Files

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Shown:
    """What one side is given: the files of its certificate and key, and of the CA that it believes."""

    certificate: Path
    key: Path
    authorities: Path

    def options(self, *peers: str) -> list[str]:
        """For either daemon."""
        files = ["--tls-cert", self.certificate, "--tls-key", self.key, "--tls-ca", self.authorities]
        return [str(part) for part in files] + [part for peer in peers for part in ("--tls-peer", peer)]

    def credentials(self, client: bool, *peers: str) -> Credentials:
        """Loaded."""
        made = Credentials(Files(self.certificate, self.key, self.authorities), peers, client)
        made.load()
        return made


class Authority:
    """A CA whose files lie in a directory.

    @ivar path: of its certificate.
    """

    def __init__(self, directory: Path, name: str = "ca", issuer: Authority | None = None) -> None:
        """@param issuer: None: it signs itself."""
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        signer, key = (issuer.name, issuer.key) if issuer else (self.name, self.key)
        builder = _begun(self.name, signer, self.key, -DAY, DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(key, SHA256())
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        names: Sequence[str] | None = None,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = DAY,
        purposes: Sequence[x509.ObjectIdentifier] | None = (CLIENT, SERVER),
        may_sign: bool = True,
        file: str = "",
        chain: Sequence[Authority] = (),
        believes: Authority | None = None,
    ) -> Shown:
        """A certificate with its key.

        @param name: its common name.
        @param names: its subjectAltNames; None: C{name}; empty: it has none.
        @param begins: from now.
        @param purposes: of the extended key usage; None: it has none.
        @param file: the files' name, without its end; C{name} when empty.
        @param chain: CAs whose certificates lie behind it in the file.
        @param believes: the CA that its owner believes; this one when None.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _begun(_name(name), self.name, key, begins, ends)
        carried = [name] if names is None else names
        if carried:
            builder = builder.add_extension(x509.SubjectAlternativeName([_carried(one) for one in carried]), False)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
        usage = x509.KeyUsage(may_sign, False, True, False, True, False, False, False, False)
        certificate = builder.add_extension(usage, True).sign(self.key, SHA256())
        stem = self.directory / (file or name)
        shown = Shown(stem.with_name(f"{stem.name}.crt"), stem.with_name(f"{stem.name}.key"), (believes or self).path)
        parts = [certificate, *(authority.certificate for authority in chain)]
        shown.certificate.write_bytes(b"".join(part.public_bytes(Encoding.PEM) for part in parts))
        shown.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return shown


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _carried(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begins: datetime.timedelta,
    ends: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now + begins,
        not_valid_after=now + ends,
    )
