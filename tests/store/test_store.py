"""The store: owners, ids, decisions, generations, and where memory goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from criu_relay.errors import Conflict, Forbidden, NotFound, OutOfMemory, ProtocolError, RelayError
from criu_relay.interfaces import IIntake, Mode
from criu_relay.store import store as module
from criu_relay.store.generation import State
from criu_relay.store.namespace import HISTORY
from criu_relay.store.store import Store
from tests.store.support import ALICE, ALICE_TWO, BOB, MIB, Bench, digest, number, outcome


@pytest.fixture
def bench() -> Bench:
    return Bench()


def states(bench: Bench, name: str = "web") -> list[str]:
    return [generation.state.value for generation in bench.store.namespaces[name].generations]


def test_interface() -> None:
    assert IIntake.implementedBy(Store)


def test_from_begin_to_commit(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"abc")
    assert bench.seal(migration) == 3
    assert bench.store.held(ALICE) == [(migration, "web", 3)]
    assert bench.store.decide(ALICE, migration, True, "") is True
    assert bench.store.held(ALICE) == []
    assert states(bench) == ["committed"]
    assert bench.counters.values["namespaces_committed"] == 1


def test_the_source_is_remembered(bench: Bench) -> None:
    migration = number(1)
    bench.store.begin(ALICE, migration, "web", True, "web1")
    assert bench.store.known("web").source == "web1"
    assert bench.store.known("web").copy
    bench.store.seal(ALICE, migration, [], "python3 (pid 1) on web1")
    assert bench.store.known("web").source == "python3 (pid 1) on web1"


def test_an_empty_source_forgets_nothing(bench: Bench) -> None:
    bench.store.begin(ALICE, number(1), "web", True, "web1")
    bench.store.seal(ALICE, number(1), [], "")
    assert bench.store.known("web").source == "web1"


CALLS: list[Callable[[Store, Any, bytes], object]] = [
    lambda store, owner, migration: store.snapshot(owner, migration, 2, ""),
    lambda store, owner, migration: store.open_image(owner, migration, 2, 1, "b", Mode.REPLACE),
    lambda store, owner, migration: store.writing(owner, migration, 1, 3),
    lambda store, owner, migration: store.end_image(owner, migration, 1, 3, None),
    lambda store, owner, migration: store.seal(owner, migration, [], ""),
    lambda store, owner, migration: store.read(owner, migration, 1, 0, 3),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_migration_that_is_not_there(bench: Bench, call: Callable[[Store, Any, bytes], object]) -> None:
    with pytest.raises(ProtocolError, match="never begun"):
        call(bench.store, ALICE, number(7))


@pytest.mark.parametrize("owner", [BOB, ALICE_TWO])
@pytest.mark.parametrize("call", [*CALLS, lambda store, owner, migration: store.decide(owner, migration, False, "")])
def test_a_migration_of_somebody_else(bench: Bench, owner: Any, call: Callable[..., object]) -> None:
    migration = bench.begin()
    bench.write(migration, b"abc", end=False)
    with pytest.raises(Forbidden):
        call(bench.store, owner, migration)
    assert states(bench) == ["open"]


def test_a_decision_on_what_is_not_there(bench: Bench) -> None:
    assert bench.store.decide(ALICE, number(7), True, "") is None
    assert bench.store.decide(ALICE, number(7), False, "") is None


def test_an_id_is_used_once(bench: Bench) -> None:
    migration = bench.begin()
    for owner in (ALICE, BOB):
        for name in ("web", "other"):
            with pytest.raises(ProtocolError, match="began twice"):
                bench.store.begin(owner, migration, name, False, "")


def test_an_id_is_not_used_again_after_a_decision(bench: Bench) -> None:
    migration = bench.committed()
    with pytest.raises(ProtocolError):
        bench.store.begin(ALICE, migration, "web", False, "")


@pytest.mark.parametrize("commit", [True, False])
def test_what_was_decided_stays_decided(bench: Bench, commit: bool) -> None:
    migration = bench.held()
    assert bench.store.decide(ALICE, migration, commit, "why") is commit
    for again in (commit, not commit):
        assert bench.store.decide(ALICE, migration, again, "other") is commit
    assert states(bench) == ["committed" if commit else "aborted"]


def test_an_open_one_cannot_be_committed(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"abc")
    with pytest.raises(Conflict):
        bench.store.decide(ALICE, migration, True, "")
    assert states(bench) == ["open"]


def test_an_abort_gives_the_memory_back(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"x" * (2 * MIB + 1))
    assert bench.arena.used > 2 * MIB
    assert bench.store.decide(ALICE, migration, False, "the script failed") is False
    bench.settle()
    assert bench.arena.used == 0
    assert bench.store.known("web").reason == "the script failed"


def test_reading_back_while_open(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"0123456789", end=False)
    assert bench.store.read(ALICE, migration, 1, 0, 10) == b""
    bench.store.end_image(ALICE, migration, 1, 10, None)
    assert bench.store.read(ALICE, migration, 1, 3, 4) == b"3456"
    assert bench.store.read(ALICE, migration, 1, 8, 100) == b"89"
    bench.store.open_image(ALICE, migration, 2, 1, "pages-1.img", Mode.REPLACE)
    assert bench.store.read(ALICE, migration, 1, 0, 1) == b"", "it was replaced"


# The link


def test_a_lost_link_aborts_only_what_is_open(bench: Bench) -> None:
    opened, held, committed = bench.begin("a"), bench.held(name="b"), bench.committed(name="c")
    bench.store.link_lost(ALICE, [opened, held, committed, number(99)], "cut")
    assert [states(bench, name) for name in "abc"] == [["aborted"], ["held"], ["committed"]]
    assert bench.store.known("a").reason == "cut"


def test_a_lost_link_aborts_nothing_of_others(bench: Bench) -> None:
    migration = bench.begin()
    bench.store.link_lost(BOB, [migration], "cut")
    assert states(bench) == ["open"]


def test_held_is_per_owner(bench: Bench) -> None:
    first = bench.held(name="a")
    bench.begin("b")
    bench.committed(name="c")
    second = bench.held(name="d", owner=BOB)
    third = bench.held(name="e", owner=ALICE_TWO)
    assert bench.store.held(ALICE) == [(first, "a", 4)]
    assert bench.store.held(BOB) == [(second, "d", 4)]
    assert bench.store.held(ALICE_TWO) == [(third, "e", 4)]


# Names and their owners


@pytest.mark.parametrize("state", ["open", "held", "committed", "restored"])
def test_a_name_belongs_to_its_peer(bench: Bench, state: str) -> None:
    {"open": bench.begin, "held": bench.held, "committed": bench.committed, "restored": bench.committed}[state]()
    if state == "restored":
        bench.store.restored("web")
    with pytest.raises(Forbidden, match="belongs to alice"):
        bench.begin(owner=BOB)
    bench.begin(owner=ALICE_TWO)


def test_an_aborted_name_is_free(bench: Bench) -> None:
    bench.store.decide(ALICE, bench.begin(), False, "")
    bench.begin(owner=BOB)


def test_an_abort_does_not_give_away_what_is_committed(bench: Bench) -> None:
    bench.committed()
    bench.store.decide(ALICE, bench.begin(), False, "")
    with pytest.raises(Forbidden):
        bench.begin(owner=BOB)


def test_names_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMESPACES", 2)
    bench.begin("a")
    bench.begin("b")
    with pytest.raises(Conflict, match="knows 2 namespaces"):
        bench.begin("c")
    bench.begin("b")


def test_discarding_makes_room_for_names(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMESPACES", 2)
    for name in "abcdef":
        bench.committed(name=name)
        bench.store.discard(name)


def test_names_that_are_attached_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMESPACES", 2)
    attached = bench.store.namespace("attached")
    bench.store.attached = lambda name: name == "attached"
    for name in "abc":
        bench.store.namespace(name)
    assert bench.store.namespaces["attached"] is attached
    bench.store.attached = lambda name: False
    bench.store.namespace("d")
    assert "attached" not in bench.store.namespaces


# Generations


def test_a_newer_one_replaces_at_its_commit(bench: Bench) -> None:
    bench.committed(b"old")
    newer = bench.held(b"new")
    assert states(bench) == ["committed", "held"]
    bench.store.decide(ALICE, newer, True, "")
    assert states(bench) == ["discarded", "committed"]
    assert "replaced" in bench.store.namespaces["web"].generations[0].reason
    bench.settle()
    assert bench.arena.allocated == 4096


def test_an_aborted_newer_one_leaves_the_old(bench: Bench) -> None:
    bench.committed(b"old")
    bench.store.decide(ALICE, bench.held(b"new"), False, "")
    assert states(bench) == ["committed", "aborted"]


def test_an_older_one_committed_late_is_replaced_at_once(bench: Bench) -> None:
    older, newer = bench.held(b"old"), bench.held(b"new")
    bench.store.decide(ALICE, newer, True, "")
    assert states(bench) == ["held", "committed"]
    assert bench.store.decide(ALICE, older, True, "") is True
    assert states(bench) == ["discarded", "committed"]


def test_history_is_bounded_and_its_ids_forgotten(bench: Bench) -> None:
    migrations = [bench.begin() for _ in range(HISTORY + 5)]
    for migration in migrations:
        bench.store.decide(ALICE, migration, False, "")
    assert len(states(bench)) == HISTORY
    assert [m for m in migrations if m in bench.store._generations] == migrations[-HISTORY:]
    assert bench.store.decide(ALICE, migrations[0], True, "") is None


def test_history_keeps_what_is_committed_and_what_waits(bench: Bench) -> None:
    committed, held = bench.committed(), bench.held()
    for _ in range(3 * HISTORY):
        bench.store.decide(ALICE, bench.begin(), False, "")
    assert states(bench)[:2] == ["committed", "held"]
    assert bench.store.decide(ALICE, committed, True, "") is True
    assert bench.store.held(ALICE)[0][0] == held


def test_numbers_go_on(bench: Bench) -> None:
    for expected in (1, 2, 3):
        migration = bench.begin()
        assert bench.generation(migration).number == expected
        bench.store.decide(ALICE, migration, False, "")


# People


def test_unknown_names(bench: Bench) -> None:
    bench.store.namespace("asked for")
    for name in ("never", "asked for"):
        with pytest.raises(NotFound):
            bench.store.known(name)
        with pytest.raises(NotFound):
            bench.store.restored(name)
        with pytest.raises(NotFound):
            bench.store.discard(name)
        with pytest.raises(NotFound):
            bench.store.discard_image(name, None, "a", 0, None)


def test_restored_releases(bench: Bench) -> None:
    migration = bench.committed()
    assert bench.store.restored("web").state is State.RESTORED
    bench.settle()
    assert bench.arena.used == 0
    with pytest.raises(Conflict, match="restored"):
        bench.store.restored("web")
    assert bench.store.decide(ALICE, migration, True, "") is True


def test_retain_keeps(bench: Bench) -> None:
    bench = Bench(retain=True)
    bench.committed()
    for _ in range(2):
        assert bench.store.restored("web").state is State.COMMITTED
    assert bench.arena.allocated == 4096


@pytest.mark.parametrize("make", ["begin", "held"])
def test_only_a_committed_one_is_restored(bench: Bench, make: str) -> None:
    getattr(bench, make)()
    with pytest.raises(Conflict, match="not committed"):
        bench.store.restored("web")
    with pytest.raises(Conflict, match="not committed"):
        bench.store.discard_image("web", None, "pages-1.img", 0, None)


def test_restored_is_the_committed_one_though_a_newer_is_open(bench: Bench) -> None:
    bench.committed(b"old")
    bench.begin()
    bench.store.restored("web")
    assert states(bench) == ["restored", "open"]


def test_discard_takes_every_generation(bench: Bench) -> None:
    rejected: list[tuple[bytes, str]] = []
    bench.store.rejected = lambda migration, reason: rejected.append((migration, reason))
    bench.committed(b"old!")
    held, opened = bench.held(b"newer"), bench.begin()
    bench.write(opened, b"newest")
    assert bench.store.discard("web") == 15
    assert states(bench) == ["discarded", "aborted", "aborted"]
    assert [migration for migration, _ in rejected] == [held, opened]
    bench.settle()
    assert bench.arena.used == 0
    assert bench.store.decide(ALICE, held, True, "") is False
    assert bench.store.discard("web") == 0


def test_discarding_an_image(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"a" * 10)
    bench.write(migration, b"b" * MIB, image=2, name="pages-2.img")
    bench.seal(migration)
    bench.store.decide(ALICE, migration, True, "")
    assert bench.store.discard_image("web", 1, "pages-1.img", 0, None) == 4096
    with pytest.raises(NotFound):
        bench.store.discard_image("web", 1, "pages-1.img", 0, None)
    assert bench.store.discard_image("web", None, "pages-2.img", 10, 20) == 0
    assert bench.store.discard_image("web", None, "pages-2.img", 0, 1 << 40) == MIB
    with pytest.raises(NotFound):
        bench.store.discard_image("web", None, "pages-2.img", 0, None)


def test_discarding_a_range(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"a" * (3 * MIB))
    bench.seal(migration)
    bench.store.decide(ALICE, migration, True, "")
    assert bench.store.discard_image("web", None, "pages-1.img", MIB, MIB) == MIB
    assert bench.store.discard_image("web", None, "pages-1.img", 2 * MIB, None) == MIB
    bench.settle()
    assert bench.arena.allocated == MIB
    opened = outcome(bench.store.namespace("web").begin(None).open(None, "pages-1.img"))
    assert opened[0].size == 3 * MIB


# Memory


def test_a_full_budget(bench: Bench) -> None:
    migration = bench.begin()
    with pytest.raises(OutOfMemory):
        bench.write(migration, b"x" * (17 * MIB))
    bench.store.link_lost(ALICE, [migration], "no memory")
    bench.settle()
    assert bench.arena.used == 0
    bench.committed(b"x" * (8 * MIB))


def test_memory_on_its_way_back_is_not_missed(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"x" * (15 * MIB))
    bench.store.decide(ALICE, migration, False, "")
    bench.committed(b"y" * (8 * MIB))


def test_nothing_is_left_after_many(bench: Bench) -> None:
    for turn in range(50):
        migration = bench.begin(f"web{turn % 3}")
        bench.write(migration, bytes([turn]) * (turn * 5000), end=bool(turn % 5))
        if turn % 5:
            bench.seal(migration)
        try:
            bench.store.decide(ALICE, migration, turn % 2 == 0, "")
        except RelayError:
            bench.store.link_lost(ALICE, [migration], "")
        bench.settle()
    for turn in range(3):
        bench.store.discard(f"web{turn}")
    bench.settle()
    assert bench.arena.used == 0


def test_a_digest_must_fit(bench: Bench) -> None:
    migration = bench.begin()
    bench.write(migration, b"abc", end=False)
    with pytest.raises(RelayError):
        bench.store.end_image(ALICE, migration, 1, 3, digest(b"abd"))
