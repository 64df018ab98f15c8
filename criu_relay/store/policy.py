"""What a cache does with its memory when there is a choice."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path


class Dedup(enum.Enum):
    """What is held once: everything as it comes, no zeros, or equal pages of one owner only once."""

    OFF = "off"
    ZERO = "zero"
    PAGES = "pages"


@dataclass(frozen=True)
class Policy:
    """The options of the cache that are about memory.

    @ivar retain: keep images after a confirmed restore.
    @ivar release: give bytes back as a restore reads them.
    @ivar ttl: seconds after which a committed namespace that nobody asks for is discarded; None: never.
    @ivar spill: directory for cold namespaces; None: they stay in memory.
    """

    retain: bool = False
    release: bool = False
    ttl: float | None = None
    spill: Path | None = None
    dedup: Dedup = Dedup.ZERO
