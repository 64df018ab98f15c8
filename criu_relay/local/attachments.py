"""The directories of CRIU that a daemon is attached to: a socket of one dialect in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.protocol import Protocol
from twisted.logger import Logger

from criu_relay.errors import Conflict, Invalid, NotFound
from criu_relay.interfaces import IDump, IDumpListener, IRestores
from criu_relay.local.images_cache import ImagesCache
from criu_relay.local.images_proxy import ImagesProxy
from criu_relay.local.listener import Door, LocalListener
from criu_relay.local.ordering import Arrivals, Turns
from criu_relay.local.pins import Pins
from criu_relay.local.stream_capture import StreamCapture
from criu_relay.local.stream_serve import StreamServe
from criu_relay.wire.names import check_name

ATTACHMENTS = 512
"""Directories with a socket of ours at once: half of the usual limit of 1024 descriptors per process; the rest is for
clients and their pipes."""


@dataclass(frozen=True)
class Attachment:
    """A socket of CRIU in a directory.

    @ivar directory: absolute and resolved.
    @ivar copy: dumps into it leave the task running.
    @ivar device: st_dev of the directory, which with `inode` is how an action script finds it.
    @ivar listener: for the migration, which seals when nothing waits there.
    """

    directory: str
    namespace: str
    dialect: str
    copy: bool
    device: int
    inode: int
    socket: str
    listener: IDumpListener = field(compare=False, repr=False)

    def described(self) -> dict[str, Any]:
        """As the control API shows it."""
        return {
            "directory": self.directory,
            "namespace": self.namespace,
            "dialect": self.dialect,
            "copy": self.copy,
            "device": self.device,
            "inode": self.inode,
            "socket": self.socket,
        }


@dataclass(frozen=True)
class Dialect:
    """A dialect on one side.

    @ivar socket: the name of its socket; CRIU's, not ours.
    @ivar clients: given the namespace, whether it is a copy, and the door: makes the Protocol of each client.
    """

    socket: str
    clients: Callable[[str, bool, Door], Callable[[], Protocol]]


def proxy_dialects(reactor: Any, dump_of: Callable[[str, bool], IDump]) -> dict[str, Dialect]:
    """The dialects of a proxy.

    @param dump_of: namespace, copy -> where its dumps go; called once at each attach.
    """

    def stream(namespace: str, copy: bool, door: Door) -> Callable[[], Protocol]:
        dump = dump_of(namespace, copy)
        return lambda: StreamCapture(reactor, dump, door)

    def images(namespace: str, copy: bool, door: Door) -> Callable[[], Protocol]:
        dump, arrivals, turns = dump_of(namespace, copy), Arrivals(), Turns()
        return lambda: ImagesProxy(reactor, dump, door, arrivals, turns)

    return {"stream": Dialect("streamer-capture.sock", stream), "images": Dialect("img-proxy.sock", images)}


def cache_dialects(reactor: Any, restores_of: Callable[[str], IRestores]) -> dict[str, Dialect]:
    """The dialects of a cache.

    @param restores_of: namespace -> where its restores read from; called once at each attach.
    """

    def stream(namespace: str, copy: bool, door: Door) -> Callable[[], Protocol]:
        restores = restores_of(namespace)
        return lambda: StreamServe(restores, door)

    def images(namespace: str, copy: bool, door: Door) -> Callable[[], Protocol]:
        arrivals, pins = Arrivals(), Pins(reactor, restores_of(namespace))
        return lambda: ImagesCache(reactor, door, arrivals, pins)

    return {"stream": Dialect("streamer-serve.sock", stream), "images": Dialect("img-cache.sock", images)}


class Attachments:
    """Makes and removes attachments.

    >>> attachments = Attachments(reactor, cache_dialects(reactor, store.restores))
    >>> attachments.attach("/var/lib/web", None, "stream").namespace
    'web'
    """

    _log = Logger()

    def __init__(self, reactor: Any, dialects: Mapping[str, Dialect], extra_uids: Collection[int] = ()) -> None:
        """@param extra_uids: users that may use the sockets besides root and our own."""
        self._reactor = reactor
        self._dialects = dialects
        self._extra_uids = frozenset(extra_uids)
        self._attached: dict[tuple[str, str], tuple[Attachment, LocalListener]] = {}

    def __iter__(self) -> Iterator[Attachment]:
        return iter([attachment for attachment, _ in self._attached.values()])

    def __len__(self) -> int:
        return len(self._attached)

    def attach(
        self, directory: str, namespace: str | None = None, dialect: str = "stream", copy: bool = False
    ) -> Attachment:
        """Bind CRIU's socket in a directory, and accept from now on.

        @param namespace: None: the directory's own name.
        @param dialect: "stream" or "images".
        @raise Invalid: a parameter is wrong.
        @raise NotFound: there is no such directory.
        @raise Conflict: it is attached already, or something else is in the socket's place.
        """
        if dialect not in self._dialects:
            raise Invalid(f"no dialect {dialect!r}", hint=f"use one of: {', '.join(sorted(self._dialects))}")
        path, status = _resolved(directory)
        name = _namespace_of(path) if namespace is None else check_name(namespace, "namespace")
        if (path, dialect) in self._attached:
            raise Conflict(f"{path} is attached already ({dialect})", hint=f"criu-relay detach {path}")
        if len(self) >= ATTACHMENTS:
            raise Conflict(f"{ATTACHMENTS} directories are attached already", hint="criu-relay detach some")
        chosen = self._dialects[dialect]
        socket = os.path.join(path, chosen.socket)
        door = Door(self._extra_uids)
        listener = LocalListener(self._reactor, socket, chosen.clients(name, copy, door), door)
        listener.startListening()
        attachment = Attachment(path, name, dialect, copy, status.st_dev, status.st_ino, socket, listener)
        self._attached[path, dialect] = attachment, listener
        self._log.info("attached {socket} to namespace {namespace}", socket=socket, namespace=name)
        return attachment

    def detach(self, directory: str) -> list[Attachment]:
        """Remove the sockets that L{attach} bound in a directory, which may be gone itself. Clients stay connected.

        @return: what was attached there.
        @raise NotFound: nothing was.
        """
        path = os.path.realpath(directory) if "\0" not in directory else directory
        found = [key for key in self._attached if key[0] == path]
        if not found:
            raise NotFound(f"{path!r} is not attached", hint="criu-relay status lists what is")
        detached = []
        for key in found:
            attachment, listener = self._attached.pop(key)
            listener.stopListening()
            detached.append(attachment)
            self._log.info("detached {socket}", socket=attachment.socket)
        return detached

    def stop(self) -> Deferred[Any]:
        """Remove every socket; fires when they are closed."""
        listeners = [listener for _, listener in self._attached.values()]
        self._attached.clear()
        return DeferredList([listener.stopListening() for listener in listeners])


def _resolved(directory: str) -> tuple[str, os.stat_result]:
    """The directory's absolute, resolved path, and its status."""
    if not directory or "\0" in directory:
        raise Invalid(f"not a directory: {directory!r}", hint="give the directory that criu gets as -D")
    try:
        path = os.path.realpath(directory, strict=True)
        status = os.stat(path)
    except OSError as error:
        raise NotFound(f"cannot use directory {directory}: {error.strerror}", hint="make it first") from None
    if not os.path.isdir(path):
        raise Invalid(f"not a directory: {path}", hint="give the directory that criu gets as -D")
    return path, status


def _namespace_of(path: str) -> str:
    try:
        return check_name(os.path.basename(path), "namespace")
    except Invalid as error:
        raise Invalid(
            f"the name of {path!r} cannot be a namespace: {error.reason}", hint="give a NAMESPACE as well"
        ) from None
