"""Audio files in: mono float32 waveforms, or a refusal with its reason.

libsndfile reads wav, flac, ogg, mp3 and aiff, PyAV the containers that it does not know.  A file is
read by its content: a wrong extension does no harm, a file that is not audio is `unreadable`.
Channels are averaged.  Samples beyond full scale are kept as they are.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Waveform = npt.NDArray[np.float32]

_BLOCK_VALUES = 1 << 22
"""Decoded at a time: what a header announces is not allocated before it is there."""
_MAX_SAMPLES_PER_BYTE = 10_000
"""More than any codec reaches on digital silence."""
_UNKNOWN_LENGTH = 2**63 - 1
"""What libsndfile gives for a FLAC stream that states none."""
_STREAMED_WAV = (0, 0x7FFFF000, 0x7FFFFFFF)
"""Data lengths left by writers that could not go back to fill them in; also those near 2**32."""

REASONS = {
    "missing": "no such file",
    "not_a_file": "a folder or device, not a file",
    "empty_file": "zero bytes",
    "unreadable": "no decoder makes audio of its bytes, or no permission to read them",
    "truncated": "the file ends before the audio that its header or its pages announce",
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


def read_audio(
    path: str | Path,
    start_s: float | None = None,
    end_s: float | None = None,
    max_duration_s: float | None = None,
) -> Audio:
    """Decode a file, or its part from `start_s` to `end_s` seconds, as mono at its own rate.

    An `end_s` past the file's end gives what there is.  With `max_duration_s`, longer audio is
    refused without being decoded to its end.

    Raises:
        AudioError: missing, not_a_file, empty_file, unreadable, truncated, no_samples,
            out_of_range or too_long.
        OSError: the disk's or the machine's fault, not the file's (an I/O error, a stale mount, too
            many open files).
    """
    path = Path(path)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise AudioError("not_a_file", str(path))
        if found.st_size == 0:
            raise AudioError("empty_file", str(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_length(file, found.st_size)
            file.seek(0)
            part = _Part(start_s or 0.0, end_s, max_duration_s)
            wav, rate = _decode(file, path, found.st_size, part)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("missing", str(path)) from None
    except PermissionError as error:
        raise AudioError("unreadable", f"{path}: {error.strerror}") from error
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


class _Part(NamedTuple):
    """What of a file is asked for, in seconds."""

    start_s: float
    end_s: float | None
    max_duration_s: float | None

    def check_length(self, samples: int, rate: int) -> None:
        """Refuse a part of at least so many samples if that is too long already."""
        if self.max_duration_s is not None and samples / rate > self.max_duration_s:
            raise AudioError(
                "too_long", f"{samples / rate:.6g} s, expected at most {self.max_duration_s:g} s"
            )


def _decode(file: BinaryIO, path: Path, size: int, part: _Part) -> tuple[Waveform, int]:
    try:
        with soundfile.SoundFile(file) as sound:
            # Streamed files state no length: libsndfile takes that for nothing (wav), or cannot
            # seek in them (flac); FFmpeg reads them to their end.
            if 0 < sound.frames < _UNKNOWN_LENGTH:
                return _decode_sound(sound, path, size, part), int(sound.samplerate)
            first_error = "states no length"
    except soundfile.LibsndfileError as error:
        first_error = error.error_string
    file.seek(0)
    return _decode_container(file, path, part, first_error)


def _decode_sound(sound: soundfile.SoundFile, path: Path, size: int, part: _Part) -> Waveform:
    rate, frames = int(sound.samplerate), int(sound.frames)
    if frames > _MAX_SAMPLES_PER_BYTE * size:
        raise AudioError("unreadable", f"{path}: announces {frames} samples in {size} bytes")
    start = round(part.start_s * rate)
    stop = frames if part.end_s is None else min(round(part.end_s * rate), frames)
    if start >= frames:
        raise AudioError(
            "out_of_range", f"{path}: {frames / rate:.3f} s, asked from {part.start_s:g} s"
        )
    wanted = max(stop - start, 0)
    part.check_length(wanted, rate)
    block = max(1, _BLOCK_VALUES // sound.channels)
    blocks = [np.zeros(0, np.float32)]
    got = 0
    try:
        sound.seek(start)
        while got < wanted:
            samples = sound.read(min(block, wanted - got), dtype="float32", always_2d=True)
            if not len(samples):
                break
            blocks.append(_downmix(samples))
            got += len(samples)
    except soundfile.LibsndfileError as error:
        # The header was understood: what fails after it is a damaged body.
        raise AudioError("truncated", f"{path}: {error.error_string}") from error
    if got < wanted:
        raise AudioError("truncated", f"{path}: {got} of {wanted} samples decode")
    return np.concatenate(blocks)


def _decode_container(
    file: BinaryIO, path: Path, part: _Part, first_error: str
) -> tuple[Waveform, int]:
    """m4a, mp4, webm and what else FFmpeg knows; decodes from the start of the file."""
    import av  # heavy, and most catalogs never need it
    from av.error import FFmpegError

    blocks: list[Waveform] = []
    rate = decoded = 0
    try:
        with av.open(file, mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError("unreadable", f"{path}: {first_error}")
            planar: av.AudioResampler | None = None
            for frame in container.decode(container.streams.audio[0]):
                if planar is None:
                    rate = frame.sample_rate
                    planar = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                for piece in planar.resample(frame):
                    blocks.append(_downmix(np.asarray(piece.to_ndarray().T, dtype=np.float32)))
                    decoded += blocks[-1].size
                if part.end_s is not None and decoded >= round(part.end_s * rate):
                    break
                part.check_length(decoded - round(part.start_s * rate), rate)
    except (FFmpegError, ValueError, OverflowError) as error:
        # Besides its own errors PyAV raises plain ones for text or numbers that make no sense.
        if blocks:
            raise AudioError("truncated", f"{path}: {error}") from error
        raise AudioError("unreadable", f"{path}: {first_error}") from error
    if not blocks:
        raise AudioError("no_samples", str(path))
    wav = np.concatenate(blocks)
    start = round(part.start_s * rate)
    if start >= wav.size:
        raise AudioError(
            "out_of_range", f"{path}: {wav.size / rate:.3f} s, asked from {part.start_s:g} s"
        )
    stop = None if part.end_s is None else round(part.end_s * rate)
    return wav[start:stop], rate


def _downmix(samples: npt.NDArray[np.float32]) -> Waveform:
    """Samples [S, C] -> the mean of the channels [S]."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32)
    return samples.mean(axis=1, dtype=np.float32)


def _check_length(file: BinaryIO, size: int) -> None:
    """Refuse files that end too early in formats of which libsndfile gives the rest as a whole."""
    file.seek(0)
    magic = file.read(12)
    if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
        _check_wav_length(file, size)
    elif magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        length = int.from_bytes(magic[4:8], "big")
        if length + 8 > size + 1:  # the pad byte may be left out
            raise AudioError("truncated", f"{size} of {length + 8} bytes")
    elif magic[:4] == b"OggS":
        _check_ogg_end(file, size)


def _check_wav_length(file: BinaryIO, size: int) -> None:
    """The data chunk must not run past the end of the file; streamed ones go to the end."""
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        if name == b"data":
            found = size - file.tell()
            streamed = length in _STREAMED_WAV or length >= 0xFFFFFF00
            # 1 byte of grace: the pad byte of an odd chunk is often left out.
            if not streamed and length > found + 1:
                raise AudioError("truncated", f"{found} of {length} bytes of audio")
            return
        file.seek(length + length % 2, 1)


def _check_ogg_end(file: BinaryIO, size: int) -> None:
    """The last page (RFC 3533) must be whole and bear the end-of-stream flag."""
    file.seek(max(0, size - 2 * 65_307))  # two pages of the largest size: one begins in there
    tail = file.read()
    at = tail.rfind(b"OggS\0")
    header = tail[at : at + 27]
    if at < 0 or len(header) < 27:
        raise AudioError("truncated", "ends inside an Ogg page")
    lacing = tail[at + 27 : at + 27 + header[26]]
    if len(lacing) < header[26] or at + 27 + header[26] + sum(lacing) > len(tail):
        raise AudioError("truncated", "ends inside an Ogg page")
    if not header[5] & 4:
        raise AudioError("truncated", "its last Ogg page is not the end of a stream")
