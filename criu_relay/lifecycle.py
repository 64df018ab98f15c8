"""The life of a daemon as its host sees it: what systemd is told, and what SIGTERM and SIGHUP do."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from criu_relay.notify import Notifier
from criu_relay.residence import settle

if TYPE_CHECKING:
    from criu_relay.daemon import Daemon

FINISH_SECONDS = 10.0
"""What SIGTERM allows for what is under way: a dump that has begun its last image is done within this, and a host that
shuts down is not kept (systemd waits 90 s)."""

LOOK_SECONDS = 0.1
"""Between two looks whether all is done."""

STATUS_SECONDS = 5.0
"""Between two looks whether the line that systemd shows is still true."""


class Lifecycle(Service):
    """See the module. A second SIGTERM ends the daemon at once."""

    log = Logger()

    def __init__(self, daemon: Daemon, notifier: Notifier | None = None) -> None:
        """@param notifier: by default as the environment says."""
        self._daemon = daemon
        self._notifier = notifier or Notifier()
        self._loops: list[LoopingCall] = []
        self._said = ""
        self._ending: Deferred[None] | None = None

    def startService(self) -> None:
        """Take the signals, and say that we are ready, when the reactor runs: it takes the signals itself before."""
        super().startService()
        settle()
        self._daemon.reactor.callWhenRunning(self._running)

    def stopService(self) -> None:
        """Say no more."""
        super().stopService()
        for loop in self._loops:
            loop.stop()
        self._loops.clear()
        self._notifier.stopping("stopped")

    def _running(self) -> None:
        for number, function in ((signal.SIGTERM, self.terminate), (signal.SIGHUP, self.reload)):
            signal.signal(number, self._handler(function))
        if self._notifier.wanted:
            self._said = self._daemon.summary()
            self._notifier.ready(self._said)
            self._repeat(self._tell, STATUS_SECONDS)
        if self._notifier.watchdog is not None:
            # As sd_watchdog_enabled(3) recommends.
            self._repeat(self._notifier.alive, self._notifier.watchdog / 2)

    def _handler(self, function: Any) -> Any:
        """Signals come at any moment; what they do is done in a turn of the reactor."""
        return lambda number, frame: self._daemon.reactor.callFromThread(function)

    def _repeat(self, function: Any, seconds: float) -> None:
        loop = LoopingCall(function)
        loop.clock = self._daemon.reactor
        loop.start(seconds)
        self._loops.append(loop)

    def _tell(self) -> None:
        status = self._daemon.summary()
        if status != self._said:
            self._said = status
            self._notifier.status(status)

    def reload(self) -> None:
        """SIGHUP: read certificates and configuration again."""
        self._notifier.reloading()
        self._daemon.reload()
        self._said = self._daemon.summary()
        self._notifier.ready(self._said)

    def terminate(self) -> None:
        """SIGTERM: begin nothing new, finish what is under way or give it up, end with status 0."""
        if self._ending is not None:
            self.log.warn("stopping at once")
            self._ending.cancel()
            return
        self._ending = Deferred.fromCoroutine(self._finish())
        self._ending.addErrback(lambda _: None)
        self._ending.addCallback(lambda _: self._daemon.reactor.stop())

    async def _finish(self) -> None:
        reactor = self._daemon.reactor
        self._daemon.accept_no_more()
        end = reactor.seconds() + FINISH_SECONDS
        if what := self._daemon.busy():
            self.log.info("stopping: waiting up to {seconds:.0f} s for {what}", seconds=FINISH_SECONDS, what=what)
            self._notifier.stopping(f"waiting for {what}")
        while self._daemon.busy() and reactor.seconds() < end:
            await deferLater(reactor, LOOK_SECONDS)
