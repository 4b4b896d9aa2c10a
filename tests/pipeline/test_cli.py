"""The command line: one line for a mistake, JSON for scripts, status 1 for a broken shard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.clips_per_shrad=3"], "did you mean 'clips_per_shard'"),
        (["pipeline.catalogs=[{dataset: audiofolder, root: /nowhere}]"], "no metadata.csv"),
        (["pipeline.catalogs=[{dataset: audioste, root: /nowhere}]"], "audioste"),
        (["codec.path=/nowhere/codec"], "codec '/nowhere/codec'"),
        (["text_encoder.path=/nowhere/encoder"], "text encoder /nowhere/encoder"),
        (["sample_rate=32000"], "sample_rate is 32000"),
        (["data_dir=ftp://x"], "expected a folder or s3://"),
    ],
)
def test_a_mistake_is_one_line(
    pipeline: Callable[..., tuple[int, str, str]],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    overrides: list[str],
    message: str,
) -> None:
    recipe = str(write_recipe(tmp_path / "data"))
    status, out, err = pipeline("plan", "--config", recipe, *overrides)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_finished_run_has_nothing_to_do_and_every_view_speaks_json(
    pipeline: Callable[..., tuple[int, str, str]],
    write_recipe: Callable[..., Path],
    finished: Path,
) -> None:
    recipe = str(write_recipe(finished))

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
    assert document("shards", "stats")["n_samples"] == 24
    assert document("shards", "verify")["problems"] == []
    for command in ("plan", "status", "shards ls", "shards stats", "shards verify"):
        status, out, _ = pipeline(*command.split(), "--config", recipe)
        assert status == 0 and out.strip()


def test_verify_fails_on_a_broken_shard_and_names_it(
    pipeline: Callable[..., tuple[int, str, str]],
    write_recipe: Callable[..., Path],
    finished: Path,
) -> None:
    recipe = str(write_recipe(finished))
    tar = sorted((finished / "shards").iterdir())[3]
    tar.write_bytes(tar.read_bytes()[:-512])
    status, out, _ = pipeline("shards", "verify", "--config", recipe)
    assert status == 1
    assert f"shards/{tar.name}" in out and "problems" in out
