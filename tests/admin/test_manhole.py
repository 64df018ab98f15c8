"""The prompt of the manhole on a terminal in memory: commands, listings in turns, questions, completion."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.conch.insults.insults import ServerProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from criu_relay.admin.manhole.commands import Commands, hexadecimal, parse_image
from criu_relay.admin.manhole.listing import ROWS, ROWS_PER_TURN
from criu_relay.admin.manhole.shell import Shell
from criu_relay.errors import Conflict, Invalid
from criu_relay.wire.pagemap import MAGIC, PARENT, PRESENT
from criu_relay.wire.pagemap_pb2 import Entry, Head

KEY = "SHA256:abc"
UP, LEFT, TAB, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\t", "\x03", "\x04"


class Turns(Clock):
    """A clock on which what is called later is called in another turn, as a reactor does it."""

    TURN = 0.001

    def callLater(self, when: float, function: Any, *arguments: Any, **keywords: Any) -> Any:
        return super().callLater(max(when, self.TURN), function, *arguments, **keywords)


class Prompt:
    """A session with somebody typing."""

    def __init__(self, control: Any) -> None:
        self.clock = Turns()
        self.transport = StringTransport()
        self.left = 0
        self.shell = Shell(Commands(control, KEY), "hello", {"extra": 41}, self.clock)
        self.shell.leave = self._leave
        self.server = ServerProtocol(lambda: self.shell)
        self.server.makeConnection(self.transport)

    def _leave(self) -> None:
        self.left += 1

    def type(self, text: str) -> None:
        self.server.dataReceived(text.encode())

    def turn(self) -> None:
        self.clock.advance(Turns.TURN)

    @property
    def screen(self) -> str:
        """All that was written since the last look at L{says}, without escape sequences."""
        return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|E)", lambda found: "\n" if found[0] == "\x1bE" else "",
                      self.transport.value().decode()).replace("\r\n", "\n")  # fmt: skip

    def says(self, line: str) -> str:
        """What comes of a line, without its echo and the prompt."""
        self.transport.clear()
        self.type(line + "\r")
        while self.clock.getDelayedCalls():
            self.turn()
        return self.screen.partition("\n")[2].removesuffix(">>> ").rstrip("\n")


@pytest.fixture
def full(control: Any, make: Any) -> Any:
    """A control of a cache with two namespaces and three images."""
    control.role = "cache"
    names = ["pages-1.img", "core-7.img", "inventory.img"]
    images = [{"name": name, "size": 5000, "complete": name != "pages-1.img", "digest": "0f" * 16} for name in names]
    control.state["namespaces"] = [make["namespace"]("web", "open"), make["namespace"]("db")]
    for name in ("web", "db"):
        control.details[name] = make["namespace"](name) | {"snapshots": [{"index": 2, "label": "", "images": images}]}
        control.images[name, 1, "inventory.img"] = control.images[name, 2, "inventory.img"] = bytes.fromhex(
            "1943565416313158"
        ) + bytes(range(100))
    return control


@pytest.fixture
def prompt(full: Any) -> Prompt:
    return Prompt(full)


def test_greeting(prompt: Prompt) -> None:
    lines = prompt.screen.splitlines()
    assert lines[0] == "hello" and lines[-1] == ">>> "
    assert {line.split()[0] for line in lines[1:-2]} == set(prompt.shell._commands)
    assert max(map(len, lines)) <= 80


def test_it_is_python(prompt: Prompt) -> None:
    assert prompt.says("extra + 1") == "42"
    assert prompt.says("x = [name for name in namespaces()]") == ""
    assert prompt.says("len(x)") == "3"
    assert prompt.says("1 / 0").endswith("ZeroDivisionError: division by zero")
    assert prompt.says("def f(:").endswith("SyntaxError: invalid syntax")


def test_tables(prompt: Prompt) -> None:
    assert prompt.says("namespaces()").splitlines() == [
        "NAMESPACE  STATE      BYTES  IMAGES    RATE    AGE",
        "web        open        1.0M       2  512K/s  4.0 s",
        "db         committed   1.0M       2  512K/s  4.0 s",
    ]
    assert prompt.says("images('web')").splitlines()[:2] == [
        "IMAGE            BYTES  MEMORY  READERS  STATE",
        "2/pages-1.img     4.9K    4.0K        0  being written",
    ]
    assert prompt.says("waiting()") == "nobody waits"
    assert prompt.says("links()").splitlines() == ["up tcp:192.0.2.1:9876", "no peers"]


def test_two_listings_on_a_line_come_one_after_the_other(prompt: Prompt) -> None:
    said = prompt.says("waiting(); links()").splitlines()
    assert said == ["nobody waits", "up tcp:192.0.2.1:9876", "no peers"]


def test_show(prompt: Prompt, full: Any) -> None:
    said = prompt.says("show('web', '2/inventory.img')")
    assert "web 2/inventory.img: 5000 bytes (4.9K)" in said
    assert "kind     inventory, magic 0x58313116" in said
    assert "00000000  19 43 56 54 16 31 31 58 00 01" in said
    assert full.calls[-1] == ("peek", "web", 2, "inventory.img", 0, 64)


def test_show_waits_for_what_takes_time(prompt: Prompt, full: Any) -> None:
    full.outcomes["peek"] = None
    prompt.type("show('web', 'inventory.img')\r")
    prompt.turn()
    assert "digest" in prompt.screen and "kind" not in prompt.screen.rpartition("digest")[2]
    prompt.type("extra\r")
    prompt.turn()
    assert "\n41" not in prompt.screen, "what is typed meanwhile waits"
    full.pending[-1].callback(b"\0" * 8)
    for _ in range(5):
        prompt.turn()
    assert prompt.screen.splitlines()[-3:] == [
        "00000000  00 00 00 00 00 00 00 00" + " " * 26 + "........",
        ">>> 41",
        ">>> ",
    ]


def pagemap(*entries: tuple[int, int, int]) -> bytes:
    """A pagemap as CRIU writes it: address, pages and flags of each entry."""
    messages = [Head(pages_id=3), *(Entry(vaddr=at, compat_nr_pages=0, nr_pages=n, flags=f) for at, n, f in entries)]
    bodies = [message.SerializeToString() for message in messages]
    return MAGIC + b"".join(struct.pack("<I", len(body)) + body for body in bodies)


class TestPagemap:
    def put(self, full: Any, data: bytes) -> None:
        full.images["web", 1, "pagemap-7.img"] = data
        image = {"name": "pagemap-7.img", "size": len(data), "complete": True}
        full.details["web"]["snapshots"][0]["images"] = [image]

    def test_entries(self, prompt: Prompt, full: Any) -> None:
        self.put(full, pagemap((0x400000, 3, PRESENT), (0x7F0000000000, 256, PARENT)))
        assert prompt.says("pagemap('web', 7)").splitlines() == [
            "ADDRESS                  PAGES   BYTES  IN",
            "0x0000000000400000           3   12.0K  this snapshot",
            "0x00007f0000000000         256    1.0M  its parent",
            "2 entries; 12.0K in this snapshot (pages-3.img)",
        ]

    def test_a_long_one_is_cut_and_takes_turns(self, prompt: Prompt, full: Any) -> None:
        self.put(full, pagemap(*((at << 13, 1, PRESENT) for at in range(1, 3001))))
        said = prompt.says("pagemap('web', 7)").splitlines()
        assert len(said) == ROWS + 2
        assert said[-1] == "3000 entries, of which 1000 are shown; 11.7M in this snapshot (pages-3.img)"
        pieces = [call for call in full.calls if call[0] == "peek"]
        assert len(pieces) > 3 and all(call[5] == 8192 for call in pieces)

    @pytest.mark.parametrize("data", [b"", b"nonsense" * 9, pagemap((0x400000, 3, PRESENT))[:-1]])
    def test_what_is_none(self, prompt: Prompt, full: Any, data: bytes) -> None:
        self.put(full, data)
        assert prompt.says("pagemap('web', 7)").splitlines()[-1].startswith("pagemap: it ")

    @pytest.mark.parametrize("pid", ["'7'", "0", "True", "7.0"])
    def test_not_a_pid(self, prompt: Prompt, pid: str) -> None:
        assert "is not a pid: give the number" in prompt.says(f"pagemap('web', {pid})")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images('none')", "no namespace none: criu-relay status lists them"),
        ("show('web', 'none.img')", "namespace web has no image none.img"),
        ("show('web', 'x/y')", '\'x/y\' is neither NAME nor N/NAME: write "pages-1.img", or "2/pages-1.img"'),
        ("discard('web', offset=1)", "offset and length are of an image: name the image"),
        ("discard('web', 'core-7.img', -1)", "offset -1 is not a number of bytes: give one from 0"),
        ("discard('../x')", None),
    ],
)
def test_errors_are_one_line(prompt: Prompt, full: Any, line: str, said: str | None) -> None:
    shown = prompt.says(line)
    assert "\n" not in shown
    assert shown == said if said is not None else "namespace" in shown
    assert not [call for call in full.calls if call[0] == "discard"]


def test_an_image_that_cannot_be_read(prompt: Prompt, full: Any) -> None:
    full.outcomes["peek"] = Conflict("the bytes at 0 were discarded")
    assert prompt.says("show('web', 'inventory.img')").splitlines()[-1] == "the bytes at 0 were discarded"
    assert prompt.says("extra") == "41"


class TestDiscard:
    @pytest.fixture
    def seen(self) -> Iterator[list[Any]]:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        yield events
        globalLogPublisher.removeObserver(events.append)

    @pytest.mark.parametrize("answer", ["y", "YES", " yes "])
    def test_yes(self, prompt: Prompt, full: Any, answer: str, seen: list[Any]) -> None:
        prompt.says("discard('web', 'core-7.img', offset=4096)")
        assert prompt.screen.endswith("\ndiscard the rest from 4096 on of image 2/core-7.img of web (4.9K)? [y/N] ")
        assert not [call for call in full.calls if call[0] == "discard"]
        assert prompt.says(answer) == "4096 bytes given back"
        assert full.calls[-1] == ("discard", "web", None, "core-7.img", 4096, None)
        (event,) = (event for event in seen if "discarded" in event.get("log_format", ""))
        assert event["key"] == KEY and event["bytes"] == 4096

    @pytest.mark.parametrize("answer", ["", "n", "discard", "yes please"])
    def test_no(self, prompt: Prompt, full: Any, answer: str, seen: list[Any]) -> None:
        prompt.says("discard('web')")
        assert prompt.screen.endswith("\ndiscard namespace web (committed, 1.0M in 2 images)? [y/N] ")
        assert prompt.says(answer) == "nothing was done"
        assert prompt.says("extra") == "41"
        assert not [call for call in full.calls if call[0] == "discard"]
        assert not [event for event in seen if "discarded" in event.get("log_format", "")]

    def test_at_once(self, prompt: Prompt, full: Any) -> None:
        assert prompt.says("discard('web', yes=True)") == "4096 bytes given back"
        assert full.calls[-1] == ("discard", "web", None, None, None, None)

    def test_refused(self, prompt: Prompt, full: Any) -> None:
        prompt.says("discard('web')")
        full.error = Conflict("web is being read", hint="try again later")
        assert prompt.says("y") == "web is being read: try again later"

    def test_ctrl_c_is_no(self, prompt: Prompt, full: Any) -> None:
        prompt.says("discard('web')")
        prompt.type(CTRL_C)
        assert prompt.says("extra") == "41"
        assert not [call for call in full.calls if call[0] == "discard"]


class TestTurns:
    """Nothing that a large cache makes long is done in one turn of the reactor."""

    @pytest.fixture
    def many(self, full: Any, make: Any) -> Any:
        images = [{"name": f"i{n:05}.img", "size": n, "complete": True, "digest": None} for n in range(2500)]
        full.details["web"] = make["namespace"]() | {"snapshots": [{"index": 1, "label": "", "images": images}]}
        return full

    def test_a_turn_prints_no_more_than_its_share(self, prompt: Prompt, many: Any) -> None:
        prompt.type("images('web')\r")
        shown, most, turns = prompt.screen.count(".img"), 0, 0
        assert shown == 0
        while prompt.clock.getDelayedCalls():
            prompt.turn()
            most = max(most, prompt.screen.count(".img") - shown)
            shown, turns = prompt.screen.count(".img"), turns + 1
        assert shown == ROWS
        # The first turn has those that the columns are made for besides its own.
        assert most <= 2 * ROWS_PER_TURN
        assert turns >= ROWS // ROWS_PER_TURN

    def test_the_rest(self, prompt: Prompt, many: Any) -> None:
        assert prompt.says("images('web')").splitlines()[-1] == "... there is more: images('web', first=1000)"
        said = prompt.says("images('web', first=2000)").splitlines()
        assert len(said) == 501 and said[1].startswith("1/i02000.img") and said[-1].startswith("1/i02499.img")

    def test_ctrl_c_stops_it(self, prompt: Prompt, many: Any) -> None:
        prompt.type("images('web')\r")
        prompt.turn()
        prompt.type(CTRL_C)
        shown = prompt.screen.count(".img")
        while prompt.clock.getDelayedCalls():
            prompt.turn()
        assert prompt.screen.count(".img") == shown < ROWS
        assert prompt.says("extra") == "41"

    def test_so_does_a_terminal_that_is_gone(self, prompt: Prompt, many: Any) -> None:
        prompt.type("images('web')\r")
        prompt.turn()
        prompt.server.connectionLost(Failure(ConnectionDone()))
        shown = prompt.screen.count(".img")
        while prompt.clock.getDelayedCalls():
            prompt.turn()
        assert prompt.screen.count(".img") == shown

    def test_top_looks_at_all_and_shows_the_largest(self, prompt: Prompt, many: Any) -> None:
        for image in many.details["web"]["snapshots"][0]["images"]:
            image["memory"] = image["size"]
        prompt.type("top()\r")
        turns = 0
        while prompt.clock.getDelayedCalls():
            prompt.turn()
            turns += 1
        assert turns > 2500 // ROWS_PER_TURN
        rows = prompt.screen.splitlines()[-21:-1]
        assert [row.split()[:2] for row in rows[:4]] == [
            ["db", "2/inventory.img"],
            ["db", "2/core-7.img"],
            ["db", "2/pages-1.img"],
            ["web", "1/i02499.img"],
        ]


class TestHelp:
    @pytest.mark.parametrize("line", ["help", "help()"])
    def test_overview(self, prompt: Prompt, line: str) -> None:
        said = prompt.says(line)
        for name in prompt.shell._commands:
            assert f"  {name}" in said

    def test_of_each(self, prompt: Prompt) -> None:
        for name in prompt.shell._commands:
            said = prompt.says(f"help({name})")
            assert said.startswith(f"{name}(")
            assert prompt.says(f"help({name})") == said

    def test_of_anything(self, prompt: Prompt) -> None:
        assert prompt.says("help(len)").startswith("Return the number of items")


class TestCompletion:
    @pytest.mark.parametrize(
        ("typed", "line"),
        [
            ("ima", "images("),
            ("images('w", "images('web'"),
            ("show('web', 'inv", "show('web', 'inventory.img'"),
            ("show('web', '2/p", "show('web', '2/pages-1.img'"),
            ("extra.bit_c", "extra.bit_count("),
            ("x = nam", "x = namespaces("),
        ],
    )
    def test_of_one(self, prompt: Prompt, typed: str, line: str) -> None:
        prompt.type(typed + TAB)
        assert b"".join(prompt.shell.lineBuffer).decode().rstrip("()") == line.rstrip("()")

    def test_of_several(self, prompt: Prompt) -> None:
        prompt.type("show('web', '" + TAB)
        assert "core-7.img'" in prompt.screen and "inventory.img'" in prompt.screen
        assert prompt.screen.endswith(">>> show('web', '")

    def test_of_nothing(self, prompt: Prompt) -> None:
        before = prompt.screen
        prompt.type("show('none', 'x" + TAB)
        assert prompt.screen == before + "show('none', 'x"


def test_history_and_editing(prompt: Prompt) -> None:
    assert prompt.says("extra") == "41"
    assert prompt.says(UP + " + 2") == "43"
    assert prompt.says("1x3" + LEFT + "\x7f" + "+") == "4"


@pytest.mark.parametrize("typed", [CTRL_D, "exit()\r", "quit()\r"])
def test_leaving(prompt: Prompt, typed: str) -> None:
    prompt.type(typed)
    assert prompt.left == 1
    assert b"\x1b[4l" in prompt.transport.value(), "the terminal is as it was"


@pytest.mark.parametrize("turns", range(6))
def test_eof_leaves_when_all_is_answered(prompt: Prompt, turns: int) -> None:
    """Whenever it comes: also when the first is printed and the next is not begun."""
    prompt.type("namespaces()\rextra\r")
    for _ in range(turns):
        prompt.turn()
    prompt.shell.eof()
    while prompt.clock.getDelayedCalls():
        prompt.turn()
    assert prompt.left == 1
    assert "\n>>> 41" in prompt.screen


def test_eof_does_not_wait_for_nothing(prompt: Prompt) -> None:
    prompt.shell.eof()
    assert prompt.left == 1


def test_a_line_has_an_end(prompt: Prompt) -> None:
    prompt.type("x" * 10000)
    assert len(prompt.shell.lineBuffer) == 4096


@pytest.mark.parametrize(("text", "parsed"), [("a.img", (None, "a.img")), ("12/a.img", (12, "a.img"))])
def test_parse_image(text: str, parsed: tuple[int | None, str]) -> None:
    assert parse_image(text) == parsed


@pytest.mark.parametrize("text", ["", "0/a", "-1/a", "a/b", "1/", "..", "1" * 11 + "/a", "1/2/a", "\u0663/a"])
def test_not_an_image(text: str) -> None:
    with pytest.raises(Invalid):
        parse_image(text)


def test_hexadecimal() -> None:
    assert list(hexadecimal(b"CRIU" + bytes(13))) == [
        "00000000  43 52 49 55 00 00 00 00 00 00 00 00 00 00 00 00  CRIU............",
        "00000010  00" + " " * 47 + ".",
    ]
