"""Restores that wait, are pinned and answered."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred

from criu_relay.errors import RelayError
from criu_relay.interfaces import IRestore, IRestores, Peer
from criu_relay.store import namespace as module
from criu_relay.store.namespace import Namespace, Restore
from tests.store.support import ALICE, PATIENCE, Bench, outcome

NAME = "pages-1.img"


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def web(bench: Bench) -> Namespace:
    return bench.store.namespace("web")


def test_interfaces() -> None:
    assert IRestores.implementedBy(Namespace)
    assert IRestore.implementedBy(Restore)


def content(results: list) -> bytes:
    [opened] = results
    assert opened is not None
    data: bytes = outcome(opened.read(0, 1 << 20))[0]
    return data


def test_an_open_waits_for_the_commit(bench: Bench, web: Namespace) -> None:
    found, missing = outcome(web.begin(None).open(None, NAME)), outcome(web.begin(None).open("", "no.img"))
    listed = outcome(web.begin(None).snapshots())
    migration = bench.held(b"abc")
    assert found == missing == listed == []
    bench.store.decide(ALICE, migration, True, "")
    assert content(found) == b"abc"
    assert missing == [None]
    assert listed == [[""]]
    assert web.waiters == []


def test_after_the_commit_it_is_answered_at_once(bench: Bench, web: Namespace) -> None:
    bench.committed(b"abc")
    restore = web.begin(Peer(5, 0, 0))
    assert content(outcome(restore.open(None, NAME))) == b"abc"
    assert content(outcome(restore.open("", NAME))) == b"abc"
    assert outcome(restore.open(None, "no.img")) == [None]
    assert outcome(restore.open("other", NAME)) == [None]
    assert bench.clock.getDelayedCalls() == []


def test_an_abort_ends_it(bench: Bench, web: Namespace) -> None:
    restore = web.begin(None)
    found, listed = outcome(restore.open(None, NAME)), outcome(web.begin(None).snapshots())
    bench.store.decide(ALICE, bench.begin(), False, "")
    assert found == [None]
    assert listed == [[]]
    bench.committed(b"later")
    assert outcome(restore.open(None, "inventory.img")) == [None], "it stays with its generation"
    assert content(outcome(web.begin(None).open(None, NAME))) == b"later"


@pytest.mark.parametrize("commit", [True, False])
def test_all_that_wait_are_answered(bench: Bench, web: Namespace, commit: bool) -> None:
    before = [outcome(web.begin(None).open(None, NAME)) for _ in range(20)]
    migration = bench.held(b"abc")
    after = [outcome(web.begin(None).open(None, NAME)) for _ in range(20)]
    bench.store.decide(ALICE, migration, commit, "")
    if commit:
        assert [content(found) for found in before + after] == [b"abc"] * 40
    else:
        assert before + after == [[None]] * 40
    assert [call for call in bench.clock.getDelayedCalls() if call.getTime() > 0] == []


def test_one_that_leaves_does_not_disturb_the_others(bench: Bench, web: Namespace) -> None:
    leaving = web.begin(None).open(None, NAME)
    left, stays = outcome(leaving), outcome(web.begin(None).open(None, NAME))
    leaving.cancel()
    assert isinstance(left[0], CancelledError)
    assert len(web.waiters) == 1
    bench.committed(b"abc")
    assert content(stays) == b"abc"
    assert len(left) == 1


def test_one_that_leaves_when_another_is_answered(bench: Bench, web: Namespace) -> None:
    opens = [web.begin(None).open(None, NAME) for _ in range(3)]
    opens[0].addCallback(lambda opened: opens[1].cancel())
    results = [outcome(one) for one in opens]
    bench.committed(b"abc")
    assert isinstance(results[1][0], CancelledError)
    assert content(results[2]) == b"abc"


def test_patience_ends(bench: Bench, web: Namespace) -> None:
    restore = web.begin(None)
    found = outcome(restore.open(None, NAME))
    bench.clock.advance(PATIENCE - 1)
    assert found == []
    bench.clock.advance(1)
    assert found == [None]
    assert web.waiters == []
    bench.committed(b"abc")
    assert content(outcome(restore.open(None, NAME))) == b"abc"


def test_the_patience_of_each_ends_at_its_own_time(bench: Bench, web: Namespace) -> None:
    waiting = outcome(web.wait(None, "", None, patient=True))
    opens = []
    for _ in range(4):
        opens.append(web.begin(None).open(None, NAME))
        bench.clock.advance(PATIENCE / 4)
    results = [outcome(one) for one in opens]
    assert results == [[None], [], [], []]
    opens[1].cancel()
    bench.clock.advance(PATIENCE / 4)
    assert results[2:] == [[], []], "it left before its time was over"
    bench.clock.advance(PATIENCE / 4)
    assert results[2:] == [[None], []]
    web.begin(None).open(None, NAME)
    bench.clock.advance(PATIENCE / 4)
    assert results[3] == [None] and waiting == [] and len(web.waiters) == 2
    bench.clock.advance(PATIENCE)
    assert len(web.waiters) == 1 and bench.clock.getDelayedCalls() == []


def test_nothing_is_left_when_all_have_left(bench: Bench, web: Namespace) -> None:
    opens = [web.begin(None).open(None, NAME) for _ in range(3)]
    for one in opens:
        one.addErrback(lambda failure: None)
        one.cancel()
    assert web.waiters == [] and bench.clock.getDelayedCalls() == []


def test_those_who_wait_for_a_decision_are_patient(bench: Bench, web: Namespace) -> None:
    waiting = outcome(web.wait(None, "", None, patient=True))
    bench.clock.advance(100 * PATIENCE)
    assert waiting == []
    bench.committed()
    assert waiting == [web.newest]


def test_a_waiter_is_described(bench: Bench, web: Namespace) -> None:
    bench.clock.advance(5)
    web.begin(Peer(17, 0, 0)).open(None, NAME)
    web.begin(None).snapshots()
    assert [(w.image, w.pid, w.since, w.generation) for w in web.waiters] == [
        (NAME, 17, 5, None),
        ("parent", 0, 5, None),
    ]
    bench.begin()
    assert [w.generation for w in web.waiters] == [web.newest] * 2


def test_waiters_are_bounded(bench: Bench, web: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_OPENERS", 3)
    opens = [outcome(web.begin(None).open(None, NAME)) for _ in range(5)]
    assert [bool(found) for found in opens] == [True, True, False, False, False]
    bench.committed(b"abc")
    assert [content(found) for found in opens[2:]] == [b"abc"] * 3


def test_so_many_are_answered_in_a_turn(bench: Bench, web: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WOKEN_PER_TURN", 2)
    opens = [web.begin(None).open(None, NAME) for _ in range(6)]
    results = [outcome(one) for one in opens]
    bench.committed(b"abc")
    assert [len(found) for found in results] == [1, 1, 0, 0, 0, 0]
    assert len(web.waiters) == 4
    late = outcome(web.begin(None).open(None, NAME))
    opens[2].cancel()
    bench.clock.advance(0)
    bench.clock.advance(0)
    assert isinstance(results[2][0], CancelledError)
    assert [content(found) for found in [late, *results[:2], *results[3:]]] == [b"abc"] * 6
    assert web.waiters == [] and bench.clock.getDelayedCalls() == []


def test_what_many_ask_for_is_read_once(bench: Bench, web: Namespace) -> None:
    opens = [web.begin(None).open(None, NAME).addCallback(lambda opened: opened.whole(100)) for _ in range(3)]
    bench.committed(b"abc" * 9)
    first, *others = [outcome(one)[0] for one in opens]
    assert first == b"abc" * 9
    assert all(other is first for other in others)
    [later] = outcome(web.begin(None).open(None, NAME))
    assert later.whole(100) == first and later.whole(100) is not first


def test_a_new_restore_waits_for_the_newer_one(bench: Bench, web: Namespace) -> None:
    bench.committed(b"old")
    running = web.begin(None)
    assert content(outcome(running.open(None, NAME))) == b"old"
    newer = bench.held(b"new")
    waiting = outcome(web.begin(None).open(None, NAME))
    assert content(outcome(running.open(None, NAME))) == b"old", "it is pinned"
    assert waiting == []
    bench.store.decide(ALICE, newer, True, "")
    assert content(waiting) == b"new"


def test_a_new_restore_gets_the_old_one_when_the_newer_aborted(bench: Bench, web: Namespace) -> None:
    bench.committed(b"old")
    newer = bench.begin()
    waiting = outcome(web.begin(None).open(None, NAME))
    bench.store.decide(ALICE, newer, False, "")
    assert waiting == [None], "it was pinned to the one that aborted"
    assert content(outcome(web.begin(None).open(None, NAME))) == b"old"


def test_an_image_that_is_open_outlives_its_generation(bench: Bench, web: Namespace) -> None:
    bench.committed(b"old")
    running = outcome(web.begin(None).open(None, NAME))
    bench.committed(b"new")
    bench.settle()
    assert content(running) == b"old"
    running[0].close()
    bench.settle()
    assert bench.arena.allocated == 4096


def test_a_replaced_generation_is_an_error_and_not_an_absent_image(bench: Bench, web: Namespace) -> None:
    bench.committed(b"old")
    running = web.begin(None)
    outcome(running.open(None, NAME))
    bench.committed(b"new")
    [result] = outcome(running.open(None, NAME))
    assert isinstance(result, RelayError)


def test_nothing_newer_is_served_to_a_pinned_restore(bench: Bench, web: Namespace) -> None:
    bench.committed(b"old")
    running = web.begin(None)
    outcome(running.open(None, NAME))
    bench.committed(b"new")
    [result] = outcome(running.open(None, NAME))
    assert result is None or isinstance(result, RelayError)


def test_a_restore_is_pinned_by_its_first_question(bench: Bench, web: Namespace) -> None:
    first = bench.held(b"first")
    restore = web.begin(None)
    one = outcome(restore.open(None, NAME))
    bench.held(b"second")
    two = outcome(restore.open(None, NAME))
    bench.store.decide(ALICE, first, True, "")
    assert content(one) == b"first"
    assert content(two) == b"first"


def test_finished_ends_the_pin(bench: Bench, web: Namespace) -> None:
    bench.committed(b"old")
    restore = web.begin(None)
    outcome(restore.open(None, NAME))
    restore.finished()
    bench.committed(b"new")
    assert content(outcome(restore.open(None, NAME))) == b"new"


def test_restored_is_not_served_again(bench: Bench, web: Namespace) -> None:
    bench.committed(b"abc")
    restore = web.begin(None)
    assert content(outcome(restore.open(None, NAME))) == b"abc"
    bench.store.restored("web")
    assert outcome(web.begin(None).open(None, NAME)) == [None]


def test_retained_is_served_again(bench: Bench) -> None:
    bench = Bench(retain=True)
    bench.committed(b"abc")
    bench.store.restored("web")
    assert content(outcome(bench.store.namespace("web").begin(None).open(None, NAME))) == b"abc"


def test_snapshots_in_order(bench: Bench, web: Namespace) -> None:
    migration = bench.begin()
    for index, label in enumerate(("pre-1", "pre-2", "final"), 1):
        bench.store.snapshot(ALICE, migration, index, label)
        bench.write(migration, label.encode(), image=index, snapshot=index)
    bench.seal(migration)
    bench.store.decide(ALICE, migration, True, "")
    restore = web.begin(None)
    assert outcome(restore.snapshots()) == [["pre-1", "pre-2", "final"]]
    assert content(outcome(restore.open("pre-2", NAME))) == b"pre-2"
    assert content(outcome(restore.open(None, NAME))) == b"final"


def test_an_image_that_was_discarded_is_absent(bench: Bench, web: Namespace) -> None:
    bench.committed(b"abc")
    bench.store.discard_image("web", None, NAME, 0, None)
    assert outcome(web.begin(None).open(None, NAME)) == [None]


def test_waiting_for_what_is_decided(bench: Bench, web: Namespace) -> None:
    bench.committed()
    assert outcome(web.wait(web.newest, "", None)) == [web.newest]
    assert isinstance(web.wait(web.newest, "", None), Deferred)
