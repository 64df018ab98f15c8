"""`criu-relay export` and `import`: between a namespace and a directory that CRIU reads and writes."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from criu_relay.admin.client import Client, Refused, Unreachable, target
from criu_relay.admin.text import size
from criu_relay.errors import Invalid, RelayError
from criu_relay.wire.names import NEW, check_name, plain

#: CRIU writes it last and reads it first: without it a directory is no set of images.
INVENTORY = "inventory.img"

#: CRIU's symbolic link to the snapshot before.
PARENT = "parent"

#: Images hold the memory of processes: for their owner alone.
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

#: Seconds between two lines of progress.
PROGRESS_INTERVAL = 0.2


class Failed(RelayError):
    """It cannot be exported or imported."""


class Progress:
    """One line on stderr, when that is a terminal."""

    def __init__(self, verb: str, total: int) -> None:
        """@param total: bytes."""
        self._verb = verb
        self._total = total
        self._done = 0
        self._began = self._shown = time.monotonic()

    def add(self, count: int) -> None:
        """More bytes are done."""
        self._done += count
        now = time.monotonic()
        if now - self._shown >= PROGRESS_INTERVAL and sys.stderr.isatty():
            self._shown = now
            rate = size(self._done / (now - self._began))
            self._show(f"\r{self._verb} {size(self._done)} of {size(self._total)}, {rate}/s".ljust(61))

    def end(self) -> None:
        """Clear the line."""
        if self._shown != self._began:
            self._show(f"\r{'':<60}\r")

    @staticmethod
    def _show(line: str) -> None:
        # The terminal may be closed: that is no reason why an export fails.
        with contextlib.suppress(OSError):
            print(line, end="", file=sys.stderr, flush=True)


def export(client: Client, namespace: str, directory: str) -> dict[str, Any]:
    """Write a namespace as files, once it is committed: flat, or DIR/1, DIR/2... when there are several snapshots.

    What was written is removed again when it fails; inventory.img comes last, so that nothing in between looks whole.

    @return: the namespace.
    @raise Failed: the directory is not empty, or cannot be written.
    """
    with Writing(directory) as writing:
        committed = client.call("POST", target("v1", "namespaces", namespace, "wait"), timeout=None)
        found: dict[str, Any] = client.call("GET", target("v1", "namespaces", namespace))
        if found["migration"] != committed["migration"]:
            raise Failed(f"{namespace} is being written again", hint="try again when that is over")
        progress = Progress("exported", sum(image["size"] for one in found["snapshots"] for image in one["images"]))
        try:
            for snapshot in found["snapshots"]:
                index = snapshot["index"]
                place = writing.snapshot(index) if len(found["snapshots"]) > 1 else directory
                for image in sorted(snapshot["images"], key=lambda image: image["name"] == INVENTORY):
                    name = check_name(image["name"], "image name")
                    source = target("v1", "namespaces", namespace, "snapshots", index, "images", name)
                    shown = f"image {name} of snapshot {index} of namespace {namespace}"
                    with writing.image(place, name) as descriptor:
                        client.download(source, descriptor, progress.add, shown)
        finally:
            progress.end()
    return found


class Writing:
    """Files on their way into an empty directory; removed again when the block ends with an error."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._made: list[str] = []

    def __enter__(self) -> Writing:
        try:
            if not os.path.isdir(self._directory):
                self._mkdir(self._directory)
            elif os.listdir(self._directory):
                raise Failed(f"{self._directory} is not empty", hint="export into an empty directory, or a new one")
        except OSError as error:
            raise _failed("make", error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: Any) -> None:
        if kind is not None:
            for path in reversed(self._made):
                try:
                    (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
                except OSError:
                    print(f"criu-relay: cannot remove {plain(path)}", file=sys.stderr)
        if isinstance(value, OSError):
            raise _failed("write", value, self._directory) from value

    def _mkdir(self, path: str) -> None:
        os.mkdir(path, DIRECTORY_MODE)
        self._made.append(path)

    def snapshot(self, index: int) -> str:
        """The directory of a snapshot, with its link to the one before."""
        path = os.path.join(self._directory, str(index))
        self._mkdir(path)
        if index > 1:
            os.symlink(f"../{index - 1}", os.path.join(path, PARENT))
            self._made.append(os.path.join(path, PARENT))
        return path

    @contextlib.contextmanager
    def image(self, place: str, name: str) -> Iterator[int]:
        """The descriptor of a new image: under another name until it is whole, which it is when the block ends."""
        path, partial = os.path.join(place, name), os.path.join(place, ".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        self._made.append(partial)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        os.rename(partial, path)
        self._made[-1] = path


@dataclass(frozen=True)
class Source:
    """A file to be imported."""

    snapshot: int
    name: str
    path: str
    size: int


class Reading:
    """A directory of images: flat, or with the subdirectories 1, 2...

    @ivar sources: what is to be sent, in that order.
    @ivar skipped: paths of what is not an image.
    """

    def __init__(self, directory: str) -> None:
        """@raise Failed: it is not a directory of images, or has what cannot be one."""
        self.sources: list[Source] = []
        self.skipped: list[str] = []
        try:
            numbered = sorted(int(entry.name) for entry in os.scandir(directory) if _is_snapshot(entry))
            if numbered and not os.path.lexists(os.path.join(directory, INVENTORY)):
                if numbered != list(range(1, len(numbered) + 1)):
                    raise Failed(f"{directory} lacks a snapshot", hint="its subdirectories must count 1, 2, 3...")
                for entry in os.scandir(directory):
                    if not _is_snapshot(entry):
                        self._skip_or_refuse(entry)
                for index in numbered:
                    self._read(os.path.join(directory, str(index)), index)
            else:
                self._read(directory, 1)
        except OSError as error:
            raise _failed("read", error) from error

    def _skip_or_refuse(self, entry: os.DirEntry[str]) -> None:
        if entry.is_file() and not _is_no_image(entry.name):
            raise Failed(f"{entry.path} lies beside the snapshots", hint="move it away, or into one of them")
        self.skipped.append(entry.path)

    def _read(self, directory: str, index: int) -> None:
        found = list(self._files(directory, index))
        if all(source.name != INVENTORY for source in found):
            raise Failed(
                f"{directory}: not an images directory of CRIU: no {INVENTORY}",
                hint="CRIU writes it last, so the dump failed, or the images lie elsewhere",
            )
        self.sources += sorted(found, key=lambda source: (source.name == INVENTORY, source.name))

    def _files(self, directory: str, index: int) -> Iterator[Source]:
        for entry in os.scandir(directory):
            state = entry.stat(follow_symlinks=False)
            if entry.name == PARENT and stat.S_ISLNK(state.st_mode):
                _check_parent(entry.path, index)
            elif _is_no_image(entry.name) or stat.S_ISSOCK(state.st_mode) or stat.S_ISDIR(state.st_mode):
                self.skipped.append(entry.path)
            elif not stat.S_ISREG(state.st_mode):
                raise Failed(f"{entry.path} is not a regular file", hint="put the file itself there, or move it away")
            else:
                yield Source(index, _checked_name(entry), entry.path, state.st_size)


def _is_snapshot(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    return name.isascii() and name.isdigit() and not name.startswith("0") and entry.is_dir(follow_symlinks=False)


def _is_no_image(name: str) -> bool:
    """What CRIU and people leave beside images: statistics, logs, hidden files."""
    return name.startswith((".", "stats-")) or name.endswith(".log")


def _check_parent(path: str, index: int) -> None:
    if index == 1 or os.path.normpath(os.readlink(path)) != f"../{index - 1}":
        raise Failed(
            f"{path} leads to a snapshot that would not be sent",
            hint="import the directory that has all of them as 1, 2, 3...",
        )


def _checked_name(entry: os.DirEntry[str]) -> str:
    try:
        return check_name(entry.name, "image name")
    except Invalid as error:
        raise Failed(f"{plain(entry.path)}: {error.reason}", hint=error.hint) from None


def import_images(client: Client, directory: str, namespace: str) -> dict[str, Any]:
    """Send a directory as a namespace, and wait until it is committed.

    @return: the namespace.
    @raise Failed: see L{Reading}; nothing was sent then.
    """
    reading = Reading(directory)
    for path in reading.skipped:
        print(f"criu-relay: skipped {plain(path)}", file=sys.stderr)
    progress = Progress("sent", sum(source.size for source in reading.sources))
    migration = NEW
    try:
        for source in reading.sources:
            _send(client, namespace, source, progress, migration)
            if migration == NEW:
                migration = _migration_of(client, namespace)
        answer: dict[str, Any] = client.call(
            "POST",
            target("v1", "namespaces", namespace, "commit"),
            {"copy": True, "migration": migration},
            timeout=None,
        )
    except BaseException:
        if migration != NEW:
            _give_up(client, namespace, migration)
        raise
    finally:
        progress.end()
    return answer


def _migration_of(client: Client, namespace: str) -> str:
    """The generation that the first image has begun: what follows goes into this one, or fails."""
    return str(client.call("GET", target("v1", "namespaces", namespace))["migration"])


def _send(client: Client, namespace: str, source: Source, progress: Progress, migration: str) -> None:
    """@param migration: L{NEW}: the image begins one."""
    path = target("v1", "namespaces", namespace, "snapshots", source.snapshot, "images", source.name)
    path += f"?migration={migration}"
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            client.upload(path, descriptor, source.size, progress.add)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failed("read", error, source.path) from error


def _give_up(client: Client, namespace: str, migration: str) -> None:
    """The generation that we began shall not stay open."""
    # It may have ended already: that can be why we are here, and somebody else may have begun the next.
    with contextlib.suppress(Refused, Unreachable):
        if _migration_of(client, namespace) == migration:
            client.call("DELETE", target("v1", "namespaces", namespace))


def _failed(verb: str, error: OSError, path: str = "") -> Failed:
    """@param path: where, for an error that does not say so: one of a descriptor."""
    where = error.filename or path
    what = f" {where}" if where else ""
    return Failed(plain(f"cannot {verb}{what}: {error.strerror or error}"))
