"""Clotho as other people pass it on, and recordings it has several excerpts of."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from reading import catalog, records, refusals, write

from common.errors import AttuneError

HEADER = "file_name," + ",".join(f"caption_{k},kor_{k}" for k in range(1, 6))


def test_a_translated_copy_in_its_own_encoding(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    row = "a.wav," + ",".join(f"English {k},한국어 {k}" for k in range(1, 6))
    path.write_bytes(f"{HEADER}\r\n{row}\r\n".encode("cp949"))
    made = catalog(dataset="clotho", captions=path, encoding="cp949").without_audio()
    (record,) = records(list(made.read()))
    assert record.captions == [f"English {k}" for k in range(1, 6)]
    for encoding, message in (
        ("utf-8-sig", r"captions\.csv:2: byte 0x..: not UTF-8 text; convert it: iconv"),
        ("klingon", "unknown encoding 'klingon'"),
    ):
        made = catalog(dataset="clotho", captions=path, encoding=encoding).without_audio()
        with pytest.raises(AttuneError, match=message):
            list(made.read())


def test_held_out_without_knowing_what_is_refused(tmp_path: Path) -> None:
    """Without its metadata its recordings would stay in training wherever else they are."""
    with pytest.raises(ValidationError, match="role: hold_out needs metadata"):
        catalog(dataset="clotho", captions=tmp_path / "c.csv", role="hold_out")
    catalog(dataset="clotho", captions=tmp_path / "c.csv", role="hold_out", metadata=tmp_path / "m")


def test_two_excerpts_of_a_recording_share_a_group_and_are_two_clips(tmp_path: Path) -> None:
    header = "file_name," + ",".join(f"caption_{k}" for k in range(1, 6))
    path = write(
        tmp_path / "captions.csv", header, *(f"{n}.wav,a,b,c,d,e" for n in "xyz"), "bad.wav"
    )
    metadata = write(
        tmp_path / "metadata.csv", "file_name,keywords,sound_id,start_end_samples,license",
        'x.wav,,7,"[0, 661500]",', 'y.wav,,7,"[661500, 1543500]",', "z.wav,,8,,",
    )  # fmt: skip
    made = catalog(dataset="clotho", captions=path, metadata=metadata, split="test")
    outcomes = list(made.without_audio().read())
    assert [(r.group_id, r.clip, r.stated_s) for r in records(outcomes)] == [
        ("freesound:7", "", 15.0), ("freesound:7", "", 20.0), ("freesound:8", "freesound:8", None),
    ]  # fmt: skip
    assert refusals(outcomes) == [("5", "malformed_row")]
