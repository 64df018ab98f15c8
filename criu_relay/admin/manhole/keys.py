"""Who may enter the manhole, and who it is itself: keys of SSH."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.conch.error import ValidPublicKey
from twisted.conch.ssh.keys import BadKeyError, EncryptedKeyError, FingerprintFormats, Key
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import ISSHPrivateKey
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, execute
from twisted.logger import Logger
from zope.interface import implementer

from criu_relay.errors import Forbidden, Invalid, RelayError

LONGEST_FILE = 64 * 1024
"""Bytes of a file of keys: some hundred of the longest."""

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def host_key(path: Path) -> Key:
    """The daemon's own key, made on first use; the file is its owner's alone.

    @raise RelayError: it cannot be read or made.
    """
    try:
        if not path.exists():
            _make(path)
        return Key.fromFile(str(path))
    except (OSError, BadKeyError, EncryptedKeyError) as error:
        raise RelayError(f"host key {path}: {error}", hint="remove it to have another made") from error


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = Key(Ed25519PrivateKey.generate()).toString("openssh", subtype="v1")
    staged = path.with_suffix(".new")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)


def authorized_keys(path: Path) -> dict[bytes, str]:
    """The keys of a file as sshd(8) has them, AUTHORIZED_KEYS FILE FORMAT, but without options: blob -> fingerprint.

    @raise Invalid: it is not such a file.
    @raise Forbidden: others may write it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise Invalid(f"authorized keys {path}: {error.strerror}", hint="give a file of public keys") from error
    if status.st_mode & OTHERS_MAY_WRITE or status.st_uid not in (0, os.geteuid()):
        raise Forbidden(f"authorized keys {path}: others may write it", hint="chown it to the daemon's user; chmod 644")
    if len(data) > LONGEST_FILE:
        raise Invalid(f"authorized keys {path}: more than {LONGEST_FILE} bytes", hint="keep the keys that are in use")
    found = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            key = Key.fromString(line.strip(), type="public_openssh")
        except Exception as error:
            # What its parser raises depends on where a line goes wrong.
            hint = "give lines such as `ssh-ed25519 AAAA... name`, without options"
            raise Invalid(f"authorized keys {path}, line {number}: not a public key", hint=hint) from error
        found[key.blob()] = fingerprint(key)
    return found


def fingerprint(key: Key) -> str:
    """As ssh-keygen(1) -l shows it."""
    return "SHA256:" + str(key.fingerprint(FingerprintFormats.SHA256_BASE64)).rstrip("=")


@implementer(ICredentialsChecker)
class KeyChecker:
    """Lets in who has the private key of one that the file has now; under whatever user name.

    The avatar is called by the fingerprint of the key.
    """

    log = Logger()
    credentialInterfaces = (ISSHPrivateKey,)

    def __init__(self, path: Path) -> None:
        """@raise RelayError: see L{authorized_keys}."""
        self._path = path
        authorized_keys(path)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        """See L{ICredentialsChecker}."""
        return execute(self._check, credentials)

    def _check(self, credentials: Any) -> bytes | tuple[()]:
        try:
            known = authorized_keys(self._path).get(credentials.blob)
        except RelayError as error:
            self.log.error("manhole: {reason}", reason=error.line)
            known = None
        if known is None:
            raise UnauthorizedLogin("the key is not authorized")
        if credentials.signature is None:
            raise ValidPublicKey
        if not Key.fromString(credentials.blob, type="blob").verify(credentials.signature, credentials.sigData):
            raise UnauthorizedLogin("the signature is wrong")
        return known.encode("ascii")
