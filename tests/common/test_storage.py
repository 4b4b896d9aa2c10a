"""One behaviour on a folder and on a real S3 protocol server."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from obstore.exceptions import GenericError

from common.errors import AttuneError
from common.storage import StorageError, Store, open_store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield open_store(tmp_path / "a" / "b")
    else:
        yield open_store(request.getfixturevalue("s3_bucket") + "/some/prefix")


def test_objects_round_trip(store: Store, tmp_path: Path) -> None:
    store.write("x/y.bin", b"0123456789")
    (tmp_path / "file").write_bytes(b"from a file")
    store.write("x/z.bin", tmp_path / "file")
    store.write("w", b"first")
    store.write("w", b"second")
    assert store.read("w") == b"second"
    assert store.read("x/z.bin") == b"from a file"
    assert store.read_range("x/y.bin", 2, 3) == b"234"
    assert store.read_ranges("x/y.bin", [(8, 2), (0, 1), (4, 0)][:2]) == [b"89", b"0"]
    assert store.list() == [("w", 6), ("x/y.bin", 10), ("x/z.bin", 11)]
    assert store.list("x") == [("x/y.bin", 10), ("x/z.bin", 11)]
    assert store.list("nothing") == []
    with store.open("x/y.bin") as file:
        file.seek(-3, 2)
        assert file.read() == b"789"


def test_missing_objects_are_file_not_found(store: Store) -> None:
    assert not store.exists("q")
    for read in (lambda: store.read("q"), lambda: store.read_range("q", 0, 1),
                 lambda: store.open("q")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="q"):
            read()
    store.delete("q")


def test_a_range_past_the_end_is_an_error(store: Store) -> None:
    store.write("short", b"abc")
    with pytest.raises(StorageError, match="short"):
        store.read_range("short", 1, 10)


def test_create_lets_exactly_one_writer_win(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("commit", f"writer {i}".encode()), range(8)))
    assert won.count(True) == 1
    assert store.read("commit") == f"writer {won.index(True)}".encode()


def test_wrong_places_are_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AttuneError, match="found a file"):
        open_store(tmp_path / "file")
    with pytest.raises(AttuneError, match="gopher"):
        open_store("gopher://hole")
    with pytest.raises(ValueError, match="bad object key"):
        open_store(tmp_path).write("../escape", b"")


class SlowServer(http.server.ThreadingHTTPServer):
    """A store at the end of a slow line: three seconds for every object, up or down.

    The first answer to a read of `stalled` stops half way.
    """

    daemon_threads = True
    body = b"01234567" * 3000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SlowHandler)
        self.requests: Counter[str] = Counter()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is part of the game


class _SlowHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SlowServer

    def do_PUT(self) -> None:
        self.server.requests["PUT"] += 1
        left = int(self.headers["Content-Length"])
        piece = -(-left // 24)
        while left:
            left -= len(self.rfile.read(min(piece, left)))
            time.sleep(1 / 8)
        self._answer(0)

    def do_GET(self) -> None:
        self.server.requests["GET"] += 1
        body = self.server.body
        asked = self.headers.get("Range")  # the rest of a broken answer: bytes=START-END
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self._answer(len(body) - start, f"bytes {start}-{len(body) - 1}/{len(body)}" * bool(asked))
        for i in range(start, len(body), 1000):
            time.sleep(1 / 8)
            if i == 12_000 and self.path.endswith("stalled") and not asked:
                time.sleep(30)
            self.wfile.write(body[i : i + 1000])

    def _answer(self, length: int, part: str = "") -> None:
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", part)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def slow_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowServer]:
    server = SlowServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # Far above the pauses of a busy machine, and below what an object takes.
    monkeypatch.setattr("common.storage._SILENCE", timedelta(seconds=2))
    yield server
    server.shutdown()
    server.server_close()


def test_a_slow_transfer_is_not_given_up(slow_line: SlowServer) -> None:
    store = open_store("s3://bucket")
    store.write("large", bytes(4 << 20))
    assert store.read("large") == slow_line.body
    assert slow_line.requests == {"PUT": 1, "GET": 1}


def test_a_transfer_that_stops_is_tried_again(slow_line: SlowServer) -> None:
    assert open_store("s3://bucket").read("stalled") == slow_line.body
    assert slow_line.requests["GET"] == 2


def test_requests_may_take_longer_than_half_a_minute() -> None:
    store = open_store("s3://bucket")
    quick = {"connect_timeout": "5s"}
    assert store._backend.client_options == quick | {"timeout": "1h", "read_timeout": "30s"}
    assert store._uploads.client_options == quick | {"timeout": "10m"}


@pytest.mark.parametrize(("took", "tries"), [(200, 1), (700, 3)])
def test_a_long_request_that_breaks_is_restarted(
    took: float, tries: int, monkeypatch: pytest.MonkeyPatch
):
    """An upload may take longer than the time that an unreachable store is given."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None)
    monkeypatch.setattr("common.storage.time", clock)
    calls = []

    def put(*_: object, **__: object) -> None:
        calls.append(now[0])
        now[0] += took
        raise GenericError("Generic S3 error: HTTP error: operation timed out")

    monkeypatch.setattr("common.storage.obstore.put", put)
    with pytest.raises(StorageError, match="timed out"):
        Store("s3://bucket", object(), 120.0).write("a", b"a")
    assert len(calls) == tries
