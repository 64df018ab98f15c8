"""`criu-relay-action`: with daemons that a test plays, and with the real criu."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from criu_relay.admin import action
from criu_relay.errors import Aborted
from tests.support.criu import Criu
from tests.support.victims import Victim

PREFIX = "criu-relay-action: "


@pytest.fixture
def images(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


def attached(control: Any, directory: Path, namespace: str, dialect: str = "stream") -> None:
    control.attach(str(directory), namespace, dialect, False)
    control.calls.clear()


class TestPostDump:
    @pytest.fixture
    def proxy(self, world: Any, make: Any, images: Path) -> Any:
        control = world.start("proxy")
        control.outcomes["commit"] = make["namespace"](state="permitted")
        attached(control, images, "web")
        return control

    def run(self, world: Any, images: Path, **environment: str) -> Any:
        return world.run(
            "action", **{"CRTOOLS_SCRIPT_ACTION": "post-dump", "CRTOOLS_IMAGE_DIR": str(images)} | environment
        )

    def test_permitted(self, world: Any, proxy: Any, images: Path) -> None:
        ran = self.run(world, images, CRTOOLS_INIT_PID="4242")
        assert (ran.code, ran.out, ran.err) == (0, "", "")
        assert proxy.calls[0] == ("status",)
        _, name, request, timeout = proxy.calls[1]
        assert (name, timeout, request.root, request.criu, request.copy) == ("web", 120.0, 4242, os.getpid(), False)

    def test_image_directory_by_descriptor(self, world: Any, proxy: Any, images: Path) -> None:
        """As criu gives it: not a path that could be compared."""
        descriptor = os.open(images, os.O_RDONLY)
        ran = self.run(world, images, CRTOOLS_IMAGE_DIR=f"/proc/{os.getpid()}/fd/{descriptor}")
        os.close(descriptor)
        assert ran.code == 0
        assert proxy.calls[1][1] == "web"

    @pytest.mark.parametrize("image_dir", ["", "/nowhere", "/"])
    def test_working_directory(self, world: Any, proxy: Any, images: Path, image_dir: str) -> None:
        world.base = images
        assert self.run(world, images, CRTOOLS_IMAGE_DIR=image_dir).code == 0
        assert proxy.calls[1][1] == "web"

    def test_image_directory_comes_first(self, world: Any, proxy: Any, images: Path, tmp_path: Path) -> None:
        attached(proxy, tmp_path, "other")
        assert self.run(world, images).code == 0
        assert proxy.calls[1][1] == "web"

    def test_two_dialects(self, world: Any, proxy: Any, images: Path) -> None:
        attached(proxy, images, "web", "images")
        assert self.run(world, images).code == 0

    def test_two_namespaces(self, world: Any, proxy: Any, images: Path) -> None:
        attached(proxy, images, "db", "images")
        ran = self.run(world, images)
        assert (ran.code, "attached as db and web: set CRIU_RELAY_NAMESPACE" in ran.err) == (1, True)
        assert self.run(world, images, CRIU_RELAY_NAMESPACE="db").code == 0
        assert proxy.calls[-1][1] == "db"

    def test_copy_and_timeout(self, world: Any, proxy: Any, images: Path) -> None:
        assert self.run(world, images, CRIU_RELAY_COPY="1", CRIU_RELAY_TIMEOUT="2.5").code == 0
        assert proxy.calls[1][2].copy is True
        assert proxy.calls[1][3] == 2.5

    @pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
    def test_bad_timeout(self, world: Any, proxy: Any, images: Path, value: str) -> None:
        ran = self.run(world, images, CRIU_RELAY_TIMEOUT=value)
        assert (ran.code, proxy.calls) == (1, [])
        assert ran.err.startswith(f"{PREFIX}post-dump: CRIU_RELAY_TIMEOUT={value} is not")

    @pytest.mark.parametrize("value", ["x", "-1", "1 2", "9" * 20])
    def test_bad_pid(self, world: Any, proxy: Any, images: Path, value: str) -> None:
        ran = self.run(world, images, CRTOOLS_INIT_PID=value)
        assert (ran.code, "is not a pid" in ran.err) == (1, True)

    def test_refused(self, world: Any, proxy: Any, images: Path) -> None:
        proxy.outcomes["commit"] = Aborted("the digest\ndiffers", hint="dump again")
        ran = self.run(world, images)
        assert (ran.code, ran.err) == (1, f"{PREFIX}post-dump: the digest?differs: dump again\n")

    def test_not_attached(self, world: Any, proxy: Any, tmp_path: Path) -> None:
        ran = self.run(world, tmp_path)
        assert ran.code == 1
        assert "no daemon has criu's images directory: criu-relay attach DIR" in ran.err
        assert [call[0] for call in proxy.calls] == ["status"]

    def test_no_proxy(self, world: Any, images: Path) -> None:
        ran = self.run(world, images, CRIU_RELAY_CONTROL=str(images / "none"))
        assert ran.code == 1
        assert ran.err == f"{PREFIX}post-dump: no proxy listens at {images}/none: start it, or set " \
            "CRIU_RELAY_CONTROL to its socket\n"  # fmt: skip

    @pytest.mark.parametrize("override", [{}, {"CRIU_RELAY_NAMESPACE": "web"}])
    def test_proxy_that_does_not_answer(self, world: Any, images: Path, override: dict[str, str]) -> None:
        path = str(images / "s")
        code = (
            "import sys; from criu_relay.admin import action, client; client.PATIENCE = client.GRACE = 0.01; "
            "client.Client.call.__defaults__ = (None, 0.01); sys.exit(action.main())"
        )
        environment = {
            "CRTOOLS_SCRIPT_ACTION": "post-dump", "CRIU_RELAY_CONTROL": path, "CRIU_RELAY_TIMEOUT": "0",
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            ran = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True,
                env=os.environ | world.environment | environment | override,
            )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (1, f"{PREFIX}post-dump: the daemon does not answer\n")

    def test_killed_while_it_waits(self, world: Any, proxy: Any, images: Path) -> None:
        """criu resumes the task then, so the proxy must hear of it."""
        del proxy.outcomes["commit"]
        with world.popen("action", CRTOOLS_SCRIPT_ACTION="post-dump", CRTOOLS_IMAGE_DIR=str(images)) as process:
            assert proxy.happened.wait(10)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=10)
        world.daemons["proxy"].until(lambda: proxy.cancelled == 1)

    def test_closed_stdin_and_bare_environment(self, world: Any, proxy: Any, images: Path) -> None:
        command = "[sys.executable, '-m', 'criu_relay.admin.action']"
        code = f"import os, sys; os.close(0); os.execv(sys.executable, {command})"
        environment = {
            "CRTOOLS_SCRIPT_ACTION": "post-dump",
            "CRTOOLS_IMAGE_DIR": str(images),
            "CRIU_RELAY_CONTROL": world.daemons["proxy"].path,
            "PYTHONPATH": world.environment["PYTHONPATH"],
        }
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert proxy.calls[1][1] == "web"


class TestPostResume:
    def run(self, world: Any, images: Path, **environment: str) -> Any:
        return world.run(
            "action", **{"CRTOOLS_SCRIPT_ACTION": "post-resume", "CRTOOLS_IMAGE_DIR": str(images)} | environment
        )

    def test_the_cache_is_told(self, world: Any, images: Path) -> None:
        control, proxy = world.start("cache"), world.start("proxy")
        attached(control, images, "web")
        ran = self.run(world, images)
        assert (ran.code, ran.err) == (0, "")
        assert control.calls == [("status",), ("restored", "web")]
        assert proxy.calls == []

    def test_trouble_is_said_and_harmless(self, world: Any, images: Path) -> None:
        ran = self.run(world, images, CRIU_RELAY_CONTROL="/nowhere")
        assert ran.code == 0
        assert ran.err.startswith(f"{PREFIX}post-resume: no cache listens at /nowhere")


@pytest.mark.parametrize("stage", [
    None, "", "pre-dump", "pre-restore", "post-restore", "pre-resume", "network-lock", "network-unlock",
    "setup-namespaces", "post-setup-namespaces", "orphan-pts-master", "query-ext-files", "status-ready", "unknown",
])  # fmt: skip
def test_other_stages_do_nothing(stage: str | None, world: Any) -> None:
    environment = {"CRIU_RELAY_CONTROL": "/nowhere"} | ({} if stage is None else {"CRTOOLS_SCRIPT_ACTION": stage})
    ran = world.run("action", **environment)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("-h", 0), ("web", 2)])
def test_a_person_is_told_what_it_is_for(argument: str, code: int, world: Any) -> None:
    ran = world.run("action", argument)
    assert ran.code == code
    assert (ran.out, ran.err) == ((action.HELP, "") if code == 0 else ("", action.HELP))
    read = set(re.findall(r"CRIU_RELAY_[A-Z]+", inspect.getsource(action)))
    assert read == set(re.findall(r"CRIU_RELAY_[A-Z]+", action.HELP))


def test_both_run_directories_are_looked_at(
    world: Any, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """criu is run by root in a bare environment; or the daemon is the system's, and criu has a user's."""
    control = world.start("cache")
    attached(control, images, "web")
    monkeypatch.setattr("criu_relay.admin.rundir.SYSTEM_RUN", str(world.run_directory))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("CRTOOLS_IMAGE_DIR", str(images))
    for variable in ("CRIU_RELAY_CONTROL", "CRIU_RELAY_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)
    assert action.find("cache") == (world.daemons["cache"].path, "web")


@pytest.mark.needs_criu
@pytest.mark.parametrize("permit", [True, False])
def test_real_criu_obeys(
    world: Any, make: Any, images: Path, tmp_path: Path, victim: Callable[..., Victim], criu: Criu, permit: bool
) -> None:
    """A permission lets criu kill the task; a refusal makes it resume it, and fail."""
    control = world.start("proxy")
    attached(control, images, "web")
    control.outcomes["commit"] = make["namespace"](state="permitted") if permit else Aborted("not today")
    script = tmp_path / "action"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m criu_relay.admin.action\n")
    script.chmod(0o755)
    task = victim("memory", 1, 1)
    run = criu.dump(task.pid, images, "--action-script", str(script), **world.environment)
    assert (run.wait() == 0) is permit
    _, name, request, _ = control.calls[-1]
    assert (name, request.root, request.criu) == ("web", task.pid, run.process.pid)
    if permit:
        assert task.reap() == -signal.SIGKILL
    else:
        assert "criu-relay-action: post-dump: not today" in run.tail()
        assert task.settled()
        task.counts_on()
