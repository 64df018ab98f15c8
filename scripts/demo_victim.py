"""The process that `make demo` migrates: it holds memory and counts, and can prove that both are as they were.

    python scripts/demo_victim.py BYTES FOLDER

Every tick (a millisecond) it writes its count and the time into FOLDER/ticks. When FOLDER/report appears it
replaces it by a line of JSON: the count, a digest of all of its memory, and the longest time between two ticks since
the last report. The times are CLOCK_REALTIME: a restored process goes on with its old CLOCK_MONOTONIC.
"""

import hashlib
import json
import os
import struct
import sys
import time

TICK = 0.001
PIECE = 1 << 20


def fill(size: int) -> bytearray:
    """Memory in which no two pages are alike."""
    memory = bytearray(size)
    for start in range(0, size, PIECE):
        memory[start : start + PIECE] = hashlib.shake_128(b"%d" % start).digest(min(PIECE, size - start))
    return memory


def main() -> None:
    size, folder = int(sys.argv[1]), sys.argv[2]
    memory = fill(size)
    wanted, answer = os.path.join(folder, "report"), os.path.join(folder, "answer")
    ticks = os.open(os.path.join(folder, "ticks"), os.O_RDWR | os.O_CREAT, 0o600)
    count, gap, last = 0, 0.0, time.time()
    while True:
        time.sleep(TICK)
        now = time.time()
        count += 1
        gap = max(gap, now - last)
        os.pwrite(ticks, struct.pack("<Qd", count, now), 0)
        last = now
        if os.path.exists(wanted):
            with open(answer + ".new", "w") as file:
                json.dump({"count": count, "gap": gap, "digest": hashlib.blake2b(memory).hexdigest()}, file)
            os.unlink(wanted)
            os.rename(answer + ".new", answer)
            gap, last = 0.0, time.time()


if __name__ == "__main__":
    main()
