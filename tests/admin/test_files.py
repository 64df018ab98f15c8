"""export and import: between a namespace and a directory."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from criu_relay.admin import files
from criu_relay.admin.client import Client
from criu_relay.errors import Aborted, Conflict, Invalid
from criu_relay.interfaces import CommitRequest
from criu_relay.wire.names import NEW


def content(directory: Path) -> dict[str, Any]:
    """What is in a directory: bytes of files, targets of links, dictionaries of directories."""
    found: dict[str, Any] = {}
    for entry in os.scandir(directory):
        if entry.is_symlink():
            found[entry.name] = os.readlink(entry.path)
        else:
            found[entry.name] = content(Path(entry.path)) if entry.is_dir() else Path(entry.path).read_bytes()
    return found


class TestExport:
    def fill(self, control: Any, make: Any, *snapshots: dict[str, bytes]) -> None:
        control.outcomes["wait"] = make["namespace"]()
        control.details["web"] = make["namespace"]() | {
            "snapshots": [
                {
                    "index": index,
                    "label": "",
                    "images": [
                        {"name": name, "size": len(data), "complete": True, "digest": None}
                        for name, data in images.items()
                    ],
                }
                for index, images in enumerate(snapshots, 1)
            ]
        }
        for index, images in enumerate(snapshots, 1):
            for name, data in images.items():
                control.images["web", index, name] = data

    def test_one_snapshot_is_flat(self, world: Any, make: Any, tmp_path: Path) -> None:
        control = world.start("cache")
        images = {"inventory.img": b"i", "pages-1.img": os.urandom(2_500_000), "empty.img": b""}
        self.fill(control, make, images)
        ran = world.command("export", "web", "out")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == "web: committed, 1.0M in 2 images\n"
        assert content(tmp_path / "out") == images
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o600}
        assert control.calls[0] == ("wait", "web", None, False)
        assert control.calls[-1] == ("open_image", "web", 1, "inventory.img"), "what makes it whole comes last"

    def test_several_have_parents(self, world: Any, make: Any, tmp_path: Path) -> None:
        snapshots = [{"inventory.img": b"1"}, {"inventory.img": b"2", "a.img": b"a"}, {"inventory.img": b"3"}]
        self.fill(world.start("cache"), make, *snapshots)
        (tmp_path / "out").mkdir()
        assert world.command("export", "web", "out").code == 0
        assert content(tmp_path / "out") == {
            "1": {"inventory.img": b"1"},
            "2": {"inventory.img": b"2", "a.img": b"a", "parent": "../1"},
            "3": {"inventory.img": b"3", "parent": "../2"},
        }
        assert (tmp_path / "out/3/parent/parent/inventory.img").read_bytes() == b"1"

    def test_waits_until_it_is_servable(self, world: Any, make: Any, tmp_path: Path) -> None:
        control = world.start("cache")
        self.fill(control, make, {"inventory.img": b"i"})
        committed = control.outcomes.pop("wait")
        with world.popen("command", "export", "web", "out") as process:
            assert control.happened.wait(10)
            assert content(tmp_path / "out") == {}
            world.daemons["cache"].do(lambda: control.pending[0].callback(committed))
            process.communicate(timeout=10)
        assert process.returncode == 0
        assert content(tmp_path / "out") == {"inventory.img": b"i"}

    def test_not_empty(self, world: Any, make: Any, tmp_path: Path) -> None:
        control = world.start("cache")
        self.fill(control, make, {"inventory.img": b"i"})
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x").touch()
        ran = world.command("export", "web", "out")
        assert ran.code == 1
        assert ran.err == "criu-relay: out is not empty: export into an empty directory, or a new one\n"
        assert content(tmp_path / "out") == {"x": b""}
        assert control.calls == []

    @pytest.mark.parametrize("name", ["file", "file/out", "none/out"])
    def test_no_place(self, world: Any, tmp_path: Path, name: str) -> None:
        world.start("cache")
        (tmp_path / "file").touch()
        ran = world.command("export", "web", name)
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert ran.err.startswith("criu-relay: cannot make ")

    def test_aborted_leaves_nothing(self, world: Any, tmp_path: Path) -> None:
        world.start("cache").outcomes["wait"] = Aborted("the dump failed")
        ran = world.command("export", "web", "out")
        assert (ran.code, ran.err) == (1, "criu-relay: the dump failed\n")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("existed", [True, False])
    @pytest.mark.parametrize("breaks_at", [0, 5])
    def test_a_broken_image_leaves_nothing(
        self, world: Any, make: Any, tmp_path: Path, existed: bool, breaks_at: int
    ) -> None:
        control = world.start("cache")
        self.fill(control, make, {"inventory.img": b"1"}, {"inventory.img": b"2", "b.img": b"0123456789"})
        control.images["web", 2, "b.img"] = make["image"](b"0123456789", breaks_at=breaks_at)
        if existed:
            (tmp_path / "out").mkdir()
        ran = world.command("export", "web", "out")
        assert ran.code == 1
        assert ran.err == (
            "criu-relay: image b.img of snapshot 2 of namespace web broke off 10 bytes before its end: the daemon's log"
            " says why\n"
        )
        assert (tmp_path / "out").exists() is existed
        assert not existed or content(tmp_path / "out") == {}

    def test_no_space_leaves_nothing(self, world: Any, make: Any, tmp_path: Path) -> None:
        self.fill(world.start("cache"), make, {"inventory.img": b"1", "pages-1.img": bytes(2 << 20)})
        out = tmp_path / "out"
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(files.Failed, match=rf"^cannot write {out}: File too large$"):
                files.export(Client(world.daemons["cache"].path), "web", str(out))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not out.exists()

    def test_a_missing_image_leaves_nothing(self, world: Any, make: Any, tmp_path: Path) -> None:
        control = world.start("cache")
        self.fill(control, make, {"inventory.img": b"1", "a.img": b""})
        del control.images["web", 1, "inventory.img"]
        ran = world.command("export", "web", "out")
        assert (ran.code, ran.err) == (1, "criu-relay: no image inventory.img\n")
        assert not (tmp_path / "out").exists()

    def test_a_new_generation_meanwhile(self, world: Any, make: Any, tmp_path: Path) -> None:
        control = world.start("cache")
        self.fill(control, make, {"inventory.img": b"1"})
        control.details["web"]["migration"] = "11" * 16
        ran = world.command("export", "web", "out")
        assert (ran.code, ran.err) == (1, "criu-relay: web is being written again: try again when that is over\n")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("existed", [True, False])
    def test_interrupted_leaves_nothing(
        self, world: Any, make: Any, tmp_path: Path, existed: bool, number: signal.Signals
    ) -> None:
        control = world.start("cache")
        out = tmp_path / "out"
        self.fill(control, make, {"inventory.img": b"1", "a.img": b"a", "b.img": b"b"})
        if existed:
            out.mkdir()
        control.images["web", 1, "b.img"] = held = make["image"](bytes(1 << 20))
        held.hold = True
        with world.popen("command", "export", "web", "out") as process:
            world.daemons["cache"].until(lambda: (out / ".partial").exists() and (out / "a.img").exists())
            process.send_signal(number)
            assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 128 + number
        assert out.exists() is existed
        assert not existed or content(out) == {}

    @pytest.mark.parametrize("name", ["../evil", "/etc/evil", "..", "a/b", ""])
    def test_names_that_lead_elsewhere(self, make: Any, tmp_path: Path, name: str) -> None:
        """Should a daemon ever send one."""

        class Hostile:
            def call(self, method: str, path: str, **options: Any) -> Any:
                image = {"name": name, "size": 1, "complete": True, "digest": None}
                return make["namespace"]() | {"snapshots": [{"index": 1, "label": "", "images": [image]}]}

        with pytest.raises(Invalid, match="not a valid name"):
            files.export(Hostile(), "web", str(tmp_path / "out"))  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()


class TestImport:
    @pytest.fixture
    def control(self, world: Any, make: Any) -> Any:
        control = world.start("proxy")
        control.outcomes["commit"] = make["namespace"]()
        return control

    def put(self, directory: Path, **files: bytes) -> None:
        directory.mkdir(exist_ok=True)
        for name, data in files.items():
            (directory / name.replace("_img", ".img")).write_bytes(data)

    def sent(self, control: Any) -> list[tuple[int, str, bytes]]:
        puts = [call for call in control.calls if call[0] == "put_image"]
        assert all(sink.calls == ["end"] for sink in control.sinks)
        return [(put[2], put[3], sink.data) for put, sink in zip(puts, control.sinks, strict=True)]

    def test_flat(self, world: Any, control: Any, tmp_path: Path) -> None:
        data = os.urandom(2_500_000)
        self.put(tmp_path / "in", pages_img=data, inventory_img=b"i", a_img=b"")
        ran = world.command("import", "in", "web")
        assert (ran.code, ran.out, ran.err) == (0, "web: committed, 1.0M in 2 images\n", "")
        assert self.sent(control) == [(1, "a.img", b""), (1, "pages.img", data), (1, "inventory.img", b"i")]
        assert control.calls[-1] == ("commit", "web", CommitRequest(copy=True, migration="ab" * 16), None)
        assert [call[4] for call in control.calls if call[0] == "put_image"] == ["new", "ab" * 16, "ab" * 16]

    def test_several(self, world: Any, control: Any, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for index in range(1, 12):
            self.put(tmp_path / "in" / str(index), inventory_img=b"%d" % index)
            if index > 1:
                (tmp_path / "in" / str(index) / "parent").symlink_to(f"../{index - 1}/")
        assert world.command("import", "in", "web").code == 0
        assert self.sent(control) == [(index, "inventory.img", b"%d" % index) for index in range(1, 12)]

    def test_what_is_no_image_is_skipped_and_named(self, world: Any, control: Any, tmp_path: Path) -> None:
        self.put(tmp_path / "in", inventory_img=b"i", **{"dump.log": b"", ".hidden": b"", "stats-dump": b""})
        (tmp_path / "in" / "work").mkdir()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "in" / "streamer-capture.sock"))
        ran = world.command("import", "in", "web")
        assert ran.code == 0
        assert [image for _, image, _ in self.sent(control)] == ["inventory.img"]
        assert sorted(ran.err.splitlines()) == [
            f"criu-relay: skipped in/{name}"
            for name in (".hidden", "dump.log", "stats-dump", "streamer-capture.sock", "work")
        ]

    def refused(self, world: Any, control: Any, directory: str = "in") -> str:
        """Import fails before anything is sent; the reason."""
        ran = world.command("import", directory, "web")
        assert (ran.code, ran.out, control.calls) == (1, "", [])
        assert ran.err.count("\n") == 1
        return str(ran.err)

    def test_no_inventory(self, world: Any, control: Any, tmp_path: Path) -> None:
        self.put(tmp_path / "in", a_img=b"")
        assert "not an images directory of CRIU: no inventory.img" in self.refused(world, control)

    def test_no_inventory_in_one_of_several(self, world: Any, control: Any, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        self.put(tmp_path / "in/1", inventory_img=b"")
        self.put(tmp_path / "in/2", a_img=b"")
        assert "in/2: not an images directory" in self.refused(world, control)

    def test_empty(self, world: Any, control: Any, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        assert "no inventory.img" in self.refused(world, control)

    @pytest.mark.parametrize("name", ["none", "file"])
    def test_no_directory(self, world: Any, control: Any, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        assert f"cannot read {name}" in self.refused(world, control, name)

    @pytest.mark.parametrize("name", ["a b", "a\nb", "é.img", "a:b"])
    def test_names_that_cannot_travel(self, world: Any, control: Any, tmp_path: Path, name: str) -> None:
        self.put(tmp_path / "in", inventory_img=b"", **{name: b""})
        assert "not a valid name" in self.refused(world, control)

    def test_undecodable_name(self, world: Any, control: Any, tmp_path: Path) -> None:
        self.put(tmp_path / "in", inventory_img=b"")
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.img")).touch()
        assert "not a valid name" in self.refused(world, control)

    def test_links_to_files(self, world: Any, control: Any, tmp_path: Path) -> None:
        self.put(tmp_path / "in", inventory_img=b"")
        (tmp_path / "in" / "a.img").symlink_to("inventory.img")
        assert "in/a.img is not a regular file" in self.refused(world, control)

    def test_fifo(self, world: Any, control: Any, tmp_path: Path) -> None:
        self.put(tmp_path / "in", inventory_img=b"")
        os.mkfifo(tmp_path / "in" / "a.img")
        assert "in/a.img is not a regular file" in self.refused(world, control)

    @pytest.mark.parametrize("leads", ["../0", "../other", "/"])
    def test_flat_with_a_parent(self, world: Any, control: Any, tmp_path: Path, leads: str) -> None:
        self.put(tmp_path / "in", inventory_img=b"")
        (tmp_path / "in" / "parent").symlink_to(leads)
        assert "in/parent leads to a snapshot that would not be sent" in self.refused(world, control)

    def test_parent_that_is_another(self, world: Any, control: Any, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for index in (1, 2, 3):
            self.put(tmp_path / "in" / str(index), inventory_img=b"")
        (tmp_path / "in/3/parent").symlink_to("../1")
        assert "in/3/parent leads to a snapshot" in self.refused(world, control)

    @pytest.mark.parametrize("present", [(2,), (1, 3), (2, 3)])
    def test_a_snapshot_is_missing(self, world: Any, control: Any, tmp_path: Path, present: tuple[int, ...]) -> None:
        (tmp_path / "in").mkdir()
        for index in present:
            self.put(tmp_path / "in" / str(index), inventory_img=b"")
        assert "lacks a snapshot" in self.refused(world, control)

    def test_image_beside_snapshots(self, world: Any, control: Any, tmp_path: Path) -> None:
        self.put(tmp_path / "in", a_img=b"")
        self.put(tmp_path / "in/1", inventory_img=b"")
        assert "in/a.img lies beside the snapshots" in self.refused(world, control)

    def test_first_image_refused(self, world: Any, control: Any, tmp_path: Path) -> None:
        """Somebody else's migration of that name is left alone."""
        control.error = Conflict("web is open", hint="wait for it")
        self.put(tmp_path / "in", inventory_img=b"")
        ran = world.command("import", "in", "web")
        assert (ran.code, ran.err) == (1, "criu-relay: web is open: wait for it\n")
        assert [call[0] for call in control.calls] == ["put_image"]

    def test_not_committed(self, world: Any, control: Any, tmp_path: Path) -> None:
        control.outcomes["commit"] = Aborted("the digest differs")
        self.put(tmp_path / "in", inventory_img=b"")
        ran = world.command("import", "in", "web")
        assert (ran.code, ran.err) == (1, "criu-relay: the digest differs\n")
        assert control.calls[-1] == ("discard", "web", None, None, None, None)

    def test_what_somebody_else_has_begun_meanwhile_is_left_alone(
        self, world: Any, control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.put(tmp_path / "in", a_img=b"", inventory_img=b"")
        send = files._send

        def send_once(*arguments: Any) -> None:
            if arguments[-1] != NEW:
                control.details["web"]["migration"] = "cd" * 16
                raise Conflict("it was given up")
            send(*arguments)

        monkeypatch.setattr(files, "_send", send_once)
        with pytest.raises(Conflict):
            files.import_images(Client(world.daemons["proxy"].path), str(tmp_path / "in"), "web")
        assert "discard" not in [call[0] for call in control.calls]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_interrupted(self, world: Any, control: Any, tmp_path: Path, number: signal.Signals) -> None:
        del control.outcomes["commit"]
        self.put(tmp_path / "in", inventory_img=b"")
        with world.popen("command", "import", "in", "web") as process:
            assert control.happened.wait(10)
            process.send_signal(number)
            assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 128 + number
        world.daemons["proxy"].until(lambda: control.cancelled == 1)
        assert control.calls[-1] == ("discard", "web", None, None, None, None)

    def test_unreadable_in_between(
        self, world: Any, control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is gone by the time it is sent: what was begun is thrown away."""
        self.put(tmp_path / "in", a_img=b"", inventory_img=b"")
        send = files._send

        def send_and_remove(*arguments: Any) -> None:
            send(*arguments)
            (tmp_path / "in" / "inventory.img").unlink(missing_ok=True)

        monkeypatch.setattr(files, "_send", send_and_remove)
        with pytest.raises(files.Failed, match=r"cannot read .*inventory.img: No such file"):
            files.import_images(Client(world.daemons["proxy"].path), str(tmp_path / "in"), "web")
        assert control.calls[-1] == ("discard", "web", None, None, None, None)
