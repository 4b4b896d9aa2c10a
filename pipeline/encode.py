"""One shard from plan rows to commit: decode, resample, check, encode, tar, publish.

The unit of work and of retry.  A worker holds the codec; files are decoded a few ahead of it in a
small thread pool (libsndfile and soxr release the interpreter), so that the codec does not wait
for them and memory stays bounded.  A bad input is refused with its reason and the shard goes on;
what is not the input's fault (storage, a lost mount, memory, the codec) is raised, and the whole
shard is tried again.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.audio import Audio, AudioError, check_audio, read_audio, resample
from common.codec import Codec, load_codec
from common.errors import AttuneError
from common.schema import RECORD
from common.storage import StorageError, open_store
from pipeline.catalogs.base import remote_uri
from pipeline.commit import EncodedClip, build_tar, check_tar, publish_shard, read_commit
from pipeline.textcache import StateSpan, TextCache


@dataclass(frozen=True)
class EncodeSettings:
    """What a worker needs to know; travels to wherever it runs."""

    data_dir: str
    plan_hash: str
    codec: str
    codec_id: str
    text_encoder_id: str
    min_duration_s: float
    max_duration_s: float
    silence_dbfs: float
    decode_threads: int
    threads: int
    """Torch threads of the codec."""
    device: str
    batch_clips: int = 1


class EncodeWorker:
    """A codec with its decode pool; Ray runs it as an actor."""

    def __init__(self, settings: EncodeSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.store = open_store(settings.data_dir)
        self.cache = TextCache(self.store, settings.text_encoder_id)

    @cached_property
    def codec(self) -> Codec:
        """Loaded by the first shard: Ray passes on what a call raises, not what a creation does.

        Raises:
            AttuneError: this node has another codec than the plan was made for.
        """
        settings = self.settings
        codec = load_codec(settings.codec, settings.device)
        if codec.codec_id != settings.codec_id:
            raise AttuneError(
                f"codec {settings.codec} on {os.uname().nodename} is {codec.codec_id}, the plan "
                f"was made for {settings.codec_id}; give every node the same codec"
            )
        return codec

    def is_ready(self) -> bool:
        """Answers once the worker stands."""
        return True

    def encode_shard(
        self, shard: int, rows: pa.Table, spans: Mapping[str, StateSpan]
    ) -> dict[str, Any]:
        """Encode and commit one shard.

        Args:
            shard: its number.
            rows: its plan rows (`PLAN`), by position.
            spans: where the states of its prompts lie.

        Returns:
            Its account: shard, clips, refused, seconds of audio.
        """
        commit = read_commit(self.store, shard) or self._make(shard, rows, spans)
        return {
            "shard": shard,
            "clips": len(commit["samples"]) + len(commit["refused"]),
            "refused": len(commit["refused"]),
            "seconds": sum(sample["duration_s"] for sample in commit["samples"]),
        }

    def _make(self, shard: int, rows: pa.Table, spans: Mapping[str, StateSpan]) -> dict[str, Any]:
        sample_rate = self.codec.sample_rate  # loads it, before any thread asks
        states = self.cache.read(spans)
        samples: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(prefix="attune-shard-") as scratch:
            tar = Path(scratch) / "shard.tar"
            placed = build_tar(tar, self._clips(rows, states, sample_rate, samples, refused))
            check_tar(tar, placed)
            for sample, (_, offset, length) in zip(samples, placed, strict=True):
                sample |= {"offset": offset, "length": length}
            return publish_shard(
                self.store,
                shard,
                self.settings.plan_hash,
                tar if samples else None,
                samples,
                refused,
            )

    def _clips(
        self,
        rows: pa.Table,
        states: Mapping[str, npt.NDArray[np.float16]],
        sample_rate: int,
        samples: list[dict[str, Any]],
        refused: list[dict[str, Any]],
    ) -> Iterator[EncodedClip]:
        """Encoded clips in order; fills `samples` and `refused` on the way."""
        for row, outcome, codes in self._encoded(self._decoded(rows, sample_rate)):
            if isinstance(outcome, AudioError):
                refused.append(_refusal(row, outcome))
                continue
            text = [states[prompt] for prompt in row["prompts"]]
            found = {
                "frames": int(codes.shape[1]),
                "duration_s": len(outcome.wav) / sample_rate,
                "prompt_tokens": [len(state) for state in text],
                "source_sample_rate": outcome.sample_rate,
                "source_sha256": outcome.sha256,
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

        Up to `batch_clips` clips of one length share a batch; which ones depends on the shard's
        rows alone, so that a shard comes out the same whoever makes it.
        """
        waiting: list[tuple[dict[str, Any], Audio | AudioError]] = []
        codes: dict[int, npt.NDArray[np.int16]] = {}
        groups: dict[int, list[int]] = {}

        def encode(group: list[int]) -> None:
            wavs = [audio.wav for i in group if isinstance(audio := waiting[i][1], Audio)]
            for i, found in zip(group, self.codec.encode_clips(wavs), strict=True):
                codes[i] = found

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
                    codes[i] = self.codec.encode_track(outcome.wav)
            # Bounded: no more clips wait for company than this.
            if not groups or len(waiting) >= 8 * self.settings.batch_clips:
                yield from finished()
        yield from finished()

    def _decoded(
        self, rows: pa.Table, sample_rate: int
    ) -> Iterator[tuple[dict[str, Any], Audio | AudioError]]:
        """Each row with its audio at `sample_rate`, or its refusal; decoded a few ahead."""
        ahead: deque[tuple[dict[str, Any], Future[Audio | AudioError]]] = deque()
        with ThreadPoolExecutor(self.settings.decode_threads) as pool:
            for row in rows.to_pylist():
                ahead.append((row, pool.submit(self._decode, row, sample_rate)))
                if len(ahead) > 2 * self.settings.decode_threads:
                    done_row, future = ahead.popleft()
                    yield done_row, future.result()
            for done_row, future in ahead:
                yield done_row, future.result()

    def _decode(self, row: Mapping[str, Any], sample_rate: int) -> Audio | AudioError:
        settings = self.settings
        try:
            with _on_disk(row["audio_uri"]) as path:
                audio = read_audio(path, row["start_s"], row["end_s"], settings.max_duration_s)
            check_audio(
                audio.wav,
                audio.sample_rate,
                settings.min_duration_s,
                settings.max_duration_s,
                settings.silence_dbfs,
            )
        except AudioError as error:
            if error.reason == "missing" and remote_uri(row["audio_uri"]) is None:
                _check_folder(Path(row["audio_uri"]).parent)
            return error
        wav = resample(audio.wav, audio.sample_rate, sample_rate)
        if not wav.size:
            return AudioError("too_short", f"{audio.wav.size} samples at {audio.sample_rate} Hz")
        return audio._replace(wav=wav)


@contextmanager
def _on_disk(uri: str) -> Iterator[Path]:
    """An audio file on a local disk: itself, or for a while a copy of an object.

    Raises:
        AudioError: there is no such object.
        StorageError: the store cannot be reached; tried again.
    """
    if remote_uri(uri) is None:
        yield Path(uri)
        return
    folder, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / f"audio{Path(name).suffix}"
        try:
            copy.write_bytes(open_store(folder).read(name))
        except FileNotFoundError:
            raise AudioError("missing", uri) from None
        try:
            yield copy
        except AudioError as error:
            raise AudioError(error.reason, error.detail.replace(str(copy), uri)) from error


def _check_folder(folder: Path) -> None:
    """The plan saw files there: a folder that is gone or empty is a lost mount, not a lost file.

    Raises:
        StorageError: tried again, as for any store out of reach.
    """
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
        problem = "is empty now"
    except OSError as error:
        problem = str(error.strerror)
    raise StorageError(
        f"audio folder {folder}: {problem}; it held audio when the plan was made: is it mounted?"
    )


_NO_CODES = np.zeros((0, 0), np.int16)


def _refusal(row: Mapping[str, Any], error: AudioError) -> dict[str, Any]:
    fields = ("sample_id", "dataset", "native_id", "source")
    return {name: row[name] for name in fields} | {
        "stage": "audio",
        "reason": error.reason,
        "detail": error.detail,
    }
