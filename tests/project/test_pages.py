"""The pages that scripts write are what they would write now."""

from __future__ import annotations

import importlib.util
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
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "page"), [("make_limits", "limits.md"), ("make_diagrams", "states.md")])
def test_the_page_is_what_the_code_says(name: str, page: str) -> None:
    made = script(name)
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
