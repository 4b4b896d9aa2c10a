"""Batches from shards, in an order that nothing but the seed decides.

Position p of a run (p = step x global batch + place in the batch) lies in epoch p // N at index
p % N.  What comes there is a function of (seed, epoch) only, and which prompt and which crop are
functions of (seed, epoch, sample, how often the sample came before in the epoch).  So the state of
the loader is one number, nothing depends on which thread is faster, and a run may resume with
another number of processes.  Batches continue across the end of an epoch: every clip comes once per
epoch, and every process makes the same number of steps.
"""

from __future__ import annotations

import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.codec import codec_identity
from common.config import Recipe
from common.errors import AttuneError
from common.shards import BadSample, Sample, ShardDataset
from common.text_encoder import text_encoder_identity

_TRIES = 16
"""Clips drawn for the place of one that cannot be read; if none of them can, the data is lost."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch.

    codes: int64 [B, K, T], special token past a clip's end; lengths: int64 [B] in frames.
    text: float32 [B, L, D] encoder states, zero past a prompt's end; text_mask: bool [B, L].
    replaced: how many of the clips took the place of one that cannot be read.
    """

    codes: Tensor
    lengths: Tensor
    text: Tensor
    text_mask: Tensor
    sample_ids: tuple[str, ...]
    replaced: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; pinned ones are copied while the CPU continues."""
        if device.type == "cpu":
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            codes=change(self.codes),
            lengths=change(self.lengths),
            text=change(self.text),
            text_mask=change(self.text_mask),
        )


def check_shards(recipe: Recipe, summary: Mapping[str, Any]) -> None:
    """Refuse shards that another codec, text encoder or sample rate made.

    Raises:
        AttuneError: naming both sides.
    """
    if summary["sample_rate"] != recipe.sample_rate:
        raise AttuneError(
            f"shards in {recipe.data_dir} are at {summary['sample_rate']} Hz, but sample_rate in "
            f"{recipe.source_file} is {recipe.sample_rate}; use one of them for both"
        )
    found = codec_identity(recipe.codec.path)
    if summary["codec_id"] != found:
        raise AttuneError(
            f"shards in {recipe.data_dir} were made by codec {summary['codec_id']}, but "
            f"codec.path {recipe.codec.path} is {found}; rerun the pipeline with this codec or "
            "name the one that made them"
        )
    found = text_encoder_identity(recipe.text_encoder)
    if summary["text_encoder_id"] != found:
        raise AttuneError(
            f"shards in {recipe.data_dir} were made by text encoder {summary['text_encoder_id']}, "
            f"but text_encoder {recipe.text_encoder.path} (max_length "
            f"{recipe.text_encoder.max_length}) is {found}; rerun the pipeline with this encoder "
            "or name the one that made them"
        )


class ClipOrder:
    """Which manifest row comes at which position of the run."""

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
            window: clips shuffled together.
            weights: per dataset, how often its clips come per epoch (1 if not named).

        Raises:
            AttuneError: no clip of that split, or a weight for a dataset that is not there.
        """
        manifest = dataset.manifest
        self._rows = np.flatnonzero(pc.equal(manifest["split"], split).to_numpy())
        if not len(self._rows):
            raise AttuneError(
                f"{dataset.store.uri}: no clip of split '{split}' among {len(dataset)}; "
                "the catalogs' `split` decides"
            )
        self._shards = manifest["shard"].to_numpy()[self._rows]
        self._seed = seed
        self._window = window
        self._weights = dict(weights or {})
        self._datasets = np.asarray(manifest["dataset"].to_pylist())[self._rows]
        unknown = sorted(set(self._weights) - set(self._datasets.tolist()))
        if unknown:
            raise AttuneError(
                f"lm.datasets: no clip of '{unknown[0]}' in split '{split}'; there are "
                f"{', '.join(sorted(set(self._datasets.tolist())))}"
            )
        self._cached: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self.epoch_size = len(self._draw(0))
        if not self.epoch_size:
            raise AttuneError("lm.datasets: the weights leave no clip to train on")
        left_out = [name for name, weight in self._weights.items() if weight == 0]
        kept = self._rows[~np.isin(self._datasets, left_out)]
        self.longest = int(manifest["frames"].to_numpy()[kept].max())
        """Frames of the longest clip."""

    def at(self, position: int) -> tuple[int, int, int]:
        """Epoch and manifest row of a position, and how often the row came before in the epoch."""
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
        rng = _rng(self._seed, "order", epoch)
        picked = self._weighted(rng)
        shards = np.unique(self._shards)
        rank = np.empty(int(shards.max()) + 1, dtype=np.int64)
        rank[shards] = rng.permutation(len(shards))
        picked = picked[np.argsort(rank[self._shards[picked]], kind="stable")]
        for start in range(0, len(picked), self._window):
            rng.shuffle(picked[start : start + self._window])
        return self._rows[picked]

    def _weighted(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Places in `_rows`, each dataset's as often as its weight says; same size every epoch."""
        if not self._weights:
            return np.arange(len(self._rows))
        parts = []
        for name in sorted(set(self._datasets.tolist())):
            places = np.flatnonzero(self._datasets == name)
            wanted = round(self._weights.get(name, 1.0) * len(places))
            passes, rest = divmod(wanted, len(places))
            parts += [places] * passes + [rng.permutation(places)[:rest]]
        return np.sort(np.concatenate(parts))


class Loader:
    """Batches of one process, read ahead by one thread."""

    def __init__(
        self,
        dataset: ShardDataset,
        order: ClipOrder,
        *,
        segment_s: float,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
        pin: bool = False,
        skip_bad: bool = False,
    ) -> None:
        """
        Args:
            segment_s: longest clip in seconds; longer ones are cropped.
            batch_size: clips of the global batch; `world` divides it.
            prefetch: batches read ahead.
            pin: into page-locked memory, from which a GPU copies without waiting.
            skip_bad: another clip takes the place of one that cannot be read.
        """
        self._dataset = dataset
        self._order = order
        self._frames = max(1, round(segment_s * dataset.summary["frame_rate"]))
        self._special = int(dataset.summary["codebook_size"])
        self._seed = seed
        self._batch_size = batch_size
        self._share = batch_size // world
        self._rank = rank
        self._prefetch = prefetch
        self._pin = pin
        self._skip_bad = skip_bad
        self._told: set[int] = set()

    @property
    def segment_frames(self) -> int:
        """Longest clip in frames."""
        return self._frames

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's batches for steps `first_step`...`last_step - 1`."""
        pending: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as reader:
            try:
                for step in range(first_step, last_step):
                    pending.append(reader.submit(self.batch, step))
                    if len(pending) > self._prefetch:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def batch(self, step: int) -> Batch:
        """This process's share of the global batch of one step.

        Raises:
            BadSample: naming it, unless such are skipped.
        """
        start = step * self._batch_size + self._rank * self._share
        clips, replaced = [], 0
        for position in range(start, start + self._share):
            epoch, row, repeat = self._order.at(position)
            sample = self._read(row)
            if sample is None:
                sample, repeat = self._instead(position)
                replaced += 1
            clips.append((sample.sample_id, *self._cut(sample, epoch, repeat)))
        batch = replace(collate(clips, self._special), replaced=replaced)
        return batch.pinned() if self._pin else batch

    def _read(self, row: int) -> Sample | None:
        """The sample of a manifest row; None if it is bad and such are skipped."""
        try:
            sample = self._dataset.read(row)
            if not sample.text:
                raise BadSample(f"sample {sample.sample_id}: no prompt in its shard")
            return sample
        except BadSample as error:
            if not self._skip_bad:
                raise
            if row not in self._told:
                self._told.add(row)
                print(f"warning: {error}; skipped", file=sys.stderr, flush=True)
            return None

    def _instead(self, position: int) -> tuple[Sample, int]:
        """What takes the place of a bad sample: another one of the epoch, by (seed, position).

        Its number stands for "how often it came before", and is none that occurs there, so that
        its crop is not that of its own turn.
        """
        epoch, index = divmod(position, self._order.epoch_size)
        rows = self._order.epoch(epoch)
        for place in _rng(self._seed, "instead", position).integers(len(rows), size=_TRIES):
            sample = self._read(int(rows[place]))
            if sample is not None:
                return sample, len(rows) + index
        raise AttuneError(
            f"{self._dataset.store.uri}: {_TRIES} samples drawn in place of a bad one are bad as "
            "well; see `python -m pipeline shards verify`"
        )

    def _cut(
        self, sample: Sample, epoch: int, repeat: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
        """One crop of the codes and one of the prompts, by (seed, epoch, sample, repeat)."""
        rng = _rng(self._seed, "clip", epoch, int(sample.sample_id[:16], 16), repeat)
        prompt = int(rng.integers(len(sample.text)))
        spare = sample.codes.shape[1] - self._frames
        start = int(rng.integers(spare + 1)) if spare > 0 else 0
        return sample.codes[:, start : start + self._frames], sample.text[prompt]


def collate(clips: list[tuple[str, NDArray[np.int16], NDArray[np.float16]]], special: int) -> Batch:
    """Pad clips to the longest: (id, codes int16 `[K, T_i]`, text float16 `[L_i, D]`) each."""
    ids, codes, texts = zip(*clips, strict=True)
    frames = max(c.shape[1] for c in codes)
    tokens = max(len(t) for t in texts)
    padded = np.full((len(clips), codes[0].shape[0], frames), special, dtype=np.int64)
    states = np.zeros((len(clips), tokens, texts[0].shape[1]), dtype=np.float32)
    for i, (code, text) in enumerate(zip(codes, texts, strict=True)):
        padded[i, :, : code.shape[1]] = code
        states[i, : len(text)] = text
    lengths = torch.tensor([c.shape[1] for c in codes])
    text_lengths = torch.tensor([len(t) for t in texts])
    return Batch(
        torch.from_numpy(padded),
        lengths,
        torch.from_numpy(states),
        torch.arange(tokens) < text_lengths[:, None],
        ids,
    )


def dropped_text(
    seed: int, step: int, batch_size: int, dropout: float, granularity: str
) -> NDArray[np.bool_]:
    """Which clips of a global batch train without text: bool `[batch_size]`.

    A function of (seed, step), so that all processes agree and a resumed run repeats them.
    """
    rng = _rng(seed, "cfg", step)
    if granularity == "batch":
        return np.full(batch_size, rng.random() < dropout)
    return rng.random(batch_size) < dropout


def _occurrences(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries equal each entry: int64 `[N]`."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    counts = np.empty_like(rows)
    counts[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return counts


def _rng(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A generator of its own for each purpose and key."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *keys])
