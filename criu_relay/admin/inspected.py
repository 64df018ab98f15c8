"""What the manhole looks at: a daemon's control, and pieces of it that come one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred

from criu_relay.admin.control import IControl


class IInspected(IControl):
    """L{IControl}, in portions.

    What is iterated over may change meanwhile: what came or went since it began may be there or not.
    """

    def each_namespace() -> Iterator[dict[str, Any]]:
        """As C{namespaces} of L{IControl}, one after the other."""

    def described(name: str) -> dict[str, Any]:
        """One of them.

        @raise NotFound: no such namespace.
        """

    def each_image(name: str) -> Iterator[dict[str, Any]]:
        """The images of a namespace's newest generation: C{snapshot} (from 1), C{name}, C{size}, C{complete}, C{digest}
        (in hex, or None), C{readers} and C{memory}, the bytes that it takes (None: not known).

        @raise NotFound: no such namespace.
        """

    def image(name: str, snapshot: int | None, image: str) -> dict[str, Any]:
        """One of them, of the newest snapshot when none is given.

        @raise NotFound: no such image.
        """

    def peek(name: str, snapshot: int | None, image: str, offset: int, length: int) -> Deferred[bytes]:
        """At most 1 MiB of an image as far as it has come, committed or not. Errs with L{RelayError}."""

    def waiting() -> list[dict[str, Any]]:
        """As in C{status}."""

    def link() -> dict[str, Any]:
        """As in C{status}."""
