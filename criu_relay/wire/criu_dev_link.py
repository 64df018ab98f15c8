"""CRIU's own old link, `criu image-proxy` to `criu image-cache`; docs/protocol.md, "criu-dev link"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire import criu_dev_link_pb2
from criu_relay.wire.framing import MAX_MESSAGE, frame
from criu_relay.wire.messages import parse
from criu_relay.wire.names import check_label, check_name, from_peer
from criu_relay.wire.payload import PayloadReader, PayloadSink
from criu_relay.wire.remote_images import MAX_SNAPSHOTS, OpenMode, open_mode

WHAT = "remote image header"

MAX_SIZE = 1 << 47
"""Bytes in an image: no task has a larger address space (x86-64, four-level page tables)."""

MAX_IMAGES = 1 << 16
"""Images on one connection, as the size of each is kept (an append states the total): about 20 MiB at the most."""

OLD_MAX_SIZE = (1 << 31) - 1
"""Bytes in an image that the old peers can take: they keep a size in an int."""


@dataclass(frozen=True)
class Header:
    """An image, or more of one, begins.

    @ivar size: the image's size when this payload is there; the payload may be less, for an append.
    @ivar payload: bytes of payload that follow.
    """

    name: str
    snapshot_id: str
    mode: OpenMode
    size: int
    payload: int


class HeaderHandler(Protocol):
    """Who gets the images."""

    def header_received(self, header: Header) -> PayloadSink | None:
        """A header is complete and valid.

        @return: where its payload goes (`done` is called at once for an empty one); None: it is dropped.
        """


class HeaderReader(PayloadReader):
    """Takes the old link apart. The connection may end where C{at_boundary} is True; anywhere else it was cut."""

    def __init__(self, handler: HeaderHandler) -> None:
        super().__init__(WHAT, MAX_MESSAGE)
        self._handler = handler
        self._images = 0
        self._sizes: dict[str, dict[str, int]] = {}

    def _header(self, body: bytes) -> tuple[int, PayloadSink | None]:
        message = parse(criu_dev_link_pb2.RemoteImage, body, WHAT)
        name = from_peer(check_name, message.name, f"{WHAT}: field name")
        snapshot_id = from_peer(check_label, message.snapshot_id, f"{WHAT}: field snapshot_id")
        mode = open_mode(message.open_mode, WHAT)
        if mode is OpenMode.READ:
            raise ProtocolError(f"{WHAT}: field open_mode is 0, but nothing is read over this link")
        payload = self._payload(name, snapshot_id, mode, message.size)
        return payload, self._handler.header_received(Header(name, snapshot_id, mode, message.size, payload))

    def _payload(self, name: str, snapshot_id: str, mode: OpenMode, size: int) -> int:
        """How much payload follows; remembers the image's new size."""
        if size > MAX_SIZE:
            raise ProtocolError(f"{WHAT}: field size is {size}, more than {MAX_SIZE}")
        sizes = self._sizes.get(snapshot_id)
        if sizes is None:
            # One more than the labels: the list of snapshots itself has the empty one.
            if len(self._sizes) > MAX_SNAPSHOTS:
                raise ProtocolError(f"{WHAT}: more than {MAX_SNAPSHOTS} snapshots on one connection")
            sizes = self._sizes[snapshot_id] = {}
        before = sizes.get(name)
        if before is None:
            self._images += 1
            if self._images > MAX_IMAGES:
                raise ProtocolError(f"{WHAT}: more than {MAX_IMAGES} images on one connection")
        sent = before or 0 if mode is OpenMode.APPEND else 0
        if size < sent:
            raise ProtocolError(f"{WHAT}: field size is {size} after an append, but {sent} bytes were there before")
        sizes[name] = size
        return size - sent


def encode_header(name: str, snapshot_id: str, mode: OpenMode, size: int) -> bytes:
    """Encode a header. Send it in one write: the old peers fail on one that comes in pieces.

    @param size: the image's size with the payload that follows; for APPEND that includes what was sent before.
    @raise Invalid: the old peers cannot take it: an image without bytes or of 2 GiB and more; or a wrong name.
    """
    check_name(name, "image name")
    check_label(snapshot_id, "snapshot_id")
    if mode is OpenMode.READ:
        raise Invalid("nothing is read over CRIU's old link")
    if not 1 <= size <= OLD_MAX_SIZE:
        raise Invalid(
            f"image {name} has {size} bytes, which criu image-cache cannot take",
            hint=f"it takes 1 to {OLD_MAX_SIZE}; link to a criu-relay-cache instead",
        )
    return frame(criu_dev_link_pb2.RemoteImage(name=name, snapshot_id=snapshot_id, open_mode=int(mode), size=size))
