"""Which real clips the judge learns from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.errors import AttuneError
from common.schema import MANIFEST
from training.evaluation.agreement import clips


def _dataset(groups: dict[str, int]) -> Any:
    """Ten training clips per class, from that many recordings."""
    rows = [
        dict.fromkeys(MANIFEST.names)
        | {"split": "train", "tags": [name], "captions": [], "prompts": [name]}
        | {"group_id": f"{name}-{index % count}", "audio_uri": "x.wav"}
        for name, count in groups.items()
        for index in range(10)
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST)

    class Dataset(SimpleNamespace):
        def __len__(self) -> int:
            return len(rows)

    return Dataset(manifest=table)


def test_classes_of_few_recordings_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "read_source", lambda *_: (np.zeros(160, np.float32), 16_000))
    monkeypatch.setattr(clips, "MAX_CLASSES", 2)
    dataset = _dataset({"bell": 10, "dog": 5, "rain": 4})
    # The places go to classes that can be judged.
    found = clips.labelled_clips(dataset, 16_000)
    assert {clip.label for clip in found} == {"bell", "dog"}
    with pytest.raises(AttuneError, match=r"from 5 source recordings or more .*; found 1"):
        clips.labelled_clips(_dataset({"bell": 10, "rain": 4}), 16_000)
