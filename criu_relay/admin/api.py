"""The control API: what each path does. docs/control.md has the shapes of what is sent and answered."""

from __future__ import annotations

from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web import http

from criu_relay.admin import metrics
from criu_relay.admin.answers import Text
from criu_relay.admin.control import IControl
from criu_relay.admin.page import Page
from criu_relay.admin.request import ControlRequest
from criu_relay.admin.routes import LARGEST_PID, LARGEST_SIZE, Call, Route, Router
from criu_relay.errors import Invalid, RelayError
from criu_relay.interfaces import CommitRequest, IImportSink, IOpenedImage
from criu_relay.values import SLOWEST_RATE

#: Seconds that a connection may be silent before or within a request; not while it waits for an answer.
SILENCE = 60.0

DIALECTS = ("stream", "images")


class NotReady(RelayError):
    """The daemon runs and cannot do its work now."""

    status = 503


class ControlSite(http.HTTPFactory):
    """The control API as a factory of HTTP channels, without a log of accesses."""

    protocol = http.HTTPChannel  # type: ignore[assignment]
    requestFactory = ControlRequest

    def __init__(self, routes: list[Route], reactor: IReactorTime | None = None, for_everyone: bool = False) -> None:
        """
        @param reactor: keeps time for silent connections; by default Twisted's own.
        @param for_everyone: other machines may ask, under whatever name they have for this one.
        """
        super().__init__(timeout=SILENCE, reactor=reactor)
        self.router = Router(routes)
        self.for_everyone = for_everyone

    def startFactory(self) -> None:
        """Nothing: no log to open."""

    def stopFactory(self) -> None:
        """Nothing: no log to close."""

    def buildProtocol(self, addr: Any) -> Any:
        """A channel for a connection."""
        channel: Any = super().buildProtocol(addr)
        channel.requestFactory = self.requestFactory
        channel.site = self
        return channel

    def log(self, request: http.Request) -> None:
        """Nothing: `status --watch` asks once a second."""


class Handlers:
    """A method for each row of the table."""

    def __init__(self, control: IControl, page: Page) -> None:
        self._control = control
        self._page = page

    def looking(self) -> list[Route]:
        """What changes nothing and shows no image: the routes of --metrics."""
        return [
            Route("GET", "/", lambda _: self._page.document()),
            Route("GET", "/events", lambda _: self._page.events()),
            Route("GET", "/metrics", lambda _: Text(CONTENT_TYPE_PLAIN_0_0_4, metrics.render(self._control.status()))),
            Route("GET", "/healthz", lambda _: {"role": self._control.role}),
            Route("GET", "/readyz", self.ready),
        ]

    def routes(self) -> list[Route]:
        """The whole table."""
        one = "/v1/namespaces/{ns}"
        images = (f"{one}/images/{{image}}", f"{one}/snapshots/{{snapshot}}/images/{{image}}")
        return [
            Route("GET", "/v1/status", lambda _: self._control.status()),
            Route("GET", "/v1/namespaces", lambda _: self._control.namespaces()),
            Route("GET", one, lambda call: self._control.namespace(call.place["ns"])),
            Route("DELETE", one, self.discard),
            Route("POST", f"{one}/wait", self.wait, query=("timeout", "next")),
            Route(
                "POST",
                f"{one}/commit",
                self.commit,
                query=("timeout",),
                body=("root", "criu", "copy", "force", "migration"),
            ),
            Route("POST", f"{one}/restored", lambda call: self._control.restored(call.place["ns"])),
            Route("PUT", "/v1/rate", self.rate, body=("rate",)),
            Route("POST", "/v1/attachments", self.attach, body=("directory", "namespace", "dialect", "copy")),
            Route("DELETE", "/v1/attachments", self.detach, query=("directory",)),
            *(Route("GET", path, self.get_image) for path in images),
            *(Route("PUT", path, self.put_image, query=("migration",), upload=True) for path in images),
            *(Route("POST", f"{path}/discard", self.discard, body=("offset", "length")) for path in images),
            *self.looking(),
        ]

    def wait(self, call: Call) -> Deferred[dict[str, Any]]:
        """Until the namespace is decided."""
        return self._control.wait(call.place["ns"], call.timeout(), call.switch("next"))

    def commit(self, call: Call) -> Deferred[dict[str, Any]]:
        """CRIU wrote everything; answered when it may go on."""
        request = CommitRequest(
            root=call.number("root", LARGEST_PID) or 0,
            criu=call.number("criu", LARGEST_PID) or 0,
            copy=call.flag("copy"),
            force=call.flag("force"),
            migration=call.text("migration") or "",
        )
        return self._control.commit(call.place["ns"], request, call.timeout())

    def rate(self, call: Call) -> dict[str, Any]:
        """How fast the link may go."""
        rate = call.number("rate", LARGEST_SIZE)
        if rate is not None and rate < SLOWEST_RATE:
            raise Invalid(f"rate {rate} is too slow", hint=f"give {SLOWEST_RATE} bytes per second or more, or null")
        return self._control.rate(rate)

    def attach(self, call: Call) -> dict[str, Any]:
        """Bind CRIU's socket in a directory."""
        dialect = call.text("dialect") or DIALECTS[0]
        if dialect not in DIALECTS:
            raise Invalid(f"no dialect {dialect[:60]!a}", hint=f"use {' or '.join(DIALECTS)}")
        directory = _directory(call.text("directory"))
        return self._control.attach(directory, call.text("namespace"), dialect, call.flag("copy"))

    def detach(self, call: Call) -> dict[str, Any]:
        """Remove CRIU's sockets from a directory."""
        self._control.detach(_directory(call.query.get("directory")))
        return {}

    def discard(self, call: Call) -> dict[str, Any]:
        """Throw away a namespace, an image or a range of one."""
        place, offset, length = call.place, call.number("offset", LARGEST_SIZE), call.number("length", LARGEST_SIZE)
        return self._control.discard(place["ns"], place.get("snapshot"), place.get("image"), offset, length)

    def get_image(self, call: Call) -> Deferred[IOpenedImage]:
        """The bytes of an image."""
        return self._control.open_image(call.place["ns"], call.place.get("snapshot"), call.place["image"])

    def put_image(self, call: Call) -> IImportSink:
        """Where the bytes of an image go."""
        place, migration = call.place, call.query.get("migration", "")
        return self._control.put_image(place["ns"], place.get("snapshot"), place["image"], migration)

    def ready(self, _: Call) -> dict[str, Any]:
        """Whether the daemon can do its work."""
        status = self._control.status()
        link = status["link"]
        if not metrics.is_ready(status):
            raise NotReady(f"the link is {link['state']}", hint=link["error"] or "criu-relay status shows it")
        return {"role": self._control.role, "link": link["state"]}


def _directory(path: str | None) -> str:
    if not path:
        raise Invalid("no directory given", hint="give the absolute path of a directory as directory")
    if not path.startswith("/") or "\0" in path:
        raise Invalid(f"{path[:60]!a} is not an absolute path", hint="give the absolute path of a directory")
    return path
