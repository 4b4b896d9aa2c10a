"""Free To Use Sounds: file names, the text inside Broadcast Wave files, texts of one's own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import catalog, merged, read, records, touch, write

from common.errors import AttuneError
from pipeline.catalogs.base import Refusal
from pipeline.catalogs.freetouse import stem_caption
from pipeline.catalogs.riff import WavText, read_wav_text


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def wav(*chunks: bytes, kind: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body)) + body


FORMAT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16))
BEXT = chunk(b"bext", b"Rain falls on a tin roof\r\nsTAKE=02\r\n".ljust(256, b"\0") + b"x" * 346)
NOTE = chunk(b"iXML", b"<?xml?><BWFXML><NOTE>Calm &amp; steady</NOTE></BWFXML>")
DATA = chunk(b"data", b"\0" * 8001)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("Rain_on_Roof-02.wav", "Rain on Roof"),
        ("Forest - Birds__Singing take 3.wav", "Forest Birds Singing"),
        ("Train_Berlin_U2_station_001_v2.WAV", "Train Berlin U2 station"),
        ("707 flying over.wav", "707 flying over"),
        ("Café_#4.wav", "Café"),
        ("Glo\u0308ckchen_02.wav", "Glöckchen"),
        ("कुत्ता_02.wav", "कुत्ता"),
        ("0001.wav", ""),
        ("2021-06-03.wav", ""),
    ],
)
def test_a_file_name_is_a_caption(name: str, caption: str) -> None:
    assert stem_caption(name) == caption


def test_the_tree(tmp_path: Path) -> None:
    root = touch(tmp_path / "FTUS", "City/Tram_01.wav", "City/Tram_02.flac", "b.txt", "._c.wav")
    (root / "Rain.wav").write_bytes(wav(FORMAT, chunk(b"junk", b"abc"), BEXT, NOTE, DATA))
    touch(tmp_path, "secret.wav")
    (root / "out.wav").symlink_to(tmp_path / "secret.wav")
    outcomes = read(dataset="freetousesounds", root=root)
    tram, tram2, rain = records(outcomes)
    assert [r.native_id for r in (tram, tram2, rain)] == [
        "City/Tram_01.wav", "City/Tram_02.flac", "Rain.wav",
    ]  # fmt: skip
    assert tram.captions == ["Tram"]
    assert tram.group_id == tram2.group_id == "freetousesounds:City/Tram"  # takes
    assert rain.captions == ["Rain", "Rain falls on a tin roof", "Calm & steady"]
    assert rain.stated_s == pytest.approx(0.5, abs=1e-3)
    assert rain.source == rain.audio_uri == str(root / "Rain.wav")
    assert [o.reason for o in outcomes if isinstance(o, Refusal)] == ["outside_root"]


def test_a_linked_folder_is_entered_in_its_own_place_or_refused(tmp_path: Path) -> None:
    root = touch(tmp_path / "tree", "b/Rain.wav", "c/Wind.wav")
    (root / "a").symlink_to(root / "b")
    (root / "c" / "loop").symlink_to(root)
    other = tmp_path / "more"
    (root / "c" / "more").symlink_to(touch(other, "Sea.wav"))
    outcomes = read(dataset="freetousesounds", root=root)
    assert [r.native_id for r in records(outcomes)] == ["b/Rain.wav", "c/Wind.wav"]
    refused = [(o.native_id, o.reason) for o in outcomes if isinstance(o, Refusal)]
    assert refused == [("c/more", "outside_root")]
    root = tmp_path / "links"
    root.mkdir()
    (root / "more").symlink_to(other)
    (linked,) = read(dataset="freetousesounds", root=root)
    assert isinstance(linked, Refusal) and linked.detail == f"'more' links to outside {root}"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_texts_of_ones_own_override_the_names(tmp_path: Path, suffix: str) -> None:
    root = touch(tmp_path / "tree", "a.wav", "sub/b.wav")
    rows = (("sub/b.wav", "A tram, late"), ("gone.wav", "x"), ("./sub/b.wav", "y"), ("a.wav", ""))
    own = tmp_path / f"texts{suffix}"
    if suffix == ".csv":
        write(own, "file_name,caption", *(f'{name},"{text}"' for name, text in rows))
    else:
        write(own, *(f'{{"file_name": "{name}", "text": "{text}"}}' for name, text in rows))
    outcomes = read(dataset="freetousesounds", root=root, captions=own)
    assert [r.captions for r in records(outcomes)] == [["a"], ["A tram, late"]]
    first = 2 if suffix == ".csv" else 1
    assert merged(outcomes) == [str(first)]
    assert sorted((o.source, o.reason) for o in outcomes if isinstance(o, Refusal)) == [
        (f"{own}:{first + 1}", "missing_audio"),
        (f"{own}:{first + 2}", "duplicate"),
        (f"{own}:{first + 3}", "malformed_row"),
    ]


def test_a_tree_without_audio_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AttuneError, match="no audio files in it"):
        read(dataset="freetousesounds", root=touch(tmp_path / "tree", "readme.txt"))
    made = catalog(dataset="freetousesounds", root=tmp_path / "none").without_audio()
    with pytest.raises(AttuneError, match="no such folder"):
        list(made.read())


def test_wav_text_of_large_and_odd_files(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    large = chunk(b"ds64", struct.pack("<QQQI", 0, 1 << 33, 0, 0))
    path.write_bytes(wav(large, FORMAT, b"data" + b"\xff" * 4 + b"\0" * 8, kind=b"RF64"))
    assert read_wav_text(path) == WavText(seconds=(1 << 33) / 16000)
    path.write_bytes(wav(FORMAT, chunk(b"bext", "Caf\u00e9".encode("latin-1").ljust(256, b"\0"))))
    assert read_wav_text(path) == WavText(description="Café")
    path.write_bytes(wav(chunk(b"bext", b"sSPEED=025.000-ND\r\nsTAKE=7\r\n")))
    assert read_wav_text(path) == WavText()  # a recorder's settings describe nothing
    path.write_bytes(b"OggS")
    assert read_wav_text(path) is None
    assert read_wav_text(tmp_path / "none.wav") is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=200), kind=st.sampled_from([b"RIFF", b"RF64"]))
@example(rest=b"bext\xff\xff\xff\xff", kind=b"RIFF")
@example(rest=chunk(b"ds64", b"\xff" * 28) + FORMAT + b"data\xff\xff\xff\xff", kind=b"RF64")
def test_no_header_gets_past_the_parser(tmp_path: Path, rest: bytes, kind: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(rest, kind=kind))
    assert isinstance(read_wav_text(path), WavText)
