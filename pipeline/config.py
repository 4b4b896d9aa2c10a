"""The `pipeline` section of a recipe."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from pydantic import Field, field_validator

from common.config import Precision, Section
from common.prompts import PROMPT_FORM, Negation, PromptForm, PromptPolicy, TagForm
from pipeline.catalogs import AnyCatalog
from pipeline.text.captions import TextRules
from pipeline.text.speech import SpeechPolicy
from pipeline.text.tags import TagPolicy

Task = Literal["sfx", "music"]
Device = Literal["auto", "cpu", "cuda"]

EXECUTION_ONLY = frozenset({"workers", "cpus_per_worker", "device"})
"""Keys that decide how fast shards are made, not their content; not in the plan's hash."""


class TextConfig(Section):
    """How catalog text becomes prompts; None takes the default of the task."""

    policy: PromptPolicy | None = None
    """`lemmas` (sfx) or `plain` (music); see `common.prompts`.  Choose `plain` in an sfx model for
    sentences as people wrote them, or for text that is not English."""
    negation: Negation = "keep"
    """Whether prompts keep the words that negate ("rain without thunder"); `drop` is the paper's
    list of stop words. Without effect with `policy: plain`, which drops no words."""
    tag_form: TagForm = "policy"
    """The form of prompts that are made of tags: that of captions (`policy`), or the tags `as_is`,
    the paper's words read literally."""
    tags: TagPolicy = "unique"
    """How tags become a pseudo-sentence; see `pipeline.text.tags`.  For catalogs with an ontology:
    `specific` leaves out the tags that other tags imply."""
    speech: SpeechPolicy | None = None
    """Which clips are refused for speech: `term` (sfx) or `keep` (music); see
    `pipeline.text.speech`."""
    speech_terms: tuple[str, ...] = ()
    """More words that count as speech; for catalogs that use other words for it (a language, a
    profession)."""
    music_variants: int = Field(default=4, ge=1, le=64)
    """Number of prompts drawn per music track from its description, genre, tempo and tags; more for
    few tracks with rich metadata, fewer for many tracks, as each prompt is embedded and stored."""


class PipelineConfig(Section):
    """From catalogs to shards."""

    task: Task = "sfx"
    catalogs: list[AnyCatalog] = Field(min_length=1)
    text: TextConfig = TextConfig()
    overlap: OverlapPolicy = "keep"
    """Clips that two datasets share: `keep` both or `merge` them; see `pipeline.plan.overlap`.  For
    recipes that list AudioSet beside AudioCaps, MusicCaps or WavCaps, whose clips are its own."""
    clips_per_shard: int = Field(default=512, ge=1)
    min_duration_s: float = Field(default=0.5, ge=0)
    """Shorter clips are refused, seconds; for collections of very short sounds (clicks, hits)."""
    max_duration_s: float = Field(default=7200.0, gt=0)
    """Longer clips are refused, seconds; for collections with broadcasts or whole days of field
    recording, which one should cut first."""
    silence_dbfs: float = -80.0
    """Clips whose peak stays at or below this are refused; higher for scraped collections, in which
    silence is seldom digital."""
    max_clipped_share: float = Field(default=1.0, ge=0, le=1)
    """Clips with a larger share of values at full scale are refused; for collections of unknown
    quality."""
    max_dc_offset: float = Field(default=1.0, ge=0, le=1)
    """Clips with a larger constant offset (share of full scale) are refused; for old recordings."""
    batch_clips: int = Field(default=1, ge=1)
    """Number of clips of one length that the codec encodes together; faster on GPUs if clips are
    equally long.  Rounding makes fewer than 0.1% of the codes differ from `batch_clips=1`."""
    precision: Precision = "float32"
    """Precision of the codec's encoder.  For large datasets: `bfloat16` takes half the time and
    changes a few percent of the codes; processors with wrong bfloat16 results are refused."""

    workers: int = Field(default=0, ge=0)
    """Number of codec actors; 0 takes as many as the machine or cluster has room for.  For machines
    that are shared with others."""
    cpus_per_worker: int = Field(default=2, ge=1)
    device: Device = "auto"
    """Device of codec and text encoder; `auto` takes a GPU per worker if Ray has one.  `cpu` for
    machines whose GPUs train meanwhile, `cuda` to stop if there is no GPU."""

    @field_validator("catalogs")
    @classmethod
    def _check_labels(cls, catalogs: list[AnyCatalog]) -> list[AnyCatalog]:
        """A sample is label + native id, so `a.wav` of two folders must not have one label."""
        by_label: dict[str, list[AnyCatalog]] = defaultdict(list)
        for catalog in catalogs:
            by_label[catalog.label].append(catalog)
        for label, same in by_label.items():
            if len(same) > 1 and not all(catalog.global_ids for catalog in same):
                raise ValueError(
                    f"{len(same)} catalogs are named {label!r}, and equal ids in their files can "
                    "be different clips; give each catalog its own name="
                )
        return catalogs

    @property
    def prompt_form(self) -> PromptForm:
        policy = self.text.policy or ("lemmas" if self.task == "sfx" else "plain")
        return PromptForm(policy, self.text.negation)

    def recorded_form(self) -> dict[str, str]:
        """The entries `PROMPT_FORM` of `plan.json` and `summary.json`."""
        form = self.prompt_form
        values = form.policy, form.negation, self.text.tag_form
        return dict(zip(PROMPT_FORM, values, strict=True))

    def text_rules(self, seed: int) -> TextRules:
        """The text stage's settings with the task's own defaults filled in."""
        return TextRules(
            prompts=self.prompt_form,
            tag_form=self.text.tag_form,
            tags=self.text.tags,
            speech=self.text.speech or ("term" if self.task == "sfx" else "keep"),
            speech_terms=self.text.speech_terms,
            music_variants=self.text.music_variants,
            seed=seed,
        )


OverlapPolicy = Literal["keep", "merge"]
"""`keep`: each dataset's row is its own sample, as when training sets are put together.
`merge`: the row of the dataset that the recipe lists first stays and gets the tags, captions and
prompts of the other rows; rows in different splits are not merged."""
