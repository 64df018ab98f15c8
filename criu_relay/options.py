"""The options of both services: `twistd criu-relay-proxy --help`, `twistd criu-relay-cache --help`.

What comes out of them is L{ProxySettings} and L{CacheSettings}. Whatever is wrong raises
L{twisted.python.usage.UsageError} with one line that says what to give instead.
"""

from __future__ import annotations

import getopt
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from twisted.python import usage

from criu_relay import __version__, values
from criu_relay.admin.rundir import state_directory
from criu_relay.console_options import CONSOLE_PARAMETERS, consoles
from criu_relay.given import Given, Keys
from criu_relay.given import one as _one
from criu_relay.given import parameter as _parameter
from criu_relay.memory_options import DEFAULT_DEDUP, MEMORY_FLAGS, MEMORY_PARAMETERS, policy_of
from criu_relay.settings import Attached, CacheSettings, ProxySettings, Tls
from criu_relay.store.policy import Dedup

__all__ = ["CacheOptions", "CacheSettings", "ProxyOptions", "ProxySettings"]

T = TypeVar("T")

SMALLEST_BUFFER = 2**20
"""Bytes: the largest payload of one frame of the link must fit."""

DEFAULT_LINK_PORT = 9876
DEFAULT_WINDOW = "256M"
DEFAULT_WARM = "256M"
DEFAULT_IDLE = "3600"
DEFAULT_LINK_TIMEOUT = "30"

REPEATABLE = ("stream", "images", "allow-uid", "tls-peer")

TLS_FILES = ("tls-cert", "tls-key", "tls-ca")
"""All three or none."""

TYPES: dict[str, tuple[type, ...]] = {
    "link-fd": (int,),
    "allow-uid": (int,),
    "idle": (int, float),
    "link-timeout": (int, float),
    "ttl": (str, int, float),
    "memory": (str, int),
    "warm": (str, int),
    "window": (str, int),
    "rate": (str, int),
}
"""What TOML may have for an option; the others take text."""


class _RelayOptions(usage.Options):
    """What both services have in common: the options, and how they are put together.

    @cvar role: "proxy" or "cache".
    @cvar examples: the end of --help.
    @cvar exclusive: options that stand in for one another.
    @cvar default_link: endpoint description.
    @cvar activated: options that a socket of systemd with that name stands in for.
    """

    role: ClassVar[str]
    examples: ClassVar[str]
    exclusive: ClassVar[tuple[str, ...]]
    default_link: ClassVar[str]
    activated: ClassVar[tuple[str, ...]] = ("control",)

    optFlags: ClassVar[list[list[str | None]]] = [
        ["insecure", None, "allow a plain link that leaves this machine: anyone on its way can read and change it"],
    ]
    optParameters: ClassVar[list[list[str | None]]] = [
        _parameter("link-fd", "number of an inherited, connected stream socket, instead of --link"),
        _parameter(
            "state",
            "directory for what must outlive this process",
            "$XDG_STATE_HOME/criu-relay, else /var/lib/criu-relay",
        ),
        _parameter("idle", "abort an open namespace without a client after so many seconds", DEFAULT_IDLE),
        _parameter("link-timeout", "give up a link without an answer after so many seconds", DEFAULT_LINK_TIMEOUT),
        _parameter("tls-cert", "PEM file with our certificate: the link is under mutual TLS 1.3"),
        _parameter("tls-key", "PEM file with the certificate's private key"),
        _parameter("tls-ca", "PEM file with the CA that the peer's certificate must be from"),
        *CONSOLE_PARAMETERS,
        _parameter("config", "TOML file: its keys are the long names of these options; the command line wins"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._is_wrong = False
        for name in REPEATABLE:
            self[name] = []

    def opt_stream(self, value: str) -> None:
        """DIR[=NAMESPACE]: bind the socket of `criu --stream -D DIR` there; repeatable"""
        self["stream"].append(value)

    def opt_images(self, value: str) -> None:
        """DIR[=NAMESPACE]: bind the socket of `criu --remote -D DIR` there; repeatable"""
        self["images"].append(value)

    def opt_allow_uid(self, value: str) -> None:
        """number of a user whose criu may connect, besides root and our own; repeatable"""
        self["allow-uid"].append(value)

    def opt_tls_peer(self, value: str) -> None:
        """DNS name or IP address that the peer's certificate must carry one of; repeatable"""
        self["tls-peer"].append(value)

    def opt_version(self) -> None:
        """Display the version and exit."""
        print(f"criu_relay {__version__}")
        sys.exit(0)

    def getSynopsis(self) -> str:
        """See L{usage.Options}."""
        return f"Usage: twistd [-n --pidfile=] criu-relay-{self.role} [options]"

    def getUsage(self, width: int | None = None) -> str:
        """See L{usage.Options}: with examples; after an error, which twistd prints below it, where to find all that."""
        if self._is_wrong:
            return f"Its options: twistd criu-relay-{self.role} --help"
        return f"{super().getUsage(width)}\n{self.examples}"

    def parseOptions(self, options: Any = None) -> None:
        """See L{usage.Options}."""
        self._arguments = options
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            self._is_wrong = True
            if isinstance(error.__context__, getopt.GetoptError):
                raise usage.UsageError(f"{error}; give one that --help lists, as it is shown there") from error
            raise

    def _parsed_again(self) -> Self:
        made = type(self)()
        made.parseOptions(self._arguments)
        return made

    def parseArgs(self, *rest: str) -> None:
        """See L{usage.Options}: everything here is an option."""
        if rest:
            raise usage.UsageError(f"{rest[0]!r}: not an option; give directories as --stream DIR or --images DIR")

    def postOptions(self) -> None:
        """See L{usage.Options}: whatever is wrong comes to light here, not when the service starts."""
        self._build(self._collect())

    def _build(self, given: dict[str, list[Given]]) -> None:
        """Make the settings."""
        raise NotImplementedError

    def _link_address(self, text: str) -> values.Address:
        """Where the link endpoint `text` leads to."""
        raise NotImplementedError

    def _collect(self) -> dict[str, list[Given]]:
        """The values by option: those of the command line, else those of the file.

        What stands in for an option on the command line also wins over that option in the file.
        """
        here = Path.cwd()
        typed = {
            name: [Given(f"--{name}", str(value), here) for value in (entry if isinstance(entry, list) else [entry])]
            for name, entry in self.items()
            if entry not in (None, 0, [])
        }
        stored = self._file_keys().load(here / self["config"]) if self["config"] is not None else {}
        sockets = {name: endpoint for name in self.activated if (endpoint := values.activated(name))}
        stored = {name: [Given("LISTEN_FDNAMES", text, here)] for name, text in sockets.items()} | stored
        if any(name in typed for name in self.exclusive):
            stored = {name: given for name, given in stored.items() if name not in self.exclusive}
        together = stored | typed
        rivals = [f"--{name}" for name in self.exclusive if name in together]
        if len(rivals) > 1:
            raise usage.UsageError(f"{' and '.join(rivals)} exclude each other; give one of them")
        return together

    def _file_keys(self) -> Keys:
        flags = {name for name in self.longOpt if not name.endswith("=")} - {"help", "version"}
        return Keys(flags, REPEATABLE, TYPES, set(self) - {"config"})

    def _common(self, given: dict[str, list[Given]]) -> dict[str, Any]:
        """The fields of L{criu_relay.settings.Settings}."""
        insecure = "insecure" in given
        tls = self._tls(given)
        for item in given.get("link", ()):
            self._check_link(item, item.read(self._link_address), insecure or tls is not None)
        for item in given.get("criu-dev-link", ()):
            self._check_link(item, item.read(self._link_address), insecure)
        for item in given.get("link-fd", ()):
            address = values.inherited_address(item.read(values.inherited_socket))
            self._check_link(item, address, insecure or tls is not None)
        default_link = None if any(name in given for name in self.exclusive) else self.default_link
        return {
            "link": _one(given, "link", str, default_link),
            "link_fd": _one(given, "link-fd", values.inherited_socket, None),
            "criu_dev_link": _one(given, "criu-dev-link", str, None),
            "state": self._state(given),
            "attachments": _attachments(given),
            **consoles(given, self.role, insecure),
            "insecure": insecure,
            "idle": _one(given, "idle", values.seconds, float(DEFAULT_IDLE)),
            "allow_uids": frozenset(item.read(values.uid) for item in given.get("allow-uid", ())),
            "link_timeout": _one(given, "link-timeout", values.seconds, float(DEFAULT_LINK_TIMEOUT)),
            "tls": tls,
        }

    def _tls(self, given: dict[str, list[Given]]) -> Tls | None:
        some = [item for name in (*TLS_FILES, "tls-peer") for item in given.get(name, ())[-1:]]
        missing = [f"--{name}" for name in TLS_FILES if name not in given]
        if not some:
            return None
        if missing:
            raise some[0].wrong(f"TLS needs all of its files; give {' and '.join(missing)} as well")
        certificate, key, authorities = (
            given[name][-1].read(partial(values.pem_file, base=given[name][-1].base)) for name in TLS_FILES
        )
        peers = tuple(dict.fromkeys(item.read(values.peer_name) for item in given.get("tls-peer", ())))
        return Tls(certificate, key, authorities, peers or self._default_peers(given, some[0]))

    def _default_peers(self, given: dict[str, list[Given]], tls: Given) -> tuple[str, ...]:
        """The names that the peer's certificate may carry when none was given; empty: any."""
        raise NotImplementedError

    @staticmethod
    def _check_link(item: Given, address: values.Address, insecure: bool) -> None:
        if not insecure and not address.is_local:
            where = f"the host {address.host}" if address.host else "every address of this machine"
            raise item.wrong(
                f"{where} is beyond loopback and the link is plain; give --tls-cert, --tls-key and --tls-ca, or"
                " a loopback address, or --insecure as well"
            )

    @staticmethod
    def _state(given: dict[str, list[Given]]) -> Path:
        if "state" not in given:
            return Path(state_directory())
        item = given["state"][-1]
        return item.read(partial(values.state, base=item.base))


def _attachments(given: dict[str, list[Given]]) -> tuple[Attached, ...]:
    found: dict[tuple[str, str], Attached] = {}
    for dialect in ("stream", "images"):
        for item in given.get(dialect, ()):
            attached = item.read(partial(values.attached, base=item.base, dialect=dialect))
            if found.setdefault((attached.directory, dialect), attached) is not attached:
                raise item.wrong(f"the directory {attached.directory} was given before; give it once")
    return tuple(found.values())


class ProxyOptions(_RelayOptions):
    """Options of `twistd criu-relay-proxy`, on the machine that a process leaves."""

    role = "proxy"
    exclusive = ("link", "link-fd", "criu-dev-link")
    default_link = f"tcp:127.0.0.1:{DEFAULT_LINK_PORT}"
    longdesc = (
        "Takes the images that criu dumps on this machine and sends them, while it still writes them, to the"
        " criu-relay-cache of the machine where they are restored."
    )
    examples = (
        "Examples:\n"
        "    twistd -n --pidfile= criu-relay-proxy --stream /run/web\n"
        "    criu dump -t PID -D /run/web --stream --action-script $(command -v criu-relay-action)\n"
    )
    optParameters: ClassVar[list[list[str | None]]] = [
        _parameter("link", "endpoint of the cache", default_link),
        _parameter(
            "window",
            "bytes kept until the cache has them, such as 64M; 0 keeps none and sends no digests",
            DEFAULT_WINDOW,
        ),
        _parameter("dedup", "off: send everything; zero or pages: leave out pages of zeros", DEFAULT_DEDUP),
        _parameter("rate", "bytes per second on the link, such as 100M/s, or off", "off"),
        _parameter(
            "control", "endpoint of the control API", "$XDG_RUNTIME_DIR/criu-relay/proxy.sock, else in /run/criu-relay"
        ),
        _parameter("criu-dev-link", "endpoint of CRIU's own image-cache, instead of --link"),
    ]

    def settings(self) -> ProxySettings:
        """What was given. Call it after parseOptions."""
        return self._settings

    def again(self) -> ProxySettings:
        """What the same command line means now that its file may say something else."""
        return self._parsed_again().settings()

    def _link_address(self, text: str) -> values.Address:
        return values.client_address(text)

    def _default_peers(self, given: dict[str, list[Given]], tls: Given) -> tuple[str, ...]:
        if "criu-dev-link" in given:
            raise tls.wrong("CRIU's own image-cache knows no TLS; leave the TLS options out, or give --link")
        if "link-fd" in given:
            raise tls.wrong("nothing tells the name of who is at the end of --link-fd; give --tls-peer NAME")
        host = self._link_address(given["link"][-1].text if "link" in given else self.default_link).host
        return (values.peer_name(host or ""),)

    def _build(self, given: dict[str, list[Given]]) -> None:
        window = _one(given, "window", partial(values.size_from, SMALLEST_BUFFER, or_zero=True), None)
        self._settings = ProxySettings(
            window=values.size(DEFAULT_WINDOW) if window is None else window,
            leave_out_zeros=_one(given, "dedup", values.dedup, Dedup.ZERO) is not Dedup.OFF,
            rate=_one(given, "rate", values.rate, None),
            **self._common(given),
        )


class CacheOptions(_RelayOptions):
    """Options of `twistd criu-relay-cache`, on the machine that a process moves to."""

    role = "cache"
    exclusive = ("link", "link-fd")
    default_link = f"tcp:{DEFAULT_LINK_PORT}:interface=127.0.0.1"
    activated = ("control", "link")
    longdesc = (
        "Receives images from criu-relay-proxy, keeps them in memory and hands them to criu restore once the"
        " migration is committed; until then criu restore waits."
    )
    examples = (
        "Examples:\n"
        "    twistd -n --pidfile= criu-relay-cache --stream /run/web --memory 4G\n"
        "    criu restore -D /run/web --stream --action-script $(command -v criu-relay-action)\n"
    )
    optFlags: ClassVar[list[list[str | None]]] = MEMORY_FLAGS
    optParameters: ClassVar[list[list[str | None]]] = [
        _parameter("link", "endpoint to listen on", default_link),
        _parameter("memory", "bytes that images may take, such as 4G", "half of the available memory"),
        _parameter(
            "warm",
            "bytes of free memory kept ready: as much as is migrated at once",
            f"{DEFAULT_WARM}; with --release none",
        ),
        *MEMORY_PARAMETERS,
        _parameter(
            "control", "endpoint of the control API", "$XDG_RUNTIME_DIR/criu-relay/cache.sock, else in /run/criu-relay"
        ),
        _parameter("criu-dev-link", "endpoint to listen on for CRIU's own image-proxy, besides --link"),
    ]

    def settings(self) -> CacheSettings:
        """What was given. Call it after parseOptions."""
        return self._settings

    def again(self) -> CacheSettings:
        """See L{ProxyOptions.again}."""
        return self._parsed_again().settings()

    def _link_address(self, text: str) -> values.Address:
        return values.server_address(text)

    def _default_peers(self, given: dict[str, list[Given]], tls: Given) -> tuple[str, ...]:
        return ()

    def _build(self, given: dict[str, list[Given]]) -> None:
        memory = _one(given, "memory", partial(values.size_from, SMALLEST_BUFFER), None)
        warm = _one(given, "warm", values.size, None)
        policy = policy_of(given)
        self._settings = CacheSettings(
            memory=values.available_memory() // 2 if memory is None else memory,
            warm=(0 if policy.release else values.size(DEFAULT_WARM)) if warm is None else warm,
            policy=policy,
            **self._common(given),
        )
