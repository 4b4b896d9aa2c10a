"""Reading samples, the short way for the pipeline's own tars and by tarfile; Parquet tables."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common import shards
from common.schema import MANIFEST
from common.shards import ShardDataset, parquet_table, parse_sample

ID = "0f" * 16


def _npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def _contents() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {
        f"{ID}.codes.npy": _npy(rng.integers(-9, 99, (4, 33)).astype("<i2")),
        f"{ID}.json": json.dumps({"prompt_tokens": [2, 3]}).encode(),
        f"{ID}.text.npy": _npy(rng.standard_normal((5, 7)).astype("<f2")),
    }


def _tar(contents: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": "repacked"}
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue()[:end]


def test_both_ways_read_what_was_written() -> None:
    contents = _contents()
    plain = _tar(contents)
    assert shards._plain_members(plain) == shards._members(plain) == contents
    repacked = _tar(contents, tarfile.PAX_FORMAT)
    assert shards._plain_members(repacked) is None
    one, other = parse_sample(ID, plain), parse_sample(ID, repacked)
    for sample in (one, other):
        assert np.array_equal(sample.codes, np.load(io.BytesIO(contents[f"{ID}.codes.npy"])))
        states = np.load(io.BytesIO(contents[f"{ID}.text.npy"]))
        assert np.array_equal(np.concatenate(sample.text), states)
        assert [len(text) for text in sample.text] == [2, 3]
        assert sample.codes.flags.writeable


def test_a_damaged_byte_in_a_header_is_found_by_its_checksum() -> None:
    good = _tar(_contents())
    for header in range(0, len(good), 512):
        if good[header + 257 : header + 262] != b"ustar":
            continue
        for i in range(header, header + 512):
            damaged = good[:i] + bytes([good[i] ^ 0x11]) + good[i + 1 :]
            assert shards._plain_members(damaged) is None


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1100, -400])
def test_cut_samples_are_refused(kept: int) -> None:
    contents = _contents()
    with pytest.raises(ValueError, match=r"not a tar|expected members|unreadable|cut short"):
        parse_sample(ID, _tar(contents)[:kept])


def test_arrays_of_every_kind_come_back() -> None:
    for array in (
        np.arange(12, dtype="<i2").reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype="<i2").reshape(3, 4)),
        np.arange(12, dtype=">i2").reshape(3, 4),
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.zeros((0, 7), "<f2"),
        np.arange(24, dtype="<i2").reshape(2, 3, 4),
    ):
        for version in ((1, 0), (2, 0)):
            found = shards._array(_npy(array, version))
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)
    for damaged in (b"", _npy(np.zeros((3, 4), "<i2"))[:-1], b"\x93NUMPY\x01\x00"):
        with pytest.raises((ValueError, EOFError)):
            shards._array(damaged)


def _manifest(rows: int) -> pa.Table:
    row = {
        "sample_id": ID, "shard_key": "shards/0.tar", "prompts": ["a", None], "offset": 512,
        "length": 1024, "start_s": 0.5,
    }  # fmt: skip
    return pa.Table.from_pylist([row, {}] * rows, schema=MANIFEST.with_metadata({"key": "value"}))


@pytest.mark.parametrize("rows", [0, 7])
def test_a_parquet_table_in_memory_is_what_pyarrow_reads(rows: int) -> None:
    buffer = io.BytesIO()
    pq.write_table(_manifest(rows), buffer, row_group_size=3, compression="zstd")
    found = parquet_table(buffer.getvalue())
    expected = pq.read_table(pa.BufferReader(buffer.getvalue()))
    assert found.equals(expected, check_metadata=True)
    assert found.schema.metadata == {b"key": b"value"}
    with pytest.raises((pa.ArrowException, OSError)):
        parquet_table(buffer.getvalue()[:-1])


def test_a_manifest_is_read_without_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of a dataset may hold its bytes until Python shuts down, which then aborts."""
    pq.write_table(_manifest(2), tmp_path / "manifest.parquet")
    (tmp_path / "summary.json").write_text("{}")

    def made(*arguments: object, **options: object) -> None:
        raise AssertionError("a dataset was made")

    monkeypatch.setattr("pyarrow.parquet.core.ParquetDataset", made)
    assert len(ShardDataset.open(tmp_path)) == 4
