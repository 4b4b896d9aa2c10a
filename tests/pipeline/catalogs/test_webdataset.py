"""WebDataset tars: samples, their texts, splits and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packing import pack
from reading import catalog, read, records

from common.errors import AttuneError
from common.prompts import PromptForm
from common.sources import parse, read_bytes
from common.storage import open_store
from pipeline.catalogs.base import Outcome, Refusal
from pipeline.plan.decide import build_plan, decide
from pipeline.text.captions import TextRules

RULES = TextRules(PromptForm("plain"))


def said(value: object) -> bytes:
    return json.dumps(value).encode()


def refused(outcomes: list[Outcome]) -> dict[str, tuple[str, str]]:
    return {o.native_id: (o.reason, o.detail) for o in outcomes if isinstance(o, Refusal)}


def test_samples_are_read_with_all_their_texts(tmp_path: Path) -> None:
    laion = {"text": ["A dog barks twice"], "tag": ["dog", "bark"], "original_data": {"a": 1}}
    more = {"caption_1": "rain falls", "caption_2": "it rains", "tags": "rain;roof", "duration": 2,
            "license": "CC0", "title": "Rain", "artist": "Ann", "txt": "not its .txt"}  # fmt: skip
    tar = pack(tmp_path / "000.tar", {
        "a/1.flac": b"sound 1", "a/1.json": said(laion),
        "2.json": said(more), "2.txt": b"rain falls\n", "2.WAV": b"sound 2",
        "3.cls": b"church bell", "4.ogg": b"sound 4", "4.cls": b"hum", "3.mp3": b"sound 3",
        "._3.json": b"x", "readme": b"x", "5.stem.wav": b"sound 5", "5.stem.txt": b"a hum",
    })  # fmt: skip
    found = records(read(dataset="webdataset", audio=tar))
    assert [(r.native_id, r.captions, r.tags) for r in found] == [
        ("000/a/1", ["A dog barks twice"], ["dog", "bark"]),
        ("000/2", ["rain falls", "it rains"], ["rain", "roof"]),
        ("000/3", [], ["church bell"]),
        ("000/4", [], ["hum"]),
        ("000/5", ["a hum"], []),
    ]
    for record in found:
        source = parse(record.audio_uri)
        assert source is not None
        assert read_bytes(source).decode() == f"sound {record.native_id[-1]}"
    rain = found[1]
    assert (rain.title, rain.artist, rain.license, rain.stated_s) == ("Rain", "Ann", "CC0", 2)
    assert rain.group_id == "webdataset:000/2"
    assert (rain.source, rain.real_uri) == (f"{tar}!/2", f"{tar}!/2.WAV")
    made = catalog(dataset="webdataset", audio=tar)
    assert made.unread_columns() == ["original_data"]


def test_samples_that_are_refused(tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", {
        "none.wav": b"x", "number.wav": b"x", "number.cls": b"3", "silent.txt": b"a hum",
        "two.wav": b"x", "two.mp3": b"x", "two.txt": b"a hum", "torn.wav": b"x", "torn.json": b"{",
        "list.wav": b"x", "list.json": b"[]", "latin.wav": b"x", "latin.txt": b"caf\xe9",
        "big.wav": b"x", "big.txt": bytes(2 << 20), "split.wav": b"x",
        "split.json": said({"text": "a", "split": "both"}), "../up.wav": b"x", "../up.txt": b"a",
    })  # fmt: skip
    made = catalog(dataset="webdataset", audio=tar)
    outcomes = list(made.read())
    assert [record.native_id for record in records(outcomes)] == ["x/none"]
    found = refused(outcomes)
    for key, reason, detail in (
        ("x/number", "malformed_row", "cls: '3' is a number, no text"),
        ("x/silent", "missing_audio", f"no audio file silent.* in {tar}"),
        ("x/two", "malformed_row", "2 audio files of one key: two.wav and two.mp3"),
        ("x/torn", "malformed_row", "torn.json: not valid JSON"),
        ("x/list", "malformed_row", "list.json: expected an object, found list"),
        ("x/latin", "malformed_row", "latin.txt: is not UTF-8 text"),
        ("x/big", "malformed_row", "big.txt has 2097152 bytes"),
        ("x/split", "malformed_row", "split: expected one of train, valid, test"),
        ("x/../up", "malformed_row", "../up.txt leads outside"),
    ):
        assert found[key][0] == reason
        assert found[key][1].startswith(detail)
    table = decide([made], rules=RULES).rows.to_pylist()
    detail = next(row["detail"] for row in table if row["native_id"] == "x/none")
    assert "text is read from .txt, .cls and, in .json, text" in detail


def test_one_key_in_several_tars_and_their_splits(tmp_path: Path) -> None:
    sample = {"0.wav": b"x", "0.txt": b"a hum"}
    for name in ("train/0.tar", "validation/0.tar", "shards/test-0.tar", "shards/0.tar"):
        pack(tmp_path / name, sample)
    pack(tmp_path / "shards/1.tar", sample | {"0.json": said({"split": "eval", "group": "g"})})

    def splits(**more: Any) -> dict[str, str]:
        outcomes = read(dataset="webdataset", audio=tmp_path / "*/*.tar", **more)
        return {record.native_id: record.split for record in records(outcomes)}

    assert splits() == {
        "train/0/0": "train", "validation/0/0": "valid", "shards/test-0/0": "test",
        "shards/0/0": "train", "shards/1/0": "test",
    }  # fmt: skip
    assert set(splits(split="valid").values()) == {"valid", "test"}  # a sample's own word counts


def test_tars_in_a_bucket_are_planned_like_those_on_a_disk(s3_bucket: str, tmp_path: Path) -> None:
    files = {"0.wav": b"x", "0.json": said({"text": "a hum"}), "1.wav": b"x"}
    store = open_store(f"{s3_bucket}/webdataset")
    places = (tmp_path / "*.tar", f"{store.uri}/*.tar")
    for i in range(2):
        store.write(f"{i}.tar", pack(tmp_path / f"{i}.tar", files))
    store.write("more/2.tar", tmp_path / "0.tar")
    plans = []
    for place in places:
        made = catalog(dataset="webdataset", audio=place)
        tables = build_plan([made], rules=RULES, clips_per_shard=4, seed=0)
        plans.append(tables.plan["sample_id"].to_pylist())
        assert tables.rejects["reason"].to_pylist() == ["no_text"] * 2
    assert len(plans[0]) == 2 and plans[0] == plans[1]
    address = tables.plan["audio_uri"][0].as_py()
    assert address.startswith("member:0:513:tar:s3://bucket/webdataset/")


def test_tars_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.tar", {"0.wav": b"x", "0.txt": b"a hum"}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1500])
    with pytest.raises(AttuneError, match=r"/cut\.tar: not a whole tar"):
        read(dataset="webdataset", audio=tmp_path / "cut.tar")
    pack(tmp_path / "a.zip", {"0.wav": b"x"})
    with pytest.raises(AttuneError, match=r"catalog webdataset: /.*/a\.zip: expected tars"):
        read(dataset="webdataset", audio=tmp_path / "a*")
    with pytest.raises(AttuneError, match=r"/none\*\.tar: no such archive"):
        read(dataset="webdataset", audio=tmp_path / "none*.tar")
