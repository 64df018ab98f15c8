"""The values of options: from the text that people type to what it means.

Every function here takes one text and raises L{ValueError} with a line that says what to give instead,
to be put behind the name of the option.

>>> size("256M")
268435456
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import math
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import AdoptedStreamServerEndpoint, clientFromString, serverFromString
from twisted.internet.protocol import ClientFactory, Factory

from criu_relay import errors
from criu_relay.settings import Attached
from criu_relay.store.policy import Dedup
from criu_relay.wire.names import check_name, host_name

FIRST_INHERITED = 3
"""0, 1 and 2 are standard input, output and error, which twistd replaces when it becomes a daemon."""

LARGEST_SIZE = 2**63 - 1
"""What an offset in a file can be (off_t)."""

SLOWEST_RATE = 64 << 10
"""Bytes per second: a frame of 1 MiB, which is never cut, takes 16 s."""

LARGEST_UID = 2**32 - 2
"""uid_t has 32 bits and its last value means "no user" (credentials(7), chown(2))."""

LONGEST_TIME = 366 * 24 * 3600.0
"""A year in seconds: anything longer is a slip of the keyboard."""

LARGEST_PORT = 65535

_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass
class Address:
    """Where an endpoint leads to.

    @ivar host: address or host name of a TCP endpoint; "" is every address of this machine; None for a unix socket.
    @ivar port: of a TCP endpoint.
    @ivar path: of a unix socket.
    @ivar descriptor: of a socket that was inherited, and listens already.
    """

    host: str | None = None
    port: int = 0
    path: str = ""
    descriptor: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether nothing beyond this machine can be at the other end; host names but localhost are not resolved."""
        if self.host is None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass
class _Recorder:
    """Stands in for the reactor, so that Twisted's own parser says where an endpoint leads to."""

    address: Address | None = None

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> None:
        """See IReactorTCP."""
        self.address = Address(interface, port)

    def connectTCP(self, host: str, port: int, factory: Any, **options: Any) -> None:
        """See IReactorTCP."""
        self.address = Address(host, port)

    def listenUNIX(self, address: str, factory: Any, **options: Any) -> None:
        """See IReactorUNIX."""
        self.address = Address(path=address)


def server_address(text: str, kinds: tuple[str, ...] = ("tcp", "tcp6", "systemd")) -> Address:
    """Where a server endpoint would listen.

    @param text: an endpoint description (twisted.internet.endpoints.serverFromString).
    @param kinds: the types of endpoint that will do.
    """
    example = "unix:/run/criu-relay/cache.sock" if "unix" in kinds else "tcp:9876:interface=127.0.0.1"
    return _address(text, kinds, example, 0, lambda recorder: _listen(recorder, text))


def _listen(recorder: _Recorder, text: str) -> None:
    if text.partition(":")[0].lower() == "systemd":
        recorder.address = _inherited(text)[1]
    else:
        serverFromString(recorder, text).listen(Factory())


@functools.cache
def _inherited(text: str) -> tuple[int, Address]:
    """Family and address of a socket that listens already; looked at once, as its number is another's when it is used.

    @raise KeyError: it was not passed to us.
    """
    endpoint = serverFromString(_Recorder(), text)
    assert isinstance(endpoint, AdoptedStreamServerEndpoint)
    with socket.socket(fileno=os.dup(endpoint.fileno)) as inherited:
        name, family = inherited.getsockname(), inherited.family
    address = Address(path=str(name)) if family == socket.AF_UNIX else Address(str(name[0]), int(name[1]))
    address.descriptor = endpoint.fileno
    return family, address


def activated(name: str) -> str | None:
    """The endpoint description of the listening socket that systemd passed under this name; None: it did not.

    Asked for through Twisted, which takes sd_listen_fds(3) out of the environment as soon as it is imported.
    """
    try:
        family, _ = _inherited(f"systemd:domain=UNIX:name={name}")
    except KeyError:
        return None
    return f"systemd:domain={socket.AddressFamily(family).name.removeprefix('AF_')}:name={name}"


def client_address(text: str) -> Address:
    """Where a client endpoint (twisted.internet.endpoints.clientFromString) would connect to."""
    example = "tcp:127.0.0.1:9876"
    address = _address(
        text, ("tcp",), example, 1, lambda recorder: clientFromString(recorder, text).connect(ClientFactory())
    )
    if not address.host:
        raise ValueError(f"names no host; give an endpoint such as {example}")
    return address


def _address(
    text: str, kinds: tuple[str, ...], example: str, first_port: int, use: Callable[[_Recorder], object]
) -> Address:
    kind, colon, _ = text.partition(":")
    if not colon or kind.lower() not in kinds:
        raise ValueError(f"not one of {', '.join(kind + ':' for kind in kinds)}; give an endpoint such as {example}")
    recorder = _Recorder()
    # Twisted's parsers raise whatever comes of the arguments they find.
    with contextlib.suppress(Exception):
        use(recorder)
    address = recorder.address
    if address is None:
        raise ValueError(f"not an endpoint; give one such as {example}")
    if address.host is not None and not first_port <= address.port <= LARGEST_PORT:
        raise ValueError(f"port {address.port} does not exist; give one from {first_port} to {LARGEST_PORT}")
    return address


def size(text: str) -> int:
    """A number of bytes; K, M and G are powers of 1024."""
    match = re.fullmatch(r"([0-9]{1,19})([KMG]?)", text.upper())
    if match is None:
        raise ValueError("not a size; give a whole number of bytes, or one with K, M or G behind it, such as 512M")
    value = int(match[1]) * _FACTORS[match[2]]
    if value > LARGEST_SIZE:
        raise ValueError("more than any machine has; give a size such as 512M")
    return value


def size_from(lowest: int, text: str, or_zero: bool = False) -> int:
    """A size of at least `lowest` bytes, or 0 where that is something of its own."""
    value = size(text)
    if value < lowest and not (or_zero and value == 0):
        raise ValueError(f"too little; give {lowest >> 20}M or more" + (", or 0" if or_zero else ""))
    return value


def rate(text: str) -> int | None:
    """Bytes per second, as a size, with or without "/s"; None for "off"."""
    if text.lower() == "off":
        return None
    value = size(text.removesuffix("/s"))
    if value < SLOWEST_RATE:
        raise ValueError(f"slower than {SLOWEST_RATE >> 10}K/s: a frame would take minutes; give more, or off")
    return value


def seconds(text: str) -> float:
    """A time in seconds, more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_TIME:
        raise ValueError("not a time; give a number of seconds above 0, such as 30")
    return value


def seconds_or_never(text: str) -> float | None:
    """The same; None for "never"."""
    return None if text.lower() == "never" else seconds(text)


def uid(text: str) -> int:
    """The number of a user."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > LARGEST_UID:
        raise ValueError(f"not the number of a user; give one from 0 to {LARGEST_UID}, as `id -u NAME` prints it")
    return int(text)


def inherited_socket(text: str) -> int:
    """The number of a descriptor that is open here: a connected stream socket."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < FIRST_INHERITED:
        raise ValueError(
            f"not the number of a descriptor; give that of an inherited socket, {FIRST_INHERITED} or above"
        )
    descriptor = int(text)
    try:
        with socket.socket(fileno=os.dup(descriptor)) as inherited:
            connected = inherited.type == socket.SOCK_STREAM and inherited.getpeername() is not None
    except OSError as error:
        raise ValueError(f"{error.strerror}; give the number of an inherited, connected stream socket") from error
    if not connected:
        raise ValueError("not a stream socket; give the number of an inherited, connected stream socket")
    return descriptor


def inherited_address(descriptor: int) -> Address:
    """Who is at the other end of an inherited socket."""
    with socket.socket(fileno=os.dup(descriptor)) as inherited:
        peer = inherited.getpeername()
    if inherited.family == socket.AF_UNIX:
        return Address(path=str(peer))
    return Address(str(peer[0]), int(peer[1]))


def _resolved(text: str, base: Path) -> Path:
    if "\0" in text:
        raise ValueError("no path has a NUL in it; give one without")
    return (base / text).resolve()


def directory(text: str, base: Path) -> str:
    """An existing directory, absolute and with its symlinks resolved.

    @param base: what a relative path starts from.
    """
    path = _resolved(text, base)
    if not path.is_dir():
        raise ValueError(f"no directory {path}; create it first, or give another")
    return str(path)


def file(text: str, base: Path) -> Path:
    """An existing file, absolute and with its symlinks resolved."""
    path = _resolved(text, base)
    if not path.is_file():
        raise ValueError(f"no file {path}; give one that is there")
    return path


def attached(text: str, base: Path, dialect: str) -> Attached:
    """DIR or DIR=NAMESPACE; the last "=" parts them."""
    path, parted, namespace = text.rpartition("=")
    if not parted:
        path, namespace = text, _resolved(text, base).name
    if not path:
        raise ValueError("names no directory; give DIR or DIR=NAMESPACE")
    try:
        check_name(namespace, "namespace")
    except errors.Invalid as error:
        raise ValueError(f"{error.reason}; give DIR=NAMESPACE with 1 to 255 of A-Z a-z 0-9 . _ -") from error
    return Attached(directory(path, base), namespace if parted else None, dialect)


def state(text: str, base: Path) -> Path:
    """A directory that need not exist yet."""
    path = _resolved(text, base)
    if not text or (path.exists() and not path.is_dir()):
        raise ValueError("not a directory; give one, it is created when it is missing")
    return path


def dedup(text: str) -> Dedup:
    """What is held, and sent, once."""
    try:
        return Dedup(text)
    except ValueError:
        raise ValueError(f"give one of {', '.join(one.value for one in Dedup)}") from None


def pem_file(text: str, base: Path) -> Path:
    """A file, absolute and with its symlinks as they are: it may be replaced. It is read when the daemon starts."""
    if "\0" in text or not text:
        raise ValueError("not a file; give one, such as criu-relay make-certs writes")
    return (base / text).absolute()


def peer_name(text: str) -> str:
    """A DNS name or an IP address that a certificate may carry."""
    try:
        return host_name(text, "the name")
    except errors.Invalid as error:
        raise ValueError(f"neither a DNS name nor an IP address; {error.hint}") from error


def available_memory() -> int:
    """Bytes that programs can still take without swapping: MemAvailable of /proc/meminfo, proc_meminfo(5)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
