"""What a daemon leaves behind when it has started: modules that no collection looks at, and files that nobody reads."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")

_MAPPING = re.compile(
    rb"^(?P<first>[0-9a-f]+)-(?P<last>[0-9a-f]+) (?P<access>\S+) \S+ \S+ [1-9]\d* .*\n(?:[A-Z].*\n)*?"
    rb"Anonymous: +(?P<anonymous>\d+) kB\n(?:[A-Z].*\n)*?Swap: +(?P<swapped>\d+) kB\n",
    re.MULTILINE,
)
"""A mapping of a file, in smaps (proc_pid_smaps(5)); `anonymous` and `swapped`: what is in memory, or
was, and nowhere in the file."""

_MADV_DONTNEED = 4  # madvise(2)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def settle() -> None:
    """Call once, when everything is loaded and no thread runs yet: what one is loading could be given up halfway.

    Modules, classes and functions stay: a full collection that looks at them too takes tens of ms more. Of the program
    and its libraries starting has read some 25 MiB, of which two thirds are hardly needed again: they are taken out of
    our memory, and come back from the kernel's, page by page, when they are.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError):  # without /proc they stay
        for first, size in untouched(SMAPS.read_bytes()):
            _libc.madvise(first, size, _MADV_DONTNEED)


def untouched(smaps: bytes) -> Iterator[tuple[int, int]]:
    """Mappings of files that have nothing of their own: private, not writable, and every page as it is in the file.

    @return: address and size of each, in bytes.
    """
    for found in _MAPPING.finditer(smaps):
        own = int(found["anonymous"]) + int(found["swapped"])
        if b"w" not in found["access"] and found["access"].endswith(b"p") and not own:
            first = int(found["first"], 16)
            yield first, int(found["last"], 16) - first
