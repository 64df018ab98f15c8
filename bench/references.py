"""The references for one large image, each a subject of its own: C, plain Twisted, socat."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from bench.machine import connection
from bench.measure import Sample
from bench.processes import Program, Times, used
from bench.stage import Stage


def writer(stage: Stage, descriptor: int, size: int) -> Program:
    """What stands for criu dump: writes memory into `descriptor`, which becomes its own."""
    return Program("writer", [stage.program("writer"), str(descriptor), str(size)], [descriptor])


def reader(stage: Stage, descriptor: int) -> Program:
    """What stands for criu restore: reads `descriptor`, which becomes its own, to its end."""
    return Program("reader", [stage.program("reader"), str(descriptor)], [descriptor])


def run(source: Program, target: Program, *between: Program) -> Sample:
    """One transfer, from the first byte of `source` to the last of `target`."""
    programs = [target, *between, source]
    with contextlib.ExitStack() as stack:
        for program in programs:
            stack.enter_context(program)
        for program in programs:
            program.ready()
        for program in programs:
            program.go()
        began, ended = source.times(), target.times()
        for program in programs:
            program.end()
    return sample(began, ended, programs)


def sample(began: Times, ended: Times, programs: list[Program]) -> Sample:
    """What a transfer by ended programs was."""
    assert ended.size == began.size, f"{ended.size} of {began.size} bytes came"
    usage = used(programs)
    return Sample(ended.last - began.first, began.size, usage.cpu, usage.rss)


def c_receive(stage: Stage) -> Sample:
    """Memory -> TCP -> recv into recycled memory, in C."""
    size = stage.plan.size
    near, far = (end.detach() for end in connection())
    receiver = Program("receiver", [stage.program("receiver"), str(far), str(size)], [far])
    return run(writer(stage, near, size), receiver)


def bare(stage: Stage, window: bool, unix: bool = False) -> Sample:
    """Pipe or unix socket -> frames -> TCP -> recycled memory, in C: the system calls of our path and nothing else.

    @param window: the bytes are kept and digested on the way, and digested at the end.
    """
    size, keep = stage.plan.size, str(int(window))
    near, far = (end.detach() for end in connection())
    reading, writing = (end.detach() for end in socket.socketpair()) if unix else os.pipe()
    proxy = Program("proxy", [stage.program("bare_proxy"), str(reading), str(near), keep], [reading, near])
    cache = Program("cache", [stage.program("bare_cache"), str(far), str(size), keep], [far])
    return run(writer(stage, writing, size), cache, proxy)


def c_serve(stage: Stage) -> Sample:
    """Memory -> sendfile -> pipe, in C."""
    size = stage.plan.size
    reading, writing = os.pipe()
    server = Program("server", [stage.program("server"), str(writing), str(size)], [writing])
    return run(server, reader(stage, reading))


def twisted(stage: Stage, sender: Sequence[str] = (), receiver: Sequence[str] = ()) -> Sample:
    """Pipe -> write with registerProducer -> dataReceived -> recycled memory, as Twisted's examples do it.

    @param sender: its files of certificate, key and authority; none for plain TCP.
    @param receiver: the same of the other side.
    """
    size = stage.plan.size
    command = [sys.executable, "-m", "bench.plain_twisted"]
    reading, writing = os.pipe()
    with Program("receiver", [*command, "receive", str(size), *receiver]) as target:
        port = target.ready()
        with (
            Program("sender", [*command, "send", str(reading), port, *sender], [reading]) as middle,
            writer(stage, writing, size) as source,
        ):
            middle.ready()
            source.ready()
            source.go()
            began, ended = source.times(), target.times()
            programs = [source, middle, target]
            for program in programs:
                program.end()
    return sample(began, ended, programs)
