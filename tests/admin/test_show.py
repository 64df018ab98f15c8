"""What people read: tables within 80 columns, whatever is in them."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from criu_relay.admin import show
from criu_relay.admin.client import Refused
from criu_relay.admin.text import note, plain, shortened, size, span, table
from criu_relay.admin.watch import Watch


@pytest.mark.parametrize(("count", "text"), [
    (0, "0"), (999, "999"), (1000, "1.0K"), (1024, "1.0K"), (1536, "1.5K"), (102296, "99.9K"), (102400, "100K"),
    (1023 * 1024, "1.0M"), (300 << 20, "300M"), (5 << 30, "5.0G"), (5 << 40, "5120G"),
])  # fmt: skip
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0.0 s"), (0.25, "0.2 s"), (9.94, "9.9 s"), (42.9, "42 s"), (60, "1 min"), (3599, "59 min"),
    (3600, "1 h 0 min"), (4000, "1 h 6 min"), (86400, "1 d 0 h"), (200000, "2 d 7 h"),
])  # fmt: skip
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_nothing_a_terminal_obeys() -> None:
    assert plain("a\x1b[2J\r\n\x9b\u202eb") == "a?[2J????b"


def test_shortened() -> None:
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789a", 10) == "0123..789a"


def test_table_is_aligned_and_fits() -> None:
    lines = table(["NAME", "BYTES:"], [["x" * 200, "1"], ["y", "22"]])
    assert [len(line) for line in lines] == [80, 80, 80]
    assert lines[0].endswith("BYTES") and lines[1].endswith("     1") and lines[2].startswith("y ")


def test_every_column_gives_way() -> None:
    lines = table(["A", "B", "C:"], [["x" * 50, "y" * 60, "123"]])
    assert max(map(len, lines)) == 80
    assert lines[1].endswith("  123") and ".." in lines[1]


def test_note_of_nothing() -> None:
    assert note("-> ", "") == []


def test_note_wraps() -> None:
    lines = note("-> ", "word " * 40)
    assert len(lines) > 1 and all(len(line) <= 80 and line.startswith("    ") for line in lines)


def busy(make: Any) -> dict[str, Any]:
    """A status with everything in it."""
    hint = "criu-relay commit db --force, when the source is lost for good"
    answer: dict[str, Any] = make["status"](
        "cache",
        attachments=[{"directory": "/srv/" + "d" * 90, "namespace": "web", "dialect": "stream", "copy": True,
                      "device": 1, "inode": 2, "socket": "/s"}],
        namespaces=[
            make["namespace"]("w" * 255, "open", decided_s=None, bytes=3 << 30, expected=4 << 30, images=12345),
            make["namespace"]("db", "held", reason="the proxy alpha is away\x07", hint=hint, copy=True),
        ],
        waiting=[{"namespace": "web", "image": "inventory.img", "pid": 77, "seconds": 12.5}],
    )  # fmt: skip
    answer["link"] = {
        "state": "listening",
        "endpoint": "tcp:9876",
        "peers": [{"name": "alpha", "instance": "00", "address": "192.0.2.7:40000", "since_s": 70, "bytes": 3 << 30,
                   "io": "recvmsg_into"}],
        "error": "",
    }  # fmt: skip
    return answer


def test_status(make: Any) -> None:
    lines = show.status(busy(make))
    text = "\n".join(lines)
    assert all(len(line) <= 80 and line.isprintable() for line in lines), text
    assert "link listening tcp:9876" in lines
    assert "alpha  192.0.2.7:40000  1 min   3.0G  recvmsg_into" in lines
    assert "memory 3.0M of 256M, 1.0M recycled" in lines
    row = lines.index(next(line for line in lines if line.startswith("db")))
    assert lines[row].split() == ["db", "held", "copy", "1.0M", "2", "512K/s", "4.0", "s"]
    assert lines[row - 1].startswith("ww"), "a row without a reason has no remark"
    assert lines[row + 1] == "    the proxy alpha is away?"
    assert lines[row + 2] == "    -> criu-relay commit db --force, when the source is lost for good"
    assert "web        inventory.img   77   12 s" in lines


def test_status_of_nothing(make: Any) -> None:
    lines = show.status(make["status"]())
    assert lines[-1] == "nothing is attached: criu-relay attach DIR makes a directory that CRIU can use"


def test_which_ways_bytes_moved(make: Any) -> None:
    answer = make["status"]()
    answer["hops"] = {"criu": {"readv": 3 << 20}, "link": {"write": 3 << 20, "send": 512}, "refused": {"sendfile": 1}}
    assert "    moved: criu readv 3.0M; link write 3.0M, send 512; refused sendfile 1" in show.status(answer)


def test_status_of_a_broken_link(make: Any) -> None:
    answer = make["status"]()
    answer["link"] |= {"state": "connecting", "error": "connection refused"}
    assert show.status(answer)[1:3] == ["link connecting tcp:192.0.2.1:9876", "    connection refused"]


def test_rate(make: Any) -> None:
    assert show.rate(make["namespace"](bytes=100, age_s=10.0, decided_s=None)) == 10
    assert show.rate(make["namespace"](bytes=100, age_s=10.0, decided_s=5.0)) == 20
    assert show.rate(make["namespace"](bytes=100, age_s=0.0, decided_s=None)) == 0


def test_progress(make: Any) -> None:
    moving = make["namespace"](state="open", bytes=1 << 20, expected=11 << 20)
    assert show.progress(moving, 2 << 20) == "web open 1.0M of 11.0M 2.0M/s ETA 5.0 s"
    assert show.progress(moving | {"expected": None}, 0) == "web open 1.0M 0/s"
    assert show.progress(moving | {"bytes": 12 << 20}, 1) == "web open 12.0M of 11.0M 1/s ETA 0.0 s"
    assert show.progress(make["namespace"](state="aborted", reason="no room"), 9) == "web aborted 1.0M (no room)"


def test_images_of_nothing() -> None:
    assert show.images([]) == ["no namespaces"]


class Answers:
    """Stands in for a client: the answers of one look after the other."""

    def __init__(self, *statuses: Any, details: Any = None) -> None:
        self.statuses = list(statuses)
        self.details = details

    def call(self, method: str, path: str) -> Any:
        if path == "/v1/status":
            return self.statuses.pop(0)
        if self.details is None:
            raise Refused(404, "gone")
        return self.details


def test_watch_says_what_changes(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr("criu_relay.admin.watch.time.monotonic", lambda: next(times))
    looks = [
        make["status"](namespaces=[make["namespace"](state="open", bytes=count << 20, expected=10 << 20)])
        for count in (2, 4)
    ]
    looks.append(make["status"](namespaces=[make["namespace"]()]))
    out = io.StringIO()
    watch = Watch(Answers(*looks), False, out)  # type: ignore[arg-type]
    for _ in range(3):
        watch.look()
    assert out.getvalue().splitlines() == [
        "web open 2.0M of 10.0M 0/s",
        "web open 4.0M of 10.0M 2.0M/s ETA 3.0 s",
        "web committed 1.0M",
    ]


def test_watch_is_silent_when_nothing_changes(make: Any) -> None:
    out = io.StringIO()
    watch = Watch(Answers(*(make["status"](namespaces=[make["namespace"]()]) for _ in range(2))), False, out)  # type: ignore[arg-type]
    watch.look()
    said = out.getvalue()
    watch.look()
    assert out.getvalue() == said == "web committed 1.0M\n"


def drawn(watch: Watch, width: int = 80) -> list[str]:
    """What a terminal shows, without colours."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(watch.drawn())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("gone", [True, False])
def test_watch_in_a_terminal(make: Any, gone: bool) -> None:
    images = [{"name": f"i{n}.img", "size": 1024, "complete": n != 9, "digest": None} for n in range(10)]
    details = None if gone else {"snapshots": [{"index": 1, "label": "", "images": images}]}
    lines = drawn(
        Watch(
            Answers(make["status"](namespaces=[make["namespace"](state="open")]), details=details), False, io.StringIO()
        )
    )  # type: ignore[arg-type]
    assert lines[0] == "criu-relay-proxy 0.1.0, up 5 min"
    assert lines[1] == "link up tcp:192.0.2.1:9876"
    assert any(line.split() == ["1/i9.img", "writing", "1.0K"] for line in lines) is not gone
    assert any(line.split() == ["1/i2.img", "complete", "1.0K"] for line in lines) is not gone
    assert not any("1/i1.img" in line for line in lines)


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_watch_names_stay_readable(make: Any, width: int) -> None:
    names = ["web", "customer-database-1", "customer-database-2"]
    spaces = [make["namespace"](name, state="open", bytes=1 << 30, expected=4 << 30) for name in names]
    images = [{"name": "pages-1.img", "size": 4096, "complete": False, "digest": None}]
    details = {"snapshots": [{"index": 1, "label": "", "images": images}]}
    answer = make["status"](namespaces=spaces)
    lines = drawn(Watch(Answers(answer, details=details), False, io.StringIO()), width)  # type: ignore[arg-type]
    assert max(map(len, lines)) <= width
    head = next(index for index, line in enumerate(lines) if line.startswith("NAMESPACE"))
    cells = [re.split("  +", line.strip())[:2] for line in lines[head : head + 7]]
    assert [state for _, state in cells] == ["STATE", *["open", "writing"] * 3] or width == 20
    shown = [cell for cell, _ in cells[1::2]]
    assert shown[0] == "web" and len(set(shown)) == 3
    assert "…" not in "".join(shown)
    for name, cell in zip(names[1:], shown[1:], strict=True):
        assert cell == name or (len(cell) >= 12 and cell.endswith(name[-5:]) and cell.startswith(name[:5]))
    assert ("━" in "".join(lines[head:])) is (width >= 80)
    assert ("1.0G of 4.0G" in "".join(lines[head:])) is (width >= 40)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_watch_fits_the_terminal(make: Any, width: int) -> None:
    answer = busy(make)
    answer["namespaces"][0]["bytes"] = 1 << 30
    answer["failures"] = [
        {"at": 0.0, "what": "namespace x", "cause": "link", "reason": "cut [bold]\x1b[2J" + "r" * 300}
    ]
    lines = drawn(Watch(Answers(answer), False, io.StringIO()), width)  # type: ignore[arg-type]
    assert max(map(len, lines)) <= width
    assert "cut [bold]?[2J" in "\n".join(lines), "nothing is taken for markup, or obeyed"
    if width > 100:
        assert any(re.search("open ━+ 1.0G of 4.0G 0/s", " ".join(line.split())) for line in lines), lines
        assert "a restore waits for web since 12 s" in lines
        hint = "criu-relay commit db --force, when the source is lost for good"
        assert f"db: the proxy alpha is away? -> {hint}" in lines


def test_watch_tells_rate_and_time_left(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0])
    monkeypatch.setattr("criu_relay.admin.watch.time.monotonic", lambda: next(times))
    looks = [
        make["status"](namespaces=[make["namespace"](state="open", bytes=count << 20, expected=10 << 20)])
        for count in (2, 6)
    ]
    watch = Watch(Answers(*looks), False, io.StringIO())  # type: ignore[arg-type]
    drawn(watch)
    row = next(line for line in drawn(watch) if line.startswith("web"))
    assert row.endswith("6.0M of 10.0M  2.0M/s  2.0 s")
