"""Decode one clip of the shards to a wav file."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from common.codec import (
    LEFT_CONTEXT_S,
    RIGHT_CONTEXT_FRAMES,
    WINDOW_S,
    Codec,
    codec_identity,
    load_codec,
)
from common.errors import AttuneError
from common.shards import read_summary
from common.storage import Store
from pipeline.inspect.shards import find_sample


def export_audio(
    store: Store,
    codec_path: str,
    sample_id: str,
    out: str | None = None,
    as_float: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Decode one sample to a wav file.

    Args:
        sample_id: the id, or a unique prefix of it.
        out: the file, `*.wav`; None: `<sample id>.wav` in the current folder.
        as_float: 32-bit float samples; else 16-bit integers, clipped at full scale.
        force: replace an existing file.

    Returns:
        out, sample_id, sample_rate, seconds, peak (of the decoded wave; 1 is full scale), clipped
        (number of samples that 16 bits cannot hold), encoding.

    Raises:
        AttuneError: no such sample, the shards have another codec, or `out` cannot be written.
    """
    if out and check_target(out, force).suffix.lower() != ".wav":
        raise AttuneError(f"{out}: only wav is written; give --out a name that ends with .wav")
    summary = read_summary(store)
    codec = load_shard_codec(store, codec_path, summary)
    row, sample = find_sample(store, sample_id)
    out = out or f"{row['sample_id']}.wav"
    path = check_target(out, force)
    wave = decode_clip(codec, sample.codes, row["duration_s"])
    buffer = io.BytesIO()
    subtype = "FLOAT" if as_float else "PCM_16"
    soundfile.write(buffer, wave, codec.sample_rate, format="WAV", subtype=subtype)
    data = buffer.getvalue()
    write_file(path, _without_time(data) if as_float else data)
    return {
        "out": str(path),
        "sample_id": row["sample_id"],
        "sample_rate": codec.sample_rate,
        "seconds": len(wave) / codec.sample_rate,
        "peak": float(np.abs(wave).max(initial=0.0)),
        "clipped": 0 if as_float else int((np.abs(wave) > 1).sum()),
        "encoding": "float32" if as_float else "pcm16",
    }


def _without_time(wav: bytes) -> bytes:
    """Without the time that libsndfile writes into float files: equal clips give equal files."""
    before, peak, after = wav.partition(b"PEAK")  # then size, version, time: 4 bytes each
    return before + peak + after[:8] + bytes(4) + after[12:] if peak else wav


def load_shard_codec(store: Store, codec_path: str, summary: dict[str, Any]) -> Codec:
    """The recipe's codec, on the CPU.

    Raises:
        AttuneError: the shards were made with another codec, or it cannot be loaded.
    """
    found = codec_identity(codec_path)
    if found != summary["codec_id"]:
        raise AttuneError(
            f"{store.uri}: its shards were made with codec {summary['codec_id']}, but {codec_path} "
            f"is codec {found}; give the folder of the shards' codec as codec.path=FOLDER"
        )
    return load_codec(codec_path)


def decode_clip(
    codec: Codec, codes: NDArray[np.int16], duration_s: float | None = None
) -> NDArray[np.float32]:
    """Decode one clip.

    A clip longer than `WINDOW_S` is decoded in windows, as `Codec.encode_track` encodes it, so
    memory does not grow with its length.

    Args:
        codes: int16 [K, T], T >= 1.
        duration_s: length of the clip, to cut the padding of the last frame; None: keep it.

    Returns:
        float32 [round(duration_s * sample_rate)], or [T * hop].
    """
    total = codes.shape[1]
    keep = round(WINDOW_S * codec.frame_rate)
    left = round(LEFT_CONTEXT_S * codec.frame_rate)
    frames = torch.from_numpy(codes.astype(np.int64))[None]
    pieces = []
    for start in range(0, total, keep):
        stop = min(total, start + keep)
        first, last = max(0, start - left), min(total, stop + RIGHT_CONTEXT_FRAMES)
        wave = codec.decode(frames[:, :, first:last])[0]
        pieces.append(wave[(start - first) * codec.hop : (stop - first) * codec.hop])
    whole = torch.cat(pieces).cpu().numpy()
    return whole if duration_s is None else whole[: round(duration_s * codec.sample_rate)]


def write_file(path: Path, data: bytes) -> None:
    """Write a local file, whole or not at all.

    Raises:
        AttuneError: the file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise AttuneError(f"{path}: cannot write it: {error.strerror}") from error


def check_target(out: str, force: bool) -> Path:
    """Check, before long work, that a file can be written.

    Raises:
        AttuneError: not a local file, no such folder, or the file exists and `force` is not given.
    """
    path = Path(out).expanduser()
    if "://" in out:
        raise AttuneError(f"{out}: expected a file on this machine; copy it to a bucket afterwards")
    if path.is_dir():
        raise AttuneError(f"{out}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise AttuneError(f"{out}: there is no folder {path.parent}; create it first")
    if path.exists() and not force:
        raise AttuneError(
            f"{out}: exists already; name another file with --out, or replace it with --force"
        )
    return path
