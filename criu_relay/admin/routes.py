"""The paths of the control API, and what a call may carry: a table and the checks around it.

What a client sends is checked here, completely: the handlers behind the table see values of the right type, in range.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from criu_relay.errors import Invalid, NotFound, RelayError
from criu_relay.wire.names import check_name

#: Seconds; a year. The reactor takes any number, and a longer one is a slip of the keyboard.
LONGEST_TIMEOUT = 366 * 24 * 3600.0

#: Linux: PID_MAX_LIMIT, proc_sys_kernel(5).
LARGEST_PID = 2**22

#: What an offset in a file can be (off_t).
LARGEST_SIZE = 2**63 - 1

#: Snapshots are counted by an uint32 on the link.
LARGEST_SNAPSHOT = 2**32 - 1


class WrongMethod(RelayError):
    """The path is known, and the method is not one of its own.

    @ivar allow: the methods it has.
    """

    status = 405

    def __init__(self, method: str, path: str, allow: list[str]) -> None:
        super().__init__(f"{method} {path} is not possible", hint=f"use {' or '.join(allow)}")
        self.allow = allow


class TooLarge(RelayError):
    """The body has more bytes than the path takes."""

    status = 413


@dataclass
class Call:
    """One call, as its handler sees it.

    @ivar place: the values of the path's variables, checked: "ns" and "image" are names, "snapshot" is an int.
    @ivar query: the parameters behind the question mark.
    @ivar body: the JSON object that was sent; empty when there was none.
    """

    place: dict[str, Any] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    def timeout(self) -> float | None:
        """C{timeout=SECONDS}; None when it was not given."""
        text = self.query.get("timeout")
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= LONGEST_TIMEOUT:
            raise Invalid(f"timeout={_shown(text)} is not a time", hint="give a number of seconds, such as 30")
        return value

    def switch(self, name: str) -> bool:
        """C{name=1} or C{name=0} of the query; False when it was not given."""
        text = self.query.get(name, "0")
        if text not in ("0", "1"):
            raise Invalid(f"{name}={_shown(text)} is neither 0 nor 1", hint=f"give {name}=1, or leave it out")
        return text == "1"

    def number(self, name: str, largest: int) -> int | None:
        """A whole number from 0 to C{largest} of the body; None when it was not given, or is null."""
        value = self.body.get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= largest:
            raise Invalid(f'"{name}" is not a whole number from 0 to {largest}', hint=f"give a number for {name}")
        return value

    def flag(self, name: str) -> bool:
        """true or false of the body; False when it was not given."""
        value = self.body.get(name, False)
        if type(value) is not bool:
            raise Invalid(f'"{name}" is neither true nor false', hint=f"give true or false for {name}")
        return value

    def text(self, name: str) -> str | None:
        """A text of the body, without control characters; None when it was not given, or is null."""
        value = self.body.get(name)
        if value is None:
            return None
        if type(value) is not str or not value or not value.isprintable():
            raise Invalid(f'"{name}" is not a text', hint=f"give a text for {name}")
        return value


@dataclass(frozen=True)
class Route:
    """One row of the table.

    @ivar method: such as "GET".
    @ivar path: segments; those in braces are variables.
    @ivar handler: takes the call, and returns what is to be answered.
    @ivar query: the parameters it knows.
    @ivar body: the keys of its JSON object that it knows.
    @ivar upload: the body is the bytes of an image, and `handler` returns the sink for them.
    """

    method: str
    path: str
    handler: Callable[[Call], Any]
    query: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    upload: bool = False

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The variables, not checked yet; None: this is another path."""
        pattern = self.path.split("/")
        if len(pattern) != len(segments):
            return None
        found = {}
        for want, have in zip(pattern, segments, strict=True):
            if want.startswith("{"):
                found[want[1:-1]] = have
            elif want != have:
                return None
        return found


class Router:
    """Finds the row of a call."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = routes

    def find(self, method: str, target: str) -> tuple[Route, Call]:
        """The row for a request line; the call has no body yet.

        @param target: the path and the query, still escaped.
        @raise NotFound: there is no such path.
        @raise WrongMethod: the path has other methods.
        @raise Invalid: a name, number or parameter is not of its form.
        """
        path, _, query = target.partition("?")
        segments = [unquote(segment) for segment in path.split("/")]
        found = [(route, place) for route in self._routes if (place := route.match(segments)) is not None]
        if not found:
            raise NotFound(f"no path {_shown(path)}", hint="GET /v1/status is the place to begin")
        for route, place in found:
            if route.method == method:
                return route, Call(_checked(place), _parameters(query, route.query))
        raise WrongMethod(_shown(method), _shown(path), [route.method for route, _ in found])


def parse_body(data: bytes, known: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a body; an empty body is an empty object.

    @raise Invalid: it is not JSON, not an object, or has a key that is not known.
    """
    if not data.strip():
        return {}
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid(f"the body is not JSON: {what}", hint='send an object such as {"key": "value"}') from None
    if type(value) is not dict:
        raise Invalid("the body is not a JSON object", hint='send an object such as {"key": "value"}')
    _only(value, known, "key")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _parameters(query: str, known: tuple[str, ...]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8) if query else []
    except ValueError:
        raise Invalid("the query is malformed", hint="write ?name=value&name=value") from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Invalid("a parameter is given twice", hint="give it once")
    _only(values, known, "parameter")
    return values


def _only(values: Mapping[str, Any], known: tuple[str, ...], kind: str) -> None:
    for name in values:
        if name not in known:
            hint = f"known here: {', '.join(known)}" if known else f"this path takes no {kind}s"
            raise Invalid(f"no {kind} {_shown(name)}", hint=hint)


def _checked(place: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = dict(place)
    if "ns" in place:
        check_name(place["ns"], "namespace")
    if "image" in place:
        check_name(place["image"], "image name")
    if "snapshot" in place:
        text = place["snapshot"]
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= LARGEST_SNAPSHOT):
            raise Invalid(f"{_shown(text)} is not the number of a snapshot", hint="they count from 1")
        values["snapshot"] = int(text)
    return values


def _shown(text: str) -> str:
    """What a client sent, for an error: printable, and not long."""
    return ascii(text[:60])[1:-1] + ("..." if len(text) > 60 else "")
