"""Audio files in: mono float32 waveforms, or a refusal with its reason.

libsndfile reads wav, flac, ogg, mp3 and aiff, PyAV the containers that it does not know.  A file is
read by its content: a wrong extension does no harm, a file that is not audio is `unreadable`.
Channels are averaged.  Samples beyond full scale are kept as they are.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Waveform = npt.NDArray[np.float32]

REASONS = {
    "missing": "no such file",
    "not_a_file": "a folder or device, not a file",
    "empty_file": "zero bytes",
    "unreadable": "no decoder makes audio of its bytes",
    "truncated": "the file ends before the audio that its header announces",
    "no_samples": "a readable file without a single sample",
    "out_of_range": "the segment starts after the file ends",
    "too_short": "shorter than min_duration_s",
    "too_long": "longer than max_duration_s",
    "non_finite": "holds NaN or infinite samples",
    "silent": "never louder than silence_dbfs",
}
"""Every reason for which audio is refused."""


class AudioError(Exception):
    """A clip that cannot be used; `reason` is a key of `REASONS`, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)  # both as args, so that it pickles
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Audio(NamedTuple):
    """A decoded clip: `wav` float32 [S], its rate in Hz, and the sha256 of the whole file."""

    wav: Waveform
    sample_rate: int
    sha256: str


def read_audio(path: str | Path, start_s: float | None = None, end_s: float | None = None) -> Audio:
    """Decode a file, or its part from `start_s` to `end_s` seconds, as mono at its own rate.

    An `end_s` past the file's end gives what there is.

    Raises:
        AudioError: missing, not_a_file, empty_file, unreadable, truncated, no_samples or
            out_of_range.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError("missing", str(path))
    if not path.is_file():
        raise AudioError("not_a_file", str(path))
    size = path.stat().st_size
    if size == 0:
        raise AudioError("empty_file", str(path))
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_riff_length(file, size)
            file.seek(0)
            wav, rate = _decode(file, path, start_s or 0.0, end_s)
    except OSError as error:
        raise AudioError("unreadable", f"{path}: {error}") from error
    if wav.size == 0:
        raise AudioError("no_samples", str(path))
    return Audio(wav, rate, digest)


def check_audio(
    wav: Waveform,
    sample_rate: int,
    min_duration_s: float,
    max_duration_s: float,
    silence_dbfs: float = -80.0,
) -> None:
    """Refuse what no model should learn from; `wav` is float32 [S].

    Raises:
        AudioError: too_short, too_long, non_finite or silent (peak at or below `silence_dbfs`).
    """
    duration = wav.size / sample_rate
    if duration < min_duration_s:
        raise AudioError("too_short", f"{duration:.6g} s, expected at least {min_duration_s:g} s")
    if duration > max_duration_s:
        raise AudioError("too_long", f"{duration:.6g} s, expected at most {max_duration_s:g} s")
    if not np.isfinite(wav).all():
        bad = int(np.flatnonzero(~np.isfinite(wav))[0])
        raise AudioError("non_finite", f"first at {bad / sample_rate:.3f} s")
    peak = float(np.abs(wav).max())
    if peak <= 10 ** (silence_dbfs / 20):
        raise AudioError("silent", f"peak {peak:.3g}, expected above {silence_dbfs:g} dBFS")


def resample(wav: Waveform, from_rate: int, to_rate: int) -> Waveform:
    """`wav` float32 [S] at another rate (soxr, very high quality); rates in Hz."""
    if from_rate == to_rate:
        return wav
    return np.asarray(soxr.resample(wav, from_rate, to_rate, quality="VHQ"), dtype=np.float32)


def _decode(
    file: BinaryIO, path: Path, start_s: float, end_s: float | None
) -> tuple[Waveform, int]:
    try:
        with soundfile.SoundFile(file) as sound:
            rate = int(sound.samplerate)
            start = round(start_s * rate)
            stop = sound.frames if end_s is None else min(round(end_s * rate), sound.frames)
            if sound.frames and start >= sound.frames:
                raise AudioError(
                    "out_of_range", f"{path}: {sound.frames / rate:.3f} s, asked from {start_s:g} s"
                )
            try:
                sound.seek(start)
                samples = sound.read(max(stop - start, 0), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                # The header was understood: what fails after it is a damaged body.
                raise AudioError("truncated", f"{path}: {error.error_string}") from error
            if len(samples) < stop - start:
                raise AudioError(
                    "truncated", f"{path}: {len(samples)} of {stop - start} samples decode"
                )
    except soundfile.LibsndfileError as error:
        file.seek(0)
        return _decode_container(file, path, start_s, end_s, error.error_string)
    return _downmix(samples), rate


def _decode_container(
    file: BinaryIO, path: Path, start_s: float, end_s: float | None, first_error: str
) -> tuple[Waveform, int]:
    """m4a, mp4, webm and what else FFmpeg knows; decodes from the start of the file."""
    import av  # heavy, and most catalogs never need it
    from av.error import FFmpegError

    blocks: list[Waveform] = []
    rate = 0
    try:
        with av.open(file, mode="r") as container:
            if not container.streams.audio:
                raise AudioError("unreadable", f"{path}: {first_error}")
            planar: av.AudioResampler | None = None
            for frame in container.decode(container.streams.audio[0]):
                if planar is None:
                    rate = frame.sample_rate
                    planar = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                blocks += [
                    _downmix(np.asarray(part.to_ndarray().T, dtype=np.float32))
                    for part in planar.resample(frame)
                ]
    except FFmpegError as error:
        if blocks:
            raise AudioError("truncated", f"{path}: {error}") from error
        raise AudioError("unreadable", f"{path}: {first_error}") from error
    if not blocks:
        raise AudioError("no_samples", str(path))
    wav = np.concatenate(blocks)
    start = round(start_s * rate)
    if start >= wav.size:
        raise AudioError(
            "out_of_range", f"{path}: {wav.size / rate:.3f} s, asked from {start_s:g} s"
        )
    return wav[start : None if end_s is None else round(end_s * rate)], rate


def _downmix(samples: npt.NDArray[np.float32]) -> Waveform:
    """Samples [S, C] -> the mean of the channels [S]."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32)
    return samples.mean(axis=1, dtype=np.float32)


def _check_riff_length(file: BinaryIO, size: int) -> None:
    """Refuse a wav whose data chunk runs past the end of the file (libsndfile would shorten it).

    Writers that stream leave 0xFFFFFFFF as length: those are read to the end of the file.
    """
    file.seek(0)
    if file.read(4) != b"RIFF" or file.seek(8) != 8 or file.read(4) != b"WAVE":
        return
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        if name == b"data":
            found = size - file.tell()
            # 1 byte of grace: the pad byte of an odd chunk is often left out.
            if length != 0xFFFFFFFF and length > found + 1:
                raise AudioError("truncated", f"{found} of {length} bytes of audio")
            return
        file.seek(length + length % 2, 1)
