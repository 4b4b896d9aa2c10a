"""The README's code blocks for other tools run unchanged on finished shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import copy_to_bucket

import pipeline
from common.shards import ShardDataset

_README = (Path(pipeline.__file__).parent / "README.md").read_text()
_SECTION = _README.split("\n## With other tools\n")[1].split("\n## ")[0]
BLOCKS = {
    block.split("\n")[0].removeprefix("# ").split(":")[0]: block
    for block in re.findall(r"```python\n(.*?)```", _SECTION, re.DOTALL)
}

Names = dict[str, Any]


def _webdataset(names: Names, data: ShardDataset) -> None:
    assert names["clips"] == len(data) == 24
    last = data.read(23)
    np.testing.assert_array_equal(names["codes"], last.codes)
    np.testing.assert_array_equal(names["states"], np.concatenate(last.text))
    assert names["record"] == last.record


def _index(names: Names, data: ShardDataset) -> None:
    assert names["sample"]["__key__"] == data.read(20).sample_id
    np.testing.assert_array_equal(names["sample"]["codes.npy"], data.read(20).codes)


def _pyarrow(names: Names, data: ShardDataset) -> None:
    assert names["manifest"].equals(data.manifest)
    np.testing.assert_array_equal(names["codes"], data.read(20).codes)


def _duckdb(names: Names, data: ShardDataset) -> None:
    rows = {(dataset, split): clips for dataset, split, clips, _ in names["hours"].fetchall()}
    assert rows == {("small", "train"): 20, ("small", "test"): 4}
    hours = sum(row[3] for row in names["hours"].fetchall())
    assert hours == pytest.approx(data.summary["hours"], abs=1e-5)
    refused = names["refused"].fetchall()
    assert ("audio", "truncated", 1) in refused and ("text", "speech", 1) in refused
    assert sum(rows for _, _, rows in refused) == data.summary["n_rejected"]


def _pandas(names: Names, data: ShardDataset) -> None:
    assert names["longest"]["duration_s"].iloc[0] == pytest.approx(1.75)
    assert names["prompts"].sum() == sum(len(p) for p in data.manifest["prompts"].to_pylist())
    assert set(names["prompts"].index) == {p for ps in data.manifest["prompts"] for p in ps.as_py()}


def _bucket(names: Names, data: ShardDataset) -> None:
    assert names["manifest"].equals(data.manifest)
    keys = [sample["__key__"] for sample in names["dataset"]]
    assert keys == data.manifest["sample_id"].to_pylist()


def _own(names: Names, data: ShardDataset) -> None:
    assert names["sample"].record == data.read(20).record


CHECKS: dict[str, Callable[[Names, ShardDataset], None]] = {
    "webdataset": _webdataset,
    "the shard index": _index,
    "pyarrow": _pyarrow,
    "duckdb": _duckdb,
    "pandas": _pandas,
    "pyarrow and webdataset in a bucket, with the same AWS_* variables as everything here": _bucket,
    "this package": _own,
}


def test_every_block_has_a_check() -> None:
    assert list(BLOCKS) == list(CHECKS)


@pytest.mark.parametrize("tool", CHECKS)
def test_the_block_runs_unchanged(
    tool: str,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if "bucket" in tool:
        copy_to_bucket(finished, request.getfixturevalue("s3_bucket") + "/data")
        # Stands in for the AWS command line: `aws s3 cp s3://bucket/KEY -`.
        command = finished.parent / "bin" / "aws"
        command.parent.mkdir()
        command.write_text(
            f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && cat "{finished.parent}/${{3#s3://bucket/}}"\n'
        )
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.chdir(finished.parent)
    names: Names = {}
    exec(compile(BLOCKS[tool], f"README.md: {tool}", "exec"), names)
    CHECKS[tool](names, ShardDataset.open(finished))


def test_the_index_is_what_wids_reads(finished: Path) -> None:
    """`wids` is not in webdataset 1.0: its form is held to here, field by field."""
    index = json.loads((finished / "shards.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and index["wids_version"] == 1
    counts = pq.read_table(finished / "manifest.parquet")["shard_key"].value_counts().to_pylist()
    assert [(shard["url"], shard["nsamples"]) for shard in index["shardlist"]] == [
        (row["values"], row["counts"]) for row in counts
    ]
    for shard in index["shardlist"]:
        assert (finished / shard["url"]).stat().st_size == shard["filesize"]
