"""What a command of the manhole shows: lines that are made while they are printed, so that none of it takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred

from criu_relay.admin.text import columns, table

ROWS = 1000
"""Rows that one command shows: what waits for a terminal that does not read is bounded by it."""

ROWS_PER_TURN = 50
"""Rows that are made in one turn of the reactor: a row of a table costs some 10 us."""

Step = str | Deferred[Any] | None
"""A line; or something to wait for; or nothing yet, for a turn that only looked."""


class Listing:
    """Lines for a terminal. At the prompt they are printed turn by turn; C{list(...)} and C{print(...)} take them all.

    Only the former can show what has to be waited for.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = iter(steps)

    def __iter__(self) -> Iterator[str]:
        return (step for step in self.steps if isinstance(step, str))

    def __str__(self) -> str:
        return "\n".join(self)


@dataclass(frozen=True)
class Question:
    """Something that is done only when the answer is yes.

    @ivar text: without the question mark.
    @ivar act: what is shown then.
    """

    text: str
    act: Callable[[], object]


Row = Sequence[str] | None
"""The cells of a row; or nothing yet."""


def tabulated(heads: Sequence[str], rows: Iterable[Row], nothing: str) -> Iterator[Step]:
    """A table of rows that come one by one; its columns are as wide as its first rows need.

    @param nothing: the line for no rows at all.
    """
    found = iter(rows)
    first: list[Sequence[str]] = []
    for row in found:
        if row is None:
            yield None
        else:
            first.append(row)
        if len(first) == ROWS_PER_TURN:
            break
    if not first:
        yield nothing
        return
    widths = columns(heads, first)
    yield from table(heads, first, widths)
    for row in found:
        yield None if row is None else table(heads, [row], widths)[1]


class Page:
    """The rows of at most L{ROWS} items from number C{first} on.

    @ivar cut: there are more; known when all rows were taken.
    """

    def __init__(self, items: Iterable[Any], first: int, row: Callable[[Any], Sequence[str]]) -> None:
        self.cut = False
        self._items = iter(items)
        self._first = first
        self._row = row

    def __iter__(self) -> Iterator[Row]:
        for number, item in enumerate(islice(self._items, self._first + ROWS)):
            yield self._row(item) if number >= self._first else None
        self.cut = next(self._items, None) is not None

    def listing(self, heads: Sequence[str], nothing: str, call: str) -> Listing:
        """As a table, and behind it how to see what is left.

        @param call: such as C{images('web', first={})}.
        """
        return Listing(self._steps(heads, nothing, call))

    def _steps(self, heads: Sequence[str], nothing: str, call: str) -> Iterator[Step]:
        yield from tabulated(heads, self, nothing)
        if self.cut:
            yield f"... there is more: {call.format(self._first + ROWS)}"
