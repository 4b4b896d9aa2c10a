"""`python -m pipeline` that writes a byte for each clip through the codec: work done twice shows.

python counting_pipeline.py FILE ARGUMENTS...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import pipeline.run
from common.cli import run_app
from pipeline.cli import app
from pipeline.encode.worker import EncodeWorker


class CountingWorker(EncodeWorker):
    count: Path

    def _load_codec(self) -> Any:
        codec, count = super()._load_codec(), self.count

        def encode_track(wav: np.ndarray) -> np.ndarray:
            codes = type(codec).encode_track(codec, wav)
            with count.open("ab") as file:
                file.write(b".")
            return codes

        codec.encode_track = encode_track
        return codec


if __name__ == "__main__":
    CountingWorker.__name__ = "EncodeWorker"  # how its process is called
    CountingWorker.count = Path(sys.argv.pop(1))
    pipeline.run.EncodeWorker = CountingWorker  # type: ignore[misc]
    run_app(app)
