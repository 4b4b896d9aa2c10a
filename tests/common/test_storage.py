"""One behaviour on a folder and on a real S3 protocol server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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


def test_wrong_places_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AttuneError, match="found a file"):
        open_store(tmp_path / "file")
    with pytest.raises(AttuneError, match="gopher"):
        open_store("gopher://hole")
    with pytest.raises(ValueError, match="bad object key"):
        open_store(tmp_path).write("../escape", b"")
