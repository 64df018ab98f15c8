"""The relay that is measured: both daemons as processes, and one large image through them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.clients import PAGES, PATIENCE, SocketDump, StreamDump, StreamRestore
from bench.measure import Sample
from bench.processes import Times, Usage, measured, used
from bench.references import reader, writer
from bench.stage import Stage
from tests.support.daemons import Relay
from tests.support.polling import until

NAMESPACE = "bench"

SETTLE = 0.1
"""Seconds between two looks at memory that is on its way back: when they see the same, it has come."""


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
    """

    def __init__(self, stage: Stage, relay: Relay, dialect: str) -> None:
        self.stage = stage
        self.relay = relay
        self.dialect = dialect
        self.source = relay.directory(f"a/{NAMESPACE}")
        self.target = relay.directory(f"b/{NAMESPACE}")
        self.pids = {"proxy": relay.proxy.pid, "cache": relay.cache.pid}
        copied = {"directory": str(self.source), "namespace": NAMESPACE, "dialect": dialect, "copy": True}
        self._call("proxy", "POST", "/v1/attachments", copied)
        served = {"directory": str(self.target), "namespace": NAMESPACE, "dialect": "stream"}
        self._call("cache", "POST", "/v1/attachments", served)

    def _call(self, role: str, method: str, path: str, body: Any = None) -> None:
        status, answer = self.relay.at(role).request(method, path, body, timeout=PATIENCE)
        if status != 200:
            raise RuntimeError(f"{role}: {method} {path}: {answer.decode()}\n{self.relay.report()}")

    def permit(self) -> float:
        """What the action script does: returns when everything is held, and says when that was."""
        self._call("proxy", "POST", f"/v1/namespaces/{NAMESPACE}/commit?timeout={PATIENCE:g}", {})
        return time.monotonic()

    def committed(self) -> None:
        """Wait until a restore may have it."""
        self._call("cache", "POST", f"/v1/namespaces/{NAMESPACE}/wait?timeout={PATIENCE:g}")

    def restored(self) -> None:
        """What the action script of a restore says: everything is released."""
        self._call("cache", "POST", f"/v1/namespaces/{NAMESPACE}/restored")
        self._settle()

    def discard(self) -> None:
        """Give the memory back, and wait until it is."""
        self._call("cache", "DELETE", f"/v1/namespaces/{NAMESPACE}")
        self._settle()

    def _settle(self) -> None:
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
        restore = StreamRestore(self.target)
        reading, writing = os.pipe()
        with measured(self.pids) as usage, reader(self.stage, reading) as target:
            target.ready()
            target.go()
            began = time.monotonic()
            restore.ask(PAGES)
            restore.pour(writing)
            ended = target.times()
            target.end()
        restore.close()
        own = used([target])
        return Sample(ended.last - began, ended.size, {**own.cpu, **usage.cpu}, {**own.rss, **usage.rss})


@contextmanager
def relay(
    stage: Stage, *, proxy: Sequence[str] = (), cache: Sequence[str] = (), dialect: str = "stream"
) -> Iterator[Measured]:
    """Start a proxy and a cache with these options; their logs are shown when something fails."""
    started = Relay(stage.new_folder("logs"))
    try:
        started.start_cache(*cache)
        started.start_proxy(*proxy)
        started.linked()
        yield Measured(stage, started, dialect)
    except BaseException:
        print(started.report())
        raise
    finally:
        started.close()
