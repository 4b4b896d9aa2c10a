"""The pipeline over an S3 store that fails: errors, resets, delays, lost answers, two drivers.

A small proxy stands between the store's client and a real S3 protocol server.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

# `in_process` serves both folders of tests.
from in_process import without_ray

from common.audio import AudioError
from common.cli import run_app
from common.config import load_recipe
from common.errors import AttuneError
from common.storage import StorageError, Store, open_store
from common.uris import on_disk
from pipeline.config import PipelineConfig
from pipeline.inspect.verify import verify_shards
from pipeline.run import run_pipeline

RESULTS = ("manifest.parquet", "quarantine.parquet", "shards.json", "summary.json")
FAULTS = ("500", "503", "reset", "lost", "cut", "slow")
IN_A_ROW = 3
"""Faults that one request meets at most, before its next try is served."""

Chooser = Callable[[str, str, int, bool], str]
"""Method, path, how many of these came before, whether it is a conditional put: a fault, or ""."""

Run = Callable[[str | Path], None]
"""Runs the pipeline into a data_dir, in this process."""


def seeded(seed: int, rate: float) -> Chooser:
    """Faults at `rate`, by request: the same ones whatever else happens at the time."""

    def choose(method: str, path: str, nth: int, conditional: bool) -> str:
        def draw(i: int) -> int:
            key = f"{seed} {method} {path} {i}".encode()
            return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())

        if draw(nth) >= rate * 2**64:
            return ""
        if nth >= IN_A_ROW and all(draw(i) < rate * 2**64 for i in range(nth - IN_A_ROW, nth)):
            return ""
        return FAULTS[draw(nth) % len(FAULTS)]

    return choose


def nothing(method: str, path: str, nth: int, conditional: bool) -> str:
    return ""


class FaultyProxy(http.server.ThreadingHTTPServer):
    """Hands requests on to an S3 server, and spoils those that `choose` names.

    403, 500, 503: an answer of the store's own, without the request having been carried out.
    reset: the connection is reset before the request is carried out.
    lost: it is carried out, and the connection reset instead of an answer.
    cut: it is carried out, and half of the answer comes.
    slow: it is carried out after a while.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.choose: Chooser = nothing
        self.seen: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, method: str, path: str, conditional: bool) -> str:
        with self.lock:
            nth = self.seen[method, path]
            self.seen[method, path] += 1
            fault = self.choose(method, path, nth, conditional)
            if fault:
                self.faults[f"{fault} create" if conditional else fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is part of the game


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        conditional = self.command == "PUT" and "If-None-Match" in self.headers
        path = urlsplit(self.path).path + ("?list" if "list-type" in self.path else "")
        fault = self.server.next_fault(self.command, path, conditional)
        if fault in ("403", "500", "503"):
            code = "AccessDenied" if fault == "403" else "SlowDown"
            self._answer(int(fault), [], f"<Error><Code>{code}</Code></Error>".encode())
            return
        if fault == "reset":
            self._reset()
            return
        if fault == "slow":
            time.sleep(0.2)
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers))
        response = upstream.getresponse()
        data = response.read()
        if fault == "lost":
            self._reset()
            return
        self._answer(response.status, response.getheaders(), data, cut=fault == "cut")
        upstream.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict((name.lower(), value) for name, value in headers).get("content-length")
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", length if is_head and length else str(len(data)))
        self.end_headers()
        if cut and data:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._reset()
        elif not is_head:
            self.wfile.write(data)

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def proxy(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between every store that is opened from here on and the S3 server."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def s3_url(s3_bucket: str) -> str:
    """A prefix of its own: the S3 server keeps its objects from test to test."""
    return f"{s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def run(write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Run:
    without_ray(monkeypatch)

    def run(data_dir: str | Path) -> None:
        recipe = load_recipe(write_recipe(data_dir))
        run_pipeline(recipe, recipe.section("pipeline", PipelineConfig), lambda line: None)

    return run


_CALM: dict[str, bytes] = {}


@pytest.fixture
def calm(run: Run, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run on a disk ends with."""
    if not _CALM:
        run(tmp_path / "calm")
        _CALM.update(results(open_store(tmp_path / "calm")))
    return _CALM


def results(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in RESULTS}


def once(fault: str, nth: int = 0, method: str = "") -> Chooser:
    """One fault: at the nth request from now on (of that method)."""
    left = [nth]

    def choose(got: str, path: str, count: int, conditional: bool) -> str:
        if method not in ("", got):
            return ""
        left[0] -= 1
        return fault if left[0] == -1 else ""

    return choose


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_the_store_change_no_result(
    proxy: FaultyProxy, s3_url: str, run: Run, calm: dict[str, bytes], seed: int
) -> None:
    proxy.choose = seeded(seed, 0.4)
    run(s3_url)
    assert proxy.faults.total() > 10, proxy.faults
    proxy.choose = nothing
    assert results(open_store(s3_url)) == calm
    assert verify_shards(open_store(s3_url))["problems"] == []


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("there"),
    "read_range": lambda store: store.read_range("there", 1, 3),
    "read_ranges": lambda store: store.read_ranges("there", [(0, 2), (3, 1)]),
    "open": lambda store: store.open("there").read(),
    "list": lambda store: store.list("folder"),
    "exists": lambda store: (store.exists("there"), store.exists("away")),
    "write": lambda store: (store.write("new", b"data"), store.read("new")),
    "create": lambda store: (store.create("new", b"data"), store.read("new")),
    "create what is there": lambda store: (store.create("there", b"x"), store.read("there")),
    "delete": lambda store: (store.delete("folder/there"), store.exists("folder/there")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_survives_one_fault(
    proxy: FaultyProxy, s3_url: str, tmp_path: Path, operation: str
) -> None:
    for fault in FAULTS:
        answers = []
        for store in (open_store(tmp_path / fault), open_store(f"{s3_url}/{fault}")):
            proxy.choose = nothing
            store.write("there", b"abcdef")
            store.write("folder/there", b"x" * 5)
            proxy.faults.clear()
            proxy.choose = once(fault)
            answers.append(OPERATIONS[operation](store))
        assert answers[0] == answers[1], fault
        assert proxy.faults.total() == 1, fault


@pytest.mark.parametrize("fault", FAULTS)
def test_a_multipart_upload_survives_one_fault(proxy: FaultyProxy, s3_url: str, fault: str) -> None:
    """12 MB: begun, three parts, completed."""
    store = open_store(s3_url)
    for request_number in range(5):
        data = os.urandom(1 << 20) * 12
        proxy.faults.clear()
        proxy.choose = once(fault, request_number)
        store.write("large", data)
        assert proxy.faults.total() == 1, request_number
        assert store.read("large") == data, request_number


def test_a_create_whose_answer_is_lost_knows_its_own_object(
    proxy: FaultyProxy, s3_url: str
) -> None:
    store = open_store(s3_url)
    proxy.choose = once("lost", method="PUT")
    assert store.create("a", b"mine")
    proxy.choose = once("reset", method="PUT")
    store.write("b", b"theirs")
    proxy.choose = once("lost", method="PUT")
    assert not store.create("b", b"mine")
    assert (store.read("a"), store.read("b")) == (b"mine", b"theirs")
    assert not store.create("a", b"mine")  # nothing was lost: it was there before


def test_a_missing_bucket_is_reported_at_once(proxy: FaultyProxy) -> None:
    with within(30), pytest.raises(StorageError, match="NoSuchBucket"):
        open_store("s3://nowhere").write("a", b"x")


def test_an_object_that_is_denied_is_refused_but_not_all_of_a_bucket(
    proxy: FaultyProxy, s3_url: str
) -> None:
    store = open_store(f"{s3_url}/audio")
    for name in ("a.wav", "b.wav"):
        store.write(name, name.encode())

    def deny(denied: str) -> Chooser:
        return lambda method, path, nth, conditional: "403" if denied in path else ""

    def fetch(name: str) -> bytes:
        with on_disk(f"{store.uri}/{name}") as copy:
            return copy.read_bytes()

    proxy.choose = deny("a.wav")
    with pytest.raises(AudioError, match=rf"{store.uri}/a\.wav") as refusal:
        fetch("a.wav")
    assert refusal.value.reason == "unreadable"
    assert fetch("b.wav") == b"b.wav"
    proxy.choose = deny("")
    with pytest.raises(StorageError, match=rf"{store.uri}/a\.wav: .*AccessDenied"):
        fetch("a.wav")


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9"])
def test_the_limit_is_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ATTUNE_STORE_RETRY_S", text)
    with pytest.raises(AttuneError, match=f"ATTUNE_STORE_RETRY_S={text}: expected seconds"):
        open_store("s3://bucket")


def test_a_run_survives_the_loss_of_every_answer_to_a_create(
    proxy: FaultyProxy, s3_url: str, run: Run, calm: dict[str, bytes]
) -> None:
    proxy.choose = lambda method, path, nth, conditional: "lost" if conditional and nth == 0 else ""
    run(s3_url)
    assert proxy.faults == {"lost create": 9}  # the plan and eight commits
    assert results(open_store(s3_url)) == calm


@pytest.mark.parametrize(
    ("served", "fault"), [(0, "reset"), (12, "500"), (20, "cut"), (30, "lost"), (55, "503")]
)
def test_a_store_that_fails_for_good_ends_the_run_with_one_line(
    proxy: FaultyProxy, s3_url: str, write_recipe: Callable[..., Path], run: Run,
    calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    served: int, fault: str,
) -> None:  # fmt: skip
    left = [served]

    def fail_from_then_on(method: str, path: str, nth: int, conditional: bool) -> str:
        left[0] -= 1
        return fault if left[0] < 0 else ""

    proxy.choose = fail_from_then_on
    monkeypatch.setenv("ATTUNE_STORE_RETRY_S", "1")
    monkeypatch.setattr("sys.argv", ["pipeline", "run", "--config", str(write_recipe(s3_url))])
    from pipeline.cli import app

    with within(60), pytest.raises(SystemExit) as end:
        run_app(app)
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert said.startswith(f"error: {s3_url}/") and said.count("\n") == 1, said

    proxy.choose = nothing
    run(s3_url)
    assert results(open_store(s3_url)) == calm


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_two_drivers_at_once_make_one_right_manifest(
    proxy: FaultyProxy, s3_url: str, run: Run, calm: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, rate: float,
) -> None:  # fmt: skip
    proxy.choose = seeded(7, rate)
    barriers: dict[str, threading.Barrier] = {}
    answers: dict[str, list[bool]] = {}
    create = Store.create

    def together(self: Store, key: str, data: bytes | Path) -> bool:
        """Both drivers reach each conditional create before either continues."""
        barriers.setdefault(key, threading.Barrier(2)).wait(timeout=60)
        answer = create(self, key, data)
        answers.setdefault(key, []).append(answer)
        return answer

    monkeypatch.setattr(Store, "create", together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, [s3_url, s3_url]))
    keys = [f"commits/{shard:06d}.json" for shard in range(8)] + ["plan/plan.json"]
    assert sorted(answers) == keys
    if not rate:
        assert all(sorted(pair) == [False, True] for pair in answers.values()), answers
    proxy.choose = nothing
    found = verify_shards(open_store(s3_url))
    assert (found["problems"], found["orphans"]) == ([], [])
    assert results(open_store(s3_url)) == calm
