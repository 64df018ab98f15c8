"""sparse.py PAGES SEED: writes every second page of twice as many, so that each is an entry of the pagemap."""

from __future__ import annotations

import hashlib
import mmap
import random
import sys

import common

PAGE = 4096


def main() -> None:
    """Fill, then count for ever."""
    pages, seed = int(sys.argv[1]), int(sys.argv[2])
    memory = mmap.mmap(-1, 2 * pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    generator = random.Random(seed)
    places = range(0, 2 * pages * PAGE, 2 * PAGE)
    for start in places:
        memory[start : start + PAGE] = generator.randbytes(PAGE)

    def report() -> dict[str, str]:
        digest = hashlib.sha256()
        for start in places:
            digest.update(memory[start : start + PAGE])
        return {"digest": digest.hexdigest()}

    common.loop(report)


main()
