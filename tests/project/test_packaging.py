"""The installed package: what `twistd --help` lists, from a wheel, from an editable install, and after uninstall.

Real virtual environments and real pip. They borrow the dependencies of the environment that runs the tests,
over a .pth file, so that nothing is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.support.polling import until

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"),
    *("criu_relay", "twisted", "conf", "docs", "proto"),
)
SERVICES = ["criu-relay-cache", "criu-relay-proxy"]
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


def run(command: list[str], cwd: Path, expected: int = 0) -> str:
    """Standard output and error of a command that finds nothing but what is installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == expected, f"{command} -> {done.returncode}\n{done.stdout}"
    return done.stdout


def services(python: Path, cwd: Path) -> list[str]:
    """The criu-relay services that twistd lists."""
    return re.findall(r"^ +(criu-relay-\w+)", run([str(python), "-c", TWISTD, "--help"], cwd), re.MULTILINE)


def listed(python: Path, cwd: Path) -> set[str]:
    """All services that twistd lists."""
    return set(re.findall(r"^ {4} ?([a-z]\S*) ", run([str(python), "-c", TWISTD, "--help"], cwd), re.MULTILINE))


def copy_source(folder: Path) -> Path:
    """A copy of what a release is made of."""
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def new_environment(place: Path) -> Path:
    """The interpreter of a fresh virtual environment with our dependencies, but without us."""
    run([sys.executable, "-m", "venv", "--without-pip", str(place)], place.parent)
    interpreter = place / "bin" / "python"
    site = run([str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place.parent)
    Path(site.strip(), "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert services(interpreter, place.parent) == []
    return interpreter


def run_pip(python: Path, *arguments: str) -> str:
    """Real pip, working on the environment of `python`."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    return run(command, python.parent)


def install(python: Path, *what: str) -> None:
    """Install without looking anywhere else."""
    run_pip(python, "install", "--no-deps", "--no-build-isolation", "--no-index", *what)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a release is made of."""
    return copy_source(tmp_path / "source")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a fresh environment."""
    return new_environment(tmp_path / "venv")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is released as a source."""
    folder = tmp_path_factory.mktemp("archive")
    source, made = copy_source(folder / "source"), folder / "made"
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(made)!r}))"
    run([sys.executable, "-c", code], source)
    shutil.rmtree(source)
    (found,) = made.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that we are installed in, from the archive; the sources are gone."""
    folder = tmp_path_factory.mktemp("installed")
    python, unpacked = new_environment(folder / "venv"), unpack(archive, folder)
    install(python, str(unpacked))
    shutil.rmtree(unpacked)
    return python


def unpack(archive: Path, folder: Path) -> Path:
    """The one folder that is in it."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_wheel(source: Path, python: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    run_pip(python, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(source))
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if name.startswith("twisted/")} == {"twisted/plugins/criu_relay_plugin.py"}
    assert {"criu_relay/py.typed", "criu_relay/wire/link_pb2.py", "criu_relay/wire/link_pb2.pyi"} <= names
    assert not {name for name in names if name.startswith(("tests/", "bench/", "docs/"))}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    modules = {str(path.relative_to(source)) for path in (source / "criu_relay").rglob("*.py")}
    assert modules == {name for name in names if name.startswith("criu_relay/") and name.endswith(".py")}

    shared = {name.partition(".data/data/share/")[2] for name in names if ".data/data/share/" in name}
    assert {"man/man1/criu-relay.1", "man/man8/criu-relay-cache.8", "criu-relay/cache.toml"} <= shared
    assert {"zsh/site-functions/_criu-relay", "criu-relay/systemd/criu-relay-cache.service"} <= shared
    templates = {str(path.relative_to(source)) for path in (source / "criu_relay").rglob("*.html")}
    assert templates == {name for name in names if name.endswith(".html")}

    install(python, str(wheel))
    shutil.rmtree(source)
    assert services(python, tmp_path) == SERVICES
    run([str(python), "-c", "import criu_relay.options"], tmp_path)
    assert {"criu-relay", "criu-relay-action"} <= {path.name for path in python.parent.iterdir()}
    run_pip(python, "uninstall", "-y", "criu-relay")
    assert services(python, tmp_path) == []


def test_editable(source: Path, python: Path, tmp_path: Path) -> None:
    """Twisted's own services are listed before and after: we hide nobody."""
    before = listed(python, tmp_path)
    assert "web" in before
    install(python, "-e", str(source))
    assert listed(python, tmp_path) == before | set(SERVICES)
    place = run([str(python), "-c", "import criu_relay; print(criu_relay.__file__)"], tmp_path).strip()
    assert place == str(source / "criu_relay" / "__init__.py")
    run_pip(python, "uninstall", "-y", "criu-relay")
    assert services(python, tmp_path) == []


def test_scripts_start(installed: Path, tmp_path: Path) -> None:
    assert "usage: criu-relay" in run([str(installed.parent / "criu-relay"), "--help"], tmp_path)
    # No stage in the environment: nothing to do.
    run([str(installed.parent / "criu-relay-action")], tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_service_options(service: str, installed: Path, tmp_path: Path) -> None:
    shown = run([str(installed), "-c", TWISTD, service, "--help"], tmp_path)
    assert "--stream=" in shown
    assert "Examples:" in shown
    wrong = run([str(installed), "-c", TWISTD, service, "--idle", "never"], tmp_path, expected=1)
    assert wrong.splitlines()[-1].endswith("--idle never: not a time; give a number of seconds above 0, such as 30")


def test_sdist(source: Path, archive: Path, installed: Path, tmp_path: Path) -> None:
    """What is released as a source is whole: a wheel can be made of it, and its pages and units are there."""
    unpacked = unpack(archive, tmp_path)
    for name in SOURCES:
        assert (unpacked / name).exists(), name
    there, here = (
        {
            str(path.relative_to(base))
            for name in ("conf", "docs", "proto")
            for path in (base / name).rglob("*")
            if path.is_file()
        }
        for base in (unpacked, source)
    )
    assert there == here
    assert services(installed, tmp_path) == SERVICES


def test_the_installed_daemon_works(installed: Path, tmp_path: Path) -> None:
    """Outside the sources: it starts, its page has its templates, and it ends in order."""
    place = Path(tempfile.mkdtemp(prefix="installed-"))
    control = place / "cache.sock"
    command = [str(installed), "-c", TWISTD, "-n", "--pidfile=", "criu-relay-cache", "--control", f"unix:{control}"]
    options = ["--link", "tcp:0:interface=127.0.0.1", "--state", str(place / "state")]
    log = (tmp_path / "log").open("ab")
    with log, subprocess.Popen([*command, *options], stdout=log, stderr=log, cwd=place) as daemon:
        try:
            until(control.exists, 60, "it listens", (tmp_path / "log").read_text)
            shown = run([str(installed.parent / "criu-relay"), "--control", str(control), "status"], tmp_path)
            assert "link listening" in shown
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(control))
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                page = b"".join(iter(lambda: client.recv(65536), b""))
            assert b"200 OK" in page and b"<h1>criu-relay-cache</h1>" in page
        finally:
            daemon.terminate()
        assert daemon.wait(60) == 0
    shutil.rmtree(place)
