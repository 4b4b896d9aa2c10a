"""Audio inside Parquet files: addresses, row groups, and files that are gone or damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import CountedReads, write_parquet

from common.audio import AudioError
from common.errors import AttuneError
from common.parquet_values import Value, content_hash, numbered_rows, open_parquet
from common.sources import file_of, parse, read_bytes
from common.storage import StorageError, open_store
from common.uris import on_disk, opened

NOISE = [np.random.default_rng(i).bytes(100_000) for i in range(12)]
SOUNDS = [(data, f"{i}.wav") for i, data in enumerate(NOISE)]


def file_of_noise(path: Path, texts: str = "abcdefghijkl") -> Path:
    return write_parquet(path / "a.parquet", SOUNDS, rows_per_group=4, text=list(texts))


@pytest.mark.parametrize("column", ["audio", "a:b/c%3A d", "ä\n"])
def test_an_address_is_read_back_as_it_was_written(column: str) -> None:
    for file in ("/data/x: y!/a.parquet", "s3://bucket/value:1:2:c:d.parquet"):
        value = Value(3, 14, column, file)
        assert parse(str(value)) == value
        assert file_of(str(value)) == file
    assert parse("/value:1:2:audio:/a.parquet") is None


def test_values_of_structs_and_of_binary_columns(tmp_path: Path) -> None:
    path = file_of_noise(tmp_path)
    for row_group, row in ((0, 0), (1, 3), (2, 2)):
        address = Value(row_group, row, "audio", str(path))
        assert read_bytes(address) == NOISE[4 * row_group + row]
        with on_disk(str(address)) as copy, opened(str(address)) as (file, size):
            assert copy.read_bytes() == file.read() == NOISE[4 * row_group + row]
            assert size == 100_000
    pq.write_table(pa.table({"x.y": [b"sound", None]}), tmp_path / "b.parquet")
    assert read_bytes(Value(0, 0, "x.y", str(tmp_path / "b.parquet"))) == b"sound"
    with pytest.raises(AudioError, match="row 1 of row group 0: no bytes") as error:
        read_bytes(Value(0, 1, "x.y", str(tmp_path / "b.parquet")))
    assert error.value.reason == "empty_file"


def test_values_in_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    open_store(f"{s3_bucket}/data").write("a.parquet", file_of_noise(tmp_path))
    assert read_bytes(Value(2, 1, "audio", f"{s3_bucket}/data/a.parquet")) == NOISE[9]
    with pytest.raises(StorageError, match=r"data/b\.parquet: no such file"):
        read_bytes(Value(0, 0, "audio", f"{s3_bucket}/data/b.parquet"))


def test_threads_that_want_one_row_group_read_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of_noise(tmp_path)
    reads = CountedReads(monkeypatch)
    addresses = [Value(1, row, "audio", str(path)) for row in (0, 1, 2, 3) * 3]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_bytes, addresses)) == NOISE[4:8] * 3
    footer = 1 << 16
    assert 400_000 <= reads.bytes <= 400_000 + footer + 1000


def test_a_file_that_is_gone_or_changed_is_not_the_fault_of_a_clip(tmp_path: Path) -> None:
    path = file_of_noise(tmp_path)
    for value in (Value(3, 0, "audio", str(path)), Value(0, 4, "audio", str(path)),
                  Value(0, 0, "sound", str(path))):  # fmt: skip
        with pytest.raises(StorageError, match="other rows or columns than when the plan was made"):
            read_bytes(value)
    with pytest.raises(StorageError, match="no such file; it was there"):
        read_bytes(Value(0, 0, "audio", str(tmp_path / "gone.parquet")))


def test_a_damaged_row_group_is_unreadable(tmp_path: Path) -> None:
    path = file_of_noise(tmp_path)
    data = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data[at : at + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(AudioError, match="row group 1 is damaged") as error:
        read_bytes(Value(1, 0, "audio", str(path)))
    assert error.value.reason == "unreadable"
    assert read_bytes(Value(2, 0, "audio", str(path))) == NOISE[8]
    path.write_bytes(data[:-9])
    with pytest.raises(StorageError, match="cannot be read: "):
        read_bytes(Value(0, 0, "audio", str(path)))


def test_the_hash_of_a_file_covers_its_text_and_reads_no_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = content_hash(str(file_of_noise(tmp_path / "1")))
    assert content_hash(str(file_of_noise(tmp_path / "2"))) == first
    assert content_hash(str(file_of_noise(tmp_path / "3", "abcdeXghijkl"))) != first
    path = file_of_noise(tmp_path / "4")
    reads = CountedReads(monkeypatch)
    content_hash(str(path))
    assert reads.bytes < 300_000 < path.stat().st_size


def test_rows_are_shown_without_their_bytes(tmp_path: Path) -> None:
    path = file_of_noise(tmp_path)
    assert dict(numbered_rows(str(path), [12, 5, 99])) == {
        5: {"audio": {"path": "4.wav"}, "text": "e"}, 12: {"audio": {"path": "11.wav"}, "text": "l"}
    }  # fmt: skip


def test_torn_files_are_one_line(tmp_path: Path) -> None:
    path = file_of_noise(tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])
    with (
        pytest.raises(AttuneError, match="damaged Parquet, perhaps an inc") as error,
        open_parquet(str(path)),
    ):
        pass
    assert "\n" not in str(error.value)
