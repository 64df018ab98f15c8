"""What one proxy takes from CRIU: more is refused to who brings it, before a cache has to refuse the link for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_relay.commit import dumps, migration
from criu_relay.errors import Conflict
from criu_relay.interfaces import Mode
from tests.commit.fakes import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_images(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "MAX_IMAGES", 2)
    bench.written("a.img", "b.img", "b.img")
    with pytest.raises(Conflict, match="more than 2 images"):
        bench.written("c.img")


def test_snapshots(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "MAX_SNAPSHOTS", 2)
    bench.dump.push_snapshots(bench.client, ["/one", "/two"])
    with pytest.raises(Conflict, match="more than 2 snapshots"):
        bench.dump.push_snapshots(bench.client, ["/three"])


def test_migrations(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "MAX_MIGRATIONS", 2)
    begun = [bench.dumps.namespace(name).begin() for name in ("a", "b")]
    with pytest.raises(Conflict, match="2 migrations"):
        bench.dumps.namespace("c").begin()
    begun[0].abort("a test")
    bench.dumps.namespace("c").begin()


def test_names_are_forgotten_when_nothing_needs_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "NAMESPACES", 4)
    attached = ["attached"]
    bench.dumps.listeners = lambda name: [None] if name in attached else []  # type: ignore[list-item]
    bench.dumps.namespace("attached")
    waited = bench.dumps.namespace("waited").begun.wait()
    open_one = bench.dumps.namespace("web").begin()
    assert set(bench.dumps.namespaces) == {"attached", "waited", "web"}
    for number in range(5):
        bench.dumps.namespace(f"n{number}").begin().abort("a test")
        assert set(bench.dumps.namespaces) == {"attached", "waited", "web", f"n{number}"}
    bench.dumps.namespace("last").begin()
    with pytest.raises(Conflict, match="needs them all"):
        bench.dumps.namespace("more")
    open_one.abort("a test")
    waited.addErrback(lambda _: None).cancel()
    attached.clear()
    for number in range(5):
        bench.dumps.namespace(f"m{number}").open_image(bench.client, "", "a.img", Mode.REPLACE)
        newest = bench.dumps.known(f"m{number}")
        newest.abort("a test")
        bench.dumps.namespace(f"m{number}").client_gone(bench.client)
