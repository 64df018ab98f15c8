"""The options of where people and their tools connect: --control, --metrics, --manhole."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.endpoints import quoteStringArgument
from twisted.python import usage

from criu_relay import values
from criu_relay.admin.rundir import run_directory, socket_path
from criu_relay.given import Given, parameter

CONSOLE_PARAMETERS: list[list[str | None]] = [
    parameter("metrics", "endpoint for Prometheus and browsers, read-only, such as tcp:9877:interface=127.0.0.1"),
    parameter("manhole", "endpoint of an SSH console with a Python prompt, such as tcp:9879:interface=127.0.0.1"),
    parameter("manhole-keys", "file of the public keys that may enter --manhole, as authorized_keys of sshd"),
]

SERVED = ("unix", "tcp", "tcp6", "systemd")
"""Kinds of endpoints."""


def consoles(given: dict[str, list[Given]], role: str, insecure: bool) -> dict[str, Any]:
    """Those fields of L{criu_relay.settings.Settings}.

    @param role: "proxy" or "cache".
    """
    if ("manhole" in given) != ("manhole-keys" in given):
        raise usage.UsageError("--manhole and --manhole-keys belong together; give both, or neither")
    keys = [item.read(partial(values.file, base=item.base)) for item in given.get("manhole-keys", ())]
    return {
        "control": _control(given, role),
        "metrics": _endpoint(given, "metrics", insecure),
        "manhole": _endpoint(given, "manhole", insecure),
        "manhole_keys": keys[-1] if keys else None,
    }


def _control(given: dict[str, list[Given]], role: str) -> str:
    if "control" not in given:
        path = quoteStringArgument(socket_path(run_directory(), role))
        # Twisted's own quoting is for the value of a keyword, where "=" is no more special.
        return "unix:" + path.replace("=", r"\=")
    item = given["control"][-1]
    if not item.read(partial(values.server_address, kinds=SERVED)).is_local:
        raise item.wrong("whoever reaches it commands this service; give a unix: endpoint, or a loopback address")
    return item.text


def _endpoint(given: dict[str, list[Given]], name: str, insecure: bool) -> str | None:
    if name not in given:
        return None
    item = given[name][-1]
    address = item.read(partial(values.server_address, kinds=SERVED))
    if not insecure and not address.is_local:
        raise item.wrong("other machines could reach it; give a loopback address, or --insecure as well")
    return item.text
