"""Where the control API and what else is asked over HTTP or SSH listens."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from criu_relay.errors import Conflict, Forbidden, Invalid, RelayError
from criu_relay.flow.unix_listener import UnixListener, inherited_listener
from criu_relay.values import server_address

#: Whoever reaches the API commands the daemon: the directory of its socket, when we make it, is the owner's alone.
DIRECTORY_MODE = 0o700

#: The proxy and the cache of one machine may be started in the same moment, and have their sockets in one directory. It
#: is when a daemon starts that this blocks, so that nobody waits for it.
START_SECONDS = 5.0

KINDS = ("unix", "tcp", "tcp6", "systemd")


def listen_control(
    reactor: Any, endpoint: str, site: IProtocolFactory, option: str = "control", for_everyone: bool = False
) -> Deferred[IListeningPort]:
    """Listen.

    @param endpoint: C{unix:PATH}, whose directory is made when it does not exist, or a C{tcp:}, C{tcp6:} or C{systemd:}
        endpoint.
    @param option: that it was given with, for errors.
    @param for_everyone: other machines may reach it; otherwise its address must be loopback.
    @return: fires with the port. Errs with L{RelayError} when it cannot be.
    """
    found: Deferred[IListeningPort] = Deferred.fromCoroutine(
        _listen(reactor, endpoint, site, f"{option} endpoint {endpoint}", for_everyone)
    )
    return found


async def _listen(reactor: Any, endpoint: str, site: IProtocolFactory, what: str, for_everyone: bool) -> IListeningPort:
    try:
        address = server_address(endpoint, KINDS)
    except ValueError as error:
        raise Invalid(f"{what}: {error}", hint="see --help for the endpoints that will do") from None
    if address.host is None:
        if address.descriptor is not None:
            return inherited_listener(reactor, address.descriptor, site)
        if not address.path:
            raise Invalid(f"{what} names no path", hint="give unix:PATH")
        return _listen_unix(reactor, address.path, site)
    if not address.is_local and not for_everyone:
        raise Forbidden(f"{what} is open to other machines", hint="use unix:, or a loopback address")
    try:
        return await serverFromString(reactor, endpoint).listen(site)
    except CannotListenError as error:
        raise Conflict(f"{what}: {error.socketError}", hint="is another daemon there?") from error


def _listen_unix(reactor: Any, path: str, site: IProtocolFactory) -> IListeningPort:
    path = os.path.abspath(path)
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise RelayError(
            f"cannot make {directory}: {error.strerror}", hint="set XDG_RUNTIME_DIR, or give --control unix:PATH"
        ) from error
    listener = UnixListener(reactor, path, site, patience=START_SECONDS)
    listener.startListening()
    return listener
