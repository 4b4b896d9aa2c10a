"""What is read, what is refused, and with which reason."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.audio import AudioError, check_audio, read_audio, resample

RATE = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_formats_and_segments(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, TONE, RATE)
    audio = read_audio(path)
    assert audio.wav.shape == TONE.shape and audio.wav.dtype == np.float32
    assert audio.sample_rate == RATE
    assert audio.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_audio(path, 0.5, 1.25).wav.shape == (12000,)
    assert read_audio(path, 1.5, 9.0).wav.shape == (8000,)  # what there is


def test_containers_are_read_through_ffmpeg(tmp_path: Path) -> None:
    import av

    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(TONE[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler("fltp", "mono", RATE, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    audio = read_audio(path)
    assert audio.sample_rate == RATE
    assert abs(len(audio.wav) / RATE - 2.0) < 0.2
    assert abs(np.abs(audio.wav).max() - 0.5) < 0.1
    assert read_audio(path, 0.5, 1.0).wav.shape == (8000,)


def test_channels_are_averaged_and_a_wrong_extension_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "really_flac.wav"
    soundfile.write(path, np.stack([TONE, 0 * TONE], axis=1), RATE, format="FLAC")
    np.testing.assert_allclose(read_audio(path).wav, TONE / 2, atol=1e-3)


def _write(path: Path, kind: str) -> None:
    if kind == "empty_file":
        path.write_bytes(b"")
    elif kind == "unreadable":
        path.write_text("<html>404</html>\n" * 50)
    elif kind == "not_a_file":
        path.mkdir()
    elif kind == "no_samples":
        soundfile.write(path, TONE[:0], RATE)
    elif kind == "truncated":
        soundfile.write(path, TONE, RATE)
        path.write_bytes(path.read_bytes()[:20000])
    else:
        assert kind == "missing"


@pytest.mark.parametrize(
    "kind", ["missing", "empty_file", "unreadable", "not_a_file", "no_samples", "truncated"]
)
def test_files_are_refused_with_their_reason(tmp_path: Path, kind: str) -> None:
    _write(tmp_path / "x.wav", kind)
    with pytest.raises(AudioError) as refusal:
        read_audio(tmp_path / "x.wav")
    assert refusal.value.reason == kind


@pytest.mark.parametrize("extension", ["flac", "mp3"])
def test_truncated_compressed_files_are_not_taken_for_short_ones(
    tmp_path: Path, extension: str
) -> None:
    path = tmp_path / f"x.{extension}"
    soundfile.write(path, TONE, RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(AudioError) as refusal:
        read_audio(path)
    assert refusal.value.reason == "truncated"


def test_a_streamed_wav_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, TONE, RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert read_audio(path).wav.shape == TONE.shape


def test_a_segment_after_the_end_is_out_of_range(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", TONE, RATE)
    with pytest.raises(AudioError) as refusal:
        read_audio(tmp_path / "x.wav", 5.0, 6.0)
    assert refusal.value.reason == "out_of_range"


def test_content_is_checked() -> None:
    def reason(wav: np.ndarray) -> str:
        with pytest.raises(AudioError) as refusal:
            check_audio(wav.astype(np.float32), RATE, min_duration_s=0.5, max_duration_s=3.0)
        return refusal.value.reason

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
