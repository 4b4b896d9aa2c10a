"""The `pipeline` section of a recipe."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from pydantic import Field, field_validator

from common.codec import Precision
from common.config import Section
from common.prompts import PromptPolicy
from pipeline.catalogs import AnyCatalog
from pipeline.text.captions import TextRules
from pipeline.text.speech import SpeechPolicy
from pipeline.text.tags import TagPolicy

Task = Literal["sfx", "music"]

EXECUTION_ONLY = frozenset({"workers", "cpus_per_worker", "decode_threads", "attempts", "device"})
"""Keys that decide how fast shards are made, not what is in them: no part of the plan's hash."""


class TextConfig(Section):
    """How catalog text becomes prompts; None takes the task's own default."""

    policy: PromptPolicy | None = None
    """`lemmas` (sfx) or `plain` (music); see `common.prompts`."""
    tags: TagPolicy = "unique"
    """How tags become a pseudo-sentence; see `pipeline.text.tags`."""
    speech: SpeechPolicy | None = None
    """Which clips are refused for speech: `term` (sfx) or `keep` (music); see
    `pipeline.text.speech`."""
    speech_terms: tuple[str, ...] = ()
    """Words of your own that count as speech beside the policy's."""
    music_variants: int = Field(default=4, ge=1, le=64)
    """Prompts drawn per music track from its description, genre, tempo and tags."""


class PipelineConfig(Section):
    """From catalogs to shards."""

    task: Task = "sfx"
    catalogs: list[AnyCatalog] = Field(min_length=1)
    text: TextConfig = TextConfig()
    overlap: OverlapPolicy = "keep"
    """Clips that two datasets share: `keep` both or `merge` them; see `pipeline.plan.overlap`."""
    clips_per_shard: int = Field(default=512, ge=1)
    min_duration_s: float = Field(default=0.5, ge=0)
    """Shorter clips are refused, seconds."""
    max_duration_s: float = Field(default=7200.0, gt=0)
    silence_dbfs: float = -80.0
    """Clips whose peak stays at or below this are refused."""
    max_clipped_share: float = Field(default=1.0, ge=0, le=1)
    """Clips of which a larger share of the values is at full scale are refused."""
    max_dc_offset: float = Field(default=1.0, ge=0, le=1)
    """Clips with a larger constant offset, of full scale, are refused."""
    batch_clips: int = Field(default=1, ge=1)
    """Clips of one length that the codec encodes together: faster; by rounding, fewer than 0.1% of
    the codes differ from those of a clip by itself."""
    precision: Precision = "float32"
    """Of the codec's encoder: `bfloat16` takes about half the time, a few percent of the codes
    differ, and some processors' is wrong and refused; see `common.codec`."""
    prompts_per_chunk: int = Field(default=1024, ge=1)
    """Unit of the text cache: prompts embedded and stored together."""

    workers: int = Field(default=0, ge=0)
    """Codec actors; 0 takes as many as the machine or cluster has room for."""
    cpus_per_worker: int = Field(default=2, ge=1)
    decode_threads: int = Field(default=2, ge=1)
    """Files decoded beside the codec, per worker."""
    attempts: int = Field(default=3, ge=1)
    """Tries of one shard before it is parked as poison."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where codec and text encoder run; `auto` takes a GPU per worker where Ray has one."""

    @field_validator("catalogs")
    @classmethod
    def _labels_tell_clips_apart(cls, catalogs: list[AnyCatalog]) -> list[AnyCatalog]:
        """A sample is label + native id: `a.wav` of two folders must not become one sample."""
        by_label: dict[str, list[AnyCatalog]] = defaultdict(list)
        for catalog in catalogs:
            by_label[catalog.label].append(catalog)
        for label, same in by_label.items():
            if len(same) > 1 and not all(catalog.global_ids for catalog in same):
                raise ValueError(
                    f"{len(same)} catalogs are named {label!r}, and the ids in their files can "
                    "stand for different clips; give each a name= of its own"
                )
        return catalogs

    @property
    def prompt_policy(self) -> PromptPolicy:
        return self.text.policy or ("lemmas" if self.task == "sfx" else "plain")

    def text_rules(self, seed: int) -> TextRules:
        """The text stage's settings with the task's own defaults filled in."""
        return TextRules(
            prompts=self.prompt_policy,
            tags=self.text.tags,
            speech=self.text.speech or ("term" if self.task == "sfx" else "keep"),
            speech_terms=self.text.speech_terms,
            music_variants=self.text.music_variants,
            seed=seed,
        )


OverlapPolicy = Literal["keep", "merge"]
"""`keep`: each dataset's row is a sample of its own, as when training sets are put together.
`merge`: the row of the dataset that the recipe lists first stays, and takes over the other rows'
tags, captions and prompts; of rows in different splits none is merged."""
