"""The manhole over SSH: the keys that may enter, and a session of the real ssh with a real cache."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.conch.error import ValidPublicKey
from twisted.conch.ssh.keys import Key
from twisted.cred.credentials import SSHPrivateKey
from twisted.cred.error import UnauthorizedLogin

from criu_relay.admin.manhole.keys import KeyChecker, authorized_keys, fingerprint, host_key
from criu_relay.errors import Forbidden, Invalid, RelayError
from tests.support.daemons import Relay, free_port
from tests.support.polling import readable, until
from tests.support.tools import needs

SECONDS = 60.0


def new_key() -> Key:
    return Key(Ed25519PrivateKey.generate())


def line(key: Key, name: str = "somebody") -> str:
    """The key as a line of authorized_keys."""
    text: bytes = key.public().toString("openssh", comment=name.encode())
    return text.decode() + "\n"


class TestAuthorizedKeys:
    def test_lines(self, tmp_path: Path) -> None:
        first, second = new_key(), new_key()
        path = tmp_path / "keys"
        path.write_text(f"# people\n\n{line(first)}  {line(second)}")
        assert authorized_keys(path) == {first.blob(): fingerprint(first), second.blob(): fingerprint(second)}

    @pytest.mark.parametrize(
        "text",
        ["ssh-ed25519\n", "nonsense\n", "ssh-ed25519 AAAA x\n", "ssh-rsa !!! x\n", 'from="10.0.0.1" KEY', "\xff\n"],
    )
    def test_what_is_no_key(self, tmp_path: Path, text: str) -> None:
        """A restriction that is not understood must not be passed over."""
        path = tmp_path / "keys"
        path.write_text("#\n" + text.replace("KEY", line(new_key())), encoding="latin-1")
        with pytest.raises(Invalid, match="line 2: not a public key") as caught:
            authorized_keys(path)
        assert "without options" in caught.value.hint

    def test_others_may_write(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text(line(new_key()))
        path.chmod(0o666)
        with pytest.raises(Forbidden, match="others may write it"):
            authorized_keys(path)

    def test_too_long(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text("#" * 70000)
        with pytest.raises(Invalid, match="more than 65536 bytes"):
            authorized_keys(path)

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match="No such file"):
            authorized_keys(tmp_path / "keys")


class TestChecker:
    @pytest.fixture
    def key(self) -> Key:
        return new_key()

    @pytest.fixture
    def checker(self, tmp_path: Path, key: Key) -> KeyChecker:
        (tmp_path / "keys").write_text(line(key))
        return KeyChecker(tmp_path / "keys")

    @staticmethod
    def ask(checker: KeyChecker, key: Key, signature: bytes | None, data: bytes = b"session") -> Any:
        results: list[Any] = []
        credentials = SSHPrivateKey(b"anybody", key.sshType(), key.blob(), data, signature)
        checker.requestAvatarId(credentials).addBoth(results.append)
        return results[0]

    def test_signed(self, checker: KeyChecker, key: Key) -> None:
        assert self.ask(checker, key, key.sign(b"session")) == fingerprint(key).encode()

    def test_asked_first(self, checker: KeyChecker, key: Key) -> None:
        assert self.ask(checker, key, None).check(ValidPublicKey)

    def test_signature_of_something_else(self, checker: KeyChecker, key: Key) -> None:
        assert self.ask(checker, key, key.sign(b"another session")).check(UnauthorizedLogin)

    @pytest.mark.parametrize("signed", [True, False])
    def test_another_key(self, checker: KeyChecker, signed: bool) -> None:
        other = new_key()
        assert self.ask(checker, other, other.sign(b"session") if signed else None).check(UnauthorizedLogin)

    def test_a_key_that_was_taken_out(self, checker: KeyChecker, key: Key, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(line(new_key()))
        assert self.ask(checker, key, key.sign(b"session")).check(UnauthorizedLogin)

    def test_a_file_that_went_bad(self, checker: KeyChecker, key: Key, tmp_path: Path) -> None:
        (tmp_path / "keys").chmod(0o666)
        assert self.ask(checker, key, key.sign(b"session")).check(UnauthorizedLogin)


def test_host_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / "cache_host_key"
    made = host_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert host_key(path).blob() == made.blob()
    assert made.sshType() == b"ssh-ed25519"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_host_key_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("nonsense")
    with pytest.raises(RelayError, match="host key") as caught:
        host_key(tmp_path / "k")
    assert "remove it" in caught.value.hint


class Ssh:
    """The real ssh, on a terminal."""

    def __init__(self, relay: Relay, port: int, key: Path, *options: str) -> None:
        self._said = b""
        self._seen = 0
        self.process = subprocess.Popen(
            [
                *(needs("ssh", "openssh-client"), "-tt", "-F", "none", "-p", str(port), "-i", str(key)),
                *("-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={relay.base}/known_hosts"),
                *("-o", "BatchMode=yes", *options, "anybody@127.0.0.1"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=relay.environment | {"TERM": "xterm"},
        )

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def says(self, text: str) -> str:
        """Wait until the terminal shows a text; all that came since the last one."""
        until(lambda: text in self._new(), SECONDS, f"it says {text!r}", lambda: repr(self._new()))
        new = self._new()
        self._seen += new.index(text) + len(text)
        return new[: new.index(text) + len(text)]

    def _new(self) -> str:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while readable(descriptor):
            data = os.read(descriptor, 65536)
            if not data:
                break
            self._said += data
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._said.decode()).replace("\x1bE", "\n")
        return text.replace("\r", "")[self._seen :]

    def command(self, text: str, shown: str) -> str:
        """Type a line, and wait for something that comes of it."""
        self.type(text + "\r")
        return self.says(shown)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.kill()
        self.process.wait(30)


class Manhole:
    """A cache with a manhole and two namespaces."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.port = free_port()
        self.key = relay.base / "key"
        self._sessions: list[Ssh] = []
        mine = new_key()
        self.fingerprint = fingerprint(mine)
        self.write(self.key, mine)
        (relay.base / "authorized_keys").write_text(line(mine))
        self.options = (
            "--manhole",
            f"tcp:{self.port}:interface=127.0.0.1",
            "--manhole-keys",
            str(relay.base / "authorized_keys"),
        )
        relay.start_cache(*self.options)
        relay.start_proxy()
        relay.linked()
        for name in ("web", "db"):
            images = relay.directory(f"images/{name}")
            (images / "inventory.img").write_bytes(bytes.fromhex("1943565416313158") + b"x" * 30)
            (images / "pages-1.img").write_bytes(b"p" * 3_000_000)
            assert relay.command("import", str(images), name, at="proxy").returncode == 0

    @staticmethod
    def write(path: Path, key: Key) -> None:
        path.write_bytes(key.toString("openssh", subtype="v1"))
        path.chmod(0o600)

    def ssh(self, *options: str, key: Path | None = None) -> Ssh:
        self._sessions.append(Ssh(self.relay, self.port, key or self.key, *options))
        return self._sessions[-1]

    def close(self) -> None:
        for session in self._sessions:
            session.close()


@pytest.fixture
def manhole(relay: Relay) -> Iterator[Manhole]:
    made = Manhole(relay)
    yield made
    made.close()


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manhole]:
    """One that is only looked at."""
    relay = Relay(tmp_path_factory.mktemp("visited"))
    try:
        made = Manhole(relay)
        yield made
        made.close()
    finally:
        relay.close()


def test_a_session(manhole: Manhole) -> None:
    relay = manhole.relay
    ssh = manhole.ssh("-o", "StrictHostKeyChecking=accept-new")
    assert "criu-relay-cache" in ssh.says("Ctrl-D leaves\n>>> ")
    assert "db         committed copy   2.9M       2" in ssh.command("namespaces()", "\n>>> ")
    assert "1/pages-1.img     2.9M" in ssh.command("images('web')", "\n>>> ")
    ssh.type("show('we\t, 'inv\t")
    assert "kind     inventory, magic 0x58313116" in ssh.command(")", "\n>>> ")
    assert "up tcp:" in ssh.command("links()", "\n>>> ")
    assert "db         1/pages-1.img" in ssh.command("top()", "\n>>> ")
    ssh.command("discard('web')", "discard namespace web (committed, 2.9M in 2 images)? [y/N] ")
    ssh.command("y", "bytes given back")
    assert relay.state("web") == "discarded" and relay.state("db") == "committed"
    ssh.command("discard('db', 'pages-1.img', offset=0, length=1 << 20, yes=True)", "\n1048576 bytes given back")
    assert "ZeroDivisionError" in ssh.command("1/0", "division by zero")
    ssh.type("\x04")
    assert ssh.process.wait(SECONDS) == 0
    said = relay.cache.text()
    assert f"{manhole.fingerprint} discarded namespace web" in said
    assert f"{manhole.fingerprint} discarded 1048576 bytes from 0 on of image 1/pages-1.img of db" in said


def test_commands_from_a_pipe(visited: Manhole) -> None:
    ssh = visited.ssh("-o", "StrictHostKeyChecking=accept-new")
    out, _ = ssh.process.communicate(b"namespaces()\nimages('db')\n", SECONDS)
    assert b"committed copy" in out and b"1/pages-1.img" in out
    assert ssh.process.returncode == 0


def test_the_host_stays_the_same(manhole: Manhole) -> None:
    relay = manhole.relay
    manhole.ssh("-o", "StrictHostKeyChecking=accept-new").says(">>> ")
    (key,) = (relay.base / "state" / "criu-relay").glob("*_host_key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    relay.cache.stop()
    relay.start_cache(*manhole.options)
    manhole.ssh("-o", "StrictHostKeyChecking=yes").says(">>> ")


def test_another_key_stays_outside(visited: Manhole) -> None:
    other = visited.relay.base / "other"
    visited.write(other, new_key())
    ssh = visited.ssh("-o", "StrictHostKeyChecking=accept-new", key=other)
    said = ssh.says("Permission denied")
    assert ">>>" not in said
    assert ssh.says(")").startswith(" (publickey)"), "there is no password to guess"
    assert ssh.process.wait(SECONDS) == 255


@pytest.mark.parametrize("what", ["exec", "sftp", "forward"])
def test_a_shell_and_nothing_else(visited: Manhole, what: str) -> None:
    options = {
        "exec": ("-o", "RemoteCommand=id"),
        "sftp": ("-o", "RemoteCommand=sftp", "-s"),
        "forward": ("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"),
    }[what]
    ssh = visited.ssh("-o", "StrictHostKeyChecking=accept-new", *options)
    assert ssh.process.wait(SECONDS) != 0
    assert ">>>" not in ssh._new()


def test_wrong_keys_are_found_at_the_start(relay: Relay) -> None:
    (relay.base / "keys").write_text("nonsense\n")
    options = ("--manhole", f"unix:{relay.base}/m", "--manhole-keys", str(relay.base / "keys"))
    daemon = relay.start_cache(*options, ready=False)
    assert daemon.process.wait(SECONDS) == 1
    assert "line 1: not a public key" in daemon.text()
    assert relay.sockets() == []


def test_over_a_unix_socket(manhole: Manhole) -> None:
    relay = manhole.relay
    relay.proxy.stop()
    path = relay.base / "manhole"
    relay.start_proxy("--manhole", f"unix:{path}", *manhole.options[2:])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    relay.linked()
    connect = f"{needs('socat', 'socat')} - UNIX-CONNECT:{path}"
    ssh = manhole.ssh("-o", "StrictHostKeyChecking=no", "-o", f"ProxyCommand={connect}")
    assert "criu-relay-proxy" in ssh.says("Ctrl-D leaves\n>>> ")
    assert "no namespaces" in ssh.command("namespaces()", "\n>>> ")
