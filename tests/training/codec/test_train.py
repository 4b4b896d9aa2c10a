"""Codec training: it learns, resumes exactly, and saves the average of the trained weights."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_codec_run import write_codec_recipe, write_plan
from tiny_runs import names_in
from transformers import EncodecModel

from common.bfloat16 import WrongBfloat16
from common.codec import load_codec
from common.config import load_recipe
from common.errors import AttuneError
from training.checkpoint import save as checkpoints
from training.codec import train as codec_train
from training.codec.guards import Guards
from training.codec.losses import MultiScaleMelLoss, si_sdr
from training.codec.step import CodecStep
from training.distributed import World
from training.run import precision
from training.run.signals import Stopped, StopSignals

CLOCK = ("audio_s_per_s", "elapsed_s")
"""Keys of a row of the log that depend on the machine's speed."""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write_codec_recipe(tmp_path)


def _train(path: Path, *overrides: str) -> Path:
    return codec_train.train_codec(load_recipe(path, overrides))


def _stop_when(path: Path, asked: Callable[[], bool], *overrides: str) -> None:
    """A run that is asked to stop."""

    class Asked(StopSignals):
        asked = property(lambda self: when())

    when = asked
    with Asked() as stop, pytest.raises(Stopped):
        codec_train.train_codec(load_recipe(path, overrides), stop=stop)


def _guarded(monkeypatch: pytest.MonkeyPatch, **settings: float) -> None:
    """Guards with other settings than a run has."""
    monkeypatch.setattr("training.codec.state.Guards", partial(Guards, **settings))


def _rows(out: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = Path(f"{out}.run/log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def _losses(out: Path) -> list[float]:
    return [row["loss"] for row in _rows(out) if "loss" in row]


def test_the_finished_folder_is_a_codec_with_a_model_card(
    recipe_file: Path,
):
    out = _train(recipe_file)
    modes = [(out / name).stat().st_mode for name in ("model.safetensors", "README.md")]
    assert modes[0] == modes[1]
    codec = load_codec(str(out))
    sizes = codec.sample_rate, codec.hop, codec.n_codebooks, codec.codebook_size
    assert sizes == (16_000, 320, 4, 16)
    codes = codec.encode(0.1 * torch.randn(2, 3333))
    assert codes.shape == (2, 4, 11) and int(codes.max()) < 16
    assert codec.decode(codes).shape == (2, 11 * 320)
    card = (out / "README.md").read_text()
    assert "SI-SDR" in card and "empty_file" in card and "python -m training codec" in card
    # The same command again changes nothing.
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert _train(recipe_file) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_training_reduces_the_reconstruction_loss(recipe_file: Path):
    out = _train(recipe_file, "codec_training.steps=60")
    distances = [row["mel"] for row in _rows(out) if "mel" in row]
    assert np.mean(distances[-5:]) < 0.8 * np.mean(distances[:5])


def test_killed_training_resumes_bit_for_bit(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _guarded(monkeypatch, window=5)
    whole = _train(recipe_file, f"codec_training.out={tmp_path}/whole")

    class Killed(Exception):
        pass

    class DyingStep(CodecStep):
        def __call__(self, target, step, rate):
            if step == 10:
                raise Killed
            return super().__call__(target, step, rate)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(codec_train, "CodecStep", DyingStep)
        _train(recipe_file, f"codec_training.out={tmp_path}/torn")
    time.sleep(1.1)  # event files are sorted by name, which has whole seconds
    before = _rows(tmp_path / "torn")
    torn = _train(recipe_file, f"codec_training.out={tmp_path}/torn")
    # Two steps ran twice: from the checkpoint before them the same losses came out.
    rows = _rows(torn)
    assert len(before) == 10 and before == rows[:10]
    there = {"discriminator", "adversarial", "feature_grad_norm", "perplexity", "window_used"}
    assert there <= rows[9].keys() and "valid_si_sdr_db" in rows[-1]
    # TensorBoard shows them once, and the row of the checkpoint's own step still.
    events = EventAccumulator(str(tmp_path / "torn.run" / "tb")).Reload()
    assert "reconstruction/0" in events.Tags()["audio"]
    assert [event.step for event in events.Scalars("codec/loss")] == list(range(1, 13))
    assert rows == _rows(whole)
    assert (torn / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_finished_codec_is_the_average_of_the_weights(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outs = []
    for decay in (0.0, 0.9):
        monkeypatch.setattr("training.codec.state.AVERAGE_DECAY", decay)
        outs.append(_train(recipe_file, f"codec_training.out={tmp_path}/{decay}"))
    assert _losses(outs[0]) == _losses(outs[1])  # averaging changes nothing of the training
    one, two = (load_file(out / "model.safetensors") for out in outs)
    differ = {name for name in one if not torch.equal(one[name], two[name])}
    assert any("decoder" in name for name in differ)
    assert not any("codebook" in name for name in differ)


def test_a_collapsed_codebook_stops_the_run(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    _guarded(monkeypatch, window=3, usage_floor=1.01, usage_patience=2)
    with pytest.raises(AttuneError, match="2 windows in a row: the codebook has collapsed"):
        _train(recipe_file)
    assert "expected 101% or more; 1 in a row" in capsys.readouterr().out


def test_validation_on_the_way_and_the_report_show_originals_and_reconstructions(
    recipe_file: Path, tmp_path: Path
):
    out = _train(recipe_file, "codec_training.valid_every=5")
    rows = [row for row in _rows(out) if "valid_mel" in row]
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert rows[-1]["valid_clips"] == 4 and len(rows[-1]["valid_used"]) == 4
    board = tmp_path / "codec.run" / "tb"
    events = EventAccumulator(str(board), {"audio": 0, "images": 0}).Reload()
    assert [event.step for event in events.Audio("reconstruction/1")] == [5, 10, 12]
    assert [event.step for event in events.Audio("original/1")] == [5]
    assert len(events.Images("spectrogram_reconstruction/0")) == 3
    page = (out / "report.html").read_text()
    assert page.count("<audio") == 8 and page.count("mel spectrogram") == 8
    figures = rows[-1]
    assert f"{figures['valid_si_sdr_db']:.2f}" in page and f"{figures['valid_used'][3]:.1%}" in page


def test_training_streams_from_a_plan_as_well(recipe_file: Path, tmp_path: Path):
    rows = [
        (path, split)
        for split, folder in (("train", "train"), ("valid", "held_out"))
        for path in sorted((tmp_path / folder).glob("[0-9].wav"))
    ]
    plan = write_plan(tmp_path / "plan.parquet", *rows)
    audio = [f"codec_training.{key}=[{plan}]" for key in ("audio", "validation")]
    out = _train(recipe_file, "codec_training.reading=stream", *audio)
    assert "4 clips; refused: none" in (out / "README.md").read_text()


def test_a_run_that_saved_nothing_may_start_again_with_another_configuration(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(step: CodecStep) -> None:
        if step.config.precision == "bf16":
            raise AttuneError("bfloat16 is wrong here; set codec_training.precision=fp32")

    monkeypatch.setattr(CodecStep, "check_precision", refuse)
    with pytest.raises(AttuneError, match=r"set codec_training\.precision=fp32"):
        _train(recipe_file, "codec_training.precision=bf16")
    assert not (tmp_path / "codec.run").exists()
    words = r"not finite at step 2.*lower codec_training\.learning_rate"
    with pytest.raises(AttuneError, match=words):
        _train(recipe_file, "codec_training.learning_rate=1e30")
    out = _train(recipe_file, "codec_training.precision=fp32")
    settings = json.loads((tmp_path / "codec.run" / "config.json").read_text())
    assert settings["codec_training"]["learning_rate"] == 0.003
    steps = [row["step"] for row in _rows(out) if "loss" in row]
    assert steps == list(range(1, 13))  # none of what was given up


def _precision(out: Path | str) -> str:
    config = json.loads(Path(f"{out}.run/config.json").read_text())
    return str(config["codec_training"]["precision"])


def test_a_codec_keeps_the_precision_that_auto_started_with(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    out = tmp_path / "codec"
    # A processor with bf16 that is right for this codec, whatever the one below does.
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr("training.codec.step.check_bfloat16", lambda *args: None)
    _stop_when(recipe_file, lambda: True, "codec_training.precision=auto")
    assert _precision(out) == "bf16"
    for place in (precision, codec_train):
        monkeypatch.setattr(place, "has_bfloat16", lambda device: False)
    for _ in range(2):  # resumes; is finished
        assert _train(recipe_file, "codec_training.precision=auto") == out
    assert _precision(out) == "bf16"
    assert "this processor emulates bf16" in capsys.readouterr().err
    monkeypatch.setattr(codec_train, "Checkpointer", None)  # not reached
    with pytest.raises(AttuneError, match=r"another configuration \(codec_training\.precision\)"):
        _train(recipe_file, "codec_training.precision=fp32")


def test_auto_takes_fp32_where_bf16_is_wrong_but_only_for_a_new_run(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(what: str, *args: object) -> None:
        if "decoder" in what:
            raise WrongBfloat16(f"bfloat16 is wrong for {what}")

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr("training.codec.step.check_bfloat16", wrong)
    with pytest.raises(WrongBfloat16, match="for the codec's decoder"):
        _train(recipe_file, "codec_training.precision=bf16")
    assert _precision(_train(recipe_file, "codec_training.precision=auto")) == "fp32"

    begun = f"codec_training.out={tmp_path}/begun"
    with monkeypatch.context() as right:
        right.setattr("training.codec.step.check_bfloat16", lambda *args: None)
        _stop_when(recipe_file, lambda: True, begun, "codec_training.precision=bf16")
    with pytest.raises(WrongBfloat16):
        _train(recipe_file, begun, "codec_training.precision=auto")


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save, run = checkpoints.dcp.save, tmp_path / "codec.run"
    full = SafetensorError("I/O error: No space left on device (os error 28)")

    def fill(state: dict[str, Any], **options: Any) -> None:
        save(state, **options)
        if state["step"] == 8:
            raise full

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.dcp, "save", fill)
        with pytest.raises(AttuneError, match=r"step-00000008: cannot be saved: .*No space"):
            _train(recipe_file)
    assert not list(tmp_path.rglob("*.partial"))
    assert (run / "latest").read_text() == "step-00000004\n"

    def no_weights(model: EncodecModel, folder: Path) -> None:
        folder.mkdir()
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(EncodecModel, "save_pretrained", no_weights)
        with pytest.raises(AttuneError, match=r"codec: cannot be written: .*No space left"):
            _train(recipe_file)
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "codec").exists()
    # If another folder takes the codec's place before the end, the codec is kept beside it.
    rename = Path.rename

    def taken(path: Path, to: Path) -> Path:
        (to / "theirs").mkdir(parents=True)
        return rename(path, to)

    with monkeypatch.context() as patch:  # all steps are done, and saved
        patch.setattr(Path, "rename", taken)
        with pytest.raises(AttuneError, match=r"the finished codec is in .*codec\.partial"):
            _train(recipe_file)
    assert load_codec(str(tmp_path / "codec.partial")).codebook_size == 16


def test_held_out_clips_shorter_than_a_window_cost_no_run(recipe_file: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    # A tenth of a second at 8 kHz is as long as a clip must be, and shorter than a mel window.
    soundfile.write(tmp_path / "held_out" / "short.wav", rng.uniform(-0.3, 0.3, 900), 8_000)
    rate = ["sample_rate=8000", "codec_training.architecture.ratios=[8,5,2,2]"]
    out = _train(recipe_file, *rate, "codec_training.steps=5")
    assert _rows(out)[-1]["valid_clips"] == 4


def test_a_trailing_slash_and_leftovers_lose_no_codec(recipe_file: Path, tmp_path: Path):
    (tmp_path / "codec").mkdir()  # empty: free
    (tmp_path / "codec.partial").mkdir()
    (tmp_path / "codec.partial" / "stale.bin").touch()
    out = _train(recipe_file, f"codec_training.out={tmp_path}/codec/")
    assert names_in(out) == ["README.md", "config.json", "model.safetensors", "report.html"]
    assert (tmp_path / "codec.run" / "log.jsonl").is_file()


def test_a_folder_that_is_no_codec_is_reported_before_training(recipe_file: Path, tmp_path: Path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "notes.txt").touch()
    with pytest.raises(AttuneError, match="exists and is not a codec"):
        _train(recipe_file)
    assert not (tmp_path / "codec.run").exists()


def test_a_folder_that_cannot_be_written_is_reported_before_audio_is_read(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    locked = f"codec_training.out={tmp_path}/locked/codec"
    monkeypatch.setattr(codec_train, "ClipsInMemory", None)  # not reached
    with pytest.raises(AttuneError, match=r"^codec_training\.out: .*file.*: Not a directory \("):
        _train(recipe_file, f"codec_training.out={tmp_path}/file/below/codec")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / "locked")
    for begun in (False, True):  # a run could resume, but no folder can be made beside it
        if begun:
            (tmp_path / "locked" / "codec.run").mkdir()
        with pytest.raises(AttuneError, match=r"^codec_training\.out: .*Permission denied \("):
            _train(recipe_file, locked)
    assert not any((tmp_path / "locked" / "codec.run").iterdir())


def test_mistakes_are_reported_before_anything_is_made(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for override, words in (
        ("segment_s=0.03", r"480 samples, but the mel loss.*at least 1025"),
        ("discriminator.windows=[8192]", "discriminator's largest window needs at least 8192"),
        ("audio=[]", r"'codec_training\.audio': .*at least 1 item"),
        ("validation=[]", r"'codec_training\.validation': .*at least 1 item"),
    ):
        with pytest.raises(AttuneError, match=words):
            _train(recipe_file, f"codec_training.{override}")
    monkeypatch.setattr(codec_train, "start", lambda threads: World(0, 3, torch.device("cpu")))
    with pytest.raises(AttuneError, match=r"batch_size \(4\) must be .* \(3\); try 3 or 6"):
        _train(recipe_file)
    assert not (tmp_path / "codec.run").exists()


def test_a_root_that_was_never_set_is_reported(recipe_file: Path, tmp_path: Path):
    overrides = ["codec_training.audio=['${root}/nowhere/[1-4]-*']"]
    for root in ("''", str(tmp_path)):
        with pytest.raises(AttuneError, match=r"nowhere/\[1-4\]-\*: no audio files") as refused:
            _train(recipe_file, f"root={root}", *overrides)
        words = "; the recipe's root is empty: add root=/path to the command, or set"
        assert (words in str(refused.value)) == (root == "''")
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
