"""Planning as Ray Data maps: the same plan, bit for bit, on any number of nodes and pieces."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from common.errors import AttuneError
from common.prompts import PromptForm
from pipeline.catalogs import CatalogEntry, columnar
from pipeline.catalogs.audiofolder import AudioFolder
from pipeline.catalogs.audioset import AudioSet
from pipeline.plan.decide import PlanTables, build_plan
from pipeline.plan.mapping import Mapper, map_here, map_on_ray
from pipeline.text.captions import TextRules


@pytest.fixture
def catalogs(tmp_path: Path, small_corpus: Path) -> list[CatalogEntry]:
    labels = ["Dog", "Rain", "Speech", "Bell, ringing", "Wind"]
    (tmp_path / "labels.csv").write_text(
        "index,mid,display_name\n" + "".join(f'{i},/m/{i},"{x}"\n' for i, x in enumerate(labels))
    )
    (tmp_path / "segments.csv").write_text(
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        + "".join(
            f'id{i}, {i % 7}0.000, {i % 7}5.000, "/m/{i % 5},/m/{i % 3}"\n' for i in range(400)
        )
        + 'broken, 1.000, 2.000, "/m/x"\n'
    )
    audio = tmp_path / "audio"
    audio.mkdir()
    for i in range(0, 400, 3):
        (audio / f"id{i}.wav").touch()
    return [
        AudioSet(
            segments=tmp_path / "segments.csv", class_labels=tmp_path / "labels.csv", audio=audio
        ),
        AudioFolder(root=small_corpus),
    ]


def plan(catalogs: list[CatalogEntry], mapper: Mapper) -> PlanTables:
    rules = TextRules(PromptForm("lemmas"))
    return build_plan(catalogs, rules=rules, clips_per_shard=16, seed=0, mapper=mapper)


def test_the_plan_does_not_depend_on_nodes_or_pieces(
    catalogs: list[CatalogEntry], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plan(catalogs, map_here)
    assert len(expected.plan) > 50 and len(expected.rejects) > 100
    for nodes in (1, 2):
        if nodes == 2:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
        assert sum(node["Alive"] for node in ray.nodes()) == nodes
        for size in (1 << 20, 4000, 700):
            monkeypatch.setattr(columnar, "PIECE_BYTES", size)
            found = plan(catalogs, map_on_ray)
            assert found.plan.equals(expected.plan)
            assert found.rejects.equals(expected.rejects)
            assert found.counts == expected.counts


def test_a_mistake_in_a_catalog_is_one_line_from_a_node_as_well(
    catalogs: list[CatalogEntry], cluster: Cluster
) -> None:
    broken = catalogs[0].model_copy(update={"class_labels": Path("/nowhere.csv")})
    with pytest.raises(AttuneError, match=r"/nowhere\.csv"):
        plan([broken], map_on_ray)


def test_tables_come_back_as_they_were(cluster: Cluster) -> None:
    def some(n: int) -> Iterator[pa.Table]:
        for i in range(n):
            words = pa.array([f"w{n}", None, f"w{i}"]).dictionary_encode()
            yield pa.table({"x": words}).replace_schema_metadata({"n": str(n)})

    items = [3, 0, 1]
    expected = list(map_here(some, items))
    found = list(map_on_ray(some, items))
    assert [table.to_pylist() for table in found] == [table.to_pylist() for table in expected]
    assert [table.schema for table in found] == [table.schema for table in expected]
    assert [t.schema.metadata for t in found] == [t.schema.metadata for t in expected]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": 100 * 2**20,
            "include_dashboard": False,
        },
    )
    ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield made
    ray.shutdown()
    made.shutdown()
