"""The page in a real browser: two tabs, a bad prompt, progress, sound and picture."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_lm import make_world
from training_process import ENVIRONMENT, command, run_to_end

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

_DURATION = """async audio => {
  if (!(audio.duration > 0)) await new Promise(ready => { audio.onloadedmetadata = ready; });
  return audio.duration;
}"""

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    make_world(tmp_path)
    for run in ("one", "two"):
        run_to_end(command(tmp_path, run))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "training", "play", "--config", f"{tmp_path}/recipe.yaml"]
    program += ["--run", "one", "--run", "two", "--port", str(port)]
    server = subprocess.Popen(program, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"http://127.0.0.1:{port} (one, two)")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait(what: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_tabs(address: str) -> None:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        said: list[str] = []
        tabs = []
        for _ in range(2):
            tab = browser.new_page()
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.goto(address)
            tab.wait_for_selector("input[name=run]")
            tabs.append(tab)
        first = tabs[0]
        first.fill("#prompt", "the 3")
        first.click("button")
        _wait(lambda: "nothing remains" in first.inner_text("#message"))
        assert first.locator("article").count() == 0
        for tab, prompt in zip(tabs, ("<b>dog</b> barks", "rain"), strict=True):
            tab.fill("#prompt", prompt)
            tab.click("button")
        for tab, prompt in zip(tabs, ("<b>dog</b> barks", "rain"), strict=True):
            tab.wait_for_selector("article img")
            _wait(lambda tab=tab: tab.locator("article img").count() == 2)
            assert tab.inner_text("article h2") == prompt
            assert "x real time" in tab.inner_text("article p")
            assert tab.locator("article progress").count() == 0
            for i in range(2):
                assert tab.locator("article audio").nth(i).evaluate(_DURATION) == pytest.approx(0.4)
        assert first.inner_text("#message") == "" and not said
        browser.close()
