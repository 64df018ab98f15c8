"""Writes the manual pages and the completions of bash, zsh and fish, from the parsers that the program runs on.

usage: python docs/make_manual.py [--check]

With --check nothing is written; the exit status is 1 when a file is not what it would write. What the parsers do not
have is in docs/manual_texts.py. zsh completes twistd's services itself: Twisted answers it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import manual_texts as texts  # noqa: E402

from criu_relay import __version__  # noqa: E402
from criu_relay.admin.command import parser  # noqa: E402
from criu_relay.options import CacheOptions, ProxyOptions  # noqa: E402

FILES, DIRECTORIES, NAMESPACES = "file", "directory", "namespace"

VALUES = {
    "DIR": DIRECTORIES, "DIR[=NAMESPACE]": DIRECTORIES, "FILE": FILES, "PATH": FILES, "NAMESPACE": NAMESPACES,
}  # fmt: skip
"""What stands for a value -> what it is completed with."""


@dataclass(frozen=True)
class Option:
    """One option.

    @ivar flags: such as "-h", "--help".
    @ivar value: what stands for its value; empty: it has none.
    @ivar choices: the values there are.
    """

    flags: tuple[str, ...]
    value: str
    text: str
    choices: tuple[str, ...] = ()

    @property
    def long(self) -> str:
        return self.flags[-1].removeprefix("--")


@dataclass(frozen=True)
class Argument:
    """One argument.

    @ivar many: "?" may be left out, "+" one or more; empty: exactly one.
    """

    value: str
    text: str
    many: str = ""

    @property
    def shown(self) -> str:
        return {"": self.value, "?": f"[{self.value}]", "+": f"{self.value} ..."}[self.many]


@dataclass(frozen=True)
class Command:
    """A command, or one of its subcommands."""

    name: str
    text: str
    options: list[Option]
    arguments: list[Argument] = field(default_factory=list)


def command_line() -> tuple[list[Option], list[Command]]:
    """`criu-relay`: its own options, and its commands."""
    top = parser()
    (chosen,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    helped = {action.dest: action.help or "" for action in chosen._choices_actions}
    commands = [Command(name, helped[name], *_of(found)) for name, found in chosen.choices.items()]
    return _of(top)[0], commands


def _of(found: argparse.ArgumentParser) -> tuple[list[Option], list[Argument]]:
    options, arguments = [], []
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        value = str(action.metavar or "") if action.nargs != 0 else ""
        choices = tuple(str(choice) for choice in action.choices or ())
        if action.option_strings:
            shown = value or ("|".join(choices) if choices else "")
            options.append(Option(tuple(action.option_strings), shown, action.help or "", choices))
        else:
            arguments.append(Argument(value, action.help or texts.ARGUMENTS[value], str(action.nargs or "")))
    return options, arguments


def service(side: type[ProxyOptions] | type[CacheOptions]) -> Command:
    """`twistd criu-relay-...`: its options."""
    made = side()
    options = []
    for entry in sorted(made.longOpt):
        name = entry.rstrip("=")
        text = made.docs[name]
        value = ""
        if entry.endswith("="):
            # What stands for the value begins the text of those that can be repeated.
            found = re.match(r"(DIR\[=NAMESPACE\]): (.*)", text)
            value, text = (found[1], found[2]) if found else (texts.SERVICE_VALUES[name], text)
        options.append(Option((f"--{name}",), value, text))
    return Command(f"criu-relay-{made.role}", made.longdesc, options)


# Manual pages: man(7)


def roff(text: str) -> str:
    """Text for a manual page: `code` is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _page(name: str, section: int, what: str, synopsis: list[str], blocks: list[tuple[str, list[str]]]) -> str:
    lines = [
        '.\\" Made by docs/make_manual.py.',
        f'.TH {roff(name.upper())} {section} "" "criu_relay {__version__}"',
        ".SH NAME",
        f"{roff(name)} \\- {roff(what)}",
        ".SH SYNOPSIS",
        ".nf",
        *(roff(line) for line in synopsis),
        ".fi",
    ]
    for title, block in blocks:
        lines += [f".SH {title}", *block]
    return "\n".join(lines) + "\n"


def _tagged(tag: str, text: str) -> list[str]:
    return [".TP", f"\\fB{roff(tag)}\\fR", roff(text)]


def _options(options: list[Option]) -> list[str]:
    return [
        line
        for option in options
        for line in _tagged(", ".join(option.flags) + (f" {option.value}" if option.value else ""), option.text)
    ]


def _table(rows: dict[str, str]) -> list[str]:
    return [line for tag, text in rows.items() for line in _tagged(tag, text)]


def _example(lines: list[str]) -> list[str]:
    return [".nf", *(roff(line) for line in lines), ".fi"]


def command_page(own: list[Option], commands: list[Command]) -> str:
    """criu-relay(1)."""
    blocks = []
    for command in commands:
        usage = " ".join([command.name, "[options]", *(argument.shown for argument in command.arguments)])
        options = [option for option in command.options if option.long not in ("help", "control")]
        blocks += [f'.SS "{roff(usage)}"', roff(command.text) + "."]
        for argument in command.arguments:
            blocks += _tagged(argument.value, argument.text)
        blocks += _options(options)
    return _page("criu-relay", 1, texts.COMMAND, ["criu-relay [--control PATH] COMMAND ..."], [
        ("DESCRIPTION", [roff(texts.COMMAND_DESCRIPTION)]),
        ("OPTIONS", _options(own)),
        ("COMMANDS", blocks),
        ("EXIT STATUS", _table(texts.STATUSES)),
        ("FILES", _table(texts.FILES)),
        ("SEE ALSO", [roff("criu-relay-action(1), criu-relay-proxy(8), criu-relay-cache(8), criu(8)")]),
    ])  # fmt: skip


def action_page() -> str:
    """criu-relay-action(1)."""
    return _page("criu-relay-action", 1, texts.ACTION, texts.ACTION_SYNOPSIS, [
        ("DESCRIPTION", [roff(texts.ACTION_DESCRIPTION)]),
        ("STAGES", _table(texts.STAGES)),
        ("ENVIRONMENT", _table(texts.VARIABLES)),
        ("SEE ALSO", [roff("criu-relay(1), criu-relay-proxy(8), criu-relay-cache(8), criu(8)")]),
    ])  # fmt: skip


def service_page(command: Command) -> str:
    """criu-relay-proxy(8), criu-relay-cache(8)."""
    role = command.name.rpartition("-")[2]
    other = {"proxy": "cache", "cache": "proxy"}[role]
    return _page(command.name, 8, texts.SERVICES[role], [f"twistd [-n --pidfile=] {command.name} [options]"], [
        ("DESCRIPTION", [roff(command.text)]),
        ("OPTIONS", _options(command.options)),
        ("SIGNALS", _table(texts.SIGNALS)),
        ("FILES", _table(texts.FILES)),
        ("EXAMPLE", _example(texts.EXAMPLES[role])),
        ("SEE ALSO", [roff(f"criu-relay(1), criu-relay-action(1), criu-relay-{other}(8), twistd(1), criu(8)")]),
    ])  # fmt: skip


# Completions

NAMES = r"""criu-relay status --json 2>/dev/null | sed -n 's/^      "name": "\(.*\)",\{0,1\}$/\1/p'"""
"""The namespaces of the daemon that lives: in that output nothing else with a name is indented so."""


def bash(own: list[Option], commands: list[Command], services: list[Command]) -> str:
    """For bash-completion; sourced it does the same."""
    out = [texts.MADE, *texts.BASH_HEAD.replace("@NAMES@", NAMES).strip("\n").splitlines(), "", "_criu_relay() {"]
    out += [*_bash_start(), "    local command= i", "    for ((i = 1; i < COMP_CWORD; i++)); do"]
    names = "|".join(command.name for command in commands)
    out += [f"        case ${{COMP_WORDS[i]}} in {names}) command=${{COMP_WORDS[i]}}; break ;; esac", "    done"]
    out += ['    case "$command:$previous" in']
    seen: dict[str, list[str]] = {}
    for name, options in (("*", own), *((command.name, command.options) for command in commands)):
        for option in options:
            if option.value and option.flags not in [other.flags for other in own if name != "*"]:
                seen.setdefault(_bash_values(option.value, option.choices), []).extend(
                    f"{name}:{flag}" for flag in option.flags
                )
    out += [f"    {'|'.join(cases)}) {action}; return ;;" for action, cases in seen.items()]
    out += [
        "    esac",
        '    case "$command" in',
        f'    "") _criu_relay_words "{names.replace("|", " ")} {_flags(own)}" ;;',
    ]
    for command in commands:
        kinds = [VALUES.get(argument.value) for argument in command.arguments]
        actions = [_bash_values(argument.value) for argument in command.arguments]
        default = actions[0] if kinds and len(set(kinds)) == 1 else " ; ".join(dict.fromkeys(actions)) or ":"
        out.append(f'    {command.name}) _criu_relay_or_flags "{_flags(command.options)}" && {{ {default}; }} ;;')
    out += ["    esac", "}", "complete -F _criu_relay criu-relay", "complete -W '' criu-relay-action", ""]
    out += ["_criu_relay_twistd() {", *_bash_start(), "    local i"]
    out += ["    for ((i = 1; i < COMP_CWORD; i++)); do", "        case ${COMP_WORDS[i]} in"]
    for service in services:
        out += [f"        {service.name})", '            case "$previous" in']
        seen = {}
        for option in service.options:
            if option.value:
                seen.setdefault(_bash_values(option.value), []).extend(option.flags)
        out += [f"            {'|'.join(flags)}) {action}; return ;;" for action, flags in seen.items()]
        out += [
            "            esac",
            f'            _criu_relay_words "{_flags(service.options)}"',
            "            return ;;",
        ]
    words = " ".join(service.name for service in services)
    out += ["        esac", "    done", f'    _criu_relay_words "{words}"', "}"]
    out += ["complete -o default -F _criu_relay_twistd twistd", ""]
    return "\n".join(out)


def _bash_start() -> list[str]:
    return ["    COMPREPLY=()", "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}"]


def _bash_values(value: str, choices: tuple[str, ...] = ()) -> str:
    if choices:
        return f'_criu_relay_words "{" ".join(choices)}"'
    kind = VALUES.get(value)
    return {FILES: "_criu_relay_files", DIRECTORIES: "_criu_relay_files -d", NAMESPACES: "_criu_relay_names"}.get(
        kind or "", ":"
    )


def _flags(options: list[Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)


def zsh(own: list[Option], commands: list[Command]) -> str:
    """For a directory of $fpath, as _criu-relay."""
    out = [
        "#compdef criu-relay criu-relay-action",
        texts.MADE,
        *texts.ZSH_HEAD.replace("@NAMES@", NAMES).strip("\n").splitlines(),
    ]
    out += ["", "_criu-relay() {", "    [[ $service == criu-relay-action ]] && { _message 'no arguments'; return }"]
    out += ["    local context state state_descr line", "    typeset -A opt_args", "    _arguments -C \\"]
    out += [f"        {_zsh_option(option)} \\" for option in own]
    out += ["        '1:command:->command' '*::argument:->argument'", "    case $state in", "    command)"]
    out += ["        local -a commands=("]
    out += [f"            {_quoted(f'{command.name}:{command.text}')}" for command in commands]
    out += ["        )", "        _describe command commands ;;", "    argument)", "        case $line[1] in"]
    for command in commands:
        out.append(f"        {command.name}) _arguments \\")
        parts = [_zsh_option(option) for option in command.options]
        for number, argument in enumerate(command.arguments, 1):
            where = "*" if argument.many == "+" else f"{number}:" if argument.many == "?" else str(number)
            message = argument.text.replace(":", "\\:")
            parts.append(_quoted(f"{where}:{message}:{_zsh_values(argument.value)}"))
        out += [f"            {part} \\" for part in parts[:-1]] + [f"            {parts[-1]} ;;"]
    out += ["        esac ;;", "    esac", "}", "", '_criu-relay "$@"', ""]
    return "\n".join(out)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_option(option: Option) -> str:
    text = re.sub(r"([\[\]:])", r"\\\1", option.text)
    value = f":{option.value}:{_zsh_values(option.value, option.choices)}" if option.value else ""
    if len(option.flags) == 1:
        return _quoted(f"{option.flags[0]}[{text}]{value}")
    return f"'({' '.join(option.flags)})'{{{','.join(option.flags)}}}" + _quoted(f"[{text}]{value}")


def _zsh_values(value: str, choices: tuple[str, ...] = ()) -> str:
    if choices:
        return f"({' '.join(choices)})"
    return {FILES: "_files", DIRECTORIES: "_files -/", NAMESPACES: "_criu_relay_names"}.get(VALUES.get(value, ""), " ")


def fish(own: list[Option], commands: list[Command], services: list[Command]) -> str:
    """For a directory of fish's completions, as criu-relay.fish; what it says of twistd is read with it."""
    out = [texts.MADE, *texts.FISH_HEAD.replace("@NAMES@", NAMES).strip("\n").splitlines(), ""]
    names = " ".join(command.name for command in commands)
    out += [f"set -l commands {names}", "complete -c criu-relay -f", "complete -c criu-relay-action -f"]
    none = '-n "not __fish_seen_subcommand_from $commands"'
    out += [f"complete -c criu-relay {none} {_fish_option(option)}" for option in own]
    out += [f"complete -c criu-relay {none} -a {command.name} -d {_fish(command.text)}" for command in commands]
    for command in commands:
        seen = f'-n "__fish_seen_subcommand_from {command.name}"'
        out += [f"complete -c criu-relay {seen} {_fish_option(option)}" for option in command.options]
        for value in dict.fromkeys(argument.value for argument in command.arguments):
            if values := _fish_values(value):
                out.append(f"complete -c criu-relay {seen} {values}")
    for service in services:
        out.append(f"complete -c twistd -a {service.name}")
        seen = f'-n "__fish_seen_subcommand_from {service.name}"'
        out += [f"complete -c twistd {seen} {_fish_option(option)}" for option in service.options]
    return "\n".join(out) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_option(option: Option) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    return f"{flags} -d {_fish(option.text)}" + (
        f" -r {_fish_values(option.value, option.choices) or '-f'}" if option.value else ""
    )


def _fish_values(value: str, choices: tuple[str, ...] = ()) -> str:
    if choices:
        return f"-f -a {_fish(' '.join(choices))}"
    kinds = {
        FILES: "-F",
        DIRECTORIES: "-f -a '(__fish_complete_directories)'",
        NAMESPACES: "-f -a '(__criu_relay_names)'",
    }
    return kinds.get(VALUES.get(value, ""), "")


def files() -> Iterator[tuple[Path, str]]:
    """What is written: path and text."""
    own, commands = command_line()
    services = [service(ProxyOptions), service(CacheOptions)]
    man, completions = HERE / "man", HERE.parent / "conf" / "completions"
    yield man / "criu-relay.1", command_page(own, commands)
    yield man / "criu-relay-action.1", action_page()
    for one in services:
        yield man / f"{one.name}.8", service_page(one)
    yield completions / "criu-relay.bash", bash(own, commands, services)
    yield completions / "_criu-relay", zsh(own, commands)
    yield completions / "criu-relay.fish", fish(own, commands, services)


def main() -> int:
    """Write the files, or check them."""
    status = 0
    for path, text in files():
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(HERE.parent)} is not up to date: python docs/make_manual.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
