"""The report's page in a real browser: headless Chromium, spoken to over a pipe (Chrome DevTools Protocol), no network.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import fcntl
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.pages import render

# Seconds for Chromium's answer to one question; it may share two cores with clusters.
PATIENCE = 60.0
PHONE, DESK = 390, 1240

_spec = importlib.util.spec_from_file_location("page_samples", Path(__file__).parents[1] / "unit/pages/conftest.py")
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = samples
_spec.loader.exec_module(samples)


def _pipe() -> tuple[int, int]:
    """Both ends above the descriptors that the protocol takes."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in low)
    for one in low:
        os.close(one)
    return high[0], high[1]


class Browser:
    """One Chromium with one tab. ``events`` is everything that it told without being asked."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("no chromium; `make system-test` installs it")
        there, self._write = _pipe()
        self._read, back = _pipe()
        # the protocol's pipes are descriptors 3 and 4, which a shell puts in their places
        arrange = f'exec "$0" "$@" 3<&{there} 4>&{back} {there}<&- {back}>&-'
        with (directory / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    *("bash", "-c", arrange, program),
                    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
                    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
                    *("--disable-dev-shm-usage", f"--user-data-dir={directory}", "about:blank"),
                ],
                pass_fds=(there, back),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        os.close(there)
        os.close(back)
        self.events: list[dict[str, Any]] = []
        self._buffer, self._number, self._session = b"", 0, ""
        tab = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        question = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            question["sessionId"] = self._session
        os.write(self._write, json.dumps(question).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width == PHONE)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[Any]:
        """What the browser has to say against the page: errors, warnings, exceptions."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        found = [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [url for url in found if not url.startswith("data:")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


# What is closed is opened, for it must fit, too.
OPEN = "document.querySelectorAll('details').forEach(one => one.open = true)"
# Texts whose contrast with what is behind them is less than WCAG 2.2 AA asks of small text (4.5 to 1).
CONTRAST = """(() => {
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const lightness = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = one => { for (; one; one = one.parentElement) {
  const found = numbers(getComputedStyle(one).backgroundColor); if (found.length < 4 || found[3] > 0) return found; }
  return [255, 255, 255]; };
const faint = [];
for (const one of document.body.querySelectorAll('*')) {
  if (one.closest('svg') || ![...one.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
  const [a, b] = [lightness(numbers(getComputedStyle(one).color)), lightness(behind(one))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${one.className} ${one.textContent.trim().slice(0, 40)}`);
}
return faint; })()"""

PAGES: dict[str, dict[str, Any]] = {
    "whole": {},
    "dead": {"dead": ("cp-1",)},
    "large": {"workers": 47, "failed": (("worker-3", "worker-9", "no answer"),)},
}


@pytest.mark.parametrize("kind", PAGES)
def test_the_page_fits_and_is_quiet(browser: Browser, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(samples.page_of(**PAGES[kind])), encoding="utf-8")
    backgrounds = {}
    for dark in (False, True):
        for width in (PHONE, DESK):
            browser.open(file, width=width, dark=dark)
            browser.value(OPEN)
            where = f"{kind}, {width} px, {'dark' if dark else 'light'}"
            assert browser.value("window.innerWidth") == width, where
            assert browser.value("document.documentElement.scrollWidth") <= width, f"{where}: the body scrolls sideways"
            assert browser.value("document.styleSheets.length") == 1, f"{where}: the policy has refused the style"
            assert browser.value(CONTRAST) == [], where
            assert browser.complaints() == [], where
            assert browser.requests() == [file.as_uri()], where
            backgrounds[dark] = browser.value("getComputedStyle(document.body).backgroundColor")
        shot = base64.b64decode(browser.ask("Page.captureScreenshot", format="png")["data"])
        assert len(shot) > 10_000, "an empty picture"
    assert backgrounds[False] != backgrounds[True]


def test_the_browser_would_complain(browser: Browser, tmp_path: Path) -> None:
    """The instruments above can fail: a page that fetches, is too wide, faint, and has a script."""
    file = tmp_path / "bad.html"
    wide = '<p style="width:900px;color:#bbb">faint</p><img src="http://127.0.0.1:9/x.png"><script>console.error("x")</script>'
    file.write_text(f'<!doctype html><meta name="viewport" content="width=device-width"><body>{wide}')
    browser.open(file, width=PHONE, dark=False)
    assert browser.value("document.documentElement.scrollWidth") > PHONE
    assert browser.value(CONTRAST) != []
    assert browser.complaints() != []
    assert "http://127.0.0.1:9/x.png" in browser.requests()


def test_words_of_a_node_stay_words(browser: Browser, tmp_path: Path) -> None:
    attack = '</style><script>window.hit=1</script><img src=x onerror="window.hit=1"><style>body{display:none}</style>'
    file = tmp_path / "attack.html"
    file.write_text(render(samples.attacked(attack)), encoding="utf-8")
    browser.open(file, width=DESK, dark=False)
    assert browser.value("window.hit") is None
    assert browser.value("document.querySelectorAll('script, img').length") == 0
    assert browser.value("getComputedStyle(document.body).display") == "block"
    assert attack in browser.value("document.body.textContent")
    assert browser.requests() == [file.as_uri()]
