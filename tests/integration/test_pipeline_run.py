"""`pipeline run` with a worker that dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from common.config import load_recipe
from common.errors import AttuneError
from common.shards import open_store_to_read
from pipeline import run as run_module
from pipeline.config import PipelineConfig
from pipeline.encode import EncodeWorker
from pipeline.run import run_pipeline
from pipeline.status import read_status


class DyingWorker(EncodeWorker):
    """Its process is killed by shard 2, as by a file that crashes a decoder."""

    def encode_shard(self, shard: int, rows: pa.Table) -> dict[str, Any]:
        if shard == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_shard(shard, rows)


def test_a_shard_that_kills_its_worker_is_parked_and_the_rest_goes_on(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = load_recipe(write_recipe(tmp_path / "data"), ["pipeline.attempts=2"])
    config = recipe.section("pipeline", PipelineConfig)
    # Workers cannot import a test module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "EncodeWorker", DyingWorker)
        with pytest.raises(AttuneError, match=r"1 of 8 shards failed 2 times.*000002"):
            run_pipeline(recipe, config)
    status = read_status(open_store_to_read(tmp_path / "data"))
    assert status["shards"] == {"planned": 8, "committed": 7}
    assert [entry["shard"] for entry in status["poison"]] == [2]
    assert len(status["poison"][0]["errors"]) == 2

    summary, worked = run_pipeline(recipe, config)  # the cause is mended
    assert worked and summary["n_samples"] == 24
    assert read_status(open_store_to_read(tmp_path / "data"))["poison"] == []
