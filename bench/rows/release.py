"""What a cache with --release and a process that is restored from it take together; the ratio is limit / peak."""

from __future__ import annotations

import contextlib
import subprocess
import time

from bench.measure import GB, MIB, Row, Skipped
from bench.processes import Watched, cpu_seconds, together
from bench.relay import Measured, relay
from bench.rows.criu import PATIENCE, Node, Victim
from bench.stage import Stage
from tests.support.criu import find_criu, missing
from tests.support.polling import until

FACTOR, ROOM = 1.05, 64 * MIB
"""The limit is so much of the image, and what criu itself takes."""

LOOK = 0.003
"""Seconds between two looks: a restore at full speed reads some 5 MiB meanwhile."""


def _restored(stage: Stage, ours: Measured, criu: str) -> tuple[int, float]:
    """The peak of one restore in bytes, and the seconds that it took."""
    logs, options = stage.new_folder("criu-logs"), ["--stream", "--action-script", str(ours.relay.action)]
    ours.attach()
    with contextlib.ExitStack() as stack:
        victim = Victim(stage, zeros=0)
        stack.callback(victim.close)
        restore = [criu, "restore", "-d", "-D", str(ours.target), "-o", str(logs / "restore"), *options]
        node = Node(logs / "restore", restore, ours.relay.environment)
        stack.callback(node.close)
        dump = [criu, "dump", "-t", str(victim.process.pid), "-D", str(ours.source), "-o", str(logs / "dump"), *options]
        subprocess.run(dump, env=ours.relay.environment, stdin=subprocess.DEVNULL, check=True)
        victim.process.wait()
        ours.committed()
        before, began = victim.ticks()[0], time.monotonic()
        with Watched(lambda: together(ours.pids["cache"], node.process.pid), LOOK) as watched:
            node.go()
            node.wait()
            seconds = time.monotonic() - began
            until(lambda: victim.ticks()[0] > before, PATIENCE, "the restored process ticks")
    ours.relay.reach(ours.namespace, "restored")
    ours.settle()
    return watched.peak, seconds


def release_peak(stage: Stage) -> list[Row]:
    """A process of nothing but random pages, restored by criu."""
    if reason := missing():
        raise Skipped(reason)
    size = stage.plan.victim
    limit = FACTOR * size + ROOM
    with relay(stage, cache=["--release"], copy=False, warm=None) as ours:
        before = cpu_seconds(ours.pids["cache"])
        found = [_restored(stage, ours, str(find_criu())) for _ in range(stage.plan.rounds)]
        cpu = cpu_seconds(ours.pids["cache"]) - before
    peak = max(peak for peak, _ in found)
    return [
        Row(
            name="release-peak",
            reference=f"{limit / MIB:.0f} MiB ({FACTOR} x the process + {ROOM // MIB}); here the ratio is limit / peak",
            ratio=limit / peak,
            bound=1.0,
            gb_per_s=size * len(found) / sum(seconds for _, seconds in found) / GB,
            cpu_s_per_gb={"cache": cpu / (size * len(found) / GB)},
            rss_mib={"together": peak / MIB},
            reference_gb_per_s=float("nan"),
        )
    ]
