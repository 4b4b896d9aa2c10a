"""Names of files that a list and a disk spell differently."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from reading import read, records, touch, write

from pipeline.catalogs.audio_root import AudioRoot, BucketRoot
from pipeline.catalogs.base import Refusal

ON_DISK = (
    "Upper.WAV",
    "blank.wav",
    "sub/slash.wav",
    "caf\u00e9.wav",
    "two.wav",
    "two.wav ",
    "a b.wav",
)


@pytest.fixture(params=["disk", "bucket"])
def audio(request: pytest.FixtureRequest, tmp_path: Path) -> AudioRoot:
    if request.param == "disk":
        return AudioRoot(touch(tmp_path, *ON_DISK))
    import boto3  # the store itself only writes plain names

    uri = request.getfixturevalue("s3_bucket")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for name in ON_DISK:
        client.put_object(Bucket="bucket", Key=f"audio/{name}", Body=b"x")
    return BucketRoot(f"{uri}/audio")


def test_a_name_is_read_if_just_one_file_can_be_meant(audio: AudioRoot) -> None:
    for name, found in {
        "blank.wav": "blank.wav", "blank.wav ": "blank.wav", " blank.wav": "blank.wav",
        "sub\\slash.wav": "sub/slash.wav", "./sub/ slash.wav": "sub/slash.wav",
        "cafe\u0301.wav": "caf\u00e9.wav", "caf&eacute;.wav": "caf\u00e9.wav",
        "a%20b.wav": "a b.wav",
        "two.wav": "two.wav", "two.wav ": "two.wav ",  # as they stand
        " two.wav": " two.wav",  # either could be meant
        "upper.wav": "upper.wav", "gone.wav": "gone.wav", "../blank.wav": "../blank.wav",
    }.items():  # fmt: skip
        assert audio.spelling(name) == found


def test_a_file_of_a_similar_name_is_named(audio: AudioRoot) -> None:
    assert audio.similar("upper.wav") == audio.similar("UPPER") == ["Upper.WAV"]
    assert audio.similar(" TWO.wav") == ["two.wav", "two.wav "]
    assert audio.similar("gone.wav") == []


def test_rows_say_which_file_is_there(tmp_path: Path) -> None:
    touch(tmp_path, *ON_DISK)
    names = ("Upper.wav", "blank.wav ", "sub\\slash.wav", "gone.wav")
    write(tmp_path / "metadata.csv", "file_name,text", *(f"{name},a ping" for name in names))
    outcomes = read(dataset="audiofolder", root=tmp_path)
    assert [r.native_id for r in records(outcomes)] == ["blank.wav", "sub/slash.wav"]
    assert [o.detail for o in outcomes if isinstance(o, Refusal)] == [
        f"no 'Upper.wav' in {tmp_path}; there is 'Upper.WAV'", f"no 'gone.wav' in {tmp_path}",
    ]  # fmt: skip
    captions = write(tmp_path / "c.csv", "youtube_id,start_time,caption", "UPPER,0,A dog")
    (refused,) = read(dataset="audiocaps", captions=captions, audio=tmp_path)
    assert isinstance(refused, Refusal)
    assert refused.detail == f"no UPPER_0.* in {tmp_path}"
