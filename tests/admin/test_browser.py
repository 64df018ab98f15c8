"""The page in a real browser: live, static without scripts, and no wider than a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chromium import Chromium
from tests.support.daemons import Relay, free_port
from tests.support.polling import until
from tests.support.tools import needs

SECONDS = 60.0
"""For what the page is told every second, in a browser that shares two processors with everything else."""

PHONE = 360
"""Pixels: the narrowest that is sold."""


def start(relay: Relay) -> str:
    """The page of a cache that a proxy is linked to, with a namespace whose name is as long as names are."""
    port = free_port()
    relay.start_cache("--metrics", f"tcp:{port}:interface=127.0.0.1", "--stream", str(relay.directory("b/web")))
    relay.start_proxy()
    relay.linked()
    send(relay, "web")
    send(relay, "w" * 255)
    relay.proxy.request("PUT", "/v1/namespaces/gone/images/pages-1.img", b"x" * 4096)
    relay.proxy.request("DELETE", "/v1/namespaces/gone")
    relay.reach("gone", "aborted")
    return f"http://127.0.0.1:{port}/"


def send(relay: Relay, name: str) -> None:
    """One namespace, committed."""
    images = relay.directory(f"images/{name}")
    (images / "inventory.img").write_bytes(b"i" * 40)
    (images / "pages-1.img").write_bytes(b"p" * 5_000_000)
    done = relay.command("import", str(images), name, at="proxy")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that nothing happens to."""
    relay = Relay(tmp_path_factory.mktemp("relay"))
    try:
        yield start(relay)
    finally:
        relay.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Each test opens a tab of its own."""
    needs("chromium", "chromium")
    with Chromium(tmp_path_factory.mktemp("chromium")) as made:
        yield made


def words(tab: Any, selector: str = "main") -> str:
    text: str = tab.evaluate(f"document.querySelector({selector!r}).innerText")
    return text


def test_live(relay: Relay, browser: Chromium, tmp_path: Path) -> None:
    tab = browser.open(start(relay))
    until(lambda: words(tab, "#live") == "live", SECONDS, "the page is live")
    assert "later" not in words(tab)
    send(relay, "later")
    until(lambda: "later" in words(tab, "#namespaces"), SECONDS, "it shows what came after it was loaded")
    assert "discarded at the proxy" in words(tab, "#failures")
    until(lambda: tab.evaluate("document.querySelector('polyline').points.length") > 1, SECONDS, "rates are drawn")
    until(lambda: tab.evaluate("document.querySelectorAll('progress').length") == 3, SECONDS, "bars")
    tab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert tab.complaints() == []
    relay.cache.stop()
    until(lambda: words(tab, "#live").startswith("no answer since"), SECONDS, "it says that the daemon is gone")


def test_the_policy_bites(url: str, browser: Chromium) -> None:
    """A script or a style that gets into the page all the same does nothing."""
    tab = browser.open(url)
    until(lambda: words(tab, "#live") == "live", SECONDS, "its own script runs")
    tab.evaluate("""
        window.hit = false;
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hit = true'>");
        const script = document.createElement("script");
        script.textContent = "window.hit = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<p id=styled style='width: 7px'>x</p>");
    """)
    until(
        lambda: len([said for said in tab.complaints() if "Content Security Policy" in said]) >= 3, SECONDS, "refused"
    )
    assert tab.evaluate("window.hit") is False
    assert tab.evaluate("document.getElementById('styled').offsetWidth") > 7


def test_without_scripts(url: str, browser: Chromium) -> None:
    tab = browser.open(url, scripts=False)
    until(lambda: "criu-relay-cache" in words(tab, "body"), SECONDS, "it is there")
    assert "web" in words(tab, "#namespaces") and "discarded at the proxy" in words(tab, "#failures")
    assert words(tab, "#live") == ""
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [PHONE, 1400])
def test_nothing_sticks_out(url: str, browser: Chromium, width: int) -> None:
    tab = browser.open(url, width=width)
    until(lambda: words(tab, "#live") == "live", SECONDS, "the page is live")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = tab.evaluate("[...document.querySelectorAll('section')].map(e => e.getBoundingClientRect().right)")
    assert max(boxes) <= width
