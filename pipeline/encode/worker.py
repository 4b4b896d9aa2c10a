"""One shard from plan rows to commit: decode, resample, check, encode, tar, publish.

A shard is the unit of work and of retry.  A worker holds the codec, which runs in its own thread.
A small pool decodes a few files in advance (libsndfile, FFmpeg and soxr release the interpreter).
A worker encodes several shards at once, so the codec has work while a finished tar is read back and
uploaded.  A bad input is refused with its reason, and the shard continues.  An error that is not
the input's fault (storage, a lost mount, memory, the codec) is raised, and the whole shard is tried
again.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.audio import Audio, AudioError, check_audio, check_notes, read_audio, resample
from common.codec import Codec, load_codec
from common.config import Precision
from common.errors import AttuneError
from common.schema import RECORD
from common.storage import StorageError, open_store
from common.uris import on_disk, remote_uri
from pipeline.datadir.commit import EncodedClip, build_tar, check_tar, publish_shard, read_commit
from pipeline.datadir.text_cache import TextCache

SHARDS_AT_ONCE = 2
"""Number of shards that one worker encodes at the same time."""
_DECODERS = 2
"""Number of decoding threads per worker."""
_HELD_BYTES = 256 * 2**20
"""Limit of the decoded audio that waits for the codec, per shard; one larger clip may wait."""
_REFUSED = ("sample_id", "dataset", "native_id", "source")
_NO_CODES = np.zeros((0, 0), np.int16)


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of a worker; sent to the node where it runs."""

    data_dir: str
    plan_hash: str
    codec: str
    codec_id: str
    text_encoder_id: str
    min_duration_s: float
    max_duration_s: float
    silence_dbfs: float
    threads: int
    """Number of torch threads of the codec."""
    device: str
    batch_clips: int = 1
    precision: Precision = "float32"
    """Precision of the codec's encoder."""
    max_clipped_share: float = 1.0
    max_dc_offset: float = 1.0
    audio_folders: tuple[str, ...] = ()
    """The plan's audio folders (`FrozenPlan.audio_folders`), to tell a lost file from a lost
    mount."""


class EncodeWorker:
    """A codec and its decoding threads; a Ray actor that encodes several shards at a time."""

    def __init__(self, settings: EncodeSettings) -> None:
        self.settings = settings
        self.store = open_store(settings.data_dir)
        self.cache = TextCache(self.store, settings.text_encoder_id)
        self.decoders = ThreadPoolExecutor(_DECODERS)
        # One thread: OpenMP keeps a team of threads for each thread that computes, and several
        # teams on the same cores slow each other down.
        self.codec_thread = ThreadPoolExecutor(1)
        self._codec: Codec | None = None
        self._loading = Lock()

    @property
    def codec(self) -> Codec:
        """The codec, loaded by the first shard.

        Ray reports an error of a call to the driver, but not an error of an actor's creation.

        Raises:
            AttuneError: this node has another codec than the plan was made for.
        """
        with self._loading:
            if self._codec is None:
                self._codec = self.codec_thread.submit(self._load_codec).result()
            return self._codec

    def _load_codec(self) -> Codec:
        import torch

        settings = self.settings
        torch.set_num_threads(settings.threads)
        codec = load_codec(settings.codec, settings.device, settings.precision)
        if codec.codec_id != settings.codec_id:
            raise AttuneError(
                f"codec {settings.codec} on {os.uname().nodename} is {codec.codec_id}, the plan "
                f"was made for {settings.codec_id}; give every node the same codec"
            )
        return codec

    def is_ready(self) -> bool:
        """Return True; a first call that shows that the worker has started."""
        return True

    def encode_shard(self, shard: int, rows: pa.Table) -> dict[str, Any]:
        """Encode and commit one shard, unless it is committed.

        Args:
            rows: the shard's rows of `plan.parquet`, by position.

        Returns:
            shard, clips (refused ones too), refused, and seconds of accepted audio.

        Raises:
            StorageError: the store or the scratch disk failed.
        """
        commit = read_commit(self.store, shard)
        if commit is None:
            try:
                commit = self._make(shard, rows)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise StorageError(
                    f"{tempfile.gettempdir()} on {os.uname().nodename}: {error.strerror}; make "
                    "room there or let TMPDIR name another folder"
                ) from error
        return {
            "shard": shard,
            "clips": len(commit["samples"]) + len(commit["refused"]),
            "refused": len(commit["refused"]),
            "seconds": sum(sample["duration_s"] for sample in commit["samples"]),
        }

    def _make(self, shard: int, rows: pa.Table) -> dict[str, Any]:
        sample_rate = self.codec.sample_rate
        samples: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(prefix="attune-shard-") as scratch:
            tar = Path(scratch) / "shard.tar"
            placed = build_tar(tar, self._clips(rows, sample_rate, samples, refused))
            check_tar(tar, placed)
            for sample, (_, offset, length) in zip(samples, placed, strict=True):
                sample |= {"offset": offset, "length": length}
            found = tar if samples else None
            return publish_shard(
                self.store, shard, self.settings.plan_hash, found, samples, refused
            )

    def _clips(
        self,
        rows: pa.Table,
        sample_rate: int,
        samples: list[dict[str, Any]],
        refused: list[dict[str, Any]],
    ) -> Iterator[EncodedClip]:
        """Encoded clips in order; fills `samples` and `refused` meanwhile."""
        columns = (rows[name].to_pylist() for name in ("prompts", "chunks"))
        states = self.cache.read(dict(chain.from_iterable(map(zip, *columns))))
        for row, outcome, codes in self._encoded(self._decoded(rows, sample_rate)):
            if isinstance(outcome, AudioError):
                about = {"stage": "audio", "reason": outcome.reason, "detail": outcome.detail}
                refused.append({name: row[name] for name in _REFUSED} | about)
                continue
            text = [states[prompt] for prompt in row["prompts"]]
            found = {
                "frames": int(codes.shape[1]),
                "duration_s": len(outcome.wav) / sample_rate,
                "prompt_tokens": [len(state) for state in text],
                "source_sample_rate": outcome.sample_rate,
                "source_sha256": outcome.sha256,
                "wave_sha256": outcome.wave_sha256,
            }
            samples.append({"sample_id": row["sample_id"], **found})
            record = {name: row[name] for name in RECORD.names} | {"prompts": row["prompts"]}
            identity = {
                "codec_id": self.settings.codec_id,
                "text_encoder_id": self.settings.text_encoder_id,
                "audio": outcome.notes._asdict(),
            }
            yield EncodedClip(
                row["sample_id"], codes, np.concatenate(text), record | found | identity
            )

    def _encoded(
        self, decoded: Iterator[tuple[dict[str, Any], Audio | AudioError]]
    ) -> Iterator[tuple[dict[str, Any], Audio | AudioError, npt.NDArray[np.int16]]]:
        """Each row with its codes (none for a refusal), in order.

        Up to `batch_clips` clips of one length share a batch.  The batches depend only on the
        shard's rows, so every worker makes the same shard from them.
        """
        waiting: list[tuple[dict[str, Any], Audio | AudioError]] = []
        codes: dict[int, npt.NDArray[np.int16]] = {}
        groups: dict[int, list[int]] = {}

        def encode(group: list[int]) -> None:
            wavs = [audio.wav for i in group if isinstance(audio := waiting[i][1], Audio)]
            found = self.codec_thread.submit(self.codec.encode_clips, wavs).result()
            codes.update(zip(group, found, strict=True))

        def finished() -> Iterator[tuple[Any, Any, Any]]:
            for group in groups.values():
                encode(group)
            for i, (row, outcome) in enumerate(waiting):
                yield row, outcome, codes.get(i, _NO_CODES)
            waiting.clear()
            codes.clear()
            groups.clear()

        for row, outcome in decoded:
            waiting.append((row, outcome))
            i = len(waiting) - 1
            if isinstance(outcome, Audio):
                if self.settings.batch_clips > 1 and self.codec.is_short(outcome.wav):
                    group = groups.setdefault(len(outcome.wav), [])
                    group.append(i)
                    if len(group) == self.settings.batch_clips:
                        encode(groups.pop(len(outcome.wav)))
                else:
                    track = self.codec_thread.submit(self.codec.encode_track, outcome.wav)
                    codes[i] = track.result()
            # Encode incomplete groups before too many clips wait for others of their length.
            held = sum(clip.wav.nbytes for _, clip in waiting if isinstance(clip, Audio))
            if not groups or len(waiting) >= 8 * self.settings.batch_clips or held > _HELD_BYTES:
                yield from finished()
        yield from finished()

    def _decoded(
        self, rows: pa.Table, sample_rate: int
    ) -> Iterator[tuple[dict[str, Any], Audio | AudioError]]:
        """Each row with its audio at `sample_rate`, or its refusal; decoded a few ahead."""
        ahead: deque[tuple[dict[str, Any], Future[Audio | AudioError]]] = deque()
        left = iter(rows.to_pylist())
        largest = 0

        def submit() -> None:
            # At least one file, and more while few bytes wait.  A file that is not decoded yet
            # counts as large as the largest before it.
            most = 2 * _DECODERS if largest else _DECODERS
            while not ahead or (
                len(ahead) < most
                and sum(_bytes_of(future, largest) for _, future in ahead) <= _HELD_BYTES
            ):
                row = next(left, None)
                if row is None:
                    return
                ahead.append((row, self.decoders.submit(self._decode, row, sample_rate)))

        try:
            submit()
            while ahead:
                row, future = ahead.popleft()
                outcome = future.result()
                largest = max(largest, _bytes_of(future, 0))
                submit()
                yield row, outcome
        finally:
            for _, future in ahead:  # the shard failed: free the threads for other shards
                future.cancel()

    def _decode(self, row: Mapping[str, Any], sample_rate: int) -> Audio | AudioError:
        settings = self.settings
        try:
            with on_disk(row["audio_uri"]) as path:
                audio = read_audio(path, row["start_s"], row["end_s"], settings.max_duration_s)
            check_audio(
                audio.wav,
                audio.sample_rate,
                settings.min_duration_s,
                settings.max_duration_s,
                settings.silence_dbfs,
            )
            check_notes(audio.notes, settings.max_clipped_share, settings.max_dc_offset)
        except AudioError as error:
            is_suspect = error.reason == "missing" or isinstance(error.__cause__, PermissionError)
            if is_suspect and remote_uri(row["audio_uri"]) is None:
                _check_folder(row["audio_uri"], settings.audio_folders)
            return error
        wav = resample(audio.wav, audio.sample_rate, sample_rate)
        if not wav.size:
            return AudioError("too_short", f"{audio.wav.size} samples at {audio.sample_rate} Hz")
        return audio._replace(wav=wav)


def _check_folder(path: str, planned: Iterable[str]) -> None:
    """Check that the planned audio folder of a file, else the folder of the file, is still mounted.

    Raises:
        StorageError: the folder is gone, empty or not readable, so its mount is lost, not only a
            file; the shard is tried again.
    """
    inside = (folder for folder in planned if path.startswith(os.path.join(folder, "")))
    folder = max(inside, key=len, default=os.path.dirname(path))
    try:
        os.stat(os.path.join(folder, "."))  # fails if names can be listed but files not opened
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
        problem = "is empty now"
    except OSError as error:
        problem = str(error.strerror)
    raise StorageError(
        f"audio folder {folder}: {problem}; it held audio when the plan was made: is it mounted?"
    )


def _bytes_of(future: Future[Audio | AudioError], pending: int) -> int:
    """Size of the decoded audio; `pending` if it is not decoded yet."""
    if not future.done():
        return pending
    outcome = None if future.exception() else future.result()
    return outcome.wav.nbytes if isinstance(outcome, Audio) else 0
