"""The `sampling` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.config import Section

DRAWS = "gumbel"
"""Name of the way codes are drawn (`training.sampling.draw`); it changes when a seed gives other
clips than before."""


class SamplingConfig(Section):
    """How clips are generated."""

    duration_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    cfg: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """Guidance coefficient: 1 is plain conditional sampling, 0 unconditional."""
    negative_prompt: str = ""
    """Guidance leads away from this prompt instead of from no text. For sounds that should be in no
    clip, such as "music"."""
    top_k: int = Field(default=250, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Choose from the fewest likeliest codes whose probabilities reach this sum; 1 takes all of the
    top k. For models imported from Hugging Face whose settings have it (`interop.imports`)."""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """0 takes the likeliest code."""
    batch_size: int = Field(default=16, ge=1)
    """Clips generated together. For GPUs: fewer if memory runs out, more for long lists of
    prompts."""
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """What the model's weights are read as. `fp32`: exact, so that a clip does not depend on the
    other clips of its batch. `bf16`: 1.2 to 1.5 times as fast if the processor has instructions for
    it. `int8`: only for the layers' weights; the fastest for one clip on a CPU (`LOG.md`). `auto`:
    int8 for a single clip on a CPU with AVX2 or later, else bf16 on GPUs and on processors with
    instructions for it, else fp32."""
    loudness: float | None = Field(default=None, ge=-70, le=0)
    """Integrated loudness of the files in LUFS (ITU-R BS.1770), lower if the peak would pass -1
    dBFS. For clips that are heard one after another. None leaves clips as the codec gives them."""

    @model_validator(mode="after")
    def _makes_sense(self) -> SamplingConfig:
        if self.negative_prompt and self.cfg == 1:
            raise ValueError(
                "negative_prompt acts through guidance, and cfg=1 has none; raise cfg, or leave "
                "negative_prompt empty"
            )
        return self
