"""What a handler of the control API may answer with besides JSON and images: a text, or events that go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twisted.internet.interfaces import IPushProducer
from twisted.web import http
from zope.interface import implementer

RETRY = 2000
"""Milliseconds after which a browser whose stream of events ended asks for another."""


@dataclass(frozen=True)
class Text:
    """A text.

    @ivar kind: its media type.
    @ivar headers: what else its answer says.
    """

    kind: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


@implementer(IPushProducer)
class Events:
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) for one client.

    A client that does not read misses events: nothing is kept for it.
    """

    def __init__(self, first: str, gone: Callable[[Events], None]) -> None:
        """
        @param first: the data of the event that is sent at once.
        @param gone: called when the client is.
        """
        self._first = first
        self._gone = gone
        self._paused = False
        self._request: http.Request | None = None

    def start(self, request: http.Request) -> None:
        """Answer a request with them."""
        self._request = request
        request.setHeader(b"Content-Type", b"text/event-stream")
        request.setHeader(b"Cache-Control", b"no-store")
        request.notifyFinish().addBoth(lambda _: self.stopProducing())
        request.registerProducer(self, True)
        request.write(b"retry: %d\n" % RETRY)
        self.send(self._first)

    def send(self, data: str) -> None:
        """One event, unless the client is behind.

        @param data: on one line.
        """
        if self._request is not None and not self._paused:
            self._request.write(b"data: " + data.encode("utf-8") + b"\n\n")

    def end(self) -> None:
        """No more events."""
        if self._request is not None:
            request, self._request = self._request, None
            request.unregisterProducer()
            request.finish()

    def pauseProducing(self) -> None:
        """The client is behind."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The client has read what there was."""
        self._paused = False

    def stopProducing(self) -> None:
        """The client is gone."""
        self._request = None
        self._gone(self)
