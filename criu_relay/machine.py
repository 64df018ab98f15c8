"""State machines as tables of transitions.

A table maps (state, event) to the next state; an event that has no row in the present state is a
L{Conflict}. `docs/make_diagrams.py` draws the tables of the whole project.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from criu_relay.errors import Conflict

S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)

Table = Mapping[tuple[S, E], S]


class Machine(Generic[S, E]):
    """One machine in one state of a table.

    @ivar state: where it is.
    """

    def __init__(self, what: str, table: Table[S, E], initial: S, entered: Callable[[S], None]) -> None:
        """
        @param what: names the machine in errors, such as "namespace web".
        @param entered: called with each state that is entered, the initial one excepted.
        """
        self.what = what
        self.state = initial
        self._table = table
        self._entered = entered

    def accepts(self, event: E) -> bool:
        """Whether the event has a row in the present state."""
        return (self.state, event) in self._table

    def feed(self, event: E) -> S:
        """Take one transition.

        @raise Conflict: the event has no row in this state.
        """
        try:
            target = self._table[self.state, event]
        except KeyError:
            raise Conflict(f"{self.what} is {self.state.value}: {event.value} does not fit") from None
        self.state = target
        self._entered(target)
        return target


def mermaid(table: Table[S, E], initial: S) -> str:
    """The table as a Mermaid state diagram."""
    names = {state.value: state.name.lower() for row in table for state in (row[0], table[row])}
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{value}" as {name}' for value, name in names.items() if value != name]
    lines.append(f"    [*] --> {initial.name.lower()}")
    rows: dict[tuple[str, str], list[str]] = {}
    for (state, event), target in table.items():
        rows.setdefault((state.name.lower(), target.name.lower()), []).append(event.value)
    lines += [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in rows.items()]
    leaves = {target.name.lower() for target in table.values()} - {state.name.lower() for state, _ in table}
    lines += [f"    {state} --> [*]" for state in sorted(leaves)]
    return "\n".join(lines) + "\n"
