"""Permission, record and the fact: with an outlet, clients and processes that the test moves by hand."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, eventAsText, globalLogPublisher

from criu_relay.commit.lock import StateLock
from criu_relay.commit.records import KEPT, Record, Records
from criu_relay.commit.state import instance_id, state_directory
from criu_relay.commit.states import State
from criu_relay.commit.tasks import Task, Verdict, boot_id, start_time
from criu_relay.errors import Aborted, Conflict, LinkLost, NotFound
from criu_relay.interfaces import CommitRequest, Mode
from criu_relay.store.generation import State as StoreState
from criu_relay.wire.names import NEW
from tests.commit.fakes import Bench, FakeReactor
from tests.link.session import states as held
from tests.link.support import OWNER, Loop


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two that run until they are killed: the task, and criu."""
    both = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield both
    for process in both:
        process.kill()
        process.communicate()


def permitted(bench: Bench, processes: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """A dump up to its permission; the pidfds of task and criu."""
    bench.written("pages-1.img", "inventory.img")
    results = bench.permit(root=processes[0].pid, criu=processes[1].pid)
    assert results == []
    bench.hold()
    assert results == [None]
    assert bench.state is State.PERMITTED
    assert bench.out.decisions == []
    return tuple(reader.fileno() for reader in bench.reactor.readers)  # type: ignore[return-value]


def test_the_record_is_there_when_the_permission_is_given(bench: Bench, processes: Any) -> None:
    permitted(bench, processes)
    [record] = bench.records.load()
    assert (record.root, record.root_started) == (processes[0].pid, start_time(processes[0].pid))
    assert (record.criu, record.namespace, record.boot) == (processes[1].pid, "web", boot_id())


def test_the_task_is_gone(bench: Bench, processes: Any) -> None:
    task, _ = permitted(bench, processes)
    bench.reactor.end(task)
    assert (bench.state, bench.out.decisions) == (State.COMMITTING, [(True, "")])
    assert len(bench.records.load()) == 1
    bench.out.decided.callback("committed")
    assert bench.state is State.COMMITTED
    assert bench.records.load() == []
    assert bench.reactor.readers == []


def test_criu_ended_and_the_task_lives_on(bench: Bench, processes: Any) -> None:
    _, criu = permitted(bench, processes)
    processes[1].kill()
    bench.reactor.end(criu)
    assert bench.state is State.PERMITTED, "the task is looked at once more"
    bench.clock.advance(1)
    assert bench.state is State.ABORTED
    assert bench.out.decisions == [(False, "criu ended and its task lives on")]
    assert bench.records.load() == []


def test_criu_ended_and_the_task_is_dying(bench: Bench, processes: Any) -> None:
    task, criu = permitted(bench, processes)
    processes[0].kill()
    os.waitid(os.P_PID, processes[0].pid, os.WEXITED | os.WNOWAIT)
    bench.reactor.end(criu)
    bench.clock.advance(1)
    assert bench.state is State.PERMITTED
    bench.reactor.end(task)
    assert bench.out.decisions == [(True, "")]


@pytest.mark.parametrize("criu_first", [False, True], ids=["criu is alive", "criu ends first"])
@pytest.mark.parametrize("shown", [True, False], ids=["status shown", "status hidden"])
def test_the_task_ran_on_and_ended_by_itself(
    bench: Bench, processes: Any, monkeypatch: pytest.MonkeyPatch, shown: bool, criu_first: bool
) -> None:
    """It must not run twice; a status that is hidden looks like 0 and says nothing."""
    task, criu = permitted(bench, processes)
    processes[0].stdin.write(b"\n")
    processes[0].stdin.close()
    processes[0].stdin = None
    os.waitid(os.P_PID, processes[0].pid, os.WEXITED | os.WNOWAIT)
    if not shown:
        monkeypatch.setattr(os, "readlink", Mock(side_effect=PermissionError))
    if criu_first:
        bench.reactor.end(criu)
    bench.reactor.end(task)
    assert [commit for commit, _ in bench.out.decisions] == [not shown]


def test_the_cache_has_lost_it(bench: Bench, processes: Any) -> None:
    task, _ = permitted(bench, processes)
    bench.reactor.end(task)
    bench.out.decided.callback("unknown")
    assert bench.state is State.LOST
    assert bench.dump.newest is not None
    assert bench.dump.newest.reason.startswith("lost: ")


def test_criu_ends_before_the_permission(bench: Bench, processes: Any) -> None:
    bench.written("inventory.img")
    results = bench.permit(root=processes[0].pid, criu=processes[1].pid)
    [criu] = bench.reactor.readers
    criu.doRead()
    assert bench.state is State.ABORTED
    assert results[0].check(Aborted)
    assert bench.client.dropped
    assert bench.records.load() == []


def test_who_asked_leaves(bench: Bench, processes: Any) -> None:
    bench.written("inventory.img")
    assert bench.dump.newest is not None
    asked = Deferred.fromCoroutine(bench.dump.newest.permit(CommitRequest(processes[0].pid, processes[1].pid)))
    asked.addErrback(lambda _: None)
    asked.cancel()
    assert bench.state is State.ABORTED


def test_no_such_task(bench: Bench) -> None:
    bench.written("inventory.img")
    [failure] = bench.permit(root=2**22, criu=1)
    assert failure.check(NotFound)
    assert bench.state is State.ABORTED


def test_a_record_that_cannot_be_written_is_no_permission(bench: Bench, processes: Any, tmp_path: Path) -> None:
    (tmp_path / "permitted").write_text("in the way")
    bench.written("inventory.img")
    results = bench.permit(root=processes[0].pid, criu=processes[1].pid)
    bench.hold()
    assert results[0].check(Aborted)
    assert bench.state is State.ABORTED


def test_sealing_waits_for_what_is_on_its_way(bench: Bench) -> None:
    bench.client.busy = "half a message"
    bench.written("inventory.img")
    bench.permit(copy=True)
    assert (bench.state, bench.out.sealed) == (State.SEALING, None)
    bench.client.busy = None
    bench.clock.advance(1)
    assert bench.out.sealed is not None


def test_a_copy_commits_with_the_permission(bench: Bench) -> None:
    bench.written("inventory.img")
    results = bench.permit(copy=True)
    bench.hold()
    assert (bench.state, results) == (State.COMMITTING, [])
    bench.out.decided.callback("committed")
    assert (bench.state, results) == (State.COMMITTED, [None])


@pytest.mark.parametrize("force", [False, True])
def test_a_person_must_know_better(bench: Bench, force: bool) -> None:
    bench.written("inventory.img")
    results = bench.permit(force=force)
    bench.hold()
    if force:
        assert bench.state is State.COMMITTING
    else:
        assert bench.state is State.HELD
        assert results[0].check(Conflict)
        assert "--force" in results[0].value.hint


def test_without_an_inventory_nothing_is_sealed(bench: Bench) -> None:
    bench.written("pages-1.img")
    bench.dump.finished(bench.client)
    assert bench.state is State.ABORTED
    assert "inventory.img" in bench.out.decisions[0][1]


def test_without_a_script_and_a_known_task_it_stays_held(bench: Bench) -> None:
    bench.written("inventory.img")
    bench.dump.finished(bench.client)
    bench.hold()
    assert bench.state is State.HELD
    assert bench.dump.newest is not None
    assert "discard web" in bench.dump.newest.hint


def test_a_lost_link_aborts_what_is_not_held(bench: Bench) -> None:
    bench.written("pages-1.img")
    bench.out.lost(LinkLost("gone"))
    assert bench.state is State.ABORTED
    with pytest.raises(Aborted):
        bench.dump.open_image(bench.client, "", "inventory.img", Mode.REPLACE)


def test_nobody_comes_back(bench: Bench) -> None:
    bench.written("pages-1.img")
    bench.dump.client_gone(bench.client)
    bench.clock.advance(61)
    assert bench.state is State.ABORTED


def test_an_import_that_was_given_up_does_not_go_on_as_another(bench: Bench) -> None:
    bench.dump.put_image(None, "a.img").end()
    first = bench.dump.newest
    assert first is not None
    first.abort("no more")
    with pytest.raises(Aborted):
        bench.dump.put_image(None, "b.img", first.id.hex())
    assert bench.dump.newest is first


def test_two_imports_at_once_do_not_become_one(bench: Bench) -> None:
    bench.dump.put_image(None, "a.img", NEW).end()
    first = bench.dump.newest
    assert first is not None
    with pytest.raises(Conflict, match="on its way"):
        bench.dump.put_image(None, "b.img", NEW)
    bench.dump.put_image(None, "b.img", first.id.hex()).end()
    assert bench.dump.newest is first
    first.abort("no more")
    bench.dump.put_image(None, "a.img", NEW).end()
    assert bench.dump.newest is not first


@pytest.mark.parametrize("alive", [True, False])
def test_after_a_restart(bench: Bench, processes: Any, alive: bool) -> None:
    task = processes[0].pid
    started = start_time(task) if alive else 1
    bench.records.write(Record("ab" * 16, "web", task, started, 2**22, 1, boot_id(), "tcp:nowhere"))
    bench.dumps.recover()
    bench.clock.advance(0)
    bench.clock.advance(1)
    assert bench.state is (State.ABORTED if alive else State.COMMITTING)


def errors(events: list[LogEvent]) -> list[str]:
    return [
        eventAsText(event, includeTimestamp=False, includeSystem=False)
        for event in events
        if event["log_level"] is LogLevel.error
    ]


def without_a_readable_record(bench: Bench, text: str) -> None:
    directory = bench.records._directory
    directory.mkdir()
    (directory / ("ab" * 16 + ".json")).write_text(text)
    (directory / "bad.json").write_text("")


@pytest.mark.parametrize(
    "text",
    ["", "\0" * 99, json.dumps(vars(Record("cd" * 16, "web", 1, 1, 2, 1, "other", "tcp:nowhere")))],
    ids=["empty", "zeros", "another's"],
)
def test_a_record_that_cannot_be_read_is_no_decision(bench: Bench, text: str) -> None:
    """Whether its task is gone is not known: the cache goes on holding it, for a person."""
    without_a_readable_record(bench, text)
    with capturedLogs() as events:
        bench.dumps.recover()
    bench.clock.advance(1)
    assert [outgoing.decisions for outgoing in bench.outlet.made] == [[]]
    assert f"migration {'ab' * 16} is not decided: its record cannot be read" in errors(events)


def test_what_is_held_without_a_readable_record_is_not_aborted(bench: Bench) -> None:
    loop = Loop().connect()
    loop.store.begin(OWNER, b"\xab" * 16, "web", False, "")
    loop.store.seal(OWNER, b"\xab" * 16, [], "")
    loop.disconnect()
    without_a_readable_record(bench, "")
    object.__setattr__(bench.dump._at, "outlet", loop.outlet)
    bench.dumps.recover()
    for _ in range(2):
        loop.connect()
        assert held(loop) == [StoreState.HELD]
        loop.disconnect()


def test_a_record_of_another_cache_is_left(bench: Bench) -> None:
    """This cache does not know it, which would pass for the loss of its images."""
    record = Record("ab" * 16, "web", 2**22, 1, 2**22, 1, boot_id(), "tcp:elsewhere")
    bench.records.write(record)
    with capturedLogs() as events:
        bench.dumps.recover()
    bench.clock.advance(1)
    assert [outgoing.decisions for outgoing in bench.outlet.made] == [[]]
    assert bench.records.load() == [record]
    assert errors(events) == ["namespace web is not decided: it was permitted over another link, tcp:elsewhere"]


def test_after_a_reboot_every_task_is_gone(bench: Bench) -> None:
    bench.records.write(Record("ab" * 16, "web", os.getpid(), start_time(os.getpid()), 1, 1, "other", "tcp:nowhere"))
    bench.dumps.recover()
    bench.clock.advance(0)
    assert bench.out.decisions == [(True, "")]


def test_a_pid_that_is_used_again_is_another_process() -> None:
    assert Task.open(os.getpid(), 1).dying()
    mine = Task.open(os.getpid(), start_time(os.getpid()))
    assert not mine.dying()
    mine.close()


def test_a_verdict_that_was_stopped_says_nothing(processes: Any) -> None:
    reactor, clock = FakeReactor(), Clock()
    said: list[str] = []
    verdict = Verdict(
        reactor,  # type: ignore[arg-type]
        clock,
        Task.open(processes[0].pid),
        None,
        lambda: said.append("gone"),
        lambda: said.append("lives"),
    )
    verdict.stop()
    clock.advance(1)
    assert (said, reactor.readers) == ([], [])


def test_a_cache_that_was_started_anew_has_it_no_more(bench: Bench) -> None:
    bench.written("inventory.img")
    asked = bench.permit(copy=True)
    bench.hold()
    bench.out.decided.callback("committed")
    assert asked == [None]
    bench.out.decided = Deferred()
    bench.dumps.ask_again()
    assert bench.out.decisions == [(True, ""), (True, "")]
    bench.out.decided.callback("committed")
    assert bench.state is State.COMMITTED
    bench.out.decided = Deferred()
    bench.dumps.ask_again()
    bench.out.decided.callback("unknown")
    assert bench.state is State.LOST
    assert bench.dump.newest is not None
    assert "started anew" in bench.dump.newest.reason
    bench.dumps.ask_again()
    assert len(bench.out.decisions) == 3, "told once"


@pytest.mark.parametrize("copy", [True, False])
def test_a_lost_copy_is_no_lost_process(bench: Bench, copy: bool) -> None:
    logged: list[tuple[LogLevel, str]] = []

    def observe(event: LogEvent) -> None:
        logged.append((event["log_level"], eventAsText(event, includeTimestamp=False, includeSystem=False)))

    if copy:
        bench.written("inventory.img")
        bench.permit(copy=True)
        bench.hold()
    else:
        bench.dump.remember(Record("00" * 16, "web", 1, 1, 2, 1, "other", "tcp:nowhere"))
        bench.dumps.ask_again()
    globalLogPublisher.addObserver(observe)
    try:
        bench.out.decided.callback("unknown")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert bench.state is State.LOST
    level, what = (LogLevel.error, "the copy in namespace web") if copy else (LogLevel.critical, "namespace web")
    loud = [(one, text) for one, text in logged if one >= LogLevel.error]
    assert [(one, text.startswith(f"{what} is lost: ")) for one, text in loud] == [(level, True)]


def test_what_was_restored_is_not_asked_after(bench: Bench) -> None:
    """The cache may be started anew then: nothing is lost."""
    bench.written("inventory.img")
    bench.permit(copy=True)
    bench.hold()
    migration = bench.dump.newest
    assert migration is not None
    bench.dumps.let_go(migration.id)
    bench.dumps.ask_again()
    assert len(bench.out.decisions) == 1, "it is not committed yet: what is said of it then counts for nothing"
    bench.out.decided.callback("committed")
    bench.dumps.let_go(bytes(16))
    bench.out.decided = Deferred()
    bench.dumps.ask_again()
    assert len(bench.out.decisions) == 2, "another one was restored"
    bench.dumps.let_go(migration.id)
    bench.dumps.ask_again()
    assert len(bench.out.decisions) == 2
    assert bench.records.kept() == []
    assert migration.state is State.COMMITTED


def test_what_was_committed_before_a_restart_is_asked_after(bench: Bench) -> None:
    for number, cache in enumerate(("tcp:nowhere", "tcp:elsewhere")):
        migration = f"{number:032x}"
        bench.records.write(Record(migration, f"n{number}", 1, 1, 2, 1, "other", cache))
        bench.records.keep(migration)
    bench.dumps.recover()
    assert [name for name, dump in bench.dumps.namespaces.items() if dump.newest] == ["n0"]
    bench.dumps.ask_again()
    bench.out.decided.callback("unknown")
    assert bench.dumps.known("n0").state is State.LOST
    assert [record.namespace for record in bench.records.kept()] == ["n1"]


def test_who_asked_leaves_while_the_permission_is_written(bench: Bench) -> None:
    """The thread cannot be stopped: what it wrote is removed behind it."""
    threads: list[tuple[Any, ...]] = []

    def in_thread(*call: Any) -> Deferred[Any]:
        threads.append((Deferred(), *call))
        return threads[-1][0]

    object.__setattr__(bench.dump._at, "in_thread", in_thread)
    bench.written("inventory.img")
    with subprocess.Popen(["sleep", "600"]) as task, subprocess.Popen(["sleep", "600"]) as criu:
        assert bench.dump.newest is not None
        request = CommitRequest(root=task.pid, criu=criu.pid)
        asked = Deferred.fromCoroutine(bench.dump.newest.permit(request)).addErrback(lambda _: None)
        bench.clock.advance(0)
        bench.hold()
        [(fired, function, *arguments)] = [call for call in threads if call[1] == bench.records.write]
        asked.cancel()
        assert bench.state is State.ABORTED
        fired.callback(function(*arguments))
        assert len(bench.records.load()) == 1
        for fired, function, *arguments in threads:
            if function == bench.records.remove:
                fired.callback(function(*arguments))
        assert bench.records.load() == []
        for process in (task, criu):
            process.kill()


def test_records(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.load() == []
    record = Record("cd" * 16, "web", 1, 2, 3, 4, "boot", "tcp:nowhere")
    records.write(record)
    path = tmp_path / "permitted" / ("cd" * 16 + ".json")
    assert json.loads(path.read_text())["namespace"] == "web"
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "permitted" / "bad.json").write_text("{")
    assert records.load() == [record]
    records.keep(record.migration)
    assert (records.load(), records.kept()) == ([], [record])
    records.remove(record.migration)
    records.remove(record.migration)
    records.keep(record.migration)
    assert (records.load(), records.kept()) == ([], [])


@pytest.mark.parametrize("fails", [(Records, "_sync"), (os, "fsync"), (json, "dump"), (Path, "rename")])
def test_a_record_that_is_written_half_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: tuple[Any, str]
) -> None:
    """A restart would take it for a permission that was never given."""
    records = Records(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*fails, Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            records.write(Record("cd" * 16, "web", 1, 2, 3, 4, "boot", "tcp:nowhere"))
    assert records.load() == []
    assert list((tmp_path / "permitted").iterdir()) == []


def test_what_a_crash_left_of_a_write_goes_at_the_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "permitted").mkdir()
    (tmp_path / "permitted" / ("ab" * 16 + ".x.new")).touch()
    bench.dumps.recover()
    assert os.listdir(tmp_path / "permitted") == []


def test_two_write_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path)
    record = Record("cd" * 16, "web", 1, 2, 3, 4, "boot", "tcp:nowhere")
    dump = json.dump

    def dump_after_another(content: Any, file: Any) -> None:
        monkeypatch.setattr(json, "dump", dump)
        records.write(record)
        dump(content, file)

    monkeypatch.setattr(json, "dump", dump_after_another)
    records.write(record)
    assert records.load() == [record]


def test_no_more_committed_records_are_kept_than_that(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for number in range(KEPT + 3):
        migration = f"{number:032x}"
        records.write(Record(migration, "web", 1, 1, 2, 1, "boot", "tcp:x"))
        os.utime(tmp_path / "permitted" / f"{migration}.json", (number, number))
        records.keep(migration)
    assert [int(record.migration, 16) for record in records.kept()] == list(range(3, KEPT + 3))


def test_one_proxy_for_a_state_directory(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    held = StateLock(tmp_path / "state")
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        StateLock(tmp_path / "state")
    held.release()
    StateLock(tmp_path / "state").release()
    assert (tmp_path / "state" / "lock").stat().st_mode & 0o777 == 0o600


def test_a_state_directory_is_its_owner_s_alone(tmp_path: Path) -> None:
    with state_directory(tmp_path / "one" / "state") as state:
        instance_id(state / "cache")
    assert [path.stat().st_mode & 0o777 for path in (state, state / "cache")] == [0o700, 0o700]


def test_without_room_for_it_no_instance_is_begun(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    with (
        pytest.raises(Conflict, match=f"^the state directory {tmp_path}: Is a directory$"),
        state_directory(tmp_path) as state,
    ):
        instance_id(state)
    assert os.listdir(tmp_path) == ["instance"]


def test_the_instance_stays_the_same(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    first = instance_id(tmp_path / "state")
    assert len(first) == 16
    assert instance_id(tmp_path / "state") == first
    (tmp_path / "state" / "instance").write_text("rubbish")
    assert instance_id(tmp_path / "state") != first
