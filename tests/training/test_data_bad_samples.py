"""Corrupt or missing samples: stopped with their name, or another clip takes their place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import train_tiny

from common.errors import AttuneError
from common.shards import BadSample, ShardDataset
from common.storage import StorageError
from training.data import Batch, ClipOrder, Loader


@pytest.fixture
def data(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    return tmp_path / "data"


SHARD = "000000-000000000000.tar"


def _cut_in_half(data: Path) -> None:
    shard = data / "shards" / SHARD
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def _scribble(data: Path) -> None:
    """Zeros over a training sample in the middle, as of a lost block."""
    rows = ShardDataset.open(data).manifest.to_pylist()
    row = [row for row in rows if row["split"] == "train" and row["shard_key"].endswith(SHARD)][3]
    with (data / row["shard_key"]).open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["length"]))


def _delete(data: Path) -> None:
    (data / "shards" / SHARD).unlink()


DAMAGE = [
    pytest.param(_cut_in_half, "shard is cut short at", id="cut"),
    pytest.param(_scribble, "is corrupt", id="zeros"),
    pytest.param(_delete, "shard is gone", id="gone"),
]


def _bad(data: Path) -> dict[str, str]:
    """Samples of the training split that cannot be read, with the error of each."""
    dataset, found = ShardDataset.open(data), {}
    for i, row in enumerate(dataset.manifest.to_pylist()):
        try:
            dataset.read(i)
        except BadSample as error:
            if row["split"] == "train":
                found[row["sample_id"]] = str(error)
    return found


def _loader(data: Path, batch_size: int = 6, **options: int) -> Loader:
    dataset = ShardDataset.open(data)
    order = ClipOrder(dataset, "train", 0)
    settings = {"segment_s": 0.4, "seed": 0, "batch_size": batch_size, "skip_bad": True}
    return Loader(dataset, order, **(settings | options))


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_bad_sample_stops_with_its_name(
    tiny_root: Path, data: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(data)
    bad = _bad(data)
    assert bad
    for sample_id, error in bad.items():
        assert words in error and sample_id in error and SHARD in error
    with pytest.raises(AttuneError) as raised:
        train_tiny(tiny_root, tmp_path, f"data_dir={data}")
    assert str(raised.value) in bad.values() and "\n" not in str(raised.value)


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_others_take_their_places_whoever_reads(
    data: Path, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = [batch.sample_ids for batch in _loader(data).batches(0, 10)]
    damage(data)
    bad = _bad(data)
    whole = list(_loader(data).batches(0, 10))
    lines = [line for line in capsys.readouterr().err.splitlines() if words in line]
    assert len(lines) == len(set(lines)) == len(bad)  # once each
    for before, batch in zip(calm, whole, strict=True):
        places = [i for i, sample_id in enumerate(before) if sample_id in bad]
        assert batch.replaced == len(places)
        assert not bad.keys() & set(batch.sample_ids)
        assert all(batch.sample_ids[i] == before[i] for i in range(len(before)) if i not in places)
    assert sum(batch.replaced for batch in whole) == 3 * len(bad)  # three epochs
    for world in (2, 3):
        parts = [
            list(_loader(data, rank=rank, world=world, prefetch=1 + rank).batches(4, 10))
            for rank in range(world)
        ]
        for step, batch in enumerate(whole[4:]):
            shares = [part[step] for part in parts]
            assert sum((share.sample_ids for share in shares), ()) == batch.sample_ids
            assert sum(share.replaced for share in shares) == batch.replaced
            assert _clips(shares) == _clips([batch])


def _clips(batches: list[Batch]) -> list[tuple[bytes, bytes]]:
    """Codes and states of each clip, without padding."""
    return [
        (
            batch.codes[i, :, : int(batch.lengths[i])].numpy().tobytes(),
            batch.text[i, : int(batch.text_mask[i].sum())].numpy().tobytes(),
        )
        for batch in batches
        for i in range(len(batch.sample_ids))
    ]


def test_they_are_counted_in_the_log_and_after_resuming(
    tiny_root: Path, data: Path, tmp_path: Path
) -> None:
    ids = [batch.sample_ids for batch in _loader(data, batch_size=4).batches(0, 12)]
    _scribble(data)
    bad = set(_bad(data))
    expected = {step + 1: n for step, one in enumerate(ids) if (n := len(bad & set(one)))}
    assert expected
    overrides = [f"data_dir={data}", "lm.log_every=100", "lm.bad_samples=skip"]
    rows = train_tiny(tiny_root, tmp_path, *overrides)
    assert {row["step"]: row["bad_samples"] for row in rows if "bad_samples" in row} == expected
    (tmp_path / "lm" / "latest").write_text("step-00000010\n")
    again = train_tiny(tiny_root, tmp_path, *overrides)
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


def test_nothing_left_to_take_their_place_stops(data: Path) -> None:
    for shard in (data / "shards").iterdir():
        shard.unlink()
    with pytest.raises(AttuneError, match="16 samples drawn in place of a bad one are bad as well"):
        _loader(data).batch(0)


def test_a_store_that_fails_is_no_bad_sample(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = _loader(data)

    def refused(*_: object) -> bytes:
        raise StorageError("s3://bucket/x: access denied")

    monkeypatch.setattr(loader._dataset.store, "read_range", refused)
    with pytest.raises(StorageError, match="access denied"):
        loader.batch(0)
