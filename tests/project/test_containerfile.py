"""The file for an OCI image: what it copies exists and is all that the package is made of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.project.test_packaging import SOURCES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "packaging" / "Containerfile").read_text()
STEPS = re.findall(
    r"^([A-Z]+) (.*)$", re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)), re.MULTILINE
)
COPIED = {
    name.rstrip("/")
    for step, text in STEPS
    if step == "COPY" and not text.startswith("--from")
    for name in text.split()[:-1]
}


def test_it_copies_what_the_package_is_made_of() -> None:
    assert set(SOURCES) - {"proto"} == COPIED


def test_what_it_copies_is_not_ignored() -> None:
    lines = (ROOT / ".containerignore").read_text().splitlines()
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == COPIED
    assert [name for name in COPIED if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("step", ["ENTRYPOINT", "CMD", "VOLUME"])
def test_lists_are_json(step: str) -> None:
    (text,) = (text for name, text in STEPS if name == step)
    assert all(isinstance(word, str) for word in json.loads(text))


def test_signals_and_stages() -> None:
    assert [text for name, text in STEPS if name == "STOPSIGNAL"] == ["SIGTERM"]
    assert [text.partition(" AS ")[0] for name, text in STEPS if name == "FROM"] == [
        "docker.io/library/python:3.13-slim-trixie"
    ] * 2
