"""The plan: each row accounted for, shards fixed by ids and seed, held-out clips kept out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from calls import freeze
from pydantic import ValidationError

from common.config import load_recipe
from common.errors import AttuneError
from common.parquet_values import Value
from common.prompts import PromptForm
from common.schema import Record
from common.storage import open_store
from pipeline import planning
from pipeline.catalogs.audiocaps import AudioCaps
from pipeline.catalogs.audiofolder import AudioFolder
from pipeline.catalogs.audioset import AudioSet
from pipeline.catalogs.base import Catalog, CatalogEntry, Merged, Outcome, Refusal, refuse
from pipeline.catalogs.bbc import Bbc
from pipeline.catalogs.wavcaps import WavCaps
from pipeline.config import OverlapPolicy, PipelineConfig
from pipeline.datadir import frozen_plan as planfile
from pipeline.datadir.commit import publish_shard
from pipeline.datadir.frozen_plan import FrozenPlan, load_plan, plan_inputs
from pipeline.plan.decide import PlanTables, build_plan, differing_inputs, hash_inputs
from pipeline.run import audio_roots, on_nodes
from pipeline.text.captions import TextRules


class Listed(Catalog):
    """A catalog made of given outcomes."""

    dataset: Literal["listed"] = "listed"
    outcomes: list[Any]

    def sources(self) -> list[Path]:
        return []

    def read(self) -> Iterator[Outcome]:
        yield from self.outcomes


def clip(i: int, split: str = "train", group: str = "", dataset: str = "listed") -> Record:
    return Record(
        dataset, f"clip{i}", group or f"g{i}", split, f"/{i}.wav", f"f:{i}", tags=[f"tag{i % 5}"]
    )


def plan(
    *catalogs: CatalogEntry, size: int = 8, seed: int = 0, overlap: OverlapPolicy = "keep"
) -> PlanTables:
    rules = TextRules(PromptForm("plain"))
    return build_plan(catalogs, rules=rules, clips_per_shard=size, seed=seed, overlap=overlap)


def test_every_row_is_accounted_for() -> None:
    gone = refuse(clip(100), "catalog", "missing_audio", "")
    speech = Record("listed", "s", "s", "train", "/s.wav", "f", tags=["Speech"])
    outcomes = [*map(clip, range(20)), clip(3), gone, Merged("f:9"), speech]
    tables = plan(Listed(outcomes=outcomes))
    assert tables.counts["listed"].as_dict() == {
        "read": 24,
        "accepted": 20,
        "merged": 1,
        "held_out": 0,
        "splits": {"train": 20, "valid": 0, "test": 0},
        "refused": {"duplicate": 1, "missing_audio": 1, "speech": 1},
        "speech": {"word": 1, "term": 1, "wide": 1},
    }
    assert len(tables.plan) == 20 and len(tables.rejects) == 3


def test_membership_does_not_depend_on_the_order_of_rows_or_catalogs() -> None:
    rows = [*map(clip, range(50))]
    one = plan(Listed(outcomes=rows)).plan
    other = plan(Listed(outcomes=rows[30:]), Listed(outcomes=rows[29::-1])).plan
    assert one.equals(other)
    assert not one.equals(plan(Listed(outcomes=rows), seed=1).plan)
    shards = one["shard"].to_pylist()
    assert shards == sorted(shards) and [shards.count(s) for s in range(7)] == [8] * 6 + [2]
    in_first = one["sample_id"].to_pylist()[:8]
    assert in_first == sorted(in_first)
    assert one["position"].to_pylist()[:9] == [*range(8), 0]


def value(i: int, file: str = "/a.parquet", rows_per_group: int = 16) -> Record:
    record = clip(i)
    record.audio_uri = str(Value(i // rows_per_group, i % rows_per_group, "audio", file))
    return record


def test_clips_of_a_row_group_are_side_by_side_and_the_others_in_their_own_order() -> None:
    files, values = [*map(clip, range(200, 280))], [*map(value, range(160))]
    rows = plan(Listed(outcomes=[*values, *files]), size=6).plan.to_pylist()
    groups: dict[str, set[int]] = {}
    for row in rows:
        if row["audio_uri"].startswith("value:"):
            groups.setdefault(row["audio_uri"].split(":")[1], set()).add(row["shard"])
    assert len(groups) == 10
    for shards in groups.values():  # 16 clips in shards of 6
        assert len(shards) <= 4 and max(shards) - min(shards) == len(shards) - 1
    for shard in range(40):  # within a shard, too
        uris = [row["audio_uri"] for row in rows if row["shard"] == shard]
        here = [uri.split(":")[1] if ":" in uri else uri for uri in uris]
        runs = [a for a, b in pairwise([*here, ""]) if a != b]
        assert len(runs) == len(set(runs))
    order = [row["native_id"] for row in plan(Listed(outcomes=files), size=1).plan.to_pylist()]
    shard = {row["native_id"]: row["shard"] for row in rows}
    assert [shard[name] for name in order] == sorted(shard[name] for name in order)
    first = sum(min(shards) < 20 for shards in groups.values())
    assert 0 < first < 10  # row groups are spread among the files


def test_the_order_of_row_groups_depends_only_on_their_clips_and_the_seed() -> None:
    values = [*map(value, range(160))]
    moved = [value(i, "s3://b/c.parquet") for i in reversed(range(160))]
    one, other = (plan(Listed(outcomes=rows)).plan for rows in (values, moved))
    names = ["sample_id", "shard", "position"]
    assert one.select(names).equals(other.select(names))
    seeded = plan(Listed(outcomes=values), seed=1).plan
    assert not one.select(names).equals(seeded.select(names))


def test_groups_held_out_by_any_dataset_stay_out_of_training() -> None:
    held_out_but_refused = refuse(clip(90, "test", "yt:z", "c"), "catalog", "missing_audio", "")
    tables = plan(
        Listed(outcomes=[clip(1, group="yt:x"), clip(2, group="yt:y"), clip(3, group="yt:z")]),
        Listed(name="b", outcomes=[clip(4, "valid", "yt:x", "b"), clip(5, "train", "yt:y", "b")]),
        Listed(name="c", outcomes=[held_out_but_refused]),
    )
    leaks = tables.rejects.filter(pc.equal(tables.rejects["reason"], "leakage"))
    assert leaks["native_id"].to_pylist() == ["clip1", "clip3"]
    assert leaks["stage"].to_pylist() == ["split", "split"]
    assert sorted(tables.plan["native_id"].to_pylist()) == ["clip2", "clip4", "clip5"]


def test_a_catalog_of_held_out_groups_adds_nothing_but_their_names() -> None:
    tables = plan(
        Listed(outcomes=[clip(1, group="yt:x"), clip(2, group="yt:y")]),
        Listed(name="h", role="hold_out", outcomes=[clip(3, "test", "yt:x", "h")]),
    )
    assert tables.plan["native_id"].to_pylist() == ["clip2"]
    assert tables.leakage == {"listed <- h test": 1}
    assert tables.counts["h"].as_dict()["held_out"] == 1
    assert tables.rejects["detail"].to_pylist() == ["yt:x is linked to a clip in h test (f:3)"]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_held_out_catalog_holds_whatever_its_split(split: str) -> None:
    broken = Refusal("h", "x", "h:9", "catalog", "malformed_row", "", group_id="z", split=split)
    tables = plan(
        Listed(outcomes=[clip(1, group="x"), clip(2, "valid", "x"), clip(3, group="z"), clip(4)]),
        Listed(name="b", outcomes=[clip(5, "test", "x", "b")]),
        Listed(name="h", role="hold_out", outcomes=[clip(6, split, "x", "h"), broken]),
    )
    assert sorted(tables.plan["native_id"].to_pylist()) == ["clip4", "clip5"]
    assert tables.counts["listed"].as_dict()["refused"] == {"leakage": 3}
    assert tables.counts["h"].as_dict() | {"speech": {}} == {
        "read": 2, "accepted": 0, "merged": 0, "held_out": 1,
        "splits": {"train": 0, "valid": 0, "test": 0},
        "refused": {"malformed_row": 1}, "speech": {},
    }  # fmt: skip
    assert sum(tables.leakage.values()) == 3
    if split != "test":
        assert tables.leakage == {"listed <- b test": 2, "listed <- h hold_out": 1}


def test_a_held_out_list_of_audiocaps_keeps_its_clips_out_of_audioset(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n0,/m/a,Rain\n")
    (tmp_path / "segments.csv").write_text('x, 30.000, 40.000, "/m/a"\ny, 0.000, 10.000, "/m/a"\n')
    (tmp_path / "test.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,x,30,Rain\n")
    segments = AudioSet(
        segments=tmp_path / "segments.csv", class_labels=tmp_path / "labels.csv"
    ).without_audio()
    captions = AudioCaps(captions=tmp_path / "test.csv", role="hold_out")
    for catalogs in ([segments, captions], [captions, segments]):
        tables = plan(*catalogs)
        assert tables.plan["native_id"].to_pylist() == ["y_0_10000"]
        assert tables.leakage == {"audioset <- audiocaps hold_out": 1}


def test_one_recording_under_two_groups_stays_in_its_strictest_split() -> None:
    train = [shared("b", i, tags=["Rain"]) for i in (1, 2, 3, 4)]
    for record, group in zip(train, ["cd1", "cd1", "cd2", "cd3"], strict=True):
        record.group_id = group
    test = shared("c", 1, "test", tags=["Rain"])
    gone = refuse(shared("c", 3, "valid"), "catalog", "missing_audio", "")
    tables = plan(Listed(name="b", outcomes=train), Listed(name="c", outcomes=[test, gone]))
    assert sorted(tables.plan["audio_uri"].to_pylist()) == ["/b4.wav", "/c1.wav"]
    assert tables.leakage == {"b <- c test": 2, "b <- c valid": 1}
    rejects = tables.rejects.to_pylist()
    assert [row["detail"] for row in rejects if row["reason"] == "leakage"] == [
        "youtube:1@30 is linked to a clip in c test (c.csv:1)",
        "cd1 is linked to a clip in c test (c.csv:1)",
        "youtube:3@30 is linked to a clip in c valid (c.csv:3)",
    ]  # fmt: skip


def segment(dataset: str, i: int, split: str, uri: str) -> Record:
    return Record(
        dataset, f"n{i}", f"{dataset}:{i}", split, uri, f"f:{i}", 10.0 * i, 10.0 * i + 10,
        tags=["Rain"],
    )  # fmt: skip


def test_one_file_in_two_lists_stays_in_its_strictest_split() -> None:
    own = [segment("b", i, "train", f"/{'xxyz'[i]}.wav") for i in range(4)]
    bucket = segment("b", 4, "valid", "s3://bucket/x.wav")
    tables = plan(
        Listed(name="b", outcomes=[*own, bucket]),
        Listed(name="c", outcomes=[segment("c", 0, "test", "/y.wav")]),
        Listed(name="d", outcomes=[segment("d", 0, "train", "s3://bucket/x.wav")]),
    )
    kept = zip(*(tables.plan[name].to_pylist() for name in ("dataset", "native_id")), strict=True)
    # Two segments of a file that is nowhere else stay both.
    assert sorted(kept) == [("b", "n0"), ("b", "n1"), ("b", "n3"), ("b", "n4"), ("c", "n0")]
    assert tables.leakage == {"b <- c test": 1, "d <- b valid": 1}
    assert sorted(tables.rejects["detail"].to_pylist()) == [
        "/y.wav is linked to a clip in c test (f)",
        "s3://bucket/x.wav is linked to a clip in b valid (f:4)",
    ]  # fmt: skip


def test_a_name_in_a_folder_that_was_not_looked_at_is_no_file() -> None:
    tables = plan(
        Listed(name="b", outcomes=[segment("b", 1, "train", "x.wav")]),
        Listed(name="c", outcomes=[segment("c", 1, "test", "x.wav")]),
        Listed(name="d", role="hold_out", outcomes=[segment("d", 1, "test", "x.wav")]),
    )
    assert len(tables.plan) == 2 and tables.leakage == {}


def test_a_file_that_a_list_names_in_two_ways_is_one_clip(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,split\na.wav,A dog,train\n./a.wav,A dog barks,test\n"
    )
    tables = plan(AudioFolder(root=tmp_path))
    assert [(r["native_id"], r["split"]) for r in tables.plan.to_pylist()] == [("a.wav", "test")]
    (refused,) = tables.rejects.to_pylist()
    place = f"{tmp_path}/metadata.csv"
    assert (refused["source"], refused["reason"]) == (f"{place}:3", "malformed_row")
    assert refused["detail"] == f"split: 'test', but {place}:2 says 'train' for the same clip"


def test_a_row_that_makes_no_clip_is_refused_without_an_id(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\n,A cat\na.wav,A dog\nb.wav,Speech\n")
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    malformed, speech = plan(AudioFolder(root=tmp_path)).rejects.to_pylist()
    assert (malformed["reason"], malformed["sample_id"]) == ("malformed_row", None)
    assert (speech["reason"], len(speech["sample_id"])) == ("speech", 32)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.csv", "file_name,sentence\na.wav,A dog barks.\nb.wav,Rain falls.\n"),
        ("metadata.jsonl", '{"file_name": "a.wav", "sentence": "A dog barks."}\n'),
        ("train/metadata.csv", "file_name;sentence;tags\na.wav;A dog barks.;\n"),
    ],
)
def test_a_list_whose_text_is_in_no_column_that_is_read(
    tmp_path: Path, name: str, rows: str
) -> None:
    """The message names its columns, and the columns that are read."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(rows)
    for audio in ("a.wav", "b.wav"):
        (path.parent / audio).touch()
    has = "file_name, sentence, tags" if ";" in rows else "file_name, sentence"
    message = (
        f"neither tags nor captions; columns: {has}; text is read from text, caption, description "
        "(also caption_1, ...), tags, keywords, labels, label"
    )
    with pytest.raises(AttuneError, match="catalog rows is usable: no_text") as error:
        plan(AudioFolder(root=tmp_path))
    assert str(error.value).count("sentence") == 1 and str(error.value).endswith(f": {message}")
    rejects = plan(AudioFolder(root=tmp_path), Listed(outcomes=[clip(0)])).rejects
    assert set(rejects["detail"].to_pylist()) == {message}
    held = plan(AudioFolder(root=tmp_path, role="hold_out"), Listed(outcomes=[clip(0)]))
    assert len(held.rejects) == 0  # which needs no text


@pytest.mark.parametrize(
    ("row", "files"),
    [
        ("a.wav,Rain,ECD1", "a.wav b.wav"),
        ("a.wav,Rain,ECD1", "b.wav"),
        ("a.wav,Rain,ECD1,?", "b.wav"),
    ],
)
def test_a_bbc_sound_in_test_is_not_trained_on_as_wavcaps_names_it(
    tmp_path: Path, row: str, files: str
) -> None:
    (tmp_path / "bbc.csv").write_text(f"location,description,CDNumber\n{row}\n")
    entries = [{"id": stem, "caption": "Rain", "duration": 9} for stem in "ab"]
    (tmp_path / "wavcaps.json").write_text(json.dumps({"data": entries}))
    for name in files.split():
        (tmp_path / name).touch()
    tables = plan(
        Bbc(sounds=tmp_path / "bbc.csv", audio=tmp_path, split="test"),
        WavCaps(captions=tmp_path / "wavcaps.json", source="bbc").without_audio(),
    )
    found = tables.plan.filter(pc.equal(tables.plan["dataset"], "wavcaps"))
    assert found["native_id"].to_pylist() == ["bbc/b"]
    assert tables.leakage == {"wavcaps <- bbc test": 1}


def shared(dataset: str, i: int, split: str = "train", **more: Any) -> Record:
    return Record(
        dataset, f"n{i}", f"g{i}", split, f"/{dataset}{i}.wav", f"{dataset}.csv:{i}",
        clip=f"youtube:{i}@30", **more,
    )  # fmt: skip


def test_clips_in_two_datasets_are_counted_and_kept_or_merged() -> None:
    catalogs = [
        Listed(name="b", outcomes=[shared("b", i, tags=["Dog", "Bark"]) for i in (1, 2, 3)]),
        Listed(name="a", outcomes=[shared("a", i, captions=[f"Text {i}"]) for i in (2, 3, 4)]),
        Listed(name="c", outcomes=[shared("c", 3, tags=["Rain"])]),
    ]
    found = {"b + a": 2, "b + c": 1, "a + c": 1}
    kept = plan(*catalogs)
    assert kept.overlaps == found and len(kept.plan) == 7
    merged = plan(*catalogs, overlap="merge")
    assert merged.overlaps == found
    merges = {label: count.merged for label, count in merged.counts.items()}
    assert merges == {"b": 0, "a": 2, "c": 1}
    rows = {row["audio_uri"]: row for row in merged.plan.to_pylist()}
    assert sorted(rows) == ["/a4.wav", "/b1.wav", "/b2.wav", "/b3.wav"]
    assert rows["/b3.wav"]["prompts"] == ["dog bark", "Text 3", "rain"]
    assert rows["/b3.wav"]["tags"] == ["Dog", "Bark", "Rain"]
    assert rows["/b2.wav"]["captions"] == ["Text 2"]
    assert rows["/b1.wav"]["prompts"] == ["dog bark"]


def test_rejects_hold_the_exact_row_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        'file_name,text\ngone.wav,"two\nlines"\na.wav,A dog\nb.wav,A speech\n'
    )
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    rejects = plan(AudioFolder(root=tmp_path)).rejects.to_pylist()
    assert [(row["reason"], row["raw"].splitlines()) for row in rejects] == [
        ("missing_audio", ['gone.wav,"two', 'lines"']), ("speech", ["b.wav,A speech"]),
    ]  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_clip_in_several_splits_stays_in_the_one_held_out(order: tuple[int, ...]) -> None:
    """Nor does validation get a clip of a recording that is in test."""
    catalogs = [
        Listed(outcomes=[clip(1, split), clip(10 + i, split)])
        for i, split in enumerate(("train", "valid", "test"))
    ]
    catalogs[1].outcomes.append(clip(20, "valid", "g1"))
    tables = plan(*(catalogs[i] for i in order))
    found = {row["native_id"]: row["split"] for row in tables.plan.to_pylist()}
    assert found == {"clip1": "test", "clip10": "train", "clip11": "valid", "clip12": "test"}
    assert sorted(tables.rejects["reason"].to_pylist()) == ["duplicate", "duplicate", "leakage"]


AUDIOCAPS = {"dataset": "audiocaps", "captions": "/train.csv", "audio": "/x"}


def test_catalogs_whose_ids_may_collide_need_names() -> None:
    def config(*catalogs: dict[str, str]) -> PipelineConfig:
        return PipelineConfig.model_validate({"catalogs": catalogs})

    folder = {"dataset": "audiofolder", "root": "/x"}
    with pytest.raises(ValidationError, match=r"2 catalogs are named 'audiofolder'.*name="):
        config(folder, folder | {"root": "/y"})
    config(folder, folder | {"root": "/y", "name": "y"})
    with pytest.raises(ValidationError, match="'audiocaps'"):
        config(folder | {"name": "audiocaps"}, AUDIOCAPS)
    config(AUDIOCAPS, AUDIOCAPS | {"captions": "/val.csv", "split": "valid"})


def test_a_plan_of_nothing_says_why() -> None:
    gone = refuse(clip(1), "catalog", "missing_audio", "no clip1.* in /audio")
    with pytest.raises(AttuneError, match=r"missing_audio 1; first: f:1: no clip1"):
        plan(Listed(outcomes=[gone]))


def test_shards_whose_plan_is_gone_are_taken_only_into_the_same_plan(
    write_recipe: Callable[..., Path], small_corpus: Path, tmp_path: Path
) -> None:
    audio = tmp_path / "audio"
    shutil.copytree(small_corpus, audio)

    def ensure(*overrides: str) -> tuple[FrozenPlan, bool]:
        root = f"pipeline.catalogs.0.root={audio}"
        return freeze(load_recipe(write_recipe(tmp_path / "data"), [root, *overrides]))

    first, _ = ensure()
    for shard, rows in first.shards():
        refused = [{"sample_id": key, "reason": "silent"} for key in rows["sample_id"].to_pylist()]
        publish_shard(first.store, shard, first.plan_hash, None, [], refused)
    plan_folder = tmp_path / "data" / "plan"
    shutil.rmtree(plan_folder)
    again, is_new = ensure()
    assert is_new and again.info == first.info

    shutil.rmtree(plan_folder)
    with pytest.raises(AttuneError, match=f"a plan that is gone.*is of plan {first.plan_hash}"):
        ensure("seed=5")
    (audio / "tone_03.wav").rename(audio / "elsewhere.wav")
    with pytest.raises(AttuneError, match=r"a plan that is gone.*commits/0.*delete commits/ and"):
        ensure()
    assert not plan_folder.exists()
    (audio / "elsewhere.wav").rename(audio / "tone_03.wav")
    publish_shard(first.store, first.n_shards, first.plan_hash, None, [], [])
    with pytest.raises(AttuneError, match=rf"commits/{first.n_shards:06d}\.json is of no shard"):
        ensure()


def test_the_folders_of_audio_are_those_above_all_of_a_catalogs_files(tmp_path: Path) -> None:
    paths = [
        "/a/x/1/é.wav", "/a/x/2.wav", "/a/xy/3.wav", "/a/deep/4.wav", "/a/deep/5.wav",
        "/b/audio/6/7.wav", "/b/audio/8/9.wav", "/bb/10.wav", "s3://bucket/11.wav",
    ]  # fmt: skip
    (tmp_path / "plan").mkdir()
    table = pa.table({"audio_uri": paths})
    table = table.replace_schema_metadata({"attune.plan_hash": "x"})
    pq.write_table(table, tmp_path / "plan" / "plan.parquet", row_group_size=2)
    frozen = FrozenPlan(open_store(tmp_path), {"plan_hash": "x"})
    found = frozen.audio_folders(["/a", "/a/deep", "/b", "/b/", "/nothing"])
    assert sorted(found) == ["/a", "/a/deep", "/b/audio"]
    assert frozen.audio_folders([]) == ()


def test_the_roots_of_audio_are_written_as_in_the_plan() -> None:
    catalogs = [
        {"dataset": "audiofolder", "root": "here/../there"}, AUDIOCAPS,
        AUDIOCAPS | {"audio": "s3://bucket/audio"}, {"dataset": "audiocaps", "captions": "/c.csv",
        "role": "hold_out"},
    ]  # fmt: skip
    here = Path.cwd()
    assert set(audio_roots(PipelineConfig.model_validate({"catalogs": catalogs}).catalogs)) == {
        f"{here}/here/../there", f"{here}/there", "/x",
    }  # fmt: skip


def test_differences_are_named() -> None:
    old = {"pipeline": {"min": 1, "catalogs": [{"a": 1}, {"a": 2}]}, "codec_id": "x"}
    new = {"pipeline": {"min": 1, "catalogs": [{"a": 1}, {"a": 3}]}, "codec_id": "y"}
    assert hash_inputs(old) != hash_inputs(new)
    assert differing_inputs(old, new) == [
        'codec_id: "x" -> "y"', "pipeline.catalogs.1.a: 2 -> 3",
    ]  # fmt: skip


def test_a_frozen_plan_is_kept_and_another_is_refused_once_shards_exist(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    def ensure(*overrides: str) -> tuple[str, bool]:
        frozen, is_new = freeze(load_recipe(write_recipe(tmp_path / "data"), overrides))
        return frozen.plan_hash, is_new

    first, is_new = ensure()
    assert is_new and ensure() == (first, False)
    assert ensure("pipeline.workers=7", "pipeline.device=cpu") == (first, False)
    other, is_new = ensure("pipeline.min_duration_s=0.7")
    assert is_new and other != first  # nothing was made from the first yet
    store = open_store(tmp_path / "data")
    store.create("commits/000000.json", b"{}")
    with pytest.raises(AttuneError) as error:
        ensure()
    for part in (first, other, "pipeline.min_duration_s: 0.7 -> 0.5"):
        assert part in str(error.value)
    kept = load_plan(store)
    assert kept is not None and kept.plan_hash == other


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"plan_hash": "x"}'])
def test_a_torn_plan_is_one_line(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path / "data")
    store.write("plan/plan.json", content)
    with pytest.raises(AttuneError, match=r"plan\.json: is damaged; delete the folder plan/"):
        load_plan(store)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_broken_codec_config_is_one_line(
    write_recipe: Callable[..., Path], tmp_path: Path, tiny_codec: Path, content: bytes
) -> None:
    codec = tmp_path / "codec"
    shutil.copytree(tiny_codec, codec)
    (codec / "config.json").write_bytes(content)
    recipe = load_recipe(write_recipe(tmp_path / "data"), [f"codec.path={codec}"])
    with pytest.raises(AttuneError, match=r"codec .*config\.json is not"):
        plan_inputs(recipe, recipe.section("pipeline", PipelineConfig))


def test_of_two_runs_that_plan_at_once_the_first_wins(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver freezes its plan while this one still reads its catalogs."""
    store = open_store(tmp_path / "data")

    def ensure(*overrides: str) -> tuple[FrozenPlan, bool]:
        return freeze(load_recipe(write_recipe(tmp_path / "data"), overrides))

    def race(mine: list[str], other: list[str], moment: str) -> tuple[FrozenPlan, bool]:
        store.delete("plan/plan.json")
        module = planning if moment == "build_plan" else planfile
        true = getattr(module, moment)
        raced = False

        def overtaken(*arguments: Any, **options: Any) -> Any:
            nonlocal raced
            if not raced:
                raced = True  # first: the other run comes through here too
                assert ensure(*other)[1]
            return true(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, moment, overtaken)
            return ensure(*mine)

    for moment in ("build_plan", "_write_parquet"):
        plan, is_new = race([], [], moment)
        assert not is_new and plan.info == load_plan(store).info  # type: ignore[union-attr]
        with pytest.raises(AttuneError, match="another run froze plan"):
            race([], ["pipeline.min_duration_s=0.7"], moment)
    # The winner's tables were overwritten by the loser, and nobody takes them for the winner's.
    winner = load_plan(store)
    assert winner is not None
    with pytest.raises(AttuneError, match="planned there at once"):
        next(winner.shards())
    with pytest.raises(AttuneError, match="planned there at once"):
        next(winner.batches("prompts", ["chunk"]))


def test_a_folder_is_named_as_workers_elsewhere_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "codec").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str(tmp_path / "runs" / "codec")
    assert on_nodes("runs/codec") == on_nodes("~/runs/codec") == on_nodes(expected) == expected
    for name in ("builtin:sfx-small", "facebook/encodec_32khz", "package:x/model"):
        assert on_nodes(name) == name
