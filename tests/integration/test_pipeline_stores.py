"""The same run on a Ray cluster, into an S3 store."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from calls import Call
from pipeline_process import run_to_end
from ray_nodes import RayNodes

from common.shards import ShardDataset
from common.storage import open_store


@pytest.fixture
def ray_cluster(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a one-node cluster of its own, which sees the S3 server."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = RayNodes(tmp_path / "ray.log", cpus=2)
    try:
        made.start()
        yield made.address
    finally:
        made.stop()


def test_s3_on_a_cluster_gives_the_manifest_of_a_run_in_one_process_on_disk(
    calm_run: Path,
    write_recipe: Callable[..., Path],
    s3_bucket: str,
    ray_cluster: str,
    pipeline: Call,
) -> None:
    url = f"{s3_bucket}/attune/data"
    recipe = str(write_recipe(url))
    printed = run_to_end("run", "--config", recipe, ray_address=ray_cluster)
    assert f"cluster at {ray_cluster}" in printed

    remote = pq.read_table(io.BytesIO(open_store(url).read("manifest.parquet")))
    assert remote.equals(pq.read_table(calm_run / "manifest.parquet"))
    there, here = ShardDataset.open(url), ShardDataset.open(calm_run)
    assert (there.read(5).codes == here.read(5).codes).all()

    _, found, progress = pipeline("shards", "verify", "--config", recipe)
    assert progress.startswith("verify  8/8 shards  ")
    assert found == "8 shards, 24 samples: all well\n"
    _, status, _ = pipeline("status", "--config", recipe)
    assert "finished" in status and "8/8 committed" in status
