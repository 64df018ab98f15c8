"""Fixtures and markers of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.support.criu import Criu, missing
from tests.support.daemons import Relay
from tests.support.outcome import FAILED, failed
from tests.support.regions import Left, swept
from tests.support.victims import Victim


def pytest_configure(config: pytest.Config) -> None:
    """Make our markers known."""
    config.addinivalue_line("markers", "needs_criu: runs the real criu; skipped where that cannot be, unless CI=true")
    # A shell starts background jobs with SIGINT ignored, and everything that they start inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Each daemon and command would compile all of its modules, which takes half as long as the rest of its start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs criu where criu cannot run; in CI, fail."""
    if item.get_closest_marker("needs_criu") is None or not (reason := missing()):
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must run this: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember for the fixtures whether their test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def regions() -> Iterator[Left]:
    """Image memory that tests leave is given back."""
    with swept() as left:
        yield left


@pytest.fixture(autouse=True)
def memory_is_given_back(regions: Left) -> Iterator[None]:
    """See L{regions}."""
    yield
    regions.look()


@pytest.fixture
def relay(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Relay]:
    """Daemons to start; what they said is shown when the test fails."""
    made = Relay(tmp_path)
    try:
        yield made
    finally:
        if failed(request):
            print(made.report())
        made.close()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    """Starts victims: `victim(program, *arguments)`, each in a directory of its own."""
    made: list[Victim] = []

    def start(program: str, *arguments: int, **options: tuple[str, ...]) -> Victim:
        made.append(Victim(tmp_path / f"victim-{len(made)}", program, *arguments, **options))
        return made[-1]

    try:
        yield start
    finally:
        for one in made:
            one.close()


@pytest.fixture
def criu(tmp_path: Path, relay: Relay, victim: object, request: pytest.FixtureRequest) -> Iterator[Criu]:
    """The real criu, in the environment of the daemons; its logs are shown when the test fails.

    It asks for `victim` so that it ends first: a task that a criu still traces can be killed, but not reaped.
    """
    made = Criu(tmp_path, relay.environment)
    try:
        yield made
    finally:
        if failed(request):
            print(made.report())
        made.close()
