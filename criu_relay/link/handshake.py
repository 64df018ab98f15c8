"""One TLS handshake: who may be at the other end, and why somebody may not."""

from __future__ import annotations

import weakref

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from criu_relay.errors import Forbidden, LinkLost, ProtocolError, RelayError
from criu_relay.wire.names import MAX_HOST, is_address

NAMES_SHOWN = 4
"""A certificate may have any number of names; a line of a log has room for a few."""

_VERIFICATION = {
    SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED: "it has expired",
    SSL.X509VerificationCodes.ERR_CERT_NOT_YET_VALID: "it is not valid yet",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT: "it is from a CA that --tls-ca does not have",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "it is from a CA that --tls-ca does not have",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "it is from a CA that --tls-ca does not have",
    SSL.X509VerificationCodes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "it is from a CA that --tls-ca does not have",
    SSL.X509VerificationCodes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is signed by nobody but itself",
    SSL.X509VerificationCodes.ERR_CERT_SIGNATURE_FAILURE: "its signature is not of a CA in --tls-ca",
    SSL.X509VerificationCodes.ERR_INVALID_PURPOSE: "its extended key usage does not allow this side of a link",
    SSL.X509VerificationCodes.ERR_INVALID_CA: "it is signed by one that is no CA",
}
"""What OpenSSL finds (X509_STORE_CTX_get_error(3)), in words."""

_NO_TLS = {"wrong version number", "bad record type", "packet length too long", "http request", "https proxy request"}
"""OpenSSL's reasons when what comes is no TLS."""

_NO_VERSION = {"unsupported protocol", "tlsv1 alert protocol version", "no protocols available"}

_NO_CERTIFICATE = {"peer did not return a certificate"}


class Handshake:
    """For one connection.

    @ivar session: pyOpenSSL's connection, on memory, its side chosen.
    @ivar client: our side begins.
    @ivar peer: the name that the peer has shown to be its own; empty until then.
    """

    def __init__(self, context: SSL.Context, client: bool, names: tuple[str, ...]) -> None:
        """
        @param context: with certificate, key and CA, and L{verify}.
        @param names: the peer's certificate must carry one of these; empty: any name will do.
        """
        self.client = client
        self.peer = ""
        self._names = names
        self._refusal = ""
        self.session = SSL.Connection(context, None)
        _OF_SESSION[self.session] = weakref.ref(self)
        if client:
            self.session.set_connect_state()
        else:
            self.session.set_accept_state()

    def explain(self, error: BaseException | None) -> RelayError:
        """Why the handshake, or what came after it, failed.

        @param error: None: the peer ended the connection.
        """
        if self._refusal:
            return Forbidden(f"the peer's certificate is refused: {self._refusal}")
        if not isinstance(error, SSL.Error) or isinstance(error, SSL.SysCallError):
            why = getattr(error, "strerror", None) or "it closed the connection"
            return LinkLost(f"the peer gave the TLS handshake up: {why}")
        reasons = [entry[2] for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
        found = set(reasons)
        if found & _NO_TLS:
            return ProtocolError("the peer does not speak TLS: give it --tls-cert, --tls-key and --tls-ca as well")
        if found & _NO_VERSION:
            return ProtocolError("the peer does not speak TLS 1.3, and nothing older is safe enough")
        if found & _NO_CERTIFICATE:
            return Forbidden("the peer shows no certificate: give it --tls-cert and --tls-key")
        shown = ", ".join(reasons) or "no reason given"
        if any("alert" in reason for reason in reasons):
            return Forbidden(f"the peer refuses our certificate or our TLS, its log says why: {shown}")
        return ProtocolError(f"TLS failed: {shown}")

    def verified(self, found: crypto.X509, error: int, depth: int, well: bool) -> bool:
        """Whether to go on with a certificate; see L{verify}."""
        if not well:
            what = "it" if depth == 0 else "a CA of it"
            self._refusal = self._refusal or _VERIFICATION.get(error, f"OpenSSL's code for {what} is {error}")
            return False
        if depth == 0:
            try:
                self._accept(found.to_cryptography())
            except ValueError:
                self._refusal = "it cannot be read"
        return not self._refusal

    def _accept(self, certificate: x509.Certificate) -> None:
        """Chain and validity are right: look at what it is for and whose it is.

        @raise ValueError: it has something that cannot be read.
        """
        if not _may_sign(certificate.extensions):
            self._refusal = "its key usage does not allow signatures"
            return
        carried = _names_of(certificate.extensions)
        self.peer = next((name for name in self._names or carried[:1] if carries(certificate, name)), "")
        if not self.peer:
            shown = ", ".join(carried[:NAMES_SHOWN]) or "no DNS name and no address as subjectAltName"
            self._refusal = f"it has {shown}; --tls-peer and --link allow {', '.join(self._names) or 'any'}"


def verify(session: SSL.Connection, found: crypto.X509, error: int, depth: int, well: int) -> bool:
    """OpenSSL asks for each certificate of a chain, the peer's own last (SSL_CTX_set_verify(3)).

    @param error: what OpenSSL has against it.
    @param depth: 0: the peer's own.
    @param well: OpenSSL has nothing against it.
    """
    handshake = _OF_SESSION[session]()
    return handshake is not None and handshake.verified(found, error, depth, bool(well))


_OF_SESSION: weakref.WeakKeyDictionary[SSL.Connection, weakref.ref[Handshake]] = weakref.WeakKeyDictionary()
"""OpenSSL names the session only, and the data that one can attach to it is Twisted's."""


def carries(certificate: x509.Certificate, name: str) -> bool:
    """Whether C{name} (L{host_name}) is among the certificate's subjectAltNames, where a DNS name may be a pattern.

    @raise ValueError: it is the pattern itself, or the certificate cannot be read.
    """
    check = verify_certificate_ip_address if is_address(name) else verify_certificate_hostname
    try:
        check(certificate, name)
    except (VerificationError, CertificateError):
        return False
    return True


def _may_sign(extensions: x509.Extensions) -> bool:
    """TLS 1.3 proves the possession of a key by a signature; OpenSSL does not look at the key usage for it."""
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        return True


def _names_of(extensions: x509.Extensions) -> list[str]:
    """DNS names and addresses that a log can show, in the certificate's order."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    carried = [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
    return [name for name in carried if name.isprintable() and len(name) <= MAX_HOST]
