"""What kind of image CRIU wrote, by the magic numbers at its beginning.

The numbers are those of CRIU 4.2, criu/include/magic.h: two of four bytes, little endian, the first of which says only
that it is an image, or a service file; images before 1.1 have the second one alone. Raw images (pages, archives) have
none.

>>> identify(bytes.fromhex("19435654 16313158"))
Magic(kind='inventory', value=1479618838)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

COMMON = 0x54564319
SERVICE = 0x55105940

HEAD = 8
"""Bytes that are looked at."""

KINDS = {
    0x58313116: "inventory",
    0x50273030: "pstree",
    0x56213732: "fdinfo",
    0x56084025: "pagemap",
    0x55053847: "core",
    0x54432030: "ids",
    0x54123737: "vmas",
    0x56513555: "pipes",
    0x56453709: "pipes-data",
    0x58364939: "fifo",
    0x59333054: "fifo-data",
    0x55344201: "sigact",
    0x54373943: "unixsk",
    0x56443851: "inetsk",
    0x60454618: "packetsk",
    0x57464056: "itimers",
    0x52603957: "posix-timers",
    0x56264026: "sk-queues",
    0x54473203: "utsns",
    0x54023547: "creds",
    0x53115007: "ipc-var",
    0x46283044: "ipcns-shm",
    0x55453737: "ipcns-msg",
    0x59573019: "ipcns-sem",
    0x50363636: "reg-files",
    0x59255641: "ext-files",
    0x51403912: "fs",
    0x57492820: "mm",
    0x59133954: "remap-fpath",
    0x52583605: "ghost-file",
    0x51465506: "tcp-stream",
    0x44523722: "eventfd-file",
    0x45023858: "eventpoll-file",
    0x44433746: "eventpoll-tfd",
    0x57323820: "signalfd",
    0x48424431: "inotify-file",
    0x54562009: "inotify-wd",
    0x55563928: "mnts",
    0x57373951: "netdev",
    0x55933752: "netns",
    0x59433025: "tty-files",
    0x59453036: "tty-info",
    0x59413026: "tty-data",
    0x54323616: "file-locks",
    0x57113925: "rlimit",
    0x55096122: "fanotify-file",
    0x56506035: "fanotify-mark",
    0x59255647: "signal",
    0x58005614: "netlink-sk",
    0x61394011: "ns-files",
    0x57143751: "tunfile",
    0x59383330: "cgroup",
    0x50493712: "timerfd",
    0x61404013: "cpuinfo",
    0x55474906: "userns",
    0x64413049: "seccomp",
    0x67343323: "binfmt-misc",
    0x49353943: "autofs",
    0x56303138: "files",
    0x57093306: "stats",
    0x57004059: "irmap-cache",
}
"""Magic number -> kind of image, named as CRIU's files are."""


class Magic(NamedTuple):
    """What an image is.

    @ivar kind: one of L{KINDS}.
    @ivar value: its number.
    """

    kind: str
    value: int


def identify(head: bytes) -> Magic | None:
    """What an image is, from its first L{HEAD} bytes; None: it has no magic number that is known."""
    numbers = struct.unpack(f"<{len(head[:HEAD]) // 4}I", head[: len(head[:HEAD]) // 4 * 4])
    value = numbers[1] if len(numbers) > 1 and numbers[0] in (COMMON, SERVICE) else numbers[0] if numbers else None
    return Magic(KINDS[value], value) if value in KINDS else None
