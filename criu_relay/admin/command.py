"""The command `criu-relay`.

Exit status: 0 done; 1 it failed, the reason on stderr in one line; 2 wrong usage; 3 timed out; 4 no daemon; 128 + N
signal N ended it, after what it had begun was undone.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from criu_relay import __version__
from criu_relay.admin import argument, files, show
from criu_relay.admin.client import GRACE, Broken, Client, Refused, Unanswered, Unreachable, target
from criu_relay.admin.rundir import ROLES, run_directory, socket_path
from criu_relay.admin.text import size
from criu_relay.admin.watch import Watch
from criu_relay.errors import RelayError
from criu_relay.wire.names import plain

DONE, FAILED, USAGE, TIMED_OUT, NO_DAEMON = 0, 1, 2, 3, 4

#: The exit status of what a signal ends, less the signal: that of a shell.
SIGNALLED = 128

#: What ends the command as SIGINT does: a service manager, and a terminal that is closed.
ENDING = (signal.SIGTERM, signal.SIGHUP)

#: HTTP: the time that the call allowed is over.
GATEWAY_TIMEOUT = 504

_START = "start one with: twistd criu-relay-proxy (where CRIU dumps), or twistd criu-relay-cache (where it restores)"

_BARRED = "be root or the daemon's user, or set XDG_RUNTIME_DIR to that of the daemon, or give --control PATH"


class Stop(Exception):
    """The end of the command, with its status and the line that says why."""

    def __init__(self, code: int, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason}: {hint}" if hint else reason)
        self.code = code


class Ended(KeyboardInterrupt):
    """A signal of L{ENDING} came.

    @ivar number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _end(number: int, _: Any) -> NoReturn:
    # A terminal that is closed sends SIGHUP twice, itself and through the shell: what was begun is undone all the same.
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise Ended(number)


def _obey_signals() -> None:
    for number in ENDING:
        # What nohup ignores stays ignored.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Wrong usage."""
        raise Stop(USAGE, message, f"see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """The end, behind a help or a version."""
        _flush()
        super().exit(status, message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    try:
        _obey_signals()
        _run(arguments)
    except Stop as stop:
        return _said(stop.code, str(stop))
    except Refused as error:
        reason = f"{error.reason}: {error.hint}" if error.hint else error.reason
        return _said(TIMED_OUT if error.status == GATEWAY_TIMEOUT else FAILED, reason)
    except Unanswered as error:
        return _said(TIMED_OUT, str(error))
    except Broken as error:
        return _said(FAILED, str(error))
    except Unreachable as error:
        return _said(NO_DAEMON, f"{error}: {_START}" if error.absent else str(error))
    except RelayError as error:
        return _said(FAILED, error.line)
    except BrokenPipeError:
        # Whoever read our output has had enough.
        return FAILED
    except Ended as end:
        return SIGNALLED + end.number
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    return DONE


def _run(arguments: Sequence[str] | None) -> None:
    try:
        options = parser().parse_args(arguments)
        options.run(options)
        _flush()
    except OSError as error:
        if sys.stdout is not None:
            # What it still holds may not be written at the interpreter's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        # Each command says itself what other files it cannot use.
        raise Stop(FAILED, f"cannot write the output: {error.strerror}") from error


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _out() -> TextIO:
    """The standard output.

    @raise OSError: we were started without one.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdout


def _said(code: int, line: str) -> int:
    # Nobody may be left to read it: of a terminal that is closed, the status stays.
    with contextlib.suppress(OSError):
        print(f"criu-relay: {plain(line)}", file=sys.stderr)
    return code


def parser() -> Parser:
    """The command line."""
    shared = Parser(add_help=False)
    shared.add_argument("--control", metavar="PATH", default=argparse.SUPPRESS, help="control socket of the daemon")
    top = Parser(prog="criu-relay", description="Look at and command criu-relay-proxy and criu-relay-cache.")
    top.add_argument("--control", metavar="PATH", help="control socket of the daemon; default: the one that lives")
    top.add_argument("--version", action="version", version=f"criu-relay {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str) -> Parser:
        found = commands.add_parser(name, parents=[shared], help=text, description=text)
        found.set_defaults(run=run)
        return found

    one = command("status", status, "what the daemon does")
    one.add_argument("--json", action="store_true", help="as the control API gives it")
    one.add_argument("--watch", action="store_true", help="once a second, until interrupted")
    one = command("attach", attach, "bind CRIU's socket in a directory")
    one.add_argument("directory", metavar="DIR")
    one.add_argument(
        "namespace", metavar="NAMESPACE", nargs="?", type=argument.name, help="default: the directory's own name"
    )
    one.add_argument("--dialect", choices=("stream", "images"), default="stream", help="of CRIU; default stream")
    one.add_argument("--copy", action="store_true", help="the dumped task shall go on (criu dump --leave-running)")
    one = command("detach", detach, "remove CRIU's socket from a directory")
    one.add_argument("directory", metavar="DIR")
    one = command("wait", wait, "wait until a namespace is committed (0) or aborted (1)")
    one.add_argument("namespace", metavar="NAMESPACE", type=argument.name)
    one.add_argument("--timeout", metavar="SECONDS", type=argument.seconds, help="give up after so long, with status 3")
    one.add_argument("--next", action="store_true", help="what was decided before does not count")
    one = command("commit", commit, "CRIU wrote everything: commit the namespace")
    one.add_argument("namespace", metavar="NAMESPACE", type=argument.name)
    one.add_argument("--timeout", metavar="SECONDS", type=argument.seconds, help="give up after so long, with status 3")
    one.add_argument("--force", action="store_true", help="at the cache: the source is lost, and shall not come back")
    one = command("images", images, "list images")
    one.add_argument("namespace", metavar="NAMESPACE", nargs="?", type=argument.name)
    one.add_argument("--json", action="store_true", help="as the control API gives it")
    one = command("discard", discard, "throw away a namespace, an image, or a range of one")
    one.add_argument("namespace", metavar="NAMESPACE", type=argument.name)
    one.add_argument("image", metavar="IMAGE", nargs="?", type=argument.image, help="NAME, or N/NAME in snapshot N")
    one.add_argument("--offset", metavar="N", type=argument.count, help="of the range, in bytes; default 0")
    one.add_argument("--length", metavar="N", type=argument.count, help="of the range, in bytes; default: to the end")
    one = command("export", export, "write a namespace as files that criu restore -D DIR takes")
    one.add_argument("namespace", metavar="NAMESPACE", type=argument.name)
    one.add_argument("directory", metavar="DIR")
    one = command("import", import_, "send a directory of images as a namespace")
    one.add_argument("directory", metavar="DIR")
    one.add_argument("namespace", metavar="NAMESPACE", type=argument.name)
    one = command("rate", rate, "limit, or say, how fast a proxy sends")
    one.add_argument(
        "rate", metavar="SIZE/s", nargs="?", type=argument.rate, help="such as 100M/s, or off; default: say it"
    )
    one = command("make-certs", make_certs, "write a CA and certificates for TLS on the link")
    one.add_argument("directory", metavar="DIR", type=Path, help="a CA that is there already is used again")
    one.add_argument("names", metavar="NAME", nargs="+", help="DNS name or IP address of a host")
    return top


def choose(control: str | None) -> Client:
    """The daemon that is meant.

    @raise Stop: there is none, or it is not clear which.
    """
    if control is not None:
        if control.startswith("tcp:"):
            raise Stop(USAGE, f"--control {control} is no path", "ask a daemon on a port with curl, or a browser")
        return Client(control)
    directory = run_directory()
    alive, barred = [], []
    for client in (Client(socket_path(directory, role)) for role in ROLES):
        try:
            client.reach()
        except Unreachable as error:
            if error.absent:
                continue
            barred += [error.barred] if error.barred else []
        alive.append(client)
    if len(barred) == len(ROLES):
        raise Stop(NO_DAEMON, f"cannot look for a daemon in {directory}: {barred[0]}", _BARRED)
    if not alive:
        raise Stop(NO_DAEMON, f"no daemon listens in {directory}", _START)
    if len(alive) > 1:
        either = " or ".join(f"--control {client.path}" for client in alive)
        raise Stop(USAGE, f"both a proxy and a cache listen in {directory}", f"choose with {either}")
    return alive[0]


def _allowed(timeout: float | None) -> float | None:
    return None if timeout is None else timeout + GRACE


def _tell(namespace: dict[str, Any]) -> None:
    print(_line(namespace, f"in {namespace['images']} images"))


def _line(namespace: dict[str, Any], more: str) -> str:
    return plain(f"{namespace['name']}: {namespace['state']}, {size(namespace['bytes'])} {more}")


def _print(lines: list[str]) -> None:
    print("\n".join(lines), file=_out())


def status(options: argparse.Namespace) -> None:
    """`criu-relay status`."""
    client = choose(options.control)
    if options.watch:
        Watch(client, options.json, _out()).run()
    answer = client.call("GET", "/v1/status")
    _print([json.dumps(answer, indent=2)] if options.json else show.status(answer))


def _real(directory: str) -> str:
    """Its absolute path without links, which travels as JSON.

    @raise Stop: it is not UTF-8.
    """
    path = os.path.realpath(directory)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Stop(USAGE, f"the path {plain(path)} is not UTF-8", "give a directory whose path is") from None
    return path


def attach(options: argparse.Namespace) -> None:
    """`criu-relay attach`."""
    body = {
        "directory": _real(options.directory),
        "namespace": options.namespace,
        "dialect": options.dialect,
        "copy": options.copy,
    }
    made = choose(options.control).call("POST", "/v1/attachments", body)
    print(plain(f"{made['namespace']}: CRIU's socket is {made['socket']}"))


def detach(options: argparse.Namespace) -> None:
    """`criu-relay detach`."""
    path = target("v1", "attachments", directory=_real(options.directory))
    choose(options.control).call("DELETE", path)


def wait(options: argparse.Namespace) -> None:
    """`criu-relay wait`."""
    following = 1 if options.next else None
    path = target("v1", "namespaces", options.namespace, "wait", timeout=options.timeout, next=following)
    _tell(choose(options.control).call("POST", path, timeout=_allowed(options.timeout)))


def commit(options: argparse.Namespace) -> None:
    """`criu-relay commit`."""
    client = choose(options.control)
    if options.force:
        known = client.call("GET", target("v1", "namespaces", options.namespace))
        source = known["source"] or "an unknown source"
        print(_line(known, f"from {source}"), flush=True)
    path = target("v1", "namespaces", options.namespace, "commit", timeout=options.timeout)
    _tell(client.call("POST", path, {"force": options.force}, timeout=_allowed(options.timeout)))


def images(options: argparse.Namespace) -> None:
    """`criu-relay images`."""
    client = choose(options.control)
    if options.namespace is not None:
        names = [options.namespace]
    else:
        names = [one["name"] for one in client.call("GET", "/v1/namespaces", kind=list)]
    found = [client.call("GET", target("v1", "namespaces", name)) for name in names]
    if options.json:
        _print([json.dumps(found if options.namespace is None else found[0], indent=2)])
    else:
        _print(show.images(found))


def rate(options: argparse.Namespace) -> None:
    """`criu-relay rate`."""
    client = choose(options.control)
    if options.rate is None:
        now = client.call("GET", "/v1/status")["link"].get("rate")
    else:
        now = client.call("PUT", "/v1/rate", {"rate": None if options.rate == "off" else options.rate})["rate"]
    print("as fast as it goes" if now is None else f"{size(now)}/s")


def discard(options: argparse.Namespace) -> None:
    """`criu-relay discard`."""
    if options.image is None:
        if options.offset is not None or options.length is not None:
            raise Stop(USAGE, "--offset and --length are of an image", "name the image")
        answer = choose(options.control).call("DELETE", target("v1", "namespaces", options.namespace))
    else:
        index, name = options.image
        place = ("images",) if index is None else ("snapshots", index, "images")
        path = target("v1", "namespaces", options.namespace, *place, name, "discard")
        body = {"offset": options.offset, "length": options.length}
        answer = choose(options.control).call("POST", path, body)
    print(f"{answer['bytes']} bytes given back")


def export(options: argparse.Namespace) -> None:
    """`criu-relay export`."""
    _tell(files.export(choose(options.control), options.namespace, options.directory))


def import_(options: argparse.Namespace) -> None:
    """`criu-relay import`."""
    _tell(files.import_images(choose(options.control), options.directory, options.namespace))


def make_certs(options: argparse.Namespace) -> None:
    """`criu-relay make-certs`."""
    # The cryptography package takes longer to import than the other commands take in all.
    from criu_relay.admin.certificates import make

    _print([plain(str(path)) for path in make(options.directory, options.names)])


if __name__ == "__main__":
    sys.exit(main())
