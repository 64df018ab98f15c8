"""A run of an image's bytes, wherever it lies."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Bytes that lie together in one file.

    @ivar fd: the memfd, or the spill file; `offset`: where in it; `length`: bytes.
    @ivar mapped: the same bytes in memory; None: they are in a spill file.
    """

    fd: int
    offset: int
    length: int
    mapped: memoryview | None

    def view(self, most: int) -> memoryview:
        """At most so many of the bytes, read from the spill file when that is where they are.

        @raise OSError: it cannot be read.
        """
        if self.mapped is not None:
            return self.mapped[:most]
        return memoryview(os.pread(self.fd, min(most, self.length), self.offset))
