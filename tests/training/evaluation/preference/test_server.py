"""The raters' page: what comes next, answers that stay, and what the clips give away (nothing)."""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tiny_runs import run_command
from two_models import make_study

from common.errors import AttuneError
from training.evaluation.preference.answers import Answers, Conflict, plain_text
from training.evaluation.preference.server import build_app
from training.evaluation.preference.study import Study, clip_path, read_study
from training.web.limits import RateLimit

PAIRS, RATERS = 4, 3


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Study]:
    return make_study(tmp_path, PAIRS, RATERS)


@pytest.fixture
def client(place: tuple[Path, Study]) -> Iterator[TestClient]:
    folder, study = place
    with TestClient(build_app(folder, study, Answers(folder, study), ["testserver"])) as client:
        yield client


@pytest.fixture
def get(client: TestClient, place: tuple[Path, Study]) -> Callable[..., dict]:
    """The response for a rater (by number) at a path; with `json` it is a POST."""

    def ask(rater: int, path: str = "/api/next", status: int = 200, **json: object) -> dict:
        headers = {"Authorization": f"Bearer {place[1].raters[rater].token}"}
        method = "POST" if json else "GET"
        answer = client.request(method, path, headers=headers, json=json or None)
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask


def test_a_rater_gets_every_pair_once_in_their_order(
    get: Callable[..., dict], place: tuple[Path, Study]
) -> None:
    study = place[1]
    for rater in range(RATERS):
        now = get(rater)
        for number, showing in enumerate(study.raters[rater].showings):
            assert (now["done"], now["of"]) == (number, PAIRS)
            assert now["pair"] == {
                "name": showing.name,
                "prompt": study.pairs[showing.pair].prompt,
                "clips": [showing.left, showing.right],
            }
            assert get(rater) == now, "asking again changes nothing"
            now = get(rater, "/api/answers", pair=showing.name, choice="left")
        assert now == get(rater) == {"done": PAIRS, "of": PAIRS, "pair": None}


def test_an_answer_is_on_the_disk_when_it_is_acknowledged(
    get: Callable[..., dict], place: tuple[Path, Study]
) -> None:
    folder, study = place
    get(1, "/api/answers", pair=get(1)["pair"]["name"], choice="right", comment=" fine \n")
    database = sqlite3.connect(folder / "answers.sqlite")
    rows = database.execute("SELECT rater, pair, choice, comment FROM answers").fetchall()
    assert rows == [(1, study.raters[1].showings[0].pair, "right", "fine")]
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_repeated_answer_is_accepted_and_another_one_is_refused(
    get: Callable[..., dict], place: tuple[Path, Study]
) -> None:
    folder, study = place
    first = get(0)["pair"]["name"]
    reply = {"pair": first, "choice": "left", "comment": "a\r\nb"}
    now = get(0, "/api/answers", **reply)
    assert now["done"] == 1
    assert get(0, "/api/answers", **reply) == now
    for change in ({"choice": "right"}, {"comment": "c"}):
        told = get(0, "/api/answers", 409, **reply | change)
        assert "stored, and stands" in told["error"]
    later = study.raters[0].showings[2].name
    told = get(0, "/api/answers", 409, pair=later, choice="left")
    assert "other pairs come before" in told["error"]
    # Replayed from an old page, while the rater is further on: still as good as new.
    second = get(0, "/api/answers", pair=now["pair"]["name"], choice="left")
    assert get(0, "/api/answers", **reply) == second
    rows = Answers(folder, study).all()
    found = sorted((row.rater, row.choice, row.comment) for row in rows)
    assert found == [(0, "left", ""), (0, "left", "a\nb")]


def test_the_database_keeps_only_one_answer(place: tuple[Path, Study]) -> None:
    """Two servers on one study: whoever comes second hears of the first."""
    folder, study = place
    one, two = Answers(folder, study), Answers(folder, study)
    assert one.add(0, 1, "left", "") is True
    assert two.add(0, 1, "left", "") is False
    with pytest.raises(Conflict):
        two.add(0, 1, "right", "")
    assert two.answered(0) == {1} and len(one.all()) == 1
    mode = two._database.execute("PRAGMA synchronous").fetchone()
    assert mode == (2,), "2 is FULL"


def test_answers_of_another_study_are_refused(place: tuple[Path, Study], tmp_path: Path) -> None:
    folder, study = place
    Answers(folder, study).close()
    with pytest.raises(AttuneError, match="answers of another study"):
        Answers(folder, study.model_copy(update={"id": "x" * 22}))
    (folder / "answers.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(AttuneError, match="file is not a database"):
        Answers(folder, study)


def test_a_pair_of_responses_does_not_reveal_the_sides(
    client: TestClient, place: tuple[Path, Study]
) -> None:
    folder, study = place
    seen = set()
    for rater in study.raters:
        headers = {"Authorization": f"Bearer {rater.token}"}
        for showing in rater.showings:
            answers = [
                client.get(f"/api/clips/{name}", headers=headers)
                for name in (showing.left, showing.right)
            ]
            heads = [dict(answer.headers) for answer in answers]
            assert heads[0] == heads[1], "headers differ within a pair"
            assert not {"etag", "last-modified", "content-disposition"} & set(heads[0])
            assert heads[0]["content-type"] == "audio/wav"
            assert heads[0]["cache-control"] == "no-store"
            assert int(heads[0]["content-length"]) == len(answers[0].content)
            pair = study.pairs[showing.pair]
            for side, answer in zip(("left", "right"), answers, strict=True):
                file = pair.a if showing.model(side) == "a" else pair.b
                assert answer.content == clip_path(folder, file).read_bytes()
            seen |= {showing.left, showing.right}
    assert len(seen) == 2 * PAIRS * RATERS, "raters could compare names"
    files = {path.stem for path in (folder / "clips").iterdir()}
    assert not files & seen


def test_raters_do_not_learn_the_names_of_the_models(
    client: TestClient, get: Callable[..., dict], place: tuple[Path, Study]
) -> None:
    study = place[1]
    texts = [client.get(path).text for path in ("/", "/listen.js", "/style.css")]
    texts += [str(get(rater)) for rater in range(RATERS)]
    secrets = {study.a.name, study.b.name, study.id, study.a.clips, study.b.clips}
    secrets |= {name for pair in study.pairs for name in (pair.a, pair.b)}
    for text in texts:
        for secret in secrets:
            assert not re.search(rf"\b{re.escape(secret)}\b", text), secret


def test_a_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for path, kind in (
        ("/", "text/html"), ("/listen.js", "text/javascript"), ("/style.css", "text/css")
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert {tuple(directive.split()) for directive in policy.split(";")} == {
            ("default-src", "'none'"),
            ("script-src", "'self'"),
            ("style-src", "'self'"),
            ("connect-src", "'self'"),
            ("media-src", "blob:"),
            ("img-src", "data:"),
            ("frame-ancestors", "'none'"),
            ("base-uri", "'none'"),
            ("form-action", "'none'"),
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not re.search(r"(https?:)?//[a-z]", answer.text.replace("// ", ""))
    page = client.get("/").text
    assert "<style" not in page and not re.search(r"<script(?! src)|\son\w+=|\sstyle=", page)


def test_a_study_continues_with_another_server(place: tuple[Path, Study]) -> None:
    folder, study = place
    headers = {"Authorization": f"Bearer {study.raters[0].token}"}
    for number, showing in enumerate(study.raters[0].showings, 1):
        # Never closed: as if it had been killed.
        server = build_app(folder, read_study(folder), Answers(folder, study), ["testserver"])
        client = TestClient(server)
        reply = {"pair": showing.name, "choice": "right"}
        assert client.post("/api/answers", headers=headers, json=reply).json()["done"] == number


def test_the_command_refuses_studies_it_cannot_serve(
    place: tuple[Path, Study], tmp_path: Path
) -> None:
    folder = place[0]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, words in (
            ([folder, "--port", port], f"cannot listen on 127.0.0.1:{port}"),
            ([folder, "--host", "0.0.0.0"], "say with --url what raters type"),
            ([folder, "--host", "0.0.0.0", "--url", "lab"], "--url lab: expected an address"),
            ([tmp_path], "no study there"),
        ):
            with pytest.raises(AttuneError, match=words):
                run_command("preference", "serve", *arguments)


def test_comments_are_plain_text() -> None:
    assert plain_text("  a\r\nb\rc\td\x00\x1b[31m\x7f  ") == "a\nb\nc\td[31m"
    assert plain_text("<b>ü 猫 =1</b>") == "<b>ü 猫 =1</b>"


def test_a_rate_limit_lets_a_burst_pass_and_then_a_trickle() -> None:
    now = 0.0
    limit = RateLimit(burst=3, per_s=0.5, kept=2, clock=lambda: now)
    assert [limit.take("a") for _ in range(5)] == [0, 0, 0, 2, 2]
    assert limit.take("b") == 0, "another key has its own"
    now = 2.0
    assert [limit.take("a"), limit.take("a")] == [0, 2]
    now = 1000.0
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 2], "no more than a burst comes back"
    limit.take("b"), limit.take("c")
    assert limit.take("a") == 0, "the oldest of more than two keys is forgotten"
