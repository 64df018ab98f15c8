"""What one who moves much costs the others."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence

from bench.certificates import identities
from bench.clients import PATIENCE
from bench.flows import Flow, flowing
from bench.measure import GB, Row, Sample, Skipped, alternate, row
from bench.relay import Measured, relay
from bench.stage import Stage
from tests.support.polling import until

SMALL = b"i" * (32 << 10)
"""An image that its pipe holds."""

LATENCY = 0.05
"""Seconds that nobody may wait for longer, while others move all they can."""

FLOWS = 8

PAUSE = 0.005
"""Seconds between two requests: who asks more often measures what asking costs."""

IDLE_SOCKETS, IDLE_CLIENTS = 4, 250
"""A socket takes 256 clients at a time."""

DESCRIPTORS = 2 * IDLE_SOCKETS * IDLE_CLIENTS

HALF_OPEN = 500

CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"
"""The beginning of one (RFC 8446, 5.1)."""


def latency(name: str, what: str, seconds: float, speeds: Sequence[float]) -> Row:
    """A row whose ratio is L{LATENCY} / `seconds`."""
    return Row(
        name=name,
        reference=f"{LATENCY * 1000:.0f} ms; here the ratio is that / {what}",
        ratio=LATENCY / seconds,
        bound=1.0,
        gb_per_s=statistics.median(speeds),
        cpu_s_per_gb={},
        rss_mib={},
        reference_gb_per_s=float("nan"),
    )


def _complete(ours: Measured, flow: Flow, name: str) -> bool:
    found = ours.relay.get(f"/v1/namespaces/{flow.namespace}")
    return any(one["name"] == name and one["complete"] for one in found["snapshots"][0]["images"])


def _arrival(ours: Measured, flow: Flow, name: str) -> float:
    """Seconds from when an image is offered until the cache says that it has all of it."""
    began = time.monotonic()
    writing = flow.begin(name)
    os.write(writing, SMALL)
    os.close(writing)
    while not _complete(ours, flow, name):
        if time.monotonic() > began + PATIENCE:
            raise TimeoutError(f"{name} did not arrive in {PATIENCE:.0f} s")
    return time.monotonic() - began


def _speed(began: float, flows: int, size: int) -> float:
    return flows * size / (time.monotonic() - began) / GB


def fair_small(stage: Stage) -> list[Row]:
    """A small image, while a large one of the same dump is on its way."""
    size = stage.plan.size
    times: list[float] = []
    speeds: list[float] = []
    with relay(stage) as ours:
        for _ in range(stage.plan.rounds):
            began = time.monotonic()
            with flowing(ours, [size]) as (flow,):
                while flow.running:
                    times.append(_arrival(ours, flow, f"small-{len(times)}.img"))
                speeds.append(_speed(began, 1, size))
    what = f"the median of {len(times)} images of {len(SMALL) >> 10} KiB"
    return [latency("fair-small", what, statistics.median(times), speeds)]


def fair_control(stage: Stage) -> list[Row]:
    """`GET /v1/status` at both daemons in turn."""
    size, times, speeds = stage.plan.size // 4, [], []
    with relay(stage) as ours:
        for _ in range(stage.plan.rounds):
            began = time.monotonic()
            with flowing(ours, [size] * FLOWS) as flows:
                while any(flow.running for flow in flows):
                    for role in ("proxy", "cache"):
                        asked = time.monotonic()
                        ours.relay.get("/v1/status", at=role)
                        times.append(time.monotonic() - asked)
                        time.sleep(PAUSE)
                speeds.append(_speed(began, FLOWS, size))
    what = f"the 99th of 100 of {len(times)} requests"
    return [latency("fair-control", what, statistics.quantiles(times, n=100)[98], speeds)]


@contextlib.contextmanager
def _idle(ours: Measured, sockets: Sequence[str]) -> Iterator[None]:
    """Clients of the proxy that say nothing."""
    clients = IDLE_CLIENTS * len(sockets)

    def descriptors() -> int:
        return len(ours.relay.proxy.descriptors())

    with contextlib.ExitStack() as stack:
        for path in sockets:
            for _ in range(IDLE_CLIENTS):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(path)
        until(lambda: descriptors() >= clients, PATIENCE, "the clients are accepted")
        yield
    until(lambda: descriptors() < IDLE_CLIENTS, PATIENCE, "the clients are gone")


def allow_descriptors() -> None:
    """For ourselves and the daemons that are started from now on.

    @raise Skipped: the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        raise Skipped(f"a process may have {hard} descriptors, {DESCRIPTORS} are needed")
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def fair_idle(stage: Stage) -> list[Row]:
    """A transfer beside clients that do nothing, and without them."""
    allow_descriptors()
    with relay(stage) as ours:
        sockets = []
        for _ in range(IDLE_SOCKETS):
            ours.attach()
            sockets.append(str(ours.source / "streamer-capture.sock"))
        ours.attach()

        def beside() -> Sample:
            with _idle(ours, sockets):
                return ours.transfer()

        samples = alternate({"idle": beside, "alone": ours.transfer}, stage.plan.rounds)
    what = f"the same without {IDLE_SOCKETS * IDLE_CLIENTS} idle clients"
    return [row("fair-idle", what, 0.95, samples["idle"], samples["alone"])]


class Besiegers:
    """Connections that begin a TLS handshake and stop there; they are made while the `with` block runs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._besiege)

    def _besiege(self) -> None:
        """Nobody is waited for: the queue of a listener is short, and the kernel tries again after a second."""
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as connecting:
            for _ in range(HALF_OPEN):
                made = stack.enter_context(socket.socket())
                made.setblocking(False)
                made.connect_ex(("127.0.0.1", self._port))
                connecting.register(made, selectors.EVENT_WRITE)
            while not self._over.wait(PAUSE):
                for key, _ in connecting.select(0):
                    connecting.unregister(key.fileobj)
                    with contextlib.suppress(OSError):
                        os.write(key.fd, CLIENT_HELLO)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()


def handshakes(stage: Stage) -> list[Row]:
    """A transfer under TLS while strangers connect, and without them."""
    proxy, cache = identities(stage).options()
    with relay(stage, proxy=proxy, cache=cache) as ours:

        def beset() -> Sample:
            with Besiegers(ours.relay.port):
                return ours.transfer()

        samples = alternate({"beset": beset, "alone": ours.transfer}, stage.plan.rounds)
    what = f"the same without {HALF_OPEN} half-open handshakes"
    return [row("handshakes", what, 0.9, samples["beset"], samples["alone"])]
