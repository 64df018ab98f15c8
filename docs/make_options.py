#!/usr/bin/env python3
"""Writes docs/options.md: every option of both services, with its type and default, out of their tables.

docs/make_options.py           writes the page
docs/make_options.py --check   exits 1 when the page is not what it would write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "options.md"
sys.path[:0] = [str(HERE.parent), str(HERE)]

from make_manual import Option, service  # noqa: E402

from criu_relay.options import REPEATABLE, TYPES, CacheOptions, ProxyOptions  # noqa: E402

INTRODUCTION = """\
# Options

Written from the tables of `criu_relay/options.py` by `python docs/make_options.py`. They are given to `twistd
criu-relay-proxy` and `twistd criu-relay-cache` as `--NAME VALUE`, or in the TOML file of `--config` as `NAME = VALUE`;
the command line wins. Relative paths in the file start from its directory. Sizes are bytes, with K, M or G for powers
of 1024. Endpoints are Twisted's: `tcp:PORT:interface=ADDRESS` and `unix:PATH` to listen, `tcp:HOST:PORT` to connect.
What is wrong is said in one line: [errors.md](errors.md).
"""

WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def _type(option: Option) -> str:
    """What TOML takes for it."""
    if not option.value:
        return "true or false"
    if option.long == "config":
        return ""
    kinds = TYPES.get(option.long, (str,))
    words = ", ".join(WORDS[kind] for kind in kinds if kind is not int or float not in kinds)
    return f"{words}, or a list" if option.long in REPEATABLE else words


def _row(option: Option) -> str:
    found = re.fullmatch(r"(.*?) \[default: (.*)\]", option.text)
    text, default = (found[1], found[2]) if found else (option.text, "")
    default = f"`{default}`" if default and " " not in default else default
    shown = " ".join([f"--{option.long}", option.value]).strip().replace("|", "\\|")
    text = re.sub(r"(--[a-z][a-z-]*)", r"`\1`", re.sub(r"`", "", text)).replace("|", "\\|")
    return f"| `{shown}` | {text} | {_type(option)} | {default} |"


def _table(options: list[Option]) -> str:
    return "\n".join(["| option | meaning | in TOML | default |", "| --- | --- | --- | --- |", *map(_row, options)])


def page() -> str:
    """The page as it should be."""
    sides = [{option.long: option for option in service(side).options} for side in (ProxyOptions, CacheOptions)]
    proxy, cache = ({name: one for name, one in side.items() if name not in ("help", "version")} for side in sides)
    both = [one for name, one in proxy.items() if cache.get(name) == one]
    parts = [
        INTRODUCTION,
        "## Both services\n",
        _table(both),
        "\n## criu-relay-proxy\n",
        _table([one for one in proxy.values() if one not in both]),
        "\n## criu-relay-cache\n",
        _table([one for one in cache.values() if one not in both]),
    ]
    return "\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit status."""
    wanted = page()
    if arguments == ["--check"]:
        differs = not PAGE.exists() or PAGE.read_text() != wanted
        if differs:
            print("docs/options.md is not what the code says: run docs/make_options.py", file=sys.stderr)
        return int(differs)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
