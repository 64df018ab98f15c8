"""Requests of the control API: from HTTP to the table of routes, and from what comes of it to an answer.

twisted.web collects a body in memory or in a file before anybody sees it. Here the row of the table is looked up when
the headers are complete, so that the body of an image goes straight where it belongs, and any other is bounded.
"""

from __future__ import annotations

import ipaddress
import json
from io import BytesIO
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from criu_relay.admin.answers import Events, Text
from criu_relay.admin.routes import Call, Route, TooLarge, WrongMethod, parse_body
from criu_relay.admin.transfer import Download, Upload
from criu_relay.errors import Forbidden, RelayError
from criu_relay.interfaces import IOpenedImage

#: Bytes of a JSON body: the largest that is of use is a directory and a name.
LONGEST_BODY = 64 * 1024


class ControlRequest(http.Request):
    """One request. Its channel's factory is a L{criu_relay.admin.api.ControlSite}."""

    _log = Logger()

    def __init__(self, channel: Any, *args: Any, **keywords: Any) -> None:
        super().__init__(channel, *args, **keywords)
        self._router = channel.factory.router
        self._for_everyone = channel.factory.for_everyone
        self._route: Route | None = None
        self._call = Call()
        self._body = bytearray()
        self._upload: Upload | None = None
        self._refused = False
        self._gone = False

    def gotLength(self, length: int | None) -> None:
        """The headers are complete: route the request, and refuse at once what cannot be.

        @param length: of the body; None: not known beforehand.
        """
        self.content = BytesIO()
        # The channel tells its request these only behind the body; it has kept them in these names since 2001.
        self.method, self.uri, self.clientproto = self.channel._command, self.channel._path, self.channel._version
        try:
            self._check_caller()
            self._route, self._call = self._router.find(self.method.decode("latin-1"), self.uri.decode("latin-1"))
            if self._route.upload:
                upload = Upload(self, self._route.handler(self._call), self._refuse)
                self._upload = upload
                upload.start()
            else:
                self._check_length(length or 0)
        except RelayError as error:
            self._refuse(error)
        except Exception:
            self._refuse(self._internal(Failure()))

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body."""
        if self._refused:
            return
        try:
            if self._upload is not None:
                self._upload.received(data)
            else:
                self._check_length(len(self._body) + len(data))
                self._body += data
        except RelayError as error:
            self._refuse(error)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete: act."""
        if self._refused:
            self.finish()
            return
        answer: Deferred[Any] = maybeDeferred(self._act)
        self.notifyFinish().addErrback(lambda _: answer.cancel())
        answer.addCallback(self._answer).addErrback(self._failed)

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        self._gone = True
        if self._upload is not None:
            self._upload.lost()
        super().connectionLost(reason)

    def _act(self) -> Any:
        assert self._route is not None, "what has no route was refused"
        if self._upload is not None:
            self._upload.end()
            return {"name": self._call.place["image"], "size": self._upload.size}
        self._call.body = parse_body(bytes(self._body), self._route.body)
        return self._route.handler(self._call)

    def _check_caller(self) -> None:
        """No web page may talk to us, should the API listen on TCP: not by itself, and not by a name that it owns."""
        if self.requestHeaders.hasHeader(b"Origin"):
            raise Forbidden("a web page may not use this", hint="use curl, or the command criu-relay")
        given = self.getHeader(b"Host")
        host = "localhost" if given is None else given.decode("latin-1")
        if self._for_everyone or isinstance(self.host, UNIXAddress) or _is_loopback(host):
            return
        raise Forbidden(f"not for host {host[:60]!a}", hint="connect to localhost by that name or its address")

    def _check_length(self, length: int) -> None:
        if length > LONGEST_BODY:
            raise TooLarge(f"a body of more than {LONGEST_BODY} bytes", hint="send only what docs/control.md lists")

    def _refuse(self, error: RelayError) -> None:
        """Answer before the body is here; what still comes of it is dropped, and then the connection closed.

        Closing at once could take the answer away from a client that is still sending.
        """
        self._refused = True
        if self._upload is not None:
            self._upload.abort(error.reason)
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.persistent = False
        self.setHeader(b"Connection", b"close")
        self._write_error(error)

    def _answer(self, value: Any) -> None:
        if self._gone:
            if IOpenedImage.providedBy(value):
                value.close()
            elif isinstance(value, Events):
                value.stopProducing()
        elif IOpenedImage.providedBy(value):
            Download(self, value).start()
        elif isinstance(value, Events):
            value.start(self)
        elif isinstance(value, Text):
            for name, said in value.headers.items():
                self.setHeader(name, said)
            self._write(value.kind.encode("ascii"), value.text)
            self.finish()
        else:
            self._write(b"application/json", json.dumps(value) + "\n")
            self.finish()

    def _failed(self, failure: Failure) -> None:
        if self._gone:
            return
        self._write_error(failure.value if isinstance(failure.value, RelayError) else self._internal(failure))
        self.finish()

    def _internal(self, failure: Failure) -> RelayError:
        self._log.failure("{method} {uri} failed", failure, method=self.method, uri=self.uri)
        return RelayError("internal error", hint="the daemon's log has it; please report it")

    def _write_error(self, error: RelayError) -> None:
        self.setResponseCode(error.status)
        if isinstance(error, WrongMethod):
            self.setHeader(b"Allow", ", ".join(error.allow).encode("ascii"))
        self._write(b"application/json", json.dumps({"error": error.reason, "hint": error.hint}) + "\n")

    def _write(self, kind: bytes, text: str) -> None:
        data = text.encode("utf-8")
        self.setHeader(b"Content-Type", kind)
        self.setHeader(b"Content-Length", b"%d" % len(data))
        self.setHeader(b"Cache-Control", b"no-store")
        self.write(data)


def _is_loopback(host: str) -> bool:
    """Whether a Host header, with or without a port, means this machine."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
