"""What a hostile client tries against the raters' server, here or over a socket of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from two_models import make_study

from training.evaluation.preference import server
from training.evaluation.preference.answers import Answers
from training.evaluation.preference.server import build_app
from training.evaluation.preference.study import Study
from training.web import access
from training.web.limits import RateLimit
from training.web.serving import make_server


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Study]:
    """A study whose server does not see time go by, however long a test takes."""
    monkeypatch.setattr(server, "RateLimit", partial(RateLimit, clock=lambda: 0.0))
    return make_study(tmp_path, 3, 2)


@pytest.fixture
def client(place: tuple[Path, Study]) -> Iterator[TestClient]:
    folder, study = place
    app = build_app(folder, study, Answers(folder, study), ["testserver"])
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def port(place: tuple[Path, Study]) -> Iterator[int]:
    """Of a real server."""
    folder, study = place
    app = build_app(folder, study, Answers(folder, study), ["127.0.0.1"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = make_server(app)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join(10)


def _bearer(study: Study, rater: int = 0) -> dict[str, str]:
    return {"Authorization": f"Bearer {study.raters[rater].token}"}


def _reply(study: Study, **changes: object) -> dict:
    return {"pair": study.raters[0].showings[0].name, "choice": "left"} | changes


def _stored(place: tuple[Path, Study]) -> int:
    return len(Answers(*place).all())


def test_who_has_no_token_gets_nothing(client: TestClient, place: tuple[Path, Study]) -> None:
    study = place[1]
    token, name = study.raters[0].token, study.raters[0].showings[0].left
    for value in (
        "", f"Basic {token}", "Bearer", "Bearer ", f"Bearer {token[:-1]}",
        f"Bearer {token} {token}", f"Bearer {study.id}", "Bearer \xff",
    ):  # fmt: skip
        headers = {"Authorization": value.encode("latin-1")}
        answer = client.get("/api/next", headers=headers)
        assert answer.status_code == 401, value
        assert answer.json() == {"error": "this link is not valid"}
    for method, path in (("GET", f"/api/clips/{name}"), ("POST", "/api/answers")):
        answer = client.request(method, path, json=_reply(study) if method == "POST" else None)
        assert answer.status_code == 401
    # By now the stranger asked too often and gets a time to come back; the rater does not.
    answer = client.get("/api/next", headers={"Authorization": "Bearer x"})
    assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 6
    assert client.get("/api/next", headers=_bearer(study)).status_code == 200
    assert _stored(place) == 0


def test_a_token_has_a_rate_of_its_own(client: TestClient, place: tuple[Path, Study]) -> None:
    study = place[1]
    found = [client.get("/api/next", headers=_bearer(study)).status_code for _ in range(200)]
    assert found == [200] * 120 + [429] * 80
    assert client.get("/api/next", headers=_bearer(study, 1)).status_code == 200


def test_no_clip_or_pair_of_another_rater(client: TestClient, place: tuple[Path, Study]) -> None:
    study = place[1]
    other = study.raters[1].showings[0]
    for name in (other.left, other.right, study.pairs[0].a, study.pairs[0].b, other.name):
        assert client.get(f"/api/clips/{name}", headers=_bearer(study)).status_code == 404
        assert client.get(f"/api/clips/{name}.wav", headers=_bearer(study)).status_code == 404
    reply = _reply(study, pair=other.name)
    assert client.post("/api/answers", json=reply, headers=_bearer(study)).status_code == 404
    assert _stored(place) == 0


def test_no_path_leads_out(client: TestClient, place: tuple[Path, Study]) -> None:
    for path in (
        "/api/clips/..%2f..%2fstudy.json", "/api/clips/../study.json", "/api/clips/%2e%2e",
        "/api/clips/....//study.json", "/api/clips/%00", "/study.json", "/../study.json",
        "/clips", "/answers.sqlite", "/listen.js/../../study.json", "/docs", "/openapi.json",
        "/api/clips/", "/favicon.ico", "/api/clips/" + "a" * 5000,
    ):  # fmt: skip
        answer = client.get(path, headers=_bearer(place[1]))
        assert answer.status_code == 404, path
        assert place[1].raters[1].token not in answer.text


def test_bodies_that_are_no_answer(client: TestClient, place: tuple[Path, Study]) -> None:
    headers = _bearer(place[1]) | {"Content-Type": "application/json"}
    for body in (
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{" * 3000, b"[" * 9000, b"1" * 5000,
        b'{"pair": 1, "choice": "left"}', b'{"pair": "x"}', b'{"choice": "left"}',
        b'{"pair": "x", "choice": "both"}', b'{"pair": "x", "choice": null}',
        b'{"pair": "x", "choice": "left", "more": 1}', b'{"pair": "", "choice": "left"}',
        b'{"pair": "x", "choice": "left", "comment": {"$gt": ""}}',
        b'{"pair": "x", "choice": "left", "comment": NaN}',
        b'{"pair": "x", "choice": "left", "comment": "\\ud800"}',
    ):  # fmt: skip
        answer = client.post("/api/answers", content=body, headers=headers)
        assert answer.status_code in (400, 422), (body[:50], answer.text)
        assert answer.json()["error"]
    assert _stored(place) == 0


def test_values_that_are_no_answer(client: TestClient, place: tuple[Path, Study]) -> None:
    study = place[1]
    for changes, status, words in (
        ({"comment": "x" * 1001}, 422, "comment: String should have at most 1000"),
        ({"comment": "\ud800"}, 422, "comment: "),
        ({"choice": "LEFT"}, 422, "choice: "),
        ({"pair": "x" * 65}, 422, "pair: "),
        ({"pair": "' OR 1=1 --"}, 404, "no such pair"),
    ):
        body = json.dumps(_reply(study, **changes))
        headers = _bearer(study) | {"Content-Type": "application/json"}
        answer = client.post("/api/answers", content=body, headers=headers)
        assert answer.status_code == status and words in answer.json()["error"], changes
    assert _stored(place) == 0
    plain = client.post(
        "/api/answers", content=b"pair=x&choice=left", headers=_bearer(study) | {
            "Content-Type": "application/x-www-form-urlencoded"
        },
    )  # fmt: skip
    assert plain.status_code == 422
    full = _reply(study, comment="\U0001f600" * 1000)
    assert client.post("/api/answers", json=full, headers=_bearer(study)).status_code == 200


def test_foreign_pages_and_names_are_refused(client: TestClient, place: tuple[Path, Study]) -> None:
    study = place[1]
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://testserver:81"},
        {"Origin": "http://testserver.evil.example"}, {"Sec-Fetch-Site": "cross-site"},
    ):  # fmt: skip
        answer = client.post("/api/answers", json=_reply(study), headers=_bearer(study) | headers)
        assert answer.status_code == 403, headers
        assert "access-control-allow-origin" not in answer.headers
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/api/answers", headers=asked).status_code == 403
    for host in ("evil.example", "testserver.evil.example", ""):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 400, host
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert _stored(place) == 0
    same = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    answer = client.post("/api/answers", json=_reply(study), headers=_bearer(study) | same)
    assert answer.status_code == 200


def test_other_methods_are_refused(client: TestClient, place: tuple[Path, Study]) -> None:
    for method in ("PUT", "DELETE", "PATCH", "HEAD", "TRACE"):
        answer = client.request(method, "/api/answers", headers=_bearer(place[1]))
        assert answer.status_code == 405, method
    assert client.get("/api/answers", headers=_bearer(place[1])).status_code == 405


def _talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes as they are, and read until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as line:
        try:
            for part in parts:
                line.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it does not listen any more, as it should not
        answer = b""
        try:
            while part := line.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    return answer


def _head(study: Study, *more: bytes) -> bytes:
    lines = [
        b"POST /api/answers HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: application/json",
        f"Authorization: Bearer {study.raters[0].token}".encode(), b"Connection: close", *more,
    ]  # fmt: skip
    return b"\r\n".join(lines) + b"\r\n\r\n"


def test_a_huge_body_is_not_read_whether_it_says_so_or_not(
    port: int, place: tuple[Path, Study]
) -> None:
    study = place[1]
    stated = _talk(port, _head(study, b"Content-Length: 1000000000"), b"x" * 1000)
    assert stated.startswith(b"HTTP/1.1 413")
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    chunked = _talk(port, _head(study, b"Transfer-Encoding: chunked"), *[chunk] * 1000)
    assert chunked.startswith(b"HTTP/1.1 413") or chunked == b""  # hung up on while sending
    few = _talk(port, _head(study, b"Transfer-Encoding: chunked"), *[chunk] * 3)
    assert few.startswith(b"HTTP/1.1 413") and b"too large" in few
    for length in (b"-1", b"abc", b"1e3", b"5, 6"):
        answer = _talk(port, _head(study, b"Content-Length: " + length), b"{}")
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), length
    assert _stored(place) == 0
    body = json.dumps(_reply(study)).encode()
    honest = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    answer = _talk(port, _head(study, b"Transfer-Encoding: chunked"), honest)
    assert answer.startswith(b"HTTP/1.1 200") and _stored(place) == 1


def test_a_body_that_does_not_arrive_is_given_up(
    port: int, place: tuple[Path, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "SLOWEST_S", 0.3)
    began = time.monotonic()
    answer = _talk(port, _head(place[1], b"Content-Length: 100"), b"{")
    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - began < 10


def test_the_real_server_does_not_name_itself_and_knows_no_other_host(port: int) -> None:
    end = b"Connection: close\r\n\r\n"
    for host in (b"Host: evil.example\r\n", b"", b"Host: 127.0.0.1.evil.example\r\n"):
        assert _talk(port, b"GET / HTTP/1.1\r\n" + host + end).startswith(b"HTTP/1.1 400"), host
    for path in (b"/../../etc/passwd", b"//evil.example/", b"/api/clips/../../study.json"):
        answer = _talk(port, b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + end)
        assert answer.startswith(b"HTTP/1.1 404"), path
        assert b"\r\nserver:" not in answer.lower()


def test_strangers_are_counted_by_connection_not_by_claimed_address(port: int) -> None:
    def ask(claimed: int) -> bytes:
        head = b"GET /api/next HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        return _talk(port, head + b"X-Forwarded-For: 10.0.0.%d\r\n\r\n" % claimed)

    found = [ask(number)[9:12] for number in range(12)]
    assert found == [b"401"] * 10 + [b"429"] * 2
