"""The training loop as a whole, in one process on tiny shards."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import names_in, run_command, set_column, train_tiny, without_clock

from common.config import load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training import step as step_module
from training import train as training
from training.checkpoint.load import load_for_inference
from training.data import ClipOrder, Loader
from training.distributed import World
from training.lm.losses import stream_losses
from training.lm.patterns import delay
from training.run.log import Progress, read_log
from training.step import dropped_text


def test_losses_fall_and_every_stream_learns(tiny_root: Path, tmp_path: Path) -> None:
    overrides = ["lm.steps=80", "lm.batch_size=8", "lm.checkpoint_every=80"]
    rows = train_tiny(tiny_root, tmp_path, *overrides)
    told = [row for row in rows if row["dropped"] == 0]
    for k in range(4):
        first = sum(row["loss_per_stream"][k] for row in told[:5]) / 5
        last = sum(row["loss_per_stream"][k] for row in told[-5:]) / 5
        assert last < 0.75 * first
    assert rows[0]["loss"] == pytest.approx(sum(rows[0]["loss_per_stream"]) / 4)


def test_rr_comes_on_steps_without_text_only(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = step_module.representation_regularization
    monkeypatch.setattr(
        step_module,
        "representation_regularization",
        lambda audio, text: calls.append(audio.requires_grad) or real(audio, text),
    )
    rows = train_tiny(tiny_root, tmp_path, "lm.steps=60", "seed=5")
    expected = [step + 1 for step in range(60) if dropped_text(5, step, 4, 0.3, "batch").all()]
    assert 5 < len(expected) < 35
    assert [row["step"] for row in rows if "rr" in row] == expected
    assert [row["step"] for row in rows if row["dropped"] == 1] == expected
    assert calls == [True] * len(expected)
    # Without it the same steps go without text, rr is watched but pulls at nothing.
    calls.clear()
    train_tiny(tiny_root, tmp_path, "lm.steps=60", "seed=5", "lm.rr.weight=0", "lm.run=plain")
    assert calls == [False] * len(expected)


def test_rr_changes_training_from_the_first_step_without_text(
    tiny_root: Path, tmp_path: Path
) -> None:
    with_rr = train_tiny(tiny_root, tmp_path, "lm.run=a")
    without = train_tiny(tiny_root, tmp_path, "lm.run=b", "lm.rr.weight=0")
    first = next(i for i, row in enumerate(with_rr) if "rr" in row)
    for i in range(first + 1):
        assert with_rr[i]["loss"] == without[i]["loss"]
    assert with_rr[first]["rr"] == without[first]["rr"]
    assert with_rr[first]["grad_norm"] != without[first]["grad_norm"]
    assert with_rr[first + 1]["loss"] != without[first + 1]["loss"]


def test_losses_of_streams_can_be_summed(tiny_root: Path, tmp_path: Path) -> None:
    mean, total = (
        train_tiny(tiny_root, tmp_path, f"lm.run={how}", f"lm.stream_loss={how}", "lm.rr.weight=0")
        for how in ("mean", "sum")
    )
    assert total[0]["grad_norm"] == pytest.approx(4 * mean[0]["grad_norm"], rel=1e-5)


def test_bf16_and_medium_follow_fp32(tiny_root: Path, tmp_path: Path) -> None:
    """bf16 products carry 8 bits: a few thousandths of the loss over 12 steps at this size."""
    exact = [row["loss"] for row in train_tiny(tiny_root, tmp_path, "lm.run=fp32")]
    try:
        medium = train_tiny(tiny_root, tmp_path, "lm.run=medium", "lm.precision=medium")
    finally:
        torch.set_float32_matmul_precision("highest")
    half = train_tiny(tiny_root, tmp_path, "lm.run=bf16", "lm.precision=bf16")
    assert [row["loss"] for row in medium] == pytest.approx(exact, rel=5e-3)
    assert [row["loss"] for row in half] == pytest.approx(exact, rel=5e-3)


def test_resuming_gives_the_losses_of_an_undisturbed_run(tiny_root: Path, tmp_path: Path) -> None:
    whole = train_tiny(tiny_root, tmp_path, "lm.run=whole")
    run = tmp_path / "whole"
    final = load_file(run / "checkpoints" / "step-00000012" / "model.safetensors")
    # As if it had been killed after step 7, in the middle of a line.
    (run / "latest").write_text("step-00000010\n")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    again = train_tiny(tiny_root, tmp_path, "lm.run=whole", "lm.log_every=1")
    assert without_clock(again) == without_clock(whole)
    resumed = load_file(run / "checkpoints" / "step-00000012" / "model.safetensors")
    assert final.keys() == resumed.keys()
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_a_run_set_back_removes_later_checkpoints(tiny_root: Path, tmp_path: Path) -> None:
    train_tiny(tiny_root, tmp_path, "lm.keep=4", "lm.checkpoint_every=3")
    (tmp_path / "lm" / "latest").write_text("step-00000003\n")
    train_tiny(tiny_root, tmp_path, "lm.keep=4", "lm.checkpoint_every=5")
    expected = [f"step-{step:08d}" for step in (3, 5, 10, 12)]
    assert names_in(tmp_path / "lm" / "checkpoints") == expected


def test_a_finished_run_is_left_alone(tiny_root: Path, tmp_path: Path) -> None:
    train_tiny(tiny_root, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "lm" / "checkpoints").rglob("*")}
    train_tiny(tiny_root, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_run_folder_holds_the_promised_files(tiny_run: Path) -> None:
    assert (tiny_run / "latest").read_text() == "step-00000012\n"
    assert names_in(tiny_run / "checkpoints") == ["step-00000010", "step-00000012"]
    described = json.loads((tiny_run / "checkpoints/step-00000012/model.json").read_text())
    assert described["architecture"]["n_codebooks"] == 4
    assert described["step"] == 12
    assert {"codec_id", "text_encoder_id", "sample_rate", "frame_rate"} <= described.keys()
    events = EventAccumulator(str(tiny_run / "tb")).Reload()
    tags = events.Tags()["scalars"]
    for tag in ("loss/conditional", "loss_per_stream/conditional_3", "rr", "grad_norm", "lr"):
        assert tag in tags
    rr = [row["rr"] for row in read_log(tiny_run) if "rr" in row]
    assert [event.value for event in events.Scalars("rr")] == pytest.approx(rr)


def test_validation_does_not_change_training(tiny_root: Path, tmp_path: Path) -> None:
    plain = train_tiny(tiny_root, tmp_path, "lm.run=a")
    rows = train_tiny(tiny_root, tmp_path, "lm.run=b", "lm.valid_every=4")
    checks = [row for row in rows if "valid_loss" in row]
    assert [row["step"] for row in checks] == [4, 8, 12]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == [row["loss"] for row in plain]


def test_validation_is_the_loss_of_the_saved_average_over_each_clip_once(
    tiny_root: Path, tmp_path: Path
) -> None:
    # Four clips in batches of three: the second batch runs into the next epoch.
    overrides = ["lm.batch_size=3", "lm.valid_every=12", "lm.ema_decay=0.9"]
    row = train_tiny(tiny_root, tmp_path, *overrides)[-1]
    model, _ = load_for_inference(tmp_path / "lm" / "checkpoints" / "step-00000012")
    dataset = ShardDataset.open(load_recipe(tiny_root / "recipe.yaml").data_dir)
    order = ClipOrder(dataset, "valid", 0)
    assert order.epoch_size == 4
    batch = Loader(dataset, order, segment_s=0.4, seed=0, batch_size=4).batch(0)
    inputs, targets = delay(batch.codes, batch.lengths, 16)
    for key, text in (("valid_loss", (batch.text, batch.text_mask)), ("valid_loss_uncond", ())):
        sums, counts = stream_losses(model(inputs, *text)[0], targets)
        assert row[key] == pytest.approx(float(sums.sum() / counts.sum()), rel=1e-5)


def test_a_missing_valid_split_shows_before_training(tiny_root: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    set_column(tmp_path / "data", "split", ["train"] * 24)
    with pytest.raises(AttuneError, match="no clip of split 'valid'"):
        train_tiny(tiny_root, tmp_path, f"data_dir={tmp_path}/data", "lm.valid_every=4")
    assert not (tmp_path / "lm").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lm.batch_size=1"], "batch_size must be at least 2 with rr"),
        (["lm.run=.."], "lm.run"),
        (["lm.optim.lr=.inf"], "lm.optim.lr"),
        (
            ["lm.optim.warmup=50", "lm.steps=40"],
            r"^config .*recipe\.yaml: lm\.optim\.warmup \(50\) must be shorter than lm\.steps "
            r"\(40\); add lm\.optim\.warmup=4$",
        ),
        (["lm.model.n_heads=5"], r": lm\.model\.n_heads \(5\) must divide d_model \(32\)$"),
        (["lm.stepz=3"], "unknown key 'lm.stepz'.*did you mean 'steps'"),
        (["data_dir={tmp}/nowhere"], "nowhere.*pipeline run"),
        (["sample_rate=32000"], "are at 16000 Hz"),
        (["text_encoder.path=package:no_such_wheel/x"], "not installed"),
        (["text_encoder.max_length=9"], "made by text encoder"),
    ],
)
def test_mistakes_stop_before_training(
    tiny_root: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(AttuneError, match=words):
        train_tiny(tiny_root, tmp_path, *(o.format(tmp=tmp_path) for o in overrides))
    assert not (tmp_path / "lm").exists()


def test_a_run_resumes_under_its_own_config_only(tiny_root: Path, tmp_path: Path) -> None:
    train_tiny(tiny_root, tmp_path)
    with pytest.raises(AttuneError, match=r"was started with lm\.rr\.weight = 3\.0, now it is 1"):
        train_tiny(tiny_root, tmp_path, "lm.rr.weight=1")
    with pytest.raises(AttuneError, match="name another run") as refused:
        train_tiny(tiny_root, tmp_path, "lm.rr.weight=1", "lm.steps=14")
    assert "init_from" not in str(refused.value)
    rows = train_tiny(tiny_root, tmp_path, "lm.rr.weight=1", "lm.steps=6", fresh=True)
    assert [row["step"] for row in rows] == list(range(1, 7))


def test_a_finished_run_can_start_another_one(tiny_root: Path, tmp_path: Path) -> None:
    train_tiny(tiny_root, tmp_path)
    with pytest.raises(AttuneError, match=r"lm\.steps = 12, now it is 14; learning rates") as told:
        train_tiny(tiny_root, tmp_path, "lm.steps=14")
    found = re.search(r"lm\.run=NAME (lm\.init_from=\S+)\)", str(told.value))
    assert found
    rows = train_tiny(tiny_root, tmp_path, "lm.run=longer", found[1], "lm.steps=14")
    assert rows[-1]["step"] == 14


def test_a_folder_that_cannot_be_written_is_one_line(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    below = f"run_dir={tmp_path}/file/below"
    with pytest.raises(AttuneError, match=r"^run_dir: .*below/lm cannot be .*: Not a directory \("):
        train_tiny(tiny_root, tmp_path, below)

    def ends(*arguments: str) -> str:
        with pytest.raises(AttuneError) as refused:
            run_command("lm", "--config", tiny_root / "recipe.yaml", *arguments)
        return str(refused.value)

    with monkeypatch.context() as patch:
        patch.setattr("training.train.ShardDataset", None)  # not reached
        assert "Not a directory" in ends(below, f"lm.init_from={tmp_path}")
        patch.setattr("os.access", lambda path, mode: False)
        assert "Permission denied" in ends(f"run_dir={tmp_path}/closed")
        assert "no run there" in ends("--status", below)

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("training.run.folder.write_atomically", refuse)  # only trying shows it
    with pytest.raises(AttuneError, match=r"^run_dir: .*lm cannot be written: Permission denied"):
        train_tiny(tiny_root, tmp_path)


def test_local_rr_needs_two_clips_per_process(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "start", lambda threads: World(0, 4, torch.device("cpu")))
    with pytest.raises(AttuneError, match=r"scope=local.*gives each of 4 processes 1 clip"):
        train_tiny(tiny_root, tmp_path, "lm.rr.scope=local")
    assert not (tmp_path / "lm").exists()


def test_a_restart_without_a_checkpoint_leaves_no_rows_twice(tmp_path: Path) -> None:
    for _ in range(2):
        progress = Progress(tmp_path, 0, 9)
        for step in (1, 2):
            progress.log({"step": step, "valid_loss": float(step)}, say=False)
        progress.close()
        time.sleep(1.1)  # the names of event files have whole seconds
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in events.Scalars("valid_loss")] == [1, 2]
