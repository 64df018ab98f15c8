"""The machine that is measured on, and a network of the benchmark's own, where congestion control can be chosen."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from bench.measure import MIB

WANTED = "cubic"
"""bbr paces even on loopback, at half the speed."""

CLONE_NEWNET = 0x40000000  # unshare(2)


def own_network() -> None:
    """Move this process, and what it starts from now on, into a network namespace with a loopback of its own.

    There every connection has the congestion control that is wanted, by its route: only the first namespace of
    a system may choose its default among all (ip-sysctl, tcp_allowed_congestion_control).

    @raise OSError: it may not; what is in force stays so, for ours and for the references.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    for command in (
        "link set lo up",
        f"route change local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1 congctl {WANTED}",
        f"route change local 127.0.0.1 dev lo table local proto kernel scope host src 127.0.0.1 congctl {WANTED}",
    ):
        done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {command}: {done.stderr.strip()}")


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far = server.accept()[0]
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def congestion_control() -> str:
    """What a connection over loopback has here, at both ends."""
    ends = connection()
    found = {end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode() for end in ends}
    for end in ends:
        end.close()
    return ", ".join(sorted(found))


def described() -> dict[str, Any]:
    """What decides how fast things are here."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "kernel": platform.release(),
        "cpu": ", ".join(sorted(models)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "congestion_control": congestion_control(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
