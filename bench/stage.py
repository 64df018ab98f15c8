"""What every row is given: how much to measure, compiled references, a folder in memory."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MIB, Skipped
from tests.support.daemons import Relay

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(__file__).with_name("reference")
BUILT = ROOT / "build" / "bench"
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Plan:
    """How much is measured; sizes in bytes.

    @ivar size: of the one large image.
    @ivar rounds: samples of each subject.
    @ivar images: how many small ones.
    @ivar flat: of the image that is much larger than the window.
    @ivar migrations: how many in a row, each of `migration` bytes.
    @ivar victim: memory of the process that is migrated.
    @ivar paced: of the image that is sent at a limited rate.
    @ivar shared: rows with the same options have the same daemons.
    """

    size: int = 1024 * MIB
    rounds: int = 5
    images: int = 2000
    flat: int = 8192 * MIB
    migrations: int = 32
    migration: int = 256 * MIB
    victim: int = 1024 * MIB
    paced: int = 512 * MIB
    shared: bool = False


QUICK = Plan(
    size=96 * MIB,
    rounds=1,
    images=300,
    flat=384 * MIB,
    migrations=3,
    migration=64 * MIB,
    victim=64 * MIB,
    paced=128 * MIB,
    shared=True,
)
"""Everything in less than a minute: to see that it works, and roughly how well."""


def required(program: str, package: str) -> str:
    """The path of a program of the system.

    @raise Skipped: it is not there.
    """
    found = shutil.which(program)
    if found is None:
        raise Skipped(f"no {program}: apt-get install {package}")
    return found


class Stage:
    """See the module.

    @ivar folder: in memory, for files; removed at the end.
    @ivar kept: daemons that wait for another row with their options; closed at the end.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.kept: dict[object, Relay] = {}

    def program(self, name: str) -> Path:
        """A reference in C, compiled when its source is newer.

        @raise Skipped: there is no compiler.
        """
        source, made = SOURCES / f"{name}.c", BUILT / name
        newest = max(file.stat().st_mtime for file in (source, *SOURCES.glob("*.h")))
        if not made.exists() or made.stat().st_mtime < newest:
            compiler = required("gcc", "gcc libc6-dev")
            BUILT.mkdir(parents=True, exist_ok=True)
            subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, source], check=True)
        return made

    def new_folder(self, name: str) -> Path:
        """An empty folder in memory."""
        made = self.folder / name
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        return made


@contextmanager
def stage(plan: Plan) -> Iterator[Stage]:
    """One for a run."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        staged = Stage(plan, Path(folder))
        try:
            yield staged
        finally:
            for relay in staged.kept.values():
                relay.close()
