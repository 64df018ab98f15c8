"""The manhole's SSH server: public keys only, a shell and nothing else."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.conch.insults.insults import ServerProtocol
from twisted.conch.interfaces import IConchUser, ISession
from twisted.conch.manhole_ssh import ConchFactory, TerminalSession, TerminalUser
from twisted.conch.ssh.transport import SSHServerTransport
from twisted.cred.portal import IRealm, Portal
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay import __version__
from criu_relay.admin.inspected import IInspected
from criu_relay.admin.manhole.commands import Commands
from criu_relay.admin.manhole.keys import KeyChecker, host_key
from criu_relay.admin.manhole.shell import Shell

SESSIONS = 16
"""Connections at a time, those that have shown no key included."""

LOGIN_SECONDS = 30
"""Until a connection has shown a key; as sshd's LoginGraceTime, but shorter: there is nothing to type."""


class Session(TerminalSession):
    """A shell on one channel, with a terminal or without."""

    width, height = 80, 24
    shell: Shell | None = None
    shell_of: Callable[[], Shell]

    def openShell(self, proto: Any) -> None:
        """See L{twisted.conch.interfaces.ISession}."""
        self.shell = self.shell_of()
        self.shell.leave = lambda: proto.processEnded(Failure(ProcessDone(0)))
        server = ServerProtocol(lambda: self.shell)
        self.transportFactory(proto, server, IConchUser(self.original), self.width, self.height)

    def windowChanged(self, newWindowSize: Any) -> None:
        """Tables have 80 columns in any window."""

    def eofReceived(self) -> None:
        """The client sends no more."""
        if self.shell is not None:
            self.shell.eof()


@implementer(IRealm)
class Realm:
    """Gives everybody with a key a shell."""

    log = Logger()

    def __init__(self, control: IInspected, extra: dict[str, Any], clock: IReactorTime) -> None:
        self._control = control
        self._extra = extra
        self._clock = clock

    def requestAvatar(self, avatarId: bytes | tuple[()], mind: object, *interfaces: Any) -> tuple[Any, Any, Any]:
        """See L{IRealm}."""
        if IConchUser not in interfaces:
            raise NotImplementedError(f"not one of {interfaces}")
        fingerprint = bytes(avatarId).decode("ascii")
        self.log.info("manhole: {key} enters", key=fingerprint)
        parts = Componentized()
        user = TerminalUser(parts, fingerprint)
        session = Session(parts)
        session.shell_of = lambda: self._shell(fingerprint)
        parts.setComponent(IConchUser, user)
        parts.setComponent(ISession, session)
        return IConchUser, user, lambda: self.log.info("manhole: {key} leaves", key=fingerprint)

    def _shell(self, fingerprint: str) -> Shell:
        greeting = f"criu-relay-{self._control.role} {__version__} on {platform.node()}, pid {os.getpid()}"
        return Shell(Commands(self._control, fingerprint), greeting, self._extra, self._clock)


class Connection(SSHServerTransport):
    """One connection, which has so many seconds to show a key.

    @ivar clock: set by the factory.
    """

    clock: IReactorTime
    factory: ManholeFactory

    def connectionMade(self) -> None:
        """It is there."""
        super().connectionMade()
        self._patience = self.clock.callLater(LOGIN_SECONDS, self._too_late)

    def receiveError(self, reasonCode: int, description: bytes) -> None:
        """The client ends it: that is how every session ends, and no error."""

    def _too_late(self) -> None:
        if self.avatar is None:
            self.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """It is gone."""
        if self._patience.active():
            self._patience.cancel()
        self.factory.open -= 1
        super().connectionLost(reason)


class ManholeFactory(ConchFactory):
    """Makes the connections' protocols.

    @ivar open: how many connections there are.
    """

    noisy = False
    protocol = Connection

    def __init__(
        self, control: IInspected, keys: Path, state: Path, extra: dict[str, Any], clock: IReactorTime
    ) -> None:
        """
        @param keys: file of the public keys that may enter.
        @param state: directory for the host key.
        @param extra: what else has a name at the prompt.
        @raise RelayError: a key cannot be read.
        """
        super().__init__(Portal(Realm(control, extra, clock), [KeyChecker(keys)]))
        key = host_key(state / f"{control.role}_host_key")
        kind: Any = key.sshType()
        own: Any = key
        self.publicKeys = {kind: own.public()}
        self.privateKeys = {kind: own}
        self.open = 0
        self._clock = clock

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A protocol; None: there are too many connections."""
        if self.open >= SESSIONS:
            return None
        made: Any = super().buildProtocol(addr)
        made.clock = self._clock
        self.open += 1
        return made
