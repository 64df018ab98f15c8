"""How much memory the daemons take; here a row's ratio is limit / peak."""

from __future__ import annotations

import time

from bench.measure import GB, MIB, Row
from bench.processes import Watched, cpu_seconds, memory
from bench.relay import Measured, relay
from bench.stage import Stage

PROXY_LIMIT = 400 * MIB
CACHE_LIMIT = 600 * MIB

ROOM = 64 * MIB
"""Bytes of --memory besides the image."""


def _watched(ours: Measured, process: str, limit: int, migrations: int, size: int, restored: bool) -> Row:
    """Migrate, and look at the memory of one daemon throughout."""
    pid = ours.pids[process]
    before, began = cpu_seconds(pid), time.monotonic()
    with Watched(lambda: memory(pid)) as watched:
        for _ in range(migrations):
            ours.dump(size)
            if restored:
                ours.read()
                ours.restored()
    seconds, amount = time.monotonic() - began, migrations * size / GB
    return Row(
        name=f"flat-memory@{process}",
        reference=f"{limit // MIB} MiB of resident memory and memfds; here the ratio is limit / peak",
        ratio=limit / watched.peak,
        bound=1.0,
        gb_per_s=amount / seconds,
        cpu_s_per_gb={process: (cpu_seconds(pid) - before) / amount},
        rss_mib={process: watched.peak / MIB},
        reference_gb_per_s=float("nan"),
    )


def flat_memory(stage: Stage) -> list[Row]:
    """One image much larger than the window; many migrations in a row, each restored and released."""
    plan = stage.plan
    with relay(stage, proxy=["--window", "256M"], cache=["--memory", str(plan.flat + ROOM)], warm=None) as ours:
        rows = [_watched(ours, "proxy", PROXY_LIMIT, 1, plan.flat, restored=False)]
    with relay(stage, warm=None) as ours:
        rows.append(_watched(ours, "cache", CACHE_LIMIT, plan.migrations, plan.migration, restored=True))
    return rows
