"""Cold namespaces on disk: their pages move to an unlinked file and are served from there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from criu_relay.flow.zeros import PAGE
from criu_relay.store.image import Image
from criu_relay.store.memory import Memory
from criu_relay.store.pages import runs
from criu_relay.store.region import punch
from criu_relay.store.table import RUN, Kind, entry, kinds


class SpillFile:
    """A file without a name, that pages are appended to; it goes when no image has pages in it."""

    def __init__(self, directory: Path) -> None:
        """@raise OSError: no file can be made there."""
        self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._images: set[Image] = set()
        self._pages = 0

    def append(self, image: Image, start: int) -> None:
        """Move the pages from `start` on that lie in memory, up to 1 MiB.

        @raise OSError: the disk is full or broken; nothing has changed then.
        """
        entries = image.table.slice(start, start + RUN)
        held = numpy.flatnonzero(kinds(entries) == Kind.HELD)
        numbers = entries[held].astype(numpy.int64)
        at = self._pages
        for run in runs(numbers):
            for first, count in image.pool.arena.parts(*run):
                self._write(*image.pool.arena.locate(first), at * PAGE, count * PAGE)
                at += count
        entries[held] = entry(Kind.SPILLED, self._pages) + numpy.arange(len(held), dtype=numpy.uint64)
        self._pages = at
        self._images.add(image)
        image.spilled(self, start, entries, numbers)

    def _write(self, fd: int, offset: int, to: int, length: int) -> None:
        os.lseek(self.fd, to, os.SEEK_SET)
        while length:
            sent = os.sendfile(self.fd, fd, offset, length)
            offset += sent
            length -= sent

    def punch(self, numbers: numpy.ndarray) -> None:
        """Pages that are not wanted any more; a file system that cannot do it keeps them until the file goes."""
        with contextlib.suppress(OSError):
            for first, count in runs(numbers):
                punch(self.fd, first * PAGE, count * PAGE)

    def leave(self, image: Image) -> None:
        """It has no pages here any more."""
        self._images.discard(image)
        if not self._images and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Spiller:
    """Moves images to disk while somebody waits for memory, 1 MiB per turn of the reactor.

    @ivar busy: it is at work.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        memory: Memory,
        directory: Path | None,
        cold: Callable[[], Iterator[Image]],
        wanted: Callable[[], bool],
    ) -> None:
        """
        @param directory: None: nothing is spilled.
        @param cold: the images that may go, coldest first.
        @param wanted: whether somebody waits for memory.
        """
        self.busy = False
        self._clock = clock
        self._memory = memory
        self._directory = directory
        self._cold = cold
        self._wanted = wanted
        self._image: Image | None = None
        self._file: SpillFile | None = None
        self._next = 0

    def start(self) -> None:
        """Somebody waits for memory."""
        if not self.busy and self._directory is not None:
            self.busy = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self.busy = False
        if not self._wanted():
            return
        try:
            if self._step():
                self._memory.stirred = True
                self.start()
        except OSError as error:
            self.log.error(
                "nothing more is spilled: {directory}: {reason}", directory=str(self._directory), reason=error.strerror
            )
            self._directory = None

    def _step(self) -> bool:
        """Move 1 MiB; False: there is nothing to move."""
        assert self._directory is not None
        image = self._image
        if image is None or image.dropped or image.readers or self._next >= len(image.table):
            image = next((one for one in self._cold() if one.table.pages[Kind.HELD] and not one.readers), None)
            self._image, self._next = image, 0
            if image is None:
                return False
        file = image.spill
        if file is None:
            if self._file is None or self._file.fd < 0:
                self._file = SpillFile(self._directory)
            file = self._file
        file.append(image, self._next)
        self._next += RUN
        return True
