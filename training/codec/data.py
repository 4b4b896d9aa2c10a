"""Audio for codec training: random segments by (seed, step, place), whole clips for validation.

Threads read segments some batches ahead.  A segment does not depend on who reads it and when, so a
run that resumes draws the same segments.  Each of several processes reads its part of the global
batch, which does not depend on the number of processes.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from common.audio import AudioError, Waveform, check_audio, read_part, resample, stated_length_s
from common.cores import usable_cores
from common.errors import AttuneError
from common.uris import opened

_MARGIN_S = 0.05
"""Extra seconds read on both sides of a segment, so that resampling leaves no edges."""
_SHORTEST_S = 0.1
"""Shortest whole clip; a shorter clip has only a few frames."""
_ATTEMPTS = 20
"""Draws for one place of a batch before a run stops, because nearly all audio is unusable."""
_SEGMENT_DRAW = 0
"""Distinguishes the draws of segments from other draws of the same step."""


class ClipsOnDisk:
    """Decodes a segment or clip when it is asked for, and keeps nothing.

    Silent segments are not refused: a codec must learn silence too.

    Args:
        sources: table as `SOURCES`.
        sample_rate: Hz of the returned audio.
    """

    def __init__(self, sources: pa.Table, sample_rate: int) -> None:
        self.sources, self.sample_rate = sources, sample_rate

    def __len__(self) -> int:
        return len(self.sources)

    def source(self, clip: int) -> tuple[str, float, float | None]:
        """URI, start and end (None for the end of the file) of a clip, in seconds."""
        uri, start_s, end_s = (column[clip].as_py() for column in self.sources.columns)
        return uri, start_s or 0.0, end_s

    def segment(self, clip: int, place: float, samples: int) -> Waveform:
        """Segment of a clip, float32 [samples]; zero-padded if the clip is shorter.

        Args:
            clip: number of the clip.
            place: 0 to 1, from the earliest to the latest segment of the clip.

        Raises:
            AudioError: the clip cannot be used.
        """
        uri, first, end = self.source(clip)
        wanted = samples / self.sample_rate
        with opened(uri) as (file, size):
            length = stated_length_s(file)
            last = min(math.inf if end is None else end, math.inf if length is None else length)
            # If the length is unknown, take the segment from the start.
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
        """A whole clip, or its first `max_s` seconds: float32 [S].

        Args:
            shortest: least number of samples.

        Raises:
            AudioError: the clip cannot be used, for example because it is too short or silent.
        """
        uri, first, end = self.source(clip)
        end = None if end is None and max_s == math.inf else min(end or math.inf, first + max_s)
        with opened(uri) as (file, size):
            wav, rate = read_part(file, uri, size, first, end)
        check_audio(wav, rate, _SHORTEST_S, math.inf)
        wav = resample(wav, rate, self.sample_rate)
        if len(wav) < shortest:
            found = f"{len(wav)} samples at {self.sample_rate} Hz, expected at least {shortest}"
            raise AudioError("too_short", found)
        return wav


def stated_lengths(clips: ClipsOnDisk) -> list[float | None]:
    """Seconds of each clip by its plan or its file's header; None if neither has a length.

    Raises:
        AttuneError: a disk or store fails.
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
    """Clips decoded once, at the start; `max_s` and `shortest` as in `ClipsOnDisk.whole`.

    Attributes:
        waves: float32 [S] each, in the order of the sources.
        refused: number of unusable clips by reason.
    """

    def __init__(self, clips: ClipsOnDisk, max_s: float = math.inf, shortest: int = 0) -> None:
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

    def segment(self, clip: int, place: float, samples: int) -> Waveform:
        """As `ClipsOnDisk.segment`, but it cannot fail."""
        wave = self.waves[clip]
        start = int(place * max(1, len(wave) - samples + 1))
        return _fit(wave[start:], samples)


Clips = ClipsOnDisk | ClipsInMemory


class SegmentLoader:
    """Batches of segments, by step.

    All clips are equally likely, whatever their length.  A clip that cannot be used is replaced by
    another draw; `refused` counts such clips by reason.

    Args:
        samples: length of a segment.
        batch_size: segments over all processes; a multiple of `world`.
        rank: this process's number among `world` processes.
        workers: threads; 0 for this process's share of the cores, at least four.
        prefetch: batches read ahead.
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
        self.clips, self.samples, self.seed = clips, samples, seed
        self.refused: Counter[str] = Counter()
        self._counting = Lock()
        share = batch_size // world
        self._places = range(rank * share, (rank + 1) * share)
        self._workers, self._ahead = workers, prefetch * share

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """This process's part of the global batches of steps `start` to `stop`: float32
        [B / world, samples].

        Raises:
            AttuneError: no usable clip in many draws, or a disk or store fails.
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
    """This process's part (`rank` of `world`) of at most `most` clips, evenly spaced among all;
    `max_s` and `shortest` as in `ClipsOnDisk.whole`."""
    count = min(most, len(clips))
    chosen = [len(clips) * i // count for i in range(count)][rank::world]
    part = ClipsOnDisk(clips.sources.take(pa.array(chosen, pa.int64())), clips.sample_rate)
    return ClipsInMemory(part, max_s, shortest)


def _fit(wave: Waveform, samples: int) -> Waveform:
    """Cut or zero-pad [S] to [samples]."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))


@contextmanager
def _readers(workers: int = 0) -> Iterator[ThreadPoolExecutor]:
    """Reader threads; on exit, reads that have not begun are cancelled."""
    # At least four, even on one core: readers mostly wait for a disk or a store.
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    pool = ThreadPoolExecutor(workers or max(4, share), thread_name_prefix="audio")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
