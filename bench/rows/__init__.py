"""The rows of the table, by name, in its order."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure import Row
from bench.rows import criu, dedup, fairness, memory, openers, release, sharing, small, transfer
from bench.stage import Stage

ROWS: dict[str, Callable[[Stage], list[Row]]] = {
    "pipe-window0": transfer.pipe_window0,
    "pipe-window": transfer.pipe_window,
    "unix": transfer.unix,
    "serve-pipe": transfer.serve_pipe,
    "cut-through": transfer.cut_through,
    "tls": transfer.tls,
    "small-images": small.small_images,
    "fair-small": fairness.fair_small,
    "fair-idle": fairness.fair_idle,
    "fair-control": fairness.fair_control,
    "openers": openers.openers,
    "handshakes": fairness.handshakes,
    "rate": sharing.rate,
    "share": sharing.share,
    "zero": dedup.zero,
    "pages": dedup.pages,
    "flat-memory": memory.flat_memory,
    "criu-1g": criu.criu_1g,
    "release-peak": release.release_peak,
}

ASKED: dict[str, Callable[[Stage], list[Row]]] = {"bare": transfer.bare_path}
"""Rows that say something of the machine and nothing of us: measured when they are asked for."""
