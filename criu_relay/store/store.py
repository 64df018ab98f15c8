"""The cache's store: every namespace, every generation, all image memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from criu_relay.errors import ABORTED, Cause, Conflict, Forbidden, NotFound, ProtocolError
from criu_relay.interfaces import Counters, IGrowing, IIntake, Mode, Owner
from criu_relay.store.arena import Arena
from criu_relay.store.credit import Credits
from criu_relay.store.figures import Accounts
from criu_relay.store.generation import Event, Generation, State
from criu_relay.store.image import Image
from criu_relay.store.memory import Memory
from criu_relay.store.namespace import Namespace
from criu_relay.store.opened import read_bytes
from criu_relay.store.policy import Dedup, Policy
from criu_relay.store.spill import Spiller
from criu_relay.store.superseded import Superseder
from criu_relay.store.table import Kind

TTL_LOOK_SECONDS = 1.0
"""A namespace that is being read when its time is over is looked at again after this."""

TODO = "nothing to do here; the log of its proxy says more"

NAMESPACES = 4096
"""Names that a cache knows at once: each keeps its history, and `status` lists them. When there are more the first one
is forgotten of which nothing is attached, here, on its way or waited for."""


@implementer(IIntake)
class Store:
    """See the module.

    @ivar namespaces: by name.
    @ivar credits: what open namespaces may send.
    @ivar rejected: called with a migration that was given up here, and why.
    @ivar let_go: called with the owner of a migration that was committed and is restored or discarded.
    @ivar attached: whether a socket is bound for a namespace.
    @ivar accepting: new generations may begin.
    """

    log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        arena: Arena,
        counters: Counters,
        patience: float,
        policy: Policy = Policy(),  # noqa: B008 (frozen)
    ) -> None:
        """@param patience: seconds that an open waits for a dump."""
        self.memory = Memory(clock, arena, policy.dedup)
        self.arena = arena
        self.namespaces: dict[str, Namespace] = {}
        self.policy = policy
        self.counters = counters
        self.rejected: Callable[[bytes, str], None] = lambda migration, reason: None
        self.let_go: Callable[[Owner, bytes], None] = lambda owner, migration: None
        self.attached: Callable[[str], bool] = lambda name: False
        self._reactor = reactor
        self._clock = clock
        self._patience = patience
        self.accepting = True
        self.credits = Credits(clock, self.memory)
        self.credits.given_up = self._give_up
        self._spiller = Spiller(clock, self.memory, policy.spill, self._cold, lambda: bool(self.credits.waiting))
        self.credits.scarce = self._spiller.start
        self.memory.reclaimer.freed = self.credits.share
        self._superseder = Superseder(clock, arena)
        self._generations: dict[bytes, Generation] = {}

    def namespace(self, name: str) -> Namespace:
        """The namespace of that name, made when it is not there.

        @raise Conflict: there are too many.
        """
        if name not in self.namespaces:
            if len(self.namespaces) >= NAMESPACES:
                self._forget_one()
            if len(self.namespaces) >= NAMESPACES:
                raise Conflict(f"the cache knows {NAMESPACES} namespaces already", hint="discard some")
            self.namespaces[name] = Namespace(
                name,
                self._reactor,
                self._clock,
                self._patience,
                lambda count: self.counters.add("criu_bytes_out", count),
                self.policy.release,
            )
        return self.namespaces[name]

    def known(self, name: str) -> Generation:
        """The newest generation of a namespace.

        @raise NotFound: nothing of that name was ever sent.
        """
        namespace = self.namespaces.get(name)
        if namespace is None or namespace.newest is None:
            raise NotFound(f"no namespace {name}", hint="criu-relay status lists them")
        return namespace.newest

    def accounts(self) -> Accounts:
        """What memory is taken by."""
        return Accounts(self.memory, [one for home in self.namespaces.values() for one in home.generations])

    # IIntake

    def begin(
        self, owner: Owner, migration: bytes, namespace: str, copy: bool, source: str, digests: bool = True
    ) -> None:
        """See L{IIntake.begin}."""
        if migration in self._generations:
            raise ProtocolError(f"migration {migration.hex()} began twice")
        home = self.namespace(namespace)
        for other in home.generations:
            if other.state is not State.ABORTED and other.owner.peer != owner.peer:
                raise Forbidden(
                    f"namespace {namespace} belongs to {other.owner.peer}, not to {owner.peer}", hint="use another name"
                )
        if not self.accepting:
            raise Conflict("criu-relay-cache is being stopped", hint="start it again, then dump again")
        home.began += 1
        generation = Generation(
            namespace, home.began, owner, migration, copy, source, self._clock.seconds(),
            partial(Image, self.memory, self.memory.index(owner.peer), digests=digests), self._decided,
        )  # fmt: skip
        self._generations[migration] = generation
        home.add(generation)
        self.counters.add("namespaces_begun")

    def snapshot(self, owner: Owner, migration: bytes, index: int, label: str) -> None:
        """See L{IIntake.snapshot}."""
        self._of(owner, migration).add_snapshot(index, label)

    def open_image(self, owner: Owner, migration: bytes, image: int, snapshot: int, name: str, mode: Mode) -> None:
        """See L{IIntake.open_image}."""
        self._of(owner, migration).open_image(image, snapshot, name, mode)

    def credit(self, owner: Owner, migration: bytes) -> None:
        """See L{IIntake.credit}."""
        generation = self._generations.get(migration)
        if generation is not None and generation.owner == owner and generation.state is State.OPEN:
            self.credits.begin(migration)

    def writing(self, owner: Owner, migration: bytes, image: int, offset: int, cost: int = 0) -> IGrowing:
        """See L{IIntake.writing}."""
        target = self._of(owner, migration).writing(image, offset)
        if cost:
            self.credits.spend(migration, cost)
            target.promise(cost)
        return target

    def end_image(self, owner: Owner, migration: bytes, image: int, size: int, digest: bytes | None) -> None:
        """See L{IIntake.end_image}."""
        generation = self._of(owner, migration)
        target = generation.image(image)
        generation.writing(image, target.size).finish(size, digest)
        if self.policy.dedup is not Dedup.OFF:
            self._superseder.ended(generation, target)
        self.counters.add("images_received")

    def seal(
        self, owner: Owner, migration: bytes, images: Sequence[tuple[int, str, int, bytes | None]], source: str
    ) -> int:
        """See L{IIntake.seal}."""
        generation = self._of(owner, migration)
        generation.source = source or generation.source
        generation.seal(images)
        generation.held_at = self._clock.seconds()
        self.credits.end(migration)
        self._superseder.sealed(generation)
        self.log.info("namespace {name} is held: {bytes} bytes", name=generation.namespace, bytes=generation.total)
        return generation.total

    def decide(self, owner: Owner, migration: bytes, commit: bool, reason: str) -> bool | None:
        """See L{IIntake.decide}."""
        generation = self._generations.get(migration)
        if generation is None:
            return None
        if generation.owner != owner:
            raise Forbidden(f"migration {migration.hex()} is not {owner.peer}'s")
        if not generation.decided:
            self.settle(generation, commit, reason)
        elif commit is (generation.state is State.ABORTED):
            self.log.error(
                "namespace {name} was decided before: it is {state}, its proxy says {word}",
                name=generation.namespace, state=generation.state.value, word="commit" if commit else "abort",
            )  # fmt: skip
        return generation.state is not State.ABORTED

    def discard_range(self, owner: Owner, migration: bytes, image: int, offset: int, length: int) -> None:
        """See L{IIntake.discard_range}."""
        target = self._of(owner, migration).image(image)
        target.discard(offset, length, Kind.DISCARDED, f"its proxy has discarded a range of image {target.name}")

    def read(self, owner: Owner, migration: bytes, image: int, offset: int, length: int) -> bytes:
        """See L{IIntake.read}."""
        source = self._of(owner, migration).ended(image)
        return read_bytes(source, offset, length) if source is not None else b""

    def held(self, owner: Owner) -> list[tuple[bytes, str, int]]:
        """See L{IIntake.held}."""
        return [
            (migration, generation.namespace, generation.total)
            for migration, generation in self._generations.items()
            if generation.state is State.HELD and generation.owner == owner
        ]

    def link_lost(self, owner: Owner, migrations: Sequence[bytes], reason: str, cause: Cause = Cause.LINK) -> int:
        """See L{IIntake.link_lost}."""
        lost = [
            generation
            for migration in migrations
            if (generation := self._generations.get(migration)) is not None
            and generation.owner == owner
            and generation.state is State.OPEN
        ]
        for generation in lost:
            self.settle(generation, False, reason, cause)
        return len(lost)

    # Decisions

    def settle(self, generation: Generation, commit: bool, reason: str = "", cause: Cause = Cause.PEER) -> None:
        """Commit or abort a generation.

        @param cause: what an abort is counted under.
        @raise Conflict: it does not fit its state.
        """
        generation.feed(Event.COMMIT if commit else Event.ABORT, reason)
        if not commit:
            self.counters.aborted(generation.namespace, cause, reason)
        elif generation.held_at is not None:
            self.counters.took("commit", self._clock.seconds() - generation.held_at)

    def restored(self, name: str) -> Generation:
        """The restored process runs: its generation cannot be restored again, unless everything is retained.

        @raise NotFound: no such namespace.
        @raise Conflict: it is not committed.
        """
        generation = self._committed(name)
        if not self.policy.retain:
            generation.feed(Event.RESTORE, "restored, and its images released")
        return generation

    def discard(self, name: str) -> int:
        """Throw a namespace away: an undecided generation aborts, a committed one is gone, and who reads it is reset.

        @return: bytes of images that were thrown away.
        """
        freed = 0
        self.known(name)
        for generation in list(self.namespaces[name].generations):
            freed += sum(image.size for image in generation.images() if not image.dropped)
            generation.reset_readers(f"namespace {name} was discarded")
            if not generation.decided:
                self.settle(generation, False, "discarded at the cache", Cause.PERSON)
                self.rejected(generation.migration, generation.reason)
            elif generation.state is not State.ABORTED and generation.state is not State.DISCARDED:
                generation.feed(Event.DISCARD, "discarded by a person")
        return freed

    def discard_image(self, name: str, snapshot: int | None, image: str, offset: int, length: int | None) -> int:
        """Throw away an image of a committed namespace, or (the whole pages of) a range of it; who reads it is reset.

        @return: bytes of memory given back.
        """
        generation = self._committed(name)
        home, found = generation.at(snapshot, image)
        reason = f"image {image} of namespace {name} was discarded"
        if offset == 0 and (length is None or length >= found.size):
            del home.images[image]
            return found.reset(reason)
        return found.discard(offset, found.size - offset if length is None else length, Kind.DISCARDED, reason)

    def under_way(self) -> list[str]:
        """The namespaces that are being sent here, or read by restores."""
        return [name for name, namespace in self.namespaces.items() if any(map(_busy, namespace.generations))]

    def _forget_one(self) -> None:
        for name, namespace in self.namespaces.items():
            if namespace.forgettable and not self.attached(name):
                del self.namespaces[name]
                for generation in namespace.generations:
                    self._generations.pop(generation.migration, None)
                return

    def _committed(self, name: str) -> Generation:
        self.known(name)
        for generation in reversed(self.namespaces[name].generations):
            if generation.state is State.COMMITTED:
                return generation
        raise Conflict(f"namespace {name} is {self.known(name).state.value}, not committed")

    def _of(self, owner: Owner, migration: bytes) -> Generation:
        generation = self._generations.get(migration)
        if generation is None:
            raise ProtocolError(f"migration {migration.hex()} was never begun here")
        if generation.owner != owner:
            raise Forbidden(f"migration {migration.hex()} is not {owner.peer}'s")
        return generation

    def _cold(self) -> Iterator[Image]:
        """Images that may be spilled: of committed namespaces that nobody reads, the longest untouched first."""
        committed = [one for one in self._generations.values() if one.state is State.COMMITTED]
        for generation in sorted(committed, key=lambda one: one.asked_at):
            if not any(image.readers for image in generation.images()):
                yield from generation.images()

    def _give_up(self, migration: bytes) -> None:
        """Nothing moves, and the budget is used up."""
        generation = self._generations[migration]
        alone = all(one is generation or not one.total for one in self._generations.values())
        reason = (
            f"the cache's memory is full: {generation.namespace} has {generation.total} bytes so far,"
            f" {'which' if alone else 'others wait too, and all of it'} does not fit into --memory {self.arena.limit}:"
            " give it a larger one, or discard what is not needed"
        )
        self.settle(generation, False, reason)
        self.rejected(migration, reason)

    def _expire(self, generation: Generation) -> None:
        """Discard it if nobody has asked for it in time."""
        ttl = self.policy.ttl
        if ttl is None or generation.state is not State.COMMITTED:
            return
        left = generation.asked_at + ttl - self._clock.seconds()
        if left > 0 or any(image.readers for image in generation.images()):
            self._clock.callLater(max(left, TTL_LOOK_SECONDS), self._expire, generation)
        else:
            generation.feed(Event.DISCARD, f"discarded, as nobody asked for it for {ttl:g} s")

    def _decided(self, generation: Generation) -> None:
        generation.decided_at = generation.decided_at or self._clock.seconds()
        home = self.namespaces[generation.namespace]
        state = generation.state
        self.counters.add(f"namespaces_{state.value}")
        if state is State.ABORTED:
            self.log.error(
                ABORTED, name=home.name, migration=generation.migration.hex(), bytes=generation.total,
                why=generation.reason, who=generation.source or f"the proxy {generation.owner.peer}", todo=TODO,
            )  # fmt: skip
        else:
            self.log.info("namespace {name}: {why}", name=home.name, why=generation.reason or state.value)
        self.credits.end(generation.migration)
        if state is State.COMMITTED:
            generation.asked_at = self._clock.seconds()
            self._expire(generation)
            self._replace_older(home, generation)
        else:
            self._superseder.forget(generation)
            generation.drop_images()
            if state is not State.ABORTED:
                self.let_go(generation.owner, generation.migration)
        home.decided(generation)
        kept = {old.migration for old in home.generations}
        for migration in [m for m, g in self._generations.items() if g.namespace == home.name and m not in kept]:
            del self._generations[migration]

    def _replace_older(self, home: Namespace, generation: Generation) -> None:
        for old in [old for old in home.generations if old.state is State.COMMITTED and old is not generation]:
            replaced = old if old.number < generation.number else generation
            replaced.feed(Event.DISCARD, "replaced by a newer generation")


def _busy(generation: Generation) -> bool:
    return generation.state is State.OPEN or any(image.readers for image in generation.images())
