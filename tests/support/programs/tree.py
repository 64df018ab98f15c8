"""tree.py PROCESSES SEED: a tree of processes with pipes, unix sockets, threads and shared memory.

Process i is a child of process (i - 1) // 3. All are joined to a ring of pipes, each to its parent by a socketpair, and
each has a slot in shared memory that a thread of it counts in. Another thread asks the parent over the socketpair for
its echo. A roll call goes around the ring when the test asks: each process adds what it is and sees.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import socket
import struct
import sys
import threading
import time
from typing import Any

import common

SLOT = struct.Struct("<QQQ")
"""Of each process in shared memory: counted by its thread, echoes checked, echoes that were wrong."""

SHARED = 1 << 20
"""Bytes of shared memory; the slots are at its start, seeded bytes behind them."""

PRIVATE = 1 << 18
"""Bytes of memory of each process alone."""

PARKED = 3000
"""Bytes that lie in a pipe of each process, between two roll calls."""


def read_exactly(descriptor: int, size: int) -> bytes:
    """`size` bytes."""
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def send(descriptor: int, members: list[dict[str, Any]]) -> None:
    """A roll call goes on."""
    data = json.dumps(members).encode()
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> list[dict[str, Any]]:
    """A roll call comes."""
    members: list[dict[str, Any]] = json.loads(
        read_exactly(descriptor, struct.unpack("<I", read_exactly(descriptor, 4))[0])
    )
    return members


class Member:
    """One process of the tree."""

    def __init__(self, index: int, count: int, seed: int, shared: mmap.mmap, ring: list[tuple[int, int]]) -> None:
        self.index = index
        self._count = count
        self._shared = shared
        self._came, self._goes = ring[index - 1][0], ring[index][1]
        generator = random.Random(seed * 1000 + index)
        self._private = bytearray(generator.randbytes(PRIVATE))
        self._parked = os.pipe()
        os.write(self._parked[1], generator.randbytes(PARKED))
        self._counted = self._checked = self._wrong = 0

    def start(self, parent: socket.socket | None, children: list[socket.socket]) -> None:
        """Start its threads."""
        work: list[Any] = [self._count_on, *(lambda child=child: self._echo(child) for child in children)]
        if parent is not None:
            work.append(lambda: self._ask(parent))
        for target in work:
            threading.Thread(target=target, daemon=True).start()

    def _count_on(self) -> None:
        while True:
            self._counted += 1
            SLOT.pack_into(self._shared, self.index * SLOT.size, self._counted, self._checked, self._wrong)
            time.sleep(common.TICK)

    def _echo(self, child: socket.socket) -> None:
        while True:
            child.sendall(child.recv(8, socket.MSG_WAITALL))

    def _ask(self, parent: socket.socket) -> None:
        while True:
            asked = struct.pack("<Q", self._checked)
            parent.sendall(asked)
            self._wrong += parent.recv(8, socket.MSG_WAITALL) != asked
            self._checked += 1
            time.sleep(common.TICK)

    def entry(self) -> dict[str, Any]:
        """What it is and sees now."""
        parked = read_exactly(self._parked[0], PARKED)
        os.write(self._parked[1], parked)
        private = hashlib.sha256(self._private + parked)
        slots = [SLOT.unpack_from(self._shared, index * SLOT.size) for index in range(self._count)]
        return {
            "index": self.index,
            "pid": os.getpid(),
            "parent": os.getppid() if self.index else 0,
            "threads": threading.active_count(),
            "private": private.hexdigest(),
            "shared": hashlib.sha256(self._shared[self._count * SLOT.size :]).hexdigest(),
            "counted": [slot[0] for slot in slots],
            "checked": [slot[1] for slot in slots],
            "wrong": sum(slot[2] for slot in slots),
        }

    def follow(self) -> None:
        """Of all but the root: pass roll calls on for ever."""
        while True:
            members = receive(self._came)
            send(self._goes, [*members, self.entry()])

    def lead(self) -> list[dict[str, Any]]:
        """Of the root: make a roll call."""
        send(self._goes, [self.entry()])
        return receive(self._came)


def main() -> None:
    """Make the tree."""
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    shared = mmap.mmap(-1, SHARED, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    shared[count * SLOT.size :] = random.Random(seed).randbytes(SHARED - count * SLOT.size)
    ring = [os.pipe() for _ in range(count)]
    index = 0
    parent: socket.socket | None = None
    children: list[socket.socket] = []
    child = 1
    while child <= 3 * index + 3 and child < count:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            for other in children:
                other.close()
            index, parent, children, child = child, theirs, [], 3 * child + 1
        else:
            theirs.close()
            children.append(ours)
            child += 1
    member = Member(index, count, seed, shared, ring)
    member.start(parent, children)
    if index:
        member.follow()
    common.loop(lambda: {"members": member.lead()})


main()
