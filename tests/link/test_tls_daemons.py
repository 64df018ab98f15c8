"""TLS between real daemons: images arrive, certificates are renewed, and strangers harm nobody."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.support.certificates import Authority, Shown
from tests.support.daemons import Relay
from tests.support.polling import until

MIB = 1 << 20

SIZES = {"pages-1.img": 30 * MIB + 17, "core-1.img": 5000, "empty.img": 0, "inventory.img": 60}

HALF_OPEN = 200
"""Three times as many as a cache keeps."""

OWN, TWISTED = "tls send, tls read", "twisted tls"

WITHOUT_SOCKETS = """
import sys

def fall_back():
    from criu_relay.link import transports
    transports.socket_of = lambda transport: None

if any("criu-relay-" in argument for argument in sys.argv):
    fall_back()
"""
"""For the daemons: as if no transport had a socket."""


class Nodes:
    """Certificates of `make-certs` for both daemons, and what is sent."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.certs = relay.base / "certs"
        done = relay.run("make-certs", str(self.certs), "127.0.0.1", "node-a")
        assert (done.returncode, done.stderr) == (0, "")
        self.images = relay.directory("images")
        for name, size in {
            "pages-1.img": 30 * MIB + 17,
            "core-1.img": 5000,
            "empty.img": 0,
            "inventory.img": 60,
        }.items():
            (self.images / name).write_bytes(os.urandom(size))

    def shown(self, name: str) -> Shown:
        return Shown(self.certs / f"{name}.crt", self.certs / f"{name}.key", self.certs / "ca.crt")

    def cache(self, *options: str) -> None:
        self.relay.start_cache(*self.shown("127.0.0.1").options(), *options)

    def proxy(self, *options: str) -> None:
        self.relay.start_proxy(*self.shown("node-a").options(), *options)

    def start(self) -> Nodes:
        self.cache()
        self.proxy()
        self.relay.linked()
        return self

    def move(self, namespace: str = "web") -> None:
        """Through the relay, and compared."""
        relay = self.relay
        done = relay.command("import", str(self.images), namespace, at="proxy")
        assert (done.returncode, done.stderr) == (0, "")
        self.arrived(namespace)

    def arrived(self, namespace: str) -> None:
        there = Path(tempfile.mkdtemp(dir=self.relay.base)) / namespace
        done = self.relay.command("export", namespace, str(there), at="cache")
        assert (done.returncode, done.stderr) == (0, "")
        names = sorted(path.name for path in self.images.iterdir())
        assert sorted(path.name for path in there.iterdir()) == names
        assert filecmp.cmpfiles(self.images, there, names, shallow=False)[0] == names

    def peer(self, at: str) -> dict[str, Any]:
        [found] = self.relay.get("/v1/status", at=at)["link"]["peers"]
        link: dict[str, Any] = found
        return link

    def greet(self, certificate: str = "node-a") -> x509.Certificate:
        """A handshake with the cache: the certificate that it shows."""
        shown = self.shown(certificate)
        context = ssl.create_default_context(cafile=str(shown.authorities))
        context.load_cert_chain(shown.certificate, shown.key)
        with (
            socket.create_connection(("127.0.0.1", self.relay.port), 30) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            data = tls.getpeercert(binary_form=True)
            assert data
            return x509.load_der_x509_certificate(data)


@pytest.fixture
def nodes(relay: Relay) -> Nodes:
    return Nodes(relay)


@pytest.fixture(params=[OWN, TWISTED], ids=["own", "twisted"])
def way(request: pytest.FixtureRequest, relay: Relay) -> str:
    """How the daemons' bytes move."""
    if request.param == TWISTED:
        relay.prepare(WITHOUT_SOCKETS)
    chosen: str = request.param
    return chosen


@pytest.mark.parametrize("window", ["256M", "2M", "0"])
def test_images_move(nodes: Nodes, way: str, window: str) -> None:
    nodes.cache()
    nodes.proxy("--window", window)
    nodes.relay.linked()
    assert nodes.peer("proxy")["io"] == nodes.peer("cache")["io"] == way
    assert nodes.peer("proxy")["name"] == "127.0.0.1"
    assert nodes.peer("cache")["name"] == "node-a"
    nodes.move()
    nodes.relay.stop()


BYE = "the peer said bye: the daemon stops"


@pytest.mark.parametrize("stops", ["proxy", "cache"])
def test_the_peer_is_told_that_it_ends(nodes: Nodes, way: str, stops: str) -> None:
    relay = nodes.start().relay
    assert nodes.peer("cache")["io"] == way
    relay.at(stops).stop()
    other = relay.at("cache" if stops == "proxy" else "proxy")
    until(lambda: BYE in [one["reason"] for one in other.get("/v1/status")["failures"]], 30, "it said bye")


def test_an_inherited_link(nodes: Nodes, way: str) -> None:
    left, right = socket.socketpair()
    relay = nodes.relay
    relay.start_cache(*nodes.shown("127.0.0.1").options(), "--link-fd", str(left.fileno()), pass_fds=[left.fileno()])
    options = nodes.shown("node-a").options("127.0.0.1")
    relay.start_proxy(*options, "--link-fd", str(right.fileno()), pass_fds=[right.fileno()])
    relay.linked()
    assert nodes.peer("cache")["io"] == way
    nodes.move()
    relay.stop()
    left.close()
    right.close()


def test_two_proxies_with_one_name_each(nodes: Nodes) -> None:
    """A namespace belongs to the name in the certificate that it came with."""
    relay = nodes.start().relay
    nodes.move()
    assert relay.run("make-certs", str(nodes.certs), "node-b").returncode == 0
    relay.proxy.stop()
    relay.start_proxy(*nodes.shown("node-b").options())
    relay.linked()
    assert nodes.peer("cache")["name"] == "node-b"
    done = relay.command("import", str(nodes.images), "web", at="proxy")
    assert done.returncode == 1
    assert "\n" not in done.stderr.strip()
    nodes.arrived("web")


# Files that change


def renewed(nodes: Nodes, name: str) -> None:
    """Make the certificate of a name anew, from the same CA."""
    for end in ("crt", "key"):
        (nodes.certs / f"{name}.{end}").unlink()
    assert nodes.relay.run("make-certs", str(nodes.certs), name).returncode == 0


def test_a_new_certificate_is_used_and_no_link_is_dropped(nodes: Nodes) -> None:
    relay = nodes.start().relay
    before = nodes.greet()
    renewed(nodes, "127.0.0.1")
    after = nodes.greet()
    assert after.serial_number != before.serial_number
    assert "the certificates were read again" in relay.cache.text()
    assert relay.get("/v1/status", at="proxy")["counters"]["links_made"] == 1
    nodes.move()


def test_sighup_reads_them_again(nodes: Nodes) -> None:
    relay = nodes.start().relay
    for daemon in relay.daemons:
        daemon.signal(signal.SIGHUP)
        until(lambda d=daemon: "the certificates were read again" in d.text(), 20, "it is read again", daemon.tail)
    nodes.move()
    assert relay.get("/v1/status", at="proxy")["counters"]["links_made"] == 1
    relay.stop()


@pytest.mark.parametrize("broken", ["127.0.0.1.crt", "127.0.0.1.key", "ca.crt"])
def test_a_broken_file_keeps_the_old_ones(nodes: Nodes, broken: str, tmp_path: Path) -> None:
    relay = nodes.start().relay
    before = nodes.greet()
    shutil.copytree(nodes.certs, tmp_path / "kept")
    (nodes.certs / broken).write_text("-----BEGIN NOTHING-----\n")
    relay.cache.signal(signal.SIGHUP)
    until(lambda: "the certificates of before stay in use" in relay.cache.text(), 20, "it says so", relay.cache.tail)
    kept = nodes.certs
    nodes.certs = tmp_path / "kept"
    assert nodes.greet() == before
    nodes.certs = kept
    nodes.move()


def test_a_key_that_is_not_the_certificates(nodes: Nodes) -> None:
    """Between the renewal of one file and of the other."""
    relay = nodes.start().relay
    before = nodes.greet()
    shutil.copy(nodes.certs / "node-a.key", nodes.certs / "127.0.0.1.key")
    assert nodes.greet() == before
    assert "the certificates of before stay in use" in relay.cache.text()
    renewed(nodes, "127.0.0.1")
    assert nodes.greet() != before


# What cannot start


@pytest.mark.parametrize("role", ["proxy", "cache"])
@pytest.mark.parametrize("wrong", ["missing", "empty", "directory", "encrypted", "of another"])
def test_a_daemon_that_cannot_load_them(nodes: Nodes, role: str, wrong: str, tmp_path: Path) -> None:
    relay = nodes.relay
    shown = nodes.shown("node-a")
    key = tmp_path / "wrong.key"
    if wrong == "empty":
        key.write_bytes(b"")
    elif wrong == "directory":
        key = tmp_path
    elif wrong == "of another":
        key = nodes.certs / "127.0.0.1.key"
    elif wrong == "encrypted":
        from cryptography.hazmat.primitives import serialization as pem

        loaded = pem.load_pem_private_key(shown.key.read_bytes(), None)
        locked = pem.BestAvailableEncryption(b"secret")
        key.write_bytes(loaded.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, locked))
    options = Shown(shown.certificate, key, shown.authorities).options()
    start = {"proxy": relay.start_proxy, "cache": relay.start_cache}[role]
    daemon = start(*options, ready=False)
    assert daemon.process.wait(30) == 1
    lines = [line for line in daemon.text().splitlines() if "--tls-key" in line]
    assert len(lines) == 1, daemon.text()
    assert "cannot start" in lines[0]
    assert str(key) in lines[0]
    assert "give a " in lines[0]
    assert "Traceback" not in daemon.text()
    assert "BEGIN" not in daemon.text()
    assert relay.sockets() == []


# Strangers


def test_a_proxy_of_another_ca(nodes: Nodes, tmp_path: Path) -> None:
    """Both logs say what is wrong, and whoever is let in is not harmed."""
    relay = nodes.relay
    nodes.cache("--tls-peer", "node-a", "--tls-peer", "node-b")
    stranger = Authority(tmp_path)
    shown = stranger.issue("node-a")
    relay.start_proxy(*Shown(shown.certificate, shown.key, nodes.certs / "ca.crt").options())
    until(lambda: "from a CA that --tls-ca does not have" in relay.cache.text(), 30, "a reason", relay.cache.tail)
    until(lambda: "the peer refuses our certificate" in relay.proxy.text(), 30, "a reason", relay.proxy.tail)
    assert relay.get("/v1/status", at="cache")["link"]["peers"] == []
    assert relay.get("/v1/status", at="cache")["counters"].get("links_made", 0) == 0
    relay.proxy.stop()
    nodes.proxy()
    relay.linked()
    nodes.move()


@pytest.fixture
def half_open(relay: Relay) -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for one in made:
        one.close()


def test_half_open_handshakes_harm_nobody(nodes: Nodes, half_open: list[socket.socket]) -> None:
    """They come while images move, and whoever knocks after them is let in."""
    relay = nodes.start().relay
    before = len(relay.cache.descriptors())
    moving = relay.begin("--control", str(relay.proxy.control), "import", str(nodes.images), "web")
    for _ in range(HALF_OPEN):
        one = socket.create_connection(("127.0.0.1", relay.port), 30)
        with contextlib.suppress(OSError):
            one.send(b"\x16\x03\x01\x02\x00\x01\x00")
        half_open.append(one)
    said = moving.communicate(timeout=120)
    assert moving.returncode == 0, said
    nodes.arrived("web")
    assert nodes.greet()
    # Two descriptors each, and what the control API and this test have open.
    assert len(relay.cache.descriptors()) <= before + 2 * 64 + 16
    assert relay.get("/v1/status", at="proxy")["counters"]["links_made"] == 1
    relay.proxy.stop()
    nodes.proxy()
    relay.linked()
    nodes.move("again")
    for one in half_open:
        one.close()
    until(lambda: len(relay.cache.descriptors()) <= before + 4, 30, "their descriptors are closed")
