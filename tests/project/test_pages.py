"""The pages that scripts write are what they would write now."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As dataclasses want it.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def errors() -> ModuleType:
    """The script that reads all of the code, once for all tests."""
    return script("make_errors")


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("make_limits", "limits.md"), ("make_diagrams", "states.md"), ("make_errors", "errors.md"),
        ("make_options", "options.md"),
    ],
)  # fmt: skip
def test_the_page_is_what_the_code_says(name: str, page: str) -> None:
    made = errors() if name == "make_errors" else script(name)
    assert (DOCS / page).read_text() == made.page()


def test_a_limit_that_differs_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = script("make_limits")
    made.PAGE = tmp_path / "limits.md"
    assert made.main(["--check"]) == 1
    assert made.main([]) == 0
    assert made.main(["--check"]) == 0
    made.PAGE.write_text(made.PAGE.read_text().replace("| 4096 |", "| 4097 |", 1))
    assert made.main(["--check"]) == 1
    assert "make_limits.py" in capsys.readouterr().err


def test_each_limit_has_its_reason() -> None:
    made = script("make_limits")
    for constants in made.SECTIONS.values():
        for constant in constants:
            module, _, name = constant.rpartition(".")
            assert len(made.reason(module, name)) > 20, constant
    with pytest.raises(LookupError):
        made.reason("wire.link", "WHAT")


def test_every_error_says_what_to_do() -> None:
    """In the code, or in docs/error_texts.py, which has nothing that is not in the code."""
    made = errors()
    found = made.messages()
    assert len(found) > 300
    assert made.silent(found) == []
    assert set(made.texts.ADVICE) - {one.text for one in found if not one.hint} == set()


def test_lines_are_read_out_of_the_code(tmp_path: Path) -> None:
    made = errors()
    source = """
def f(self, path, error):
    hint = "make it first"
    if path:
        raise NotFound(f"no {path!r} in {len(self.known)}: {error.strerror}, " f"{MAX_NAME} at most", hint=hint)
    raise item.wrong(f"it is {'here' if path else 'there'}; give another")
"""
    known = made.Texts("wire/names")
    tree = made.ast.parse(source)
    found = []
    for scope in made._scopes(tree):
        known.local = made._assigned(scope)
        for node in made._own(scope):
            found += made._message("wire/names", known, node, {"NotFound"})
    assert [(one.text, one.hint) for one in found] == [
        ("no PATH in N: REASON, 255 at most", "make it first"),
        ("--OPTION VALUE: it is here/there", "give another"),
    ]


def test_an_error_of_which_nobody_says_what_to_do_is_noticed() -> None:
    made = errors()
    silent = made.Message("commit/x", "Conflict", "nobody has ever said this")
    assert made.silent([silent, made.Message("commit/x", "Conflict", "what", "do this")]) == [silent]


def quoted(page: Path) -> list[str]:
    """The lines of the program that a page has, in the first column of its tables."""
    rows = re.findall(r"^\| (.*?) \| ", page.read_text(), re.MULTILINE)
    return [row.strip("`") for row in rows if row.startswith("`") and row.endswith("`") and row.count("`") == 2]


def test_troubleshooting_has_the_lines_as_they_are_printed() -> None:
    printed = {one.text for one in errors().messages()}
    lines = quoted(DOCS / "troubleshooting.md")
    assert len(lines) > 30
    assert [line for line in lines if line not in printed] == []
