"""criu-relay-proxy put together: CRIU's dumps -> migrations -> link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from criu_relay import values
from criu_relay.admin.proxy_control import ProxyControl
from criu_relay.admin.text import size
from criu_relay.commit.dumps import Dumps
from criu_relay.commit.lock import StateLock
from criu_relay.commit.records import Records
from criu_relay.commit.state import instance_id
from criu_relay.commit.surroundings import Surroundings
from criu_relay.daemon import Daemon, endpoint_of, hello, patience_of
from criu_relay.interfaces import IDump
from criu_relay.link.connection import LinkConnection
from criu_relay.link.criu_dev_outlet import OldOutlet
from criu_relay.link.outlet import LinkOutlet
from criu_relay.link.services import InheritedLink, LinkClient
from criu_relay.link.transports import Ownership
from criu_relay.local.attachments import Attachments, proxy_dialects
from criu_relay.options import ProxyOptions
from criu_relay.settings import ProxySettings
from criu_relay.store.arena import Arena
from criu_relay.wire.link_pb2 import PROXY

Options = ProxyOptions


class Proxy(Daemon):
    """The service."""

    client = True

    def __init__(
        self, reactor: Any, settings: ProxySettings, reread: Callable[[], ProxySettings] | None = None
    ) -> None:
        """See L{Daemon}."""
        super().__init__(reactor, settings, reread)
        self.outlet = self._make_outlet(settings)
        surroundings = Surroundings(
            reactor=reactor,
            clock=reactor,
            outlet=self.outlet,
            records=Records(settings.state),
            counters=self.counters,
            in_thread=self._in_thread,
            cache=endpoint_of(settings),
            idle=settings.idle,
        )
        self.dumps = Dumps(surroundings)
        if isinstance(self.outlet, LinkOutlet):
            self.outlet.linked = self.dumps.ask_again
            self.outlet.let_go = self.dumps.let_go
        self.attachments = Attachments(reactor, proxy_dialects(reactor, self._dump_of), settings.allow_uids)
        self.dumps.listeners = lambda name: [a.listener for a in self.attachments if a.namespace == name]
        self.dumps.copies = lambda name: any(a.copy for a in self.attachments if a.namespace == name)
        self.control = ProxyControl(self)

    def _make_outlet(self, settings: ProxySettings) -> LinkOutlet | OldOutlet:
        reactor = self.reactor
        if settings.criu_dev_link is not None:
            whole = max(settings.window, values.available_memory() // 2)
            return OldOutlet(reactor, settings.criu_dev_link, Arena(whole, keep=0), self.counters)
        arena = Arena(settings.window, keep=settings.window)
        outlet = LinkOutlet(
            reactor, reactor, arena, self.counters, patience_of(settings), settings.rate, settings.leave_out_zeros
        )

        def made(owned: Ownership) -> LinkConnection:
            greeting = hello(PROXY, self.instance, outlet.session, outlet.window.limit)
            return LinkConnection(reactor, reactor, greeting, outlet, owned, settings.link_timeout, self.credentials)

        if settings.link_fd is not None:
            InheritedLink(reactor, settings.link_fd, made).setServiceParent(self)
        elif settings.link is not None:
            LinkClient(reactor, settings.link, made, outlet.unreachable, outlet.refused).setServiceParent(self)
        return outlet

    def enter(self, state: Path) -> None:
        """See L{Daemon.enter}; nobody else may."""
        self.lock = StateLock(state)
        self.instance = instance_id(state)

    async def bind(self) -> None:
        """Look after what was permitted before a restart."""
        self.dumps.recover()

    def summary(self) -> str:
        """See L{Daemon.summary}."""
        window = self.outlet.window
        held = f"{size(window.used)} of {size(window.limit)} in the window"
        return f"link {self.control.link()['state']}, {len(self.under_way())} migrations under way, {held}"

    def accept_no_more(self) -> None:
        """See L{Daemon.accept_no_more}."""
        self.dumps.accepting = False

    def under_way(self) -> list[str]:
        """See L{Daemon.under_way}."""
        return self.dumps.under_way()

    def stopService(self) -> Deferred[None]:
        """Give up what is open, so that CRIU resumes its tasks, then close."""
        self.dumps.stop()
        return super().stopService()

    def _dump_of(self, namespace: str, copy: bool) -> IDump:
        dump: IDump = self.dumps.namespace(namespace)
        return dump

    def _in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *args)


def makeService(options: ProxyOptions) -> IService:
    """For twistd."""
    return Proxy(default_reactor, options.settings(), options.again)
