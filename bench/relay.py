"""The relay that is measured: both daemons as processes, and one large image through them."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from bench.clients import PAGES, PATIENCE, SocketDump, StreamDump, StreamRestore
from bench.measure import Sample
from bench.processes import Times, Usage, measured, used
from bench.references import reader, writer
from bench.stage import Stage
from tests.support.daemons import Relay
from tests.support.polling import until

SETTLE = 0.1
"""Seconds between two looks at memory that is on its way back: when they see the same, it has come."""


IMAGE = -1
"""As much --warm memory as the large image takes: the references' memory has its pages too."""


class Dump(Protocol):
    """A client of the proxy."""

    def begin(self, name: str) -> int: ...
    def inventory(self) -> None: ...
    def close(self) -> None: ...


DIALECTS: dict[str, Callable[[Path], Dump]] = {"stream": StreamDump, "images": SocketDump}


@dataclass(frozen=True)
class Moved:
    """One dump.

    @ivar written: by its writer.
    @ivar held: when the cache held all of it and the dump might end, CLOCK_MONOTONIC.
    @ivar writer: what the writer used.
    """

    written: Times
    held: float
    writer: Usage


class Measured:
    """Proxy and cache.

    @ivar dialect: of the dumps.
    @ivar namespace: the one that is dumped into.
    @ivar source: directory of its dumps.
    @ivar target: directory of its restores.
    """

    def __init__(self, stage: Stage, relay: Relay, dialect: str, copy: bool) -> None:
        self.stage = stage
        self.relay = relay
        self.dialect = dialect
        self.pids = {"proxy": relay.proxy.pid, "cache": relay.cache.pid}
        self._copy = copy
        self._namespaces = 0
        self.attach()

    def attach(self) -> None:
        """A namespace that is new, with directories of its own: a restore of it waits until it is dumped."""
        self._namespaces += 1
        self.namespace = f"bench-{self._namespaces}"
        self.source = self.relay.directory(f"a/{self.namespace}")
        self.target = self.relay.directory(f"b/{self.namespace}")
        common = {"namespace": self.namespace}
        dumped = common | {"directory": str(self.source), "dialect": self.dialect, "copy": self._copy}
        self._call("proxy", "POST", "/v1/attachments", dumped)
        self._call("cache", "POST", "/v1/attachments", common | {"directory": str(self.target), "dialect": "stream"})

    def attach_target(self, number: int) -> Path:
        """One more directory of restores of the same namespace."""
        target = self.relay.directory(f"b/{self.namespace}-{number}")
        body = {"directory": str(target), "namespace": self.namespace, "dialect": "stream"}
        self._call("cache", "POST", "/v1/attachments", body)
        return target

    def _call(self, role: str, method: str, path: str, body: Any = None) -> None:
        status, answer = self.relay.at(role).request(method, path, body, timeout=PATIENCE)
        if status != 200:
            raise RuntimeError(f"{role}: {method} {path}: {answer.decode()}\n{self.relay.report()}")

    def permit(self) -> float:
        """What the action script does: returns when everything is held, and says when that was."""
        self._call("proxy", "POST", f"/v1/namespaces/{self.namespace}/commit?timeout={PATIENCE:g}", {})
        return time.monotonic()

    def committed(self) -> None:
        """Wait until a restore may have it."""
        self._call("cache", "POST", f"/v1/namespaces/{self.namespace}/wait?timeout={PATIENCE:g}")

    def restored(self) -> None:
        """Say what the action script of a restore says: everything is released."""
        self._call("cache", "POST", f"/v1/namespaces/{self.namespace}/restored")

    def waiting(self) -> None:
        """Wait until a restore waits for the migration to come."""
        until(lambda: self.relay.get("/v1/status")["waiting"], PATIENCE, "a restore waits at the cache")

    def drop(self) -> None:
        """Give the memory back, some time soon."""
        self._call("cache", "DELETE", f"/v1/namespaces/{self.namespace}")

    def discard(self) -> None:
        """Give the memory back, and wait until it is."""
        self.drop()
        self.settle()

    def settle(self) -> None:
        """Wait until all memory is given back."""

        def memory() -> Any:
            return [self.relay.get("/v1/status", at=role)["memory"] for role in ("proxy", "cache")]

        def still() -> bool:
            before = memory()
            time.sleep(SETTLE)
            return before == memory() and all(part["used"] == 0 for part in before)

        until(still, PATIENCE, "all memory is given back")

    def dump(self, size: int) -> Moved:
        """One image of `size` bytes, and the inventory; committed when this returns."""
        dump = DIALECTS[self.dialect](self.source)
        with writer(self.stage, dump.begin(PAGES), size) as source:
            source.ready()
            source.go()
            written = source.times()
            dump.inventory()
            held = self.permit()
            source.end()
        dump.close()
        self.committed()
        return Moved(written, held, used([source]))

    def transfer(self) -> Sample:
        """A subject: from the writer's first byte until everything is held by the cache."""
        with measured(self.pids) as usage:
            moved = self.dump(self.stage.plan.size)
        self.discard()
        return Sample(
            moved.held - moved.written.first,
            moved.written.size,
            {**moved.writer.cpu, **usage.cpu},
            {**moved.writer.rss, **usage.rss},
        )

    def serve(self) -> Sample:
        """A subject: the image that was dumped before, into a pipe, from the request to the reader's last byte."""
        with measured(self.pids) as usage:
            began, target = self.read()
        return Sample(target.last - began, target.size, usage.cpu, usage.rss)

    def read(self) -> tuple[float, Times]:
        """A restore reads the image: when it asked, and when it had its bytes."""
        with Waiting(self) as restore:
            restore.pour()
            return restore.asked, restore.times()

    def through(self) -> tuple[Sample, Sample, Sample]:
        """A migration whose restore waits already.

        @return: from the writer's first byte to the reader's last; from the writer's first to its last; from there
            until everything was held.
        """
        self.attach()
        with measured(self.pids) as usage, Waiting(self) as restore:
            self.waiting()
            pouring = threading.Thread(target=restore.pour)
            pouring.start()
            moved = self.dump(self.stage.plan.size)
            pouring.join()
            read = restore.times()
        self.discard()
        cpu, rss = {**moved.writer.cpu, **usage.cpu}, {**moved.writer.rss, **usage.rss}
        written = moved.written
        assert read.size == written.size
        return (
            Sample(read.last - written.first, written.size, cpu, rss),
            Sample(written.last - written.first, written.size),
            Sample(moved.held - written.last, written.size, cpu, rss),
        )


class Waiting:
    """A restore that has asked for the image.

    @ivar asked: when, CLOCK_MONOTONIC.
    """

    def __init__(self, ours: Measured) -> None:
        reading, self._writing = os.pipe()
        self._reader = reader(ours.stage, reading)
        self._reader.ready()
        self._reader.go()
        self.asked = time.monotonic()
        self._restore = StreamRestore(ours.target)
        self._restore.ask(PAGES)

    def pour(self) -> None:
        """Let the image come."""
        self._restore.pour(self._writing)

    def times(self) -> Times:
        """Wait for the last byte."""
        found = self._reader.times()
        self._reader.end()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore.close()
        self._reader.__exit__(None, None, None)


@contextmanager
def relay(
    stage: Stage,
    *,
    proxy: Sequence[str] = (),
    cache: Sequence[str] = (),
    dialect: str = "stream",
    copy: bool = True,
    warm: int | None = IMAGE,
) -> Iterator[Measured]:
    """Start a proxy and a cache with these options; their logs are shown when something fails.

    @param copy: what is dumped lives on.
    @param warm: bytes of memory that the cache keeps ready; None: as it does when nothing is said.
    """
    started = Relay(Path(tempfile.mkdtemp(prefix="logs-", dir=stage.folder)))
    try:
        kept = stage.plan.size if warm == IMAGE else warm
        started.start_cache(*([] if kept is None else ["--warm", str(kept)]), *cache)
        started.start_proxy(*proxy)
        started.linked()
        ours = Measured(stage, started, dialect, copy)
        ours.settle()
        yield ours
    except BaseException:
        print(started.report(), file=sys.stderr)
        raise
    finally:
        started.close()
