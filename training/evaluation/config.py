"""The `report` section of a recipe, and the choices of `evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config import Section

Captions = Literal["first", "draw", "all"]
"""Which captions of a benchmark's clip are prompts."""
Framing = Literal["half", "google"]
"""How audio is cut into VGGish windows: a key of `vggish.FRAMINGS`."""
Preset = Literal["audiocaps", "musiccaps"]
"""Protocol of a benchmark."""
PRESET_S = 10.0
"""Duration of the clips of both benchmarks, s; generated clips are no longer, as in audiocraft."""


class ReportConfig(Section):
    """The models that `python -m training report` compares."""

    runs: dict[str, str] = Field(default={"lm": "lm"}, min_length=1)
    """{name in the report: folder of the trained model in run_dir}.  The first model is compared
    with each of the others."""
