"""What the control API of the proxy does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from criu_relay.admin.inspected import IInspected
from criu_relay.admin.limits import limited
from criu_relay.commit.migration import Migration
from criu_relay.commit.states import State
from criu_relay.commit.written import WrittenImage
from criu_relay.daemon import endpoint_of
from criu_relay.errors import Aborted, Cause, Conflict, Invalid, NotFound
from criu_relay.interfaces import CommitRequest, IImportSink, IOpenedImage
from criu_relay.link.outlet import LinkOutlet
from criu_relay.wire.names import check_name

if TYPE_CHECKING:
    from criu_relay.proxy import Proxy

SCRIPT_GRACE = 5.0
"""Seconds that a commit by an action script waits for its dump to begin: its task is frozen, every image written."""


@implementer(IInspected)
class ProxyControl:
    """See L{IControl} and L{IInspected}."""

    role = "proxy"

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def status(self) -> dict[str, Any]:
        """See L{IControl.status}."""
        proxy = self._proxy
        window = proxy.outlet.window
        return proxy.common_status() | {
            "role": self.role,
            "instance": proxy.instance.hex(),
            "link": self.link(),
            "memory": {"used": window.used, "limit": window.limit, "recycled": window.recycled},
            "attachments": [attachment.described() for attachment in proxy.attachments],
            "namespaces": self.namespaces(),
            "waiting": self.waiting(),
        }

    def namespaces(self) -> list[dict[str, Any]]:
        """See L{IControl.namespaces}."""
        return list(self.each_namespace())

    def each_namespace(self) -> Iterator[dict[str, Any]]:
        """See L{IInspected.each_namespace}."""
        for dump in list(self._proxy.dumps.namespaces.values()):
            if dump.newest is not None:
                yield self._described(dump.newest)

    def described(self, name: str) -> dict[str, Any]:
        """See L{IInspected.described}."""
        return self._described(self._proxy.dumps.known(name))

    def namespace(self, name: str) -> dict[str, Any]:
        """See L{IControl.namespace}."""
        migration = self._proxy.dumps.known(name)
        snapshots: list[dict[str, Any]] = [
            {"index": index, "label": label, "images": []} for index, label in enumerate(migration.labels, 1)
        ]
        for image in migration.images.values():
            snapshots[image.snapshot - 1]["images"].append(_image(image))
        return self._described(migration) | {"snapshots": snapshots}

    def each_image(self, name: str) -> Iterator[dict[str, Any]]:
        """See L{IInspected.each_image}."""
        return map(_inspected, list(self._proxy.dumps.known(name).images.values()))

    def image(self, name: str, snapshot: int | None, image: str) -> dict[str, Any]:
        """See L{IInspected.image}."""
        return _inspected(_find(self._proxy.dumps.known(name), snapshot, image))

    def peek(self, name: str, snapshot: int | None, image: str, offset: int, length: int) -> Deferred[bytes]:
        """See L{IInspected.peek}."""
        return fail(Conflict("the proxy keeps no images", hint="look at the cache"))

    def waiting(self) -> list[dict[str, Any]]:
        """See L{IInspected.waiting}: restores wait at the cache."""
        return []

    def link(self) -> dict[str, Any]:
        """See L{IInspected.link}."""
        return {"error": ""} | self._proxy.outlet.describe() | {"endpoint": endpoint_of(self._proxy.settings)}

    def attach(self, directory: str, namespace: str | None, dialect: str, copy: bool) -> dict[str, Any]:
        """See L{IControl.attach}."""
        return self._proxy.attachments.attach(directory, namespace, dialect, copy).described()

    def detach(self, directory: str) -> None:
        """See L{IControl.detach}."""
        self._proxy.attachments.detach(directory)

    def wait(self, name: str, timeout: float | None, following: bool) -> Deferred[dict[str, Any]]:
        """See L{IControl.wait}."""
        dump = self._proxy.dumps.namespace(check_name(name, "namespace"))
        waiting = Deferred.fromCoroutine(dump.wait(following)).addCallback(self._described)
        return limited(waiting, timeout, self._proxy.reactor, f"namespace {name} was not committed")

    def commit(self, name: str, request: CommitRequest, timeout: float | None) -> Deferred[dict[str, Any]]:
        """See L{IControl.commit}."""
        check_name(name, "namespace")
        deciding = Deferred.fromCoroutine(self._commit(name, request))
        return limited(deciding, timeout, self._proxy.reactor, f"namespace {name} was not held by the cache")

    async def _commit(self, name: str, request: CommitRequest) -> dict[str, Any]:
        dump = self._proxy.dumps.namespace(name)
        if request.migration:
            named = dump.named(request.migration)
            return await self._permit(named, request)
        if not request.root and (dump.newest is not None or dump.forgettable):  # a person, and no dump can come
            return await self._permit(self._proxy.dumps.known(name), request)
        newest = dump.newest
        if newest is not None and newest.over and request.criu and request.criu in newest.pids:
            raise Aborted(f"the dump was given up: {newest.reason}", hint=newest.hint)
        beginning = Deferred.fromCoroutine(dump.undecided_or_next(following=True))
        what = f"no dump has come to namespace {name}: is criu run with --stream -D and the attached directory,"
        migration = await limited(beginning, SCRIPT_GRACE, self._proxy.reactor, what)
        return await self._permit(migration, request)

    async def _permit(self, migration: Migration, request: CommitRequest) -> dict[str, Any]:
        asked = self._proxy.reactor.seconds()
        await migration.permit(request)
        self._proxy.counters.took("commit", self._proxy.reactor.seconds() - asked)
        return self._described(migration)

    def rate(self, rate: int | None) -> dict[str, Any]:
        """See L{IControl.rate}."""
        outlet = self._proxy.outlet
        if not isinstance(outlet, LinkOutlet):
            raise Conflict("CRIU's own image-cache is fed as fast as it takes", hint="use --link for a rate")
        outlet.pace.set(rate)
        return {"rate": rate}

    def restored(self, name: str) -> dict[str, Any]:
        """See L{IControl.restored}."""
        raise Conflict("this is the proxy: restores are confirmed at the cache", hint="use the cache's --control")

    def discard(
        self, name: str, snapshot: int | None, image: str | None, offset: int | None, length: int | None
    ) -> dict[str, Any]:
        """See L{IControl.discard}."""
        migration = self._proxy.dumps.known(name)
        if migration.over:
            raise Conflict(f"namespace {name} is {migration.state.value} already", hint="discard it at the cache")
        if image is not None:
            return {"bytes": self._discard_range(migration, snapshot, image, offset or 0, length)}
        if migration.state is State.PERMITTED:
            hint = f"wait for what becomes of it (criu-relay wait {name}), then discard it at the cache"
            raise Conflict(f"criu may have killed the task of namespace {name} already", hint=hint)
        count = migration.bytes
        migration.abort("discarded at the proxy", cause=Cause.PERSON)
        return {"bytes": count}

    def _discard_range(
        self, migration: Migration, snapshot: int | None, image: str, offset: int, length: int | None
    ) -> int:
        """The cache is told; the bytes of the range, of which it gives the whole pages back."""
        found = _find(migration, snapshot, image)
        if not found.complete:
            raise Conflict(f"image {image} of namespace {migration.namespace} is being written", hint="try again later")
        count = max(0, min(found.size - offset, found.size if length is None else length))
        if count:
            migration.outgoing.discard(found.snapshot, image, offset, count)
        return count

    def open_image(self, name: str, snapshot: int | None, image: str) -> Deferred[IOpenedImage]:
        """See L{IControl.open_image}."""
        return fail(Conflict("the proxy keeps no images", hint="export from the cache"))

    def put_image(self, name: str, snapshot: int | None, image: str, migration: str) -> IImportSink:
        """See L{IControl.put_image}."""
        check_name(image, "image")
        if snapshot is not None and snapshot < 1:
            raise Invalid("there is no snapshot before 1", hint="they count from 1")
        return self._proxy.dumps.namespace(check_name(name, "namespace")).put_image(snapshot, image, migration)

    def _described(self, migration: Migration) -> dict[str, Any]:
        now = self._proxy.reactor.seconds()
        return {
            "name": migration.namespace,
            "state": migration.state.value,
            "generation": migration.number,
            "migration": migration.id.hex(),
            "copy": migration.copy,
            "bytes": migration.bytes,
            "held": migration.held_bytes,
            "expected": migration.source.expected,
            "images": len(migration.images),
            "age_s": now - migration.began,
            "decided_s": None if migration.decided_at is None else now - migration.decided_at,
            "reason": migration.reason,
            "hint": migration.hint,
            "source": "",
        }


def _find(migration: Migration, snapshot: int | None, name: str) -> WrittenImage:
    """An image by its snapshot's index (None: the newest) and name; @raise NotFound: there is none."""
    index = len(migration.labels) if snapshot is None else snapshot
    found = migration.images.get((index, name))
    if found is None:
        missing = f"namespace {migration.namespace} has no image {name} in snapshot {index}"
        raise NotFound(missing, hint="criu-relay images lists them")
    return found


def _image(image: WrittenImage) -> dict[str, Any]:
    return {"name": image.name, "size": image.size, "complete": image.complete, "digest": None}


def _inspected(image: WrittenImage) -> dict[str, Any]:
    return _image(image) | {"snapshot": image.snapshot, "readers": 0, "memory": None}
