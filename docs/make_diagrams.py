"""Draws every state machine of the project into docs/states.md, from the tables that the program runs on.

usage: python docs/make_diagrams.py [--check]

With --check nothing is written; the exit status is 1 when the page is not what it would write.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("states.md")
sys.path.insert(0, str(PAGE.parent.parent))

from criu_relay.commit import states, tasks  # noqa: E402
from criu_relay.link import outlet  # noqa: E402
from criu_relay.link import states as link  # noqa: E402
from criu_relay.machine import mermaid  # noqa: E402
from criu_relay.store import generation  # noqa: E402

MACHINES: list[tuple[str, str, Any, Any]] = [
    (
        "A migration at the proxy",
        "`criu_relay/commit/states.py`. It begins with the first image that CRIU writes. *permitted* means that criu"
        " may kill the task, *committing* that it is a fact and the cache has not confirmed it yet, *lost* that the"
        " cache no longer has what was committed.",
        states.TABLE,
        states.State.OPEN,
    ),
    (
        "A permitted dump",
        "`criu_relay/commit/tasks.py`: two pidfds tell whether the task is gone or lives on.",
        tasks.TABLE,
        tasks.State.BOTH,
    ),
    (
        "A generation at the cache",
        "`criu_relay/store/generation.py`. Only *committed* is served; opens wait through *open* and *held*.",
        generation.TABLE,
        generation.State.OPEN,
    ),
    (
        "A connection of the link",
        "`criu_relay/link/states.py`, the same at both ends. *securing* is the TLS handshake; a plain link is"
        " secured at once.",
        link.TABLE,
        link.State.SECURING,
    ),
    (
        "The link of a proxy",
        "`criu_relay/link/outlet.py`: nothing that a session counts is sent before the cache has said where to go on.",
        outlet.TABLE,
        outlet.State.DOWN,
    ),
]


def page() -> str:
    """The page as it should be."""
    parts = [
        "# States\n\nDrawn from the tables in the code by `python docs/make_diagrams.py`; an event without an arrow is"
        " refused in that state.\n"
    ]
    for title, text, table, initial in MACHINES:
        parts.append(f"## {title}\n\n{text}\n\n```mermaid\n{mermaid(table, initial)}```\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check it."""
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            print("docs/states.md is not up to date: python docs/make_diagrams.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
