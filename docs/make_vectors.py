#!/usr/bin/env python3
"""Write the test vectors (tests/data/wire-vectors.json) into docs/protocol.md, between its marks.

docs/make_vectors.py           writes the page
docs/make_vectors.py --check   exits 1 when the page does not have exactly the vectors
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import textwrap
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/protocol.md"
VECTORS = ROOT / "tests/data/wire-vectors.json"

MARKS = re.compile(r"(<!-- vectors: (?P<section>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)
WIDTH = 110


def wrap(text: str) -> str:
    """A long line as several, indented below its title."""
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)


def render(vector: dict[str, Any]) -> str:
    """One vector: title, bytes (length, message, payload), fields."""
    title = f"{vector['what']}, from {vector['sender']}{' (recorded)' if vector['recorded'] else ''}"
    parts = [vector["hex"][:8], vector["hex"][8:]]
    if vector.get("payload"):
        parts += ["payload", vector["payload"]]
    return "\n".join([title, wrap(" ".join(parts)), wrap(json.dumps(vector["decoded"]))])


def rendered(page: str, vectors: list[dict[str, Any]]) -> str:
    """The page with the vectors of each section between that section's marks."""

    def section(found: re.Match[str]) -> str:
        texts = [render(vector) for vector in vectors if vector["section"] == found["section"]]
        return f"{found[1]}```text\n" + "\n\n".join(texts) + f"\n```\n{found[3]}"

    return MARKS.sub(section, page)


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit status."""
    page = PAGE.read_text()
    wanted = rendered(page, json.loads(VECTORS.read_text()))
    if arguments == ["--check"]:
        if page != wanted:
            print("docs/protocol.md does not have exactly the vectors: run docs/make_vectors.py", file=sys.stderr)
        return int(page != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
