"""`criu-relay-action`: what CRIU runs at the stages of a dump and a restore (criu --action-script).

At post-dump it asks the proxy whether criu may kill the task, which is frozen meanwhile; at post-resume it tells the
cache that the task runs; at other stages it does nothing. CRIU gives no arguments, only an environment.

At post-dump any trouble ends with status 1: criu then resumes the task. At post-resume the task runs already, and the
status is always 0: criu 4.2.1 logs another one and goes on all the same.
"""

from __future__ import annotations

import os
import sys

#: Seconds that the task may stay frozen for the decision, unless CRIU_RELAY_TIMEOUT says otherwise: a link that broke
#: is made again within 30 s, and what is in the proxy's window then still has to go over it.
TIMEOUT = 120.0

ALLOWED, REFUSED = 0, 1

MISUSED = 2
"""The exit status of a person's wrong arguments."""

HELP = """\
criu runs this by itself, without arguments:

    criu dump    ... --action-script "$(command -v criu-relay-action)"
    criu restore ... --action-script "$(command -v criu-relay-action)"

post-dump: asks criu-relay-proxy whether criu may kill the task: the cache has all of its images. Else it goes on.
post-resume: tells criu-relay-cache that the task runs.

Environment:
    CRIU_RELAY_CONTROL    path of the control socket, of the proxy or the cache
    CRIU_RELAY_NAMESPACE  the namespace
    CRIU_RELAY_TIMEOUT    seconds that the task may stay frozen for the decision; default 120
    CRIU_RELAY_COPY       1: the dump leaves the task running on purpose
"""


class Trouble(Exception):
    """The line that says what is wrong, and what to do about it."""


def main() -> int:
    """Run the stage that CRTOOLS_SCRIPT_ACTION names; the exit status."""
    stage = os.environ.get("CRTOOLS_SCRIPT_ACTION", "")
    if not stage and sys.argv[1:]:
        asked = sys.argv[1] in ("-h", "--help")
        print(HELP, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else MISUSED
    if stage not in ("post-dump", "post-resume"):
        return ALLOWED
    # Behind the check: at the other stages the start of this script shall cost nothing.
    from criu_relay.admin.client import Refused, Unreachable

    try:
        if stage == "post-dump":
            post_dump()
        else:
            post_resume()
    except Refused as error:
        return _failed(stage, f"{error}: {error.hint}" if error.hint else str(error))
    except (Trouble, Unreachable, OSError) as error:
        return _failed(stage, str(error))
    return ALLOWED


def _failed(stage: str, line: str) -> int:
    shown = "".join(character if character.isprintable() else "?" for character in line)
    print(f"criu-relay-action: {stage}: {shown}", file=sys.stderr)
    return REFUSED if stage == "post-dump" else ALLOWED


def post_dump() -> None:
    """Ask the proxy; returns when criu may go on.

    @raise Refused: it may not.
    """
    from criu_relay.admin.client import GRACE, target

    timeout = _timeout()
    path, namespace = find("proxy")
    body = {
        "root": _number("CRTOOLS_INIT_PID"),
        "criu": criu_pid(),
        "copy": os.environ.get("CRIU_RELAY_COPY", "") == "1",
    }
    _client(path).call("POST", target("v1", "namespaces", namespace, "commit", timeout=timeout), body, timeout + GRACE)


def criu_pid() -> int:
    """The criu that runs the script: it names its images directory by a descriptor of its own.

    Our parent is another one when a script around this one was given to criu.
    """
    parts = os.environ.get("CRTOOLS_IMAGE_DIR", "").split("/")
    if len(parts) == 5 and parts[:2] == ["", "proc"] and parts[2].isdigit() and parts[3] == "fd":  # /proc/PID/fd/N
        return int(parts[2])
    return os.getppid()


def post_resume() -> None:
    """Tell the cache."""
    from criu_relay.admin.client import target

    path, namespace = find("cache")
    _client(path).call("POST", target("v1", "namespaces", namespace, "restored"))


def find(role: str) -> tuple[str, str]:
    """The control socket of a role, and the namespace of the directory that criu works in.

    @raise Trouble: no daemon of this role has it.
    """
    from criu_relay.admin.client import Unreachable
    from criu_relay.admin.rundir import run_directories, socket_path

    given, override = os.environ.get("CRIU_RELAY_CONTROL"), os.environ.get("CRIU_RELAY_NAMESPACE")
    paths = [given] if given else [socket_path(directory, role) for directory in run_directories()]
    alive = False
    for path in paths:
        try:
            if override:
                if _client(path).is_alive():
                    return path, override
                continue
            attachments = _client(path).call("GET", "/v1/status")["attachments"]
        except Unreachable as error:
            if not error.absent:
                raise
            continue
        alive = True
        if (namespace := _namespace(attachments)) is not None:
            return path, namespace
    if alive:
        raise Trouble(
            "no daemon has criu's images directory: criu-relay attach DIR, or set CRIU_RELAY_NAMESPACE and "
            "CRIU_RELAY_CONTROL"
        )
    raise Trouble(f"no {role} listens at {' or '.join(paths)}: start it, or set CRIU_RELAY_CONTROL to its socket")


def _client(path: str):  # type: ignore[no-untyped-def]  # its type would have to be imported at every stage
    from criu_relay.admin.client import Client

    return Client(path)


def _namespace(attachments: list[dict[str, object]]) -> str | None:
    """That of the attachment of criu's images directory, else of the working directory; None: there is neither."""
    for directory in (os.environ.get("CRTOOLS_IMAGE_DIR"), "."):
        try:
            found = os.stat(directory or ".")
        except OSError:
            continue
        place = (found.st_dev, found.st_ino)
        names = {str(one["namespace"]) for one in attachments if (one["device"], one["inode"]) == place}
        if len(names) > 1:
            raise Trouble(f"the directory is attached as {' and '.join(sorted(names))}: set CRIU_RELAY_NAMESPACE")
        if names:
            return names.pop()
    return None


def _timeout() -> float:
    text = os.environ.get("CRIU_RELAY_TIMEOUT", "")
    try:
        value = float(text) if text else TIMEOUT
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Trouble(f"CRIU_RELAY_TIMEOUT={text} is not a number of seconds: set it to one such as 120")
    return value


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Trouble(f"{variable}={text} is not a pid: this is for criu --action-script")
    return int(text or "0")


if __name__ == "__main__":
    sys.exit(main())
