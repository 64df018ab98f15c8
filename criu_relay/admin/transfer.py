"""The bytes of images through the control API, with back pressure both ways."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.interfaces import IImportSink, IOpenedImage

#: Bytes read of an image at once: what IOpenedImage.read gives at most, and the most that waits for a slow client.
PIECE = 1 << 20


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that a Range header names, as far as there are bytes: from, to (RFC 9110, 14.1.2); to is not after
    from when it lies behind the end.

    @return: None: all of it, as for every form of the header that is not one range from a first byte on.
    """
    found = re.fullmatch(r"bytes=([0-9]{1,19})-([0-9]{0,19})", header or "")
    if found is None or (found[2] and int(found[2]) < int(found[1])):
        return None
    return int(found[1]), min(int(found[2]) + 1, size) if found[2] else size


@implementer(IPushProducer)
class Download:
    """One image on its way to one client: a piece is read when the one before has left."""

    _log = Logger()

    def __init__(self, request: http.Request, image: IOpenedImage) -> None:
        """@param image: closed at the end, however that comes."""
        self._request = request
        self._image = image
        self._next, self._stop = 0, image.size
        self._room: Deferred[None] = succeed(None)
        self._run: Deferred[None] | None = None

    def start(self) -> None:
        """Answer with the image; the request is finished, or its connection closed, when that is over."""
        request = self._request
        wanted = byte_range(request.getHeader("Range"), self._image.size)
        request.setHeader(b"Content-Type", b"application/octet-stream")
        request.setHeader(b"Accept-Ranges", b"bytes")
        if wanted is not None and wanted[1] <= wanted[0]:
            request.setResponseCode(http.REQUESTED_RANGE_NOT_SATISFIABLE)
            request.setHeader(b"Content-Range", b"bytes */%d" % self._image.size)
            request.setHeader(b"Content-Length", b"0")
            self._image.close()
            request.finish()
            return
        if wanted is not None:
            self._next, self._stop = wanted
            request.setResponseCode(http.PARTIAL_CONTENT)
            request.setHeader(b"Content-Range", b"bytes %d-%d/%d" % (self._next, self._stop - 1, self._image.size))
        request.setHeader(b"Content-Length", b"%d" % (self._stop - self._next))
        request.notifyFinish().addErrback(lambda _: self.stopProducing())
        request.registerProducer(self, True)
        self._run = Deferred.fromCoroutine(self._send())
        self._run.addBoth(self._over)

    async def _send(self) -> None:
        self._request.write(b"")
        while self._next < self._stop:
            await self._room
            data = await self._image.read(self._next, min(PIECE, self._stop - self._next))
            if not data:
                raise RelayError("the image ended early", hint="the log of the daemon says why")
            self._next += len(data)
            self._request.write(data)

    def _over(self, result: Failure | None) -> None:
        self._image.close()
        if isinstance(result, Failure) and result.check(CancelledError):
            return
        self._request.unregisterProducer()
        if result is None:
            self._request.finish()
            return
        # The length is on its way already: only a connection that ends early can say that the image is not whole.
        self._log.error("an image that a client reads cannot be read on: {reason}", reason=result.getErrorMessage())
        self._request.loseConnection()

    def pauseProducing(self) -> None:
        """The client is slow."""
        if self._room.called:
            self._room = Deferred()

    def resumeProducing(self) -> None:
        """The client takes more."""
        if not self._room.called:
            self._room.callback(None)

    def stopProducing(self) -> None:
        """The client is gone."""
        if self._run is not None:
            self._run.cancel()


@implementer(IPushProducer)
class Upload:
    """The body of a request on its way into an image; while that has no room, the connection is not read."""

    def __init__(self, request: Any, sink: IImportSink, refused: Callable[[RelayError], None]) -> None:
        """
        @param request: with the transport and the channel that its body comes over.
        @param refused: called when the sink wants no more of it.
        """
        self.size = 0
        self._transport = request.transport
        self._channel = request.channel
        self._sink = sink
        self._refused = refused
        self._paused = False
        self._silence: float | None = None
        self._open = True

    def start(self) -> None:
        """The body begins."""
        self._sink.registerProducer(self, True)

    def received(self, data: bytes) -> None:
        """Bytes of the body.

        @raise RelayError: the image cannot take them; it failed.
        """
        try:
            self._sink.write(data)
        except RelayError as error:
            self.abort(error.reason)
            raise
        self.size += len(data)
        if self._open and self._paused:
            # The channel resumes its transport by itself when an answer of before has been read.
            self._transport.pauseProducing()

    def end(self) -> None:
        """The body is complete.

        @raise RelayError: the image is not.
        """
        self._close()
        self._sink.end()

    def abort(self, reason: str) -> None:
        """The body will never be complete. Does nothing after the end."""
        if self._open:
            self._close()
            self._sink.fail(reason)

    def lost(self) -> None:
        """The connection is gone."""
        self._paused = False
        self.abort(f"the client hung up after {self.size} bytes")

    def pauseProducing(self) -> None:
        """No room."""
        if self._open and not self._paused:
            self._paused = True
            self._silence = self._channel.setTimeout(None)
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Room again."""
        if self._open and self._paused:
            self._go_on()

    def stopProducing(self) -> None:
        """The image is not wanted any more."""
        if self._open:
            self.abort("the image is not wanted any more")
            self._refused(self._sink.refusal)

    def _go_on(self) -> None:
        self._paused = False
        self._channel.setTimeout(self._silence)
        self._transport.resumeProducing()

    def _close(self) -> None:
        self._open = False
        self._sink.unregisterProducer()
        if self._paused:
            self._go_on()
