"""The `report` section of a recipe, and what `evaluate` lets one choose."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config import Section

Captions = Literal["first", "draw", "all"]
"""Which of a benchmark clip's captions is its prompt."""
Framing = Literal["half", "google"]
"""How VGGish's examples are cut: a key of `vggish.FRAMINGS`."""
Preset = Literal["audiocaps", "musiccaps"]
"""A benchmark's protocol."""
PRESET_S = 10.0
"""Seconds of a clip of either: generated ones are no longer, as in audiocraft's evaluation."""


class ReportConfig(Section):
    """What `python -m training report` makes and compares."""

    runs: dict[str, str] = Field(default={"lm": "lm"}, min_length=1)
    """Trained models: {name in the report: folder below run_dir}. The first is compared with the
    others."""
    clips_per_class: int = Field(default=4, ge=1)
    """Generated per model and class, with seeds 0, 1, ..., of `sampling.duration_s` each."""
