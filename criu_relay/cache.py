"""criu-relay-cache put together: links -> store -> CRIU's restores."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor as default_reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory

from criu_relay.admin.cache_control import CacheControl
from criu_relay.admin.text import size
from criu_relay.commit.state import instance_id
from criu_relay.daemon import Daemon, hello, patience_of
from criu_relay.interfaces import IRestores
from criu_relay.link.connection import LinkConnection
from criu_relay.link.criu_dev_receiver import OldReceiver
from criu_relay.link.receiver import Receiver
from criu_relay.link.services import InheritedLink, LinkServer
from criu_relay.link.transports import Ownership
from criu_relay.local.attachments import Attachments, cache_dialects
from criu_relay.options import CacheOptions
from criu_relay.settings import CacheSettings
from criu_relay.store.arena import Arena
from criu_relay.store.idle import Idle
from criu_relay.store.store import Store
from criu_relay.wire.link_pb2 import CACHE
from criu_relay.wire.names import check_name

Options = CacheOptions


class Cache(Daemon):
    """The service."""

    client = False
    # Half of what is available is another size whenever it is looked at.
    taken = ("memory",)

    def __init__(
        self, reactor: Any, settings: CacheSettings, reread: Callable[[], CacheSettings] | None = None
    ) -> None:
        """See L{Daemon}."""
        super().__init__(reactor, settings, reread)
        arena = Arena(settings.memory, keep=min(settings.warm, settings.memory))
        self.store = Store(reactor, reactor, arena, self.counters, settings.idle, settings.policy)
        Idle(reactor, self.store.memory).setServiceParent(self)
        self.receiver = Receiver(self.store, self.counters, reactor, patience_of(settings))
        self.store.rejected = self.receiver.rejected
        self.store.let_go = self.receiver.let_go
        self.store.credits.granted = self.receiver.credited
        self.attachments = Attachments(reactor, cache_dialects(reactor, self._restores_of), settings.allow_uids)
        self.store.attached = lambda name: any(a.namespace == name for a in self.attachments)
        self.control = CacheControl(self)
        self._server: LinkServer | None = None

        def made(owned: Ownership) -> LinkConnection:
            greeting = hello(CACHE, self.instance)
            return LinkConnection(
                reactor, reactor, greeting, self.receiver, owned, settings.link_timeout, self.credentials
            )

        if settings.link_fd is not None:
            InheritedLink(reactor, settings.link_fd, made).setServiceParent(self)
        elif settings.link is not None:
            self._server = LinkServer(reactor, settings.link, made)
            self._server.setServiceParent(self)

    def enter(self, state: Path) -> None:
        """See L{Daemon.enter}; a proxy may have the same."""
        self.instance = instance_id(state / "cache")

    async def bind(self) -> None:
        """Listen for links."""
        if self._server is not None:
            await self._server.listen()
        if self.settings.criu_dev_link is not None:
            factory = Factory.forProtocol(lambda: OldReceiver(self.store, self._namespace_of))
            endpoint = serverFromString(self.reactor, self.settings.criu_dev_link)
            self._ports.append(await endpoint.listen(factory))

    def summary(self) -> str:
        """See L{Daemon.summary}."""
        arena, links = self.store.arena, len(self.receiver.links)
        namespaces = sum(namespace.newest is not None for namespace in self.store.namespaces.values())
        return f"{links} links, {namespaces} namespaces, {size(arena.used)} of {size(arena.limit)}"

    def accept_no_more(self) -> None:
        """See L{Daemon.accept_no_more}."""
        self.store.accepting = False

    def under_way(self) -> list[str]:
        """See L{Daemon.under_way}."""
        return self.store.under_way()

    def _namespace_of(self, label: str) -> str:
        """The old link names snapshots only: the one namespace attached for images, else the directory's own name."""
        attached = {a.namespace for a in self.attachments if a.dialect == "images"}
        return check_name(attached.pop() if len(attached) == 1 else os.path.basename(label.rstrip("/")), "namespace")

    def _restores_of(self, namespace: str) -> IRestores:
        restores: IRestores = self.store.namespace(namespace)
        return restores


def makeService(options: CacheOptions) -> IService:
    """For twistd."""
    return Cache(default_reactor, options.settings(), options.again)
