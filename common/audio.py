"""Audio files in: mono float32 waveforms, or a refusal with its reason.

libsndfile reads wav, flac, ogg, mp3 and aiff, PyAV the containers that it does not know.  A file is
read by its content: a wrong extension does no harm, a file that is not audio is `unreadable`.  Of
several audio tracks the first is taken.  Channels are mixed down to their mean, so one of N that is
alone comes out 1/N as loud, and two of opposite phase come out silent.  Samples beyond full scale
are kept as they are.  A segment is sought, not reached by decoding what lies before it.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Iterator
from functools import lru_cache
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from numpy.typing import NDArray

from common.audio_length import missing_end, states_mp3_length

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Waveform = npt.NDArray[np.float32]

AUDIO_EXTENSIONS = frozenset({
    ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac",
    ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpga", ".oga", ".ogg",
    ".ogv", ".opus", ".ra", ".snd", ".w64", ".wav", ".wave", ".webm", ".wma", ".wv",
})  # fmt: skip
"""Endings (lower case) of the files that a search of folders takes for audio: metadata, text and
pictures may lie beside them."""

_BLOCK_VALUES = 1 << 22
"""Decoded at a time: what a header announces is not allocated before it is there."""
_MAX_SAMPLES_PER_BYTE = 10_000
"""More than any codec reaches on digital silence."""
_UNKNOWN_LENGTH = 2**63 - 1
"""What libsndfile gives for a FLAC stream that states none."""
_RATES = (1_000, 768_000)
"""Hz.  A header with another rate is damaged, and would blow up or vanish in resampling."""
_FULL_SCALE = 32767 / 32768
"""The largest value of 16 bits: what a converter that clips holds on to."""
_LEAD_S = 1.0
"""Decoded ahead of a segment where a codec needs what came before to get into its stride: MP3's
bit reservoir, the overlap of AAC, the predictors of Opus."""
_SEEK_FROM_S = 5.0
"""Containers are decoded from their start up to here, which is exact whatever their clock says."""
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers with an index by time; in others (raw AAC, MPEG-TS) a seek is a guess."""
_CLOSED = {"protocol_whitelist": "none"}
"""A file in the form of a playlist must not make FFmpeg open others, here or on the network."""
_SETTLED_S = 2.0
"""A file older than this that is changed again has another time of change, on any clock."""

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


class AudioNotes(NamedTuple):
    """What is wrong with a clip without making it unusable; of its source, before resampling."""

    peak_dbfs: float
    """Of the loudest channel, in hundredths; -inf for digital silence."""
    clipped_share: float
    """Of the values of all channels, those at full scale or beyond, in millionths."""
    dc_offset: float
    """Mean of the mono waveform, in millionths of full scale."""


class Audio(NamedTuple):
    """A decoded clip: `wav` float32 [S], its rate in Hz, and the sha256 of the whole file."""

    wav: Waveform
    sample_rate: int
    sha256: str
    notes: AudioNotes


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
    part = _Part(start_s or 0.0, end_s, max_duration_s)
    part.check_times()
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise AudioError("not_a_file", str(path))
        if found.st_size == 0:
            raise AudioError("empty_file", str(path))
        with path.open("rb") as file:
            digest = _sha256(file, path, os.fstat(file.fileno()))
            clip = _decode_whole(file, str(path), found.st_size, part)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("missing", str(path)) from None
    except PermissionError as error:
        raise AudioError("unreadable", f"{path}: {error.strerror}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # no other machine would find it
            raise AudioError("missing", f"{path}: {error.strerror}") from None
        raise
    wav = clip.wav()
    return Audio(wav, clip.rate, digest, clip.notes(wav))


def read_part(
    file: BinaryIO, name: str, size: int, start_s: float = 0.0, end_s: float | None = None
) -> tuple[Waveform, int]:
    """The same of an open, seekable file, for one part of many: no hash of it all, no notes.

    Args:
        file: a file on a disk, or an object of a store.
        name: for messages.
        size: bytes.

    Returns:
        float32 [S] and its rate in Hz.

    Raises:
        AudioError: as `read_audio`.
    """
    part = _Part(start_s, end_s, None)
    part.check_times()
    if size == 0:
        raise AudioError("empty_file", name)
    clip = _decode_whole(file, name, size, part)
    return clip.wav(), clip.rate


def stated_length_s(file: BinaryIO) -> float | None:
    """Seconds of an open file as its header states them, None where it does not; nothing is
    decoded, and nothing promised: a container may be wrong about itself by a frame or more."""
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
        file.seek(0)
        with av.open(
            _Nameless(file), mode="r", metadata_errors="ignore", options=_CLOSED
        ) as container:
            stream = container.streams.audio[0] if container.streams.audio else None
            if stream is not None and stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return container.duration / av.time_base if container.duration else None
    except (FFmpegError, ValueError, OverflowError):
        return None


def check_audio(
    wav: Waveform,
    sample_rate: int,
    min_duration_s: float,
    max_duration_s: float,
    silence_dbfs: float = -80.0,
) -> None:
    """Refuse what no model should learn from; `wav` is float32 [S].

    Raises:
        AudioError: too_short, too_long, non_finite or silent (half the range of its values is at
            or below `silence_dbfs`: a constant is silence at any level).
    """
    duration = wav.size / sample_rate
    if duration < min_duration_s:
        raise AudioError("too_short", f"{duration:.6g} s, expected at least {min_duration_s:g} s")
    if duration > max_duration_s:
        raise AudioError("too_long", f"{duration:.6g} s, expected at most {max_duration_s:g} s")
    if not np.isfinite(wav).all():
        bad = int(np.flatnonzero(~np.isfinite(wav))[0])
        raise AudioError("non_finite", f"first at {bad / sample_rate:.3f} s")
    # A lone sample is no constant: it is taken for what it is.
    swing = (float(wav.max()) - float(wav.min())) / 2 if wav.size > 1 else float(abs(wav[0]))
    if swing <= 10 ** (silence_dbfs / 20):
        raise AudioError("silent", f"peak {swing:.3g}, expected above {silence_dbfs:g} dBFS")


def check_notes(
    notes: AudioNotes, max_clipped_share: float = 1.0, max_dc_offset: float = 1.0
) -> None:
    """Refuse by what was noted of a clip; nothing is refused for it unless asked.

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


def resample(wav: Waveform, from_rate: int, to_rate: int) -> Waveform:
    """`wav` float32 [S] at another rate in Hz.

    soxr's very high quality (VHQ, 28 bits, linear phase): flat to 91 % of the lower Nyquist
    frequency, and what lies above that frequency is gone.
    """
    if from_rate == to_rate:
        return wav
    return np.asarray(soxr.resample(wav, from_rate, to_rate, quality="VHQ"), dtype=np.float32)


class _Part(NamedTuple):
    """What of a file is asked for, in seconds."""

    start_s: float
    end_s: float | None
    max_duration_s: float | None

    def check_times(self) -> None:
        """Refuse times that no file can have."""
        ends = math.inf if self.end_s is None else self.end_s
        if not (0 <= self.start_s < math.inf and self.start_s < ends):
            raise AudioError("out_of_range", f"asked from {self.start_s:g} s to {ends:g} s")

    def check_length(self, samples: int, rate: int) -> None:
        """Refuse a part of at least so many samples if that is too long already."""
        if self.max_duration_s is not None and samples / rate > self.max_duration_s:
            raise AudioError(
                "too_long", f"{samples / rate:.6g} s, expected at most {self.max_duration_s:g} s"
            )

    def samples(self, rate: int) -> tuple[int, float]:
        """First sample, and the one after the last: infinity for the end of the file."""
        # A time may lie beyond every sample number there is: no round() of infinity.
        end = math.inf if self.end_s is None else self.end_s * rate
        return round(self.start_s * rate), round(end) if end < math.inf else end


class _Clip:
    """Decoded samples on their way to mono, and what is noted of them before they are mixed."""

    def __init__(self) -> None:
        self.rate = 0
        self.size = 0
        self._blocks: list[Waveform] = []
        self._peak = 0.0
        self._clipped = self._values = 0

    def add(self, samples: npt.NDArray[np.float32]) -> None:
        """Samples [S, C]."""
        if not len(samples):
            return
        level = np.abs(samples)
        self._peak = max(self._peak, float(level.max()))
        self._clipped += int(np.count_nonzero(level >= _FULL_SCALE))
        self._values += samples.size
        self._blocks.append(_downmix(samples))
        self.size += len(samples)

    def wav(self) -> Waveform:
        return np.concatenate([np.zeros(0, np.float32), *self._blocks])

    def notes(self, wav: Waveform) -> AudioNotes:
        with np.errstate(invalid="ignore"):  # infinite samples: refused by `check_audio`
            offset = float(wav.mean(dtype=np.float64))
        # Rounded: the last bits of a mean depend on the processor.
        return AudioNotes(
            peak_dbfs=round(20 * math.log10(self._peak), 2) if self._peak else -math.inf,
            clipped_share=round(self._clipped / self._values, 6),
            dc_offset=round(offset, 6) + 0.0,  # no negative zero
        )


def _sha256(file: BufferedReader, path: Path, found: os.stat_result) -> str:
    """Of the whole file; remembered, for a long recording is asked for one segment at a time."""
    if time.time() - max(found.st_mtime, found.st_ctime) < _SETTLED_S:
        return hashlib.file_digest(file, "sha256").hexdigest()
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _settled_sha256(path, identity)


@lru_cache(maxsize=4096)
def _settled_sha256(path: Path, identity: tuple[int, ...]) -> str:
    """`identity` is what must be the same for the file to be the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_whole(file: BinaryIO, path: str, size: int, part: _Part) -> _Clip:
    """Decode a part of a file that must not have lost its end."""
    if missing := missing_end(file, size):
        raise AudioError("truncated", f"{path}: {missing}")
    file.seek(0)
    clip = _decode(file, path, size, part)
    if clip.size == 0:
        raise AudioError("no_samples", path)
    return clip


def _states_length(sound: soundfile.SoundFile, file: BinaryIO) -> bool:
    """Whether libsndfile knows how long a file is.

    Streamed files state no length: libsndfile takes that for none (wav), cannot seek in them
    (flac), or guesses from the first frame and stops there (mp3 of variable rate); FFmpeg reads
    them to their end.
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
        file.seek(0)
        clip = _decode_container(file, path, part, first_error, seek)
        if clip is not None:
            return clip
    raise AssertionError("decodes from the start where it cannot seek")


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
        raise AudioError(
            "out_of_range", f"{path}: {frames / rate:.3f} s, asked from {part.start_s:g} s"
        )
    wanted = int(min(stop, frames)) - start
    part.check_length(wanted, rate)
    block = max(1, _BLOCK_VALUES // sound.channels)
    # libsndfile itself does this for its other codecs.
    lead = round(_LEAD_S * rate) if sound.subtype.startswith("MPEG") else 0
    try:
        while clip.size < wanted:
            ahead = min(start + clip.size, lead)
            count = ahead + min(block, wanted - clip.size)
            # For every block: soundfile seeks after each read, which restarts the decoder.
            sound.seek(start + clip.size - ahead)
            samples = sound.read(count, dtype="float32", always_2d=True)[ahead:]
            if not len(samples):
                break
            clip.add(samples)
    except soundfile.LibsndfileError as error:
        # The header was understood: what fails after it is a damaged body.
        raise AudioError("truncated", f"{path}: {error.error_string}") from error
    if clip.size < wanted:
        raise AudioError("truncated", f"{path}: {clip.size} of {wanted} samples decode")
    return clip


class _Nameless:
    """A file without its name: FFmpeg believes extensions, and looks for others beside it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _decode_container(
    file: BinaryIO, path: str, part: _Part, first_error: str, seek: bool
) -> _Clip | None:
    """m4a, mp4, webm and what else FFmpeg knows; None: try again without `seek`."""
    import av  # heavy, and most catalogs never need it
    from av.error import FFmpegError

    clip = _Clip()
    at = 0
    decoded = False
    try:
        with av.open(
            _Nameless(file), mode="r", metadata_errors="ignore", options=_CLOSED
        ) as container:
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
                    clip.add(
                        samples[max(start - at, 0) : int(max(min(stop - at, len(samples)), 0))]
                    )
                    at += len(samples)
                if at >= stop:
                    break
                part.check_length(clip.size, clip.rate)
    except (FFmpegError, ValueError, OverflowError) as error:
        # Besides its own errors PyAV raises plain ones for text or numbers that make no sense.
        if decoded:
            raise AudioError("truncated", f"{path}: {error}") from error
        raise AudioError("unreadable", f"{path}: {first_error}; {error}") from error
    if not decoded:
        raise AudioError("no_samples", str(path))
    if not clip.size:
        raise AudioError(
            "out_of_range", f"{path}: {at / clip.rate:.3f} s, asked from {part.start_s:g} s"
        )
    return clip


def _seek(
    container: InputContainer, stream: AudioStream, start_s: float
) -> tuple[int, Iterator[AudioFrame]] | None:
    """The frames from some way before `start_s` on, and the sample at which the first begins.

    Samples are counted from the first that decodes.  None where the container's clock does not
    tell where the frames lie: they have to be counted from the start.
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
    # A coarse clock (milliseconds in Matroska) blurs it: most codecs have frames of one size, and
    # then the sample is known exactly.
    exact = first.samples + round((at - first.samples) / second.samples) * second.samples
    if anchor.samples == second.samples and abs(exact - at) <= tick + 1:
        at = exact
    if round(at) > start_s * first.sample_rate:
        return None
    return round(at), chain([anchor], frames)


def _downmix(samples: npt.NDArray[np.float32]) -> Waveform:
    """Samples [S, C] -> the mean of the channels [S]."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32)
    return samples.mean(axis=1, dtype=np.float32)


Wave = NDArray[np.float32]
