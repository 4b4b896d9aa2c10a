"""Eight raters over twenty prompts in a real browser, with the server killed while they rate.

Each rater has a taste (the higher or the lower tone) and listens: zero crossings of the page's own
sounds are counted.  What the report must say follows from their tastes and from which model has the
higher tone, and from nothing that the server does.
"""

from __future__ import annotations

import csv
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from training_process import ENVIRONMENT, free_port, run_to_end
from two_models import a_is_higher, prompt, write_models

RATERS, PROMPTS = 8, 20
BY_KEYS = (0, 1, 2, 3)
"""Raters who touch nothing but the keyboard."""
PROGRAM = [sys.executable, "-m", "training", "preference"]

_KEEP_SOUNDS = """
window.sounds = {};
const make = URL.createObjectURL.bind(URL);
URL.createObjectURL = (blob) => { const url = make(blob); window.sounds[url] = blob; return url; };
"""
_CROSSINGS = """async () => {
  const count = async (side) => {
    const file = await window.sounds[players[side].src].arrayBuffer();
    const samples = new Int16Array(file.slice(44));
    return samples.reduce((n, s, i) => n + (i > 0 && s >= 0 !== samples[i - 1] >= 0), 0);
  };
  return [await count("left"), await count("right")];
}"""

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


def _wants_higher(rater: int, number: int) -> bool:
    """A taste that most share, some have the other way round, and one changes with the prompt."""
    if rater == 7:
        return number % 2 == 0
    return rater not in (2, 5)


class Server:
    """The command, on one port, to be killed and started again."""

    def __init__(self, study: Path) -> None:
        self.port = free_port()
        self._command = [*PROGRAM, "serve", str(study), "--port", str(self.port)]

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline()
        assert self.said.startswith(f"http://127.0.0.1:{self.port} ({PROMPTS} pairs, {RATERS} rate")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    a, b = write_models(tmp_path, PROMPTS)
    sides = ["--a", str(a), "--b", str(b), "--out", f"{tmp_path}/study", "--raters", str(RATERS)]
    run_to_end([*PROGRAM, "prepare", *sides])
    return tmp_path / "study"


@pytest.fixture
def server(study: Path) -> Iterator[Server]:
    found = Server(study)
    try:
        found.start()
        yield found
    finally:
        found.kill()


class Rater:
    """Someone with a browser, a link and a taste."""

    def __init__(self, browser: Any, number: int, link: str) -> None:
        self.number = number
        self.by_keys = number in BY_KEYS
        size = {"width": 390, "height": 844} if number % 2 else {"width": 1280, "height": 900}
        self.page = browser.new_context(viewport=size).new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.add_init_script(_KEEP_SOUNDS)
        self.page.goto(link)
        self.done = 0

    def listen_and_choose(self) -> None:
        """Play both and choose; nothing is sent yet."""
        self.page.wait_for_selector("#play-left[aria-disabled=false]")
        assert self.page.inner_text("#message") == ""
        assert self.page.inner_text("#count") == f"{self.done + 1} of {PROMPTS}"
        for side, key in (("left", "1"), ("right", "2")):
            if self.by_keys:
                self.page.keyboard.press(key)
            else:
                self.page.click(f"#play-{side}")
            self.page.wait_for_selector(f"#heard-{side}.yes")
        left, right = self.page.evaluate(_CROSSINGS)
        assert left != right
        number = int(self.page.inner_text("#prompt").split()[-1])
        chosen = "left" if (left > right) == _wants_higher(self.number, number) else "right"
        if self.by_keys:
            self.page.keyboard.press("ArrowLeft" if chosen == "left" else "ArrowRight")
        else:
            self.page.check(f"input[value={chosen}]")
        self.page.wait_for_selector("#send[aria-disabled=false]")

    def send(self) -> None:
        """Press Enter, or the button; does not wait for what comes of it."""
        if self.by_keys:
            self.page.keyboard.press("Enter")
        else:
            self.page.click("#send", no_wait_after=True)

    def wait_until_stored(self) -> None:
        self.done += 1
        if self.done == PROMPTS:
            self.page.wait_for_selector("#end:not([hidden])")
        else:
            wanted = f"{self.done + 1} of {PROMPTS}"
            self.page.wait_for_selector(f"#count:text-is('{wanted}')")


def _links(study: Path) -> list[dict[str, Any]]:
    done = run_to_end([*PROGRAM, "links", str(study), "--json"])
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_eight_raters_and_a_server_that_is_killed_twice(
    browser: Any, study: Path, server: Server
) -> None:
    at = f"http://127.0.0.1:{server.port}"
    links = [row["link"].replace("http://127.0.0.1:8401", at) for row in _links(study)]
    raters = [Rater(browser, number, link) for number, link in enumerate(links)]
    for turn in range(PROMPTS):
        for rater in raters:
            rater.listen_and_choose()
        if turn == 6:  # gone before anyone sends
            server.kill()
            for rater in raters:
                rater.send()
            for rater in raters:
                rater.page.wait_for_selector("#message:has-text('kept here and sent again')")
                assert rater.page.inner_text("#count") == f"{rater.done + 1} of {PROMPTS}"
                assert rater.page.is_disabled("input[value=left]"), "another choice than sent"
            server.start()
            assert f"{6 * RATERS} of {RATERS * PROMPTS} answers" in server.said
        elif turn == 13:  # killed while answers are on their way, some stored, some not
            for rater in raters[:5]:
                rater.send()
            server.kill()
            for rater in raters[5:]:
                rater.send()
            server.start()
        else:
            for rater in raters:
                rater.send()
        for rater in raters:
            rater.wait_until_stored()
        if turn == 9:  # closed and opened again: it continues where it was
            raters[0].page.reload()
        if turn == 10:
            assert raters[7].page.evaluate(
                "document.documentElement.scrollWidth <= window.innerWidth"
            )
    for rater in raters:
        assert "All 20 answers are stored" in rater.page.inner_text("#end")
        assert not rater.errors
        assert all(url.startswith((at, "blob:", "data:")) for url in rater.requests)
        assert all("#" in url or rater.page.url.split("#")[1] not in url
                   for url in rater.requests)  # fmt: skip
    assert [row["answered"] for row in _links(study)] == [PROMPTS] * RATERS
    _check_answers(study)
    _check_report(study)


def _expected() -> dict[tuple[int, str], bool]:
    """Whether A is preferred, by rater and prompt: from nothing but tastes and tones."""
    return {
        (rater, prompt(number)): _wants_higher(rater, number) == a_is_higher(number)
        for rater in range(RATERS)
        for number in range(PROMPTS)
    }


def _check_answers(study: Path) -> None:
    database = sqlite3.connect(study / "answers.sqlite")
    rows = database.execute("SELECT rater, pair FROM answers").fetchall()
    database.close()
    assert len(rows) == len(set(rows)) == RATERS * PROMPTS


def _check_report(study: Path) -> None:
    expected = _expected()
    for_a = sum(expected.values())
    assert for_a not in (0, 80, 160)
    found = json.loads(run_to_end([*PROGRAM, "report", str(study), "--json"]).stdout)
    assert found["answers"] == RATERS * PROMPTS
    assert (found["a"], found["b"]) == ("lm-north", "lm-south")
    assert found["preference"]["a"]["hits"] == for_a
    assert found["preference"]["b"]["hits"] == 160 - for_a
    assert found["sides"]["a_was_left"] == 80
    for row in found["prompts"]:
        assert row["a"] == sum(expected[rater, row["prompt"]] for rater in range(RATERS))
    for row in found["raters"]:
        assert row["a"] == sum(expected[row["rater"] - 1, prompt(n)] for n in range(PROMPTS))
    with (study / "report" / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 160
    for row in answers:
        preferred = expected[int(row["rater"]) - 1, row["prompt"]]
        assert row["preferred"] == ("lm-north" if preferred else "lm-south")
    left = [row for row in answers if row["left"] == "lm-north"]
    assert set(Counter(row["rater"] for row in left).values()) == {PROMPTS // 2}
    assert set(Counter(row["prompt"] for row in left).values()) == {RATERS // 2}
    assert f"lm-north: {100 * for_a / 160:.0f}% |" in found["table_4"]


@contextmanager
def _slow_link(port: int, bytes_per_s: float) -> Iterator[int]:
    """A port that leads to another one, with so much coming back a second on each connection."""

    def pump(source: socket.socket, sink: socket.socket, pause: float) -> None:
        with suppress(OSError):
            while part := source.recv(1024):
                sink.sendall(part)
                time.sleep(pause * len(part))
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                browser, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for way in ((browser, server, 0.0), (server, browser, 1 / bytes_per_s)):
                    threading.Thread(target=pump, args=way, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_slow_link_is_given_the_time_that_it_takes(
    browser: Any, study: Path, server: Server
) -> None:
    """Sounds that take several times as long as the page waits for an answer; then no answer."""
    link = _links(study)[0]["link"]
    size = next((study / "clips").iterdir()).stat().st_size

    def hurried(route: Any) -> None:
        script = (
            Path(__file__).parents[2] / "training/evaluation/preference/listen.js"
        ).read_text()
        assert "GIVE_UP_S = 15" in script
        script = script.replace("GIVE_UP_S = 15", "GIVE_UP_S = 1")
        route.fulfill(body=script, content_type="text/javascript")

    with _slow_link(server.port, size / 4) as port:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.route("**/listen.js", hurried)
        page.goto(link.replace(":8401", f":{port}"))
        page.wait_for_selector("#play-left[aria-disabled=false]", timeout=20_000)
        assert sum("/api/clips/" in url for url in asked) == 2, "a sound was asked for again"
        assert page.inner_text("#message") == ""
        # The page does not wait for a server that takes a request and says nothing.
        page.route("**/api/next", lambda route: None)
        page.reload()
        page.wait_for_selector("#message:has-text('does not answer')", timeout=20_000)


def test_what_the_page_asks_for_and_says(browser: Any, study: Path, server: Server) -> None:
    """Both sounds before an answer; keys that can be turned off; one answer from two tabs."""
    link = _links(study)[0]["link"].replace(":8401", f":{server.port}")
    page, other = (browser.new_page() for _ in range(2))
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    for tab in (page, other):
        tab.goto(link)
        tab.wait_for_selector("#play-left[aria-disabled=false]")
    assert page.evaluate("document.activeElement.id") == "prompt-title"

    def message() -> str:
        found: str = page.inner_text("#message")
        return found

    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert message() == "Play both sounds first."
    page.keyboard.press("2")
    page.wait_for_selector("#heard-right.yes")
    page.keyboard.press("Enter")
    assert message() == "Play sound 1 as well."
    assert page.get_by_role("button", name="Play sound 1").is_visible()
    assert page.get_by_role("radio", name="Sound 1 is better").is_checked()
    assert page.get_by_role("group", name="Which has better quality and matches").is_visible()
    # Letters in the comment are letters.
    page.get_by_label("Comment").fill("")
    page.get_by_label("Comment").press("1")
    assert page.input_value("#comment") == "1" and not page.is_visible("#heard-left.yes")
    page.fill("#comment", "<b>loud</b>")
    # Keys off: nothing plays; on again: by keyboard from wherever the focus is.
    page.click("summary")
    page.uncheck("#keys")
    page.focus("#prompt-title")
    page.keyboard.press("1")
    time.sleep(0.3)
    assert not page.is_visible("#heard-left.yes")
    page.check("#keys")
    page.focus("#prompt-title")
    page.keyboard.press("1")
    page.wait_for_selector("#heard-left.yes")
    assert page.inner_text("#hint") == "Sends: sound 1 is better."
    # Every control is reached by Tab, and shows it.
    page.focus("#prompt-title")
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[:3] == ["play-left", "choice", "play-right"]
    assert reached[3:6] == ["comment", "send", None] and reached[6] == "keys"
    page.focus("#comment")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#count:text-is('2 of 20')")
    # The other tab still shows the first pair: its answer comes too late, and it continues.
    for key, side in (("1", "left"), ("2", "right")):
        other.keyboard.press(key)
        other.wait_for_selector(f"#heard-{side}.yes")
    other.keyboard.press("ArrowRight")
    other.keyboard.press("Enter")
    other.wait_for_selector("#count:text-is('2 of 20')")
    other.wait_for_selector("#message:has-text('answered before')")
    # Small targets are hard to hit with a thumb.
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("#play-left", "#play-right", "#send", "label.choice >> nth=0", "summary"):
        box = page.locator(name).bounding_box()
        assert box["height"] >= 44 and box["x"] + box["width"] <= 390, name
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    stranger = browser.new_page()
    stranger.goto(link.split("#")[0] + "#" + "x" * 32)
    stranger.wait_for_selector("#message:has-text('not valid')")
    stranger.goto("about:blank")
    stranger.goto(link.split("#")[0])
    stranger.wait_for_selector("#message:has-text('needs the link')")
    assert not [text for text in said if "Content Security Policy" in text]
    database = sqlite3.connect(study / "answers.sqlite")
    rows = database.execute("SELECT rater, choice, comment FROM answers").fetchall()
    database.close()
    assert rows == [(0, "left", "<b>loud</b>")]
