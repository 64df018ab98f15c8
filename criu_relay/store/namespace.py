"""One namespace at the cache: its generations, and the restores and people that wait for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime
from zope.interface import implementer

from criu_relay.errors import Conflict
from criu_relay.interfaces import IOpenedImage, IRestore, IRestores, Peer
from criu_relay.store.generation import Generation, State
from criu_relay.store.image import Image
from criu_relay.store.opened import OpenedImage, copied

HISTORY = 8
"""Generations of a namespace that are remembered after they ended, for `status`."""

RELEASED_FROM = 64 << 10
"""With --release: a smaller image stays until the restore is confirmed. It costs little, and may be opened again."""

WAITING_OPENERS = 4096
"""Opens of one namespace that wait: a restore has at most one. When there are more the oldest is told that there is no
such image."""

WOKEN_PER_TURN = 1024
"""Of those who wait for a decision: a thousand are answered within 50 ms, and so long nobody else is."""

COPIES = 64
"""Small images that are remembered while one turn's waiters are answered: 1 MiB."""


@dataclass(eq=False)
class Waiter:
    """Somebody who waits for a generation to be decided.

    @ivar generation: which; None: the next that begins.
    @ivar patient: it never takes too long.
    """

    fired: Deferred[Generation | None]
    generation: Generation | None
    image: str
    pid: int
    since: float
    patient: bool

    def answer(self, generation: Generation | None) -> None:
        """It waits no longer."""
        if not self.fired.called:
            self.fired.callback(generation)


@implementer(IRestores)
class Namespace:
    """See the module.

    @ivar generations: oldest first; the last few.
    """

    def __init__(
        self,
        name: str,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        patience: float,
        served: Callable[[int], None] = lambda count: None,
        release: bool = False,
    ) -> None:
        """
        @param patience: seconds that an open may wait with nothing happening.
        @param served: called with each number of bytes that a restore was given.
        @param release: give bytes back as a restore reads them.
        """
        self.name = name
        self.release = release
        self.generations: list[Generation] = []
        self.waiters: list[Waiter] = []
        self.began = 0
        self.served = served
        self.copy: Callable[[Image], bytes] = copied
        self._reactor = reactor
        self._clock = clock
        self._patience = patience
        self._timer: IDelayedCall | None = None

    @property
    def forgettable(self) -> bool:
        """Nobody waits for it, nothing of it is here, and nothing is on its way."""
        busy = any(not old.decided or old.state is State.COMMITTED for old in self.generations)
        return not (busy or self.waiters)

    @property
    def newest(self) -> Generation | None:
        """The generation that began last."""
        return self.generations[-1] if self.generations else None

    def begin(self, peer: Peer | None) -> IRestore:
        """See L{IRestores.begin}."""
        return Restore(self, self._reactor, peer)

    def add(self, generation: Generation) -> None:
        """A new generation begins; those who wait for the next one now wait for this one."""
        self.generations.append(generation)
        for waiter in self.waiters:
            if waiter.generation is None:
                waiter.generation = generation

    def decided(self, generation: Generation) -> None:
        """Answer everybody who waits for this one, and forget old history."""
        for old in [old for old in self.generations if old.decided and old.state is not State.COMMITTED][:-HISTORY]:
            self.generations.remove(old)
        self._wake(generation)

    def _wake(self, generation: Generation) -> None:
        """Answer those who wait for it; small images that several ask for are read once for all."""
        waiting = [waiter for waiter in self.waiters if waiter.generation is generation]
        woken = set(waiting[:WOKEN_PER_TURN])
        self.waiters = [waiter for waiter in self.waiters if waiter not in woken]
        self.copy = lru_cache(COPIES)(copied)
        for waiter in waiting[:WOKEN_PER_TURN]:
            waiter.answer(generation)
        self.copy = copied
        if len(waiting) > WOKEN_PER_TURN:
            self._clock.callLater(0, self._wake, generation)
        self._watch()

    def servable(self) -> Generation | None:
        """The generation that a restore which begins now is pinned to; None: it has to wait for the next.

        An undecided one goes before a committed one: the process may have gone on since.
        """
        for generation in reversed(self.generations):
            if generation.state is not State.ABORTED:
                return generation
        return None

    def wait(
        self, generation: Generation | None, image: str, peer: Peer | None, patient: bool = False
    ) -> Deferred[Generation | None]:
        """Fires with the generation when it is decided (at once if it is), or None when that takes too long.

        @param generation: None: the next that begins.
        @param patient: see L{Waiter}.
        """
        if generation is not None and generation.decided:
            settled: Deferred[Generation | None] = Deferred()
            settled.callback(generation)
            return settled
        fired: Deferred[Generation | None] = Deferred(lambda _: self._forget(waiter))
        waiter = Waiter(fired, generation, image, peer.pid if peer else 0, self._clock.seconds(), patient)
        self.waiters.append(waiter)
        if len(self.waiters) > WAITING_OPENERS:
            self._give_up(self.waiters[0])
        self._watch()
        return fired

    def asked(self, generation: Generation) -> None:
        """A restore asks for something of it."""
        generation.asked_at = self._clock.seconds()

    def _watch(self) -> None:
        """Have one timer while anybody waits whose time can run out: a thousand may wait, and be woken at once."""
        if self._timer is None:
            first = next((waiter for waiter in self.waiters if not waiter.patient), None)
            if first is not None:
                left = first.since + self._patience - self._clock.seconds()
                self._timer = self._clock.callLater(max(left, 0), self._run_out)
        elif not self.waiters:
            self._timer.cancel()
            self._timer = None

    def _run_out(self) -> None:
        self._timer = None
        began = self._clock.seconds() - self._patience
        for waiter in [waiter for waiter in self.waiters if not waiter.patient and waiter.since <= began]:
            self._give_up(waiter)
        self._watch()

    def _give_up(self, waiter: Waiter) -> None:
        self._forget(waiter)
        waiter.answer(None)

    def _forget(self, waiter: Waiter) -> None:
        if waiter in self.waiters:
            self.waiters.remove(waiter)
        self._watch()


@implementer(IRestore)
class Restore:
    """See L{IRestore}."""

    def __init__(self, namespace: Namespace, reactor: IReactorFDSet, peer: Peer | None) -> None:
        self._namespace = namespace
        self._reactor = reactor
        self._peer = peer
        self._pinned: Generation | None = None
        self._served = False

    def _generation(self, image: str) -> Deferred[Generation | None]:
        """Fires with the generation when it is decided; what it is good for says L{_committed}."""
        if self._pinned is None:
            self._pinned = self._namespace.servable()
        return self._namespace.wait(self._pinned, image, self._peer)

    def _committed(self, generation: Generation | None) -> Generation | None:
        """The generation if it is committed; None: it will not be.

        @raise Conflict: it was committed, and is gone: its images must not look as if they had never been.
        """
        self._pinned = self._pinned or generation
        if generation is None:
            return None
        if generation.state is State.COMMITTED:
            self._claim(generation)
            self._namespace.asked(generation)
            self._served = True
            return generation
        if self._served:
            raise Conflict(f"namespace {generation.namespace}: {generation.reason} while it was being restored")
        return None

    def _find(self, generation: Generation | None, snapshot: str | None, name: str) -> IOpenedImage | None:
        committed = self._committed(generation)
        image = committed.find(snapshot, name) if committed else None
        if image is None or image.dropped:
            return None
        release = self._namespace.release and image.size >= RELEASED_FROM
        return OpenedImage(self._reactor, image, self._namespace.served, release, self._namespace.copy)

    def _labels(self, generation: Generation | None) -> list[str]:
        committed = self._committed(generation)
        return committed.labels() if committed else []

    def open(self, snapshot: str | None, name: str) -> Deferred[IOpenedImage | None]:
        """See L{IRestore.open}."""
        return self._generation(name).addCallback(self._find, snapshot, name)

    def snapshots(self) -> Deferred[list[str]]:
        """See L{IRestore.snapshots}."""
        return self._generation("parent").addCallback(self._labels)

    def _claim(self, generation: Generation) -> None:
        """With --release bytes are there for one restore only.

        @raise Conflict: another one has begun to read them.
        """
        if not self._namespace.release or generation.restorer is self:
            return
        if generation.restorer is not None:
            raise Conflict(
                f"namespace {generation.namespace} is restored already: its images are given back as they are read",
                hint="without --release it can be restored again",
            )
        generation.restorer = self

    def finished(self) -> None:
        """See L{IRestore.finished}."""
        if self._pinned is not None and self._pinned.restorer is self and not self._pinned.released:
            self._pinned.restorer = None
        self._pinned = None
        self._served = False
