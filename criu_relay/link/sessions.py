"""What a cache knows of a proxy over any number of links: how far it came, and the migrations under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash
from twisted.internet.interfaces import IReactorTime

from criu_relay.errors import Conflict
from criu_relay.interfaces import Owner
from criu_relay.link.connection import LinkConnection

SESSIONS = 1024
"""Proxies that one cache serves at a time, those included whose link may come back."""


@dataclass
class Migration:
    """What is known of a migration of a session.

    @ivar refused: why it cannot go on, which its proxy was told: what still comes of it is dropped.
    @ivar rows: of its closing header, so far.
    @ivar labels: the hash of the labels of its snapshots.
    """

    refused: str = ""
    rows: list[tuple[int, str, int, bytes | None]] = field(default_factory=list)
    labels: Any = field(default_factory=xxhash.xxh3_128)


@dataclass(eq=False)
class Session:
    """One run of a proxy, as far as this cache can go on with it.

    @ivar id: the 16 bytes that it says in its hello; drawn here for one that cannot go on over another link.
    @ivar frames: counted frames that were handled.
    @ivar partial: payload bytes taken of the next one.
    @ivar charged: the cost of the next one was taken off its migration's credit.
    @ivar acknowledged: the count that it was told last.
    @ivar owed: payload bytes of the frames that were handled since; C{ack_bytes}: with so many it is told at once.
    @ivar acknowledging: the call that acknowledges what was not yet.
    @ivar let_go: migrations that it need not ask after any more, which it is not told yet.
    @ivar connection: its link; None: it is lost, and the session ends when it is not made again in time.
    """

    owner: Owner
    id: bytes
    frames: int = 0
    partial: int = 0
    charged: bool = False
    acknowledged: int = 0
    owed: int = 0
    ack_bytes: int = 0
    connection: LinkConnection | None = None
    migrations: dict[bytes, Migration] = field(default_factory=dict)
    let_go: list[bytes] = field(default_factory=list)
    acknowledging: Any = None
    ending: Any = None

    def handled(self) -> None:
        """One more counted frame, with its payload."""
        self.frames += 1
        self.owed += self.partial
        self.partial = 0
        self.charged = False

    def followed(self, frames: int, count: int) -> None:
        """So many more, with so many bytes of payload in all."""
        self.frames += frames
        self.owed += count


class Sessions:
    """All sessions of a cache."""

    def __init__(self, clock: IReactorTime, patience: float, ended: Callable[[Session, str], None]) -> None:
        """
        @param patience: seconds that a session outlives its link.
        @param ended: a session is over, with the reason.
        """
        self._clock = clock
        self._patience = patience
        self._ended = ended
        self._sessions: dict[tuple[Owner, bytes], Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def linked(self, owner: Owner, session: bytes, connection: LinkConnection) -> tuple[Session, bool]:
        """A proxy is there, with a new session or with one that it goes on with.

        Its other sessions that wait for a link are over: it was started again, or has given them up.

        @return: the session, and whether it was known. The link that it had before is left to the caller.
        @raise Conflict: there are too many.
        """
        for other in self:
            if other.owner == owner and other.id != session and other.connection is None:
                self.end(other, "its proxy was started again, or has given it up")
        found = self._sessions.get((owner, session))
        if found is not None:
            self._cancel(found)
            return found, True
        if len(self._sessions) >= SESSIONS:
            raise Conflict(f"the cache serves {SESSIONS} proxies already", hint="stop those that are not needed")
        made = self._sessions[owner, session] = Session(owner, session, connection=connection)
        return made, False

    def unlinked(self, session: Session, reason: str, for_good: bool) -> None:
        """Its link is gone."""
        session.connection = None
        if for_good or not self._patience:
            self.end(session, reason)
        else:
            lost = f"{reason}, and it was not made again in {self._patience:.0f} s"
            session.ending = self._clock.callLater(self._patience, self._too_late, session, lost)

    def end(self, session: Session, reason: str) -> None:
        """It is over."""
        self._cancel(session)
        if self._sessions.pop((session.owner, session.id), None) is session:
            self._ended(session, reason)

    def _too_late(self, session: Session, reason: str) -> None:
        session.ending = None
        self.end(session, reason)

    def _cancel(self, session: Session) -> None:
        if session.ending is not None:
            session.ending.cancel()
            session.ending = None
