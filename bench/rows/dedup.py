"""What the cache looks at on one core, and what its index takes; here a row's ratio is that beside a limit."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from bench.measure import GB, MIB, Row
from bench.stage import Stage
from criu_relay.flow.zeros import PAGE

SPEEDS = {"zero": 1.5, "pages": 0.8}
"""GB/s that one core must look at."""

DATA = {
    "mixed": "half zeros, 30 % duplicates, the rest distinct, in random order",
    "distinct": "random pages, none twice: as much as can be to hold, and to index",
}

INDEX_LIMIT = 128
"""Bytes per distinct page."""


def _inspection(*arguments: str) -> list[Any]:
    """What bench.inspection says, line by line."""
    command = [sys.executable, "-m", "bench.inspection", *arguments]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines()]


def _looked_at(stage: Stage, dedup: str, data: str) -> Row:
    rounds = _inspection(dedup, data, str(stage.plan.size), str(1 + stage.plan.rounds))[1:]
    speed = statistics.median(one["size"] / one["seconds"] / GB for one in rounds)
    return Row(
        name=f"{dedup}@{data}",
        reference=f"{SPEEDS[dedup]} GB/s on one core; {DATA[data]}",
        ratio=speed / SPEEDS[dedup],
        bound=1.0,
        gb_per_s=speed,
        cpu_s_per_gb={"inspection": statistics.median(one["cpu"] / one["size"] * GB for one in rounds)},
        rss_mib={"inspection": max(one["rss"] for one in rounds) / MIB},
        reference_gb_per_s=SPEEDS[dedup],
    )


def zero(stage: Stage) -> list[Row]:
    """Pages of zeros are taken out."""
    return [_looked_at(stage, "zero", data) for data in DATA]


def pages(stage: Stage) -> list[Row]:
    """Pages of zeros, and those that are held already; and what it takes to find these."""
    (index,) = _inspection("index")
    cost = Row(
        name="pages@index",
        reference=f"{INDEX_LIMIT} bytes of resident memory per distinct page; here the ratio is limit / most",
        ratio=INDEX_LIMIT / index["bytes_per_page"],
        bound=1.0,
        gb_per_s=index["pages"] * PAGE / index["seconds"] / GB,
        cpu_s_per_gb={},
        rss_mib={"inspection": index["rss"] / MIB},
        reference_gb_per_s=float("nan"),
    )
    return [*(_looked_at(stage, "pages", data) for data in DATA), cost]
