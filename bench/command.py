"""make bench ARGS="--quick --rows unix,tls": measure, print a table, write build/bench.json.

Exit status: 0 when everything that was asked for was measured and reaches its bound, else 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench import machine, report
from bench.measure import Row, Skipped
from bench.rows import ASKED, ROWS
from bench.stage import QUICK, ROOT, Plan, Stage, stage

ROW_SECONDS = 900
"""No row takes so long on a machine that can be measured on: what hangs is given up."""


MEASURES = ROWS | ASKED


def names(text: str) -> list[str]:
    """The rows of --rows."""
    found = text.split(",")
    unknown = [name for name in found if name not in MEASURES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    return found


def measure(staged: Stage, wanted: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows, and a line for each that could not be measured."""
    rows: list[Row] = []
    without: list[str] = []
    for name in wanted:
        began = time.monotonic()
        print(f"{name} ...", end="", file=sys.stderr, flush=True)
        signal.alarm(ROW_SECONDS)
        try:
            rows += MEASURES[name](staged)
        except Skipped as reason:
            without.append(f"{name}: not measured: {reason}")
        except Exception as error:
            traceback.print_exc()
            without.append(f"{name}: failed: {error}".splitlines()[0])
        signal.alarm(0)
        print(f" {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows, without


def give_up(number: int, frame: object) -> NoReturn:
    """A signal ends what runs in order, so that no process is left."""
    if number == signal.SIGALRM:
        raise TimeoutError(f"not measured within {ROW_SECONDS} s")
    raise KeyboardInterrupt


def run(staged: Stage, wanted: Sequence[str], output: Path) -> int:
    """Measure, print and write; the exit status."""
    about = machine.described()
    rows, without = measure(staged, wanted)
    report.write(output, about, rows)
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
    print(report.table(rows), report.legend(rows), *without, sep="\n")
    return 1 if without or any(row.misses for row in rows) else 0


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: under a minute in all")
    parser.add_argument("--rows", type=names, default=list(ROWS), help=f"some of {','.join(MEASURES)}")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json", help="[default: %(default)s]")
    arguments = parser.parse_args()
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, give_up)
    try:
        machine.own_network()
    except OSError as error:
        print(f"no network of our own ({error}): congestion control is what it is here", file=sys.stderr)
    with stage(QUICK if arguments.quick else Plan()) as staged:
        return run(staged, arguments.rows, arguments.output)
