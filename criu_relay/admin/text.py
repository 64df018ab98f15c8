"""Numbers and tables for people: at most 80 columns, and nothing that a terminal would obey."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from criu_relay.wire.names import plain

#: Columns that everything fits in.
WIDTH = 80


def size(count: float) -> str:
    """Bytes with the suffixes that options take, powers of 1024.

    >>> size(512), size(1536), size(300 << 20)
    ('512', '1.5K', '300M')
    """
    for unit in ("", "K", "M", "G"):
        if count < 1000 or unit == "G":
            break
        count /= 1024
    return f"{count:.0f}{unit}" if not unit or count >= 99.95 else f"{count:.1f}{unit}"


def span(seconds: float) -> str:
    """A length of time.

    >>> span(0.25), span(42), span(150), span(4000), span(200000)
    ('0.2 s', '42 s', '2 min', '1 h 6 min', '2 d 7 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if not minutes:
        return f"{int(seconds)} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


def shortened(text: str, width: int) -> str:
    """At most `width` characters, with the middle left out: names differ at their ends.

    >>> shortened("a-very-long-name-1", 10)
    'a-ver..e-1'
    """
    text = plain(text)
    if len(text) <= width:
        return text
    tail = (width - 2) // 2
    return text[: width - 2 - tail] + ".." + text[len(text) - tail :]


def note(label: str, text: str) -> list[str]:
    """A remark below the row that it belongs to, on as many lines as it takes; none when there is no text."""
    if not text:
        return []
    indent = "    "
    return textwrap.wrap(
        plain(f"{label}{text}"), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide the columns of a table are: the widest give way until all fits in L{WIDTH}."""
    cells = [[head.rstrip(":") for head in heads], *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    while sum(widths) + 2 * (len(heads) - 1) > WIDTH:
        widths[widths.index(max(widths))] -= 1
    return widths


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """A table as lines; columns whose head ends with a colon (not shown) are flush right.

    @param widths: of the columns; by default what L{columns} makes of the rows.
    """
    cells = [[head.rstrip(":") for head in heads], *([plain(cell) for cell in row] for row in rows)]
    widths = widths or columns(heads, rows)
    lines = []
    for row in cells:
        padded = [
            shortened(cell, width).rjust(width) if head.endswith(":") else shortened(cell, width).ljust(width)
            for cell, width, head in zip(row, widths, heads, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines
