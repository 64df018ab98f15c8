"""After a start nothing is resident that only the start needed, and nothing of our own is lost."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from criu_relay import residence
from criu_relay.residence import untouched

FILE = b"""7f0000000000-7f0000003000 %s 00000000 fe:00 1234                       /usr/lib/libx.so (deleted)
Size:                 12 kB
Rss:                  12 kB
Private_Dirty:         0 kB
Anonymous:          %4d kB
LazyFree:              0 kB
Swap:               %4d kB
SwapPss:               0 kB
VmFlags: rd mr mw me
"""

OTHERS = b"""560000000000-560000021000 r--p 00000000 00:00 0                          [heap]
Rss:                  12 kB
Anonymous:             0 kB
VmFlags: rd
7fff00000000-7fff00021000 r--p 00000000 00:00 0
Rss:                  12 kB
Anonymous:             0 kB
"""

PROGRAM = """
import json, sys
import numpy, OpenSSL.SSL, criu_relay.cache
from criu_relay.residence import settle

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile:"))

before = resident()
settle()
after = resident()
from twisted.internet import reactor, ssl
assert numpy.arange(1000).reshape(10, 100).sum() == 499500
assert OpenSSL.SSL.Context(OpenSSL.SSL.TLS_METHOD) is not None
reactor.callLater(0, reactor.stop)
reactor.run()
print(json.dumps([before, after]))
"""


def test_what_is_only_in_memory_stays() -> None:
    """Also where it was swapped out."""
    for access, anonymous, swapped, expected in (
        (b"r-xp", 0, 0, [(0x7F0000000000, 0x3000)]),
        (b"r--p", 0, 0, [(0x7F0000000000, 0x3000)]),
        (b"---p", 0, 0, [(0x7F0000000000, 0x3000)]),
        (b"r--p", 4, 0, []),
        (b"r-xp", 4, 0, []),
        (b"r--p", 0, 4, []),
        (b"rw-p", 0, 0, []),
        (b"r--s", 0, 0, []),
    ):
        assert list(untouched(OTHERS + FILE % (access, anonymous, swapped) + OTHERS)) == expected


def test_of_this_process() -> None:
    """The program itself is among them, and no mapping that is written to."""
    found = dict(untouched(residence.SMAPS.read_bytes()))
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    named = {int(line[0].split("-")[0], 16): line for line in maps}
    assert any(named[first][5].endswith("libc.so.6") for first in found)
    assert not [first for first in found if "w" in named[first][1] or len(named[first]) < 6]


def test_without_proc_everything_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(residence, "SMAPS", tmp_path / "smaps")
    try:
        residence.settle()
    finally:
        gc.unfreeze()


def test_half_of_the_files_are_not_resident_any_more() -> None:
    """In a process of its own, which goes on with all that it has loaded."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    before, after = json.loads(done.stdout)
    assert after < before // 2
