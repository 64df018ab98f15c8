"""The commands of the manhole. Each returns what the prompt shows; none takes longer than a few rows of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twisted.logger import Logger

from criu_relay.admin.inspected import IInspected
from criu_relay.admin.manhole.listing import ROWS, Listing, Page, Question, Row, Step, tabulated
from criu_relay.admin.show import NAMESPACE_HEADS, namespace_row
from criu_relay.admin.text import size, span
from criu_relay.errors import Invalid
from criu_relay.wire.magic import identify
from criu_relay.wire.names import check_name
from criu_relay.wire.pagemap import PAGE, PagemapReader

FIRST_BYTES = 64
"""Of an image, for C{show}: its magic numbers and the first fields of its first message."""

TOP = 20
"""Images that C{top} shows: a screen of them."""

PIECE = 8 << 10
"""Bytes of a pagemap that are taken apart in one turn: some 500 entries."""

COLUMN = 16
"""Bytes in a line of hexadecimal digits."""


class Commands:
    """What is to be said at the prompt of one session.

    @ivar control: what is looked at.
    """

    log = Logger()

    def __init__(self, control: IInspected, key: str) -> None:
        """@param key: fingerprint of who is there, for the log."""
        self.control = control
        self._key = key

    def table(self) -> dict[str, Callable[..., object]]:
        """The commands by name."""
        names = ("namespaces", "images", "show", "pagemap", "waiting", "links", "discard", "top")
        return {name: getattr(self, name) for name in names}

    def namespaces(self, first: int = 0) -> Listing:
        """namespaces(first=0): every namespace, with its state

        first: how many to leave out, when there are more than one listing shows.
        """
        page = Page(self.control.each_namespace(), first, namespace_row)
        return page.listing(NAMESPACE_HEADS, "no namespaces", "namespaces(first={})")

    def images(self, ns: str, first: int = 0) -> Listing:
        """images(ns, first=0): the images of a namespace

        With the memory that they take, and how many read them now.
        first: how many to leave out, when there are more than one listing shows.

        >>> images("web")
        """
        page = Page(self.control.each_image(check_name(ns, "namespace")), first, _image_row)
        heads = ["IMAGE", "BYTES:", "MEMORY:", "READERS:", "STATE"]
        return page.listing(heads, f"{ns} has no images", f"images({ns!r}, first={{}})")

    def show(self, ns: str, image: str) -> Listing:
        """show(ns, image): one image: size, held, readers, kind and magic, first bytes

        image: NAME in the newest snapshot, or N/NAME.

        >>> show("web", "inventory.img")
        >>> show("web", "1/pages-1.img")
        """
        snapshot, name = parse_image(image)
        return Listing(self._show(check_name(ns, "namespace"), snapshot, name))

    def _show(self, ns: str, snapshot: int | None, name: str) -> Iterator[Step]:
        row = self.control.image(ns, snapshot, name)
        yield f"{ns} {row['snapshot']}/{row['name']}: {row['size']} bytes ({size(row['size'])})"
        yield f"held     {_held(row)}"
        yield f"readers  {row['readers']}"
        yield f"digest   {row['digest'] or 'none'}"
        if row["memory"] is None:
            return
        head: list[bytes] = []
        yield self.control.peek(ns, snapshot, name, 0, FIRST_BYTES).addCallback(head.append)
        magic = identify(head[0])
        yield "kind     " + (f"{magic.kind}, magic {magic.value:#010x}" if magic else "no magic number of CRIU: raw")
        yield from hexadecimal(head[0])

    def pagemap(self, ns: str, pid: int) -> Listing:
        """pagemap(ns, pid): which pages of a task a snapshot has, from its pagemap

        Of the newest snapshot. pid: of the task when it was dumped, as in the name of pagemap-PID.img.

        >>> pagemap("web", 4711)
        """
        if type(pid) is not int or pid < 1:
            raise Invalid(f"{pid!r} is not a pid", hint="give the number in the name of pagemap-PID.img")
        return Listing(self._pagemap(check_name(ns, "namespace"), f"pagemap-{pid}.img"))

    def _pagemap(self, ns: str, name: str) -> Iterator[Step]:
        size_in_all, offset, count = self.control.image(ns, None, name)["size"], 0, 0
        reader = PagemapReader()
        yield f"{'ADDRESS':<18}  {'PAGES':>10}  {'BYTES':>6}  IN"
        while offset < size_in_all:
            data: list[bytes] = []
            yield self.control.peek(ns, None, name, offset, PIECE).addCallback(data.append)
            for entry in reader.feed(data[0]):
                count += 1
                pages, where = entry.stop - entry.start, "this snapshot" if entry.present else "its parent"
                line = f"{entry.start * PAGE:#018x}  {pages:>10}  {size(pages * PAGE):>6}  {where}"
                yield line if count <= ROWS else None
            offset += len(data[0]) or size_in_all
        reader.finish()
        cut = f", of which {ROWS} are shown" if count > ROWS else ""
        yield f"{count} entries{cut}; {size(reader.present * PAGE)} in this snapshot (pages-{reader.pages_id}.img)"

    def waiting(self, first: int = 0) -> Listing:
        """waiting(first=0): restores that wait for a namespace to be committed"""
        page = Page(self.control.waiting(), first, _waiting_row)
        return page.listing(["NAMESPACE", "IMAGE", "PID:", "SINCE:"], "nobody waits", "waiting(first={})")

    def links(self) -> Listing:
        """links(): the link, and who is at its other end"""
        return Listing(self._links(self.control.link()))

    @staticmethod
    def _links(link: dict[str, Any]) -> Iterator[Step]:
        yield f"{link['state']} {link['endpoint']}" + (f": {link['error']}" if link["error"] else "")
        heads = ["PEER", "ADDRESS", "FOR:", "BYTES:", "TRIP:", "IO"]
        yield from tabulated(heads, map(_peer_row, link["peers"]), "no peers")

    def discard(
        self,
        ns: str,
        image: str | None = None,
        offset: int | None = None,
        length: int | None = None,
        yes: bool = False,
    ) -> object:
        """discard(ns, image=None, offset=None, length=None, yes=False): throw away a namespace, an image, or a part

        It asks back unless yes=True. A part gives back the whole pages that lie in it. At a proxy only a namespace
        that is open can be discarded, which aborts it.

        >>> discard("web")
        >>> discard("web", "1/pages-1.img", offset=0, length=1 << 20, yes=True)
        """
        snapshot, name = parse_image(image) if image is not None else (None, None)
        if image is None and (offset is not None or length is not None):
            raise Invalid("offset and length are of an image", hint="name the image")
        for what, value in (("offset", offset), ("length", length)):
            if value is not None and (type(value) is not int or value < 0):
                raise Invalid(f"{what} {value!r} is not a number of bytes", hint="give one from 0")
        what = self._named(check_name(ns, "namespace"), snapshot, name)
        if offset is not None or length is not None:
            what = f"{'the rest' if length is None else f'{length} bytes'} from {offset or 0} on of {what}"

        def act() -> object:
            count = self.control.discard(ns, snapshot, name, offset, length)["bytes"]
            self.log.warn("manhole: {key} discarded {what}: {bytes} bytes", key=self._key, what=what, bytes=count)
            return Listing([f"{count} bytes given back"])

        return act() if yes else Question(f"discard {what}", act)

    def _named(self, ns: str, snapshot: int | None, name: str | None) -> str:
        if name is None:
            row = self.control.described(ns)
            return f"namespace {ns} ({row['state']}, {size(row['bytes'])} in {row['images']} images)"
        row = self.control.image(ns, snapshot, name)
        return f"image {row['snapshot']}/{name} of {ns} ({size(row['size'])})"

    def top(self) -> Listing:
        """top(): the images that take most memory, of all namespaces"""
        rows = self._largest()
        return Listing(tabulated(["NAMESPACE", "IMAGE", "MEMORY:", "BYTES:", "READERS:", "STATE"], rows, "no images"))

    def _largest(self) -> Iterator[Row]:
        largest: list[tuple[int, int, Sequence[str]]] = []
        count = 0
        for namespace in self.control.each_namespace():
            yield None
            for image in self.control.each_image(namespace["name"]):
                yield None
                count += 1
                weight = image["memory"] if image["memory"] is not None else image["size"]
                if len(largest) < TOP or weight > largest[0][0]:
                    cells = _image_row(image)
                    row = [namespace["name"], cells[0], cells[2], cells[1], *cells[3:]]
                    (heapq.heappush if len(largest) < TOP else heapq.heapreplace)(largest, (weight, count, row))
        yield from (row for _, _, row in sorted(largest, reverse=True))


def parse_image(text: str) -> tuple[int | None, str]:
    """NAME, or N/NAME in snapshot N.

    @raise Invalid: it is neither.
    """
    index, parted, name = text.rpartition("/")
    if parted and not (index.isascii() and index.isdigit() and len(index) < 10 and int(index) > 0):
        raise Invalid(f"{text[:60]!a} is neither NAME nor N/NAME", hint='write "pages-1.img", or "2/pages-1.img"')
    return (int(index) if parted else None), check_name(name, "image name")


def hexadecimal(data: bytes) -> Iterator[str]:
    """Bytes as hexadecimal digits and characters, a line for each L{COLUMN} of them.

    >>> list(hexadecimal(b"CRIU"))
    ['00000000  43 52 49 55                                      CRIU']
    """
    for at in range(0, len(data), COLUMN):
        piece = data[at : at + COLUMN]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{at:08x}  {piece.hex(' '):<{COLUMN * 3 - 1}}  {shown}"


def _image_row(image: dict[str, Any]) -> list[str]:
    memory = "-" if image["memory"] is None else size(image["memory"])
    state = "complete" if image["complete"] else "being written"
    return [f"{image['snapshot']}/{image['name']}", size(image["size"]), memory, str(image["readers"]), state]


def _held(image: dict[str, Any]) -> str:
    state = "complete" if image["complete"] else "being written"
    return state if image["memory"] is None else f"{state}, {size(image['memory'])} of memory"


def _waiting_row(one: dict[str, Any]) -> list[str]:
    return [one["namespace"], one["image"], str(one["pid"] or "-"), span(one["seconds"])]


def _peer_row(one: dict[str, Any]) -> list[str]:
    trip = "-" if one["round_trip_ms"] is None else f"{one['round_trip_ms']:.1f} ms"
    return [one["name"], one["address"], span(one["since_s"]), size(one["bytes"]), trip, one["io"]]
