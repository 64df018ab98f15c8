"""docs/protocol.md: it has exactly the vectors, and the limits it tells are those of the code."""

from __future__ import annotations

import importlib
import importlib.util
import re

import pytest

from criu_relay.wire import link_pb2
from tests.wire.support import ROOT, VECTORS

PAGE = (ROOT / "docs/protocol.md").read_text()


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_vectors", ROOT / "docs/make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_exactly_the_vectors(script):
    assert script.rendered(PAGE, VECTORS) == PAGE
    for vector in VECTORS:
        assert script.render(vector) in PAGE


def test_a_page_that_differs_is_noticed(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "PAGE", tmp_path / "protocol.md")
    script.PAGE.write_text(PAGE)
    assert script.main(["--check"]) == 0
    script.PAGE.write_text(PAGE.replace("0b000000 0a09", "0b000000 0a0a"))
    assert script.main(["--check"]) == 1
    assert "make_vectors.py" in capsys.readouterr().err
    assert script.main([]) == 0
    assert script.PAGE.read_text() == PAGE


def test_every_section_has_marks():
    marked = re.findall(r"<!-- vectors: (.+) -->", PAGE)
    assert sorted(marked) == sorted({vector["section"] for vector in VECTORS})


def test_limits():
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 14
    for module, name, value in rows:
        assert getattr(importlib.import_module(f"criu_relay.wire.{module}"), name) == int(value)


def test_every_frame_and_every_field_of_it_is_told():
    table = PAGE[PAGE.index("| frame | from") : PAGE.index("source is what")]
    for body in link_pb2.Frame.DESCRIPTOR.oneofs_by_name["body"].fields:
        (row,) = [line for line in table.splitlines() if re.match(rf"\| (\w+, )?{body.name}[ ,]", line)]
        for field in body.message_type.fields:
            assert field.name in row.split("|")[3], f"{body.name}.{field.name}"
