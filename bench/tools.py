"""References that are tools of the system: socat, alone with OpenSSL, and between two tar."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

from bench.certificates import CACHE, Identities, files
from bench.measure import MIB, Sample
from bench.processes import Process, used
from bench.references import writer
from bench.stage import Stage, required
from tests.support.certificates import Shown
from tests.support.daemons import free_port
from tests.support.polling import until

START = 10.0
"""Seconds until socat listens."""

BLOCK = "262144"
"""Bytes that socat reads at once: more is no faster, its default of 8 KiB is slower."""


def _listening(port: int) -> bool:
    """Whether somebody listens; to connect would use the one connection up. proc_net_tcp(5): state 0A."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port for line in lines)


def _socat(name: str, source: str, target: str, stdin: int = subprocess.DEVNULL, stdout: int | None = None) -> Process:
    command = [required("socat", "socat"), "-u", "-b", BLOCK, source, target]
    return Process(name, command, stdin=stdin, stdout=stdout)


def socat_tls(stage: Stage, shown: Identities) -> Sample:
    """Pipe -> socat -> TLS 1.3 -> socat -> a file in memory whose pages are there already."""
    size = stage.plan.size
    target = stage.folder / "socat"
    if not target.exists():
        with target.open("wb") as file:
            for _ in range(0, size, MIB):
                file.write(b"\1" * MIB)
    port = free_port()
    reading, writing = os.pipe()
    with contextlib.ExitStack() as stack:
        accept = f"OPENSSL-LISTEN:{port},bind=127.0.0.1,{_tls(shown.cache)}"
        receiver = stack.enter_context(_socat("receiver", accept, f"OPEN:{target},wronly"))
        until(lambda: _listening(port), START, "socat listens")
        source = stack.enter_context(writer(stage, writing, size))
        connect = f"OPENSSL:127.0.0.1:{port},commonname={CACHE},no-sni=1,{_tls(shown.proxy)}"
        sender = stack.enter_context(_socat("sender", "STDIN", connect, stdin=reading))
        os.close(reading)
        source.ready()
        source.go()
        began = source.times()
        for program in (source, sender, receiver):
            program.end()
        ended = time.monotonic()
    usage = used([source, sender, receiver])
    return Sample(ended - began.first, size, usage.cpu, usage.rss)


def _tls(own: Shown) -> str:
    certificate, key, authority = files(own)
    return f"cert={certificate},key={key},cafile={authority},verify=1,openssl-min-proto-version=TLS1.3"


def tar(source: Path, target: Path) -> Sample:
    """Files of one folder into another: tar c | socat | TCP | socat | tar x."""
    port = free_port()
    size = sum(path.stat().st_size for path in source.iterdir())
    with contextlib.ExitStack() as stack:

        def start(process: Process) -> Process:
            return stack.enter_context(process)

        out = start(_socat("receiver", f"TCP-LISTEN:{port},bind=127.0.0.1", "STDOUT", stdout=subprocess.PIPE))
        unpack = [required("tar", "tar"), "-C", str(target), "-x"]
        unpacked = start(Process("tar x", unpack, stdin=_end(out)))
        until(lambda: _listening(port), START, "socat listens")
        began = time.monotonic()
        packed = start(Process("tar c", ["tar", "-C", source, "-c", "."], stdout=subprocess.PIPE))
        sent = start(_socat("sender", "STDIN", f"TCP:127.0.0.1:{port}", stdin=_end(packed)))
        for process in (packed, sent, out, unpacked):
            process.end()
        ended = time.monotonic()
    usage = used([packed, sent, out, unpacked])
    return Sample(ended - began, size, usage.cpu, usage.rss)


def _end(process: Process) -> int:
    """The read end of what a process writes."""
    assert process.process.stdout is not None
    return process.process.stdout.fileno()
