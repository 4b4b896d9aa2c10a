"""Audio files to mono float32 waveforms, or to a refusal with its reason.

libsndfile reads wav, flac, ogg, mp3 and aiff; PyAV reads other containers. Only the content of a
file counts: a wrong extension does no harm, and a file that is not audio is `unreadable`. The first
of several audio tracks is read. Channels are mixed down to their mean: if only one of N channels
has sound, the result is 1/N as loud, and two channels of opposite phase cancel out. Samples beyond
full scale are kept. To read a segment, the decoder seeks instead of decoding everything before it.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from common.audio_length import missing_end, states_mp3_length

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Wave = NDArray[np.float32]
"""float32 [S], mono."""
Waveform = Wave

AUDIO_EXTENSIONS = frozenset({
    ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac",
    ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpga", ".oga", ".ogg",
    ".ogv", ".opus", ".ra", ".snd", ".w64", ".wav", ".wave", ".webm", ".wma", ".wv",
})  # fmt: skip
"""Extensions (lower case) that a search through folders takes for audio; folders may also hold
metadata, text and pictures."""

_BLOCK_VALUES = 1 << 22
"""Values that are decoded at a time: a header's length is not allocated before it is decoded."""
_MAX_SAMPLES_PER_BYTE = 10_000
"""More than any codec reaches, even on digital silence."""
_UNKNOWN_LENGTH = 2**63 - 1
"""libsndfile's value for a FLAC stream that states no length."""
_RATES = (1_000, 768_000)
"""Hz. A header with another rate is damaged; resampling would return huge or empty results."""
_FULL_SCALE = 32767 / 32768
"""The largest 16-bit value: a clipping converter outputs it."""
_LEAD_S = 1.0
"""Decoded before a segment and discarded, because some codecs depend on earlier samples: MP3's bit
reservoir, the overlap of AAC, the predictors of Opus."""
_SEEK_FROM_S = 5.0
"""Segments that start earlier are decoded from the file's start, which is exact for any clock."""
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers with a time index; in others (raw AAC, MPEG-TS) a seek is a guess."""
_CLOSED = {"protocol_whitelist": "none"}
"""A playlist must not make FFmpeg open other files, here or on the network."""
_SETTLED_S = 2.0
"""If a file older than this changes again, its modification time changes, on any clock."""

REASONS = {
    "missing": "no such file",
    "not_a_file": "a folder or device, not a file",
    "empty_file": "zero bytes",
    "unreadable": "no decoder makes audio of its bytes, or no permission to read them",
    "truncated": "the file ends before the audio that its header or its pages announce",
    "no_samples": "a readable file without a single sample",
    "out_of_range": "the segment starts before the file or after its end, or ends before it starts",
    "too_short": "shorter than min_duration_s",
    "too_long": "longer than max_duration_s",
    "non_finite": "holds NaN or infinite samples",
    "silent": "never louder than silence_dbfs, apart from a constant offset",
    "clipped": "more of its values than max_clipped_share are at full scale",
    "dc_offset": "its constant offset is beyond max_dc_offset",
}
"""Every reason for refusing audio."""


class AudioError(Exception):
    """A clip that cannot be used; `reason` is a key of `REASONS`, `detail` is what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)  # both as args, so that it pickles
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class AudioNotes(NamedTuple):
    """Measurements of a clip before it is resampled; by themselves they do not make it unusable."""

    peak_dbfs: float
    """Peak of the loudest channel, in hundredths; -inf for digital silence."""
    clipped_share: float
    """Share of the values of all channels at or beyond full scale, in millionths."""
    dc_offset: float
    """Mean of the mono waveform, in millionths of full scale."""


class Audio(NamedTuple):
    """A decoded clip: `wav` float32 [S], its rate in Hz, and the sha256 of the whole file."""

    wav: Wave
    sample_rate: int
    sha256: str
    notes: AudioNotes
    wave_sha256: str
    """Hash of the rate and of `wav`: equal for two files of the same samples, a wav and a flac."""


def read_audio(
    path: str | Path,
    start_s: float | None = None,
    end_s: float | None = None,
    max_duration_s: float | None = None,
) -> Audio:
    """Decode a file, or its part from `start_s` to `end_s` seconds, as mono at its own rate.

    If `end_s` is past the file's end, the part ends with the file. With `max_duration_s`, longer
    audio is refused before it is decoded to its end.

    Raises:
        AudioError: missing, not_a_file, empty_file, unreadable, truncated, no_samples,
            out_of_range or too_long.
        OSError: the disk or the machine failed, not the file (an I/O error, a stale mount, too many
            open files).
    """
    path = Path(path)
    part = _Part(start_s or 0.0, end_s, max_duration_s)
    with file_faults(str(path)):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise AudioError("not_a_file", str(path))
        if found.st_size == 0:
            raise AudioError("empty_file", str(path))
        with path.open("rb") as file:
            digest = _sha256(file, path, os.fstat(file.fileno()))
            clip = _decode_whole(file, str(path), found.st_size, part)
    wav = clip.wav()
    samples = hashlib.sha256(f"{clip.rate} Hz ".encode() + wav.astype("<f4").tobytes()).hexdigest()
    return Audio(wav, clip.rate, digest, clip.notes(wav), samples)


@contextmanager
def file_faults(path: str) -> Iterator[None]:
    """Turn an OSError that is the file's fault into an `AudioError`; others pass unchanged."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("missing", path) from None
    except PermissionError as error:
        raise AudioError("unreadable", f"{path}: {error.strerror}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # no machine could open it
            raise AudioError("missing", f"{path}: {error.strerror}") from None
        raise


def read_part(
    file: BinaryIO, name: str, size: int, start_s: float = 0.0, end_s: float | None = None
) -> tuple[Wave, int]:
    """Decode a part of an open, seekable file like `read_audio`, without hash and notes.

    Args:
        file: a file on a disk, or an object of a store.
        name: for messages.
        size: bytes.

    Returns:
        float32 [S] and its rate in Hz.

    Raises:
        AudioError: as `read_audio`.
    """
    if size == 0:
        raise AudioError("empty_file", name)
    clip = _decode_whole(file, name, size, _Part(start_s, end_s, None))
    return clip.wav(), clip.rate


def stated_length_s(file: BinaryIO) -> float | None:
    """Seconds of an open file as its header states them; None if it does not. Nothing is decoded. A
    container's header may be wrong by a frame or more."""
    import av
    from av.error import FFmpegError

    try:
        file.seek(0)
        with soundfile.SoundFile(file) as sound:
            if _states_length(sound, file):
                return int(sound.frames) / int(sound.samplerate)
    except soundfile.LibsndfileError:
        pass
    try:
        with _open_container(file) as container:
            stream = container.streams.audio[0] if container.streams.audio else None
            if stream is not None and stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return container.duration / av.time_base if container.duration else None
    except (FFmpegError, ValueError, OverflowError):
        return None


def check_audio(
    wav: Wave,
    sample_rate: int,
    min_duration_s: float,
    max_duration_s: float,
    silence_dbfs: float = -80.0,
) -> None:
    """Refuse audio that no model should learn from; `wav` is float32 [S].

    Raises:
        AudioError: too_short, too_long, non_finite, or silent (half the range of its values is at
            or below `silence_dbfs`, so a constant offset is silence at any level).
    """
    duration = wav.size / sample_rate
    if duration < min_duration_s:
        raise AudioError("too_short", f"{duration:.6g} s, expected at least {min_duration_s:g} s")
    if duration > max_duration_s:
        raise AudioError("too_long", f"{duration:.6g} s, expected at most {max_duration_s:g} s")
    if not np.isfinite(wav).all():
        bad = int(np.flatnonzero(~np.isfinite(wav))[0])
        raise AudioError("non_finite", f"first at {bad / sample_rate:.3f} s")
    # The level of a single sample is its value.
    swing = (float(wav.max()) - float(wav.min())) / 2 if wav.size > 1 else float(abs(wav[0]))
    if swing <= 10 ** (silence_dbfs / 20):
        raise AudioError("silent", f"peak {swing:.3g}, expected above {silence_dbfs:g} dBFS")


def check_notes(
    notes: AudioNotes, max_clipped_share: float = 1.0, max_dc_offset: float = 1.0
) -> None:
    """Refuse a clip by its notes; the defaults refuse nothing.

    Raises:
        AudioError: clipped or dc_offset.
    """
    if notes.clipped_share > max_clipped_share:
        raise AudioError(
            "clipped",
            f"{notes.clipped_share:.4%} of the values are at full scale, expected at most "
            f"{max_clipped_share:.4%}",
        )
    if abs(notes.dc_offset) > max_dc_offset:
        raise AudioError(
            "dc_offset", f"{notes.dc_offset:g} of full scale, expected at most {max_dc_offset:g}"
        )


def resample(wav: Wave, from_rate: int, to_rate: int) -> Wave:
    """`wav` float32 [S] at another rate in Hz.

    soxr's very high quality (VHQ, 28 bits, linear phase): flat up to 91% of the lower Nyquist
    frequency, and nothing above that frequency remains.
    """
    if from_rate == to_rate:
        return wav
    return np.asarray(soxr.resample(wav, from_rate, to_rate, quality="VHQ"), dtype=np.float32)


class _Part:
    """The part of a file to read, in seconds.

    Raises:
        AudioError: no file can have these times.
    """

    def __init__(self, start_s: float, end_s: float | None, max_duration_s: float | None) -> None:
        self.start_s, self.max_duration_s = start_s, max_duration_s
        self.end_s = math.inf if end_s is None else end_s
        if not (0 <= start_s < math.inf and start_s < self.end_s):
            raise AudioError("out_of_range", f"asked from {start_s:g} s to {self.end_s:g} s")

    def check_length(self, samples: int, rate: int) -> None:
        """Refuse the part if this many samples are already too long."""
        if self.max_duration_s is not None and samples / rate > self.max_duration_s:
            raise AudioError(
                "too_long", f"{samples / rate:.6g} s, expected at most {self.max_duration_s:g} s"
            )

    def samples(self, rate: int) -> tuple[int, float]:
        """The first sample, and the sample after the last (infinity: the end of the file)."""
        end = self.end_s * rate  # infinite for a very large time too, and round() refuses infinity
        return round(self.start_s * rate), round(end) if end < math.inf else end

    def out_of_range(self, path: str, samples: int, rate: int) -> AudioError:
        """The file has only this many samples."""
        found = f"{samples / rate:.3f} s, asked from {self.start_s:g} s"
        return AudioError("out_of_range", f"{path}: {found}")


class _Clip:
    """Decoded samples as mono, and measurements of them before they are mixed."""

    def __init__(self) -> None:
        self.rate = 0
        self.size = 0
        self._blocks: list[Wave] = []
        self._peak = 0.0
        self._clipped = self._values = 0

    def add(self, samples: NDArray[np.float32]) -> None:
        """Add samples [S, C]."""
        if not len(samples):
            return
        level = np.abs(samples)
        self._peak = max(self._peak, float(level.max()))
        self._clipped += int(np.count_nonzero(level >= _FULL_SCALE))
        self._values += samples.size
        mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
        self._blocks.append(np.ascontiguousarray(mono))
        self.size += len(samples)

    def wav(self) -> Wave:
        return np.concatenate([np.zeros(0, np.float32), *self._blocks])

    def notes(self, wav: Wave) -> AudioNotes:
        with np.errstate(invalid="ignore"):  # `check_audio` refuses infinite samples
            offset = float(wav.mean(dtype=np.float64))
        # Rounded, because the last bits of a mean depend on the processor.
        return AudioNotes(
            peak_dbfs=round(20 * math.log10(self._peak), 2) if self._peak else -math.inf,
            clipped_share=round(self._clipped / self._values, 6),
            dc_offset=round(offset, 6) + 0.0,  # no negative zero
        )


def _sha256(file: BufferedReader, path: Path, found: os.stat_result) -> str:
    """Hash of the whole file; cached, because a long recording is read one segment at a time."""
    if time.time() - max(found.st_mtime, found.st_ctime) < _SETTLED_S:
        return hashlib.file_digest(file, "sha256").hexdigest()
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _settled_sha256(path, identity)


@lru_cache(maxsize=4096)
def _settled_sha256(path: Path, identity: tuple[int, ...]) -> str:
    """The file is unchanged while `identity` is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_whole(file: BinaryIO, path: str, size: int, part: _Part) -> _Clip:
    """Decode a part of a file; refuse the file if its end is missing."""
    if missing := missing_end(file, size):
        raise AudioError("truncated", f"{path}: {missing}")
    file.seek(0)
    clip = _decode(file, path, size, part)
    if clip.size == 0:
        raise AudioError("no_samples", path)
    return clip


def _states_length(sound: soundfile.SoundFile, file: BinaryIO) -> bool:
    """Whether libsndfile knows the length of a file.

    Streamed files state no length. libsndfile then finds no samples (wav), cannot seek (flac), or
    guesses from the first frame and stops there (mp3 of variable rate). FFmpeg reads such files to
    their end.
    """
    guessed = sound.format == "MP3" and not states_mp3_length(file)
    return 0 < sound.frames < _UNKNOWN_LENGTH and not guessed


def _decode(file: BinaryIO, path: str, size: int, part: _Part) -> _Clip:
    try:
        with soundfile.SoundFile(file) as sound:
            if _states_length(sound, file):
                return _decode_sound(sound, path, size, part)
            first_error = "states no length"
    except soundfile.LibsndfileError as error:
        first_error = error.error_string
    for seek in (True, False):
        clip = _decode_container(file, path, part, first_error, seek)
        if clip is not None:
            return clip
    raise AssertionError("without a seek it always decodes")


def _check_rate(rate: int, path: str) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError("unreadable", f"{path}: announces a rate of {rate} Hz")


def _decode_sound(sound: soundfile.SoundFile, path: str, size: int, part: _Part) -> _Clip:
    clip = _Clip()
    rate, frames = int(sound.samplerate), int(sound.frames)
    clip.rate = rate
    _check_rate(rate, path)
    if frames > _MAX_SAMPLES_PER_BYTE * size:
        raise AudioError("unreadable", f"{path}: announces {frames} samples in {size} bytes")
    start, stop = part.samples(rate)
    if start >= frames:
        raise part.out_of_range(path, frames, rate)
    wanted = int(min(stop, frames)) - start
    part.check_length(wanted, rate)
    block = max(1, _BLOCK_VALUES // sound.channels)
    # For other codecs libsndfile itself decodes what comes before.
    lead = round(_LEAD_S * rate) if sound.subtype.startswith("MPEG") else 0
    try:
        while clip.size < wanted:
            ahead = min(start + clip.size, lead)
            count = ahead + min(block, wanted - clip.size)
            # soundfile seeks after each read, which restarts the decoder: every block has a lead.
            sound.seek(start + clip.size - ahead)
            samples = sound.read(count, dtype="float32", always_2d=True)[ahead:]
            if not len(samples):
                break
            clip.add(samples)
    except soundfile.LibsndfileError as error:
        # The header was read, so the data after it is damaged.
        raise AudioError("truncated", f"{path}: {error.error_string}") from error
    if clip.size < wanted:
        raise AudioError("truncated", f"{path}: {clip.size} of {wanted} samples decode")
    return clip


def _open_container(file: BinaryIO) -> InputContainer:
    """Open a file with FFmpeg, from its start and without its name: FFmpeg trusts extensions and
    looks for other files beside it."""
    import av  # heavy, and most catalogs never need it

    file.seek(0)
    nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    return av.open(nameless, mode="r", metadata_errors="ignore", options=_CLOSED)


def _decode_container(
    file: BinaryIO, path: str, part: _Part, first_error: str, seek: bool
) -> _Clip | None:
    """Decode m4a, mp4, webm and everything else that FFmpeg reads; None: call without `seek`."""
    import av
    from av.error import FFmpegError

    clip = _Clip()
    at = 0
    decoded = False
    try:
        with _open_container(file) as container:
            if not container.streams.audio:
                raise AudioError("unreadable", f"{path}: {first_error}; no audio track")
            stream = container.streams.audio[0]
            frames: Iterator[AudioFrame] = container.decode(stream)
            if seek and part.start_s > _SEEK_FROM_S and container.format.name in _SEEKABLE:
                found = _seek(container, stream, part.start_s)
                if found is None:
                    return None
                at, frames = found
            planar: av.AudioResampler | None = None
            for frame in frames:
                if planar is None:
                    clip.rate = frame.sample_rate
                    _check_rate(clip.rate, path)
                    start, stop = part.samples(clip.rate)
                    planar = av.AudioResampler("fltp", frame.layout, clip.rate)
                decoded = True
                for piece in planar.resample(frame):
                    samples = np.asarray(piece.to_ndarray().T, dtype=np.float32)
                    end = int(max(min(stop - at, len(samples)), 0))
                    clip.add(samples[max(start - at, 0) : end])
                    at += len(samples)
                if at >= stop:
                    break
                part.check_length(clip.size, clip.rate)
    except (FFmpegError, ValueError, OverflowError) as error:
        # PyAV also raises built-in errors, for text or numbers that make no sense.
        if decoded:
            raise AudioError("truncated", f"{path}: {error}") from error
        raise AudioError("unreadable", f"{path}: {first_error}; {error}") from error
    if not decoded:
        raise AudioError("no_samples", path)
    if not clip.size:
        raise part.out_of_range(path, at, clip.rate)
    return clip


def _seek(
    container: InputContainer, stream: AudioStream, start_s: float
) -> tuple[int, Iterator[AudioFrame]] | None:
    """The first sample of a frame some time before `start_s`, and the frames from there on.

    Samples are counted from the first one that decodes. None if the container's clock does not say
    where the frames are; then they must be counted from the start.
    """
    from av.error import FFmpegError

    opening = list(islice(container.decode(stream), 2))
    if len(opening) < 2 or stream.time_base is None:
        return None
    first, second = opening
    if first.pts is None:
        return None
    tick = stream.time_base * first.sample_rate  # in samples
    try:
        # Containers count in 64 bits; no recording is longer than 1e7 s.
        lead = int((min(start_s, 1e7) - _LEAD_S) / stream.time_base)
        container.seek(first.pts + lead, stream=stream)
        frames = container.decode(stream)
        # A decoder may cut the frames right after a seek without moving their time.
        after = list(islice(frames, 3))
    except FFmpegError:
        return None
    if len(after) < 3 or (anchor := after[2]).pts is None:
        return None
    at = float((anchor.pts - first.pts) * tick)
    # A coarse clock (milliseconds in Matroska) makes `at` inexact. Most codecs have frames of one
    # size; then the exact sample is a multiple of that size.
    exact = first.samples + round((at - first.samples) / second.samples) * second.samples
    if anchor.samples == second.samples and abs(exact - at) <= tick + 1:
        at = exact
    if round(at) > start_s * first.sample_rate:
        return None
    return round(at), chain([anchor], frames)
