"""The loader: its order is a function of the seed, whoever reads it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import Recipe, load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training.data import ClipOrder, Loader, check_shards, dropped_text


@pytest.fixture(scope="module")
def dataset(tiny_recipe: Recipe) -> ShardDataset:
    return ShardDataset.open(tiny_recipe.data_dir)


def _loader(dataset: ShardDataset, seed: int = 0, batch_size: int = 6, **kwargs: int) -> Loader:
    order = ClipOrder(dataset, "train", seed)
    return Loader(dataset, order, segment_s=0.4, seed=seed, batch_size=batch_size, **kwargs)


def test_every_training_clip_comes_once_per_epoch_and_no_other(dataset: ShardDataset) -> None:
    manifest = dataset.manifest.to_pylist()
    train = {row["sample_id"] for row in manifest if row["split"] == "train"}
    assert len(train) == 20
    ids = [i for batch in _loader(dataset).batches(0, 10) for i in batch.sample_ids]
    assert len(ids) == 60
    epochs = [ids[start : start + 20] for start in (0, 20, 40)]
    assert all(set(epoch) == train for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each in an order of its own


def test_order_depends_on_the_seed(dataset: ShardDataset) -> None:
    assert _loader(dataset, 0).batch(0).sample_ids == _loader(dataset, 0).batch(0).sample_ids
    assert _loader(dataset, 0).batch(0).sample_ids != _loader(dataset, 1).batch(0).sample_ids


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_the_same_global_batches(dataset: ShardDataset, world: int) -> None:
    whole = list(_loader(dataset).batches(0, 5))
    parts = [list(_loader(dataset, rank=r, world=world).batches(0, 5)) for r in range(world)]
    for step, batch in enumerate(whole):
        row = 0
        for part in (p[step] for p in parts):
            for i, sample_id in enumerate(part.sample_ids):
                assert sample_id == batch.sample_ids[row]
                frames, tokens = int(part.lengths[i]), int(part.text_mask[i].sum())
                assert frames == batch.lengths[row]
                assert torch.equal(part.codes[i, :, :frames], batch.codes[row, :, :frames])
                assert torch.equal(part.text[i, :tokens], batch.text[row, :tokens])
                row += 1
        assert row == 6


def test_resuming_in_the_middle_gives_the_same_batches(dataset: ShardDataset) -> None:
    whole = list(_loader(dataset, prefetch=1).batches(0, 9))
    rest = list(_loader(dataset, prefetch=5).batches(4, 9))
    for one, two in zip(whole[4:], rest, strict=True):
        assert one.sample_ids == two.sample_ids
        assert torch.equal(one.codes, two.codes)
        assert torch.equal(one.text, two.text)


def test_batches_hold_what_the_shards_hold(dataset: ShardDataset) -> None:
    rows = {row["sample_id"]: i for i, row in enumerate(dataset.manifest.to_pylist())}
    starts, prompts = Counter(), Counter()
    for batch in _loader(dataset).batches(0, 40):
        assert batch.codes.shape[2] == int(batch.lengths.max()) <= 20
        for i, sample_id in enumerate(batch.sample_ids):
            sample = dataset.read(rows[sample_id])
            length, tokens = int(batch.lengths[i]), int(batch.text_mask[i].sum())
            assert length == min(20, sample.codes.shape[1])
            crop = batch.codes[i, :, :length].numpy()
            windows = np.lib.stride_tricks.sliding_window_view(sample.codes, length, axis=1)
            places = [s for s in range(windows.shape[1]) if np.array_equal(windows[:, s], crop)]
            assert places
            starts[(sample_id, places[0])] += 1
            assert (batch.codes[i, :, length:] == 16).all()
            assert not batch.text_mask[i, tokens:].any()
            text = batch.text[i, :tokens].numpy().astype(np.float16)
            matches = [j for j, t in enumerate(sample.text) if np.array_equal(t, text)]
            assert matches
            assert not batch.text[i, tokens:].any()
            prompts[(len(sample.text), matches[0])] += 1
    # Long clips are cropped at many places, and both of two prompts come up.
    longest = max(range(len(dataset)), key=lambda i: dataset.read(i).codes.shape[1])
    sample = dataset.read(longest)
    if sample.record["split"] == "train":
        assert len([key for key in starts if key[0] == sample.sample_id]) > 3
    assert min(prompts[(2, 0)], prompts[(2, 1)]) > 0.3 * (prompts[(2, 0)] + prompts[(2, 1)])


def test_small_windows_keep_to_consecutive_shards(dataset: ShardDataset) -> None:
    order = ClipOrder(dataset, "train", 0, window=1)
    shards = dataset.manifest["shard"].to_numpy()[order.epoch(0)]
    runs = 1 + int((np.diff(shards) != 0).sum())
    assert runs == len(set(shards.tolist())) == 3


def test_weights_mix_datasets(dataset: ShardDataset) -> None:
    def counts(weights: dict[str, float], epoch: int) -> Counter[str]:
        rows = ClipOrder(dataset, "train", 0, weights=weights).epoch(epoch)
        names = dataset.manifest["dataset"].to_pylist()
        return Counter(names[row] for row in rows)

    plain = counts({}, 0)
    assert plain == {"even": 12, "odd": 8}
    assert counts({"odd": 2.5}, 0) == counts({"odd": 2.5}, 3) == {"even": 12, "odd": 20}
    assert counts({"even": 0}, 0) == {"odd": 8}
    rows = ClipOrder(dataset, "train", 0, weights={"odd": 2.5}).epoch(0).tolist()
    assert all(2 <= n <= 3 for row, n in Counter(rows).items() if row not in _evens(dataset))
    with pytest.raises(AttuneError, match=r"'nosuch'.*even, odd"):
        ClipOrder(dataset, "train", 0, weights={"nosuch": 1})
    with pytest.raises(AttuneError, match="leave no clip"):
        ClipOrder(dataset, "train", 0, weights={"even": 0, "odd": 0})


def test_repeats_of_a_clip_differ_in_crop_or_prompt(dataset: ShardDataset) -> None:
    order = ClipOrder(dataset, "train", 0, weights={"odd": 4, "even": 0})
    loader = Loader(dataset, order, segment_s=0.2, seed=0, batch_size=order.epoch_size)
    batch = loader.batch(0)
    seen: dict[str, set[bytes]] = {}
    for i, sample_id in enumerate(batch.sample_ids):
        text = batch.text[i, : int(batch.text_mask[i].sum())]
        seen.setdefault(sample_id, set()).add(batch.codes[i].numpy().tobytes() + bytes(len(text)))
    assert Counter(batch.sample_ids).most_common()[-1][1] == 4
    # Of four, two may coincide by luck; exact copies of one would leave one each.
    assert sum(len(kinds) for kinds in seen.values()) > 3 * len(seen)


def _evens(dataset: ShardDataset) -> set[int]:
    return {i for i, name in enumerate(dataset.manifest["dataset"].to_pylist()) if name == "even"}


def test_a_missing_split_is_reported(dataset: ShardDataset) -> None:
    with pytest.raises(AttuneError, match="no clip of split 'test' among 24"):
        ClipOrder(dataset, "test", 0)


def test_dropped_text_is_one_draw_per_step_or_one_per_clip() -> None:
    batch = np.stack([dropped_text(3, step, 8, 0.1, "batch") for step in range(4000)])
    assert (batch.all(axis=1) == batch.any(axis=1)).all()
    assert abs(batch[:, 0].mean() - 0.1) < 0.015
    single = np.stack([dropped_text(3, step, 8, 0.1, "sample") for step in range(4000)])
    assert abs(single.mean() - 0.1) < 0.01
    assert 0 < single.any(axis=1).mean() < 1
    assert (single.any(axis=1) & ~single.all(axis=1)).any()
    assert np.array_equal(
        dropped_text(3, 7, 8, 0.5, "sample"), dropped_text(3, 7, 8, 0.5, "sample")
    )
    assert not dropped_text(3, 7, 8, 0.0, "batch").any()
    assert dropped_text(3, 7, 8, 1.0, "batch").all()


def test_shards_of_another_make_are_refused(tiny_root: Path, dataset: ShardDataset) -> None:
    recipe = load_recipe(tiny_root / "recipe.yaml")
    check_shards(recipe, dataset.summary)
    for key, value, words in (
        ("sample_rate", 32000, "are at 32000 Hz, but sample_rate .* is 16000"),
        ("codec_id", "feedfacefeedface", "made by codec feedfacefeedface, but codec.path"),
        ("text_encoder_id", "feedfacefeedface", "made by text encoder feedfacefeedface"),
    ):
        with pytest.raises(AttuneError, match=words) as raised:
            check_shards(recipe, dataset.summary | {key: value})
        assert "\n" not in str(raised.value)
