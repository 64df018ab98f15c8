"""The client against daemons, and against what is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from criu_relay.admin import client as module
from criu_relay.admin import show
from criu_relay.admin.client import Broken, Client, Refused, Unanswered, Unreachable, target


@pytest.fixture
def cache(world: Any) -> Client:
    world.start("cache")
    return Client(world.daemons["cache"].path)


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], Client]]:
    """A client of a server that reads a request and answers with given bytes, then hangs up."""
    threads = []

    def start(answer: bytes) -> Client:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "s"))
        server.listen()

        def serve() -> None:
            with server, server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return Client(str(tmp_path / "s"))

    yield start
    for thread in threads:
        thread.join(10)


def test_call(cache: Client) -> None:
    assert cache.call("GET", "/v1/status")["role"] == "cache"


def test_prefix_of_an_endpoint(cache: Client) -> None:
    assert Client(f"unix:{cache.path}").call("GET", "/healthz") == {"role": "cache"}


def test_refused(cache: Client) -> None:
    with pytest.raises(Refused, match="no namespace web") as caught:
        cache.call("GET", "/v1/namespaces/web")
    assert (caught.value.status, caught.value.hint) == (404, "criu-relay status lists them")


def test_alive(cache: Client, tmp_path: Path) -> None:
    assert cache.is_alive()
    assert not Client(str(tmp_path / "none")).is_alive()


def test_nothing_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(tmp_path / "left"))
    for name in ("none", "left"):
        with pytest.raises(Unreachable) as caught:
            Client(str(tmp_path / name)).call("GET", "/healthz")
        assert caught.value.absent


def test_not_a_socket(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / ("x" * 200))):
        with pytest.raises(Unreachable) as caught:
            Client(path).call("GET", "/healthz")
        assert caught.value.absent is (path == str(tmp_path))


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with pytest.raises(Unanswered):
            Client(str(tmp_path / "s")).call("GET", "/healthz", timeout=0.01)


GOOD = b'HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'


def test_good_answer(answering: Any) -> None:
    assert answering(GOOD).call("GET", "/") == {"a": 1}


def test_what_follows_an_answer_is_not_part_of_it(answering: Any, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        assert answering(GOOD + b"more").download("/", file.fileno()) == 8
    assert (tmp_path / "a").read_bytes() == b'{"a": 1}'


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_answer_cut_at_every_byte(answering: Any, cut: int) -> None:
    with pytest.raises(Unreachable):
        answering(GOOD[:cut]).call("GET", "/")


@pytest.mark.parametrize("answer", [
    b"SSH-2.0-x\r\n\r\n", b"HTTP/1.0 ok\r\nContent-Length: 1\r\n\r\n1", b"HTTP/1.0 200 OK\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\nContent-Length: -2\r\n\r\n{}", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{]",
    b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}", b"x" * 40000,
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff",
])  # fmt: skip
def test_not_our_daemon(answering: Any, answer: bytes) -> None:
    with pytest.raises(Unreachable) as caught:
        answering(answer).call("GET", "/")
    assert not caught.value.absent


@pytest.mark.parametrize("body", [b"{}", b"[]", b"1", b"null", b'"x"', b'{"uptime_s": 1, "role": {}}'])
def test_an_answer_that_lacks_what_is_looked_for(answering: Any, tmp_path: Path, body: bytes) -> None:
    client = answering(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with pytest.raises(Unreachable, match=f"^what answers at {tmp_path}/s is not criu_relay$") as caught:
        show.status(client.call("GET", "/v1/status"))
    assert not caught.value.absent


def test_a_list(answering: Any) -> None:
    client = answering(b'HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n[{"a": 1}]')
    assert client.call("GET", "/", kind=list) == [{"a": 1}]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"nonsense", b'{"error": "x"}'])
def test_errors_that_are_not_ours(answering: Any, body: bytes) -> None:
    head = b"HTTP/1.0 502 Bad\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(Refused, match="status 502"):
        answering(head + body).call("GET", "/")


def test_download(cache: Client, world: Any, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    world.daemons["cache"].control.images["web", 1, "a"] = data
    pieces: list[int] = []
    with (tmp_path / "a").open("wb") as file:
        assert cache.download("/v1/namespaces/web/images/a", file.fileno(), pieces.append) == len(data)
    assert (tmp_path / "a").read_bytes() == data
    assert sum(pieces) == len(data)


def test_download_that_breaks(cache: Client, world: Any, make: Any, tmp_path: Path) -> None:
    world.daemons["cache"].control.images["web", 1, "a"] = make["image"](bytes(3_000_000), breaks_at=2_500_000)
    with (tmp_path / "a").open("wb") as file, pytest.raises(Broken, match="broke off"):
        cache.download("/v1/namespaces/web/images/a", file.fileno())


def test_upload(world: Any, tmp_path: Path) -> None:
    control = world.start("proxy")
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    pieces: list[int] = []
    with (tmp_path / "a").open("rb") as file:
        answer = Client(world.daemons["proxy"].path).upload(
            "/v1/namespaces/w/images/a", file.fileno(), len(data), pieces.append
        )
    assert answer == {"name": "a", "size": len(data)}
    assert control.sinks[0].data == data
    assert sum(pieces) == len(data)


def test_upload_that_is_refused(cache: Client, tmp_path: Path) -> None:
    """The answer comes first, however much there is to send."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 34)
    pieces: list[int] = []
    with (tmp_path / "a").open("rb") as file, pytest.raises(Refused, match="a cache takes no images"):
        cache.upload("/v1/namespaces/w/images/a", file.fileno(), 1 << 34, pieces.append)
    assert sum(pieces) < 1 << 30


def test_upload_of_a_file_that_shrinks(world: Any, tmp_path: Path) -> None:
    control = world.start("proxy")
    (tmp_path / "a").write_bytes(bytes(10))
    with (tmp_path / "a").open("rb") as file, pytest.raises(OSError, match="shorter"):
        Client(world.daemons["proxy"].path).upload("/v1/namespaces/w/images/a", file.fileno(), 11)
    world.daemons["proxy"].until(lambda: bool(control.sinks and control.sinks[0].calls))
    assert control.sinks[0].calls == ["fail: the client hung up after 10 bytes"]


def test_target() -> None:
    assert target("v1", "namespaces", "a.b-c_d") == "/v1/namespaces/a.b-c_d"
    assert target("a", 3, directory="/x y+é&=?#%", next=None) == "/a/3?directory=%2Fx%20y%2B%C3%A9%26%3D%3F%23%25"


def test_it_is_light() -> None:
    """It is loaded while the task is frozen; http.client alone would double the time."""
    code = "import sys; from criu_relay.admin import action, client, rundir; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=Path(
        module.__file__).parents[2])  # fmt: skip
    loaded = set(ran.stdout.split())
    assert "criu_relay.admin.client" in loaded
    assert not loaded & {"twisted", "zope", "google", "http.client", "urllib", "email", "argparse", "typing", "ssl"}
