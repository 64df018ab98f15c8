"""Recorded sessions of a real criu, played against both daemons: the same answers, the same images."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.remote_images.pair import Pair
from tests.support.daemons import Relay
from tests.support.remote_client import Connection, read_all, write_all

DATA = Path(__file__).parents[1] / "data" / "traffic"
SESSIONS = ("single", "predump-dump")


def contents(field: Any) -> bytes:
    """The bytes of a field; see the README beside the recordings."""
    if isinstance(field, str):
        return bytes.fromhex(field)
    return hashlib.shake_128(field["seed"].encode()).digest(field["bytes"])


def session(name: str) -> list[dict[str, Any]]:
    """The connections of a recording."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def send_request(connection: Connection, row: dict[str, Any]) -> int:
    """What criu sent up to a pipe that it passed.

    @return: our end of the pipe; -1: none.
    """
    data = contents(row["sock_from_client"])
    if not row["passes_fd"]:
        connection.send(data)
        return -1
    connection.send(data)
    if row["reply"] is None:
        return connection.pass_pipe("write")
    received = contents(row["sock_to_client"])
    assert connection.receive(len(received)) == received
    return connection.pass_pipe("read")


def play(path: Path, row: dict[str, Any], left_open: list[tuple[int, bytes]] | None) -> None:
    """One connection.

    @param left_open: where writers go that are to stay open; None: each is written and closed.
    """
    with Connection(path) as connection:
        pipe = send_request(connection, row)
        if pipe < 0:
            if row["open_mode"] == 1024:
                return
            same = connection.rest() == (contents(row["sock_to_client"]) if "sock_to_client" in row else b"")
            assert same, row
            return
    if "pipe_from_client" in row:
        data = contents(row["pipe_from_client"])
        if left_open is None or len(data) > 4096:
            write_all(pipe, data)
        else:
            os.write(pipe, data)
            left_open.append((pipe, data))
    else:
        expected = contents(row["pipe_to_client"])
        same = read_some(pipe, len(expected)) == expected
        assert same, row


def read_some(pipe: int, count: int) -> bytes:
    """As much as criu read, then close, as criu did."""
    data = b""
    while len(data) < count and (piece := os.read(pipe, count - len(data))):
        data += piece
    os.close(pipe)
    return data


@pytest.mark.parametrize("overlap", [False, True], ids=["one after the other", "pipes open at once"])
@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_session(relay: Relay, tmp_path: Path, name: str, overlap: bool) -> None:
    """Nothing is deduplicated: what the dump superseded in the pre-dump was read, though not used, by the real criu."""
    pair = Pair(relay)
    pair.start(cache=("--dedup", "off"))
    rows = session(name)
    dump = [row for row in rows if row["side"] == "proxy"]
    restore = [row for row in rows if row["side"] == "cache"]
    assert dump[-1]["name"] == restore[-1]["name"] == ""
    images: dict[tuple[str, str], bytes] = {}
    left_open: list[tuple[int, bytes]] | None = [] if overlap else None
    for row in dump[:-1]:
        if row["open_mode"] == 1024 and left_open:
            # The next criu begins: the one before has closed everything.
            close_in_another_order(left_open)
        play(pair.source / "img-proxy.sock", row, left_open)
        if "pipe_from_client" in row:
            images[row["snapshot_id"], row["name"]] = contents(row["pipe_from_client"])
    if left_open is not None:
        close_in_another_order(left_open)
    pair.commits()
    play(pair.source / "img-proxy.sock", dump[-1], None)
    for row in restore:
        play(pair.target / "img-cache.sock", row, None)

    labels = list(dict.fromkeys(label for label, _ in images))
    found = pair.relay.get("/v1/namespaces/web")
    assert [snapshot["label"] for snapshot in found["snapshots"]] == labels
    assert {
        (snapshot["label"], image["name"]): image["size"]
        for snapshot in found["snapshots"]
        for image in snapshot["images"]
    } == {image: len(data) for image, data in images.items()}
    done = pair.relay.command("export", "web", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for (label, image), data in images.items():
        directory = tmp_path / "out" / (str(labels.index(label) + 1) if len(labels) > 1 else "")
        assert (directory / image).read_bytes() == data, image


def close_in_another_order(left_open: list[tuple[int, bytes]]) -> None:
    """Close pipes, the newest first."""
    while left_open:
        os.close(left_open.pop()[0])


def test_the_recordings_are_what_the_readme_says() -> None:
    for name in SESSIONS:
        for row in session(name):
            assert contents(row["sock_from_client"])
            if row["reply"] is not None:
                assert contents(row["sock_to_client"])[:6] == bytes([2, 0, 0, 0, 8, row["reply"]])
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 300_000
    assert {path.name for path in DATA.iterdir()} == {"README.md", *(f"{name}.jsonl" for name in SESSIONS)}


def test_the_restore_may_come_first(pair: Pair) -> None:
    """Every open of the recorded restore waits for the commit, and is then answered as recorded."""
    rows = session("single")
    asked = [row for row in rows if row["side"] == "cache" and row["name"]]
    connections = []
    for row in asked:
        connection = Connection(pair.target / "img-cache.sock")
        data = contents(row["sock_from_client"])
        connection.send(data)
        connections.append(connection)
    pair.waiting(len(asked))
    for row in rows:
        if row["side"] == "proxy" and row["name"]:
            play(pair.source / "img-proxy.sock", row, None)
    assert all(connection.silent(0.01) for connection in connections)
    pair.commits()
    for row, connection in zip(asked, connections, strict=True):
        with connection:
            expected = contents(row["sock_to_client"])
            assert connection.receive(len(expected)) == expected, row
            if row["passes_fd"]:
                assert read_all(connection.pass_pipe("read")) == contents(row["pipe_to_client"])
