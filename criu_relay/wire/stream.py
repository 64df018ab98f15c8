"""CRIU's `--stream` dialect, both sides; docs/protocol.md, "stream"."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from criu_relay.wire import stream_pb2
from criu_relay.wire.descriptors import DescriptorReader
from criu_relay.wire.framing import frame
from criu_relay.wire.messages import parse
from criu_relay.wire.names import check_name, from_peer

REQUEST = "stream request"


@dataclass(frozen=True)
class ImageOffered:
    """CRIU writes the image `name` to a pipe; `descriptor` is its read end."""

    name: str
    descriptor: int


@dataclass(frozen=True)
class ImageWanted:
    """CRIU asks for the image `name`; L{ServeReader.answer} comes next."""

    name: str


@dataclass(frozen=True)
class DescriptorPassed:
    """CRIU reads the image `name` from a pipe; `descriptor` is its write end."""

    name: str
    descriptor: int


def _image_name(body: bytes) -> str:
    return from_peer(check_name, parse(stream_pb2.Request, body, REQUEST).filename, f"{REQUEST}: field filename")


class CaptureReader(DescriptorReader[ImageOffered]):
    """The dump's side: requests, each with a descriptor, and no answers."""

    def __init__(self) -> None:
        super().__init__(REQUEST)
        self._name: str | None = None

    @property
    def at_boundary(self) -> bool:
        """Nothing is half received: no part of a request, no request without its descriptor."""
        return self._name is None and not self._reader.pending

    def _advance(self) -> list[ImageOffered]:
        events: list[ImageOffered] = []
        while True:
            if self._name is None:
                body = self._reader.take_message()
                if body is None:
                    return events
                self._name = _image_name(body)
            descriptor = self._take_descriptor()
            if descriptor is None:
                return events
            events.append(ImageOffered(self._name, descriptor))
            self._name = None


class _Serve(enum.Enum):
    REQUEST = "a request comes next"
    ANSWER = "our answer comes next"
    DESCRIPTOR = "a descriptor comes next"


class ServeReader(DescriptorReader[ImageWanted | DescriptorPassed]):
    """The restore's side: request, answer, descriptor, one after the other."""

    def __init__(self) -> None:
        super().__init__(REQUEST)
        self._name = ""
        self._state = _Serve.REQUEST

    @property
    def at_boundary(self) -> bool:
        """Nothing is half received: no part of a request, no promised descriptor. A request may be unanswered."""
        return self._state is not _Serve.DESCRIPTOR and not self._reader.pending

    def answer(self, exists: bool) -> bytes:
        """Answer the request.

        @param exists: True: a descriptor comes next, False: the next request does.
        @return: the bytes to send.
        @raise RuntimeError: no request waits for an answer.
        """
        if self._state is not _Serve.ANSWER:
            raise RuntimeError("no request waits for an answer")
        self._state = _Serve.DESCRIPTOR if exists else _Serve.REQUEST
        return frame(stream_pb2.Reply(exists=exists))

    def _advance(self) -> list[ImageWanted | DescriptorPassed]:
        if self._state is _Serve.DESCRIPTOR:
            descriptor = self._take_descriptor()
            if descriptor is None:
                return []
            self._state = _Serve.REQUEST
            return [DescriptorPassed(self._name, descriptor)]
        if self._state is _Serve.REQUEST:
            body = self._reader.take_message()
            if body is None:
                return []
            self._name = _image_name(body)
            self._state = _Serve.ANSWER
            self._refuse_data("before the request was answered")
            return [ImageWanted(self._name)]
        self._refuse_data("before the request was answered")
        return []
