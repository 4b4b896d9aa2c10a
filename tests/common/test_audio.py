"""What reading audio promises beyond the formats, which test_audio_inputs.py goes through."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile

from common.audio import (
    AudioError,
    AudioNotes,
    check_audio,
    check_notes,
    read_audio,
    read_part,
    resample,
    stated_length_s,
)
from common.audio_length import states_mp3_length

RATE = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


def refusal(path: Path, *span: float, **limits: float) -> AudioError:
    """Why the file is not read."""
    with pytest.raises(AudioError) as caught:
        read_audio(path, *span, **limits)
    return caught.value


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_rate_hash_and_segments(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, TONE, RATE)
    audio = read_audio(path)
    assert audio.wav.shape == TONE.shape and audio.wav.dtype == np.float32
    assert audio.sample_rate == RATE
    assert audio.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_audio(path, 0.5, 1.25).wav.shape == (12000,)
    assert read_audio(path, 1.5, 9.0).wav.shape == (8000,)  # what there is


def test_an_ogg_cut_between_two_pages_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 10 * RATE), RATE)
    assert read_audio(path).wav.shape == (10 * RATE,)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"OggS\0")])
    assert refusal(path).reason == "truncated"


def test_a_wav_with_ffmpegs_mark_for_an_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, TONE, RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0x7FFFF000)
    path.write_bytes(data)
    assert read_audio(path).wav.shape == TONE.shape


def _flac_announcing(path: Path, samples: int) -> None:
    soundfile.write(path, TONE, RATE, format="FLAC")
    data = bytearray(path.read_bytes())
    # STREAMINFO begins at byte 8; its 36-bit sample count ends at byte 18 of it.
    data[8 + 13] = (data[8 + 13] & 0xF0) | samples >> 32
    data[8 + 14 : 8 + 18] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)


def test_a_header_with_a_silly_length_is_refused_without_the_memory_for_it(tmp_path: Path) -> None:
    _flac_announcing(tmp_path / "x.flac", 2**36 - 1)
    error = refusal(tmp_path / "x.flac")
    assert error.reason == "unreadable" and "announces" in error.detail


def test_a_flac_stream_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    _flac_announcing(tmp_path / "x.flac", 0)
    np.testing.assert_allclose(read_audio(tmp_path / "x.flac").wav, TONE, atol=1e-4)


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "FLOAT", 0),
        ("FLAC", "PCM_16", 0),
        ("OGG", "VORBIS", 1e-6),
        ("OGG", "OPUS", 1e-3),  # its predictors fade out, they do not end
        ("MP3", "MPEG_LAYER_III", 1e-6),
    ],
)
def test_long_files_are_put_together_from_their_blocks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    subtype: str,
    tolerance: float,
) -> None:
    path = tmp_path / "x"
    rng = np.random.default_rng(0)
    rate, tones = 8000, 40
    # A new tone every half second: an MP3 encoder saves up bits for them in earlier frames.
    phase = np.cumsum(2 * np.pi * np.repeat(rng.uniform(100, 1000, tones), rate // 2) / rate)
    wav = np.repeat(rng.uniform(0.1, 0.7, tones), rate // 2) * np.sin(phase)
    soundfile.write(path, np.stack([wav, 0.5 * wav], axis=1), rate, subtype, format=container)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    monkeypatch.setattr("common.audio._BLOCK_VALUES", 2 * 5000)
    for start in (0.0, 0.25, 8.37):
        part = read_audio(path, start).wav
        expected = whole[round(start * rate) :].mean(axis=1)
        np.testing.assert_allclose(part, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("extension", ["wav", "mp3"])
def test_a_too_long_file_is_not_decoded(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / f"x.{extension}", TONE, RATE)
    assert read_audio(tmp_path / f"x.{extension}", 0.5, 1.5, max_duration_s=1.0).wav.size == RATE
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    assert refusal(tmp_path / f"x.{extension}", max_duration_s=1.0).reason == "too_long"


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), ValueError()])
def test_a_container_that_pyav_cannot_open_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def raise_error(*arguments: object, **options: object) -> None:
        raise error

    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(99))
    monkeypatch.setattr("av.open", raise_error)
    assert refusal(tmp_path / "x.m4a").reason == "unreadable"


def test_a_title_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    import av

    path = tmp_path / "x.mka"
    with av.open(str(path), "w", format="matroska") as container:
        container.metadata["title"] = "Kobold"
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        pcm = (TONE * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"Kobold", b"Kob\xf6ld"))
    assert read_audio(path).wav.shape == TONE.shape


@pytest.mark.parametrize("call", ["os.stat", "pathlib.Path.open"])
def test_a_file_without_permission_is_unreadable_a_failing_disk_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    soundfile.write(tmp_path / "x.wav", TONE, RATE)

    def failing(number: int) -> Callable[..., None]:
        def fail(*arguments: object, **options: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(call, failing(errno.EACCES))
        assert refusal(tmp_path / "x.wav").reason == "unreadable"
    for number in (errno.EIO, errno.ESTALE, errno.EMFILE):
        with monkeypatch.context() as patch, pytest.raises(OSError) as error:
            patch.setattr(call, failing(number))
            read_audio(tmp_path / "x.wav")
        assert error.value.errno == number


def test_content_is_checked() -> None:
    def reason(wav: np.ndarray) -> str:
        with pytest.raises(AudioError) as caught:
            check_audio(wav.astype(np.float32), RATE, min_duration_s=0.5, max_duration_s=3.0)
        return caught.value.reason

    check_audio(TONE, RATE, 0.5, 3.0)
    assert reason(TONE[:6]) == "too_short"
    assert reason(np.tile(TONE, 2)) == "too_long"
    assert reason(np.where(np.arange(TONE.size) == 7, np.inf, TONE)) == "non_finite"
    assert reason(0 * TONE) == "silent"
    assert reason(5e-5 * TONE) == "silent"


def test_resampling_keeps_the_tone() -> None:
    at_44k = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    down = resample(at_44k, 44100, RATE)
    assert down.shape == (RATE,) and down.dtype == np.float32
    expected = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(down[200:-200], expected[200:-200], atol=1e-3)


def test_what_is_odd_but_usable_is_noted_before_channels_are_mixed(tmp_path: Path) -> None:
    loud = np.clip(4 * TONE, -1, 1)
    soundfile.write(tmp_path / "x.wav", np.stack([loud, 0 * loud + 0.5], axis=1), RATE, "PCM_24")
    audio = read_audio(tmp_path / "x.wav")
    assert audio.wav.max() < 0.76  # the mix would hide it
    assert audio.notes.peak_dbfs == 0.0
    # A sine of amplitude 2 is beyond 1 for 2/3 of the time.
    assert audio.notes.clipped_share == pytest.approx(1 / 3, abs=0.01)
    assert audio.notes.dc_offset == pytest.approx(0.25, abs=1e-3)
    soundfile.write(tmp_path / "y.wav", TONE, RATE)
    quiet = read_audio(tmp_path / "y.wav").notes
    assert quiet.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert quiet.clipped_share == 0.0 and abs(quiet.dc_offset) < 1e-4
    soundfile.write(tmp_path / "z.wav", 0 * TONE, RATE)
    assert read_audio(tmp_path / "z.wav").notes == (-np.inf, 0.0, 0.0)


def _level_db(wav: np.ndarray, hz: float, rate: int) -> float:
    """Amplitude of a tone in the middle of `wav`, in dB against 1."""
    middle = wav[len(wav) // 4 : -len(wav) // 4].astype(np.float64)
    window = np.blackman(len(middle))
    turning = np.exp(-2j * np.pi * hz * np.arange(len(middle)) / rate)
    return float(20 * np.log10(2 * abs((middle * window * turning).sum()) / window.sum()))


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(44100, 16000), (48000, 16000), (192000, 32000), (22050, 16000)]
)
def test_resampling_removes_what_would_alias_and_keeps_the_rest(
    from_rate: int, to_rate: int
) -> None:
    t = np.arange(2 * from_rate) / from_rate
    for share in (1.02, 1.2):  # of the new Nyquist frequency
        beyond = np.sin(np.pi * share * to_rate * t).astype(np.float32)
        middle = resample(beyond, from_rate, to_rate)[to_rate // 2 : -to_rate // 2]
        assert 20 * np.log10(np.abs(middle).max()) < -90
    for share in (0.01, 0.5, 0.9):
        tone = np.sin(np.pi * share * to_rate * t).astype(np.float32)
        kept = resample(tone, from_rate, to_rate)
        assert abs(_level_db(kept, share * to_rate / 2, to_rate)) < 0.1


@pytest.mark.parametrize(("from_rate", "to_rate"), [(16000, 48000), (11025, 16000)])
def test_resampling_upwards_adds_no_images(from_rate: int, to_rate: int) -> None:
    hz = 0.4 * from_rate
    tone = np.sin(2 * np.pi * hz * np.arange(2 * from_rate) / from_rate).astype(np.float32)
    up = resample(tone, from_rate, to_rate)
    assert abs(_level_db(up, hz, to_rate)) < 0.1
    if from_rate - hz < to_rate / 2:
        assert _level_db(up, from_rate - hz, to_rate) < -90


def test_a_file_that_does_not_change_is_hashed_once_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def count(file: BinaryIO, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr("hashlib.file_digest", count)
    path = tmp_path / "x.wav"
    soundfile.write(path, TONE, RATE)
    fresh = [read_audio(path, i / 4, (i + 1) / 4).sha256 for i in range(3)]
    assert len(hashed) == 3  # might change once more within the clock's tick
    monkeypatch.setattr("time.time", lambda: path.stat().st_mtime + 60)
    settled = [read_audio(path, i / 4, (i + 1) / 4).sha256 for i in range(3)]
    assert len(hashed) == 4
    soundfile.write(path, TONE[::-1], RATE)
    changed = read_audio(path).sha256
    assert {*fresh, *settled} == {fresh[0]}
    assert changed == hashlib.sha256(path.read_bytes()).hexdigest() != fresh[0]


def test_clipping_and_offset_are_refused_where_asked() -> None:
    notes = AudioNotes(peak_dbfs=0.0, clipped_share=0.02, dc_offset=-0.1)
    check_notes(notes)
    check_notes(notes, max_clipped_share=0.02, max_dc_offset=0.1)
    with pytest.raises(AudioError, match=r"clipped: 2\.0000% .* at most 1\.0000%"):
        check_notes(notes, max_clipped_share=0.01)
    with pytest.raises(AudioError, match=r"dc_offset: -0\.1 of full scale, expected at most 0\.09"):
        check_notes(notes, max_dc_offset=0.09)


def test_a_part_of_an_open_file_is_what_the_file_holds_there(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.arange(RATE) / 32768, RATE)
    with path.open("rb") as file:
        assert stated_length_s(file) == 1.0
        wav, rate = read_part(file, "a.flac", path.stat().st_size, 0.25, 0.5)
        assert rate == RATE and np.array_equal(wav * 32768, np.arange(RATE // 4, RATE // 2))
        with pytest.raises(AudioError, match="out_of_range"):
            read_part(file, "a.flac", path.stat().st_size, 1.5)
        with pytest.raises(AudioError, match=r"empty_file: a\.flac"):
            read_part(file, "a.flac", 0)


def test_lengths_are_those_of_headers_and_none_where_there_is_none(tmp_path: Path) -> None:
    for extension, kind in (("wav", "WAV"), ("ogg", "OGG"), ("mp3", "MP3")):
        path = tmp_path / f"a.{extension}"
        soundfile.write(path, np.zeros(2 * RATE), RATE, format=kind)
        with path.open("rb") as file:
            assert stated_length_s(file) == pytest.approx(2.0, abs=0.1)
    for content in (b"", b"no audio at all", (tmp_path / "a.wav").read_bytes()[:20]):
        (tmp_path / "b.wav").write_bytes(content)
        with (tmp_path / "b.wav").open("rb") as file:
            assert stated_length_s(file) is None


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_count_of_an_mp3_is_looked_for_at_its_place(
    tmp_path: Path, rate: int, channels: int
) -> None:
    path = tmp_path / "x.mp3"
    soundfile.write(path, np.stack([TONE] * channels, axis=1), rate)
    data = bytearray(path.read_bytes())
    assert states_mp3_length(io.BytesIO(data))
    at = data.index(b"Xing")
    data[at + 7] &= ~1  # the flag that says that there is one
    assert not states_mp3_length(io.BytesIO(data))
    data[at + 7] |= 1
    data[1] &= ~1  # a check sum comes first now
    assert not states_mp3_length(io.BytesIO(data))
    assert states_mp3_length(io.BytesIO(data[:4] + b"\0\0" + data[4:]))
