"""Where the values of options come from: the command line, and a TOML file whose keys are the long option names."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from twisted.python import usage

T = TypeVar("T")

LARGEST_FILE = 1 << 20
"""Bytes of a file with every option, a hundred times over: what is larger is another file, or a device without end."""

_KINDS = {
    (bool,): "true or false",
    (int,): "a whole number",
    (int, float): "a number",
    (str, int, float): 'a number, or a text such as "never"',
    (str, int): 'a whole number, or a text such as "512M"',
    (str,): "a text in quotes",
}


@dataclass(frozen=True)
class Given:
    """One value as it was given.

    @ivar where: "--memory", or "FILE: memory =".
    @ivar text: the value.
    @ivar base: the directory that a relative path in it starts from.
    """

    where: str
    text: str
    base: Path

    def read(self, reader: Callable[[str], T]) -> T:
        """What `reader` makes of it; its ValueError becomes a UsageError."""
        try:
            return reader(self.text)
        except ValueError as error:
            raise self.wrong(str(error)) from error

    def wrong(self, advice: str) -> usage.UsageError:
        """The error that says where it was given, what it is and what to give instead: one line."""
        shown = self.text if self.text and self.text.isprintable() else repr(self.text)
        return usage.UsageError(f"{self.where} {shown}: {advice}")


@dataclass(frozen=True)
class Keys:
    """What a file may have.

    @ivar flags: keys that are true or false.
    @ivar repeatable: keys that may be a list.
    @ivar types: what the value of a key may be, for those that are more than text.
    @ivar known: all of them.
    """

    flags: Collection[str]
    repeatable: Collection[str]
    types: dict[str, tuple[type, ...]]
    known: Collection[str]

    def load(self, path: Path) -> dict[str, list[Given]]:
        """The values of a file by key; relative paths in it start from its own directory.

        @raise usage.UsageError: it cannot be read, is not TOML, or has a key or type that is not known.
        """
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
            if len(data) > LARGEST_FILE:
                raise usage.UsageError(f"--config {path}: it is larger than {LARGEST_FILE} bytes; give a TOML file")
            table = tomllib.loads(data.decode())
        except OSError as error:
            raise usage.UsageError(f"--config {path}: {error.strerror}; give a TOML file that can be read") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise usage.UsageError(f'--config {path}: not TOML: {error}; give lines such as state = "/srv"') from error
        return {name: self._values(path, name, value) for name, value in table.items() if not self._is_off(name, value)}

    def _is_off(self, name: str, value: object) -> bool:
        return value is False and name in self.flags

    def _values(self, path: Path, name: str, value: object) -> list[Given]:
        if name not in self.known:
            raise usage.UsageError(f"{path}: {name}: no such key; give one of {', '.join(sorted(self.known))}")
        where, base = f"{path}: {name} =", path.resolve().parent
        entries = value if isinstance(value, list) and name in self.repeatable else [value]
        wanted: tuple[type, ...] = (bool,) if name in self.flags else self.types.get(name, (str,))
        for entry in entries:
            if type(entry) not in wanted:
                listed = ", or a list" if name in self.repeatable else ""
                raise usage.UsageError(f"{where} {entry!r}: give {_KINDS[wanted]}{listed}")
        return [Given(where, str(entry), base) for entry in entries]


def one(given: dict[str, list[Given]], name: str, reader: Callable[[str], T], default: T | None) -> T | None:
    """The last value given for an option, as the command line has it."""
    return given[name][-1].read(reader) if name in given else default


def parameter(name: str, doc: str, default: str = "") -> list[str | None]:
    """A row of optParameters. Its default is shown only: what was not given must be told from what was."""
    return [name, None, None, f"{doc} [default: {default}]" if default else doc]
