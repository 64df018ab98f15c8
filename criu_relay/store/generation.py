"""One generation of a namespace at the cache: its snapshots, its images, and what was decided."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from criu_relay.errors import Conflict, NotFound, ProtocolError
from criu_relay.interfaces import Mode, Owner
from criu_relay.machine import Machine, Table
from criu_relay.store.image import Image
from criu_relay.store.table import Kind
from criu_relay.wire.link import MAX_IMAGES, MAX_SNAPSHOTS


class State(enum.Enum):
    """Where a generation is."""

    OPEN = "open"
    HELD = "held"
    COMMITTED = "committed"
    RESTORED = "restored"
    DISCARDED = "discarded"
    ABORTED = "aborted"


class Event(enum.Enum):
    """What happens to a generation."""

    VERIFIED = "verified"
    COMMIT = "commit"
    ABORT = "abort"
    RESTORE = "restored"
    DISCARD = "discard"


TABLE: Table[State, Event] = {
    (State.OPEN, Event.VERIFIED): State.HELD,
    (State.OPEN, Event.ABORT): State.ABORTED,
    (State.HELD, Event.COMMIT): State.COMMITTED,
    (State.HELD, Event.ABORT): State.ABORTED,
    (State.COMMITTED, Event.RESTORE): State.RESTORED,
    (State.COMMITTED, Event.DISCARD): State.DISCARDED,
    (State.RESTORED, Event.DISCARD): State.DISCARDED,
}

SERVABLE = (State.COMMITTED,)


@dataclass
class Snapshot:
    """The images of one dump or pre-dump."""

    index: int
    label: str
    images: dict[str, Image] = field(default_factory=dict)


class Generation:
    """See the module.

    @ivar number: from 1, within its namespace.
    @ivar migration: its 128-bit id.
    @ivar reason: why it was aborted or discarded.
    @ivar asked_at: when it was committed, or a restore asked for something of it last.
    @ivar restorer: the restore that its bytes are given back to, as it reads them; None: no one yet.
    """

    def __init__(
        self,
        namespace: str,
        number: int,
        owner: Owner,
        migration: bytes,
        copy: bool,
        source: str,
        began: float,
        new_image: Callable[[int, int, str], Image],
        decided: Callable[[Generation], None],
    ) -> None:
        self.namespace = namespace
        self.number = number
        self.owner = owner
        self.migration = migration
        self.copy = copy
        self.source = source
        self.began = began
        self.decided_at: float | None = None
        self.asked_at = began
        self.restorer: object = None
        self.reason = ""
        self.held_bytes: int | None = None
        self.held_at: float | None = None
        self.snapshots: list[Snapshot] = []
        self._images: dict[int, Image] = {}
        self._new_image = new_image
        self._decided = decided
        self.machine: Machine[State, Event] = Machine(f"namespace {namespace}", TABLE, State.OPEN, self._entered)

    @property
    def state(self) -> State:
        """Where it is."""
        return self.machine.state

    @property
    def decided(self) -> bool:
        """Neither open nor held."""
        return self.state not in (State.OPEN, State.HELD)

    @property
    def total(self) -> int:
        """Bytes of all its images so far."""
        return self.held_bytes if self.held_bytes is not None else sum(image.size for image in self.images())

    @property
    def released(self) -> bool:
        """Bytes of it were given back to the restore that read them."""
        return any(image.table.pages[Kind.RELEASED] for image in self.images())

    def images(self) -> Iterator[Image]:
        """Every image of every snapshot."""
        for snapshot in self.snapshots:
            yield from snapshot.images.values()

    def labels(self) -> list[str]:
        """The snapshots' labels, oldest first."""
        return [snapshot.label for snapshot in self.snapshots]

    def add_snapshot(self, index: int, label: str) -> None:
        """Snapshot number `index` begins.

        @raise ProtocolError: it is not the next one.
        """
        self._writable()
        if index != len(self.snapshots) + 1 or index > MAX_SNAPSHOTS:
            raise ProtocolError(f"snapshot {index} of {self.namespace} follows {len(self.snapshots)}")
        self.snapshots.append(Snapshot(index, label))

    def open_image(self, number: int, snapshot: int, name: str, mode: Mode) -> None:
        """An image begins (replacing one of that name) or goes on.

        @raise ProtocolError: number, snapshot or name do not fit what was said before.
        """
        self._writable()
        if mode is Mode.APPEND:
            image = self.image(number)
            if image.name != name or image.snapshot != snapshot or not image.complete:
                raise ProtocolError(f"image {number} of {self.namespace} cannot be appended to as {name}")
            image.complete = False
            return
        if number in self._images:
            raise ProtocolError(f"image number {number} of {self.namespace} is used twice")
        if not 1 <= snapshot <= len(self.snapshots):
            raise ProtocolError(f"image {name} of {self.namespace} is for snapshot {snapshot}, which was not declared")
        if len(self._images) >= MAX_IMAGES:
            raise ProtocolError(f"{self.namespace} has more than {MAX_IMAGES} images")
        images = self.snapshots[snapshot - 1].images
        if name in images:
            old = images[name]
            del self._images[old.number]
            old.drop()
        self._images[number] = images[name] = self._new_image(number, snapshot, name)

    def image(self, number: int) -> Image:
        """The image that the link calls `number`.

        @raise ProtocolError: there is none.
        """
        try:
            return self._images[number]
        except KeyError:
            raise ProtocolError(f"{self.namespace} has no image number {number}") from None

    def ended(self, number: int) -> Image | None:
        """The complete image of that number; None: it is being appended to, or was replaced."""
        image = self._images.get(number)
        return image if image is not None and image.complete else None

    def writing(self, number: int, offset: int) -> Image:
        """The image, to be written from `offset` on.

        @raise ProtocolError: `offset` is not where it ends, or it is complete.
        """
        self._writable()
        image = self.image(number)
        if image.complete or offset != image.size:
            raise ProtocolError(
                f"image {image.name} of {self.namespace} ends at {image.size}, the extent is at {offset}"
            )
        return image

    def seal(self, images: Sequence[tuple[int, str, int, bytes | None]]) -> None:
        """Compare the closing header with what is here; held if all is well.

        @raise ProtocolError: something is missing, too much, not complete or different.
        """
        self._writable()
        here = {(image.snapshot, image.name): image for image in self.images()}
        for snapshot, name, size, digest in images:
            image = here.pop((snapshot, name), None)
            if image is None or not image.complete:
                raise ProtocolError(f"image {name} of {self.namespace} is {'not complete' if image else 'missing'}")
            if image.size != size or image.digest != digest:
                raise ProtocolError(f"image {name} of {self.namespace} is not what the closing header says")
        if here:
            raise ProtocolError(f"the closing header of {self.namespace} does not list {next(iter(here))[1]}")
        self.held_bytes = self.total
        self.machine.feed(Event.VERIFIED)

    def find(self, snapshot: str | None, name: str) -> Image | None:
        """A complete image by its snapshot's label (None: the newest snapshot) and name."""
        for candidate in reversed(self.snapshots):
            if snapshot is None or candidate.label == snapshot:
                image = candidate.images.get(name)
                return image if image is not None and image.complete else None
        return None

    def at(self, snapshot: int | None, name: str) -> tuple[Snapshot, Image]:
        """An image by its snapshot's index (None: the newest) and name.

        @raise NotFound: there is none.
        """
        index = len(self.snapshots) if snapshot is None else snapshot
        if 1 <= index <= len(self.snapshots):
            found = self.snapshots[index - 1]
            if name in found.images:
                return found, found.images[name]
        missing = f"namespace {self.namespace} has no image {name} in snapshot {index}"
        raise NotFound(missing, hint="criu-relay images lists them")

    def feed(self, event: Event, reason: str = "") -> None:
        """A decision, or what follows one.

        @raise Conflict: it does not fit the state.
        """
        if reason and self.machine.accepts(event):
            self.reason = reason
        self.machine.feed(event)

    def reset_readers(self, reason: str) -> None:
        """Whoever reads an image of it is told that it ends here."""
        for image in self.images():
            image.reset_readers(reason)

    def drop_images(self) -> int:
        """Give all memory back.

        @return: bytes.
        """
        return sum(image.drop() for image in self.images())

    def _writable(self) -> None:
        if self.state is not State.OPEN:
            raise Conflict(f"namespace {self.namespace} is {self.state.value}: nothing can be added to it")

    def _entered(self, state: State) -> None:
        if state is not State.HELD:
            self._decided(self)
