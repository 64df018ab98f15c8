"""memory.py MIB SEED: holds MIB of seeded memory; answers with its SHA-256."""

from __future__ import annotations

import hashlib
import mmap
import random
import sys

import common

MIB = 1 << 20


def main() -> None:
    """Fill, then count for ever."""
    size, seed = int(sys.argv[1]), int(sys.argv[2])
    memory = mmap.mmap(-1, max(size, 1) * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    generator = random.Random(seed)
    for start in range(0, size * MIB, MIB):
        memory[start : start + MIB] = generator.randbytes(MIB)
    common.loop(lambda: {"digest": hashlib.sha256(memory).hexdigest()})


main()
