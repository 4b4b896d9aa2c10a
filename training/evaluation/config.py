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
    """Generated per model and class, with seeds 0, 1, ..."""
    max_classes: int = Field(default=20, ge=2)
    """The most frequent classes among clips with exactly one tag and no caption."""
    min_clips: int = Field(default=5, ge=5)
    """A class needs this many training clips, from five source recordings or more (five folds of
    cross-validation by recording)."""
    duration_s: float = Field(default=3.0, gt=0)
    """Seconds of each generated clip."""
    listed_reconstructions: int = Field(default=16, ge=0)
    """Held-out clips shown beside their reconstructions."""
