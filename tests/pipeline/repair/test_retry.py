"""`retry`: restored audio is added, and nothing is lost wherever the command is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from calls import Call, freeze
from in_process import make_worker, without_ray

from common.config import Recipe, load_recipe
from common.errors import AttuneError
from common.storage import Store, open_store
from pipeline.config import PipelineConfig
from pipeline.datadir.commit import committed_shards
from pipeline.datadir.frozen_plan import load_plan
from pipeline.inspect.status import read_status
from pipeline.inspect.verify import verify_shards
from pipeline.planning import make_plan
from pipeline.repair.gc import collect_garbage
from pipeline.repair.retry import unmake_shards
from pipeline.run import retry_pipeline, run_pipeline

LOST = ("tone_03.wav", "tone_17.wav")
RESULTS = ("manifest.parquet", "quarantine.parquet", "shards.json", "summary.json")


def quiet(line: str) -> None:
    pass


@dataclass
class Workplace:
    """A finished run that lacks the clips of `LOST`; `away` keeps their files."""

    recipe: Recipe
    config: PipelineConfig
    corpus: Path
    away: Path
    write_recipe: Callable[..., Path]

    @property
    def data(self) -> Path:
        return Path(str(self.recipe.data_dir))

    def restore(self, *names: str) -> None:
        for name in names or LOST:
            shutil.copy2(self.away / name, self.corpus / name)

    def retry(self, *reasons: str, say: Callable[[str], None] = quiet, **changes: Any) -> Any:
        return retry_pipeline(self.recipe, self.config, reasons, say=say, **changes)

    def run(self) -> None:
        run_pipeline(self.recipe, self.config, quiet)

    def fresh(self, data: Path) -> dict[str, bytes]:
        """What a first run over the corpus as it is now ends with."""
        recipe = load_recipe(
            self.write_recipe(data),
            [f"pipeline.catalogs.0.root={self.corpus}"],
        )
        run_pipeline(recipe, recipe.section("pipeline", PipelineConfig), quiet)
        return results(data)


def results(data: Path) -> dict[str, bytes]:
    return {name: (data / name).read_bytes() for name in RESULTS}


def refused(data: Path) -> dict[str, str]:
    rows = pq.read_table(data / "quarantine.parquet").to_pylist()
    return {row["native_id"]: row["reason"] for row in rows}


@pytest.fixture
def place(
    write_recipe: Callable[..., Path],
    small_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Workplace:
    without_ray(monkeypatch)
    corpus, away = tmp_path / "corpus", tmp_path / "away"
    shutil.copytree(small_corpus, corpus)
    away.mkdir()
    recipe = load_recipe(
        write_recipe(tmp_path / "data"),
        [f"pipeline.catalogs.0.root={corpus}"],
    )
    config = recipe.section("pipeline", PipelineConfig)
    freeze(recipe)
    for name in LOST:
        shutil.move(corpus / name, away / name)
    place = Workplace(recipe, config, corpus, away, write_recipe)
    place.run()
    assert {name: refused(place.data)[name] for name in LOST} == dict.fromkeys(LOST, "missing")
    return place


def test_restored_audio_enters_as_in_a_first_run(place: Workplace, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in (place.data / "shards").iterdir()}
    place.restore()
    found = place.retry("missing")
    assert (found["clips"], found["accepted"], found["lost"]) == ({"missing": 2}, 2, [])
    assert 1 <= len(found["shards"]) <= 2
    assert not set(LOST) & refused(place.data).keys()
    assert results(place.data) == place.fresh(tmp_path / "fresh")
    assert verify_shards(open_store(place.data))["problems"] == []
    # A reader that opened the folder before still finds every tar; only `gc --delete` removes them.
    assert all((place.data / "shards" / name).read_bytes() == data for name, data in before.items())
    collect_garbage(open_store(place.data), 0.0, delete=True)
    names = {p.name for p in (place.data / "shards").iterdir()}
    assert names == {p.name for p in (tmp_path / "fresh" / "shards").iterdir()}
    assert results(place.data) == results(tmp_path / "fresh")


def test_unchanged_refusals_are_not_tried_again(place: Workplace) -> None:
    before = {p: p.stat().st_mtime_ns for p in place.data.rglob("*") if p.is_file()}
    found = place.retry("missing", "empty_file")
    assert (found["shards"], found["waiting"]) == ([], {"missing": 2, "empty_file": 1})
    assert {p: p.stat().st_mtime_ns for p in place.data.rglob("*") if p.is_file()} == before


def test_a_dry_run_changes_nothing(place: Workplace) -> None:
    place.restore(LOST[0])
    before = {p: p.read_bytes() for p in place.data.rglob("*") if p.is_file()}
    said: list[str] = []
    found = place.retry(dry_run=True, say=said.append)
    assert found["clips"] == {
        "missing": 1, "silent": 1, "too_short": 1, "non_finite": 1, "unreadable": 1, "truncated": 1,
    }  # fmt: skip
    assert found["waiting"] == {"missing": 1, "empty_file": 1}
    assert "missing 1" in said[0] and "not changed: empty_file 1, missing 1" in said[1]
    assert {p: p.read_bytes() for p in place.data.rglob("*") if p.is_file()} == before


def test_only_the_reasons_asked_for(place: Workplace) -> None:
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 16000)
    soundfile.write(place.corpus / "silent.wav", wave, 16000)
    found = place.retry("silent")
    assert (found["clips"], found["accepted"]) == ({"silent": 1}, 1)
    assert "silent.wav" not in refused(place.data)
    with pytest.raises(AttuneError, match="--reason mising: expected one of missing, not_a_file"):
        place.retry("mising")


def test_a_shard_that_would_lose_a_clip_is_left_as_it_is(place: Workplace) -> None:
    place.restore()
    shards = place.retry("missing", dry_run=True)["shards"]
    manifest = pq.read_table(place.data / "manifest.parquet").to_pylist()
    row = next(row for row in manifest if row["shard"] == shards[0])
    Path(row["audio_uri"]).unlink()
    said: list[str] = []
    found = place.retry("missing", say=said.append)
    assert list(found["held"]) == [f"{shards[0]:06d}"]
    assert any(row["audio_uri"] in line and "left as it is" in line for line in said)
    after = pq.read_table(place.data / "manifest.parquet").to_pylist()
    assert {r["sample_id"] for r in manifest} <= {r["sample_id"] for r in after}


def test_a_clip_that_is_lost_is_named(place: Workplace) -> None:
    place.restore(LOST[0])
    shard = place.retry("missing", dry_run=True)["shards"][0]
    manifest = pq.read_table(place.data / "manifest.parquet").to_pylist()
    row = next(row for row in manifest if row["shard"] == shard)
    Path(row["audio_uri"]).write_text("no audio any more" * 9)
    found = place.retry("missing")
    assert (found["lost"], found["accepted"]) == ([row["sample_id"]], 1)


def test_poison_shards_are_made_and_their_files_go(place: Workplace) -> None:
    store = open_store(place.data)
    want = results(place.data)
    for key in ("commits/000003.json", "summary.json"):
        store.delete(key)
    store.write("poison/000003.json", json.dumps({"shard": 3, "errors": ["x"]}).encode())
    store.write("poison/000001.json", b"{}")  # of a shard that is there: gc's
    assert place.retry("missing")["poison"] == [3]
    assert results(place.data) == want
    assert [key for key, _ in store.list("poison")] == ["poison/000001.json"]


def test_a_killed_retry_of_every_shard_holds_its_plan(place: Workplace) -> None:
    store = open_store(place.data)
    plan, want = load_plan(store), results(place.data)
    assert plan is not None
    unmake_shards(plan, committed_shards(store))
    assert not store.list("commits") and store.list("shards")
    other = place.config.model_copy(update={"min_duration_s": 0.6})
    with pytest.raises(AttuneError, match=rf"of plan {plan.plan_hash}, this recipe makes plan .*"):
        make_plan(store, place.recipe, other)
    assert load_plan(store) == plan
    place.run()
    assert results(place.data) == want

    unmake_shards(plan, committed_shards(store))
    shutil.rmtree(place.data / "shards")
    assert make_plan(store, place.recipe, other)[1]  # nothing of the standing plan is left


@pytest.mark.parametrize("command", ["run", "retry"])
def test_a_deleted_commit_is_made_again(place: Workplace, command: str) -> None:
    store = open_store(place.data)
    want = results(place.data)
    store.write("commits/000003.json", b"{")
    with pytest.raises(AttuneError, match=r"000003\.json: .*delete it and run again"):
        place.retry("missing")
    store.delete("commits/000003.json")
    assert read_status(store)["state"] == "encoding"
    seen: list[bool] = []

    def say(line: str) -> None:
        if line.startswith("encoding 1 shards"):
            seen.append((place.data / "summary.json").exists())

    if command == "run":
        run_pipeline(place.recipe, place.config, say)
    else:
        place.retry("missing", say=say)
    assert seen == [False]  # readers find an unfinished run meanwhile
    assert results(place.data) == want and read_status(store)["state"] == "finished"


def test_it_needs_this_recipes_plan(place: Workplace) -> None:
    place.config = place.config.model_copy(update={"min_duration_s": 0.6})
    with pytest.raises(AttuneError, match=r"this recipe makes plan .*min_duration_s"):
        place.retry()
    (place.data / "plan/plan.json").unlink()
    with pytest.raises(AttuneError, match="no plan there"):
        place.retry()


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


class Killer:
    """Lets `left` changes to the store happen, and no more.

    Only changes count: killed between two reads, the store is left as after the change before.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float = float("inf")
        self.done = 0
        for name in ("write", "create", "delete"):
            monkeypatch.setattr(Store, name, self.guarded(getattr(Store, name)))

    def guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            self.done += 1
            return method(*arguments, **options)

        return call


def test_killed_between_any_two_store_operations(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.restore()
    want = place.fresh(tmp_path / "fresh")
    start = tmp_path / "start"
    shutil.copytree(place.data, start)
    plan = load_plan(open_store(place.data))
    assert plan is not None
    worker = make_worker(plan, place.recipe)  # one for all, to load the codec once
    monkeypatch.setattr("in_process.make_worker", lambda *plan: worker)
    killer = Killer(monkeypatch)
    shards = place.retry("missing")["shards"]
    operations = killer.done
    # Results and commits are deleted; then a tar and a commit per shard, and the results again.
    assert operations == 4 + 3 * len(shards) + 4 and results(place.data) == want
    for k in range(operations):
        shutil.rmtree(place.data)
        shutil.copytree(start, place.data)
        killer.left = k
        with pytest.raises(Killed):
            place.retry("missing")
        killer.left = float("inf")
        # Readers see a run that is whole, before or after, or one that is unfinished.
        if (place.data / "summary.json").exists():
            assert results(place.data) in (results(start), want)
        if k % 2:  # also finishes a run, perhaps with some of the shards as they were
            place.run()
            assert verify_shards(open_store(place.data))["problems"] == []
        place.retry("missing")
        assert results(place.data) == want, f"killed after {k} of {operations} operations"


def test_the_command(pipeline: Call, recipe: str, place: Workplace) -> None:
    corpus = f"pipeline.catalogs.0.root={place.corpus}"
    retry = partial(pipeline, "retry", corpus, "--config", recipe)
    assert "to retry: 0 shards\n" in retry("--reason", "missing")[1]
    assert retry("--reason", "lost")[2].startswith("error: --reason lost: expected one of missing,")
    place.restore()
    status, out, _ = retry("--reason", "missing", "--dry-run", "--json")
    assert (status, json.loads(out)["clips"]) == (0, {"missing": 2})
    status, out, _ = retry("--reason", "missing", "--reason", "empty_file")
    assert status == 0
    assert "with missing 2" in out and "not changed: empty_file 1" in out
    assert "retried: 2 clips are accepted now" in out
