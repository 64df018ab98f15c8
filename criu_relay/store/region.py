"""Memory of the kernel's: memfds that are mapped, and how their pages go back."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # fallocate(2), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, offset: int, length: int) -> None:
    """Give the pages of a range of a file back to the kernel; it reads as zeros afterwards (fallocate(2))."""
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Region:
    """A memfd, mapped once.

    @ivar first: the number of its first page.
    @ivar address: where it is mapped.
    """

    def __init__(self, first: int, size: int) -> None:
        self.first = first
        self.size = size
        self.fd = os.memfd_create("criu-relay", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self.map)
        self.address = int(numpy.frombuffer(self.map, numpy.uint8).ctypes.data)

    def close(self) -> None:
        """Unmap and close; every view handed out must be gone."""
        self.view.release()
        self.map.close()
        os.close(self.fd)
