"""`criu-relay commit` by a person, who is told at once what there is to decide, and `status` of what was."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemons import Relay
from tests.support.polling import until

SIZE = 100_001


def test_what_there_is_to_decide(relay: Relay, tmp_path: Path) -> None:
    relay.start_cache()
    relay.start_proxy()
    relay.linked()
    unknown = relay.command("commit", "web", at="proxy")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "no namespace web" in unknown.stderr
    images = tmp_path / "images"
    images.mkdir()
    (images / "inventory.img").write_bytes(bytes.fromhex("1943565416313158") + b"x" * SIZE)
    assert relay.command("import", str(images), "web", at="proxy").returncode == 0
    again = relay.command("commit", "web", at="proxy")
    assert again.returncode == 1 and "namespace web is committed already" in again.stderr
    assert relay.get("/v1/status", at="proxy")["link"]["peers"][0]["bytes"] >= SIZE
    size = relay.get("/v1/namespaces/web")["bytes"]
    assert relay.command("discard", "web", at="cache").returncode == 0
    found = relay.get("/v1/namespaces/web")
    assert (found["state"], found["bytes"], found["memory"]["discarded"]) == ("discarded", size, size)
    assert found["snapshots"][0]["images"][0]["size"] == size
    until(lambda: relay.get("/v1/status")["memory"]["images"] == 0, 20, "its memory is given back")
