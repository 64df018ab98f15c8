"""The page for browsers, over a fake transport: what it shows, to whom, and that nothing in it is taken for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from criu_relay.admin.history import SAMPLES, History
from criu_relay.admin.page import INTERVAL, ROWS, SECTIONS, WATCHERS, Page
from criu_relay.errors import Cause, Conflict

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> \"quoted\" & </section>"
VOID = {"meta", "link", "br", "line", "polyline"}


class Outline(HTMLParser):
    """Tags with their attributes, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile(make: Any, role: str = "cache") -> dict[str, Any]:
    """A status where whatever a peer or a user can choose is markup."""
    answer: dict[str, Any] = make["status"](
        role,
        attachments=[{"directory": EVIL, "namespace": EVIL, "dialect": "stream", "copy": True}],
        namespaces=[
            make["namespace"](EVIL, "held", reason=EVIL, hint=EVIL, copy=True),
            make["namespace"](EVIL, "open", decided_s=None, expected=4 << 20),
            make["namespace"](EVIL, "open", decided_s=None),
            make["namespace"](EVIL, "aborted", reason=EVIL),
            make["namespace"](),
        ],
        waiting=[{"namespace": EVIL, "image": EVIL, "pid": 0, "seconds": 5.0}],
        failures=[{"at": 0.0, "what": EVIL, "cause": "link", "reason": EVIL}],
    )
    peer = {"name": EVIL, "address": EVIL, "since_s": 3.0, "bytes": 4, "io": EVIL, "round_trip_ms": 1.25}
    answer["link"] = {"state": "up", "endpoint": EVIL, "error": EVIL, "peers": [peer, peer | {"round_trip_ms": None}]}
    return answer


def test_nothing_is_taken_for_markup(control: Any, ask: Any, make: Any) -> None:
    control.state = hostile(make)
    outline = Outline(ask("GET", "/").body.decode())
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert "".join(outline.text).count("<script>alert('x')</script>") >= 14


def test_it_loads_nothing_and_the_policy_says_so(control: Any, ask: Any, make: Any) -> None:
    control.state = hostile(make)
    answer = ask("GET", "/")
    outline = Outline(answer.body.decode())
    for tag, attributes in outline.tags:
        assert not {"src", "style", "action", "formaction"} & set(attributes), tag
        assert attributes.get("href", "data:,") == "data:,"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    nonces = {attributes["nonce"] for tag, attributes in outline.tags if tag in ("script", "style")}
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == f"'nonce-{nonces.pop()}'"
    assert not nonces
    assert (policy["base-uri"], policy["form-action"], policy["frame-ancestors"]) == ("'none'",) * 3
    assert (answer.headers["X-Content-Type-Options"], answer.headers["Cache-Control"]) == ("nosniff", "no-store")
    assert ask("GET", "/").headers["Content-Security-Policy"] != answer.headers["Content-Security-Policy"]


def test_progress(control: Any, ask: Any, make: Any) -> None:
    control.state = hostile(make)
    bars = [attributes for tag, attributes in Outline(ask("GET", "/").body.decode()).tags if tag == "progress"]
    assert [(bar.get("max"), bar.get("value")) for bar in bars] == [
        (str(4 << 20), str(1 << 20)),
        (None, None),
        ("1", "1"),
        ("1", "1"),
    ]


def test_what_moves_is_first_and_a_table_is_bounded(control: Any, ask: Any, make: Any) -> None:
    made = [make["namespace"](f"n{i}", age_s=float(i)) for i in range(ROWS + 7)]
    control.state["namespaces"] = [*made, make["namespace"]("mover", "open", decided_s=None, age_s=999.0)]
    names = re.findall(r"<h3>(\w+)</h3>", ask("GET", "/").body.decode())
    assert names == ["mover", *(f"n{i}" for i in range(ROWS - 1))]
    assert "… and 8 more" in ask("GET", "/").body.decode()


@pytest.mark.parametrize("copy", [True, False])
def test_copies_are_called_so(control: Any, ask: Any, make: Any, copy: bool) -> None:
    control.state["namespaces"] = [make["namespace"](copy=copy)]
    control.state["attachments"] = [{"directory": "/d", "namespace": "n", "dialect": "stream", "copy": copy}]
    assert ask("GET", "/").body.decode().count("copy") == (2 if copy else 0)


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("POST", "/", 405),
        ("GET", "/v1/status", 404),
        ("GET", "/v1/namespaces/web/images/pages-1.img", 404),
        ("DELETE", "/v1/namespaces/web", 404),
        ("PUT", "/v1/namespaces/web/images/a.img", 404),
        ("POST", "/v1/attachments", 404),
    ],
)
def test_the_endpoint_of_metrics_only_shows(connect: Any, control: Any, method: str, target: str, code: int) -> None:
    assert connect(looking=True).request(method, target, b"" if method != "GET" else None).code == code
    assert {call[0] for call in control.calls} <= {"status"}


@pytest.mark.parametrize(("host", "for_everyone", "code"), [
    ("localhost:9877", False, 200), ("evil.example", False, 403), ("192.0.2.7:9877", True, 200),
])  # fmt: skip
def test_a_name_that_a_web_page_owns(connect: Any, host: str, for_everyone: bool, code: int) -> None:
    exchange = connect(tcp=True, looking=True, for_everyone=for_everyone)
    exchange.send(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert exchange.code == code


class Watched:
    """A page on a clock, and the events of one browser."""

    def __init__(self, control: Any, connect: Any) -> None:
        self.exchange = connect()
        self.clock = self.exchange.clock
        self.page: Page = self.exchange.page
        self.page.startService()

    def events(self) -> list[dict[str, str]]:
        return [json.loads(line[6:]) for line in self.exchange.body.decode().splitlines() if line.startswith("data: ")]


@pytest.fixture
def watched(control: Any, connect: Any) -> Watched:
    return Watched(control, connect)


class TestEvents:
    def test_first_and_then_every_second(self, watched: Watched, control: Any, make: Any) -> None:
        watched.exchange.request("GET", "/events")
        assert watched.exchange.headers["Content-Type"] == "text/event-stream"
        assert [set(event) for event in watched.events()] == [set(SECTIONS)]
        control.state["namespaces"] = [make["namespace"]("fresh")]
        watched.clock.advance(INTERVAL)
        first, second = watched.events()
        assert "fresh" not in first["namespaces"] and "fresh" in second["namespaces"]

    def test_a_client_that_does_not_read_misses_some(self, watched: Watched) -> None:
        watched.exchange.request("GET", "/events")
        watched.exchange.channel.pauseProducing()
        watched.clock.pump([INTERVAL] * 5)
        assert len(watched.events()) == 1
        watched.exchange.channel.resumeProducing()
        watched.clock.advance(INTERVAL)
        assert len(watched.events()) == 2

    def test_a_client_that_leaves_is_forgotten(self, watched: Watched, control: Any) -> None:
        watched.exchange.request("GET", "/events")
        watched.exchange.hang_up()
        control.calls.clear()
        watched.clock.advance(INTERVAL)
        assert control.calls == [], "nobody watches: nothing is rendered"

    def test_too_many(self, watched: Watched) -> None:
        made = [watched.page.events() for _ in range(WATCHERS)]
        with pytest.raises(Conflict, match="are open already"):
            watched.page.events()
        made[3].stopProducing()
        watched.page.events()

    def test_the_daemon_stops(self, watched: Watched) -> None:
        watched.exchange.request("GET", "/events")
        watched.page.stopService()
        assert watched.exchange.body.endswith(b"0\r\n\r\n")
        sampled = list(watched.page._history._samples)
        watched.clock.advance(5 * INTERVAL)
        assert list(watched.page._history._samples) == sampled


class TestHistory:
    def test_rates(self) -> None:
        history = History("proxy")
        for at, received, sent in ((0.0, 0, 0), (1.0, 10, 4), (3.0, 10, 24)):
            history.sample(at, {"criu_bytes_in": received, "link_bytes_out": sent, "link_bytes_in": 999})
        assert history.rates() == ([10.0, 0.0], [4.0, 10.0])

    def test_of_nothing(self) -> None:
        history = History("cache")
        assert history.rates() == ([], [])
        history.sample(1.0, {})
        history.sample(1.0, {})
        assert history.rates() == ([], [])

    def test_is_bounded(self) -> None:
        history = History("cache")
        for at in range(SAMPLES * 2):
            history.sample(float(at), {"link_bytes_in": at})
        assert history.rates()[0] == [1.0] * SAMPLES


def test_plot(control: Any, connect: Any) -> None:
    """The newest at the right edge, the highest at the top."""
    exchange = connect()
    exchange.page.startService()
    for count in (100, 300, 300):
        control.counters.add("criu_bytes_in", count)
        exchange.clock.advance(INTERVAL)
    exchange.request("GET", "/")
    (points, flat) = re.findall(r'points="([^"]*)"', exchange.body.decode())
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert places[-1] == (600.0, 0.0) and places[-3][1] == pytest.approx(80.0)
    assert {point.split(",")[1] for point in flat.split()} == {"120.0"}
    assert "in, from criu: 300B/s" in exchange.body.decode()


def test_failures_are_shown(control: Any, ask: Any) -> None:
    control.state["failures"] = [{"at": 0.0, "what": "namespace web", "cause": Cause.LINK.value, "reason": "cut"}]
    text = ask("GET", "/").body.decode()
    assert "namespace web" in text and "cut" in text and ">link<" in text
