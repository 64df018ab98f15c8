"""Certificates for the rows with TLS: an authority, one for the cache and one for the proxy."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bench.measure import Skipped
from bench.stage import Stage
from criu_relay.options import ProxyOptions

DAY = datetime.timedelta(days=1)
PROXY = "proxy"
CACHE = "127.0.0.1"


@dataclass(frozen=True)
class Identity:
    """Files of one peer, PEM."""

    certificate: Path
    key: Path
    authority: Path

    @property
    def files(self) -> tuple[str, str, str]:
        """Certificate, key, authority."""
        return str(self.certificate), str(self.key), str(self.authority)

    def options(self, peer: str) -> list[str]:
        """What a daemon is told.

        @param peer: the name that it expects.
        """
        certificate, key, authority = self.files
        return ["--tls-cert", certificate, "--tls-key", key, "--tls-ca", authority, "--tls-peer", peer]


def _signed(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey) -> bytes:
    now = datetime.datetime.now(datetime.UTC)

    def named(value: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value)])

    own = x509.IPAddress(ipaddress.ip_address(name)) if name == CACHE else x509.DNSName(name)
    builder = (
        x509.CertificateBuilder(named(issuer), named(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectAlternativeName([own]), critical=False)
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def identities(stage: Stage) -> tuple[Identity, Identity]:
    """Proxy and cache.

    @raise Skipped: the daemons have no TLS.
    """
    if "tls-cert=" not in ProxyOptions().longOpt:
        raise Skipped("no TLS in this build")
    folder = stage.new_folder("certificates")
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = folder / "authority.pem"
    authority.write_bytes(_signed("authority", authority_key, "authority", authority_key))
    made = []
    for name in (PROXY, CACHE):
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(folder / f"{name}.pem", folder / f"{name}.key", authority)
        identity.certificate.write_bytes(_signed(name, key, "authority", authority_key))
        identity.key.touch(0o600)
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        made.append(identity)
    return made[0], made[1]


def daemon_options(proxy: Identity, cache: Identity) -> tuple[list[str], list[str]]:
    """The options of both daemons."""
    return proxy.options(CACHE), cache.options(PROXY)
