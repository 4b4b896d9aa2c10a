"""`pipeline run` with a worker that dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from pipeline_in_turn import embed

from common.config import load_recipe
from common.errors import AttuneError
from common.shards import open_store_to_read
from common.storage import open_store
from pipeline import run as run_module
from pipeline.config import PipelineConfig
from pipeline.encode.worker import EncodeWorker
from pipeline.inspect.status import read_status
from pipeline.planning import pipeline_session
from pipeline.run import run_pipeline


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


class LightWorker(EncodeWorker):
    """With a stand-in for the codec, whose loading would take most of the time here."""

    def _load_codec(self) -> Any:
        return SimpleNamespace(
            sample_rate=16_000, encode_track=lambda wav: np.zeros((4, len(wav) // 320), np.int16)
        )


class DyingWorker(LightWorker):
    """Its process is killed by shard 2, as by a file that crashes a decoder."""

    def encode_shard(self, shard: int, rows: pa.Table) -> dict[str, Any]:
        if shard == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_shard(shard, rows)


def test_a_shard_that_kills_its_worker_is_parked_and_the_rest_is_encoded(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stack: ExitStack,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = load_recipe(write_recipe(tmp_path / "data"))
    config = recipe.section("pipeline", PipelineConfig)
    # Workers cannot import a test module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # One Ray for both runs, and none for the prompts: this test is only about workers.
    monkeypatch.setattr(run_module, "embed", embed)
    monkeypatch.setattr(run_module, "ATTEMPTS", 2)
    session = stack.enter_context(pipeline_session(open_store(recipe.data_dir)))
    monkeypatch.setattr(run_module, "pipeline_session", lambda store: nullcontext(session))
    monkeypatch.setattr(run_module, "EncodeWorker", LightWorker)
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
