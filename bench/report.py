"""The table, and build/bench.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.measure import Row

HEADINGS = ("row", "ratio", "bound", "GB/s", "theirs", "CPU s/GB", "peak RSS MiB", "")


def _by_process(values: Mapping[str, float], form: str) -> str:
    return " ".join(f"{process} {value:{form}}" for process, value in values.items())


def table(rows: Iterable[Row]) -> str:
    """For people; what is missed is said at the end of a line."""
    lines = [HEADINGS]
    for row in rows:
        lines.append(
            (
                row.name,
                f"{row.ratio:.2f}",
                f"{row.bound:.2f}",
                f"{row.gb_per_s:.2f}",
                "-" if math.isnan(row.reference_gb_per_s) else f"{row.reference_gb_per_s:.2f}",
                _by_process(row.cpu_s_per_gb, ".2f"),
                _by_process(row.rss_mib, ".0f"),
                "MISSED: " + ", ".join(row.misses) if row.misses else "ok",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def legend(rows: Iterable[Row]) -> str:
    """What each row is compared with."""
    return "\n".join(f"{row.name}: compared with {row.reference}" for row in rows)


def write(path: Path, machine: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": [row.as_json() for row in rows]}, indent=2) + "\n")
