"""Where local/, link/, store/, commit/ and admin/ meet.

The data's way::

    proxy   CRIU -> local (IDumpClient) -> IDump.open_image -> IImageSink -> link's window -> link
    cache   link -> IIntake -> IImageSink -> store -> IRestore.open -> IOpenedImage -> local -> CRIU

`local/` and `link/` know this module, `wire/` and `flow/`, and not each other.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from zope.interface import Attribute, Interface

from criu_relay.counters import Counters as Counters
from criu_relay.errors import Cause


class Mode(enum.Enum):
    """How a write opens an image: from its start (replacing what was there) or at its end."""

    REPLACE = 1
    APPEND = 2


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a unix socket (SO_PEERCRED, unix(7)).

    @ivar pid: 0 when the peer lives in a pid namespace that is not visible here.
    """

    pid: int
    uid: int
    gid: int


class Room(NamedTuple):
    """Memory that the next bytes of an image may be written to.

    @ivar fd: a memfd.
    @ivar offset: where the room begins in it, in bytes.
    @ivar view: the same memory, mapped and writable; its length is the room's.
    """

    fd: int
    offset: int
    view: memoryview


class IExtent(Interface):
    """A piece of a memfd region, mapped once and recycled."""

    size = Attribute("Its length in bytes: a power of four times 4096.")
    fd = Attribute("The memfd it lies in.")
    offset = Attribute("Where it begins in that memfd, in bytes.")
    view = Attribute("The memory itself, a writable memoryview of `size` bytes.")


class IArena(Interface):
    """Memory in recycled extents, within a budget."""

    used = Attribute("Bytes in extents that are allocated now.")
    limit = Attribute("The budget in bytes.")
    recycled = Attribute("Bytes of free memory that still has its pages.")

    def allocate(size: int) -> IExtent | None:
        """The smallest extent of at least C{size} bytes (at most the largest class); None: over the budget."""

    def force(size: int) -> IExtent:
        """The same although the budget is used up, for bytes that are here already; at most twice the budget."""

    def free(extent: IExtent, shared: bool = False) -> None:
        """Give it back. `shared`: pages of it may still be referred to by a pipe or a socket."""


class IImageSink(IConsumer):
    """Where the bytes of one image go, in order. Its producer is paused while there is no room."""

    def reserve(size: int) -> Room | None:
        """Room for at least one of the next `size` bytes; None: not now, the producer is resumed when there is."""

    def written(count: int) -> None:
        """The first `count` bytes of the room reserved last are filled."""

    def end() -> None:
        """The image is complete. Call one of end and fail, once, as the last."""

    def fail(reason: str) -> None:
        """The image will never be complete."""


class IPassingSink(IImageSink):
    """An image whose bytes are passed on by reference, out of the pipe they are in: nothing of them is kept."""

    def offer(fd: int, count: int) -> None:
        """The next `count` bytes (at most 1 MiB) wait in the pipe `fd`.

        The producer pauses itself; it is resumed when they have left.
        """


class IImportSink(IImageSink):
    """An image that a client of the control API puts in."""

    refusal = Attribute("The L{RelayError} that says why nothing more of it is wanted; once its producer was stopped.")


class IGrowing(Interface):
    """An image that bytes are appended to. Raises L{RelayError} where there is no memory, and will be none."""

    number = Attribute("What the link calls it.")
    size = Attribute("Bytes that it has.")

    def reserve(size: int) -> Room:
        """Room for at least one of the next `size` bytes."""

    def written(count: int) -> None:
        """The first `count` bytes of what is left of the room reserved last are filled."""

    def grow(runs: Sequence[int]) -> None:
        """The next bytes: of the room reserved last, zeros, of the room, ..., so many each.

        Zeros are whole pages of 4096 bytes, from a multiple of 4096 on.
        """


class IOpenedImage(Interface):
    """A complete image, opened for reading; independent of every other reader."""

    size = Attribute("Its length in bytes.")

    def serve(fd: int) -> Deferred[int]:
        """Write all of it to a pipe or stream socket.

        @param fd: the caller's own; not closed here. It is made non-blocking.
        @return: fires with the bytes written: fewer than `size` when the reader left early (no error).
            Errs with L{RelayError} when the image cannot be read. Cancelling stops it.
        """

    def whole(most: int) -> bytes | None:
        """All of it for the reader, instead of L{serve}.

        @return: None when it is larger than `most`, does not lie here, or cannot be read, which L{serve} explains.
        """

    def skip(offset: int, length: int) -> tuple[int, int]:
        """The reader that L{serve} writes to does not want these bytes; see docs/protocol.md, "Skip".

        @return: from, to: these are not going to be written. Both are the same when nothing is skipped.
        """

    def read(offset: int, length: int) -> Deferred[bytes]:
        """At most 1 MiB of it, for consoles and exports."""

    def close() -> None:
        """Done with it; call once."""


class IDumpClient(Interface):
    """One connection of CRIU at the proxy, as the migration sees it."""

    peer = Attribute("Peer, or None when unknown.")
    whole_dump = Attribute("True: this one connection is the whole dump (stream).")

    def unsettled() -> str | None:
        """What is still on its way on this connection, in words; None when nothing is."""

    def drop(reason: str) -> None:
        """End the connection and every pipe that came over it, so that CRIU notices."""


class IDumpListener(Interface):
    """A listening socket of a dialect at the proxy."""

    def unsettled() -> str | None:
        """A connection that waits in the listen queue, in words; None when there is none."""


class IDump(Interface):
    """One namespace at the proxy, as the local dialects see it.

    Every method raises L{RelayError} when it cannot be done; the dialect then drops the client.
    """

    def client_connected(client: IDumpClient) -> None:
        """Something of CRIU is connected; nothing is sealed while it is unsettled."""

    def client_gone(client: IDumpClient) -> None:
        """The connection is over (not the pipes it passed)."""

    def finished(client: IDumpClient) -> None:
        """CRIU says, or its end of connection shows, that the dump is over, well or not."""

    def push_snapshots(client: IDumpClient, labels: Sequence[str]) -> None:
        """Append to the list of snapshots ("parent")."""

    def snapshots() -> list[str]:
        """The labels so far, oldest first."""

    def open_image(client: IDumpClient, snapshot: str, name: str, mode: Mode) -> IImageSink:
        """Begin to write an image."""

    def read_image(client: IDumpClient, snapshot: str, name: str) -> Deferred[IOpenedImage | None]:
        """For a dump that looks at its parent: at once, None when the image is not complete."""


class IRestore(Interface):
    """One restore at the cache, pinned to one generation of its namespace from its first question on."""

    def open(snapshot: str | None, name: str) -> Deferred[IOpenedImage | None]:
        """Fires when the generation is decided: the image, or None when it is not (and never will be) there.

        @param snapshot: its label; None for the newest (stream dialect).
        """

    def snapshots() -> Deferred[list[str]]:
        """Fires with the labels, oldest first, when the generation is decided; empty after an abort."""

    def finished() -> None:
        """The restore asks for nothing more."""


class IRestores(Interface):
    """One namespace at the cache, as the local dialects see it."""

    def begin(peer: Peer | None) -> IRestore:
        """A restore begins."""


class Owner(NamedTuple):
    """Who made a migration.

    @ivar peer: the name in its certificate; "local" without TLS. Namespaces belong to it.
    @ivar instance: the 16 bytes that a proxy keeps over its restarts. Migrations belong to both.
    """

    peer: str
    instance: bytes


class IIntake(Interface):
    """What arrives over links at the cache: the store, as link/ sees it.

    Every method raises L{RelayError} for a migration of another owner, and for a message that does not fit
    the migration's state; L{ProtocolError} where the peer itself is at fault.
    """

    def begin(owner: Owner, migration: bytes, namespace: str, copy: bool, source: str, digests: bool = True) -> None:
        """A generation of `namespace` begins; `digests`: its images may come with digests."""

    def snapshot(owner: Owner, migration: bytes, index: int, label: str) -> None:
        """Snapshot `index` (from 1, without gaps) is called `label`."""

    def open_image(owner: Owner, migration: bytes, image: int, snapshot: int, name: str, mode: Mode) -> None:
        """An image begins, or goes on (APPEND)."""

    def credit(owner: Owner, migration: bytes) -> None:
        """From now on the migration sends within the credit that it is granted, beginning with nothing."""

    def writing(owner: Owner, migration: bytes, image: int, offset: int, cost: int = 0) -> IGrowing:
        """Where the bytes from `offset`, the end of what is there, on go; `cost` is taken off the credit."""

    def end_image(owner: Owner, migration: bytes, image: int, size: int, digest: bytes | None) -> None:
        """The image is complete: size and digest must be what was received."""

    def seal(owner: Owner, migration: bytes, images: Sequence[tuple[int, str, int, bytes | None]], source: str) -> int:
        """Everything was sent: (snapshot, name, size, digest) of each image must be what is here.

        @return: the bytes held.
        """

    def decide(owner: Owner, migration: bytes, commit: bool, reason: str) -> bool | None:
        """Commit or abort.

        @return: True committed, False aborted, None: no such migration (any more). What was decided
            before stays decided.
        """

    def discard_range(owner: Owner, migration: bytes, image: int, offset: int, length: int) -> None:
        """The whole pages of a range of a complete image are not wanted any more."""

    def read(owner: Owner, migration: bytes, image: int, offset: int, length: int) -> bytes:
        """Bytes of a complete image of an open migration, for the dump that reads its parent; none of one that is being
        appended to or was replaced since."""

    def held(owner: Owner) -> list[tuple[bytes, str, int]]:
        """Migrations of `owner` that wait for a decision: (migration, namespace, bytes)."""

    def link_lost(owner: Owner, migrations: Sequence[bytes], reason: str, cause: Cause = Cause.LINK) -> int:
        """The link that carried them is gone: those not yet held abort.

        @return: how many that were.
        """


class IOutgoing(Interface):
    """One migration on its way over the link, as the proxy's migration sees it."""

    def snapshot(index: int, label: str) -> None:
        """Declare a snapshot."""

    def open_image(snapshot: int, name: str, mode: Mode) -> IImageSink:
        """Begin an image, or go on with one that ended (APPEND)."""

    def read_image(snapshot: int, name: str) -> IOpenedImage | None:
        """An image that ended, to be read back."""

    def discard(snapshot: int, name: str, offset: int, length: int) -> None:
        """Have the far side give the whole pages of this range, in bytes, of an image that ended back."""

    def seal(source: dict[str, Any]) -> Deferred[int]:
        """Send the closing header; fires with the bytes held when all is verified; errs with L{RelayError} else."""

    def decide(commit: bool, reason: str = "") -> Deferred[str]:
        """Deliver the decision, over as many links as it takes; fires with "committed", "aborted" or "unknown"."""


class IOutlet(Interface):
    """What carries migrations away from the proxy."""

    def begin(migration: bytes, namespace: str, copy: bool, lost: Any) -> IOutgoing:
        """Begin one.

        @param lost: called with a L{RelayError} when the migration cannot go on, before it is held.
        """

    def recovered(migration: bytes) -> IOutgoing:
        """One of before a restart that was permitted: the cache may hold it."""

    def describe() -> dict[str, Any]:
        """The link, for `status`."""


@dataclass
class CommitRequest:
    """What is asked of `commit`.

    @ivar root: pid of the root task; 0: unknown.
    @ivar criu: pid of criu; 0: unknown.
    @ivar copy: the dump leaves the task running on purpose.
    @ivar force: a person says that it shall be so.
    @ivar migration: this one and no other, in hex; empty: the newest, or the next.
    """

    root: int = 0
    criu: int = 0
    copy: bool = False
    force: bool = False
    migration: str = ""
