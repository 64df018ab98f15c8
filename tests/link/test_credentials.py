"""Files that are read again when they change, and how many peers may be on their way to hello."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.task import Clock

from criu_relay.errors import Invalid
from criu_relay.link.connection import LinkConnection
from criu_relay.link.credentials import LARGEST_FILE, Credentials, Files
from criu_relay.link.services import GREETINGS, LinkFactory
from criu_relay.link.transports import Ownership
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from tests.link.support import Wire, hello
from tests.link.test_handshake import End, Joined
from tests.support.certificates import Authority, Shown


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serial(credentials: Credentials) -> int:
    """Of the certificate that the next handshake shows."""
    shown = credentials.handshake().session.get_certificate(as_cryptography=True)
    assert shown is not None
    return shown.serial_number


def files(shown: Shown) -> Files:
    return Files(shown.certificate, shown.key, shown.authorities)


def test_unchanged_files_are_not_read(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = ca.issue("a").credentials(True)
    before = serial(credentials)

    def read(self: Credentials) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(Credentials, "_read", read)
    assert serial(credentials) == before
    with pytest.raises(AssertionError, match="read again"):
        credentials.refresh(force=True)


def test_changed_files_are(ca: Authority) -> None:
    credentials = ca.issue("a").credentials(True)
    before = serial(credentials)
    ca.issue("a")
    assert serial(credentials) != before


def test_one_file_after_the_other(ca: Authority, tmp_path: Path) -> None:
    """What is on disk between the two does not fit together: the old pair stays until the new one is whole."""
    credentials = ca.issue("a").credentials(True)
    before = serial(credentials)
    new = ca.issue("a", file="new")
    os.replace(new.certificate, tmp_path / "a.crt")
    assert serial(credentials) == before
    assert serial(credentials) == before
    os.replace(new.key, tmp_path / "a.key")
    after = serial(credentials)
    assert after != before
    assert serial(credentials) == after


@pytest.mark.parametrize("name", ["a.crt", "a.key", "ca.pem"])
def test_a_file_that_goes_away_and_comes_back(ca: Authority, tmp_path: Path, name: str) -> None:
    credentials = ca.issue("a").credentials(True)
    before = serial(credentials)
    os.rename(tmp_path / name, tmp_path / "away")
    assert serial(credentials) == before
    os.rename(tmp_path / "away", tmp_path / name)
    assert serial(credentials) == before


def test_a_ca_is_taken_out(ca: Authority, tmp_path: Path) -> None:
    """Whom we believe changes with the file, not only what we show."""
    both = tmp_path / "both.pem"
    other = Authority(tmp_path, "other")
    both.write_bytes(ca.path.read_bytes() + other.path.read_bytes())
    shown = ca.issue("a")
    cache = Shown(shown.certificate, shown.key, both).credentials(False)
    proxies = {
        name: one.issue(name, file=name, believes=ca).credentials(True, "a") for name, one in (("b", ca), ("c", other))
    }

    def let_in(name: str) -> bool:
        pair = Joined("own", proxies[name], cache).run()
        up = pair.cache.connection.up
        pair.close()
        return up

    assert let_in("b")
    assert let_in("c")
    both.write_bytes(other.path.read_bytes())
    assert not let_in("b")
    assert let_in("c")


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key", "--tls-ca"])
@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "directory", "large", "unreadable"])
def test_what_cannot_be_loaded(ca: Authority, tmp_path: Path, option: str, how: str) -> None:
    shown = ca.issue("a")
    wrong = tmp_path / "wrong.pem"
    if how == "empty":
        wrong.write_bytes(b"")
    elif how == "garbage":
        wrong.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + b"\xff" * 99)
    elif how == "directory":
        wrong.mkdir()
    elif how == "large":
        wrong.write_bytes(b"x" * (LARGEST_FILE + 1))
    elif how == "unreadable":
        wrong = Path("/proc/self/mem")
    made = {"--tls-cert": shown.certificate, "--tls-key": shown.key, "--tls-ca": shown.authorities, option: wrong}
    credentials = Credentials(Files(*made.values()), (), True)
    with pytest.raises(Invalid) as caught:
        credentials.load()
    assert option in caught.value.reason
    assert str(wrong) in caught.value.reason
    assert "\n" not in caught.value.reason + caught.value.hint
    assert caught.value.hint.startswith("give a file with ")


def test_a_key_of_another(ca: Authority) -> None:
    a, b = ca.issue("a"), ca.issue("b")
    with pytest.raises(Invalid, match="is not the key of --tls-cert"):
        Credentials(Files(a.certificate, b.key, ca.path), (), True).load()


def test_contexts(ca: Authority) -> None:
    context = ca.issue("a").credentials(False).handshake().session.get_context()
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF
    assert context.get_verify_mode() == SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


class Knocking:
    """Connections to a cache's factory."""

    def __init__(self, credentials: Credentials | None) -> None:
        self.clock = Clock()
        self.end = End()
        self.factory = LinkFactory(self._made, Ownership())
        self._credentials = credentials

    def _made(self, owned: Ownership) -> LinkConnection:
        greeting = hello(link_pb2.CACHE)
        return LinkConnection(None, self.clock, greeting, self.end, owned, credentials=self._credentials)

    def knock(self, peer: Frame | None = None) -> LinkConnection:
        connection = self.factory.buildProtocol(None)
        connection.makeConnection(Wire())
        if peer is not None:
            from criu_relay.wire import link as wire

            connection.dataReceived(wire.encode(peer))
        return connection


@pytest.mark.parametrize("tls", [False, True])
def test_the_oldest_that_waits_makes_room(ca: Authority, tls: bool) -> None:
    door = Knocking(ca.issue("a").credentials(False) if tls else None)
    waiting = [door.knock() for _ in range(GREETINGS)]
    assert all(one.open for one in waiting)
    late = [door.knock() for _ in range(10)]
    assert [one.open for one in waiting] == [False] * 10 + [True] * (GREETINGS - 10)
    assert all(one.open for one in late)
    assert all(one.transport.ended == "lose" for one in waiting[:10])
    assert sum(one.waiting for one in door.factory.connections) == GREETINGS


def test_links_that_are_up_are_not_counted() -> None:
    door = Knocking(None)
    up = [door.knock(Frame(hello=hello(link_pb2.PROXY))) for _ in range(GREETINGS + 5)]
    assert all(one.up for one in up)
    waiting = [door.knock() for _ in range(GREETINGS)]
    door.knock()
    assert all(one.up for one in up)
    assert not waiting[0].open
    assert waiting[1].open
