"""What the two services are told, typed: what L{criu_relay.options} makes of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from criu_relay.store.policy import Policy


class Attached(NamedTuple):
    """One directory that CRIU's socket is bound in.

    @ivar directory: absolute, symlinks resolved.
    @ivar namespace: None: the directory's own name.
    @ivar dialect: "stream" or "images".
    """

    directory: str
    namespace: str | None
    dialect: str


class Tls(NamedTuple):
    """Mutual TLS on the link.

    @ivar certificate: PEM file; ours, and those between it and the CA.
    @ivar key: PEM file of its private key.
    @ivar authorities: PEM file of the CAs that are believed.
    @ivar peers: names of which the peer's certificate must carry one; empty: any.
    """

    certificate: Path
    key: Path
    authorities: Path
    peers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What both services are told.

    @ivar link: endpoint description; None when `link_fd` or, at the proxy, `criu_dev_link` stands in for it.
    @ivar link_fd: an inherited, connected stream socket.
    @ivar criu_dev_link: endpoint of CRIU's own image-proxy or image-cache.
    @ivar state: directory; need not exist.
    @ivar attachments: where CRIU's sockets are bound from the start.
    @ivar control: endpoint description of the control API.
    @ivar metrics: endpoint description of what may be looked at; None: only at `control`.
    @ivar manhole: endpoint description of the SSH console; None: there is none.
    @ivar manhole_keys: file of the public keys that may enter it.
    @ivar insecure: plain links beyond this machine are allowed.
    @ivar idle: seconds after which an open namespace without a client aborts.
    @ivar allow_uids: users, besides our own and root, who may connect to CRIU's sockets.
    @ivar link_timeout: seconds without the peer after which a link is given up.
    @ivar tls: None: the link is plain.
    """

    link: str | None
    link_fd: int | None
    criu_dev_link: str | None
    state: Path
    attachments: tuple[Attached, ...]
    control: str
    metrics: str | None
    manhole: str | None
    manhole_keys: Path | None
    insecure: bool
    idle: float
    allow_uids: frozenset[int]
    link_timeout: float
    tls: Tls | None


@dataclass(frozen=True, kw_only=True)
class ProxySettings(Settings):
    """What the proxy is told.

    @ivar window: bytes kept until the cache has them; 0: nothing is kept.
    @ivar rate: bytes of image data per second on the link; None: as fast as it goes.
    @ivar leave_out_zeros: pages of zeros are not sent.
    """

    window: int
    rate: int | None
    leave_out_zeros: bool


@dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
    """What the cache is told.

    @ivar memory: bytes that images may take.
    @ivar warm: bytes of free memory that are kept ready.
    @ivar policy: what is done with it when there is a choice.
    """

    memory: int
    warm: int
    policy: Policy
