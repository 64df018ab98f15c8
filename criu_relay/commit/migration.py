"""One generation of a namespace at the proxy: from CRIU's first image to the decision (docs/commit.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from criu_relay.commit.journal import tell_aborted, tell_lost
from criu_relay.commit.permission import Permission
from criu_relay.commit.source import SourceTasks
from criu_relay.commit.states import DECIDED, LIVES_HINT, TABLE, WRITING, Event, State
from criu_relay.commit.surroundings import Later, Surroundings, Waiters
from criu_relay.commit.tasks import Ending, Task, Verdict
from criu_relay.commit.written import WrittenImage
from criu_relay.errors import Aborted, Cause, Conflict, LinkLost, NotFound, RelayError, TimedOut
from criu_relay.interfaces import CommitRequest, IDumpClient, IDumpListener, IImageSink, IOpenedImage, IOutgoing, Mode
from criu_relay.machine import Machine
from criu_relay.wire.link import MAX_IMAGES, MAX_SNAPSHOTS

INVENTORY = "inventory.img"
"""The image that CRIU writes last."""

LOOK_AGAIN_SECONDS = 0.02
"""A connection that left the listen queue by itself gives no event: sealing looks again after this."""


class Migration:
    """See the module.

    @ivar id: its 128 bits.
    @ivar reason: why it was aborted or lost.
    @ivar hint: what a person may do when it waits for one.
    @ivar decided: waits for the end of it, well or not.
    @ivar source: the tasks that it is about.
    """

    log = Logger()

    def __init__(
        self,
        namespace: str,
        number: int,
        migration: bytes,
        copy: bool,
        surroundings: Surroundings,
        listeners: Callable[[], list[IDumpListener]],
        initial: State = State.OPEN,
    ) -> None:
        """@param listeners: the sockets that clients of this namespace may be waiting at."""
        self.namespace = namespace
        self.number = number
        self.id = migration
        self.copy = copy
        self.reason = self.hint = ""
        self.began = surroundings.clock.seconds()
        self.decided_at: float | None = None
        self.decided = Waiters()
        self.held_bytes: int | None = None
        self.labels: list[str] = []
        self.images: dict[tuple[int, str], WrittenImage] = {}
        self.clients: list[IDumpClient] = []
        self.pids: set[int] = set()
        self.machine: Machine[State, Event] = Machine(
            f"namespace {namespace}", TABLE, initial, lambda state: self._idle.cancel()
        )
        self._at = surroundings
        self._permission = Permission(surroundings, migration, namespace)
        self._listeners = listeners
        self._held = Waiters()
        self.source = SourceTasks(surroundings.in_thread)
        self._verdict: Verdict | None = None
        self._asked = False
        self._permits = DeferredLock()
        self._look = Later(surroundings.clock, self.look)
        idle = Aborted(f"no client of CRIU for {surroundings.idle:.0f} s", hint="--idle allows more", cause=Cause.IDLE)
        self._idle = Later(surroundings.clock, partial(self._lost, idle))
        self.outgoing: IOutgoing
        if initial is State.OPEN:
            self.outgoing = surroundings.outlet.begin(migration, namespace, copy, self._lost)
            self._idle.set(self._at.idle)
        else:
            self.outgoing = surroundings.outlet.recovered(migration)

    @property
    def state(self) -> State:
        """Where it is."""
        return self.machine.state

    @property
    def over(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in DECIDED

    def refusal(self) -> Aborted:
        """What it says to who wants to go on with it when it is over."""
        return Aborted(self.reason, self.hint)

    @property
    def bytes(self) -> int:
        """Bytes that CRIU has written so far."""
        return sum(image.size for image in self.images.values())

    # CRIU's side

    def connected(self, client: IDumpClient) -> None:
        """A client takes part."""
        if client not in self.clients:
            self.clients.append(client)
            self.pids.add(client.peer.pid if client.peer is not None else 0)
            self._idle.cancel()

    def gone(self, client: IDumpClient) -> None:
        """Its connection is over."""
        if client in self.clients:
            self.clients.remove(client)
        if not self.clients and self.state is State.OPEN:
            self._idle.set(self._at.idle)
        self.look()

    def finished(self) -> None:
        """CRIU's side ended: without a script this is when to seal."""
        if self.state is State.OPEN:
            self.machine.feed(Event.SEAL)
            self.look()

    def push_snapshots(self, labels: Sequence[str]) -> None:
        """Snapshots begin."""
        self._check_writing()
        if len(self.labels) + len(labels) > MAX_SNAPSHOTS:
            raise Conflict(f"{self.namespace} has more than {MAX_SNAPSHOTS} snapshots")
        for label in labels:
            self.labels.append(label)
            self.outgoing.snapshot(len(self.labels), label)

    def open_image(self, client: IDumpClient | None, label: str, name: str, mode: Mode) -> IImageSink:
        """An image begins, or goes on."""
        self._check_writing()
        if label == "" and label not in self.labels:
            self.push_snapshots([""])
        if label not in self.labels:
            raise Conflict(f"{name} is for snapshot {label!r}, which this dump has not declared")
        return self.write_image(self._index(label), name, mode, client)

    def write_image(self, snapshot: int, name: str, mode: Mode, client: IDumpClient | None = None) -> WrittenImage:
        """An image of a snapshot by its index.

        @raise Conflict: somebody writes it already.
        """
        self._check_writing()
        image = self.images.get((snapshot, name))
        if image is not None and not image.complete:
            raise Conflict(f"image {name} of {self.namespace} is being written already")
        if image is None and len(self.images) >= MAX_IMAGES:
            raise Conflict(f"{self.namespace} has more than {MAX_IMAGES} images")
        sink = self.outgoing.open_image(snapshot, name, mode)
        if image is None:
            image = WrittenImage(snapshot, name, self._look_soon, self._at.arrived, self.refusal)
            self.images[snapshot, name] = image
        image.begin(sink, mode is Mode.REPLACE)
        if client is not None and client.peer is not None and client.peer.pid:
            self.source.scan(client.peer.pid, again=name == INVENTORY)
        return image

    def read_image(self, label: str, name: str) -> IOpenedImage | None:
        """A complete image, for a dump that looks at its parent."""
        if self.over or label not in self.labels:
            return None
        index = self._index(label)
        image = self.images.get((index, name))
        return self.outgoing.read_image(index, name) if image is not None and image.complete else None

    # Sealing

    def unsettled(self) -> str | None:
        """What is still on its way from CRIU, in words; None: nothing."""
        ends: list[IDumpListener | IDumpClient] = [*self._listeners(), *self.clients]
        for end in ends:
            if (what := end.unsettled()) is not None:
                return what
        return next((f"the rest of {image.name}" for image in self.images.values() if not image.complete), None)

    def _look_soon(self) -> None:
        """An image ended; what brought it is still on the stack."""
        if self.state is State.SEALING:
            self._look.set(0)

    def look(self) -> None:
        """Something changed: seal if that was asked for and nothing is on its way."""
        if self.state is not State.SEALING:
            return
        if self.unsettled() is not None:
            self._look.set(LOOK_AGAIN_SECONDS)
            return
        inventory = self.images.get((len(self.labels), INVENTORY))
        if inventory is None or not inventory.complete:
            self.abort(f"the dump ended without {INVENTORY}: it failed, or was no dump", "criu's dump.log says why")
            return
        self.machine.feed(Event.QUIET)
        self.outgoing.seal(self.source.described()).addCallbacks(self._verified, self._refused)

    def _verified(self, count: int) -> None:
        if self.state is not State.SEALED:
            return
        self.held_bytes = count
        self.machine.feed(Event.VERIFIED)
        self._held.fire()
        if not self._asked:
            self._judge()

    def _refused(self, failure: Failure) -> None:
        self._lost(failure.value if isinstance(failure.value, RelayError) else Aborted(failure.getErrorMessage()))

    def _lost(self, error: RelayError) -> None:
        if self.machine.accepts(Event.ABORT):
            self.abort(error.reason, error.hint, error.cause)

    # Deciding

    async def permit(self, request: CommitRequest) -> None:
        """Asked by the action script (with pids) or a person: returns when CRIU may go on.

        One after the other: a second permission would be recorded over the first.

        @raise RelayError: it may not; the migration is aborted, or waits for somebody who knows better.
        """
        await self._permits.run(lambda: Deferred.fromCoroutine(self._decide(request)))

    async def _decide(self, request: CommitRequest) -> None:
        copy = self.copy = self.copy or request.copy
        if self.state in (State.PERMITTED, State.COMMITTING, State.COMMITTED):
            raise Conflict(f"namespace {self.namespace} is {self.state.value} already")
        if self.over:
            raise self.refusal()
        self._asked = True
        try:
            root, criu = self.source.tasks(request, self.clients)
            await self._until_held(criu)
            if copy or request.force:
                await self.commit("copied" if copy else "committed by hand")
            elif root is None:
                raise Conflict(
                    f"it is not known which task {self.namespace} was dumped from",
                    hint=f"criu-relay commit {self.namespace} --force if it is gone, discard if it lives on",
                )
            elif root.dying():
                await self.commit("its task is gone")
            elif criu is None:
                hint = "attach --copy for dumps that leave it running"
                raise Conflict(f"task {root.pid} of {self.namespace} is alive", hint=hint)
            else:
                await self._permit(root, criu)
        except NotFound as error:
            self._lost(Aborted(f"{error.reason}: the dump is over", cause=Cause.DUMP))
            raise
        except CancelledError:
            self._lost(
                TimedOut("the commit took too long, or who asked for it has left", "CRIU_RELAY_TIMEOUT allows more")
            )
            raise

    async def _until_held(self, criu: Task | None) -> None:
        if self.state is State.HELD:
            return
        ended = partial(
            self._lost, Aborted("criu ended before it was permitted to", "its dump.log says why", Cause.DUMP)
        )
        ending = Ending(self._at.reactor, self._at.clock, criu, ended) if criu is not None else None
        waiting = self._held.wait()
        if self.state is State.OPEN:
            self.machine.feed(Event.SEAL)
            self.look()
        try:
            await waiting
        finally:
            if ending is not None:
                ending.stop()

    async def _permit(self, root: Task, criu: Task) -> None:
        try:
            await self._permission.write(root, criu)
        except OSError as error:
            self._lost(Aborted(f"the permission cannot be recorded: {error}", "make room in --state, or give another"))
            raise self.refusal() from error
        if self.state is not State.HELD:
            await self._permission.forget()
            raise Aborted(self.reason or f"namespace {self.namespace} is {self.state.value}")
        self.machine.feed(Event.PERMIT)
        self.watch(root, criu)

    def watch(self, root: Task, criu: Task | None, lives: Callable[[], None] | None = None) -> None:
        """Permitted: commit or abort on the fact."""
        lives = lives or (lambda: self.abort("criu ended and its task lives on", LIVES_HINT, event=Event.LIVES))
        gone = partial(self._commit_now, "its task is gone")
        self._verdict = Verdict(self._at.reactor, self._at.clock, root, criu, gone, lives)

    def _commit_now(self, why: str) -> None:
        Deferred.fromCoroutine(self.commit(why)).addErrback(self._unexpected)

    def _judge(self) -> None:
        """Held, and nobody asked: CRIU has ended, so its tasks tell what it did."""
        if self.copy:
            self._commit_now("copied")
        elif self.source.root is None:
            self._stay_held("it is not known which task was dumped")
        else:
            root = self.source.root
            self.watch(Task.open(root.pid, root.started), None, partial(self._stay_held, "its task lives on"))

    def _stay_held(self, why: str) -> None:
        self.reason = why
        self.hint = (
            f"criu-relay commit {self.namespace} --force to serve it all the same,"
            f" criu-relay discard {self.namespace} to give it up"
        )
        self.log.warn("namespace {name} stays held: {why}; {hint}", name=self.namespace, why=why, hint=self.hint)

    async def commit(self, why: str) -> None:
        """It is a fact, or a person says so: returns when the cache has confirmed it, however long that takes.

        Cancelling gives up waiting, not the commit.

        @raise Aborted: the cache does not have it any more.
        """
        self.machine.feed(Event.COMMIT)
        self.reason, self.hint = why, ""
        decided = self.decided.wait()
        self.outgoing.decide(True).addCallback(self._confirmed).addErrback(self._unexpected)
        await decided
        if self.state is State.LOST:
            raise Aborted(self.reason)

    def _confirmed(self, outcome: str) -> None:
        if outcome == "committed":
            self.machine.feed(Event.CONFIRMED)
            self._permission.keep().addErrback(self._unexpected)
        else:
            self._missing(f"lost: the cache answers {outcome!r}, it has the images no more")
        self._settled()

    def ask_again(self) -> None:
        """Committed, and there is another link: is it the same cache, or one that was started anew?"""
        self.outgoing.decide(True).addCallback(self._found).addErrback(self._unexpected)

    def _found(self, outcome: str) -> None:
        if outcome != "committed" and self.state is State.COMMITTED:
            self._missing("lost, unless it was restored before: the cache was started anew and has the images no more")
            self._at.counters.add(f"migrations_{self.state.value}")

    def let_go(self) -> None:
        """Committed, and restored or discarded at the destination: the cache need not be asked after it."""
        self._permission.forget().addErrback(self._unexpected)

    def _missing(self, reason: str) -> None:
        self.reason = reason
        tell_lost(self)
        self._at.counters.failed(f"namespace {self.namespace}", Cause.PEER, reason)
        self.machine.feed(Event.UNKNOWN)
        self._permission.forget().addErrback(self._unexpected)

    def abort(self, reason: str, hint: str = "", cause: Cause = Cause.DUMP, event: Event = Event.ABORT) -> None:
        """Give it up: CRIU gets EPIPE, the cache forgets it.

        @raise Conflict: it is decided, or only the fact can decide it.
        """
        self.machine.feed(event)
        self.reason, self.hint = reason, hint
        self._at.counters.aborted(self.namespace, cause, reason)
        tell_aborted(self)
        for client in list(self.clients):
            client.drop(reason)
        forgotten = self._permission.forget() if event is Event.LIVES else succeed(None)
        forgotten.addBoth(lambda _: self.outgoing.decide(False, reason)).addErrback(self._unexpected)
        self._held.fire(self.refusal())
        self._settled()

    def _unexpected(self, failure: Failure) -> None:
        if not failure.check(CancelledError, Aborted, LinkLost):
            self.log.failure("namespace {name}", failure, name=self.namespace)

    def _settled(self) -> None:
        self.decided_at = self._at.clock.seconds()
        self._at.counters.add(f"migrations_{self.state.value}")
        self._idle.cancel()
        if self._verdict is not None:
            self._verdict.stop()
        self.source.close()
        self.decided.fire()

    def _index(self, label: str) -> int:
        return len(self.labels) - self.labels[::-1].index(label)

    def _check_writing(self) -> None:
        if self.state not in WRITING:
            raise self.refusal() if self.over else Conflict(f"namespace {self.namespace} is {self.state.value}")
