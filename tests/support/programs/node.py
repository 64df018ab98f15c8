"""node.py STATUS COMMAND...: the first process of a second "node", a pid namespace of its own.

Runs a command, writes its exit status to a file, and reaps whatever is left to it, until nothing is.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run it."""
    status, *command = sys.argv[1:]
    pid = os.posix_spawnp(command[0], command, os.environ)
    while True:
        try:
            found, result = os.wait()
        except ChildProcessError:
            return
        if found == pid:
            with open(status + ".new", "w", encoding="ascii") as file:
                file.write(str(os.waitstatus_to_exitcode(result)))
            os.rename(status + ".new", status)


main()
