"""Sockets of the dialects in a directory of the test, and clients for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.bench import Bench
from tests.local.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Its own descriptors are the only ones left at the end."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a short path: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="relay-") as path:
        yield Path(path)


@pytest.fixture
def bench(loop: Loop, directory: Path) -> Iterator[Bench]:
    """Both sides with fakes behind them; no descriptor may be left over."""
    before = set(os.listdir("/proc/self/fd"))
    bench = Bench(loop, directory)
    yield bench
    bench.close()
    left = set(os.listdir("/proc/self/fd")) - before
    names = {}
    for number in left:
        try:
            names[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
    assert not names, f"descriptors left open: {names}"
