"""Audio for codec training: random segments by (seed, step, place), whole clips for validation.

Segments are read by threads, some batches ahead, and are the same whoever reads them when: a run
that resumes draws what it would have drawn.  On several processes each reads its part of the global
batch, which is the same whatever their number.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from common.audio import AudioError, Waveform, check_audio, read_part, resample, stated_length_s
from common.cores import usable_cores
from common.errors import AttuneError
from common.uris import opened

_MARGIN_S = 0.05
"""Read on both sides of a segment, so that resampling does not see its ends."""
_SHORTEST_S = 0.1
"""Of a whole clip; a shorter one holds a few frames."""
_ATTEMPTS = 20
"""Draws for one place of a batch before a run gives up: nearly all of the audio is unusable."""
_SEGMENT_DRAW = 0
"""Tells the draws of segments from others of their step."""


class Source(NamedTuple):
    """A clip, as in `SOURCES`."""

    uri: str
    start_s: float
    end_s: float | None


class Clips(Protocol):
    """Something to draw segments from."""

    def __len__(self) -> int: ...

    def segment(self, clip: int, place: float, samples: int) -> Waveform:
        """float32 [samples], zero-padded where the clip is shorter.

        Args:
            clip: its number.
            place: 0...1, between the earliest and the latest segment of the clip.

        Raises:
            AudioError: the clip cannot be used.
        """


class ClipsOnDisk:
    """Decodes what it is asked for and keeps nothing.

    Segments are taken as they are: silence among them is part of what a codec must know.
    """

    def __init__(self, sources: pa.Table, sample_rate: int) -> None:
        """
        Args:
            sources: as `SOURCES`.
            sample_rate: Hz of what is returned.
        """
        self.sources = sources
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.sources)

    def source(self, clip: int) -> Source:
        row = (self.sources[name][clip].as_py() for name in self.sources.column_names)
        uri, start_s, end_s = row
        return Source(uri, start_s or 0.0, end_s)

    def segment(self, clip: int, place: float, samples: int) -> Waveform:
        uri, first, end = self.source(clip)
        wanted = samples / self.sample_rate
        with opened(uri) as (file, size):
            length = stated_length_s(file)
            last = min(math.inf if end is None else end, math.inf if length is None else length)
            # What states no length is taken from its start.
            spare = max(0.0, last - first - wanted) if last < math.inf else 0.0
            begin = first + place * spare
            lead = min(_MARGIN_S, begin - first)
            stop = min(last, begin + wanted + _MARGIN_S)
            wav, rate = read_part(file, uri, size, begin - lead, stop)
        wav = resample(wav, rate, self.sample_rate)
        if not np.isfinite(wav).all():
            raise AudioError("non_finite", uri)
        return _fit(wav[round(lead * self.sample_rate) :], samples)

    def whole(self, clip: int, max_s: float = math.inf, shortest: int = 0) -> Waveform:
        """A clip in full, or its first `max_s` seconds: float32 [S].

        Args:
            shortest: number of samples that it must have at least.

        Raises:
            AudioError: it cannot be used, too short and silent ones included.
        """
        uri, first, end = self.source(clip)
        end = None if end is None and max_s == math.inf else min(end or math.inf, first + max_s)
        with opened(uri) as (file, size):
            wav, rate = read_part(file, uri, size, first, end)
        check_audio(wav, rate, _SHORTEST_S, math.inf)
        wav = resample(wav, rate, self.sample_rate)
        if len(wav) < shortest:
            told = f"{len(wav)} samples at {self.sample_rate} Hz, expected at least {shortest}"
            raise AudioError("too_short", told)
        return wav


def stated_lengths(clips: ClipsOnDisk) -> list[float | None]:
    """Seconds of each clip by its plan or its file's header; None where neither says.

    Raises:
        AttuneError: a disk or store that fails.
    """

    def stated(clip: int) -> float | None:
        uri, first, end = clips.source(clip)
        if end is None:
            try:
                with opened(uri) as (file, _):
                    end = stated_length_s(file)
            except AudioError:
                return None
        return None if end is None else max(0.0, end - first)

    with _readers() as pool:
        return list(pool.map(stated, range(len(clips))))


class ClipsInMemory:
    """Clips decoded once, at the start.

    Attributes:
        waves: float32 [S] each, in the order of the sources.
        refused: number of clips by reason.
    """

    def __init__(self, clips: ClipsOnDisk, max_s: float = math.inf, shortest: int = 0) -> None:
        """
        Args:
            clips: what is decoded.
            max_s, shortest: as in `ClipsOnDisk.whole`.
        """
        self.waves: list[Waveform] = []
        self.refused: Counter[str] = Counter()

        def read(clip: int) -> Waveform | AudioError:
            try:
                return clips.whole(clip, max_s, shortest)
            except AudioError as error:
                return error

        with _readers() as pool:
            for found in pool.map(read, range(len(clips))):
                if isinstance(found, AudioError):
                    self.refused[found.reason] += 1
                else:
                    self.waves.append(found)

    def __len__(self) -> int:
        return len(self.waves)

    def seconds(self, sample_rate: int) -> float:
        """Of all clips."""
        return sum(len(wave) for wave in self.waves) / sample_rate

    def segment(self, clip: int, place: float, samples: int) -> Waveform:
        wave = self.waves[clip]
        start = int(place * max(1, len(wave) - samples + 1))
        return _fit(wave[start:], samples)


class SegmentLoader:
    """Batches of segments, by step.

    Clips are drawn evenly, whatever their length.  In place of a clip that cannot be used comes
    another, drawn in the same way; `refused` counts them by reason.
    """

    def __init__(
        self,
        clips: Clips,
        samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prefetch: int = 4,
    ) -> None:
        """
        Args:
            samples: length of a segment.
            batch_size: segments over all processes; `world` divides it.
            rank: of this process among `world`.
            workers: threads; 0 for this process's share of the cores, four at least.
            prefetch: batches read ahead.
        """
        self.clips = clips
        self.samples = samples
        self.seed = seed
        self.refused: Counter[str] = Counter()
        self._counting = Lock()
        share = batch_size // world
        self._places = range(rank * share, (rank + 1) * share)
        self._workers, self._ahead = workers, prefetch * share

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """This process's part of the global batches of steps `start` to `stop`: float32
        [B / world, samples].

        Raises:
            AttuneError: no usable clip in many draws, or a disk or store that fails.
        """
        jobs = ((step, place) for step in range(start, stop) for place in self._places)
        with _readers(self._workers) as pool:
            waiting: deque[Future[Waveform]] = deque()
            for _ in range(start, stop):
                rows = []
                for _ in self._places:
                    while len(waiting) < self._ahead and (job := next(jobs, None)):
                        waiting.append(pool.submit(self.row, *job))
                    rows.append(waiting.popleft().result())
                yield torch.from_numpy(np.stack(rows))

    def row(self, step: int, place: int) -> Waveform:
        """One segment of the global batch, a function of (seed, step, place)."""
        rng = np.random.default_rng((self.seed, step, _SEGMENT_DRAW, place))
        error: AudioError | None = None
        for _ in range(_ATTEMPTS):
            clip, where = int(rng.integers(len(self.clips))), float(rng.random())
            try:
                return self.clips.segment(clip, where, self.samples)
            except AudioError as refusal:
                error = refusal
                with self._counting:
                    self.refused[refusal.reason] += 1
        raise AttuneError(
            f"codec training: {_ATTEMPTS} clips in a row are no usable audio, the last: {error}"
        )


def held_out_clips(
    clips: ClipsOnDisk,
    rank: int = 0,
    world: int = 1,
    shortest: int = 0,
    most: int = 128,
    max_s: float = 30.0,
) -> ClipsInMemory:
    """This process's part of at most `most` clips, evenly spaced among all.

    Args:
        rank: of this process among `world`.
        max_s, shortest: as in `ClipsOnDisk.whole`.
    """
    count = min(most, len(clips))
    chosen = [len(clips) * i // count for i in range(count)][rank::world]
    part = ClipsOnDisk(clips.sources.take(pa.array(chosen, pa.int64())), clips.sample_rate)
    return ClipsInMemory(part, max_s, shortest)


def _fit(wave: Waveform, samples: int) -> Waveform:
    """Cut or zero-pad [S] to [samples]."""
    fitted = np.zeros(samples, np.float32)
    fitted[: min(samples, len(wave))] = wave[:samples]
    return fitted


@contextmanager
def _readers(workers: int = 0) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave at once when nobody wants what they read any more."""
    # Four even on one core: most of the time they wait for a disk or a store.
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    pool = ThreadPoolExecutor(workers or max(4, share), thread_name_prefix="audio")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
