"""What the control API of the cache does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from criu_relay.admin.inspected import IInspected
from criu_relay.admin.limits import limited
from criu_relay.daemon import endpoint_of
from criu_relay.errors import Aborted, Conflict, NotFound
from criu_relay.interfaces import CommitRequest, IImportSink, IOpenedImage
from criu_relay.store.figures import Accounts
from criu_relay.store.generation import Generation, State
from criu_relay.store.image import Image
from criu_relay.store.opened import OpenedImage
from criu_relay.wire.names import check_name

if TYPE_CHECKING:
    from criu_relay.cache import Cache

AGAIN_HINT = "dump it again"
HELD_HINT = "waits for its proxy; if the source host is lost: criu-relay commit {name} --force"


@implementer(IInspected)
class CacheControl:
    """See L{IControl} and L{IInspected}."""

    role = "cache"

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def status(self) -> dict[str, Any]:
        """See L{IControl.status}."""
        cache = self._cache
        accounts = cache.store.accounts()
        return cache.common_status() | {
            "role": self.role,
            "instance": cache.instance.hex(),
            "link": self.link(),
            "memory": accounts.memory,
            "attachments": [attachment.described() for attachment in cache.attachments],
            "namespaces": self._newest(accounts),
            "waiting": self.waiting(),
        }

    def namespaces(self) -> list[dict[str, Any]]:
        """See L{IControl.namespaces}."""
        return self._newest(self._cache.store.accounts())

    def _newest(self, accounts: Accounts) -> list[dict[str, Any]]:
        namespaces = self._cache.store.namespaces.values()
        newest = [namespace.newest for namespace in namespaces if namespace.newest is not None]
        return [self._described(one) | {"memory": accounts.of[one]} for one in newest]

    def each_namespace(self) -> Iterator[dict[str, Any]]:
        """See L{IInspected.each_namespace}."""
        for namespace in list(self._cache.store.namespaces.values()):
            if namespace.newest is not None:
                yield self._described(namespace.newest)

    def described(self, name: str) -> dict[str, Any]:
        """See L{IInspected.described}."""
        return self._described(self._cache.store.known(name))

    def namespace(self, name: str) -> dict[str, Any]:
        """See L{IControl.namespace}."""
        generation = self._cache.store.known(name)
        snapshots = [
            {
                "index": snapshot.index,
                "label": snapshot.label,
                "images": [_image(image) for image in snapshot.images.values()],
            }
            for snapshot in generation.snapshots
        ]
        figures = self._cache.store.accounts().of[generation]
        return self._described(generation) | {"memory": figures, "snapshots": snapshots}

    def each_image(self, name: str) -> Iterator[dict[str, Any]]:
        """See L{IInspected.each_image}."""
        return map(_inspected, list(self._cache.store.known(name).images()))

    def image(self, name: str, snapshot: int | None, image: str) -> dict[str, Any]:
        """See L{IInspected.image}."""
        return _inspected(self._cache.store.known(name).at(snapshot, image)[1])

    def peek(self, name: str, snapshot: int | None, image: str, offset: int, length: int) -> Deferred[bytes]:
        """See L{IInspected.peek}."""
        return Deferred.fromCoroutine(self._peek(name, snapshot, image, offset, length))

    async def _peek(self, name: str, snapshot: int | None, image: str, offset: int, length: int) -> bytes:
        found = self._cache.store.known(name).at(snapshot, image)[1]
        if found.dropped:
            raise NotFound(f"image {image} of namespace {name} was discarded", hint=AGAIN_HINT)
        opened = OpenedImage(self._cache.reactor, found)
        try:
            return await opened.read(offset, length)
        finally:
            opened.close()

    def waiting(self) -> list[dict[str, Any]]:
        """See L{IInspected.waiting}."""
        now = self._cache.reactor.seconds()
        return [
            {"namespace": namespace.name, "image": waiter.image, "pid": waiter.pid, "seconds": now - waiter.since}
            for namespace in self._cache.store.namespaces.values()
            for waiter in namespace.waiters
        ]

    def link(self) -> dict[str, Any]:
        """See L{IInspected.link}."""
        links = self._cache.receiver.links
        return {
            "state": "up" if links else "listening",
            "endpoint": endpoint_of(self._cache.settings),
            "error": "",
            "peers": [connection.status() for connection in links],
        }

    def attach(self, directory: str, namespace: str | None, dialect: str, copy: bool) -> dict[str, Any]:
        """See L{IControl.attach}."""
        if copy:
            raise Conflict("a copy is said where it is dumped", hint="use the proxy's --control with attach --copy")
        return self._cache.attachments.attach(directory, namespace, dialect).described()

    def detach(self, directory: str) -> None:
        """See L{IControl.detach}."""
        self._cache.attachments.detach(directory)

    def wait(self, name: str, timeout: float | None, following: bool) -> Deferred[dict[str, Any]]:
        """See L{IControl.wait}."""
        check_name(name, "namespace")
        waiting = Deferred.fromCoroutine(self._wait(name, following))
        return limited(waiting, timeout, self._cache.reactor, f"namespace {name} was not committed")

    async def _wait(self, name: str, following: bool) -> dict[str, Any]:
        namespace = self._cache.store.namespace(name)
        newest = namespace.newest
        if newest is not None and following and newest.decided:
            newest = None
        generation = await namespace.wait(newest, "", None, patient=True)
        if generation is None or generation.state is State.ABORTED:
            raise Aborted(generation.reason if generation is not None else "nothing came", hint=AGAIN_HINT)
        return self._described(generation)

    def commit(self, name: str, request: CommitRequest, timeout: float | None) -> Deferred[dict[str, Any]]:
        """See L{IControl.commit}."""
        return Deferred.fromCoroutine(self._commit(name, request))

    async def _commit(self, name: str, request: CommitRequest) -> dict[str, Any]:
        generation = self._cache.store.known(name)
        source = generation.source or "an unknown source"
        if not request.force:
            raise Conflict(
                f"namespace {name} is {generation.state.value}; it came from {source}",
                hint="the proxy decides; if that host is lost, or the task is known to be gone: --force",
            )
        if generation.state is not State.HELD:
            raise Conflict(
                f"namespace {name} is {generation.state.value}, not held", hint="only what is held can be committed"
            )
        self._cache.store.settle(generation, True, "committed by hand at the cache")
        return self._described(generation)

    def rate(self, rate: int | None) -> dict[str, Any]:
        """See L{IControl.rate}."""
        raise Conflict("this is the cache: the proxy paces what it sends", hint="use the proxy's --control")

    def restored(self, name: str) -> dict[str, Any]:
        """See L{IControl.restored}."""
        return self._described(self._cache.store.restored(name))

    def discard(
        self, name: str, snapshot: int | None, image: str | None, offset: int | None, length: int | None
    ) -> dict[str, Any]:
        """See L{IControl.discard}."""
        store = self._cache.store
        if image is None:
            return {"bytes": store.discard(name)}
        return {"bytes": store.discard_image(name, snapshot, image, offset or 0, length)}

    def open_image(self, name: str, snapshot: int | None, image: str) -> Deferred[IOpenedImage]:
        """See L{IControl.open_image}."""
        check_name(name, "namespace")
        check_name(image, "image")
        return Deferred.fromCoroutine(self._open(name, snapshot, image))

    async def _open(self, name: str, snapshot: int | None, image: str) -> IOpenedImage:
        namespace = self._cache.store.namespace(name)
        generation = await namespace.wait(namespace.servable(), image, None)
        if generation is None or generation.state is not State.COMMITTED:
            state = generation.state.value if generation is not None else "not there"
            raise NotFound(
                f"namespace {name} is {state}: {generation.reason if generation else 'nothing came'}", hint=AGAIN_HINT
            )
        found = generation.at(snapshot, image)[1]
        if found.dropped:
            raise NotFound(f"image {image} of namespace {name} was discarded", hint=AGAIN_HINT)
        opened: IOpenedImage = OpenedImage(self._cache.reactor, found)
        return opened

    def put_image(self, name: str, snapshot: int | None, image: str, migration: str) -> IImportSink:
        """See L{IControl.put_image}."""
        raise Conflict("images are put in at the proxy", hint="use the proxy's --control")

    def _described(self, generation: Generation) -> dict[str, Any]:
        now = self._cache.reactor.seconds()
        held = generation.state is State.HELD
        return {
            "name": generation.namespace,
            "state": generation.state.value,
            "generation": generation.number,
            "migration": generation.migration.hex(),
            "copy": generation.copy,
            "bytes": generation.total,
            "held": generation.held_bytes,
            "expected": None,
            "images": sum(len(snapshot.images) for snapshot in generation.snapshots),
            "age_s": now - generation.began,
            "decided_s": None if generation.decided_at is None else now - generation.decided_at,
            "reason": generation.reason,
            "hint": HELD_HINT.format(name=generation.namespace) if held else "",
            "source": generation.source,
        }


def _image(image: Image) -> dict[str, Any]:
    digest = image.digest.hex() if image.digest else None
    return {"name": image.name, "size": image.size, "complete": image.complete, "digest": digest}


def _inspected(image: Image) -> dict[str, Any]:
    return _image(image) | {"snapshot": image.snapshot, "readers": len(image.readers), "memory": image.memory}
