"""Permissions: one at a time, and what becomes of a task that criu may kill is decided by the fact alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from criu_relay.admin.proxy_control import ProxyControl
from criu_relay.commit.states import State
from criu_relay.errors import Aborted, Conflict
from criu_relay.interfaces import CommitRequest, Mode
from tests.commit.fakes import Bench, FakeClient


@pytest.fixture
def pids() -> Iterator[tuple[int, int]]:
    """Of a task, and of what stands for criu."""
    made = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield made[0].pid, made[1].pid
    for process in made:
        process.kill()
        process.wait()


class Threads:
    """Calls that are made in a thread, when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        self.calls.append((Deferred(), function, arguments))
        return self.calls[-1][0]

    def run(self, what: Callable[..., Any]) -> int:
        """Those of a function; how many that were."""
        due = [call for call in self.calls if call[1] == what and not call[0].called]
        for fired, function, arguments in due:
            fired.callback(function(*arguments))
        return len(due)


class Asked:
    """Two scripts that ask for the same migration."""

    def __init__(self, bench: Bench, pids: tuple[int, int]) -> None:
        self.threads = Threads()
        object.__setattr__(bench.dump._at, "in_thread", self.threads)
        bench.written("inventory.img")
        self.answers: list[list[Any]] = [[], []]
        self.asked: list[Deferred[Any]] = []
        for answer in self.answers:
            assert bench.dump.newest is not None
            asked = Deferred.fromCoroutine(bench.dump.newest.permit(CommitRequest(*pids)))
            self.asked.append(asked.addBoth(answer.append))
        bench.clock.advance(0)
        bench.hold()


def test_a_second_one_leaves_the_record_of_the_first(tmp_path: Path, pids: tuple[int, int]) -> None:
    bench = Bench(tmp_path)
    asked = Asked(bench, pids)
    assert asked.threads.run(bench.records.write) == 1
    assert asked.answers[0] == [None]
    [refused] = asked.answers[1]
    assert refused.check(Conflict) and "permitted already" in refused.getErrorMessage()
    assert not asked.threads.run(bench.records.write) and not asked.threads.run(bench.records.remove)
    assert bench.state is State.PERMITTED
    assert len(bench.records.load()) == 1


def test_a_second_one_that_leaves_ends_nothing(tmp_path: Path, pids: tuple[int, int]) -> None:
    bench = Bench(tmp_path)
    asked = Asked(bench, pids)
    asked.asked[1].cancel()
    assert bench.state is State.HELD
    asked.threads.run(bench.records.write)
    assert asked.answers[0] == [None]
    assert bench.state is State.PERMITTED


def test_the_first_one_that_leaves_lets_the_second_know(tmp_path: Path, pids: tuple[int, int]) -> None:
    bench = Bench(tmp_path)
    asked = Asked(bench, pids)
    asked.asked[0].cancel()
    assert bench.state is State.ABORTED
    [refused] = asked.answers[1]
    assert refused.check(Aborted)


@pytest.mark.parametrize("who", ["person", "cache"])
def test_what_is_permitted_waits_for_the_fact(tmp_path: Path, pids: tuple[int, int], who: str) -> None:
    bench = Bench(tmp_path)
    bench.written("inventory.img")
    assert bench.permit(root=pids[0], criu=pids[1]) == []
    bench.hold()
    assert bench.dump.newest is not None
    if who == "cache":
        bench.out.lost(Aborted("the cache gives it up"))
    else:
        with pytest.raises(Conflict):
            bench.dump.newest.abort("discarded at the proxy")
        control = ProxyControl(SimpleNamespace(dumps=bench.dumps, settings=None))  # type: ignore[arg-type]
        with pytest.raises(Conflict, match="may have killed the task") as refused:
            control.discard("web", None, None, None, None)
        assert "criu-relay wait web" in refused.value.hint
    assert bench.state is State.PERMITTED
    assert len(bench.records.load()) == 1


class Remote(FakeClient):
    """Of CRIU's remote images: a process is a dump, or a part of one."""

    whole_dump = False


def test_two_dumps_at_once_do_not_become_one(tmp_path: Path, pids: tuple[int, int]) -> None:
    bench = Bench(tmp_path)
    one, other = Remote(pids[0]), Remote(pids[1])
    for client in (one, other):
        bench.dump.client_connected(client)
    bench.dump.push_snapshots(one, ["img"])
    bench.dump.open_image(one, "img", "pages-1.img", Mode.REPLACE).end()
    with pytest.raises(Conflict, match="on its way"):
        bench.dump.push_snapshots(other, ["img"])
    assert bench.dump.snapshots() == ["img"]


def test_a_dump_goes_on_where_a_pre_dump_has_ended(tmp_path: Path, pids: tuple[int, int]) -> None:
    """Although nobody has asked for its exit status yet."""
    with subprocess.Popen(["true"]) as pre_dump:
        bench = Bench(tmp_path)
        one = Remote(pre_dump.pid)
        bench.dump.client_connected(one)
        bench.dump.push_snapshots(one, ["1"])
        while (Path("/proc") / str(pre_dump.pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
            continue
        bench.dump.client_gone(one)
        other = Remote(pids[0])
        bench.dump.client_connected(other)
        bench.dump.push_snapshots(other, ["2"])
        assert bench.dump.snapshots() == ["1", "2"]
