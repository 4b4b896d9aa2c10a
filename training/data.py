"""Batches from shards, in an order that only the seed decides.

Position p of a run (p = step x global batch + place in the batch) belongs to epoch p // N, at index
p % N.  The clip at a position is a function of (seed, epoch, index).  Its prompt and its crop are
functions of (seed, epoch, sample, number of earlier places of the sample in the epoch).  So the
state of the loader is one number, no result depends on the speed of a thread, and a run may resume
with another number of processes.  Batches continue across the end of an epoch: every clip comes
once per epoch, and every process makes the same number of steps.
"""

from __future__ import annotations

import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.codec import codec_identity
from common.config import Recipe, TextEncoderConfig
from common.errors import AttuneError
from common.shards import BadSample, Sample, ShardDataset
from common.text_encoder import text_encoder_identity

_TRIES = 16
"""Clips that are tried in place of one that cannot be read, before the run stops."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch.

    codes: int64 [B, K, T], special token past a clip's end; lengths: int64 [B] in frames.
    text: float32 [B, L, D] encoder states, zero past a prompt's end; text_mask: bool [B, L].
    replaced: number of clips that replace one that cannot be read.
    """

    codes: Tensor
    lengths: Tensor
    text: Tensor
    text_mask: Tensor
    sample_ids: tuple[str, ...]
    replaced: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device.  The CPU does not wait for the copy of a pinned batch."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("codes", "lengths", "text", "text_mask")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)


def check_shards(recipe: Recipe, summary: Mapping[str, Any]) -> None:
    """Refuse shards that were made with another codec, text encoder or sample rate.

    Raises:
        AttuneError: naming both sides.
    """
    shards = f"shards in {recipe.data_dir}"
    if summary["sample_rate"] != recipe.sample_rate:
        raise AttuneError(
            f"{shards} are at {summary['sample_rate']} Hz, but sample_rate in "
            f"{recipe.source_file} is {recipe.sample_rate}; set both to the same rate"
        )
    check_made_with(
        recipe.codec.path,
        recipe.text_encoder,
        summary,
        f"{shards} were made by",
        ", or rerun the pipeline",
    )


def check_made_with(
    codec: str, encoder: TextEncoderConfig, made: Mapping[str, Any], whose: str, remedy: str = ""
) -> None:
    """Refuse a recipe's codec or text encoder if data or a model were made with another one.

    Args:
        codec, encoder: as in the recipe.
        made: has `codec_id` and `text_encoder_id`.
        whose: beginning of the message.
        remedy: what else can be done, for the end of the message.

    Raises:
        AttuneError: naming both sides.
    """
    named = f"text_encoder.path {encoder.path} (max_length {encoder.max_length})"
    for what, key, given, found in (
        ("codec", "codec_id", f"codec.path {codec}", codec_identity(codec)),
        ("text encoder", "text_encoder_id", named, text_encoder_identity(encoder)),
    ):
        if made[key] != found:
            raise AttuneError(
                f"{whose} {what} {made[key]}, but {given} is {found}; name {what} {made[key]} in "
                f"the recipe{remedy}"
            )


class ClipOrder:
    """The manifest row at each position of a run."""

    def __init__(
        self,
        dataset: ShardDataset,
        split: str,
        seed: int,
        window: int = 16384,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """
        Args:
            dataset: opened shards.
            split: `train` or `valid`.
            seed: decides every epoch's order.
            window: number of clips that are shuffled together.
            weights: how often the clips of each dataset come per epoch; 1 for other datasets.

        Raises:
            AttuneError: the split has no clip, or a weight names an unknown dataset.
        """
        manifest = dataset.manifest
        self._rows = np.flatnonzero(pc.equal(manifest["split"], split).to_numpy())
        if not len(self._rows):
            raise AttuneError(
                f"{dataset.store.uri}: no clip of split '{split}' among {len(dataset)}; set "
                "`split` of the recipe's catalogs and rerun the pipeline"
            )
        self._shards = manifest["shard"].to_numpy()[self._rows]
        self._seed = seed
        self._window = window
        self._weights = dict(weights or {})
        self._datasets = np.asarray(manifest["dataset"].to_pylist())[self._rows]
        unknown = sorted(set(self._weights) - set(self._datasets.tolist()))
        if unknown:
            raise AttuneError(
                f"lm.datasets: no clip of '{unknown[0]}' in split '{split}'; its datasets are "
                f"{', '.join(sorted(set(self._datasets.tolist())))}"
            )
        self._cached: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self.epoch_size = len(self._draw(0))
        if not self.epoch_size:
            raise AttuneError("lm.datasets: the weights leave no clip to train on; raise one")
        left_out = [name for name, weight in self._weights.items() if weight == 0]
        kept = self._rows[~np.isin(self._datasets, left_out)]
        self.longest = int(manifest["frames"].to_numpy()[kept].max())
        """Frames of the longest clip."""

    def at(self, position: int) -> tuple[int, int, int]:
        """Epoch and manifest row of a position, and number of earlier places of the row in it."""
        epoch, index = divmod(position, self.epoch_size)
        rows, repeats = self._order(epoch)
        return epoch, int(rows[index]), int(repeats[index])

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Manifest rows of one epoch in order, int64 `[N]`."""
        return self._order(epoch)[0]

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._cached is None or self._cached[0] != epoch:
            rows = self._draw(epoch)
            self._cached = (epoch, rows, _occurrences(rows))
        return self._cached[1:]

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        rng = purpose_rng(self._seed, "order", epoch)
        picked = self._weighted(rng)
        shards = np.unique(self._shards)
        rank = np.empty(int(shards.max()) + 1, dtype=np.int64)
        rank[shards] = rng.permutation(len(shards))
        picked = picked[np.argsort(rank[self._shards[picked]], kind="stable")]
        for start in range(0, len(picked), self._window):
            rng.shuffle(picked[start : start + self._window])
        return self._rows[picked]

    def _weighted(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices into `_rows`, with those of a dataset repeated by its weight, int64 `[N]`.

        N is the same in every epoch.
        """
        if not self._weights:
            return np.arange(len(self._rows))
        parts = []
        for name in sorted(set(self._datasets.tolist())):
            places = np.flatnonzero(self._datasets == name)
            wanted = round(self._weights.get(name, 1.0) * len(places))
            passes, rest = divmod(wanted, len(places))
            parts += [places] * passes + [rng.permutation(places)[:rest]]
        return np.sort(np.concatenate(parts))


@dataclass(eq=False)
class Loader:
    """Batches of one process, which one thread reads ahead."""

    dataset: ShardDataset
    order: ClipOrder
    _: KW_ONLY
    segment_s: float
    """Longest clip in seconds; longer clips are cropped."""
    seed: int
    batch_size: int
    """Number of clips of the global batch; a multiple of `world`."""
    rank: int = 0
    world: int = 1
    prefetch: int = 4
    """Number of batches that are read ahead."""
    pin: bool = False
    """Put batches into page-locked memory, from which a GPU copies without waiting."""
    skip_bad: bool = False
    """Replace a clip that cannot be read by another one, instead of stopping."""

    def __post_init__(self) -> None:
        self.segment_frames = max(1, round(self.segment_s * self.dataset.summary["frame_rate"]))
        """Longest clip in frames."""
        self._special = int(self.dataset.summary["codebook_size"])
        self._share = self.batch_size // self.world
        self._reported: set[int] = set()

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's shares of the batches of steps `first_step`...`last_step - 1`."""
        pending: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as reader:
            try:
                for step in range(first_step, last_step):
                    pending.append(reader.submit(self.batch, step))
                    if len(pending) > self.prefetch:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def batch(self, step: int) -> Batch:
        """This process's share of the global batch of one step.

        Raises:
            BadSample: naming a clip that cannot be read; not with `skip_bad`.
        """
        start = step * self.batch_size + self.rank * self._share
        clips, replaced = [], 0
        for position in range(start, start + self._share):
            epoch, row, repeat = self.order.at(position)
            sample = self._read(row)
            if sample is None:
                sample, repeat = self._instead(position)
                replaced += 1
            clips.append((sample.sample_id, *self._cut(sample, epoch, repeat)))
        batch = replace(collate(clips, self._special), replaced=replaced)
        return batch.pinned() if self.pin else batch

    def _read(self, row: int) -> Sample | None:
        """The sample of a manifest row; with `skip_bad`, None if it cannot be read."""
        try:
            sample = self.dataset.read(row)
            if not sample.text:
                raise BadSample(f"sample {sample.sample_id}: no prompt in its shard")
            return sample
        except BadSample as error:
            if not self.skip_bad:
                raise
            if row not in self._reported:
                self._reported.add(row)
                print(f"warning: {error}; skipped", file=sys.stderr, flush=True)
            return None

    def _instead(self, position: int) -> tuple[Sample, int]:
        """A sample in place of a bad one: another of the epoch, by (seed, position).

        The number returned with it stands for its number of earlier places.  It is larger than any
        such number, so that the crop differs from those at the sample's own places.
        """
        epoch, index = divmod(position, self.order.epoch_size)
        rows = self.order.epoch(epoch)
        for place in purpose_rng(self.seed, "instead", position).integers(len(rows), size=_TRIES):
            sample = self._read(int(rows[place]))
            if sample is not None:
                return sample, len(rows) + index
        raise AttuneError(
            f"{self.dataset.store.uri}: {_TRIES} samples drawn in place of a bad one are bad as "
            "well; check the data with `python -m pipeline shards verify --config RECIPE`"
        )

    def _cut(
        self, sample: Sample, epoch: int, repeat: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
        """A crop of the codes, and one of the prompts, by (seed, epoch, sample, repeat)."""
        rng = purpose_rng(self.seed, "clip", epoch, int(sample.sample_id[:16], 16), repeat)
        prompt = int(rng.integers(len(sample.text)))
        spare = sample.codes.shape[1] - self.segment_frames
        start = int(rng.integers(spare + 1)) if spare > 0 else 0
        return sample.codes[:, start : start + self.segment_frames], sample.text[prompt]


def collate(clips: list[tuple[str, NDArray[np.int16], NDArray[np.float16]]], special: int) -> Batch:
    """Pad clips to the longest: (id, codes int16 `[K, T_i]`, text float16 `[L_i, D]`) each."""
    ids, codes, texts = zip(*clips, strict=True)
    frames = [torch.from_numpy(c.T.astype(np.int64)) for c in codes]
    states = [torch.from_numpy(t.astype(np.float32)) for t in texts]
    text = pad_sequence(states, batch_first=True)
    tokens = torch.tensor([len(t) for t in texts])
    return Batch(
        pad_sequence(frames, True, special).transpose(1, 2).contiguous(),
        torch.tensor([len(f) for f in frames]),
        text,
        torch.arange(text.shape[1]) < tokens[:, None],
        ids,
    )


def _occurrences(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of earlier entries that equal each entry: int64 `[N]`."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    counts = np.empty_like(rows)
    counts[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return counts


def purpose_rng(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A generator for each purpose and key, independent of those for all others."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *keys])
