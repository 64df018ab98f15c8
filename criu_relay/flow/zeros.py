"""Pages of zeros: which pages of some memory are, and zeros to hash, send and serve in place of them."""

from __future__ import annotations

import struct
from typing import Any

import numpy

PAGE = 4096
"""Bytes in a page: the unit that images are deduplicated in."""

ZEROS = memoryview(bytes(256 << 10))
"""Zeros to be hashed: small enough to stay in the processor's cache, large enough for few calls."""

_FIRST, _MIDDLE, _LAST = 0, 203, 511
"""Words of a page that are looked at first: few pages of a process have zeros in all three and are not all zeros."""


FEW = 32
"""Pages that are looked at one by one: in the time that numpy takes to begin."""

_BEGINNINGS = struct.Struct(f"=Q{PAGE - 8}x")


def zeros_unlikely(view: memoryview) -> bool:
    """None of these whole pages is all zeros, as can be seen at a glance: there are few, and none begins with zeros."""
    return len(view) <= FEW * PAGE and (0,) not in _BEGINNINGS.iter_unpack(view)


def zero_rows(words: numpy.ndarray) -> numpy.ndarray:
    """Which rows (of 512 words of 8 bytes) are all zeros.

    Three words tell for nearly every other page, which makes it ten times as fast as looking at all.
    """
    found: numpy.ndarray = (words[:, _FIRST] | words[:, _MIDDLE] | words[:, _LAST]) == 0
    likely = found.nonzero()[0]
    if len(likely):
        found[likely] = numpy.bitwise_or.reduce(words[likely], axis=1) == 0
    return found


def rows(view: memoryview) -> numpy.ndarray:
    """Whole pages as rows of words. Let go of it before the memory is given back."""
    return numpy.frombuffer(view, numpy.uint64).reshape(-1, PAGE // 8)


def hash_zeros(hasher: Any, count: int) -> None:
    """Update a hash with `count` zeros."""
    while count > 0:
        hasher.update(ZEROS[:count])
        count -= len(ZEROS)
