"""What the migrations of a proxy do over a joined pair, and what a restore gets of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from criu_relay.errors import RelayError
from criu_relay.interfaces import Mode
from criu_relay.store.generation import State
from tests.link.support import MIB, Loop, migration, result

KEPT = {"a.img": b"alpha and more", "empty.img": b"", "b.img": b"second", "inventory.img": b"inv"}
"""What is there in the end of what L{Session.run} writes."""

FIRST, SECOND, THIRD, BYSTANDER, AGAIN = map(migration, (0x03, 0x0C, 0x30, 0x15, 0x2A))
"""No flipped bit makes one of them another."""


class Session:
    """One migration: everything in order, giving up when it is told that it cannot go on.

    @ivar lost: what it was told when it could not go on.
    @ivar committed: it has decided to.
    @ivar outcome: what the cache made of the decision.
    """

    def __init__(self, loop: Loop, number: bytes = FIRST, name: str = "web") -> None:
        self.loop = loop
        self.number = number
        self.name = name
        self.lost: list[RelayError] = []
        self.sealing: list[Any] = []
        self.outcome: list[Any] = []
        self.fetched: list[Any] = []
        self.decided = False
        self.committed = False
        self.outgoing: Any = None

    @property
    def held(self) -> list[Any]:
        """The bytes that the cache says it has verified, once it says so."""
        return [count for count in self.sealing if not isinstance(count, RelayError)]

    @property
    def told(self) -> bool:
        """It was told that it is held, or that it cannot go on."""
        return bool(self.sealing or self.lost)

    def attempt(self, what: Callable[[], None]) -> None:
        """Begin, and do it as far as it goes."""
        try:
            self.outgoing = self.loop.outlet.begin(self.number, self.name, False, self.lost.append)
            self.outgoing.snapshot(1, "")
            what()
        except RelayError:
            # Told already, or now.
            self.lost = self.lost or [self.outgoing.dead]

    def write(self, name: str, data: bytes, mode: Mode = Mode.REPLACE) -> None:
        sink = self.outgoing.open_image(1, name, mode)
        for at in range(0, len(data), 5):
            sink.write(data[at : at + 5])
            self.loop.pump()
        sink.end()
        self.loop.pump()

    def finish(self) -> None:
        """Everything behind the first image."""
        self.write("empty.img", b"")
        self.write("a.img", b" and more", Mode.APPEND)
        self.write("b.img", b"first")
        self.write("b.img", b"second")
        self.fetched = result(self.outgoing.read_image(1, "a.img").read(2, 5))
        self.loop.pump()
        self.write("inventory.img", b"inv")
        self.sealing = result(self.outgoing.seal({"host": "h"}))
        self.loop.pump()

    def decide(self, commit: bool) -> None:
        self.decided = True
        self.committed = commit
        self.outcome = result(self.outgoing.decide(commit, "given up"))
        self.loop.pump()

    def run(self, commit: bool = True) -> Session:
        self.attempt(self.everything)
        if self.told:
            self.decide(commit and bool(self.held) and not self.lost)
        return self

    def everything(self) -> None:
        self.write("a.img", b"alpha")
        self.finish()


def contents(loop: Loop, name: str) -> dict[str, bytes]:
    """What a restore gets of all images that the cache knows there, or that were written."""
    namespace = loop.store.namespace(name)
    names = {image.name for generation in namespace.generations for image in generation.images()}
    restore = namespace.begin(None)
    found = {}
    for image in sorted(names | set(KEPT)):
        [opened] = result(restore.open(None, image))
        if opened is not None:
            found[image] = result(opened.read(0, MIB))[0]
            opened.close()
    return found


def states(loop: Loop) -> list[State]:
    return [generation.state for home in loop.store.namespaces.values() for generation in home.generations]


def committed(loop: Loop) -> set[str]:
    """The namespaces that are served."""
    return {
        name
        for name, home in loop.store.namespaces.items()
        if State.COMMITTED in [generation.state for generation in home.generations]
    }
