"""The page at ``/`` in headless Chromium: a picture goes in, and its classes come out; skipped where there is none."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,900",
]


class Browser:
    """A browser through chromedriver, by the WebDriver protocol (W3C, 2018)."""

    def __init__(self, port: int, profile: Path) -> None:
        self._root = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self._root += f"/session/{made['sessionId']}"

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())["value"]

    def go(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def choose_file(self, selector: str, file: Path) -> None:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/value", {"text": str(file)})

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("GET", "/screenshot"))

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("chromedriver is not here: apt-get install chromium chromium-driver")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        made = _when_up(port, tmp_path / "profile")
        yield made
        made.close()
    finally:
        process.terminate()
        process.wait(10)


def _when_up(port: int, profile: Path) -> Browser:
    end = time.monotonic() + 30
    while True:
        try:
            return Browser(port, profile)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.mark.slow
def test_a_picture_that_is_chosen_is_named_on_the_page(
    browser: Browser, start: Callable[..., Any], served_bundle: Path, tmp_path: Path
) -> None:
    from PIL import Image

    server = start(served_bundle)
    picture = tmp_path / "green.png"
    Image.new("RGB", (64, 64), (0, 250, 0)).save(picture)
    browser.go(f"http://127.0.0.1:{server.port}/")
    until(browser, "return document.querySelectorAll('article h2').length", 1)
    assert browser.run("return document.querySelector('h2').textContent") == "four-fp16, version 1"
    assert "60.5 dB" in browser.run("return document.querySelector('tbody').textContent")
    browser.choose_file("input[type=file]", picture)
    until(browser, "return document.querySelectorAll('.answer li').length", 4)
    assert browser.run("return document.querySelector('.answer li span').textContent") == "green"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    if folder := os.environ.get("SERVE_TEST_SCREENSHOTS"):
        Path(folder, "page.png").write_bytes(browser.screenshot())
    browser.choose_file("input[type=file]", broken)
    until(browser, "return document.querySelectorAll('.fault').length", 1)
    assert "expected a picture" in browser.run("return document.querySelector('.fault').textContent")
    elsewhere = "return performance.getEntriesByType('resource').filter(one => !one.name.startsWith(location.origin))"
    assert [one["name"] for one in browser.run(elsewhere) if not one["name"].startswith(("blob:", "data:"))] == []


def until(browser: Browser, script: str, value: Any) -> None:
    end = time.monotonic() + 20
    while browser.run(script) != value:
        assert time.monotonic() < end, browser.run("return document.body.innerText")
        time.sleep(0.05)
