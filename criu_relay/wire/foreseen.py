"""Frames that are foreseen behind a payload: where their headers and payloads go, so that several are received at once.

The headers go to the beginning of a scratch buffer, one behind the other; the payloads to the memory behind the first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol


class RunSink(Protocol):
    """Where the payloads of frames go that are like one another."""

    def follow(self, frames: int, size: int) -> bool:
        """Behind the payload that is done came so many foreseen frames, each with C{size} bytes of payload, which lie
        behind it in the room that it had.

        @return: False: they are not taken, and nothing is changed.
        """


def same_place(one: memoryview, other: memoryview) -> bool:
    """Two views of writable memory begin at the same byte."""
    return _address(one) == _address(other)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Foreseen:
    """Some frames.

    @ivar length: bytes of each header; C{size}: of each payload; C{frame}: of both.
    @ivar most: bytes that the places hold.
    """

    def __init__(self, headers: Sequence[bytes], size: int, beyond: memoryview, scratch: memoryview) -> None:
        """
        @param headers: at least one, all as long.
        @param beyond: memory for as many payloads.
        @param scratch: for as many headers and one more.
        """
        self.length = len(headers[0])
        self.size = size
        self.frame = self.length + size
        self.most = len(headers) * self.frame + self.length
        self._headers = headers
        self._beyond = beyond
        self._scratch = scratch

    def places(self) -> list[memoryview]:
        """Where received bytes go, in order: a header, its payload, ..., and the header behind the last of them."""
        found: list[memoryview] = []
        for number in range(len(self._headers)):
            found += [self._header(number), self._payload(number)]
        return [*found, self._header(len(self._headers))]

    def whole(self, count: int) -> int:
        """Of `count` bytes that came: how many frames are complete, and what was foreseen, up to the first that is
        not."""
        number = 0
        while count >= (number + 1) * self.frame and self.came(number):
            number += 1
        return number

    def came(self, number: int) -> bool:
        """This header, which has come, is the one that was foreseen."""
        return number < len(self._headers) and bytes(self._header(number)) == self._headers[number]

    def beginning(self, number: int, count: int) -> memoryview:
        """The first bytes of a payload."""
        return self._payload(number)[:count]

    def copied(self, number: int, count: int) -> bytes:
        """Copy what came from this header on: `count` bytes."""
        parts: list[memoryview] = []
        for place in self.places()[2 * number :]:
            parts.append(place[:count])
            count -= len(parts[-1])
        return b"".join(parts)

    def _header(self, number: int) -> memoryview:
        return self._scratch[number * self.length : (number + 1) * self.length]

    def _payload(self, number: int) -> memoryview:
        return self._beyond[number * self.size : (number + 1) * self.size]
