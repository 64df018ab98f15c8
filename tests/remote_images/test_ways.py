"""Real daemons on a kernel that refuses every fast way: the same images, and `status` says which way they went."""

from __future__ import annotations

import os

import pytest

from tests.remote_images.pair import Pair
from tests.support.daemons import Relay
from tests.support.polling import until

MIB = 1 << 20

IMAGES = {"pages-1.img": os.urandom(5 * MIB + 17), "core-1.img": os.urandom(30_000), "empty.img": b""}

SIZE = sum(map(len, IMAGES.values()))

REFUSED = ("readv", "sendfile", "splice", "recvmsg_into")

REFUSING = f"""
import errno, os, socket, sys

def refuse(*arguments, **named):
    raise OSError(errno.EINVAL, "refused by the test")

if any("criu-relay-" in argument for argument in sys.argv):
    for owner in (os, socket.socket):
        for name in {REFUSED!r}:
            if hasattr(owner, name):
                setattr(owner, name, refuse)
"""
"""For the daemons."""


@pytest.fixture(params=["fast", "plain"])
def way(request: pytest.FixtureRequest, relay: Relay) -> str:
    if request.param == "plain":
        relay.prepare(REFUSING)
    chosen: str = request.param
    return chosen


@pytest.mark.parametrize("window", ["default", "0"])
def test_images_by_either_way(relay: Relay, way: str, window: str) -> None:
    pair = Pair(relay)
    pair.start(proxy=["--window", "0"] if window == "0" else [])
    pair.moved(IMAGES)
    until(lambda: sum(pair.status("cache")["hops"]["criu"].values()) > SIZE, 20, "all that was read is counted")
    proxy, cache = (pair.status(at)["hops"] for at in ("proxy", "cache"))
    refused = {*proxy["refused"], *cache["refused"]}
    kept = window == "default"
    if way == "fast":
        assert refused == set()
        assert cache["criu"]["sendfile"] > SIZE
        assert proxy["link"]["sendfile" if kept else "splice"] > 4 * MIB, "all but what comes in small pieces"
        assert cache["link"]["recvmsg_into"] > SIZE
    else:
        assert refused == set(REFUSED) - {"splice" if kept else "readv"}
        assert cache["criu"]["write"] > SIZE
        assert proxy["link"]["write" if kept else "read"] > 4 * MIB
        assert cache["link"]["recv_into"] > SIZE
    peers = pair.status("cache")["link"]["peers"] + pair.status()["link"]["peers"]
    expected = {"fast": ["sendfile, recvmsg_into"], "plain": ["sendfile, recv_into", "write, recv_into"]}
    assert all(peer["io"] in expected[way] for peer in peers)
    text = relay.command("status").stdout
    assert "moved: criu " in text
    assert ("refused " in text) is (way == "plain")
    relay.stop()
