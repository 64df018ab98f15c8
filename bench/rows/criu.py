"""A real process, by a real criu: from the start of the dump to the first tick of the restored process."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.certificates import identities
from bench.measure import MIB, Row, Sample, Skipped, alternate, row
from bench.processes import measured
from bench.relay import Measured, relay
from bench.stage import Stage
from bench.tools import tar
from tests.support.criu import find_criu, missing
from tests.support.polling import until

PATIENCE = 60.0
"""Seconds for a step of criu."""

TMPFS = "criu dump to tmpfs, criu restore from it"
TAR = "criu dump to tmpfs, tar c | socat | TCP | socat | tar x, criu restore"

TICKS = struct.Struct("=qqq")


class Victim:
    """reference/victim.c: a process that ticks."""

    def __init__(self, stage: Stage, zeros: int = 3) -> None:
        """@param zeros: how many of 10 of its pages are zeros; the others are random."""
        self.size = stage.plan.victim
        folder = stage.new_folder("victim")
        self._ticks = folder / "ticks"
        command = [str(stage.program("victim")), str(zeros), str(self.size // MIB), str(self._ticks)]
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env={}
            )
        until(lambda: self.ticks()[0], PATIENCE, "the victim ticks")

    def ticks(self) -> tuple[int, float]:
        """How often it has ticked, and when (seconds of the epoch) it did so first after its longest pause."""
        data = self._ticks.read_bytes() if self._ticks.exists() else b""
        if len(data) != TICKS.size:
            return 0, 0.0
        count, _, resumed = TICKS.unpack(data)
        return count, resumed / 1e9

    def close(self) -> None:
        """End the original, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Node:
    """A pid namespace where a criu restores once it is told to."""

    def __init__(self, log: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self._log = log
        script = 'read go; "$@"; echo "restored $?"; read end'
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def go(self) -> None:
        """Restore."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Wait for the end of criu.

        @raise RuntimeError: it failed.
        """
        assert self.process.stdout is not None
        if (said := self.process.stdout.readline().strip()) != "restored 0":
            raise RuntimeError(f"criu restore: {said}: {self._log.read_text()[-2000:]}")

    def close(self) -> None:
        """End everything in it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Moving:
    """Migrates one victim after another."""

    def __init__(self, stage: Stage) -> None:
        if reason := missing():
            raise Skipped(reason)
        self._stage = stage
        self._criu = str(find_criu())
        self._logs = stage.new_folder("criu-logs")

    def _migrate(
        self,
        source: Path,
        target: Path,
        between: Callable[[Node], None],
        waits: Callable[[], None] | None = None,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> Sample:
        """Once.

        @param between: what happens between the dump and the restore.
        @param waits: the restore begins before the dump; this waits until it waits.
        """
        dumped, restored = self._logs / "dump", self._logs / "restore"
        environment = environment or dict(os.environ)
        restore = [self._criu, "restore", "-d", "-D", str(target), "-o", str(restored), *options]
        with contextlib.ExitStack() as stack:
            victim = Victim(self._stage)
            stack.callback(victim.close)
            node = Node(restored, restore, environment)
            stack.callback(node.close)
            if waits is not None:
                node.go()
                waits()
            dump = [self._criu, "dump", "-t", str(victim.process.pid), "-D", str(source), "-o", str(dumped), *options]
            began = time.time()  # the clock of the victim
            done = subprocess.run(dump, env=environment, stdin=subprocess.DEVNULL, check=False)
            if done.returncode:
                raise RuntimeError(f"criu dump ended with {done.returncode}: {dumped.read_text()[-2000:]}")
            victim.process.wait()
            before = victim.ticks()[0]
            if waits is None:
                between(node)
            node.wait()
            until(lambda: victim.ticks()[0] > before, PATIENCE, "the restored process ticks")
            return Sample(victim.ticks()[1] - began, victim.size)

    def relayed(self, ours: Measured) -> Sample:
        """A subject: through the relay."""
        options = ["--stream", "--action-script", str(ours.relay.action)]
        ours.attach()
        with measured(ours.pids) as usage:
            moved = self._migrate(ours.source, ours.target, Node.go, ours.waiting, options, ours.relay.environment)
        ours.relay.reach(ours.namespace, "restored")
        ours.settle()
        return Sample(moved.seconds, moved.size, usage.cpu, usage.rss)

    def through_tmpfs(self) -> Sample:
        """A subject: both sides see the same files."""
        folder = self._stage.new_folder("images")
        return self._migrate(folder, folder, Node.go)

    def through_tar(self) -> Sample:
        """A subject: the files are copied over TCP."""
        source, target = self._stage.new_folder("images"), self._stage.new_folder("copied")

        def copied(node: Node) -> None:
            tar(source, target)
            node.go()

        return self._migrate(source, target, copied)


def criu_1g(stage: Stage) -> list[Row]:
    """Over a plain link, and with TLS."""
    moving = Moving(stage)
    proxy, cache = identities(stage).options()
    with relay(stage, copy=False) as plain, relay(stage, proxy=proxy, cache=cache, copy=False) as tls:
        samples = alternate(
            {
                "plain": lambda: moving.relayed(plain),
                "tls": lambda: moving.relayed(tls),
                "tmpfs": moving.through_tmpfs,
                "tar": moving.through_tar,
            },
            stage.plan.rounds,
        )
    return [
        row("criu-1g@tmpfs", TMPFS, 1 / 1.15, samples["plain"], samples["tmpfs"]),
        row("criu-1g@tmpfs-tls", f"{TMPFS}; ours with TLS", 1 / 1.6, samples["tls"], samples["tmpfs"]),
        row("criu-1g@tar", TAR, 1 / 0.5, samples["plain"], samples["tar"]),
    ]
