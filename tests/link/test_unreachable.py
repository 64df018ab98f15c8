"""A proxy that cannot connect says why: once in its log, and in its status for as long as it is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from criu_relay.link.services import FIRST_RETRY, RETRY_FACTOR
from tests.support.certificates import Authority
from tests.support.daemons import Relay, free_port
from tests.support.polling import until


@pytest.mark.parametrize(("host", "why"), [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "DNS lookup")])
def test_the_reason(relay: Relay, host: str, why: str) -> None:
    endpoint = f"tcp:{host}:{free_port()}"
    proxy = relay.start_proxy("--link", endpoint, "--insecure")
    until(lambda: proxy.get("/v1/status")["link"]["error"], 30, "it has tried", proxy.tail)
    error = proxy.get("/v1/status")["link"]["error"]
    assert error.startswith(f"cannot connect to {endpoint}: ") and why in error
    until(lambda: proxy.text().count("Scheduling retry") >= 3, 30, "it tries again", proxy.tail)
    assert proxy.text().count("start criu-relay-cache there, or correct --link") == 1


def test_it_is_over_when_there_is_a_link(relay: Relay) -> None:
    port = free_port()
    proxy = relay.start_proxy("--link", f"tcp:127.0.0.1:{port}")
    until(lambda: proxy.get("/v1/status")["link"]["error"], 30, "it has tried", proxy.tail)
    relay.start_cache("--link", f"tcp:{port}:interface=127.0.0.1")
    relay.linked()
    assert not proxy.get("/v1/status")["link"].get("error")


def test_a_cache_that_refuses_is_asked_less_and_less_often(relay: Relay, tmp_path: Path) -> None:
    """It answers, and that is all: one side has TLS and the other has not."""
    relay.start_cache(*Authority(tmp_path).issue("127.0.0.1").options())
    proxy = relay.start_proxy("--insecure")
    until(lambda: len(delays(proxy.text())) >= 6, 30, "it tries again", proxy.tail)
    error = proxy.get("/v1/status")["link"]["error"]
    assert "the link is lost" in error or "gives the link up" in error, error
    found = delays(proxy.text())
    assert found[5] > FIRST_RETRY * RETRY_FACTOR**5, found


def delays(log: str) -> list[float]:
    """Seconds between the attempts."""
    return [float(found) for found in re.findall(r"Scheduling retry .* in ([\d.]+) seconds", log)]
