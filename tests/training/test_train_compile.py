"""Blocks compiled one by one, with and without text, for clips of any length."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import train_tiny
from torch._dynamo.backends.debugging import aot_eager

from common.config import load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training import distributed
from training.checkpoint.load import load_for_inference
from training.config import LMConfig
from training.data import ClipOrder, Loader, dropped_text
from training.distributed import World, parallelize
from training.lm.model import LanguageModel
from training.step import TrainingStep
from training.train import architecture

ONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_graphs_serve_all_blocks_and_all_lengths(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, checkpointed: bool
) -> None:
    """Two graphs for each kind of step at most: one for the first length, one for any."""
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    recipe = load_recipe(tiny_root / "recipe.yaml", ["lm.model.n_layers=5"])
    dataset = ShardDataset.open(recipe.data_dir)
    plain = LanguageModel(architecture(recipe.section("lm", LMConfig), dataset.summary))
    plain.initialize(1)
    options = {"batch_size": 3, "precision": "fp32", "cfg": {"dropout": 0.5}}
    config = LMConfig.model_validate(options)
    model = copy.deepcopy(plain)
    parallelize(model, ONE, compile=True, activation_checkpointing=checkpointed)
    assert list(model.state_dict()) == list(plain.state_dict())
    loader = Loader(dataset, ClipOrder(dataset, "train", 0), segment_s=0.6, seed=0, batch_size=3)
    made, lengths = [], {True: set(), False: set()}
    for step in range(16):
        batch = loader.batch(step)
        lengths[bool(dropped_text(0, step, 3, 0.5, "batch").any())].add(batch.codes.shape[2])
        rows = []
        for one in (plain, model):
            one.zero_grad(set_to_none=True)
            rows.append(TrainingStep(one, config, ONE, seed=0)(batch, step).row(ONE))
        assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
        for (name, a), (_, b) in zip(
            plain.named_parameters(), model.named_parameters(), strict=True
        ):
            assert (a.grad is None) == (b.grad is None), name
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
        made.append(len(graphs))
    assert min(len(found) for found in lengths.values()) >= 3
    assert 2 <= made[-1] <= 4
    assert made[8:] == made[-1:] * 8


@pytest.mark.heavy
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_run_follows_an_eager_one(tiny_root: Path, tmp_path: Path) -> None:
    torch._dynamo.reset()
    eager = train_tiny(tiny_root, tmp_path, "lm.run=eager", "lm.valid_every=6")
    options = ["lm.run=compiled", "lm.valid_every=6", "lm.compile=true"]
    compiled = train_tiny(tiny_root, tmp_path, *options)
    assert len(eager) == len(compiled)
    for a, b in zip(eager, compiled, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() & {"loss", "rr", "valid_loss", "valid_loss_uncond"}:
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    load_for_inference(tmp_path / "compiled" / "checkpoints" / "step-00000012")


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.shutil, "which", lambda name: None)
    model = torch.nn.Module()
    with pytest.raises(AttuneError, match="needs a C\\+\\+ compiler"):
        parallelize(model, ONE, compile=True)  # type: ignore[arg-type]
