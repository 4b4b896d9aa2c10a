"""`gc` finds files that nothing names; it keeps files in use, young files and the user's own."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from calls import Call
from typer.testing import CliRunner

from common.errors import AttuneError
from common.storage import Entry, Store, open_store
from pipeline.cli import app
from pipeline.datadir.commit import commit_key, read_commit
from pipeline.inspect.verify import verify_shards
from pipeline.repair.gc import collect_garbage, parse_age

DAY = 86400.0
ENCODER = "0123456789abcdef"


def files(data: Path) -> set[str]:
    return {path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()}


def committed(store: Store, shard: int) -> dict[str, Any]:
    commit = read_commit(store, shard)
    assert commit is not None
    return commit


def litter(data: Path) -> dict[str, str]:
    """Put one file of each kind of garbage there, and files of the user's beside them.

    Returns:
        The kind of each piece of garbage, by key.
    """
    encoder = next((data / "text").iterdir()).name
    garbage = {
        "shards/000002-0123456789ab.tar": "tar",
        "shards/000099-0123456789ab.tar": "tar",
        f"text/{ENCODER}/00ff.f16": "text",
        f"text/{ENCODER}/00ff.parquet": "text",
        f"text/{encoder}/{'0' * 24}.parquet": "text",
        "poison/000001.json": "poison",
        "poison/000050.json": "poison",
        "shards/000001-0123456789ab.tar#1": "partial",
        f"text/{ENCODER}/00ff.f16#12": "partial",
        "manifest.parquet#2": "partial",
        "clock/00ff": "probe",
    }
    theirs = ["shards/notes.txt", "text/notes.txt", "poison/notes.json", "mine/a#1", "a#b"]
    for key in [*garbage, *theirs]:
        (data / key).parent.mkdir(parents=True, exist_ok=True)
        (data / key).write_bytes(b"x" * 10)
    return garbage


def test_it_names_every_kind_and_removes_nothing_else(finished: Path) -> None:
    sound = files(finished)
    garbage = litter(finished)
    before = files(finished)
    found = collect_garbage(open_store(finished), DAY)
    assert {item["key"]: item["kind"] for item in found["items"]} == garbage
    assert (found["finished"], found["deleted"], found["bytes"]) == (True, [], 110)
    assert files(finished) == before  # a dry run, and no probe is left

    found = collect_garbage(open_store(finished), DAY, delete=True)
    assert sorted(found["deleted"]) == sorted(garbage)
    assert found["bytes"] == 110
    assert files(finished) == before - set(garbage)
    assert sound <= files(finished)
    assert verify_shards(open_store(finished))["problems"] == []
    assert collect_garbage(open_store(finished), 0.0)["items"] == []


def test_what_is_young_stays_until_the_run_is_finished(finished: Path) -> None:
    """A running driver publishes a tar first and its commit after that."""
    store = open_store(finished)
    commit = committed(store, 3)
    (finished / "summary.json").unlink()
    unpublished = (finished / commit_key(3)).read_bytes()
    store.delete(commit_key(3))
    old = "shards/000005-0123456789ab.tar"
    (finished / old).write_bytes(b"x" * 7)
    os.utime(finished / old, (time.time() - 2 * DAY,) * 2)

    found = collect_garbage(store, DAY, delete=True)
    assert {item["key"]: item["kept"] for item in found["items"]} == {
        commit["shard_key"]: True, old: False,
    }  # fmt: skip
    assert (found["deleted"], found["bytes"]) == ([old], 7)
    store.write(commit_key(3), unpublished)
    assert collect_garbage(store, 0.0)["items"] == []
    store.delete(commit_key(3))
    assert collect_garbage(store, 0.0, delete=True)["deleted"] == [commit["shard_key"]]


def test_a_tar_of_the_manifest_stays_also_when_its_commit_is_gone(finished: Path) -> None:
    store = open_store(finished)
    commit = committed(store, 3)
    store.delete(commit_key(3))
    found = collect_garbage(store, 0.0, delete=True)
    assert (found["finished"], found["items"]) == (False, [])
    assert store.exists(commit["shard_key"])
    store.delete("summary.json")
    assert collect_garbage(store, 0.0, delete=True)["deleted"] == [commit["shard_key"]]


def test_a_text_chunk_goes_whole_or_stays_whole(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished / "summary.json").unlink()
    store = open_store(finished)
    states, index = (f"text/{ENCODER}/00ff.{kind}" for kind in ("f16", "parquet"))
    for key in (states, index):
        store.write(key, b"x")
    old = time.time() - 2 * DAY
    os.utime(finished / states, (old, old))  # a slow upload, and the day is over in between
    found = collect_garbage(store, DAY, delete=True)
    assert {item["key"]: item["kept"] for item in found["items"]} == {states: True, index: True}
    assert store.exists(states)

    os.utime(finished / index, (old, old))
    delete = Store.delete

    def killed(self: Store, key: str) -> None:
        if key == states:
            raise KeyboardInterrupt
        delete(self, key)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "delete", killed)
        collect_garbage(store, DAY, delete=True)
    assert (store.exists(states), store.exists(index)) == (True, False)
    assert collect_garbage(store, DAY, delete=True)["deleted"] == [states]


def test_a_tar_that_is_committed_while_it_looks_is_no_orphan(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(finished)
    held = store.read(commit_key(4))
    store.delete(commit_key(4))
    store.delete("summary.json")
    entries = Store.entries

    def then_commit(self: Store, prefix: str = "") -> list[Entry]:
        found = entries(self, prefix)
        if prefix == "shards":
            store.write(commit_key(4), held)
        return found

    monkeypatch.setattr(Store, "entries", then_commit)
    assert collect_garbage(store, 0.0, delete=True)["items"] == []


@pytest.mark.parametrize("again", ["tar", "commit"])
def test_a_tar_that_comes_to_use_before_it_is_removed_stays(
    finished: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    store = open_store(finished)
    commit = committed(store, 4)
    held, tar = store.read(commit_key(4)), store.read(commit["shard_key"])
    store.delete(commit_key(4))
    store.delete("summary.json")

    def meanwhile(store: Store) -> Any:
        probe = clock(store)
        if again == "commit":
            store.write(commit_key(4), held)
        else:
            os.utime(finished / commit["shard_key"], (time.time() + 5,) * 2)
        return probe

    import pipeline.repair.gc

    clock = pipeline.repair.gc._store_clock
    monkeypatch.setattr(pipeline.repair.gc, "_store_clock", meanwhile)
    found = collect_garbage(store, 0.0, delete=True)
    assert (len(found["items"]), found["deleted"], found["bytes"]) == (1, [], 0)
    assert store.read(commit["shard_key"]) == tar


def test_ages_are_by_the_clock_of_the_store(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store three days ahead of us, or behind: what was written just now is seconds old."""
    (finished / "summary.json").unlink()
    orphan = "shards/000005-0123456789ab.tar"
    (finished / orphan).write_bytes(b"x")
    entries, entry = Store.entries, Store.entry
    for skew in (timedelta(days=3), timedelta(days=-3)):

        def shifted(self: Store, prefix: str = "", skew: timedelta = skew) -> list[Entry]:
            return [e._replace(modified=e.modified + skew) for e in entries(self, prefix)]

        def shifted_one(self: Store, key: str, skew: timedelta = skew) -> Entry | None:
            found = entry(self, key)
            return found and found._replace(modified=found.modified + skew)

        monkeypatch.setattr(Store, "entries", shifted)
        monkeypatch.setattr(Store, "entry", shifted_one)
        (item,) = collect_garbage(open_store(finished), DAY, delete=True)["items"]
        assert item["kept"] and item["age_s"] < 60


def test_it_refuses_where_it_cannot_know(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(AttuneError, match="no plan there"):
        collect_garbage(open_store(tmp_path / "empty"), 0.0)
    orphan = finished / "shards/000002-0123456789ab.tar"
    orphan.write_bytes(b"x")
    (finished / commit_key(2)).write_text("{")
    with pytest.raises(AttuneError, match=r"commits/000002\.json: is not JSON"):
        collect_garbage(open_store(finished), 0.0, delete=True)
    assert orphan.exists()


def test_on_s3(s3_bucket: str, finished: Path) -> None:
    store = open_store(f"{s3_bucket}/data")
    for key in files(finished):
        store.write(key, finished / key)
    assert collect_garbage(store, 0.0)["items"] == []
    store.write("shards/000002-0123456789ab.tar", b"x" * 10)
    store.delete("summary.json")
    (young,) = collect_garbage(store, DAY, delete=True)["items"]
    assert young["kept"]
    found = collect_garbage(store, 0.0, delete=True)
    assert (found["deleted"], found["bytes"]) == (["shards/000002-0123456789ab.tar"], 10)
    assert {key for key, _ in store.list()} == files(finished) - {"summary.json"}


def test_ages_have_a_number_and_a_unit() -> None:
    found = [parse_age(text) for text in ("0", "90s", "1.5m", "24h", "7D")]
    assert found == [0, 90, 90, DAY, 7 * DAY]
    for text in ("", "day", "-1h", "1w", "nan", "1h30m"):
        with pytest.raises(AttuneError, match="--older-than"):
            parse_age(text)


def test_the_command(pipeline: Call, recipe: str, finished: Path) -> None:
    gc = partial(pipeline, "gc", "--config", recipe)
    orphan = finished / "shards/000002-0123456789ab.tar"
    orphan.write_bytes(b"x" * 10)

    status, out, _ = gc()
    assert status == 0 and "no commit names it" in out
    assert "to remove: 1 files, 10 bytes; --delete removes them" in out and orphan.exists()
    assert gc("--older-than", "soon")[2].startswith("error: --older-than soon: expected")
    status, out, _ = gc("--delete", "--json")
    assert json.loads(out)["deleted"] == [f"shards/{orphan.name}"] and not orphan.exists()
    assert "to remove: 0 files, 0 bytes\n" in gc()[1]


@pytest.mark.parametrize("command", ["status", "gc"])
def test_looking_needs_no_catalogs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESC10_ROOT", raising=False)
    recipe = Path(__file__).parents[3] / "configs" / "esc10.yaml"
    arguments = [command, "--config", str(recipe), f"run_dir={tmp_path}"]
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, AttuneError)
    assert f"{tmp_path}/data: no such data folder" in str(refused)
