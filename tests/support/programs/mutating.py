"""mutating.py MIB: rewrites all of its memory, again and again, each round with its own number.

While the file `pause` is in its directory it leaves its memory alone. What it answers: `round` and `position` (bytes
before it have this round's number, the others that of the round before) and `wrong`: how many pages have not.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

import common

MIB = 1 << 20
PAGE = 4096
CHUNK = 64 * PAGE


def main() -> None:
    """Rewrite for ever."""
    size = int(sys.argv[1]) * MIB
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    counter = common.Counter()
    number = position = 0

    def report() -> dict[str, int]:
        new, old = number.to_bytes(8, "little") * (PAGE // 8), (number - 1).to_bytes(8, "little") * (PAGE // 8)
        pages = range(0, size, PAGE)
        wrong = sum(memory[start : start + PAGE] != (new if start < position else old) for start in pages)
        return {"count": counter.value, "round": number, "position": position, "wrong": wrong}

    while True:
        number += 1
        chunk = number.to_bytes(8, "little") * (CHUNK // 8)
        position = 0
        while position < size:
            while os.path.exists("pause"):
                common.answer(report)
                time.sleep(common.TICK)
            memory[position : position + CHUNK] = chunk
            position += CHUNK
        counter.tick()
        if number > 1:
            common.answer(report)


main()
