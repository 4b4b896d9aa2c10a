"""Workers fit into Ray's cluster: one too many would wait for ever."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import AttuneError
from pipeline.encode.resources import Resources, share_out


def share(nodes: list[dict[str, float]], **values: Any) -> Resources:
    return share_out(nodes, **{"workers": 0, "cpus_per_worker": 2, "device": "auto", **values})


@pytest.mark.parametrize(
    ("nodes", "values", "expected"),
    [
        ([{"CPU": 8.0}], {}, (4, 2, 0)),
        ([{"CPU": 8.0}], {"workers": 3}, (3, 2, 0)),
        ([{"CPU": 8.0}], {"workers": 99}, (4, 2, 0)),
        ([{"CPU": 2.0}], {"cpus_per_worker": 16, "workers": 2}, (1, 2, 0)),
        # A worker is on one node: three CPUs on each of two make two workers, not three.
        ([{"CPU": 3.0}, {"CPU": 3.0}], {}, (2, 2, 0)),
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_worker": 4}, (2, 2, 0)),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], {"workers": 9}, (1, 2, 1)),
        ([{"CPU": 8.0, "GPU": 1.0}], {"device": "cpu"}, (4, 2, 0)),
    ],
)
def test_workers_fit(
    nodes: list[dict[str, float]], values: dict[str, Any], expected: tuple[int, int, float]
) -> None:
    found = share(nodes, **values)
    assert (found.workers, found.cpus, found.gpus) == expected


def test_no_room_at_all_is_an_error() -> None:
    with pytest.raises(AttuneError, match="no GPU"):
        share([{"CPU": 4.0}], device="cuda")
    with pytest.raises(AttuneError, match="no node with a CPU"):
        share([{"memory": 1e9}])
