"""An image over a link that breaks again and again; `make faults`: a gigabyte, a hundred times."""

from __future__ import annotations

import os
import random

import xxhash

from tests.remote_images.pair import Pair
from tests.support.daemons import Relay
from tests.support.faults import UP, Fault, Faults

MIB = 1 << 20
CUTS = int(os.environ.get("FAULTS_CUTS") or 20)
ROUND = 10 * MIB
"""Bytes that are written for each cut."""

WINDOW = 16 * MIB
BETWEEN = 18 * MIB
"""Bytes that a link carries at most: on the average less than a round."""


def test_cuts_while_an_image_moves(relay: Relay) -> None:
    rolled = random.Random(5)
    plan = [
        Fault(rolled.choice(["reset", "fin"]), UP, rolled.randrange(1000, BETWEEN), connection=number)
        for number in range(CUTS)
    ]
    faults = Faults(relay.port, *plan)
    pair = Pair(relay)
    pair.start(proxy=("--link", f"tcp:127.0.0.1:{faults.port}", "--window", str(WINDOW)))
    noise, digest = os.urandom(ROUND), xxhash.xxh3_128()
    with pair.dump().dump() as dump:
        pipe = dump.begin("pages-1.img")
        for number in range(CUTS):
            data = memoryview(noise[number * 4096 :] + noise[: number * 4096])
            digest.update(data)
            while data:
                data = data[os.write(pipe, data) :]
        os.close(pipe)
    pair.commits()
    dump.finish()
    counters = relay.get("/v1/status", "proxy")["counters"]
    assert counters["links_resumed"] >= CUTS // 2
    assert counters["link_bytes_sent_again"] <= counters["links_resumed"] * (WINDOW + MIB)
    assert pair.images("cache")["pages-1.img"]["digest"] == digest.hexdigest()

    restore = pair.restore()
    served = xxhash.xxh3_128()
    with restore.ask("pages-1.img") as asked:
        assert asked.reply() == 0
        reading = asked.pass_pipe("read")
    while part := os.read(reading, MIB):
        served.update(part)
    os.close(reading)
    assert served.digest() == digest.digest()
    restore.finish()
    faults.close()
    pair.alive()
