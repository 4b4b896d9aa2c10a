"""The plan: everything accounted for, membership fixed, leakage kept out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from common.config import load_recipe
from common.errors import AttuneError
from common.schema import Record
from common.storage import open_store
from pipeline import planfile
from pipeline.catalogs.audiofolder import AudioFolder
from pipeline.catalogs.base import Catalog, Merged, Outcome, Refusal, refuse
from pipeline.config import PipelineConfig
from pipeline.overlap import OverlapPolicy
from pipeline.plan import PlanTables, build_plan, differing_inputs, hash_inputs
from pipeline.planfile import FrozenPlan, ensure_plan, load_plan, plan_inputs
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
    *catalogs: Catalog, size: int = 8, seed: int = 0, overlap: OverlapPolicy = "keep"
) -> PlanTables:
    rules = TextRules(prompts="plain")
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


def test_groups_held_out_by_any_dataset_stay_out_of_training() -> None:
    held_out_but_refused = refuse(clip(90, "test", group="yt:z"), "catalog", "missing_audio", "")
    tables = plan(
        Listed(outcomes=[clip(1, group="yt:x"), clip(2, group="yt:y"), clip(3, group="yt:z")]),
        Listed(name="b", outcomes=[clip(4, "valid", "yt:x", "b"), clip(5, "train", "yt:y", "b")]),
        Listed(name="c", outcomes=[_relabel(held_out_but_refused, "c")]),
    )
    leaks = tables.rejects.filter(
        [reason == "leakage" for reason in tables.rejects["reason"].to_pylist()]
    )
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
    assert tables.rejects["detail"].to_pylist() == ["yt:x is held out by h test"]


def test_a_group_in_test_stays_out_of_validation_as_well() -> None:
    tables = plan(Listed(outcomes=[clip(1, "valid", "g"), clip(2, "test", "g"), clip(3, "valid")]))
    assert sorted(tables.plan["native_id"].to_pylist()) == ["clip2", "clip3"]


def shared(dataset: str, i: int, split: str = "train", **more: Any) -> Record:
    return Record(
        dataset, f"n{i}", f"g{i}", split, f"/{dataset}{i}.wav", f"{dataset}.csv:{i}",
        clip=f"youtube:{i}@30", **more,
    )  # fmt: skip


def test_clips_in_two_datasets_are_counted_and_kept_or_merged() -> None:
    catalogs = [
        Listed(name="b", outcomes=[shared("b", i, tags=["Dog", "Bark"]) for i in (1, 2, 3)]),
        Listed(name="a", outcomes=[shared("a", i, captions=[f"Text {i}"]) for i in (2, 3, 4)]),
        Listed(
            name="c", outcomes=[shared("c", 3, tags=["Rain"]), shared("c", 2, "valid", tags=["x"])]
        ),
    ]
    catalogs[2].outcomes[1].group_id = "elsewhere"
    found = {"b + a": 2, "b + c": 2, "a + c": 2}
    kept = plan(*catalogs)
    assert kept.overlaps == found and len(kept.plan) == 8
    merged = plan(*catalogs, overlap="merge")
    assert merged.overlaps == found
    assert {label: count.merged for label, count in merged.counts.items()} == {
        "b": 0,
        "a": 2,
        "c": 1,
    }
    rows = {row["audio_uri"]: row for row in merged.plan.to_pylist()}
    assert sorted(rows) == ["/a4.wav", "/b1.wav", "/b2.wav", "/b3.wav", "/c2.wav"]
    assert rows["/b3.wav"]["prompts"] == ["dog bark", "Text 3", "rain"]
    assert rows["/b3.wav"]["tags"] == ["Dog", "Bark", "Rain"]
    assert rows["/b2.wav"]["captions"] == ["Text 2"]  # c's row is in another split
    assert rows["/b1.wav"]["prompts"] == ["dog bark"]


def test_rejects_carry_the_row_as_it_stands_in_its_file(tmp_path: Path) -> None:
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
    catalogs = [
        Listed(outcomes=[clip(1, split), clip(10 + i, split)])
        for i, split in enumerate(("train", "valid", "test"))
    ]
    tables = plan(*(catalogs[i] for i in order))
    found = {row["native_id"]: row["split"] for row in tables.plan.to_pylist()}
    assert found == {"clip1": "test", "clip10": "train", "clip11": "valid", "clip12": "test"}
    assert tables.rejects["reason"].to_pylist() == ["duplicate", "duplicate"]


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


AUDIOCAPS = {"dataset": "audiocaps", "captions": "/train.csv", "audio": "/x"}


def _relabel(refusal: Refusal, dataset: str) -> Refusal:
    refusal.dataset = dataset
    return refusal


def test_a_plan_of_nothing_says_why() -> None:
    gone = refuse(clip(1), "catalog", "missing_audio", "no clip1.* in /audio")
    with pytest.raises(AttuneError, match=r"missing_audio 1; first: f:1: no clip1"):
        plan(Listed(outcomes=[gone]))


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
        recipe = load_recipe(write_recipe(tmp_path / "data"), overrides)
        config = recipe.section("pipeline", PipelineConfig)
        frozen, is_new = ensure_plan(open_store(recipe.data_dir), recipe, config)
        return frozen.plan_hash, is_new

    first, is_new = ensure()
    assert is_new and ensure() == (first, False)
    assert ensure("pipeline.workers=7", "pipeline.attempts=9") == (first, False)
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
def test_a_torn_plan_is_one_line(
    write_recipe: Callable[..., Path], tmp_path: Path, content: bytes
) -> None:
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
        recipe = load_recipe(write_recipe(tmp_path / "data"), overrides)
        return ensure_plan(store, recipe, recipe.section("pipeline", PipelineConfig))

    def race(mine: list[str], other: list[str], moment: str) -> tuple[FrozenPlan, bool]:
        store.delete("plan/plan.json")
        true = getattr(planfile, moment)
        raced = False

        def overtaken(*arguments: Any, **options: Any) -> Any:
            nonlocal raced
            if not raced:
                raced = True  # first: the other run comes through here too
                assert ensure(*other)[1]
            return true(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(planfile, moment, overtaken)
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
        winner.table("prompts")


def test_the_codec_must_run_at_the_recipes_rate(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "data"), ["sample_rate=32000"])
    with pytest.raises(AttuneError, match=r"16000 Hz.*32000"):
        ensure_plan(open_store(recipe.data_dir), recipe, recipe.section("pipeline", PipelineConfig))
