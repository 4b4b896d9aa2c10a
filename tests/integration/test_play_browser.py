"""The page in a real browser: two tabs, a bad prompt, progress, sound and picture."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_lm import make_world
from training_process import ENVIRONMENT, command, free_port, run_to_end

from training.sampling.config import SamplingConfig
from training.web.play import Order, Studio, build_app
from training.web.serving import listening, make_server

RATE = 16_000
_DURATION = """async audio => {
  if (!(audio.duration > 0)) await new Promise(ready => { audio.onloadedmetadata = ready; });
  return audio.duration;
}"""

pytestmark = pytest.mark.heavy


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    make_world(tmp_path)
    for run in ("one", "two"):
        run_to_end(command(tmp_path, run))
    port = free_port()
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


class _Held(Studio):
    """Makes no sound until `go_on` is set."""

    go_on = threading.Event()

    def _stream(self, run: str, order: Order) -> Iterator[Any]:
        assert self.go_on.wait(60)
        yield np.zeros(round(order.duration_s * RATE), np.float32)


def test_a_full_line_leaves_the_page_usable(browser: Any) -> None:
    """There are more orders than a browser has connections to a server, and another tab."""
    model: Any = SimpleNamespace(
        codec=SimpleNamespace(sample_rate=RATE, frame_rate=50), trained_s=1.0,
        description={"step": 1}, normalize=lambda texts, as_is: texts,
        unheard=lambda texts: [[] for _ in texts],
    )  # fmt: skip
    server = make_server(build_app(_Held({"one": model}, SamplingConfig()), ["127.0.0.1"]))
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            tabs = browser.new_context()  # of one browser: connections are counted over all of them
            tab = tabs.new_page()
            tab.goto(f"http://127.0.0.1:{listener.getsockname()[1]}")
            tab.wait_for_selector("input[name=run]")
            tab.fill("#prompt", "rain")
            for count in range(1, 9):
                tab.click("button")
                _wait(lambda n=count: tab.locator("article").count() == n, 10)
            _wait(lambda: "waiting, 7 before it" in tab.locator("article p").first.inner_text())
            other = tabs.new_page()
            other.goto(tab.url, timeout=10_000)
            other.wait_for_selector("input[name=run]", timeout=10_000)
            _Held.go_on.set()
            _wait(lambda: tab.locator("article img").count() == 8)
            assert tab.inner_text("#message") == ""
        finally:
            _Held.go_on.set()
            server.should_exit = server.force_exit = True
            thread.join(60)


def test_two_tabs(browser: Any, address: str) -> None:
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
        heard = "" if prompt == "rain" else "heard as: dog bark"
        assert tab.inner_text("article .heard") == heard
        assert "x real time" in tab.inner_text("article p")
        assert tab.locator("article progress").count() == 0
        for i in range(2):
            assert tab.locator("article audio").nth(i).evaluate(_DURATION) == pytest.approx(0.4)
    assert first.inner_text("#message") == "" and not said
