"""A real browser without a window: Chromium, driven over its DevTools protocol on two pipes.

    with Chromium(tmp_path) as browser:
        page = browser.open("http://127.0.0.1:9877/", width=390)
        page.evaluate("document.title")
        page.screenshot(tmp_path / "page.png")

https://chromedevtools.github.io/devtools-protocol/ has the methods.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.polling import readable, until

SECONDS = 120.0
"""For the start and for each answer: a loaded machine takes long to start a browser."""


def missing() -> str:
    """Why there is no Chromium here; empty when there is one."""
    return "" if shutil.which("chromium") else "chromium is missing: apt-get install chromium"


class Chromium:
    """See the module."""

    def __init__(self, logs: Path) -> None:
        """@param logs: an existing directory for what it says."""
        self._home = Path(tempfile.mkdtemp(prefix="chromium-"))
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # It reads from descriptor 3 and writes to 4; the shell puts them there.
        command = f'exec chromium "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        with (logs / "chromium.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "bash",
                    "-c",
                    command,
                    "chromium",
                    *options,
                    "--remote-debugging-pipe",
                    f"--user-data-dir={self._home}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs_in, theirs_out),
                env=os.environ | {"HOME": str(self._home)},
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Call a method of the protocol; events that come meanwhile are kept in `events`."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._message(end)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert readable(self._in, max(0.0, end - time.monotonic())), "chromium does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "chromium ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, url: str, width: int = 1000, height: int = 1000, scripts: bool = True) -> Tab:
        """Open a page; returns when it is loaded.

        @param url: as the browser shows it, so with a path.
        @param width: of the window, in pixels of CSS.
        @param scripts: whether scripts run.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **metrics)
        self.call("Emulation.setScriptExecutionDisabled", session, value=not scripts)
        loaded = self.call("Page.navigate", session, url=url)
        assert "errorText" not in loaded, loaded
        tab = Tab(self, session)
        until(
            lambda: tab.evaluate("document.readyState + location.href") == f"complete{url}", SECONDS, f"{url} is loaded"
        )
        return tab


class Tab:
    """One page in the browser."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, also when the page itself may run none."""
        result = self._browser.call("Runtime.evaluate", self._session, expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self) -> list[str]:
        """What the browser did not like so far: exceptions, violations of the policy, what could not be loaded."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(event["params"]["entry"]["text"])
        return found

    def screenshot(self, path: Path, dark: bool = False) -> None:
        """All of the page as a PNG."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._browser.call("Emulation.setEmulatedMedia", self._session, features=features)
        shot = self._browser.call("Page.captureScreenshot", self._session, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
