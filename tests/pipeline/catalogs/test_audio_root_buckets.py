"""Catalogs and audio in a bucket: the same records as from a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from calls import freeze
from in_process import encode_all
from reading import touch

from common.config import load_recipe
from common.errors import AttuneError
from common.prompts import PromptForm
from common.shards import ShardDataset
from common.storage import Store, open_store
from pipeline.catalogs.audio_root import AudioRoot, BucketRoot
from pipeline.catalogs.audiofolder import AudioFolder
from pipeline.catalogs.audioset import AudioSet
from pipeline.catalogs.base import CatalogEntry
from pipeline.catalogs.music import Music
from pipeline.encode.finalize import finalize
from pipeline.plan.decide import PlanTables, build_plan
from pipeline.text.captions import TextRules

SEGMENTS = """\
# YTID, start_seconds, end_seconds, positive_labels
-abc, 30.000, 40.000, "/m/a"
gone, 0.000, 10.000, "/m/a"
bad, 0.000, 10.000, "/m/none"
"""
TRACKS = '{"path": "a/odd #1 & 50%.flac", "description": "A calm tune"}\n{"path": "../x.flac"}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bucket(s3_bucket: str) -> Store:
    store = open_store(f"{s3_bucket}/data")
    store.write("audioset/segments.csv", SEGMENTS.encode())
    store.write("audioset/labels.csv", b'index,mid,display_name\n0,/m/a,"Dog, barking"\n')
    store.write("audioset/audio/Y-abc.wav", b"x")
    store.write("music/catalog.jsonl", TRACKS.encode())
    store.write("music/audio/a/odd #1 & 50%.flac", b"x")
    return store


def catalogs(store: Store) -> list[CatalogEntry]:
    uri = store.uri
    return [
        AudioSet.model_validate({
            "segments": f"{uri}/audioset/segments.csv",
            "class_labels": f"{uri}/audioset/labels.csv",
            "audio": f"{uri}/audioset/audio",
        }),
        Music.model_validate({
            "catalog": f"{uri}/music/catalog.jsonl", "audio": f"{uri}/music/audio",
        }),
    ]  # fmt: skip


def plan(made: list[CatalogEntry]) -> PlanTables:
    return build_plan(made, rules=TextRules(PromptForm("plain")), clips_per_shard=4, seed=0)


def test_rows_and_files_of_a_bucket(bucket: Store) -> None:
    tables = plan(catalogs(bucket))
    uri = bucket.uri
    assert {row["audio_uri"]: row["source"] for row in tables.plan.to_pylist()} == {
        f"{uri}/audioset/audio/Y-abc.wav": f"{uri}/audioset/segments.csv:2",
        f"{uri}/music/audio/a/odd #1 & 50%.flac": f"{uri}/music/catalog.jsonl:1",
    }
    assert [(r["source"], r["reason"], r["raw"]) for r in tables.rejects.to_pylist()] == [
        (f"{uri}/audioset/segments.csv:3", "missing_audio", 'gone, 0.000, 10.000, "/m/a"'),
        (f"{uri}/audioset/segments.csv:4", "malformed_row", 'bad, 0.000, 10.000, "/m/none"'),
        (f"{uri}/music/catalog.jsonl:2", "outside_root", '{"path": "../x.flac"}'),
    ]
    # Other content under the same name is read again.
    bucket.write(
        "audioset/segments.csv", SEGMENTS.replace("30.000, 40.000", "50.000, 60.000").encode()
    )
    assert "-abc_50000_60000" in plan(catalogs(bucket)).plan["native_id"].to_pylist()


def test_names_lead_to_objects_as_to_files(s3_bucket: str, tmp_path: Path) -> None:
    names = ("a/x.flac", "./a/x.flac", "a//x.flac", "a/./x.flac", "a/y.flac", "")
    store = open_store(f"{s3_bucket}/audio")
    store.write("a/x.flac", b"x")
    bucket = BucketRoot(store.uri)
    assert [bucket.by_name(name) for name in names] == [f"{store.uri}/a/x.flac"] * 4 + [None] * 2
    folder = AudioRoot(touch(tmp_path, "a/x.flac"))
    assert [folder.by_name(name) for name in names[:4]] == [str(tmp_path / "a/x.flac")] * 4
    for name in ("../x.flac", "a/../../x.flac", "/a/x.flac", "a/.."):
        with pytest.raises(ValueError, match="leads outside"):
            bucket.by_name(name)


def test_what_is_not_in_the_bucket_is_one_line(bucket: Store) -> None:
    _, music = catalogs(bucket)
    gone = music.model_copy(update={"catalog": Path(f"{bucket.uri}/music/none.jsonl")})
    with pytest.raises(AttuneError, match=r"s3://.*/music/none\.jsonl: no such file"):
        plan([gone])
    empty = music.model_copy(update={"audio": Path(f"{bucket.uri}/nothing")})
    with pytest.raises(AttuneError, match=r"s3://.*/nothing: no such folder"):
        plan([empty])
    with pytest.raises(AttuneError, match="must be a folder on a disk"):
        plan([AudioFolder.model_validate({"root": f"{bucket.uri}/tree"})])


def test_audio_of_a_bucket_becomes_the_same_codes(
    s3_bucket: str, small_corpus: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    store = open_store(f"{s3_bucket}/music")
    names = ["tone_00.wav", "tone_07.wav", "page.wav"]
    rows = "".join(f'{{"path": "{name}", "description": "{name[:6]}"}}\n' for name in names)
    for name in names:
        store.write(f"audio/{name}", small_corpus / name)
    store.write("catalog.jsonl", rows.encode())
    (tmp_path / "catalog.jsonl").write_text(rows)
    found = {}
    places = {
        "disk": (tmp_path / "catalog.jsonl", small_corpus),
        "bucket": (f"{store.uri}/catalog.jsonl", f"{store.uri}/audio"),
    }
    for kind, (catalog, audio) in places.items():
        path = tmp_path / f"{kind}.yaml"
        music = f"dataset: music, catalog: '{catalog}', audio: '{audio}'"
        path.write_text(recipe_text(tmp_path / kind, music))
        recipe = load_recipe(path)
        frozen, _ = freeze(recipe)
        if kind == "bucket":
            store.delete("audio/tone_07.wav")
        encode_all(frozen, recipe)
        finalize(frozen, recipe.name, recipe.codec.path)
        data = ShardDataset.open(str(tmp_path / kind))
        samples = [data.read(i) for i in range(len(data))]
        found[kind] = {s.record["native_id"]: s.codes.tolist() for s in samples}
        refused = pq.read_table(tmp_path / kind / "quarantine.parquet").to_pylist()
        found[f"{kind} refused"] = {row["native_id"]: row["reason"] for row in refused}
    assert set(found["disk"]) == {"tone_00.wav", "tone_07.wav"}
    assert found["bucket"]["tone_00.wav"] == found["disk"]["tone_00.wav"]
    assert found["bucket refused"] == {"page.wav": "unreadable", "tone_07.wav": "missing"}
