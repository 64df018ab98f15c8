"""Who may import whom, and what else about the shape of the project is a rule.

A part is a folder of criu_relay. What one imports is read from its source, wherever in a module it stands.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "criu_relay"
LONGEST_MODULE = 400

MAY_IMPORT = {
    "wire": {"errors", "wire"},
    "local": {"errors", "flow", "interfaces", "machine", "local", "wire"},
    "link": {"__version__", "errors", "flow", "interfaces", "machine", "link", "wire"},
}
"""Part -> what of ours it may import."""


def imported(source: str, package: str) -> set[str]:
    """The full names that a module imports.

    @param package: the package that it is in, for relative imports.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*start, node.module] if node.module else start)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def modules(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.py")) if not path.name.endswith("_pb2.py"))


def strangers(source: str, part: str) -> set[str]:
    """What a module of `part` imports and may not."""
    ours = {tuple(name.split(".")) for name in imported(source, f"criu_relay.{part}")}
    allowed = MAY_IMPORT[part]
    found = {".".join(name) for name in ours if name[0] == "criu_relay" and not allowed.intersection(name[1:2])}
    if part == "wire":
        found |= {".".join(name) for name in ours if name[0] in ("twisted", "zope")}
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts_know_only_what_they_may(part: str) -> None:
    paths = list(modules(PACKAGE / part))
    assert len(paths) > 1
    assert {str(path.relative_to(ROOT)): strangers(path.read_text(), part) for path in paths} == {
        str(path.relative_to(ROOT)): set() for path in paths
    }


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("local", "from criu_relay.link import sender"),
        ("local", "def f():\n    import criu_relay.link.sender as s"),
        ("local", "from ..link import sender"),
        ("local", "from .. import link"),
        ("local", "import criu_relay"),
        ("local", "from criu_relay import link"),
        ("link", "from criu_relay.local.listener import x"),
        ("link", "from criu_relay.store import arena"),
        ("wire", "from twisted.internet import defer"),
        ("wire", "import zope.interface"),
        ("wire", "from criu_relay import interfaces"),
    ],
)
def test_the_rule_bites(part: str, source: str) -> None:
    assert strangers(source, part)


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("local", "from criu_relay.wire import stream\nfrom criu_relay.interfaces import IDump\nimport os"),
        ("local", "from . import listener\nfrom ..flow.source import DescriptorSource"),
        ("wire", "from criu_relay.wire import link_pb2\nfrom criu_relay.errors import Invalid"),
    ],
)
def test_the_rule_lets_pass(part: str, source: str) -> None:
    assert strangers(source, part) == set()


def test_modules_are_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(PACKAGE)}
    assert "criu_relay/options.py" in lengths
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_twisted_plugins_is_no_package_of_ours() -> None:
    """An __init__.py there would hide the plugins of Twisted and of everyone else."""
    assert [path.name for path in (ROOT / "twisted").rglob("*.py")] == ["criu_relay_plugin.py"]


def test_every_package_is_released() -> None:
    """setuptools takes folders with an __init__.py only."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert PACKAGE in folders
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_protobuf_runtime_is_not_older_than_its_generator() -> None:
    """A module that a newer generator made refuses to be imported; pyproject.toml must exclude older runtimes."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    (wanted,) = (text for text in dependencies if text.startswith("protobuf"))
    generated = sorted((PACKAGE / "wire").glob("*_pb2.py"))
    assert generated
    for path in generated:
        (made,) = (line for line in path.read_text().splitlines() if line.startswith("# Protobuf Python Version: "))
        assert wanted.startswith(f"protobuf>={made.rpartition(' ')[2]},"), path


def test_every_proto_has_its_modules() -> None:
    sources = {path.stem for path in (ROOT / "proto" / "criu_relay" / "wire").glob("*.proto")}
    assert sources
    wire = PACKAGE / "wire"
    assert {path.name.removesuffix("_pb2.py") for path in wire.glob("*_pb2.py")} == sources
    assert {path.name.removesuffix("_pb2.pyi") for path in wire.glob("*_pb2.pyi")} == sources
