"""What both services have in common: their parts start together, and a part that cannot start ends the daemon."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import UsageError

from criu_relay import __version__
from criu_relay.admin.api import ControlSite, Handlers
from criu_relay.admin.inspected import IInspected
from criu_relay.admin.listen import listen_control
from criu_relay.admin.page import Page
from criu_relay.commit.state import state_directory
from criu_relay.errors import Conflict, RelayError
from criu_relay.flow.ways import TAKEN
from criu_relay.interfaces import Counters
from criu_relay.lifecycle import Lifecycle
from criu_relay.link.credentials import Credentials, Files
from criu_relay.local.attachments import Attachments
from criu_relay.settings import Settings, Tls
from criu_relay.wire import link as wire
from criu_relay.wire.link_pb2 import Hello


class CannotStart(SystemExit, Exception):
    """Ends the process with status 1; the log has said why.

    twistd tells whoever started a daemon in the background of an Exception only, and removes the pid file then; with
    any other he waits for ever.
    """

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.code = 1


class Daemon(MultiService):
    """A service that binds CRIU's sockets and the control socket, and ends the process when it cannot.

    @cvar taken: settings that are not compared when they are read again: a daemon takes them itself.
    @cvar client: it begins the TLS handshakes of its links.
    @ivar counters: what `status` and `/metrics` count.
    @ivar credentials: of TLS; None: links are plain.
    @ivar instance: the 16 bytes that name it over its restarts, once it is started.
    """

    log = Logger()
    client: ClassVar[bool]
    taken: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reactor: Any, settings: Settings, reread: Callable[[], Settings] | None = None) -> None:
        """@param reread: what the command line and its file mean now; raises UsageError."""
        super().__init__()
        self._reread = reread
        self.reactor = reactor
        self.settings = settings
        self.counters = Counters()
        self.began = reactor.seconds()
        self.attachments: Attachments
        self.control: IInspected
        self.instance = b""
        self.credentials = self._credentials(settings.tls)
        self._ports: list[Any] = []
        Lifecycle(self).setServiceParent(self)

    def _credentials(self, tls: Tls | None) -> Credentials | None:
        if tls is None:
            return None
        return Credentials(Files(tls.certificate, tls.key, tls.authorities), tls.peers, self.client)

    # What its life needs of it (criu_relay/lifecycle.py)

    def summary(self) -> str:
        """What it does now, on one line."""
        raise NotImplementedError

    def accept_no_more(self) -> None:
        """Nothing new may begin; what is under way goes on."""
        raise NotImplementedError

    def under_way(self) -> list[str]:
        """The namespaces that should not be left now."""
        raise NotImplementedError

    def busy(self) -> str:
        """The same in words; empty: there are none."""
        names = self.under_way()
        return f"namespace {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""

    def reload(self) -> None:
        """Read certificates and configuration again."""
        if self.credentials is not None:
            self.credentials.refresh(True)
        if self._reread is None:
            return
        try:
            settings = self._reread()
        except UsageError as error:
            self.log.error("the configuration is not taken: {error}", error=str(error))
            return
        self.settings = self._take(settings)

    def _take(self, settings: Settings) -> Settings:
        """Take what can change while we run: attachments; and say what cannot."""
        old, new = set(self.settings.attachments), set(settings.attachments)
        directories = {one.directory for one in self.attachments}
        for gone in {one.directory for one in old - new} & directories:
            self.attachments.detach(gone)
        for one in settings.attachments:
            if one in new - old or one.directory in {gone.directory for gone in old - new}:
                try:
                    self.attachments.attach(one.directory, one.namespace, one.dialect)
                except RelayError as error:
                    self.log.error("not attached: {reason}", reason=error.line)
        changed = dataclasses.replace(self.settings, attachments=settings.attachments)
        later = [name.replace("_", "-") for name in changes(changed, settings) if name not in self.taken]
        if later:
            self.log.warn("changed, and taken at the next start: {names}", names=", ".join(later))
        return changed

    async def bind(self) -> None:
        """Bind what this daemon has besides the common sockets."""

    def enter(self, state: Path) -> None:
        """Take what is kept in the state directory."""
        raise NotImplementedError

    async def _start(self) -> None:
        with state_directory(self.settings.state) as state:
            self.enter(state)
        try:
            if self.credentials is not None:
                self.credentials.load()
            for attached in self.settings.attachments:
                self.attachments.attach(attached.directory, attached.namespace, attached.dialect)
            await self._listen()
            await self.bind()
        except CannotListenError as error:
            where = f"{error.interface}:{error.port}"
            raise Conflict(f"cannot listen on {where}: {error.socketError}", hint="is another daemon there?") from error

    async def _listen(self) -> None:
        """Bind what people and their tools look through."""
        settings = self.settings
        page = Page(self.control, self.counters, self.reactor)
        page.setServiceParent(self)
        handlers = Handlers(self.control, page)
        site = ControlSite(handlers.routes(), self.reactor)
        self._ports.append(await listen_control(self.reactor, settings.control, site))
        if settings.metrics is not None:
            site = ControlSite(handlers.looking(), self.reactor, settings.insecure)
            port = await listen_control(self.reactor, settings.metrics, site, "metrics", settings.insecure)
            self._ports.append(port)
        if settings.manhole is not None and settings.manhole_keys is not None:
            # Conch takes longer to load than all the rest, and few have a manhole.
            from criu_relay.admin.manhole.server import ManholeFactory

            extra = {"daemon": self}
            factory = ManholeFactory(self.control, settings.manhole_keys, settings.state, extra, self.reactor)
            port = await listen_control(self.reactor, settings.manhole, factory, "manhole", settings.insecure)
            self._ports.append(port)

    def startService(self) -> None:
        """Start every part.

        @raise CannotStart: a socket cannot be bound; one line in the log says why.
        """
        failures: list[Failure] = []
        Deferred.fromCoroutine(self._start()).addErrback(failures.append)
        if failures:
            failure = failures[0]
            self._close_sockets()
            if not isinstance(failure.value, RelayError):
                failure.raiseException()
            self.log.critical("cannot start: {reason}", reason=failure.value.line)
            raise CannotStart(failure.value.line)
        super().startService()

    def _close_sockets(self) -> list[Any]:
        """Remove the sockets that are files, now; the results are there when everything is closed."""
        ports, self._ports = self._ports, []
        return [self.attachments.stop(), *(port.stopListening() for port in ports)]

    async def _stop(self) -> None:
        for closed in [*self._close_sockets(), super().stopService()]:
            if isinstance(closed, Awaitable):
                await closed

    def stopService(self) -> Deferred[None]:
        """Close every socket, and remove those that are files."""
        return Deferred.fromCoroutine(self._stop())

    def common_status(self) -> dict[str, Any]:
        """The part of `status` that both daemons have."""
        counters = self.counters
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": self.reactor.seconds() - self.began,
            "hops": TAKEN.described(),
            "counters": dict(counters.values),
            "times": {
                name: {"counts": list(times.counts), "total_s": times.total} for name, times in counters.times.items()
            },
            "failures": [
                {"at": failed.at, "what": failed.what, "cause": failed.cause.value, "reason": failed.reason}
                for failed in reversed(counters.failures)
            ],
        }


def changes(old: Any, new: Any) -> Iterator[str]:
    """The names of fields of a dataclass that differ; of those that are dataclasses as well, the names in them."""
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            nested = dataclasses.is_dataclass(after) and type(before) is type(after)
            yield from changes(before, after) if nested else (field.name,)


def endpoint_of(settings: Settings) -> str:
    """The link, for people."""
    return settings.link or settings.criu_dev_link or f"descriptor {settings.link_fd}"


def patience_of(settings: Settings) -> float:
    """Seconds that what is under way waits for a lost link: an inherited one cannot be made again."""
    return 0.0 if settings.link_fd is not None else settings.link_timeout


def hello(role: Any, instance: bytes, session: bytes | None = None, window: int | None = None) -> Hello:
    """What a daemon says first on a link.

    @param session: of a proxy; C{window}: the same, in bytes.
    """
    return Hello(
        version=wire.VERSION,
        role=role,
        instance=instance,
        name=wire.clip(platform.node()),
        software=f"criu_relay {__version__}",
        session=session,
        window=window,
    )
