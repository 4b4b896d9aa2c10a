"""A step whose loss or gradient is not finite leaves only a row in the log."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_lm import state
from tiny_runs import train_tiny

from common.config import load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training import step as one_step
from training.data import ClipOrder, Loader
from training.ema import ExponentialMovingAverage
from training.finite import FiniteUpdates
from training.run.log import read_log

CALM = ["lm.cfg.dropout=0", "lm.rr.weight=0", "lm.checkpoint_every=1", "lm.keep=12"]


@pytest.fixture(params=["at once", "a step later"])
def later(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether updates obey a flag on the device, as on a GPU, where the answer comes later."""
    later = request.param == "a step later"
    _defer(monkeypatch, later)
    return later


def _defer(monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    real = FiniteUpdates.__init__

    def chosen(self: FiniteUpdates, *args: object) -> None:
        real(self, *args)
        self._later = later

    monkeypatch.setattr(FiniteUpdates, "__init__", chosen)


def _break(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: float = math.nan) -> None:
    """Losses of these steps (from 1) are multiplied by what is not finite."""
    real, calls = one_step.stream_losses, itertools.count(1)

    def broken(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = real(*args)
        return sums * (factor if next(calls) in steps else 1.0), counts

    monkeypatch.setattr(one_step, "stream_losses", broken)


def _train(root: Path, out: Path, *overrides: str) -> list[dict]:
    return train_tiny(root, out, *CALM, *overrides)


def _ids(root: Path, step: int) -> list[str]:
    """Sample ids of a step's global batch."""
    recipe = load_recipe(root / "recipe.yaml")
    dataset = ShardDataset.open(recipe.data_dir)
    order = ClipOrder(dataset, "train", recipe.seed)
    loader = Loader(dataset, order, segment_s=0.4, seed=0, batch_size=4)
    return list(loader.batch(step - 1).sample_ids)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_skipped_step_changes_nothing(
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    later: bool,
    factor: float,
) -> None:
    _break(monkeypatch, {7}, factor)
    rows = _train(tiny_root, tmp_path, "lm.skip_non_finite=1")
    assert [row["step"] for row in rows] == list(range(1, 13))
    odd = [row for row in rows if "non_finite" in row]
    assert len(odd) == 1 and odd[0]["step"] == 7 and "loss" not in odd[0]
    assert odd[0]["sample_ids"] == _ids(tiny_root, 7) and odd[0]["skipped"] == 1
    assert all(math.isfinite(row["loss"]) for row in rows if row is not odd[0])
    folders = [tmp_path / f"lm/checkpoints/step-{step:08d}" for step in (6, 7, 8)]
    before, skipped, after = (state(folder) for folder in folders)
    assert any("exp_avg_sq" in key for key in before) and any("step" in key for key in before)
    assert before.keys() == skipped.keys()
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert not all(torch.equal(before[key], after[key]) for key in before)
    assert "warning: step 7: gradient norm is nan; skipped, 1 in a row, 1 in all" in (
        capsys.readouterr().err
    )


def test_both_ways_of_skipping_end_alike(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seldom logged and saved, so that the answer does come a step later."""
    seldom = ["lm.log_every=100", "lm.checkpoint_every=100", "lm.skip_non_finite=2"]
    found = []
    for run, deferred in (("now", False), ("later", True)):
        with monkeypatch.context() as patch:
            _break(patch, {1, 5, 6})
            _defer(patch, deferred)
            rows = _train(tiny_root, tmp_path, f"lm.run={run}", *seldom)
        assert [row["step"] for row in rows] == [1, 5, 6, 12]
        assert [row.get("skipped") for row in rows] == [1, 2, 3, None]
        folder = tmp_path / run / "checkpoints" / "step-00000012"
        found.append((state(folder), load_file(folder / "model.safetensors"), rows[-1]))
    (states, averages, last), (states_later, averages_later, last_later) = found
    for key, value in states.items():
        if not key.startswith("ema."):
            assert torch.equal(value, states_later[key]), key
    for name, value in averages.items():  # the average is summed in another order there
        torch.testing.assert_close(value, averages_later[name], rtol=1e-6, atol=1e-7)
    assert last["loss"] == last_later["loss"]


def test_too_many_in_a_row_stop_with_step_and_samples(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    _break(monkeypatch, {3, 4, 6, 7, 8, 9, 10})
    with pytest.raises(AttuneError) as raised:
        _train(tiny_root, tmp_path, "lm.skip_non_finite=2")
    words = (
        f"step 8: gradient norm is nan, 3 such in a row.*samples {', '.join(_ids(tiny_root, 8))}"
    )
    assert raised.match(words)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "lm" / "latest").read_text() == "step-00000007\n"
    rows = [row for row in read_log(tmp_path / "lm") if "skipped" in row]
    assert [(row["step"], row["skipped"]) for row in rows] == [
        (3, 1), (4, 2), (6, 3), (7, 4), (8, 5),
    ]  # fmt: skip
    # The count resumes where it was: steps 6 and 7 are two in a row.
    _break(monkeypatch, {1})
    with pytest.raises(AttuneError, match="step 8: gradient norm is nan, 3 such in a row"):
        _train(tiny_root, tmp_path, "lm.skip_non_finite=2")


def test_by_default_the_first_one_stops_the_run_and_reaches_no_checkpoint(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(monkeypatch, {7})
    with pytest.raises(AttuneError, match="step 7: gradient norm is nan"):
        _train(tiny_root, tmp_path, "lm.log_every=100", "lm.checkpoint_every=5")
    assert (tmp_path / "lm" / "latest").read_text() == "step-00000005\n"
    weights = load_file(tmp_path / "lm/checkpoints/step-00000005/model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_loss_is_enough(tiny_root: Path, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    model = torch.nn.ParameterList([parameter])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ema = ExponentialMovingAverage(model, 0.9)
    world = one_step.World(0, 1, torch.device("cpu"))
    updates = FiniteUpdates(optimizer, ema, 0, world, tmp_path, None, 0)
    parameter.grad = torch.ones(2)
    with pytest.raises(AttuneError, match=r"step 1: loss is inf.*samples a, b;"):
        updates.apply(1, torch.tensor(1.0), torch.tensor(math.inf), ("a", "b"), True)
    assert torch.equal(parameter.detach(), torch.ones(2)) and ema.updates == 0


def test_saving_before_the_first_step_that_counts_changes_nothing(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the optimizer has no state yet, PyTorch makes one in order to save it."""
    states = []
    for every in (1, 6):
        with monkeypatch.context() as once:
            _break(once, {1})
            options = [f"lm.run=every-{every}", f"lm.checkpoint_every={every}", "lm.steps=6"]
            _train(tiny_root, tmp_path, *options, "lm.skip_non_finite=1", "lm.optim.warmup=1")
        states.append(state(tmp_path / f"every-{every}" / "checkpoints" / "step-00000006"))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert {float(v) for k, v in states[0].items() if k.endswith(".step")} == {5.0}
