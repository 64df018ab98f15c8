"""Memory of the kernel's: memfds that are mapped, and how their pages go back."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy
from zope.interface import implementer

from criu_relay.errors import OutOfMemory
from criu_relay.interfaces import IExtent

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # fallocate(2), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, offset: int, length: int) -> None:
    """Give the pages of a range of a file back to the kernel; it reads as zeros afterwards (fallocate(2))."""
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@implementer(IExtent)
class Extent:
    """See L{criu_relay.interfaces.IExtent}.

    @ivar first: the number of its first page.
    """

    __slots__ = ("fd", "first", "offset", "size", "view")

    def __init__(self, first: int, fd: int, offset: int, view: memoryview) -> None:
        self.first = first
        self.fd = fd
        self.offset = offset
        self.size = len(view)
        self.view = view


def _mapped(size: int) -> tuple[int, mmap.mmap]:
    memfd = os.memfd_create("criu-relay", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memfd, size)
        return memfd, mmap.mmap(memfd, size)
    except BaseException:
        os.close(memfd)
        raise


class Region:
    """A memfd, mapped once.

    @ivar first: the number of its first page.
    @ivar address: where it is mapped.
    """

    def __init__(self, first: int, size: int) -> None:
        """@raise OutOfMemory: the kernel gives none, or no descriptor."""
        self.first = first
        self.size = size
        try:
            self.fd, self.map = _mapped(size)
        except OSError as error:
            hint = "see the daemon's limits of memory and descriptors (systemd: MemoryMax, LimitNOFILE)"
            raise OutOfMemory(f"no memory for images: {error.strerror}", hint=hint) from error
        self.view = memoryview(self.map)
        self.address = int(numpy.frombuffer(self.map, numpy.uint8).ctypes.data)

    def close(self) -> None:
        """Unmap and close; every view handed out must be gone."""
        self.view.release()
        self.map.close()
        os.close(self.fd)
