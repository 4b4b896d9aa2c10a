"""The command line: one line for a mistake, JSON for scripts, status 1 for a broken shard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from calls import Call


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.clips_per_shrad=3"], "did you mean 'clips_per_shard'"),
        (["pipeline.catalogs=[{dataset: audiofolder, root: /nowhere}]"], "no such folder"),
        (["pipeline.catalogs=[{dataset: audioste, root: /nowhere}]"], "audioste"),
        (["codec.path=/nowhere/codec"], "codec '/nowhere/codec'"),
        (["text_encoder.path=/nowhere/encoder"], "text encoder /nowhere/encoder"),
        (["sample_rate=32000"], "sample_rate is 32000"),
        (["data_dir=ftp://x"], "expected a folder or s3://"),
    ],
)
def test_a_mistake_is_one_line(
    pipeline: Call, recipe: str, overrides: list[str], message: str
) -> None:
    status, out, err = pipeline("plan", "--config", recipe, *overrides)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_finished_run_has_nothing_to_do_and_every_view_has_json(
    pipeline: Call, recipe: str, finished: Path
) -> None:

    def document(*arguments: str) -> Any:
        status, out, _ = pipeline(*arguments, "--config", recipe, "--json")
        assert status == 0
        return json.loads(out)

    assert "nothing to do" in pipeline("run", "--config", recipe)[1]
    assert document("run")["n_samples"] == 24
    assert document("plan")["n_planned"] == 30
    assert document("status")["state"] == "finished"
    shards = document("shards", "ls")
    assert len(shards) == 8
    assert document("shards", "stats")["all"]["clips"] == 24
    assert document("shards", "verify")["problems"] == []
    for command in ("plan", "status", "shards ls", "shards stats", "shards verify"):
        status, out, _ = pipeline(*command.split(), "--config", recipe)
        assert status == 0 and out.strip()


def test_verify_names_a_broken_shard(pipeline: Call, recipe: str, finished: Path) -> None:
    tar = sorted((finished / "shards").iterdir())[3]
    tar.write_bytes(tar.read_bytes()[:-512])
    status, out, _ = pipeline("shards", "verify", "--config", recipe)
    assert status == 1
    assert f"shards/{tar.name}" in out and "problems" in out


def test_what_was_refused_is_listed(pipeline: Call, recipe: str, finished: Path) -> None:
    command = ("status", "--config", recipe, "--refused")
    rows = json.loads(pipeline(*command, "--json")[1])
    assert {row["native_id"]: row["reason"] for row in rows if row["stage"] == "audio"} == {
        "silent.wav": "silent", "short.wav": "too_short", "nan.wav": "non_finite",
        "zero.wav": "empty_file", "page.wav": "unreadable", "cut.wav": "truncated",
    }  # fmt: skip
    assert [(row["native_id"], row["stage"], row["reason"]) for row in rows[6:]] == [
        ("talk.wav", "text", "speech"),
        ("two.wav", "text", "empty_prompt"),
        ("gone.wav", "catalog", "missing_audio"),
        ("../outside.wav", "catalog", "outside_root"),
    ]
    assert rows[0].keys() == {
        "sample_id", "dataset", "native_id", "source", "stage", "reason", "detail",
    }  # fmt: skip
    lines = pipeline(*command)[1].splitlines()
    assert [line.split("  ")[:3] for line in lines[:-1]] == [
        [row["dataset"], row["native_id"], f"{row['stage']}: {row['reason']}"] for row in rows
    ]
    (page,) = [row for row in rows if row["native_id"] == "page.wav"]
    assert f"small  page.wav  audio: unreadable  {page['detail']}" in lines
    assert lines[-1] == "6 refused while encoding, 4 while planning"

    for name in ("quarantine.parquet", "summary.json"):  # then the commits have it
        (finished / name).unlink()
        assert json.loads(pipeline(*command, "--json")[1]) == rows
    (finished / "plan" / "rejects.parquet").unlink()
    assert pipeline(*command)[1].endswith("\n6 refused while encoding, 0 while planning\n")
    shutil.rmtree(finished / "commits")
    assert pipeline(*command)[1] == "0 refused while encoding, 0 while planning\n"


def test_a_run_says_what_lists_its_refusals(pipeline: Call, recipe: str, finished: Path) -> None:
    (finished / "summary.json").unlink()
    _, out, _ = pipeline("run", "--config", recipe)
    assert out.splitlines()[-1] == (
        "done: 24 clips, 0.01 h in 8 shards; 10 refused "
        "(python -m pipeline status --refused names them)"
    )
