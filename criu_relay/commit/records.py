"""Permissions that were given, on disk: what makes a decision survive the proxy.

A record is written and fsynced before criu may kill the task, and removed when the cache has confirmed the
decision, or when the decision is to abort: after a restart, no record means abort. The last ones that were
committed are kept apart, to ask the cache after them: one that was started anew has them no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from twisted.logger import Logger

SUFFIX, STAGED = ".json", ".new"

KEPT = 256
"""Committed migrations that the cache is asked after: a restore follows its dump soon, so the last ones are enough."""


@dataclass(frozen=True)
class Record:
    """One permission.

    @ivar migration: its id in hex.
    @ivar root: pid of the root task; `root_started` and `boot` make it one process for ever.
    @ivar cache: the link's endpoint: nothing is decided over another one.
    """

    migration: str
    namespace: str
    root: int
    root_started: int
    criu: int
    criu_started: int
    boot: str
    cache: str


class Records:
    """The directory of records; one file each, named by the migration."""

    log = Logger()

    def __init__(self, state: Path) -> None:
        """@param state: the proxy's state directory."""
        self._directory = state / "permitted"
        self._kept = state / "committed"

    def write(self, record: Record) -> None:
        """Write it so that it survives a crash of the machine; blocks.

        @raise OSError: it could not be written, and is not there: no permission may be given.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(STAGED, record.migration + ".", self._directory)
        written = Path(staged)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            written = written.rename(self._path(record.migration))
            self._sync()
        except OSError:
            with contextlib.suppress(OSError):
                written.unlink()
                self._sync()
            raise

    def tidy(self) -> None:
        """Remove what writes have left that a crash broke off; nobody writes now."""
        for path in self._directory.glob("*" + STAGED):
            path.unlink(missing_ok=True)

    def remove(self, migration: str) -> None:
        """Forget it, for good; nothing when it is not there."""
        self._path(migration, self._kept).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path(migration).unlink()
            self._sync()

    def keep(self, migration: str) -> None:
        """The cache has committed it: no permission any more, but one to ask after; nothing when it is not there."""
        self._kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path(migration).rename(self._path(migration, self._kept))
            self._sync()
        for old in self._listed(self._kept)[:-KEPT]:
            old.unlink(missing_ok=True)

    def load(self) -> list[Record]:
        """The permissions, oldest first; one that cannot be read is logged and left."""
        return self._load(self._directory)

    def listed(self) -> list[str]:
        """The migrations that were permitted, oldest first, with those whose record cannot be read."""
        return [path.stem for path in self._listed(self._directory) if re.fullmatch("[0-9a-f]{32}", path.stem)]

    def kept(self) -> list[Record]:
        """Those that were committed, oldest first."""
        return self._load(self._kept)

    @staticmethod
    def _listed(directory: Path) -> list[Path]:
        paths = directory.glob("*" + SUFFIX) if directory.is_dir() else []
        return sorted(paths, key=lambda path: path.stat().st_mtime)

    def _load(self, directory: Path) -> list[Record]:
        records = []
        for path in self._listed(directory):
            try:
                record = Record(**json.loads(path.read_text(encoding="utf-8")))
                if record.migration != path.stem:
                    raise ValueError(f"it is of another migration, {record.migration}")
                records.append(record)
            except (OSError, ValueError, TypeError) as error:
                self.log.error("the record {path} cannot be read: {error}", path=str(path), error=str(error))
        return records

    def _path(self, migration: str, directory: Path | None = None) -> Path:
        return (directory or self._directory) / (migration + SUFFIX)

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
