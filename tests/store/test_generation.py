"""One generation: its table of states, what may be written, what the closing header must say."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from criu_relay.errors import Aborted, Conflict, NotFound, ProtocolError
from criu_relay.interfaces import Mode
from criu_relay.machine import Machine, mermaid
from criu_relay.store import generation as module
from criu_relay.store.generation import TABLE, Event, Generation, State
from tests.store.support import ALICE, Bench, digest

WAYS: dict[State, list[Event]] = {
    State.OPEN: [],
    State.HELD: [Event.VERIFIED],
    State.ABORTED: [Event.ABORT],
    State.COMMITTED: [Event.VERIFIED, Event.COMMIT],
    State.RESTORED: [Event.VERIFIED, Event.COMMIT, Event.RESTORE],
    State.DISCARDED: [Event.VERIFIED, Event.COMMIT, Event.DISCARD],
}


def in_state(state: State) -> tuple[Generation, list[Generation]]:
    decided: list[Generation] = []

    def no_image(number: int, snapshot: int, name: str) -> None:
        raise AssertionError

    made = Generation("web", 1, ALICE, b"m" * 16, False, "", 0.0, no_image, decided.append)  # type: ignore[arg-type]
    for event in WAYS[state]:
        made.feed(event)
    decided.clear()
    return made, decided


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state(state: State, event: Event) -> None:
    made, decided = in_state(state)
    assert made.state is state
    target = TABLE.get((state, event))
    assert made.machine.accepts(event) is (target is not None)
    if target is None:
        with pytest.raises(Conflict, match=r"namespace web is .*does not fit"):
            made.feed(event, "why")
        assert made.state is state
        assert made.reason == ""
        assert decided == []
    else:
        made.feed(event, "why")
        assert made.state is target
        assert made.reason == "why"
        assert decided == ([] if target is State.HELD else [made])


def test_only_a_held_one_is_committed() -> None:
    assert [state for state in State if (state, Event.COMMIT) in TABLE] == [State.HELD]


def test_nothing_follows_the_ends() -> None:
    for state in (State.ABORTED, State.DISCARDED):
        assert [event for event in Event if (state, event) in TABLE] == []


@pytest.mark.parametrize("state", State)
def test_decided(state: State) -> None:
    assert in_state(state)[0].decided is (state not in (State.OPEN, State.HELD))


@pytest.mark.parametrize("state", [state for state in State if state is not State.OPEN])
@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.add_snapshot(1, ""),
        lambda made: made.open_image(1, 1, "a", Mode.REPLACE),
        lambda made: made.writing(1, 0),
        lambda made: made.seal([]),
    ],
)
def test_only_an_open_one_is_written(state: State, change: Callable[[Generation], None]) -> None:
    with pytest.raises(Conflict, match="nothing can be added"):
        change(in_state(state)[0])


def test_the_machine_enters_after_its_state_is_set() -> None:
    seen: list[State] = []
    machine: Machine[State, Event] = Machine("it", TABLE, State.OPEN, lambda state: seen.append(machine.state))
    assert machine.feed(Event.VERIFIED) is State.HELD
    assert seen == [State.HELD]


def test_the_diagram_has_every_row() -> None:
    drawn = mermaid(TABLE, State.OPEN)
    for (state, event), target in TABLE.items():
        assert any(
            line.strip().startswith(f"{state.value} --> {target.value}:") and event.value in line
            for line in drawn.splitlines()
        )
    assert "[*] --> open" in drawn
    assert "aborted --> [*]" in drawn
    assert "discarded --> [*]" in drawn


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def made(bench: Bench) -> Generation:
    """An open one with one snapshot."""
    migration = bench.begin()
    bench.store.snapshot(ALICE, migration, 1, "first")
    return bench.generation(migration)


def fill(made: Generation, number: int, data: bytes, name: str = "a.img", snapshot: int = 1) -> None:
    made.open_image(number, snapshot, name, Mode.REPLACE)
    add(made, number, data)


def add(made: Generation, number: int, data: bytes) -> None:
    image = made.image(number)
    if data:
        image.reserve(len(data)).view[: len(data)] = data
        image.written(len(data))


@pytest.mark.parametrize("index", [0, 1, 3, 1 << 31])
def test_snapshots_have_no_gaps(made: Generation, index: int) -> None:
    with pytest.raises(ProtocolError, match="follows 1"):
        made.add_snapshot(index, "x")
    made.add_snapshot(2, "second")
    assert made.labels() == ["first", "second"]


def test_snapshots_are_bounded(made: Generation) -> None:
    for index in range(2, module.MAX_SNAPSHOTS + 1):
        made.add_snapshot(index, "")
    with pytest.raises(ProtocolError):
        made.add_snapshot(module.MAX_SNAPSHOTS + 1, "")


@pytest.mark.parametrize("snapshot", [0, 2, 1 << 31])
def test_an_image_of_no_snapshot(made: Generation, snapshot: int) -> None:
    with pytest.raises(ProtocolError, match="not declared"):
        made.open_image(1, snapshot, "a", Mode.REPLACE)


def test_numbers_are_used_once(made: Generation) -> None:
    made.open_image(1, 1, "a", Mode.REPLACE)
    for name in ("a", "b"):
        with pytest.raises(ProtocolError, match="used twice"):
            made.open_image(1, 1, name, Mode.REPLACE)


def test_images_are_bounded(made: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 3)
    for number in range(3):
        made.open_image(number, 1, f"{number}", Mode.REPLACE)
    with pytest.raises(ProtocolError, match="more than 3"):
        made.open_image(3, 1, "3", Mode.REPLACE)


@pytest.mark.parametrize(
    ("number", "snapshot", "name", "ended"),
    [(2, 1, "a.img", True), (1, 2, "a.img", True), (1, 1, "b.img", True), (1, 1, "a.img", False)],
)
def test_append_is_to_what_ended(made: Generation, number: int, snapshot: int, name: str, ended: bool) -> None:
    fill(made, 1, b"abc")
    if ended:
        made.image(1).finish(3, None)
    with pytest.raises(ProtocolError):
        made.open_image(number, snapshot, name, Mode.APPEND)
    assert made.image(1).complete is ended


def test_append(made: Generation) -> None:
    fill(made, 1, b"abc")
    made.image(1).finish(3, digest(b"abc"))
    made.open_image(1, 1, "a.img", Mode.APPEND)
    assert made.find(None, "a.img") is None
    assert made.writing(1, 3) is made.image(1)
    add(made, 1, b"de")
    made.image(1).finish(5, digest(b"abcde"))
    assert made.total == 5


def test_a_rewrite_replaces(bench: Bench, made: Generation) -> None:
    fill(made, 1, b"abc")
    made.image(1).finish(3, None)
    old = made.image(1)
    fill(made, 2, b"defg")
    assert old.dropped
    with pytest.raises(ProtocolError, match="no image number 1"):
        made.image(1)
    assert [image.number for image in made.images()] == [2]
    assert made.total == 4


def test_the_same_name_in_two_snapshots(made: Generation) -> None:
    made.add_snapshot(2, "second")
    fill(made, 1, b"abc")
    fill(made, 2, b"defg", snapshot=2)
    for number, size in ((1, 3), (2, 4)):
        made.image(number).finish(size, None)
    found = [made.find(label, "a.img") for label in ("first", "second", None, "third")]
    assert [image and image.number for image in found] == [1, 2, 2, None]


def test_two_snapshots_of_one_label_mean_the_newer(made: Generation) -> None:
    made.add_snapshot(2, "first")
    fill(made, 1, b"old")
    made.image(1).finish(3, None)
    assert made.find("first", "a.img") is None


@pytest.mark.parametrize("offset", [0, 2, 4, 1 << 62])
def test_extents_have_no_gaps(made: Generation, offset: int) -> None:
    fill(made, 1, b"abc")
    with pytest.raises(ProtocolError, match="ends at 3"):
        made.writing(1, offset)
    assert made.writing(1, 3) is made.image(1)


def test_nothing_is_added_to_a_complete_image(made: Generation) -> None:
    fill(made, 1, b"abc")
    made.image(1).finish(3, None)
    with pytest.raises(ProtocolError):
        made.writing(1, 3)


def test_at(made: Generation) -> None:
    made.add_snapshot(2, "second")
    fill(made, 1, b"abc")
    fill(made, 2, b"defg", name="b.img", snapshot=2)
    assert made.at(1, "a.img")[1].number == 1
    assert made.at(None, "b.img")[1].number == 2
    for snapshot, name in ((None, "a.img"), (0, "a.img"), (3, "a.img"), (-1, "b.img"), (1, "b.img")):
        with pytest.raises(NotFound):
            made.at(snapshot, name)


ROWS = [(1, "a.img", 3, digest(b"abc")), (1, "b.img", 0, digest(b"")), (1, "c.img", 2, None)]


def sealable(made: Generation) -> Generation:
    for number, (data, row) in enumerate(zip((b"abc", b"", b"xy"), ROWS, strict=True), 1):
        fill(made, number, data, name=row[1])
        made.image(number).finish(row[2], row[3])
    return made


def test_a_fitting_header(made: Generation) -> None:
    sealable(made).seal(list(reversed(ROWS)))
    assert made.state is State.HELD
    assert made.held_bytes == made.total == 5


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "does not list"),
        (ROWS[:2], "does not list c.img"),
        ([*ROWS, (1, "d.img", 0, None)], "d.img .* missing"),
        ([*ROWS, ROWS[0]], "a.img .* missing"),
        ([(2, *ROWS[0][1:]), *ROWS[1:]], "a.img .* missing"),
        ([(0, *ROWS[0][1:]), *ROWS[1:]], "a.img .* missing"),
        ([(1, "a.img", 4, ROWS[0][3]), *ROWS[1:]], "a.img .* not what"),
        ([(1, "a.img", 3, digest(b"abd")), *ROWS[1:]], "a.img .* not what"),
        ([(1, "a.img", 3, None), *ROWS[1:]], "a.img .* not what"),
        ([*ROWS[:2], (1, "c.img", 2, digest(b"xy"))], "c.img .* not what"),
    ],
)
def test_a_header_that_does_not_fit(made: Generation, rows: list, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        sealable(made).seal(rows)
    assert made.state is State.OPEN
    assert made.held_bytes is None


def test_an_image_that_is_not_complete(made: Generation) -> None:
    sealable(made)
    fill(made, 9, b"abc", name="d.img")
    with pytest.raises(ProtocolError, match="not complete"):
        made.seal([*ROWS, (1, "d.img", 3, None)])
    assert made.state is State.OPEN


def test_a_namespace_without_images(made: Generation) -> None:
    made.seal([])
    assert made.state is State.HELD
    assert made.total == 0


def test_a_digest_that_differs_leaves_the_image_incomplete(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"abc", end=False)
    with pytest.raises(Aborted):
        bench.store.end_image(ALICE, migration, 1, 3, digest(b"xyz"))
    with pytest.raises(ProtocolError):
        bench.seal(migration)
