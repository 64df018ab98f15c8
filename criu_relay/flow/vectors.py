"""Many runs of mapped memory into a pipe or socket with one system call.

The runs are rows of (address, bytes), as C's struct iovec has them (readv(2)): numpy makes them where a memoryview for
each would take longer than the call. One call takes at most 1024 of them (UIO_MAXIOV); a MiB of pages has 256.
"""

from __future__ import annotations

import ctypes
import os

import numpy

from criu_relay.flow.ways import SPLICE_FLAGS

NO_RUNS = numpy.empty((0, 2), numpy.uint64)

_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.vmsplice, _libc.writev):
    _call.restype = ctypes.c_ssize_t
_libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_libc.writev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


def vectors(addresses: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """Runs that begin at these addresses and have so many bytes."""
    made = numpy.empty((len(addresses), 2), numpy.uint64)
    made[:, 0] = addresses
    made[:, 1] = counts
    return made


def vmsplice(out: int, runs: numpy.ndarray) -> int:
    """Into a pipe by reference: they must not change before they are read at the other end (vmsplice(2)).

    @raise OSError: what the call says; BlockingIOError when the pipe is full.
    """
    return _checked(_libc.vmsplice(out, runs.ctypes.data, len(runs), SPLICE_FLAGS))


def writev(out: int, runs: numpy.ndarray) -> int:
    """The same, copied, and into sockets too (writev(2))."""
    return _checked(_libc.writev(out, runs.ctypes.data, len(runs)))


def _checked(count: int) -> int:
    if count < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return count
