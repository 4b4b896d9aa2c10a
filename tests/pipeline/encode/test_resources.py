"""Workers fit into what Ray has: one too many would wait for ever."""

from __future__ import annotations

import pytest

from common.errors import AttuneError
from pipeline.config import PipelineConfig
from pipeline.encode.resources import share_out


def config(**values: object) -> PipelineConfig:
    catalog = {"dataset": "audiofolder", "root": "/x"}
    return PipelineConfig.model_validate({"catalogs": [catalog], "cpus_per_worker": 2, **values})


@pytest.mark.parametrize(
    ("nodes", "values", "expected"),
    [
        ([{"CPU": 8.0}], {}, (4, 2, 0)),
        ([{"CPU": 8.0}], {"workers": 3}, (3, 2, 0)),
        ([{"CPU": 8.0}], {"workers": 99}, (4, 2, 0)),
        ([{"CPU": 2.0}], {"cpus_per_worker": 16, "workers": 2}, (1, 2, 0)),
        # A worker lies on one node: three CPUs on each of two make two workers, not three.
        ([{"CPU": 3.0}, {"CPU": 3.0}], {}, (2, 2, 0)),
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_worker": 4}, (2, 2, 0)),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], {"workers": 9}, (1, 2, 1)),
        ([{"CPU": 8.0, "GPU": 1.0}], {"device": "cpu"}, (4, 2, 0)),
    ],
)
def test_workers_fit(
    nodes: list[dict[str, float]], values: dict[str, object], expected: tuple[int, int, float]
) -> None:
    found = share_out(nodes, config(**values))
    assert (found.workers, found.cpus, found.gpus) == expected


def test_no_room_at_all_is_an_error() -> None:
    with pytest.raises(AttuneError, match="no GPU"):
        share_out([{"CPU": 4.0}], config(device="cuda"))
    with pytest.raises(AttuneError, match="no node with a CPU"):
        share_out([{"memory": 1e9}], config())
