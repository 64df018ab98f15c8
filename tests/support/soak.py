"""A long run of dumps, with faults of every kind, in which no daemon is ever killed: nothing of theirs may grow.

    python -m tests.support.soak [--seconds N] [--seed N]

ends with 0 when every migration ended as it must (L{tests.support.moments}), and the descriptors and the memory of both
daemons were as flat as L{flat} wants them.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.moments import FAULTS, Moment, Trial, World, draw, undisturbed
from tests.support.polling import until

SECONDS = 600.0

VICTIMS = ("link", "criu", "action")
"""Those who are not measured."""

NAMES = 3
"""Namespaces in turn: each keeps a history, which is full after some generations, and must not look like a leak."""

BATCH = 1000
"""Moments that are drawn at a time."""

WARM = 1 / 3
"""Of the time: caches fill, histories too."""

GROWTH = 1.05
SLACK = 2 << 20
"""What the last third of the time may have more than the second: a part, and bytes (an allocator keeps what it had)."""

QUIET_SECONDS = 30.0
"""To close what the last dump had open."""

Sample = dict[str, int]


def sample(daemon: Daemon) -> Sample:
    """Bytes of memory of its own, bytes of images in memory, and descriptors of a daemon."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    found = {field: int(status[field].split()[0]) << 10 for field in ("RssAnon", "RssShmem")}
    return found | {"descriptors": len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))}


def flat(samples: Sequence[Sample], field: str) -> bool:
    """The last third is not above the second."""
    third = int(len(samples) * WARM)
    before, after = (
        statistics.median(one[field] for one in part) for part in (samples[third:-third], samples[-third:])
    )
    return after <= before * GROWTH + SLACK


def moments(seed: int, stages: Mapping[str, float]) -> Iterator[Moment]:
    """Without end."""
    while True:
        yield from draw(seed, BATCH, stages, VICTIMS, FAULTS)
        seed += 1


def run(seconds: float, seed: int, place: Path) -> tuple[int, dict[str, list[Sample]], dict[str, tuple[int, int]]]:
    """Dump after dump.

    @return: their number; the samples of each daemon; its descriptors before and after, when nothing was under way.
    @raise AssertionError: a migration did not end as it must.
    """
    world = World(place)
    daemons = {"proxy": world.relay.proxy, "cache": world.relay.cache}
    samples: dict[str, list[Sample]] = {role: [] for role in daemons}
    try:
        stages = undisturbed(world)
        idle = {role: sample(daemon)["descriptors"] for role, daemon in daemons.items()}
        end = time.monotonic() + seconds
        count = 0
        for moment in moments(seed, stages):
            trial = Trial(world, moment, f"soak-{moment.number % NAMES}", waits=False)
            outcome = trial.run()
            if outcome.proxy == "held":
                world.relay.proxy.request("DELETE", f"/v1/namespaces/{trial.migration.namespace}")
            count += 1
            for role, daemon in daemons.items():
                assert daemon.running, f"the {role} ended:\n{daemon.tail()}"
                samples[role].append(sample(daemon))
            if time.monotonic() >= end:
                break
        world.relay.linked()
        for role, daemon in daemons.items():
            until(
                lambda daemon=daemon, most=idle[role]: sample(daemon)["descriptors"] <= most,  # type: ignore[misc]
                QUIET_SECONDS,
                f"the {role} has no more than {idle[role]} descriptors open",
                lambda daemon=daemon: "\n".join(daemon.descriptors()),  # type: ignore[misc]
            )
        return count, samples, {role: (idle[role], sample(daemon)["descriptors"]) for role, daemon in daemons.items()}
    finally:
        world.close()


def main() -> int:
    """As a process; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} s; logs in {place}", flush=True)
    count, samples, descriptors = run(arguments.seconds, arguments.seed, place)
    well = True
    for role, taken in samples.items():
        for field in ("RssAnon", "RssShmem"):
            level = flat(taken, field)
            well = well and level
            shown = ", ".join(f"{one[field] / (1 << 20):.1f}" for one in taken[:: max(1, len(taken) // 12)])
            print(f"{role:<6} {field:<9} {'flat' if level else 'GROWS'}: {shown} MiB")
        print(f"{role:<6} descriptors {descriptors[role][0]} before, {descriptors[role][1]} after")
    print(f"{count} dumps: {'all well' if well else 'NOT FLAT'}")
    if well:
        shutil.rmtree(place)
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
