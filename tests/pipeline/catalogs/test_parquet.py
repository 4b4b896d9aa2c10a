"""Parquet files that hold the audio, in the forms in which they are published."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from calls import freeze
from in_process import encode_all
from parquet_files import CountedReads, Sound, write_parquet
from reading import catalog, read, records, refusals

from common import parquet_values
from common.config import load_recipe
from common.errors import AttuneError
from common.parquet_values import Value
from common.prompts import PromptForm
from common.shards import ShardDataset
from common.storage import open_store
from pipeline.catalogs.base import Refusal
from pipeline.encode.finalize import finalize
from pipeline.plan.decide import build_plan
from pipeline.text.captions import TextRules

ONE = [(b"1", "a.wav")]


def sounds(*names: str | None) -> list[Sound]:
    return [(str(name).encode(), name) for name in names]


def texts(**values: Any) -> dict[str, tuple[list[str], list[str], str]]:
    """Captions, tags and split of each record, by native id."""
    found = records(read(dataset="parquet", **values))
    return {r.native_id: (r.captions, r.tags, r.split) for r in found}


def test_a_file_as_hugging_face_exports_it(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "train-00000-of-00001.parquet", sounds("a.wav", "b.wav", "c.wav"),
        rows_per_group=2, caption=["a whistle", "nan", "a click"], title=["A", None, "C"],
        human_labels=[["Whistle"], ["Hum"], []], license=["CC0", None, "CC-BY"],
    )  # fmt: skip
    first, second, third = records(read(dataset="parquet", files=path, name="own"))
    assert (first.captions, first.tags, first.split) == (["a whistle"], ["Whistle"], "train")
    assert (second.captions, second.tags) == ([], ["Hum"])
    assert (first.title, second.title, third.license) == ("A", None, "CC-BY")
    assert (first.native_id, first.group_id) == ("a.wav", "own:a.wav")
    assert third.audio_uri == str(Value(1, 0, "audio", str(path)))
    assert third.source == f"{path}:3"


def test_audiosets_label_ids_are_no_tags(tmp_path: Path) -> None:
    """`agkphysics/AudioSet`: data/bal_train/00.parquet, data/eval/00.parquet."""
    for folder, youtube_id in (("bal_train", "--PJHxphWEs"), ("eval", "-0abcdefghi")):
        write_parquet(
            tmp_path / "data" / folder / "00.parquet", sounds(f"{youtube_id}.flac"),
            video_id=[youtube_id], labels=[["/m/09x0r"]], human_labels=[["Speech", "Gush"]],
        )  # fmt: skip
    for files in (tmp_path / "data", tmp_path / "data/*/*.parquet"):
        train, test = records(read(dataset="parquet", files=files))
        assert (train.tags, train.split, test.split) == (["Speech", "Gush"], "train", "test")
        assert (train.group_id, train.clip) == ("youtube:--PJHxphWEs", "")
    made = catalog(dataset="parquet", files=tmp_path / "data")
    assert made.unread_columns() == ["labels"]


def test_a_place_in_a_youtube_video_is_no_part_of_the_audio(tmp_path: Path) -> None:
    """`TwinkStart/AudioCaps`; MusicCaps has `ytid`, `start_s` and `end_s`."""
    path = write_parquet(
        tmp_path / "test-00000.parquet", sounds("x.wav"), audiocap_id=[103549], WavPath=["x.wav"],
        youtube_id=["7fmOlUlwoNg"], start_time=[20], caption=["Constant rattling noise"],
    )  # fmt: skip
    (found,) = records(read(dataset="parquet", files=path))
    assert (found.start_s, found.end_s, found.split) == (None, None, "test")
    assert (found.group_id, found.clip) == ("youtube:7fmOlUlwoNg", "youtube:7fmOlUlwoNg@20")


def test_columns_are_named_by_the_recipe(tmp_path: Path) -> None:
    """`mteb/Clotho`: `text` is all captions in one, `raw_text` the list of them."""
    two = ["A machine whines.", "A motor runs."]
    path = write_parquet(
        tmp_path / "a.parquet", ONE, index=["1"], datasetname=["clotho"], audio_len=[22.5],
        text=[" ".join(two)], raw_text=[two], kind=["machine;indoor"], fold=["evaluation"],
        who=["ann"], begin=["0:01"], stop=[2.5],
    )  # fmt: skip
    columns = {"text": "raw_text", "tags": ["kind"], "split": "fold", "group": "who",
               "start": "begin", "end": "stop"}  # fmt: skip
    (found,) = records(read(dataset="parquet", files=path, columns=columns))
    assert (found.captions, found.tags, found.split) == (two, ["machine", "indoor"], "test")
    assert (found.group_id, found.start_s, found.end_s, found.stated_s) == ("ann", 1.0, 2.5, 1.5)
    assert texts(files=path)["a.wav"] == ([" ".join(two)], [], "train")


def test_class_numbers_get_their_names(tmp_path: Path) -> None:
    names = {"_type": "ClassLabel", "names": ["dog_bark", "rain"]}
    features = {"audio": {"_type": "Audio"}, "label": names,
                "labels": {"_type": "List", "feature": names}, "tags": [names],
                "split": {"_type": "ClassLabel", "names": ["train", "test"]}}  # fmt: skip
    path = write_parquet(
        tmp_path / "a.parquet", sounds("a", "b", "c"), features=features, label=[0, -1, 7],
        labels=[[1], [1, 0], []], tags=[[], [], []], split=[1, 0, 0],
    )  # fmt: skip
    outcomes = read(dataset="parquet", files=path)
    assert [(r.tags, r.split) for r in records(outcomes)] == [
        (["rain", "dog bark"], "test"), (["rain", "dog bark"], "train"),
    ]  # fmt: skip
    assert refusals(outcomes) == [("3", "malformed_row")]
    bare = write_parquet(tmp_path / "b.parquet", ONE, label=[3])
    (refused,) = read(dataset="parquet", files=bare)
    assert isinstance(refused, Refusal)
    assert refused.detail == "label: 3 is a number, no text; a class number needs its name"


def test_the_split_is_that_of_the_row_the_file_or_the_recipe(tmp_path: Path) -> None:
    for name in ("validation-00000-of-00002", "clotho_development", "train-0", "0001"):
        write_parquet(tmp_path / f"x/{name}.parquet", sounds(name), text=["rain"])
    found = texts(files=tmp_path / "x", split="test")
    assert {name: split for name, (_, _, split) in found.items()} == {
        "0001": "test", "clotho_development": "valid", "train-0": "train",
        "validation-00000-of-00002": "valid",
    }  # fmt: skip
    path = write_parquet(
        tmp_path / "train-0.parquet", sounds("a", "b"), text=["x", "y"], split=["eval", "?"]
    )
    outcomes = read(dataset="parquet", files=path)
    assert [record.split for record in records(outcomes)] == ["test"]
    assert refusals(outcomes) == [("2", "malformed_row")]


def test_a_path_is_an_id_only_if_it_is_that_of_one_row(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        path = tmp_path / folder / "0.parquet"
        write_parquet(path, sounds("0.wav", f"{folder}.wav", None), text=["a", "b", "c"])
    assert list(texts(files=tmp_path)) == [
        "test/0.parquet:1", "test.wav", "test/0.parquet:3",
        "train/0.parquet:1", "train.wav", "train/0.parquet:3",
    ]  # fmt: skip


def test_rows_with_only_a_path_are_files_beside_the_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/b.wav").write_bytes(b"2")
    rows: list[Sound] = [(b"1", "a.wav"), (None, "audio/b.wav"), (None, "c.wav"), (None, None)]
    path = write_parquet(tmp_path / "a.parquet", rows, text=["a", "b", "c", "d"])
    outcomes = read(dataset="parquet", files=path)
    assert [record.audio_uri for record in records(outcomes)] == [
        str(Value(0, 0, "audio", str(path))), str(tmp_path / "audio/b.wav"),
    ]  # fmt: skip
    assert refusals(outcomes) == [("3", "missing_audio"), ("4", "missing_audio")]
    table = pa.table({"sound": ["audio/b.wav"] * 2, "text": ["a", "b"], "s": [0, 1], "e": [1, 2]})
    pq.write_table(table, tmp_path / "b.parquet")
    columns = {"audio": "sound", "start": "s", "end": "e"}
    parts = records(read(dataset="parquet", files=tmp_path / "b.parquet", columns=columns))
    assert {part.group_id for part in parts} == {"parquet:audio/b.wav"}
    assert [part.start_s for part in parts] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ({"text": ["a"]}, {}, r"no column of audio; .* found text \(string\); if one of these"),
        ({"audio": [{"array": [0.5]}]}, {}, "no column of audio; "),
        ({"text": [{"bytes": b"", "path": ""}], "x": [{"bytes": b"", "path": ""}]}, {},
         r"2 columns of audio \(text, x\); say which: add columns: {audio: text}"),
        ({"x": [{"bytes": b"", "path": ""}], "t": ["a"]}, {"text": "caption"},
         r"no column 'caption', which the recipe names \(columns.text\); it has x, t"),
    ],
)  # fmt: skip
def test_files_without_the_columns(
    tmp_path: Path, values: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table(values), tmp_path / "a.parquet")
    with pytest.raises(AttuneError, match=message) as error:
        read(dataset="parquet", files=tmp_path / "a.parquet", columns=columns)
    assert str(error.value).startswith(f"{tmp_path}/a.parquet: ")
    assert "\n" not in str(error.value)


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs")
    for files, message in (("a.parquet", "not a Parquet file"), ("b.parquet", "no such file"),
                           ("b", "no such Parquet file, folder or pattern")):  # fmt: skip
        with pytest.raises(AttuneError, match=f"{tmp_path}/{files}: {message}"):
            read(dataset="parquet", files=tmp_path / files)


def test_a_column_of_pictures_is_no_audio(tmp_path: Path) -> None:
    features = {"cover": {"_type": "Image"}, "audio": {"_type": "Audio"}}
    path = write_parquet(
        tmp_path / "a.parquet", ONE, cover=[{"bytes": b"png", "path": None}], features=features,
        text=["rain"],
    )  # fmt: skip
    assert list(texts(files=path)) == ["a.wav"]


def test_planning_reads_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [(np.random.default_rng(i).bytes(200_000), f"{i}.wav") for i in range(8)]
    path = write_parquet(
        tmp_path / "a.parquet", data, rows_per_group=4, text=["a dog"] * 7 + [""],
    )  # fmt: skip
    reads = CountedReads(monkeypatch)
    made = catalog(dataset="parquet", files=path)
    tables = build_plan([made], rules=TextRules(PromptForm("plain")), clips_per_shard=4, seed=0)
    (refused,) = tables.rejects.to_pylist()
    assert refused["raw"] == '{"audio": {"path": "7.wav"}, "text": ""}'
    assert "columns: audio, text; text is read from" in refused["detail"]
    assert list(made.fingerprints()) == [str(path)]
    assert reads.bytes < 800_000 < path.stat().st_size  # a footer for each opening


def test_files_in_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}/set/data")
    for split in ("train", "test"):
        store.write(f"{split}-0.parquet", write_parquet(tmp_path / "a.parquet", sounds(split)))
    for files in (f"{s3_bucket}/set", f"{s3_bucket}/set/data/*.parquet"):
        test, train = records(read(dataset="parquet", files=files))
        assert (train.split, test.split) == ("train", "test")
        assert test.audio_uri == f"value:0:0:audio:{s3_bucket}/set/data/test-0.parquet"
    with pytest.raises(AttuneError, match="no such Parquet file, folder or pattern"):
        read(dataset="parquet", files=f"{s3_bucket}/other/*.parquet")


def wav(hz: float, seconds: float = 1.0) -> bytes:
    buffer = BytesIO()
    time = np.arange(int(16000 * seconds)) / 16000
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * hz * time), 16000, format="WAV")
    return buffer.getvalue()


def encoded(
    recipe_text: Callable[..., str], folder: Path, catalog: str
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """What the shards of a catalog hold, by native id; and the clips refused while encoding."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_text(folder / "data", catalog))
    recipe = load_recipe(folder / "recipe.yaml")
    plan, _ = freeze(recipe)
    encode_all(plan, recipe)
    finalize(plan, recipe.name, recipe.codec.path)
    dataset = ShardDataset.open(str(folder / "data"))
    names = ("sample_id", "prompts", "duration_s", "source_sha256", "wave_sha256")
    found = {}
    for sample in map(dataset.read, range(len(dataset))):
        kept = {name: sample.record[name] for name in names}
        found[sample.record["native_id"]] = kept | {"codes": sample.codes.tolist()}
    refused = pq.read_table(folder / "data/quarantine.parquet").to_pylist()
    return found, [(row["native_id"], row["reason"]) for row in refused]


def test_a_folder_and_a_parquet_file_of_it_give_the_same_codes(
    recipe_text: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each row group is read once, although a shard's clips come from several."""
    rows: list[Sound] = [(wav(200 + 40 * i), f"{i}.wav") for i in range(16)]
    captions = [f"a tone hums in hall {chr(97 + i)}" for i in range(16)]
    (tmp_path / "own").mkdir()
    for data, name in rows:
        (tmp_path / "own" / str(name)).write_bytes(data or b"")
    lines = [f"{name},{text}" for (_, name), text in zip(rows, captions, strict=True)]
    (tmp_path / "own/metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    folder, _ = encoded(
        recipe_text, tmp_path / "1", f"dataset: audiofolder, root: {tmp_path}/own, name: own"
    )
    rows += [(b"<html>", "page.wav"), (b"", "empty.wav")]
    path = write_parquet(
        tmp_path / "own.parquet", rows, rows_per_group=2, text=[*captions, "a page", "a hole"]
    )
    groups: list[tuple[str, int]] = []
    read_group = parquet_values._row_group.__wrapped__

    def counted(file: str, row_group: int, column: str) -> Any:
        groups.append((file, row_group))
        return read_group(file, row_group, column)

    monkeypatch.setattr(parquet_values, "_row_group", lru_cache(parquet_values._KEPT)(counted))
    parquet, refused = encoded(
        recipe_text, tmp_path / "2", f"dataset: parquet, files: {path}, name: own"
    )
    assert (parquet, len(parquet)) == (folder, 16)
    assert sorted(refused) == [("empty.wav", "empty_file"), ("page.wav", "unreadable")]
    assert sorted(groups) == [(str(path), group) for group in range(9)]


@pytest.mark.parametrize("column", ["text", "number"])
def test_a_held_out_file_holds_its_rows_under_any_name(tmp_path: Path, column: str) -> None:
    """Also the rows that are refused, because a number is no text."""
    path = write_parquet(
        tmp_path / "a.parquet", sounds("a", "b"), text=["a dog", "a cat"], number=[1, 2]
    )
    (tmp_path / "link.parquet").symlink_to(path)
    own = catalog(dataset="parquet", files=path, name="own")
    held = catalog(
        dataset="parquet", files=tmp_path / "link.parquet", name="held", role="hold_out",
        columns={"text": column},
    )  # fmt: skip
    rules = TextRules(PromptForm("plain"))
    with pytest.raises(AttuneError, match="leakage 2"):
        build_plan([own, held], rules=rules, clips_per_shard=4, seed=0)
