"""Odd and broken audio files: each is read right, or refused with its reason.

The table in the section "Audio files" of pipeline/README.md is made here, by
`ATTUNE_WRITE_README=1 pytest tests/common/test_audio_inputs.py`.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

import pipeline
from common.audio import AudioError, check_audio, read_audio

RATE = 16000
README = Path(pipeline.__file__).parent / "README.md"
READ = "read"
Write = Callable[[Path], None]


def sweep(rate: int = RATE, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """The waveform that must be read, [S]: 200 to 1200 Hz and growing: no two parts are alike."""
    t = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * (200 * t + 500 * t**2 / seconds)
    return (0.5 * np.sin(phase) * (0.2 + 0.8 * t / seconds)).astype(np.float32)


class Kind(NamedTuple):
    """A kind of file, and the outcome that reading one must have."""

    name: str
    write: Write
    outcome: str
    expected: npt.NDArray[np.float32] = sweep()
    rate: int = RATE
    extension: str = "wav"
    span: tuple[float | None, float | None] = (None, None)
    lossy: bool = False
    note: str = ""
    """A remark beside the outcome in the README."""
    slack_s: float = 0.0
    """How much longer, shorter or later the waveform may be; 0 for lossless formats."""


# Writers.  Each returns a function of the path, so that the list of kinds stays a list.


def sound(
    subtype: str | None = None,
    container: str = "WAV",
    rate: int = RATE,
    wav: npt.NDArray[np.floating] | None = None,
) -> Write:
    """Written by libsndfile; `wav` is [S] or [S, C]."""
    samples = sweep(rate) if wav is None else wav
    channels = 1 if samples.ndim == 1 else samples.shape[1]

    def run(path: Path) -> None:
        with soundfile.SoundFile(path, "w", rate, channels, subtype, format=container) as file:
            for i in range(0, len(samples), 60 * rate):  # Vorbis overflows the stack at once
                file.write(samples[i : i + 60 * rate])

    return run


def edited(write: Write, edit: Callable[[bytes], bytes]) -> Write:
    def run(path: Path) -> None:
        write(path)
        path.write_bytes(edit(path.read_bytes()))

    return run


def cut(write: Write, share: float) -> Write:
    return edited(write, lambda data: data[: int(len(data) * share)])


def chunks(*parts: tuple[bytes, bytes], pad: bool = True) -> bytes:
    """RIFF chunks, or a whole file's worth of them."""
    out = b""
    for name, body in parts:
        out += name + struct.pack("<I", len(body)) + body + b"\0" * (pad and len(body) % 2)
    return out


def pcm_format(channels: int = 1, rate: int = RATE, bits: int = 16, tag: int = 1) -> bytes:
    """The body of a wav file's format chunk."""
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, (rate * frame) % 2**32, frame, bits)


PCM = (sweep() * 32767).astype("<i2").tobytes()


def riff(
    *before: tuple[bytes, bytes],
    form: bytes = pcm_format(),
    data: bytes = PCM,
    announced: int | None = None,
    after: bytes = b"",
    pad: bool = True,
) -> Write:
    """A wav file put together by hand, with chunks before its data or a wrong length of it."""
    head = chunks((b"fmt ", form), *before, pad=pad) + b"data"
    head += struct.pack("<I", len(data) if announced is None else announced)
    body = b"WAVE" + head + data + after
    return lambda path: path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


EXTENSIBLE = pcm_format(tag=0xFFFE) + struct.pack("<HHI", 22, 16, 4)
EXTENSIBLE += bytes.fromhex("0100000000001000800000aa00389b71")
LIST = (b"LIST", b"INFO" + chunks((b"INAM", b"Kobold\0\0")))
BEXT = (b"bext", bytes(602))
JUNK = (b"JUNK", bytes(4096))


def media(
    codec: str | None,
    muxer: str,
    tracks: Iterable[npt.NDArray[np.float32]] | None = None,
    rate: int = RATE,
    video: bool = False,
    options: dict[str, str] | None = None,
) -> Write:
    """Written by FFmpeg: an audio track of `codec` for each of `tracks` [S], and a video track."""
    waves = [sweep(rate)] if tracks is None else list(tracks)

    def run(path: Path) -> None:
        with av.open(str(path), "w", format=muxer, container_options=options or {}) as container:
            film = container.add_stream("mpeg4", rate=25, width=32, height=32) if video else None
            if film is not None:
                film.pix_fmt = "yuv420p"
            streams = [container.add_stream(codec, rate=rate, layout="mono") for _ in waves]
            packets = []
            for stream, wav in zip(streams, waves, strict=True):
                stream.codec_context.bit_rate = 64_000  # WMA has no default
                stream.open()
                size = stream.codec_context.frame_size or 1024
                convert = av.AudioResampler(stream.format.name, "mono", stream.rate, size)
                frame = av.AudioFrame.from_ndarray(wav[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = rate, 0
                for part in [*convert.resample(frame), *convert.resample(None), None]:
                    packets += stream.encode(part)
            if film is not None:
                for i in range(25):
                    image = np.full((32, 32, 3), 10 * i, np.uint8)
                    picture = av.VideoFrame.from_ndarray(image, format="rgb24")
                    picture.pts = i
                    packets += film.encode(picture)
                packets += film.encode(None)
            for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
                container.mux(packet)

    return run


def remuxed(write: Write, muxer: str, times: int = 1) -> Write:
    """The packets of a file in another container, `times` over.

    That makes an hour of AAC without the minutes that its encoding takes.
    """

    def run(path: Path) -> None:
        source = path.with_name("source")
        write(source)
        with av.open(str(path), "w", format=muxer) as other:
            stream, shift = None, 0
            for _ in range(times):
                with av.open(str(source)) as one:
                    stream = stream or other.add_stream_from_template(one.streams.audio[0])
                    packets = [packet for packet in one.demux(audio=0) if packet.dts is not None]
                    if times > 1:
                        packets.pop()  # it says how much of its sound is to be dropped
                    for packet in packets:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                    shift += len(packets) * (packets[1].duration or 0)
                    for packet in packets:
                        other.mux(packet)

    return run


def picture(path: Path) -> None:
    """A PNG of one grey pixel."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(b"\0\x80"), b"IEND": b""}
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in parts.items():
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)


def text(content: str) -> Write:
    return lambda path: (path.write_text(content), None)[1]


def id3(data: bytes) -> bytes:
    """An ID3v2.4 tag with a picture of 1,200 bytes in front, an ID3v1 tag behind."""
    picture = b"\0image/png\0\3\0" + bytes(range(255, 55, -1)) * 6
    frame = b"APIC" + bytes([0, 0, len(picture) >> 7, len(picture) & 127]) + b"\0\0" + picture
    size = bytes([0, 0, len(frame) >> 7, len(frame) & 127])
    return b"ID3\4\0\0" + size + frame + data + b"TAG" + bytes(125)


def without_info_frame(data: bytes) -> bytes:
    """An MP3 as radios send it: without LAME's first frame, which holds the length."""
    second = data.index(data[:2], 4)
    assert b"Info" in data[:second] or b"Xing" in data[:second]
    return data[second:]


def with_vbri_frame(data: bytes) -> bytes:
    """An MP3 as Fraunhofer's encoder writes it: its first frame holds the length under VBRI."""
    second = data.index(data[:2], 4)
    frames = int.from_bytes(data[:second].partition(b"Xing")[2][4:8], "big")
    table = struct.pack(">HHHIIHHHH", 1, 0, 75, len(data), frames, 0, 1, 2, 1)
    frame = (data[:4] + bytes(32) + b"VBRI" + table).ljust(second, b"\0")
    return frame + data[second:]


def without_count(data: bytes) -> bytes:
    """An MP3 whose Xing frame leaves out the count of frames."""
    second = data.index(data[:2], 4)
    head, name, rest = data[:second].partition(b"Xing")
    frame = head + name + bytes([*rest[:3], rest[3] & ~1]) + rest[8:]
    return frame.ljust(second, b"\0") + data[second:]


def long_wav(path: Path) -> None:
    """Two hours of 8 bits at 8 kHz that take no room on the disk, with a sweep at 1:55:00."""
    rate, seconds = 8000, 7200
    riff(form=pcm_format(rate=rate, bits=8), data=b"", announced=rate * seconds)(path)
    with path.open("r+b") as file:
        file.truncate(44 + rate * seconds)
        file.seek(44 + rate * 6900)
        file.write((np.round(sweep(rate) * 127) + 128).astype(np.uint8).tobytes())


def channels_of(count: int) -> npt.NDArray[np.float32]:
    """The sweep in channels of different loudness, [S, C]; their mean is the sweep."""
    gains = np.linspace(0.5, 1.5, count) if count > 1 else np.ones(1)
    return (sweep()[:, None] * gains).astype(np.float32)


def square(path: Path) -> None:
    soundfile.write(path, np.clip(8 * sweep(), -1, 1), RATE)


def late(
    name: str, write: Write, note: str = "with the encoder's delay", extension: str = "mp3"
) -> Kind:
    """Read with up to 0.15 s more than went in."""
    return Kind(name, write, READ, lossy=True, extension=extension, note=note, slack_s=0.15)


MP3 = sound(container="MP3")
WAV = sound()
FLAC = sound("PCM_16", "FLAC")
AAC = media("aac", "mp4")
NAN = np.where(np.arange(RATE) == 99, np.nan, sweep()).astype(np.float32)
INF = np.where(np.arange(RATE) == 99, -np.inf, sweep()).astype(np.float32)
BIG = sweep().astype(np.float64) * 1e39
LEFT = np.stack([sweep(), 0 * sweep()], axis=1)

KINDS = [
    *[
        Kind(f"wav, {form}", sound(subtype), READ)
        for form, subtype in {
            "8-bit": "PCM_U8",
            "16-bit": "PCM_16",
            "24-bit": "PCM_24",
            "32-bit": "PCM_32",
            "32-bit float": "FLOAT",
            "64-bit float": "DOUBLE",
            "A-law": "ALAW",
            "mu-law": "ULAW",
        }.items()
    ],
    *[
        Kind(f"wav, {form} ADPCM", sound(subtype), READ, lossy=True)
        for form, subtype in {"IMA": "IMA_ADPCM", "Microsoft": "MS_ADPCM"}.items()
    ],
    Kind("wav, WAVE_FORMAT_EXTENSIBLE", riff(form=EXTENSIBLE), READ),
    Kind("wav with LIST, bext and JUNK chunks before the data", riff(LIST, BEXT, JUNK), READ),
    Kind("wav with a chunk of odd size", riff((b"note", b"odd")), READ),
    Kind(
        "wav with a chunk of odd size and no pad byte",
        riff((b"note", b"odd"), pad=False),
        "unreadable",
    ),
    Kind("wav with chunks after the data", riff(after=chunks(LIST, (b"id3 ", bytes(99)))), READ),
    Kind("wav, data length 0 (streamed)", riff(announced=0), READ),
    Kind("wav, data length 0xFFFFFFFF (streamed)", riff(announced=0xFFFFFFFF), READ),
    Kind("wav, data length beyond the file", riff(announced=2 * len(PCM)), "truncated"),
    Kind(
        "wav, data length short of the file",
        riff(announced=len(PCM) // 2),
        READ,
        sweep()[: RATE // 2],
        note="the announced part",
    ),
    Kind("wav, 2 bytes more announced than there are", riff(announced=len(PCM) + 2), "truncated"),
    Kind("wav, last byte missing", edited(riff(), lambda d: d[:-1]), READ, sweep()[:-1]),
    Kind("wav, 0 channels", riff(form=pcm_format(channels=0)), "unreadable"),
    Kind("wav, 0 Hz", riff(form=pcm_format(rate=0)), "unreadable"),
    Kind("wav, 1 Hz", riff(form=pcm_format(rate=1)), "unreadable"),
    Kind("wav, 4,294,967,295 Hz", riff(form=pcm_format(rate=2**32 - 1)), "unreadable"),
    Kind("wav, 0 bits", riff(form=pcm_format(bits=0)), "unreadable"),
    Kind("wav, unknown codec", riff(form=pcm_format(tag=0x7777)), "unreadable"),
    Kind("wav, cut in its header", cut(WAV, 0.0008), "unreadable"),
    Kind("wav, cut in its data", cut(WAV, 0.6), "truncated"),
    Kind("wav, header alone", riff(data=b"", announced=0), "no_samples"),
    Kind("RF64", sound("PCM_16", "RF64"), READ),
    Kind("RF64, cut", cut(sound("PCM_16", "RF64"), 0.6), "truncated"),
    Kind("w64", sound("PCM_16", "W64"), READ, extension="w64"),
    Kind("w64, cut", cut(sound("PCM_16", "W64"), 0.6), "truncated", extension="w64"),
    Kind("aiff", sound("PCM_16", "AIFF"), READ, extension="aiff"),
    Kind("aifc, float", sound("FLOAT", "AIFF"), READ, extension="aifc"),
    Kind("aiff, cut", cut(sound("PCM_16", "AIFF"), 0.6), "truncated", extension="aiff"),
    Kind("au", sound("PCM_16", "AU"), READ, extension="au"),
    Kind("au, mu-law", sound("ULAW", "AU"), READ, extension="au"),
    Kind("au, cut", cut(sound("PCM_16", "AU"), 0.6), "truncated", extension="au"),
    Kind("caf", sound("PCM_16", "CAF"), READ, extension="caf"),
    Kind("caf, Apple Lossless", sound("ALAC_16", "CAF"), READ, extension="caf"),
    Kind("caf, cut", cut(sound("PCM_16", "CAF"), 0.6), "truncated", extension="caf"),
    Kind("flac, 16-bit", FLAC, READ, extension="flac"),
    Kind("flac, 24-bit", sound("PCM_24", "FLAC"), READ, extension="flac"),
    Kind("flac with an ID3 tag in front", edited(FLAC, id3), READ, extension="flac"),
    Kind("flac, cut in its header", cut(FLAC, 0.001), "unreadable", extension="flac"),
    Kind("flac, cut in its data", cut(FLAC, 0.6), "truncated", extension="flac"),
    Kind("ogg, Vorbis", sound("VORBIS", "OGG"), READ, lossy=True, extension="ogg"),
    Kind("ogg, Opus", sound("OPUS", "OGG"), READ, lossy=True, extension="opus"),
    Kind("ogg, FLAC", media("flac", "ogg"), READ, extension="oga"),
    Kind("ogg, cut", cut(sound("VORBIS", "OGG"), 0.6), "truncated", extension="ogg"),
    Kind("mp3", MP3, READ, lossy=True, extension="mp3"),
    Kind("mp3 with ID3 tags", edited(MP3, id3), READ, lossy=True, extension="mp3"),
    late("mp3 without a Xing/Info frame", edited(MP3, without_info_frame)),
    late(
        "mp3, cut, without a Xing/Info frame",
        edited(MP3, lambda d: without_info_frame(d)[:-100]),
        "to the last whole frame: it announces no length",
    ),
    late("mp3 with a VBRI frame", edited(MP3, with_vbri_frame)),
    late(
        "mp3 with a Xing frame without a count",
        edited(MP3, without_count),
        "with the encoder's padding",
    ),
    Kind("mp3, cut in its last frame", edited(MP3, lambda d: d[:-100]), "truncated"),
    Kind("mp3, cut in its data", cut(MP3, 0.6), "truncated"),
    Kind("m4a, AAC", AAC, READ, lossy=True, extension="m4a"),
    Kind("m4a, Apple Lossless", media("alac", "mp4"), READ, extension="m4a"),
    Kind("m4a, cut", cut(AAC, 0.6), "truncated", extension="m4a"),
    Kind(
        "m4a, index in front, cut",
        cut(media("aac", "mp4", options={"movflags": "faststart"}), 0.6),
        "truncated",
        extension="m4a",
    ),
    late(
        "m4a, fragmented (DASH)",
        media("aac", "mp4", options={"movflags": "frag_keyframe+empty_moov"}),
        extension="m4a",
    ),
    late("aac without a container", media("aac", "adts"), extension="aac"),
    Kind("mp4, audio and video", media("aac", "mp4", video=True), READ, lossy=True),
    Kind("mp4, video alone", media(None, "mp4", [], video=True), "unreadable"),
    Kind(
        "mp4, two audio tracks",
        media("aac", "mp4", [sweep(), 0 * sweep()]),
        READ,
        lossy=True,
        note="the first",
    ),
    Kind("webm, Opus", media("libopus", "webm"), READ, sweep(48000), 48000, "webm", lossy=True),
    Kind(
        "webm, Vorbis", remuxed(sound("VORBIS", "OGG"), "webm"), READ, lossy=True, extension="webm"
    ),
    Kind("webm, cut", cut(media("libopus", "webm"), 0.6), "truncated", extension="webm"),
    Kind("mkv, PCM and video", media("pcm_s16le", "matroska", video=True), READ, extension="mkv"),
    Kind("mkv, AAC", media("aac", "matroska"), READ, lossy=True, extension="mkv"),
    Kind("avi, PCM and video", media("pcm_s16le", "avi", video=True), READ, extension="avi"),
    Kind(
        "wma",
        media("wmav2", "asf", rate=44100),
        READ,
        sweep(44100),
        44100,
        "wma",
        lossy=True,
        slack_s=0.05,
        note="without its last frame",
    ),
    *[
        Kind(f"{rate:,} Hz", sound("PCM_16", rate=rate), READ, sweep(rate), rate)
        for rate in (4000, 8000, 11025, 22050, 32000, 44100, 48000, 88200, 96000, 192000)
    ],
    *[
        Kind(f"{n} channel{'s' * (n > 1)}", sound("PCM_24", wav=channels_of(n)), READ)
        for n in (1, 2, 4, 6, 8)
    ],
    Kind(
        "stereo, one channel empty",
        sound("PCM_24", wav=LEFT),
        READ,
        sweep() / 2,
        note="half as loud",
    ),
    Kind(
        "stereo, channels of opposite phase",
        sound("PCM_16", wav=np.stack([sweep(), -sweep()], axis=1)),
        "silent",
    ),
    Kind("0.1 ms", sound("PCM_16", wav=sweep()[:2]), "too_short"),
    Kind("2 hours", long_wav, "too_long", note="by its header"),
    Kind("one second of 2 hours", long_wav, READ, sweep(8000), 8000, span=(6900, 6901)),
    Kind("mp3 named .wav", MP3, READ, lossy=True),
    Kind("flac named .mp3", FLAC, READ, extension="mp3"),
    Kind("text named .flac", text("Not audio.\n" * 50), "unreadable", extension="flac"),
    Kind("web page", text("<!DOCTYPE html><html>404</html>\n" * 50), "unreadable"),
    Kind("picture", picture, "unreadable"),
    Kind("playlist", text("#EXTM3U\n#EXTINF:1,\nother.wav\n"), "unreadable", extension="m3u8"),
    Kind("list of files to join", text("ffconcat version 1.0\nfile 'other.wav'\n"), "unreadable"),
    Kind("random bytes", lambda p: (p.write_bytes(os.urandom(9999)), None)[1], "unreadable"),
    Kind("zero bytes", text(""), "empty_file"),
    Kind("folder", lambda path: path.mkdir(), "not_a_file"),
    Kind("FIFO", lambda path: os.mkfifo(path), "not_a_file"),
    Kind("link to a device", lambda path: path.symlink_to("/dev/zero"), "not_a_file"),
    Kind("link to nothing", lambda path: path.symlink_to("gone"), "missing"),
    Kind("link to itself", lambda path: path.symlink_to(path), "missing"),
    Kind("no read permission", lambda path: (WAV(path), path.chmod(0))[1], "unreadable"),
    Kind("all zeros", sound(wav=0 * sweep()), "silent"),
    Kind("a constant (DC) alone", sound(wav=0 * sweep() + 0.5), "silent"),
    Kind(
        "DC beside a sound",
        sound("PCM_24", wav=sweep() + 0.25),
        READ,
        sweep() + 0.25,
        note="as it is",
    ),
    Kind("denormal samples", sound("FLOAT", wav=1e-40 * sweep()), "silent"),
    Kind("clipped to a square", square, READ, np.clip(8 * sweep(), -1, 1), note="as it is"),
    Kind(
        "float beyond full scale",
        sound("FLOAT", wav=4 * sweep()),
        READ,
        4 * sweep(),
        note="as it is",
    ),
    Kind("a NaN", sound("FLOAT", wav=NAN), "non_finite"),
    Kind("an infinite sample", sound("FLOAT", wav=INF), "non_finite"),
    Kind("a double beyond float32", sound("DOUBLE", wav=BIG), "non_finite"),
    Kind("segment inside", WAV, READ, sweep()[4000:12000], span=(0.25, 0.75)),
    Kind("segment inside m4a", AAC, READ, sweep()[4000:12000], span=(0.25, 0.75), lossy=True),
    Kind("segment beyond the end", WAV, READ, sweep()[8000:], span=(0.5, 9), note="what there is"),
    Kind("segment after the end", WAV, "out_of_range", span=(2, 3)),
    Kind("segment of m4a after the end", AAC, "out_of_range", span=(2, 3), extension="m4a"),
    Kind("segment long after the end of m4a", AAC, "out_of_range", span=(1e300, 2e300)),
    Kind("segment from before the start", WAV, "out_of_range", span=(-0.5, 0.5)),
    Kind("segment that ends before it starts", WAV, "out_of_range", span=(0.75, 0.25)),
    Kind("segment of no length", WAV, "out_of_range", span=(0.5, 0.5)),
    Kind("segment from a NaN", WAV, "out_of_range", span=(float("nan"), 0.5)),
]


def correlation(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], lag: int) -> float:
    """The best correlation of two waveforms [S] of about one length, over shifts up to `lag`."""
    size = 1 << (max(one.size, other.size) + lag).bit_length()
    product = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    found = np.fft.irfft(product)
    near = np.concatenate([found[: lag + 1], found[size - lag :]])
    return float(near.max() / np.sqrt((one**2).sum() * (other**2).sum()))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_read_right_or_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    if kind.name == "no read permission" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = tmp_path / f"x.{kind.extension}"
    sound()(tmp_path / "other.wav")  # what lists and playlists lead to
    monkeypatch.chdir(tmp_path)
    kind.write(path)
    if kind.outcome != READ:
        with pytest.raises(AudioError) as refusal:
            audio = read_audio(path, *kind.span, max_duration_s=30.0)
            check_audio(audio.wav, audio.sample_rate, 0.05, 30.0)
        assert refusal.value.reason == kind.outcome, refusal.value.detail
        return
    audio = read_audio(path, *kind.span, max_duration_s=30.0)
    check_audio(audio.wav, audio.sample_rate, 0.05, 30.0)
    assert audio.sample_rate == kind.rate
    slack = round(kind.slack_s * kind.rate)
    if not kind.lossy:
        assert audio.wav.shape == kind.expected.shape
        np.testing.assert_allclose(audio.wav, kind.expected, atol=0.02)  # A-law's and 8 bits' steps
    # Codecs that give back a whole number of frames fill the last one up.
    longest = slack if kind.slack_s else round(0.1 * kind.rate)
    assert -slack <= audio.wav.size - kind.expected.size <= longest
    assert correlation(audio.wav, kind.expected, slack) > (0.98 if kind.lossy else 0.999)
    level = np.sqrt((audio.wav**2).sum() / (kind.expected**2).sum())
    assert abs(20 * np.log10(level)) < 0.5


def table() -> str:
    """The README's table, one row per kind."""
    rows = []
    for kind in KINDS:
        outcome = kind.outcome if kind.outcome == READ else f"`{kind.outcome}`"
        rows.append(f"| {kind.name} | {outcome}{f' ({kind.note})' if kind.note else ''} |")
    return "\n".join(["| file | outcome |", "|---|---|", *rows]) + "\n"


def test_the_readme_lists_the_outcome_of_every_kind() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 45
    begin, end = "<!-- audio kinds -->\n", "<!-- end of audio kinds -->\n"
    text = README.read_text()
    found = re.search(re.escape(begin) + "(.*)" + re.escape(end), text, re.DOTALL)
    assert found is not None
    if os.environ.get("ATTUNE_WRITE_README"):
        README.write_text(text[: found.start(1)] + table() + text[found.end(1) :])
        return
    assert found.group(1) == table(), "run this test with ATTUNE_WRITE_README=1 to update it"


class _Counted:
    """A file that counts the bytes that are read from it."""

    bytes = 0

    def __init__(self, file: Any) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        _Counted.bytes += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        size = self.file.readinto(buffer)
        _Counted.bytes += size
        return size


def melody(seconds: int, rate: int) -> npt.NDArray[np.float32]:
    """Tones of random height and loudness, two a second: no two places are alike, [S]."""
    rng = np.random.default_rng(0)
    hz, loud = rng.uniform(100, 1000, 2 * seconds), rng.uniform(0.1, 0.7, 2 * seconds)
    phase = np.cumsum(2 * np.pi * np.repeat(hz, rate // 2) / rate)
    return (np.repeat(loud, rate // 2) * np.sin(phase)).astype(np.float32)


HOUR = 3600
LOOP = media("aac", "mp4", [melody(61, 8000)], 8000)
OPUS_LOOP = media("libopus", "webm", [melody(61, 8000)], 8000)
LONG_FILES = {
    "wav": lambda: sound("PCM_16", "WAV", 8000, melody(HOUR, 8000)),
    "aiff": lambda: sound("PCM_16", "AIFF", 8000, melody(HOUR, 8000)),
    "flac": lambda: sound("PCM_16", "FLAC", 8000, melody(HOUR, 8000)),
    "ogg": lambda: sound("VORBIS", "OGG", 8000, melody(HOUR, 8000)),
    "mp3": lambda: sound("MPEG_LAYER_III", "MP3", 8000, melody(HOUR, 8000)),
    "m4a": lambda: remuxed(LOOP, "mp4", 60),
    "mkv": lambda: remuxed(LOOP, "matroska", 60),
    "webm": lambda: remuxed(OPUS_LOOP, "webm", 60),
}


@pytest.mark.parametrize(
    "extension",
    [
        pytest.param(name, marks=pytest.mark.heavy) if name in ("ogg", "mp3", "webm") else name
        for name in LONG_FILES
    ],
)
def test_ten_seconds_of_an_hour_are_read_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    path = tmp_path / f"x.{extension}"
    LONG_FILES[extension]()(path)
    whole = read_audio(path)
    at, rate = 3300.37, whole.sample_rate

    decoded = 0
    sound_file, open_container = soundfile.SoundFile, av.open

    class Counting(sound_file):  # type: ignore[misc, valid-type]
        def __init__(self, file: Any) -> None:
            super().__init__(_Counted(file))

        def read(self, *arguments: Any, **options: Any) -> Any:
            nonlocal decoded
            samples = super().read(*arguments, **options)
            decoded += len(samples)
            return samples

    def counted_open(file: Any, **options: Any) -> Any:
        return open_container(_Counted(file), **options)

    monkeypatch.setattr("soundfile.SoundFile", Counting)
    monkeypatch.setattr("av.open", counted_open)
    _Counted.bytes = 0
    part = read_audio(path, at, at + 10)
    assert part.wav.shape == (10 * rate,)
    # libmpg123 walks over all frame headers on its way, which costs no decoding.
    assert 0 < _Counted.bytes < path.stat().st_size * (1.0 if extension == "mp3" else 0.06)
    assert decoded <= 11 * rate

    start = round(at * rate)
    expected = whole.wav[start : start + 10 * rate]
    # Opus' predictors fade out, they do not stop; all others are in step after the lead.
    np.testing.assert_allclose(part.wav, expected, atol=1e-3 if extension == "webm" else 1e-6)
