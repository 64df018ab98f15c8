#!/usr/bin/env python3
"""Writes docs/errors.md: every line with which the commands and daemons say that something is wrong, out of the code.

docs/make_errors.py           writes the page
docs/make_errors.py --check   exits 1 when the page is not what it would write

What to do is the hint that the error has; what the code cannot say (a log, for instance, has one line only) is in
docs/error_texts.py.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = HERE / "errors.md"
PACKAGE = ROOT / "criu_relay"
sys.path[:0] = [str(ROOT), str(HERE)]

import error_texts as texts  # noqa: E402

PROTOCOL = "ProtocolError"

LOGGED = {"warn": "warning", "error": "error", "critical": "critical"}
"""Methods of a logger, and how urgent what they say is."""

PLAIN = {"UsageError", "Trouble", "Unreachable", "Unanswered", "Broken", "ArgumentTypeError"}
"""Errors of one text."""

UNNAMED = {"reason", "strerror", "why", "error", "getErrorMessage", "value", "socketError"}
"""What stands for whatever went wrong."""


@dataclass(frozen=True)
class Message:
    """One line.

    @ivar module: such as "link/handshake".
    @ivar kind: the class of the error, or how urgent a line of the log is.
    @ivar text: the line, with NAMES in the place of what differs.
    @ivar hint: what to do, as the code has it; may be empty.
    """

    module: str
    kind: str
    text: str
    hint: str = ""

    @property
    def todo(self) -> str:
        """What to do; empty: nobody says so."""
        return self.hint or texts.ADVICE.get(self.text, "")


def typed_errors() -> set[str]:
    """The names of all classes below RelayError."""
    found = {"RelayError"}
    classes = [node for _, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while True:
        more = {node.name for node in classes if found & {_last(base) for base in node.bases}}
        if more <= found:
            return found
        found |= more


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.name.endswith("_pb2.py"):
            yield path.relative_to(PACKAGE).with_suffix("").as_posix(), ast.parse(path.read_text())


def _last(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


class Texts:
    """The texts of one module.

    @ivar known: what its names stand for when it is imported.
    """

    def __init__(self, module: str) -> None:
        self.known = vars(importlib.import_module("criu_relay." + module.replace("/", ".").removesuffix(".__init__")))
        self.local: dict[str, ast.expr] = {}

    def of(self, node: ast.expr | None) -> str | None:
        """A text with NAMES; None: it comes from somewhere else, where it is found as well."""
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(self._part(part) for part in parts)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                pieces = self.of(left), self.of(right)
                return None if None in pieces else "".join(str(piece) for piece in pieces)
            case ast.IfExp(body=one, orelse=other):
                either = [text for text in (self.of(one), self.of(other)) if text]
                return " / ".join(either) or None
            case ast.BoolOp(values=[*_, last]):
                return self.of(last)
            case ast.Call(func=ast.Name(id="plain"), args=[inner]):
                return self.of(inner)
            case ast.Name(id=name) if name in self.local:
                found = self.local[name]
                return None if isinstance(found, ast.Name) and found.id == name else self.of(found)
            case ast.Name(id=name) if isinstance(self.known.get(name), str):
                return str(self.known[name])
        return None

    def _part(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=text):
                return str(text)
            case ast.FormattedValue(value=ast.IfExp(body=one, orelse=other)):
                either = [self.of(each) for each in (one, other)]
                return "" if "" in either else "/".join(text or "..." for text in either)
            case ast.FormattedValue(value=value, format_spec=spec):
                fixed = self._fixed(value)
                if fixed is None:
                    return self._name(value)
                form = "".join(str(part.value) for part in spec.values) if isinstance(spec, ast.JoinedStr) else ""
                return format(fixed, form)
        raise TypeError(ast.dump(node))

    def _fixed(self, node: ast.expr) -> object | None:
        """The value of a constant of the module, or of a sum with constants."""
        names = [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]
        plain = all(isinstance(one, ast.expr | ast.operator | ast.expr_context) for one in ast.walk(node))
        calls = any(isinstance(one, ast.Call | ast.Subscript | ast.GeneratorExp) for one in ast.walk(node))
        if not names or not plain or calls or not all(name in self.known for name in names) or not _last_is_fixed(node):
            return None
        found: object = eval(compile(ast.Expression(node), "", "eval"), dict(self.known))
        return found if isinstance(found, int | float | str) else None

    def _name(self, node: ast.expr) -> str:
        """What stands for a value."""
        match node:
            case ast.Attribute(value=inner, attr="value"):
                return self._name(inner)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return "REASON" if name in UNNAMED else name.strip("_").upper()
            case ast.Call(func=ast.Name(id="len" | "sum" | "count")):
                return "N"
            case ast.Call(func=ast.Attribute(attr="join"), args=[inner]):
                return self._name(inner)
            case ast.Call(func=ast.Attribute(value=ast.Constant())) | ast.Call(func=ast.Name(), args=[]):
                return "NAME"
            case ast.Call(func=ast.Name(), args=[inner, *_]) | ast.GeneratorExp(elt=inner):
                return self._name(inner)
            case ast.Call(func=ast.Attribute(value=inner, attr=name)):
                return "REASON" if name in UNNAMED else self._name(inner)
            case ast.Subscript(value=_, slice=ast.Name(id=name)):
                return name.upper()
            case ast.Subscript(value=inner) | ast.UnaryOp(operand=inner) | ast.BinOp(left=inner):
                return self._name(inner)
            case ast.BoolOp(values=[inner, *_]) | ast.IfExp(body=inner):
                return self._name(inner)
        return "NAME"


def _last_is_fixed(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.isupper()
        case ast.BinOp(left=left):
            return _last_is_fixed(left)
    return False


@functools.cache
def messages() -> tuple[Message, ...]:
    """All of them, as they stand in the code; each once in a module."""
    errors = typed_errors()
    found: dict[Message, None] = {}
    for module, tree in _trees():
        texts_of = Texts(module)
        for function in _scopes(tree):
            texts_of.local = _assigned(function)
            for node in _own(function):
                for message in _message(module, texts_of, node, errors):
                    found[message] = None
    return tuple(found)


def _scopes(tree: ast.Module) -> list[ast.AST]:
    return [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))]


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """What is in a scope, without the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _own(child)


def _assigned(scope: ast.AST) -> dict[str, ast.expr]:
    """What the names of a function stand for, where it is a text."""
    if isinstance(scope, ast.Module):
        return {}
    return {
        node.targets[0].id: node.value
        for node in _own(scope)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _message(module: str, known: Texts, node: ast.AST, errors: set[str]) -> Iterator[Message]:
    match node:
        case ast.Assign(targets=[ast.Name(id="_VERIFICATION")], value=ast.Dict(values=values)):
            refusals: list[ast.expr] = values
        case ast.Assign(targets=[ast.Attribute(attr="_refusal")], value=value):
            refusals = [value]
        case _:
            refusals = []
    for refusal in refusals:
        if text := known.of(refusal):
            yield Message(module, "Forbidden", f"the peer's certificate is refused: {text}")
    found = _called(module, known, node, errors) if isinstance(node, ast.Call) else None
    if found is not None and found.text and found.text not in texts.ENVELOPES:
        yield found


def _called(module: str, known: Texts, call: ast.Call, errors: set[str]) -> Message | None:
    name, where = _last(call.func), call.func.value if isinstance(call.func, ast.Attribute) else None
    arguments: list[ast.expr | None] = [*call.args, None, None, None]
    if name in errors and arguments[0] is not None:
        hints = [word.value for word in call.keywords if word.arg == "hint"]
        return Message(module, name, known.of(arguments[0]) or "", known.of(hints[0] if hints else arguments[1]) or "")
    if name == "Stop":
        return Message(module, name, known.of(arguments[1]) or "", known.of(arguments[2]) or "")
    if name == "ValueError" and module == "values":
        return _split(module, "UsageError", "--OPTION VALUE: ", known.of(arguments[0]))
    if name == "wrong" and where is not None:
        return _split(module, "UsageError", "--OPTION VALUE: ", known.of(arguments[0]))
    if name in PLAIN:
        if name == "ArgumentTypeError":
            text = known.of(arguments[0])
            return Message(module, name, f"argument NAME: {text}", texts.SEE_HELP) if text else None
        return _split(module, name, "", known.of(arguments[0]))
    if name in LOGGED and where is not None and _last(where) in ("log", "_log"):
        text = known.of(arguments[0])
        if text is None or "{todo}" in text or not re.search(r"[a-z]", re.sub(r"\{.*?\}|peer", "", text)):
            return None
        return Message(module, LOGGED[name], re.sub(r"\{(\w+)[^}]*\}", _placeholder, text))
    if name == "abort" and module.startswith(("commit/", "local/", "flow/", "admin/")):
        return Message(module, "Aborted", known.of(arguments[0]) or "", known.of(arguments[1]) or "")
    if name in ("_wrong", "_error") and module.startswith("wire/"):
        problem = [known.of(one) or known._name(one) for one in call.args]
        return Message(module, PROTOCOL, " ".join(["field", *problem] if len(problem) > 1 else problem))
    return None


def _placeholder(found: re.Match[str]) -> str:
    return "REASON" if found[1] in UNNAMED else found[1].upper()


def _split(module: str, kind: str, prefix: str, text: str | None) -> Message | None:
    """Of "what; what to do" and "what: what to do"."""
    if text is None:
        return None
    for parting in ("; ", ": "):
        what, _, todo = text.partition(parting)
        if text.startswith("give "):
            return Message(module, kind, prefix.removesuffix(": "), text)
        if todo.startswith(texts.IMPERATIVES):
            return Message(module, kind, prefix + what, todo)
    return Message(module, kind, prefix + text)


def group_of(message: Message) -> str:
    """Where a person meets it."""
    if message.module.startswith("wire/") or (message.kind == PROTOCOL and message.module not in texts.OWN_PROTOCOL):
        return texts.PROTOCOL_GROUP
    return next(
        title
        for title, (_, modules) in texts.GROUPS.items()
        if any(message.module == module or message.module.startswith(module + "/") for module in modules)
    )


def silent(found: Iterable[Message]) -> list[Message]:
    """Those of which nobody says what to do."""
    return [one for one in found if not one.todo and group_of(one) != texts.PROTOCOL_GROUP]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    ticks = "``" if "`" in text else "`"
    return f"{ticks} {_cell(text)} {ticks}" if "`" in text else f"`{_cell(text)}`"


def _todo(message: Message) -> str:
    """Its cell; names and options are not to become typographic dashes, nor <tags>."""
    return re.sub(r"(--[a-z][a-z-]*)", r"`\1`", _cell(message.todo).replace("`", ""))


def page() -> str:
    """The page as it should be."""
    grouped: dict[str, dict[str, Message]] = {title: {} for title in texts.GROUPS}
    for message in messages():
        before = grouped[group_of(message)].get(message.text)
        if before is None or not before.todo:
            grouped[group_of(message)][message.text] = message
    parts = [texts.INTRODUCTION]
    for title, (introduction, _) in texts.GROUPS.items():
        found = sorted(grouped[title].values(), key=lambda one: (one.module, one.text))
        parts.append(f"\n## {title}\n\n{introduction}\n")
        if title == texts.PROTOCOL_GROUP:
            parts.append("| the line | of |\n| --- | --- |")
            parts += [f"| {_code(one.text)} | {_code(one.module)} |" for one in found]
        else:
            parts.append("| the line | what to do |\n| --- | --- |")
            parts += [f"| {_code(one.text)} | {_todo(one)} |" for one in found]
    return "\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit status."""
    wanted = page()
    if arguments == ["--check"]:
        differs = not PAGE.exists() or PAGE.read_text() != wanted
        if differs:
            print("docs/errors.md is not what the code says: run docs/make_errors.py", file=sys.stderr)
        return int(differs)
    PAGE.write_text(wanted)
    for one in silent(messages()):
        print(f"{one.module}: {one.kind}: nobody says what to do: {one.text}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
