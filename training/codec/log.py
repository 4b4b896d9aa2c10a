"""The log of a codec's run: rows, curves, and reconstructions as audio and spectrograms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from training.codec.page import show_examples
from training.codec.validation import Validation
from training.run.log import RunLog
from training.run.status import CODEC_LOSSES


class CodecLog(RunLog):
    """The codec's log; a list in a row has a value per stream."""

    _originals = True  # not shown yet

    def log_validation(self, step: int, found: Validation, sample_rate: int) -> None:
        """Record a validation's figures as a row (`valid_...`), and show its examples."""
        self.log({"step": step, **{f"valid_{k}": v for k, v in found.figures.items()}})
        show_examples(self.board, found, sample_rate, step, self._originals)
        self._originals = False

    def _scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
        for name, value in row.items():
            if isinstance(value, list):
                for stream, item in enumerate(value):
                    yield f"codec/{name}_{stream}", item
            elif name not in ("step", "elapsed_s"):
                yield f"codec/{name}", value

    def _line(self, row: dict[str, Any]) -> str:
        if "loss" not in row:
            return json.dumps({name: value for name, value in row.items() if name != "step"})
        parts = " ".join(f"{name} {row[name]:.4f}" for name in CODEC_LOSSES if name in row)
        perplexity = "/".join(f"{value:.0f}" for value in row.get("perplexity", [])) or "-"
        return (
            f"loss {row['loss']:.4f} ({parts})  perplexity {perplexity}  "
            f"|g| {row['grad_norm']:.2f}  {row['audio_s_per_s']:.1f}x real time  "
            f"{self._eta(row['step'])}"
        )
