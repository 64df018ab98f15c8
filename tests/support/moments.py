"""Never lost, never doubled: what is killed or cut at a moment of a real dump, and what became of the process.

A moment says who is struck, and when: so many seconds after an event of the dump. `Trial.run` has a small process
dumped through a proxy and a cache with `criu-relay-action`, strikes, starts everything again, and then exactly one of
these is so:

    lives    criu failed, the task counts on, and the cache serves nobody
    moved    criu succeeded (or was killed too late), the task is gone, and a restore has the very same process
    lost     as moved, but the cache was killed after the decision: the proxy says so, by name, in its log and status
    crashed  criu was killed while it ran code of its own in the task, which dies of that (SIGTRAP), as it does when it
             is dumped into files: the dump is given up, and the cache serves nobody

Everything that is drawn comes from a seed. As a process:

    python -m tests.support.moments [--count N] [--seed N] [--out FILE]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.criu import Criu, Run
from tests.support.daemons import Relay
from tests.support.faults import Faults
from tests.support.migration import Migration
from tests.support.polling import until
from tests.support.victims import Victim

VICTIMS = ("proxy", "cache", "link", "criu", "action")
"""The script is there behind post-dump only."""

CUTS = ("reset", "fin", "half-close", "hole")

FAULTS = dict.fromkeys(CUTS, 0.0) | {"flip": 1, "slice": 4099, "delay": 0.02, "rate": 40e6}
"""What can happen to the link, with the value of the fault; those that are no cuts let a moment be long."""

UNDISTURBED = 3
"""Dumps to learn from how long one takes."""

HOLE_SECONDS = 0.3
"""A black hole ends as a reset, after this."""

MARKS = {
    "pages": "Dumping pages",
    "inventory": "Writing image inventory",
    "script": "Running post-dump scripts",
    "unfreezing": "Unfreezing tasks into",
    "streamed": "Dismissing the image streamer",
}
"""Events that criu logs."""

EVENTS = ("start", *MARKS, "held", "record", "committed", "over")
"""`start`: criu was started; `held`, `committed`: the cache logs it; `record`: it is in --state; `over`: criu ended."""

SOON = (0.0, 0.001, 0.01, 0.04)
"""Seconds close behind an event, at most: from its very instant to what the next stage takes."""

WHOLE = 1.15
"""Of an undisturbed dump's time: what moments that may be anywhere are spread over."""

LOOK_SECONDS = 0.0001
"""Between two looks for an event."""

LATE_SECONDS = 1.0
"""After the end of criu an event that has not come is not waited for any longer."""

SETTLE_SECONDS = 30.0
"""From the blow to everything being decided, with what was killed started again."""

MEMORY = 4
"""MiB of the process."""

GLANCE_SECONDS = 0.05
"""Who waits from before the dump would have been served long ago; a new restore is let wait for so long."""

TIMEOUT = "10"
"""CRIU_RELAY_TIMEOUT: the script refuses after this."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """Who is struck, and when.

    @ivar cut: what happens to the link, if that is struck.
    @ivar event: of L{EVENTS}.
    @ivar delay: seconds after it.
    @ivar force: a person commits at the cache before the proxy is there again.
    """

    number: int
    victims: tuple[str, ...]
    cut: str
    event: str
    delay: float
    force: bool


@dataclasses.dataclass
class Outcome:
    """What became of a moment.

    @ivar fate: "lives", "moved", "lost", "crashed", or "VIOLATION".
    @ivar struck: who was there to be struck.
    @ivar stage: the last event before the blow.
    @ivar after: seconds from the start of criu to the blow.
    @ivar criu: exit status.
    @ivar cache: state of the namespace at the cache in the end.
    """

    moment: Moment
    fate: str = "VIOLATION"
    struck: tuple[str, ...] = ()
    stage: str = ""
    after: float = 0.0
    criu: int | None = None
    proxy: str = ""
    cache: str = ""
    took: float = 0.0
    error: str = ""


def draw(
    seed: int,
    count: int,
    stages: Mapping[str, float],
    victims: Sequence[str] = VICTIMS,
    cuts: Iterable[str] = CUTS,
) -> list[Moment]:
    """The moments of a seed: half of them anywhere in a dump, half of them close behind each event in turn.

    @param stages: when the events of an undisturbed dump come, in seconds; one anywhere is counted from the last event
        before it, so that it is where it should be in a dump that takes longer.
    """
    dice = random.Random(seed)
    moments = []
    for number in range(count):
        if number % 2:
            position = dice.uniform(0, stages["over"] * WHOLE)
            event = max((one for one in EVENTS if stages[one] <= position), key=lambda one: stages[one])
            delay = position - stages[event]
        else:
            event = EVENTS[number // 2 % len(EVENTS)]
            delay = dice.uniform(0, dice.choice(SOON))
        there = victims if event in ("script", "held", "record") else victims[:-1]
        struck = tuple(dice.sample(there, min(len(there), dice.choice((1, 1, 1, 2, 2, 3)))))
        moments.append(Moment(number, struck, dice.choice(list(cuts)), event, delay, force=dice.random() < 0.5))
    return moments


class Tail:
    """A file that grows, read as it does."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self._path = path
        self._at = path.stat().st_size if from_end else 0
        self.text = ""

    def has(self, text: str) -> bool:
        """It has come."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
            self._at += len(data)
            self.text += data.decode(errors="replace")
        return text in self.text


class Opener:
    """A restore that waits for `inventory.img` from before the dump."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(directory / "streamer-serve.sock"))
        name = b"\x0a\x0dinventory.img"
        self._socket.sendall(len(name).to_bytes(4, "little") + name)
        self._socket.setblocking(False)

    @property
    def served(self) -> bool:
        """It was told that there is such an image."""
        try:
            return self._socket.recv(6, socket.MSG_PEEK) == b"\x02\0\0\0\x08\x01"
        except OSError:
            return False

    def close(self) -> None:
        """Wait no more."""
        self._socket.close()


class Dump:
    """One dump that is going on, as its events show."""

    def __init__(self, relay: Relay, namespace: str, begin: Callable[[], Run]) -> None:
        self._cache = Tail(relay.cache.log, from_end=True)
        self._permitted = relay.base / "state" / "criu-relay" / "permitted"
        self._records = self._listed()
        self._namespace = namespace
        self.seen: dict[str, float] = {}
        self._began = time.monotonic()
        self.run = begin()
        self._criu = Tail(self.run.log)
        self.seen["start"] = 0.0

    @property
    def now(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._began

    def _listed(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return {name for name in os.listdir(self._permitted) if name.endswith(".json")}
        return set()

    def look(self) -> None:
        """What has happened since."""
        for event in EVENTS:
            if event not in self.seen and self._happened(event):
                self.seen[event] = self.now

    def _happened(self, event: str) -> bool:
        if event in MARKS:
            return self._criu.has(MARKS[event])
        if event == "held":
            return self._cache.has(f"namespace {self._namespace} is held")
        if event == "committed":
            return self._cache.has(f"namespace {self._namespace}: committed")
        if event == "record":
            return bool(self._listed() - self._records)
        return self.run.process.poll() is not None

    def until(self, event: str, delay: float) -> None:
        """Wait until so long after an event; not for ever when it cannot come any more."""
        while event not in self.seen and not ("over" in self.seen and self.now > self.seen["over"] + LATE_SECONDS):
            self.look()
            time.sleep(LOOK_SECONDS)
        end = self.seen.get(event, self.now) + delay
        while (left := end - self.now) > 0:
            self.look()
            time.sleep(min(left, LOOK_SECONDS))

    @property
    def action(self) -> int:
        """The pid of the script; 0: it does not run."""
        pid = self.run.process.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if b"criu-relay-action" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return 0


class World:
    """Both daemons with a link between them that can be cut, and processes to be dumped.

    @ivar failed: the namespaces of dumps that failed.
    """

    def __init__(self, place: Path) -> None:
        """@param place: an empty directory for logs and victims."""
        self._place = place
        self.relay = Relay(place)
        self.criu = Criu(place, self.relay.environment)
        self.faults = Faults(self.relay.port)
        self._victims: list[Victim] = []
        self._spare: Victim | None = None
        self.failed: list[str] = []
        self.start()

    def start(self) -> None:
        """Start what does not run, and wait until all is linked."""
        relay = self.relay
        running = {daemon.role for daemon in relay.daemons if daemon.running}
        started = []
        if "cache" not in running:
            started.append(relay.start_cache(ready=False))
        if "proxy" not in running:
            link = f"tcp:127.0.0.1:{self.faults.port}"
            started.append(relay.start_proxy("--link", link, "--link-timeout", "1", ready=False))
        for daemon in started:
            daemon.ready()
        relay.linked()

    def victim(self) -> Victim:
        """A process that counts: one that is there already, or a new one."""
        found, self._spare = self._spare, None
        if found is None:
            number = len(self._victims)
            found = Victim(self._place / f"victim-{number}", "memory", MEMORY, number)
            self._victims.append(found)
        return found

    def keep(self, victim: Victim) -> None:
        """This one can be dumped again."""
        self._spare = victim

    def attach(self, migration: Migration) -> None:
        """Bind its sockets at both daemons."""
        for role, directory in (("cache", migration.target), ("proxy", migration.source)):
            body = {"directory": str(directory), "namespace": migration.namespace}
            status, answer = self.relay.at(role).request("POST", "/v1/attachments", body)
            assert status == 200, answer

    def detach(self, migration: Migration) -> None:
        """Remove them, where the daemon still is the one that bound them."""
        for role, directory in (("cache", migration.target), ("proxy", migration.source)):
            self.relay.at(role).request("DELETE", f"/v1/attachments?directory={directory}")

    def for_ever(self) -> None:
        """Every task ends and every daemon is killed and started again: what was not to be served is not.

        @raise AssertionError: it is.
        """
        for victim in self._victims:
            victim.close()
        for role in ("proxy", "cache"):
            self.relay.at(role).kill()
            self.start()
            served = {
                one["name"] for one in self.relay.get("/v1/namespaces") if one["state"] in ("committed", "restored")
            }
            assert served.isdisjoint(self.failed), f"{served.intersection(self.failed)} after a restart of the {role}"

    def close(self) -> None:
        """End everything."""
        self.criu.close()
        for victim in self._victims:
            victim.close()
        self.faults.close()
        self.relay.close()


class Trial:
    """One moment in a world."""

    def __init__(self, world: World, moment: Moment, namespace: str, waits: bool = True) -> None:
        """@param waits: a restore waits from before the dump; for a namespace that nothing was restored of."""
        self.world = world
        self.relay = world.relay
        self.moment = moment
        self.outcome = Outcome(moment)
        self.victim = world.victim()
        self.before = self.victim.ask()
        self.migration = Migration(self.relay, world.criu, self.victim, namespace)
        self.known: set[str] = set()
        self.known = {one.get("migration", "") for one in (self.newest("proxy"), self.newest("cache"))}
        world.attach(self.migration)
        self.opener = Opener(self.migration.target) if waits else None

    def run(self) -> Outcome:
        """Dump, strike, start again, and see.

        @raise AssertionError: none of them is so.
        """
        began = time.monotonic()
        outcome = self.outcome
        begin = self.migration.dump
        dump = Dump(self.relay, self.migration.namespace, lambda: begin(CRIU_RELAY_TIMEOUT=TIMEOUT))
        dump.until(self.moment.event, self.moment.delay)
        outcome.struck = tuple(self.strike(dump))
        outcome.after = dump.now
        outcome.stage = max(dump.seen, key=lambda event: dump.seen[event])
        outcome.criu = dump.run.wait()
        until(lambda: not self.victim.alive or self.untraced(), SETTLE_SECONDS, "the task is gone or runs on")
        (self.lives if self.victim.alive else self.gone)()
        proxy, outcome.cache = self.states()
        outcome.proxy = proxy.get("state", "")
        if self.opener is not None:
            self.opener.close()
        self.world.detach(self.migration)
        outcome.took = time.monotonic() - began
        return outcome

    def strike(self, dump: Dump) -> Iterator[str]:
        """Kill and cut, as fast as it goes; whom that hit."""
        for name in self.moment.victims:
            if name in ("proxy", "cache"):
                daemon = self.relay.at(name)
                daemon.ended = True
                daemon.process.kill()
                yield name
            elif name == "link":
                self.world.faults.now(self.moment.cut, value=FAULTS[self.moment.cut])
                yield name
            elif name == "criu" and dump.run.process.poll() is None:
                dump.run.process.kill()
                yield name
            elif name == "action" and (pid := dump.action):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    yield name
        if "link" in self.moment.victims and self.moment.cut in ("hole", "half-close"):
            time.sleep(HOLE_SECONDS)
            self.world.faults.now("reset")

    def untraced(self) -> bool:
        """The task runs, or will when it is scheduled."""
        with contextlib.suppress(AssertionError):
            return bool(self.victim.settled())
        return False

    def again(self) -> None:
        """Start everything again that was killed."""
        for daemon in self.relay.daemons:
            if daemon.ended:
                daemon.process.wait(SETTLE_SECONDS)
        self.world.start()

    def lives(self) -> None:
        """The task was not killed: nobody may ever have its images."""
        namespace = self.migration.namespace
        assert self.outcome.criu != 0, "criu succeeded, and the task lives on"
        self.migration.lives_on(self.before)
        self.again()
        until(
            lambda: self.given_up() or self.left_to_a_person(),
            SETTLE_SECONDS,
            f"{namespace} is given up",
            lambda: str(self.states()),
        )
        self.not_served()
        self.victim.counts_on()
        if "criu" not in self.outcome.struck:
            self.world.keep(self.victim)
        self.outcome.fate = "lives"

    def given_up(self) -> bool:
        """At both sides, if it ever began there."""
        proxy, cache = self.states()
        return cache in ("aborted", "") and proxy.get("state", "aborted") == "aborted"

    def left_to_a_person(self) -> bool:
        """Whole at the cache with nobody to decide, and the proxy says how to go on."""
        proxy, cache = self.states()
        return cache == "held" and proxy.get("state") == "held" and "discard" in proxy["hint"]

    def not_served(self) -> None:
        """Nobody has its images, nor will."""
        namespace = self.migration.namespace
        assert self.opener is None or not self.opener.served, f"{namespace} is served, and its dump failed"
        self.migration.not_served(GLANCE_SECONDS)
        self.world.failed.append(namespace)

    def states(self) -> tuple[dict[str, Any], str]:
        """Of the namespace, at the proxy and at the cache; nothing where there is no generation of this dump."""
        proxy, cache = self.newest("proxy"), self.newest("cache")
        return proxy, cache.get("state", "")

    def newest(self, role: str) -> dict[str, Any]:
        """The generation that began last, unless that was before this dump."""
        for one in self.relay.get("/v1/namespaces", role):
            if one["name"] == self.migration.namespace and one["migration"] not in self.known:
                found: dict[str, Any] = one
                return found
        return {}

    def gone(self) -> None:
        """The task was killed: its images must be whole, or their loss be told."""
        namespace = self.migration.namespace
        assert self.outcome.criu == 0 or "criu" in self.outcome.struck, "criu failed, and the task is gone"
        if self.victim.reap() != -signal.SIGKILL and "criu" in self.outcome.struck and self.crashed():
            return
        if "cache" in self.outcome.struck:
            self.again()
            until(self.loss_is_told, SETTLE_SECONDS, f"the proxy tells that {namespace} is lost", self.relay.proxy.tail)
            self.outcome.fate = "lost"
            return
        if "proxy" in self.outcome.struck and self.moment.force and self.relay.state(namespace) == "held":
            done = self.relay.command("commit", namespace, "--force", at="cache")
            # Unless the commit of the proxy was on its way already.
            assert done.returncode == 0 or self.relay.state(namespace) == "committed", done.stderr
        else:
            self.again()
        self.relay.reach(namespace, "committed", seconds=SETTLE_SECONDS)
        if (opener := self.opener) is not None:
            until(lambda: opener.served, SETTLE_SECONDS, "who waited is served")
        node = self.migration.restore()
        node.run.succeed()
        self.migration.moved(self.before, node)
        node.close()
        self.again()
        self.outcome.fate = "moved"

    def crashed(self) -> bool:
        """The task died of code that criu left in it; False: with its images whole."""
        self.again()

        def decided() -> bool:
            return self.given_up() or self.states()[0].get("state") in ("committed", "lost")

        until(decided, SETTLE_SECONDS, f"{self.migration.namespace} is decided", lambda: str(self.states()))
        if not self.given_up():
            return False
        self.not_served()
        self.outcome.fate = "crashed"
        return True

    def loss_is_told(self) -> bool:
        """In the status of the proxy, and in its log."""
        namespace = self.migration.namespace
        proxy, _ = self.states()
        logged = any(f"namespace {namespace} " in line and "lost" in line for line in self.told())
        return proxy.get("state") == "lost" and "lost" in proxy["reason"] and logged

    def told(self) -> list[str]:
        """What the proxies said, one after the other."""
        return [line for one in self.relay.daemons if one.role == "proxy" for line in one.text().splitlines()]


def undisturbed(world: World) -> dict[str, float]:
    """When the events of a dump come that nobody strikes, in seconds: the quickest of some, which must all succeed."""
    runs = []
    for number in range(UNDISTURBED):
        victim = world.victim()
        migration = Migration(world.relay, world.criu, victim, f"undisturbed-{number}")
        world.attach(migration)
        dump = Dump(world.relay, migration.namespace, migration.dump)
        for event in EVENTS:
            dump.until(event, 0)
        assert set(dump.seen) == set(EVENTS), dump.seen
        dump.run.succeed()
        victim.reap()
        world.detach(migration)
        runs.append(dump.seen)
    return min(runs, key=lambda seen: seen["over"])


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The outcomes as lines."""
    yield f"{'':>4} {'WHEN':<22} {'STRUCK':<24} {'AT':>8} {'STAGE':<10} {'CRIU':>4} {'PROXY':<10} {'CACHE':<10} FATE"
    for one in outcomes:
        moment = one.moment
        when = f"{moment.event} +{moment.delay * 1000:.1f} ms"
        struck = "+".join(f"{name}:{moment.cut}" if name == "link" else name for name in one.struck) or "nobody"
        yield (
            f"{moment.number:>4} {when:<22} {struck:<24} {one.after * 1000:>5.0f} ms {one.stage:<10} {one.criu!s:>4}"
            f" {one.proxy or '-':<10} {one.cache or '-':<10} {one.fate}{' ' + one.error if one.error else ''}"
        )


def run(seed: int, count: int, place: Path, tell: Callable[[str], None] = lambda line: None) -> list[Outcome]:
    """The moments of a seed, one after the other; after a violation in a new world.

    @param place: an empty directory.
    @raise AssertionError: what failed was served after everything was started again.
    """
    numbers = itertools.count(1)

    def made() -> World:
        directory = place / f"world-{next(numbers)}"
        directory.mkdir()
        return World(directory)

    outcomes: list[Outcome] = []
    world = made()
    try:
        stages = undisturbed(world)
        tell(f"seed {seed}; undisturbed: {', '.join(f'{n} {s * 1000:.0f} ms' for n, s in stages.items())}")
        for moment in draw(seed, count, stages):
            trial = Trial(world, moment, f"m{moment.number}")
            try:
                trial.run()
            except Exception as error:
                trial.outcome.error = f"{type(error).__name__}: {error} (logs in {world.relay.logs})"
                world.close()
                world = made()
            outcomes.append(trial.outcome)
        world.for_ever()
    finally:
        world.close()
    return outcomes


def main() -> int:
    """As a process; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, help="JSON of all moments and outcomes")
    arguments = parser.parse_args()
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="moments-"))
    outcomes = run(arguments.seed, arguments.count, place, print)
    print("\n".join(table(outcomes)))
    fates = collections.Counter(outcome.fate for outcome in outcomes)
    if not fates["VIOLATION"]:
        shutil.rmtree(place)
    print(f"{len(outcomes)} moments in {time.monotonic() - began:.0f} s, seed {arguments.seed}: {dict(fates)}")
    if arguments.out is not None:
        told = {"seed": arguments.seed, "fates": fates, "moments": [dataclasses.asdict(one) for one in outcomes]}
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(fates["VIOLATION"] > 0)


if __name__ == "__main__":
    sys.exit(main())
