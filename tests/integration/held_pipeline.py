"""`python -m pipeline` whose workers stop after a few shards, so that a kill comes while the run
encodes on any machine.

python held_pipeline.py SHARDS ARGUMENTS...
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import pyarrow as pa

import pipeline.run
from common.cli import run_app
from pipeline.cli import app
from pipeline.encode.worker import EncodeSettings, EncodeWorker


class HeldWorker(EncodeWorker):
    shards: int

    def __init__(self, settings: EncodeSettings) -> None:
        super().__init__(settings)
        self._calls = itertools.count()

    def encode_shard(self, shard: int, rows: pa.Table) -> dict[str, Any]:
        if next(self._calls) >= self.shards:
            time.sleep(600)
        return super().encode_shard(shard, rows)


if __name__ == "__main__":
    HeldWorker.shards = int(sys.argv.pop(1))
    pipeline.run.EncodeWorker = HeldWorker  # type: ignore[misc]
    run_app(app)
