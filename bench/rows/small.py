"""Many small images."""

from __future__ import annotations

from pathlib import Path

from bench.measure import Row, Sample, alternate, row
from bench.processes import Program, measured, used
from bench.relay import Measured, relay
from bench.stage import Stage
from bench.tools import tar

SIZE = 64 << 10
"""Bytes of one."""

SOCKETS = {"stream": "streamer-capture.sock", "images": "img-proxy.sock"}
BOUNDS = {"stream": 0.3, "images": 0.2}
TAR = "tar c | socat | TCP | socat | tar x of the same files, memory to memory"


def sent(ours: Measured) -> Sample:
    """A subject: from the client's start until everything is held."""
    socket = ours.source / SOCKETS[ours.dialect]
    count = ours.stage.plan.images
    command: list[str | Path] = [ours.stage.program("images"), ours.dialect, socket, str(count), str(SIZE)]
    with measured(ours.pids) as usage, Program("client", command) as client:
        client.ready()
        client.go()
        times = client.times()
        held = ours.permit()
        client.end()
        ours.committed()
    ours.discard()
    own = used([client])
    return Sample(held - times.first, times.size, {**own.cpu, **usage.cpu}, {**own.rss, **usage.rss})


def files(stage: Stage) -> Path:
    """A folder of as many files."""
    folder = stage.new_folder("small")
    for number in range(stage.plan.images):
        (folder / f"image-{number}.img").write_bytes(bytes([number % 256]) * SIZE)
    return folder


def small_images(stage: Stage) -> list[Row]:
    """Both dialects."""
    folder = files(stage)
    rows = []
    for dialect, bound in BOUNDS.items():
        with relay(stage, dialect=dialect) as ours:
            samples = alternate(
                {"ours": lambda ours=ours: sent(ours), "tar": lambda: tar(folder, stage.new_folder("unpacked"))},  # type: ignore[misc]
                stage.plan.rounds,
            )
        rows.append(row(f"small-images@{dialect}", TAR, bound, samples["ours"], samples["tar"]))
    return rows
