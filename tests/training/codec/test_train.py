"""Codec training: it learns, it resumes exactly, what it saves is what was trained."""

import json
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EncodecModel

from common.bfloat16 import WrongBfloat16
from common.codec import load_codec
from common.config import load_recipe
from common.errors import AttuneError
from common.schema import PLAN
from training.codec import state
from training.codec import train as codec_train
from training.codec.config import CodecTrainingConfig
from training.codec.losses import MultiScaleMelLoss, si_sdr
from training.codec.step import CodecStep
from training.distributed import World
from training.run import precision
from training.run.signals import Stopped, StopSignals

QUIET = Console(quiet=True)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("train", "held_out"):
        (tmp_path / folder).mkdir()
        for index in range(4):
            t = np.arange(16_000) / 16_000
            wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * t)
            soundfile.write(tmp_path / folder / f"{index}.wav", wave, 16_000)
    (tmp_path / "train" / "broken.wav").write_bytes(b"")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: test
run_dir: {tmp_path}
data_dir: {tmp_path}/data
sample_rate: 16000
text_encoder: {{path: unused}}
codec_training:
  out: {tmp_path}/codec
  audio: [{tmp_path}/train]
  validation: [{tmp_path}/held_out]
  architecture: {{num_filters: 2, hidden_size: 8, codebook_size: 16, lstm_layers: 1}}
  mel_windows: [256, 1024]
  discriminator: {{filters: 2, windows: [512, 128], start_step: 2}}
  reading: memory
  segment_s: 0.25
  batch_size: 4
  steps: 12
  learning_rate: 0.003
  quantize_from_step: 4
  log_every: 1
  checkpoint_every: 4
  guards: {{window: 5}}
"""
    )
    return path


def _train(path: Path, *overrides: str) -> Path:
    recipe = load_recipe(path, overrides)
    config = recipe.section("codec_training", CodecTrainingConfig)
    return codec_train.train_codec(recipe, config, QUIET)


def _rows(out: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = Path(f"{out}.run/log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "audio_s_per_s"} for row in rows]


def _losses(out: Path) -> list[float]:
    return [row["loss"] for row in _rows(out) if "loss" in row]


def test_the_finished_folder_decodes_what_it_encodes_and_says_where_it_comes_from(
    recipe_file: Path,
):
    out = _train(recipe_file)
    paths = (out / "model.safetensors", Path(f"{out}.run/checkpoint.safetensors"))
    assert {path.stat().st_mode for path in paths} == {(out / "README.md").stat().st_mode}
    codec = load_codec(str(out))
    assert (codec.sample_rate, codec.hop, codec.n_codebooks, codec.codebook_size) == (
        16_000,
        320,
        4,
        16,
    )
    codes = codec.encode(0.1 * torch.randn(2, 3333))
    assert codes.shape == (2, 4, 11) and int(codes.max()) < 16
    assert codec.decode(codes).shape == (2, 11 * 320)
    card = (out / "README.md").read_text()
    assert "SI-SDR" in card and "empty_file" in card and "python -m training codec" in card
    # The run stays as it is when it is asked for again.
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert _train(recipe_file) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_training_reduces_the_reconstruction_loss(recipe_file: Path):
    out = _train(recipe_file, "codec_training.steps=60")
    losses = _losses(out)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_killed_training_goes_on_bit_for_bit(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = _train(recipe_file, f"codec_training.out={tmp_path}/whole")

    class Killed(Exception):
        pass

    class DyingStep(CodecStep):
        def __call__(self, target, step, rate):
            if step == 10:
                raise Killed
            return super().__call__(target, step, rate)

    monkeypatch.setattr(codec_train, "CodecStep", DyingStep)
    with pytest.raises(Killed):
        _train(recipe_file, f"codec_training.out={tmp_path}/torn")
    monkeypatch.undo()
    time.sleep(1.1)  # event files are read in the order of their names, which tell whole seconds
    before = _rows(tmp_path / "torn")
    torn = _train(recipe_file, f"codec_training.out={tmp_path}/torn")
    # Two steps ran twice: from the checkpoint before them the same losses came out.
    rows = _rows(torn)
    assert len(before) == 10 and before == rows[:10]
    there = {"discriminator", "adversarial", "feature_grad_norm", "perplexity", "window_used"}
    assert there <= rows[9].keys() and "valid_si_sdr_db" in rows[-1]
    # TensorBoard shows them once, and the row of the checkpoint's own step still.
    events = EventAccumulator(str(tmp_path / "torn.run" / "tb"))
    events.Reload()
    assert "reconstruction/0" in events.Tags()["audio"]
    assert [event.step for event in events.Scalars("codec/loss")] == list(range(1, 13))
    assert rows == _rows(whole)
    assert (torn / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_finished_codec_is_the_average_of_the_weights(recipe_file: Path, tmp_path: Path):
    last = _train(recipe_file, f"codec_training.out={tmp_path}/last", "codec_training.ema_decay=0")
    average = _train(
        recipe_file, f"codec_training.out={tmp_path}/average", "codec_training.ema_decay=0.9"
    )
    assert _losses(last) == _losses(average)  # averaging changes nothing of the training
    one, two = (load_file(out / "model.safetensors") for out in (last, average))
    differ = {name for name in one if not torch.equal(one[name], two[name])}
    assert any("decoder" in name for name in differ)
    assert not any("codebook" in name for name in differ)


def test_a_collapsed_codebook_stops_the_run_if_the_recipe_says_so(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
):
    strict = ["codec_training.guards.usage_floor=1", "codec_training.guards.usage_patience=2"]
    few = ["codec_training.batch_size=1", "codec_training.guards.window=3"]
    recipe = load_recipe(recipe_file, [*strict, *few, "codec_training.dead_code_threshold=0"])
    with pytest.raises(AttuneError, match="the codebook has collapsed"):
        codec_train.train_codec(
            recipe, recipe.section("codec_training", CodecTrainingConfig), Console()
        )
    assert "below codec_training.guards.usage_floor 100.0%" in capsys.readouterr().out


def test_validation_on_the_way_and_the_report_show_originals_and_reconstructions(
    recipe_file: Path, tmp_path: Path
):
    out = _train(recipe_file, "codec_training.valid_every=5", "codec_training.examples=2")
    rows = [row for row in _rows(out) if "valid_mel" in row]
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert rows[-1]["valid_clips"] == 4 and len(rows[-1]["valid_used"]) == 4
    events = EventAccumulator(str(tmp_path / "codec.run" / "tb"), {"audio": 0, "images": 0})
    events.Reload()
    assert [event.step for event in events.Audio("reconstruction/1")] == [5, 10, 12]
    assert [event.step for event in events.Audio("original/1")] == [5]
    assert len(events.Images("spectrogram_reconstruction/0")) == 3
    page = (out / "report.html").read_text()
    assert page.count("<audio") == 4 and page.count("mel spectrogram") == 4
    figures = json.loads((tmp_path / "codec.run" / "validation.json").read_text())
    assert f"{figures['si_sdr_db']:.2f}" in page and f"{figures['used'][3]:.1%}" in page


def test_training_streams_from_a_plan_as_well(recipe_file: Path, tmp_path: Path):
    rows = [
        {"audio_uri": str(path), "split": split}
        for split, folder in (("train", "train"), ("valid", "held_out"))
        for path in sorted((tmp_path / folder).glob("[0-9].wav"))
    ]
    filled = [{name: row.get(name) for name in PLAN.names} for row in rows]
    plan = tmp_path / "plan.parquet"
    pq.write_table(pa.Table.from_pylist(filled, PLAN), plan)
    out = _train(
        recipe_file,
        "codec_training.reading=stream",
        f"codec_training.audio=[{plan}]",
        f"codec_training.validation=[{plan}]",
    )
    assert "4 clips; refused: none" in (out / "README.md").read_text()


def test_a_run_that_saved_nothing_may_be_begun_anew_with_another_configuration(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(step: CodecStep, automatic: Collection[str] = ()) -> set[str]:
        if step.config.precision == "bf16":
            raise AttuneError("bfloat16 is wrong here; set codec_training.precision=fp32")
        return set()

    monkeypatch.setattr(CodecStep, "check_precision", refuse)
    with pytest.raises(AttuneError, match=r"set codec_training\.precision=fp32"):
        _train(recipe_file, "codec_training.precision=bf16")
    assert not (tmp_path / "codec.run").exists()
    with pytest.raises(AttuneError, match=r"lower codec_training\.learning_rate"):
        _train(recipe_file, "codec_training.learning_rate=1e30")
    out = _train(recipe_file, "codec_training.precision=fp32")
    settings = json.loads((tmp_path / "codec.run" / "config.json").read_text())
    assert settings["learning_rate"] == 0.003
    steps = [row["step"] for row in _rows(out) if "loss" in row]
    assert steps == list(range(1, 13))  # none of what was given up


def test_a_codec_goes_on_in_the_precision_that_auto_began_with(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
):
    auto = ("codec_training.precision=auto", "codec_training.discriminator.precision=auto")
    told = Console(record=True, width=200)
    recipe = load_recipe(recipe_file, auto)
    config = recipe.section("codec_training", CodecTrainingConfig)

    class Told(StopSignals):
        asked = property(lambda self: True)

    # A processor with bf16 that is right for this codec, whatever the one below does.
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr("training.codec.step.check_bfloat16", lambda *args: None)
    with Told() as stop, pytest.raises(Stopped):
        codec_train.train_codec(recipe, config, told, stop)
    run = Path(config.out + ".run")
    begun = json.loads((run / "config.json").read_text())
    assert (begun["precision"], begun["discriminator"]["precision"]) == ("bf16", "bf16")
    for place in (precision, codec_train):
        monkeypatch.setattr(place, "has_bfloat16", lambda device: False)
    for _ in range(2):  # goes on; is finished
        assert codec_train.train_codec(recipe, config, told) == Path(config.out)
    assert json.loads((run / "config.json").read_text()) == begun
    assert "this processor emulates bf16" in told.export_text()
    monkeypatch.setattr(codec_train, "load_checkpoint", None)  # not reached
    with pytest.raises(AttuneError, match="made with another configuration"):
        _train(recipe_file, "codec_training.precision=fp32")


def test_auto_takes_fp32_where_bf16_is_wrong_but_not_for_a_run_that_has_begun(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(what: str, *args: object) -> None:
        if "decoder" in what:
            raise WrongBfloat16(f"bfloat16 is wrong for {what}")

    auto = ("codec_training.precision=auto", "codec_training.discriminator.precision=auto")
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr("training.codec.step.check_bfloat16", wrong)
    with pytest.raises(WrongBfloat16, match="for the codec's decoder"):
        _train(recipe_file, "codec_training.precision=bf16", auto[1])
    out = _train(recipe_file, *auto)
    settings = json.loads(Path(f"{out}.run/config.json").read_text())
    assert (settings["precision"], settings["discriminator"]["precision"]) == ("fp32", "bf16")

    begun = (f"codec_training.out={out}-begun", "codec_training.precision=bf16")

    class Told(StopSignals):
        asked = property(lambda self: True)

    config = load_recipe(recipe_file, begun).section("codec_training", CodecTrainingConfig)
    with monkeypatch.context() as right, Told() as stop, pytest.raises(Stopped):
        right.setattr("training.codec.step.check_bfloat16", lambda *args: None)
        codec_train.train_codec(load_recipe(recipe_file, begun), config, QUIET, stop)
    with pytest.raises(WrongBfloat16):
        _train(recipe_file, begun[0], "codec_training.precision=auto")


def test_rows_of_steps_that_come_again_and_a_line_cut_short_leave_the_log(
    recipe_file: Path, tmp_path: Path
):
    recipe = load_recipe(recipe_file)
    config = recipe.section("codec_training", CodecTrainingConfig)
    log = tmp_path / "codec.run" / "log.jsonl"

    class Told(StopSignals):
        asked = property(lambda self: log.is_file() and len(log.read_text().splitlines()) == 6)

    with Told() as stop, pytest.raises(Stopped):
        codec_train.train_codec(recipe, config, QUIET, stop)
    with log.open("a") as file:
        file.write('{"step": 7, "loss": 1}\n{"step": 8, "lo')  # as a full disk leaves it
    steps = [row["step"] for row in _rows(_train(recipe_file)) if "loss" in row]
    assert steps == list(range(1, 13))


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save, run = state.save_file, tmp_path / "codec.run"
    full = SafetensorError("I/O error: No space left on device (os error 28)")

    def fill(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save(tensors, path)
        if int(tensors["step"]) == 8:
            raise full

    monkeypatch.setattr(state, "save_file", fill)
    with pytest.raises(AttuneError, match=r"checkpoint\.safetensors: cannot be saved: .*No space"):
        _train(recipe_file)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    assert int(load_file(run / "checkpoint.safetensors")["step"]) == 4

    def no_weights(model: EncodecModel, folder: Path) -> None:
        folder.mkdir()
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(EncodecModel, "save_pretrained", no_weights)
        with pytest.raises(AttuneError, match=r"codec: cannot be written: .*No space left"):
            _train(recipe_file)
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "codec").exists()
    # Somebody takes its place in the end: it is kept.
    rename = Path.rename

    def taken(path: Path, to: Path) -> Path:
        (to / "theirs").mkdir(parents=True)
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", taken)
        with pytest.raises(AttuneError, match=r"the finished codec is in .*codec\.partial"):
            _train(recipe_file)
    assert load_codec(str(tmp_path / "codec.partial")).codebook_size == 16


def test_held_out_clips_shorter_than_a_window_cost_no_run(recipe_file: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "held_out" / "short.wav", rng.uniform(-0.3, 0.3, 1800), 16_000)
    out = _train(
        recipe_file,
        "codec_training.mel_windows=[256,4096]",
        "codec_training.losses.adversarial=0",
        "codec_training.losses.feature=0",
        "codec_training.steps=5",
    )
    assert _rows(out)[-1]["valid_clips"] == 4


def test_another_configuration_is_refused_and_nothing_lost(recipe_file: Path):
    out = _train(recipe_file)
    weights = (out / "model.safetensors").read_bytes()
    with pytest.raises(AttuneError, match="another configuration"):
        _train(recipe_file, "codec_training.steps=13")
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_trailing_slash_and_leftovers_lose_no_codec(recipe_file: Path, tmp_path: Path):
    (tmp_path / "codec").mkdir()  # empty: free
    (tmp_path / "codec.partial").mkdir()
    (tmp_path / "codec.partial" / "stale.bin").touch()
    out = _train(recipe_file, f"codec_training.out={tmp_path}/codec/")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "report.html",
    }
    assert (tmp_path / "codec.run" / "log.jsonl").is_file()


def test_what_stands_in_the_way_shows_before_training(recipe_file: Path, tmp_path: Path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "notes.txt").touch()
    with pytest.raises(AttuneError, match="exists and is not a codec"):
        _train(recipe_file)
    assert not (tmp_path / "codec.run").exists()


def test_a_folder_that_cannot_be_written_is_told_before_audio_is_read(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    locked = f"codec_training.out={tmp_path}/locked/codec"

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(codec_train, "ClipsInMemory", None)  # not reached
        with pytest.raises(
            AttuneError, match=r"^codec_training\.out: .*file.*: Not a directory \("
        ):
            _train(recipe_file, f"codec_training.out={tmp_path}/file/below/codec")
        patch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / "locked")
        for begun in (False, True):  # nothing can be made beside it, though it could go on
            if begun:
                (tmp_path / "locked" / "codec.run").mkdir()
            with pytest.raises(AttuneError, match=r"^codec_training\.out: .*Permission denied \("):
                _train(recipe_file, locked)
    with monkeypatch.context() as patch:  # what only trying tells
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(AttuneError, match=r"^codec_training\.out: .*codec\.run cannot be wr"):
            _train(recipe_file)
    assert not any((tmp_path / "locked" / "codec.run").iterdir())


def test_what_cannot_be_trained_is_told_before_anything_is_made(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone = ["codec_training.losses.adversarial=0", "codec_training.losses.feature=0"]
    with pytest.raises(AttuneError, match=r"480 samples, and the mel loss.*at least 513"):
        _train(recipe_file, "codec_training.segment_s=0.03", *alone)
    with pytest.raises(AttuneError, match="discriminator's windows take up to 8192"):
        _train(recipe_file, "codec_training.discriminator.windows=[8192]")
    monkeypatch.setattr(codec_train, "start", lambda threads: World(0, 3, torch.device("cpu")))
    with pytest.raises(AttuneError, match="batch_size 4 cannot be shared by 3 processes"):
        _train(recipe_file)
    assert not (tmp_path / "codec.run").exists()


def test_a_signal_ends_a_run_with_a_checkpoint_and_the_same_command_goes_on(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = _train(recipe_file, f"codec_training.out={tmp_path}/whole")
    recipe = load_recipe(recipe_file)
    config = recipe.section("codec_training", CodecTrainingConfig)

    class Told(StopSignals):
        asked = property(lambda self: (tmp_path / "codec.run" / "log.jsonl").is_file())

    with Told() as stop, pytest.raises(Stopped):
        codec_train.train_codec(recipe, config, QUIET, stop)
    assert "after step 1, saved in" in capsys.readouterr().err
    out = _train(recipe_file)
    assert _rows(out) == _rows(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_damaged_files_and_diverging_training_are_told(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(AttuneError, match=r"not finite at step 2"):
        _train(recipe_file, "codec_training.learning_rate=1e30")
    checkpoint = tmp_path / "codec.run" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"torn")
    with pytest.raises(AttuneError, match=r"checkpoint\.safetensors is damaged.*remove it"):
        _train(recipe_file, "codec_training.learning_rate=1e30")
    (tmp_path / "codec.run" / "config.json").write_text("{")
    with pytest.raises(AttuneError, match=r"config\.json is damaged"):
        _train(recipe_file)


def test_a_folder_without_usable_audio_is_one_clear_error(recipe_file: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AttuneError, match="no usable audio"):
        _train(recipe_file, f"codec_training.audio=[{tmp_path}/empty]")
    with pytest.raises(AttuneError, match="no such folder"):
        _train(recipe_file, f"codec_training.audio=[{tmp_path}/nowhere]")
    for key in ("audio", "validation"):
        with pytest.raises(AttuneError, match=rf"'codec_training\.{key}': .*at least 1 item"):
            _train(recipe_file, f"codec_training.{key}=[]")


def test_a_root_that_was_never_set_is_told(recipe_file: Path, tmp_path: Path):
    overrides = ["codec_training.audio=['${root}/nowhere/[1-4]-*']"]
    for root in ("''", str(tmp_path)):
        with pytest.raises(AttuneError, match=r"nowhere/\[1-4\]-\*: no audio files") as refused:
            _train(recipe_file, f"root={root}", *overrides)
        told = "; the recipe's root is empty: give a path (root=/path on the command line) or set"
        assert (told in str(refused.value)) == (root == "''")
    with pytest.raises(AttuneError, match="no such folder") as refused:
        _train(recipe_file, f"codec_training.validation=[{tmp_path}/nowhere]")
    assert "recipe's root" not in str(refused.value)  # it has none


def test_losses_are_zero_for_equal_waveforms_and_grow_with_noise():
    wav = 0.2 * torch.sin(torch.arange(16_000) * 0.2)[None].repeat(2, 1)
    noise = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    mel = MultiScaleMelLoss(16_000, (64, 512, 2048))
    assert float(mel(wav, wav)) == 0
    distances = [float(mel(wav + level * noise, wav)) for level in (1e-3, 1e-2, 1e-1)]
    assert distances == sorted(distances) and distances[0] > 0


def test_si_sdr_equals_the_noise_level_and_ignores_scale():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 100_000, generator=generator)
    noisy = target + 0.1 * torch.randn(1, 100_000, generator=generator)
    assert float(si_sdr(noisy, target)) == pytest.approx(20, abs=0.1)
    assert float(si_sdr(5 * noisy, target)) == pytest.approx(float(si_sdr(noisy, target)), abs=1e-3)
