"""Images through the control API: whole, and never more of them in memory than there is room for."""

from __future__ import annotations

import random
import select
import socket
import tempfile
import tracemalloc
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from criu_relay.errors import Aborted, OutOfMemory

PUT = "PUT /v1/namespaces/web/snapshots/2/images/pages-1.img HTTP/1.1\r\n"


def begin(connect: Any, length: int) -> Any:
    return connect().send(f"{PUT}Content-Length: {length}\r\n\r\n".encode())


class TestDownload:
    def test_bytes_and_length(self, control: Any, ask: Any, make: Any) -> None:
        image = make["image"](b"0123456789")
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        assert (answer.code, answer.body) == (200, b"0123456789")
        assert answer.headers["Content-Length"] == "10"
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert control.calls == [("open_image", "web", None, "a.img")]
        assert image.closed == 1

    def test_of_a_snapshot(self, control: Any, ask: Any) -> None:
        control.images["web", 7, "a.img"] = b"seven"
        assert ask("GET", "/v1/namespaces/web/snapshots/7/images/a.img").body == b"seven"

    def test_empty(self, control: Any, ask: Any, make: Any) -> None:
        image = make["image"](b"")
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        assert (answer.code, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
        assert (image.closed, image.reads) == (1, [])

    @pytest.mark.parametrize(
        ("wanted", "code", "body", "told"),
        [
            ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
            ("bytes=7-", 206, b"789", "bytes 7-9/10"),
            ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
            ("bytes=10-", 416, b"", "bytes */10"),
            ("bytes=70-71", 416, b"", "bytes */10"),
            ("bytes=3-1", 200, b"0123456789", None),
            ("bytes=-3", 200, b"0123456789", None),
            ("lines=1-2", 200, b"0123456789", None),
        ],
    )
    def test_a_range(
        self, control: Any, ask: Any, make: Any, wanted: str, code: int, body: bytes, told: str | None
    ) -> None:
        """Who resumes a download that was complete does not get all of it again."""
        image = make["image"](b"0123456789")
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img", headers=f"Range: {wanted}\r\n")
        assert (answer.code, answer.body, answer.headers.get("Content-Range")) == (code, body, told)
        assert image.closed == 1

    def test_connection_goes_on_afterwards(self, control: Any, ask: Any) -> None:
        control.images["web", 1, "a.img"] = b"x"
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        answer.transport.clear()
        assert answer.request("GET", "/healthz").code == 200

    def test_missing(self, ask: Any) -> None:
        assert ask("GET", "/v1/namespaces/web/images/a.img").code == 404

    def test_a_slow_client_stops_the_reading(self, control: Any, ask: Any, make: Any) -> None:
        """One piece of at most 1 MiB is on its way; the next is read when the transport has room."""
        image = make["image"](random.Random(1).randbytes((3 << 20) + 5))
        control.images["web", 1, "a.img"] = image
        image.hold = True
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        producer = answer.transport.producer
        for piece in range(3):
            assert image.reads == [(part << 20, 1 << 20) for part in range(piece + 1)]
            producer.pauseProducing()
            image.pending.callback(image.data[piece << 20 : (piece + 1) << 20])
            assert len(image.reads) == piece + 1, "nothing is read while the client is slow"
            producer.resumeProducing()
        assert image.reads[-1] == (3 << 20, 5)
        image.pending.callback(image.data[3 << 20 :])
        assert answer.body == image.data
        assert image.closed == 1

    def test_client_that_hangs_up(self, control: Any, ask: Any, make: Any) -> None:
        image = make["image"](b"x" * 100)
        image.hold = True
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        answer.hang_up()
        assert (image.cancelled, image.closed) == (1, 1)
        assert not answer.clock.getDelayedCalls()

    def test_client_that_hangs_up_while_paused(self, control: Any, ask: Any, make: Any) -> None:
        image = make["image"](b"x" * (2 << 20))
        image.hold = True
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        answer.transport.producer.pauseProducing()
        image.pending.callback(b"x" * (1 << 20))
        answer.hang_up()
        assert (image.closed, len(image.reads)) == (1, 1)

    def test_client_that_hangs_up_while_it_opens(
        self, control: Any, ask: Any, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The commit comes in the same moment: what was opened for nobody is closed."""
        image = make["image"](b"x")
        opening: Deferred[Any] = Deferred(lambda deferred: deferred.callback(image))
        monkeypatch.setattr(control, "open_image", lambda *_: opening)
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        answer.hang_up()
        assert (image.closed, image.reads, answer.transport.value()) == (1, [], b"")

    @pytest.mark.parametrize("breaks_at", [0, 1, 1 << 20, (1 << 20) + 1])
    def test_an_image_that_breaks_is_never_whole(self, control: Any, ask: Any, make: Any, breaks_at: int) -> None:
        image = make["image"](b"x" * (2 << 20), breaks_at=breaks_at)
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        assert answer.headers["Content-Length"] == str(2 << 20)
        assert len(answer.body) < 2 << 20
        assert answer.transport.disconnecting and image.closed == 1

    def test_an_image_that_ends_early(self, control: Any, ask: Any, make: Any) -> None:
        image = make["image"](b"x" * 10)
        image.size = 11
        control.images["web", 1, "a.img"] = image
        answer = ask("GET", "/v1/namespaces/web/images/a.img")
        assert len(answer.body) == 10 and answer.transport.disconnecting

    def test_a_real_slow_client(self, world: Any, make: Any) -> None:
        """Of 64 MiB the daemon reads no more than the socket takes and a few pieces."""
        control = world.start("cache")
        image = make["image"](bytes(64 << 20))
        control.images["web", 1, "a.img"] = image
        daemon = world.daemons["cache"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.path)
            client.sendall(b"GET /v1/namespaces/web/images/a.img HTTP/1.0\r\n\r\n")
            client.recv(1)
            daemon.until(lambda: bool(image.reads))
            daemon.do(lambda: None)
            assert len(image.reads) <= 3
        daemon.until(lambda: bool(image.closed))


class TestUpload:
    def test_bytes_go_straight_through(self, control: Any, connect: Any) -> None:
        answer = begin(connect, 10)
        sink = control.sinks[0]
        assert control.calls == [("put_image", "web", 2, "pages-1.img", "")]
        answer.send(b"01234")
        assert (sink.data, sink.calls) == (b"01234", [])
        answer.send(b"56789")
        assert (sink.data, sink.calls) == (b"0123456789", ["end"])
        assert answer.json == {"name": "pages-1.img", "size": 10}

    def test_newest_snapshot(self, control: Any, ask: Any) -> None:
        assert ask("PUT", "/v1/namespaces/web/images/a", b"x").code == 200
        assert control.calls == [("put_image", "web", None, "a", "")]

    @pytest.mark.parametrize("body", [b"", None])
    def test_empty(self, control: Any, ask: Any, body: bytes | None) -> None:
        assert ask("PUT", "/v1/namespaces/web/images/a", body).json == {"name": "a", "size": 0}
        assert (control.sinks[0].data, control.sinks[0].calls) == (b"", ["end"])

    def test_in_chunks(self, control: Any, connect: Any) -> None:
        answer = connect().send(f"{PUT}Transfer-Encoding: chunked\r\n\r\n".encode())
        answer.send(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        assert (control.sinks[0].data, control.sinks[0].calls) == (b"abcdefg", ["end"])
        assert answer.json["size"] == 7

    def test_bad_chunks_fail_the_image(self, control: Any, connect: Any) -> None:
        answer = connect().send(f"{PUT}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n".encode())
        assert answer.transport.disconnecting
        answer.hang_up()
        assert control.sinks[0].calls == ["fail: the client hung up after 3 bytes"]

    def test_a_full_image_stops_the_client(self, control: Any, connect: Any, make: Any) -> None:
        control.make_sink = lambda: make["sink"](limit=4)
        answer = begin(connect, 10)
        answer.send(b"0123")
        assert answer.transport.producerState == "paused"
        answer.clock.advance(3600)
        assert not answer.transport.disconnecting, "it is not the client who is silent"
        control.sinks[0].drain()
        assert answer.transport.producerState == "producing"
        answer.send(b"4567")
        assert answer.transport.producerState == "paused"
        control.sinks[0].drain()
        answer.send(b"89")
        assert answer.json["size"] == 10

    def test_a_client_that_falls_silent_after_a_pause_is_closed(self, control: Any, connect: Any, make: Any) -> None:
        control.make_sink = lambda: make["sink"](limit=4)
        answer = begin(connect, 10)
        answer.send(b"0123")
        answer.clock.advance(3600)
        control.sinks[0].drain()
        answer.clock.advance(59)
        assert not answer.transport.disconnecting
        answer.clock.advance(2)
        assert answer.transport.disconnecting

    def test_the_channel_does_not_resume_what_is_full(self, control: Any, connect: Any, make: Any) -> None:
        """A client that pipelines reads an old answer at last, and the transport resumes the channel."""
        control.make_sink = lambda: make["sink"](limit=4)
        answer = begin(connect, 10)
        answer.send(b"0123")
        answer.channel.resumeProducing()
        assert answer.transport.producerState == "producing"
        answer.send(b"4")
        assert answer.transport.producerState == "paused"

    def test_a_silent_client_is_closed(self, control: Any, connect: Any) -> None:
        answer = begin(connect, 10)
        answer.send(b"0")
        answer.clock.advance(61)
        assert answer.transport.disconnecting

    def test_hanging_up_at_every_byte(self, control: Any, connect: Any) -> None:
        data = f"{PUT}Content-Length: 5\r\n\r\n".encode()
        for cut in range(len(data) + 5):
            control.sinks.clear()
            answer = connect().send((data + b"01234")[:cut])
            answer.hang_up()
            count = cut - len(data)
            assert [sink.calls for sink in control.sinks] == (
                [[f"fail: the client hung up after {count} bytes"]] if count >= 0 else []
            )
            assert not answer.clock.getDelayedCalls()

    def test_hanging_up_while_paused(self, control: Any, connect: Any, make: Any) -> None:
        control.make_sink = lambda: make["sink"](limit=1)
        answer = begin(connect, 10)
        answer.send(b"0")
        answer.hang_up()
        assert control.sinks[0].calls == ["fail: the client hung up after 1 bytes"]
        assert not answer.clock.getDelayedCalls()

    def test_refused_before_it_comes(self, control: Any, connect: Any) -> None:
        control.role = "cache"
        answer = begin(connect, 10)
        assert answer.code == 409
        assert answer.json == {"error": "a cache takes no images", "hint": "import them at the proxy"}
        answer.send(b"0123456789")
        assert answer.transport.disconnecting

    def test_refused_on_the_way(self, control: Any, connect: Any) -> None:
        answer = begin(connect, 10)
        answer.send(b"0")
        control.sinks[0].error = OutOfMemory("no room", hint="--window")
        answer.send(b"1")
        assert answer.code == 507
        assert answer.json == {"error": "no room", "hint": "--window"}
        assert control.sinks[0].calls == ["fail: no room"]
        answer.send(b"2345678")
        assert not answer.transport.disconnecting
        answer.send(b"9")
        assert answer.transport.disconnecting

    def test_refused_at_the_end(self, control: Any, connect: Any) -> None:
        answer = begin(connect, 1)
        control.sinks[0].end_error = Aborted("the link is lost")
        answer.send(b"0")
        assert (answer.code, control.sinks[0].calls) == (409, ["end"])

    @pytest.mark.parametrize("limit", [None, 1])
    def test_not_wanted_any_more(self, control: Any, connect: Any, make: Any, limit: int | None) -> None:
        control.make_sink = lambda: make["sink"](limit=limit)
        answer = begin(connect, 10)
        answer.send(b"0")
        control.sinks[0].producer.stopProducing()
        assert (answer.code, answer.json) == (409, {"error": "no room", "hint": "more memory"})
        assert control.sinks[0].calls == ["fail: the image is not wanted any more"]
        assert answer.transport.producerState == "producing", "what still comes is dropped"
        answer.send(b"123456789")
        assert answer.transport.disconnecting

    def test_100_continue(self, connect: Any) -> None:
        answer = connect().send(f"{PUT}Content-Length: 1\r\nExpect: 100-continue\r\n\r\n".encode())
        assert answer.transport.value() == b"HTTP/1.1 100 Continue\r\n\r\n"

    @pytest.mark.parametrize("length", ["-1", "1e3", "x", "0x10", "1, 1"])
    def test_bad_lengths(self, control: Any, connect: Any, length: str) -> None:
        answer = connect().send(f"{PUT}Content-Length: {length}\r\n\r\n".encode())
        assert (answer.code, control.sinks) == (400, [])

    def test_two_lengths(self, control: Any, connect: Any) -> None:
        answer = connect().send(f"{PUT}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert (answer.code, control.sinks) == (400, [])

    def test_a_real_fast_client(self, world: Any, make: Any) -> None:
        """16 MiB against an image that takes 256 KiB at a time: never more than that, and one read, wait in it."""
        control = world.start("proxy")
        control.make_sink = lambda: make["sink"](limit=256 << 10)
        daemon = world.daemons["proxy"]
        data = random.Random(2).randbytes(16 << 20)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.path)
            client.setblocking(False)
            client.send(f"{PUT}Content-Length: {len(data)}\r\n\r\n".encode())

            def full() -> bool:
                return bool(control.sinks) and control.sinks[0].waiting >= 256 << 10

            sent = stops = 0
            while sent < len(data):
                try:
                    sent += client.send(data[sent : sent + 65536])
                except BlockingIOError:
                    daemon.until(lambda: full() or bool(select.select([], [client], [], 0)[1]))
                    if full():
                        assert sent <= len(control.sinks[0].data) + (1 << 20), "the socket's own buffer is all there is"
                        daemon.do(control.sinks[0].drain)
                        stops += 1
            assert stops > 8
            daemon.reactor.callFromThread(lambda: keep_draining(daemon.reactor, control.sinks[0]))
            client.settimeout(10)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert control.sinks[0].data == data
        assert control.sinks[0].most_waiting <= (256 << 10) + (64 << 10)


def keep_draining(reactor: Any, sink: Any) -> None:
    sink.drain()
    if not sink.calls:
        reactor.callLater(0, keep_draining, reactor, sink)


def test_nothing_is_spooled(control: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """twisted.web keeps the body of a request in memory, a large one in a temporary file."""
    made: list[Any] = []
    monkeypatch.setattr(tempfile, "TemporaryFile", made.append)
    answer = begin(connect, 1 << 30)
    tracemalloc.start()
    try:
        for _ in range(64):
            answer.send(bytes(1 << 20))
            control.sinks[0].data = b""
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made == []
    assert held < 4 << 20
