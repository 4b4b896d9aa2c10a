"""The ablation: its file, its tables, and a whole ablation in a tiny world."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from tiny_lm import make_world
from tiny_runs import run_command, set_column

from common.config import load_recipe
from common.errors import AttuneError
from training.config import LMConfig
from training.evaluation.ablation import cells, run
from training.evaluation.ablation.config import load_ablation
from training.evaluation.ablation.paper_tables import (
    NONE,
    Results,
    as_csv,
    latex,
    markdown,
    plot,
    tables,
    verdicts,
)
from training.evaluation.ablation.run import cells_of
from training.evaluation.metrics.weights import SOURCES
from training.train import train

CONFIGS = Path(__file__).parents[4] / "configs"
FILE = load_ablation(CONFIGS / "ablation.yaml")


def _cells(shift: float) -> list[dict[str, Any]]:
    def value(row: str, seed: int) -> float:
        return 5 + 0.1 * seed + (shift + 0.01 * seed if "max-0.1-3" in row else 0)

    return [
        {"row": row.name, "seed": seed, "metrics": {"fad_codec": value(row.name, seed)}}
        for row in FILE.rows
        for seed in FILE.seeds_of(FILE.profiles["small"], row)
    ]


@pytest.mark.parametrize(
    ("shift", "expected"), [(-1.0, "rr is better"), (1.0, "rr is worse"), (-0.02, "no more than")]
)
def test_the_verdict(shift: float, expected: str) -> None:
    results = Results(FILE, FILE.profiles["small"], _cells(shift))
    (line,) = verdicts(results)
    assert expected in line and "5 seeds" in line


def test_a_verdict_says_when_it_does_not_hold_among_all_metrics() -> None:
    """One of three metrics with p between .05 / 3 and .05, the others without any difference."""
    profile = FILE.profiles["small"]
    steps = {"fad_codec": (0.1, 0.3, 0.5, 0.2, 0.05), "fd_mel": (-2, 1, 2, -1, 0.1)}
    cells_made = []
    for seed in range(5):
        plain = {"fad_codec": 3.0, "fd_mel": 50.0, "agreement": 0.6}
        changed = {name: plain[name] + step[seed] for name, step in steps.items()}
        changed["agreement"] = 0.6 + (0.01, -0.01, 0.02, -0.02, 0.001)[seed]
        for row, metrics in ((FILE.baseline, plain), (FILE.regularized, changed)):
            cells_made.append({"row": row, "seed": seed, "metrics": metrics})
    results = Results(FILE, profile, cells_made)
    test = results.tests()["fad_codec"]
    assert test.p_value is not None and test.adjusted == pytest.approx(3 * test.p_value)
    assert 0.05 / 3 < test.p_value < 0.05
    first, second, third = verdicts(results)
    assert first.endswith(
        "rr is worse by this test, but not after Holm's adjustment for all metrics"
    )
    assert second.endswith("no more than the difference between seeds") and "no more" in third


def test_tables_have_the_papers_figures_beside_ours() -> None:
    results = Results(FILE, FILE.profiles["small"], _cells(-1.0))
    first, third = tables(results)
    assert len(first.rows) == len(FILE.rows)
    assert first.rows[0][:3] == ["max", "0.1", "3"]
    # 5, 5.1, 5.2, shifted by -1, -.99, -.98: further seeds only count in the test.
    assert first.rows[0][6] == "4.11 ± 0.11"
    assert first.rows[0][-3:] == ["1.43", "1.57", "0.31"]
    assert third.rows[0][0] == "AudioGen (paper)"
    text = markdown(first)
    assert text.count("\n") == len(FILE.rows) + 4
    assert {line.count("|") for line in text.splitlines()[2:]} == {len(first.header) + 1}
    tex = latex(first)
    assert tex.count(r"\\") == len(FILE.rows) + 1 and "±" not in tex and "λ" not in tex
    assert as_csv(results).count("\n") == 1 + len(_cells(0))
    drawn = plot(results)
    assert drawn is not None and len(drawn.axes) == 1


def test_musics_divergence_is_that_of_the_papers_windows() -> None:
    """AudioGen reports KL over windows of 10 s, MusicGen of 20 s."""
    values = {"kl_passt_10s": 1.0, "kl_passt_20s": 2.0}
    made = [
        {"row": row, "seed": seed, "metrics": {name: v + seed for name, v in values.items()}}
        for row in (FILE.regularized, FILE.baseline)
        for seed in (0, 1, 2)
    ]
    for name, place, mean in (("small", 1, "2.00 ± 1.00"), ("music", 0, "3.00 ± 1.00")):
        table = tables(Results(FILE, FILE.profiles[name], made))[place]
        assert table.header[:4] == ["method", "FAD ↓", "KL ↓", "CLAP ↑"]
        assert table.rows[-1][:3] == ["ours w/ rr", NONE, mean]
    assert ["300M w/ rr (paper)", "4.83", "1.32", "0.31"] in [row[:4] for row in table.rows]


def test_a_profile_may_use_one_dataset(tmp_path: Path) -> None:
    """As the paper's tables do, whatever other datasets are in the split."""
    make_world(tmp_path)
    path = tmp_path / "ablation.yaml"
    made = {}
    for datasets in ("[]", "[odd]", "[odd, strange]"):
        path.write_text(TINY.replace("split: train", f"split: train\n    datasets: {datasets}"))
        config = load_ablation(path)
        arguments = (config, config.profiles["tiny"], str(tmp_path / "recipe.yaml"), tmp_path)
        if "strange" in datasets:
            with pytest.raises(AttuneError, match="no clips of dataset 'strange' in split 'train'"):
                cells_of(*arguments)
        else:
            made[datasets] = cells_of(*arguments)[0]
    assert made["[]"].key() != made["[odd]"].key()
    rows = {
        name: cells._reference(str(tmp_path / "data"), cell.split, cell.datasets).clips
        for name, cell in made.items()
    }
    assert 0 < len(rows["[odd]"]) < len(rows["[]"])


def test_every_row_of_every_profile_is_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESC10_ROOT", "/nowhere")
    for profile in FILE.profiles.values():
        for row in FILE.rows_of(profile):
            overrides = [*profile.overrides, *row.overrides()]
            made = load_recipe(CONFIGS / profile.recipe, overrides).section("lm", LMConfig)
            assert (made.rr.weight, made.cfg.dropout) == (row.weight, row.cfg)
            assert made.rr.loss == row.loss and made.rr.apply == row.apply


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        ("baseline: none-0.1-0", "baseline: other", "no row 'other'"),
        ("seeds: [0, 1, 2]", "seeds: []", "seeds"),
        ("baseline: none-0.1-0", "baseline: none-0.1-0\ncolour: red", "unknown key 'colour'"),
        ("baseline: none-0.1-0", "[", "not valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, line: str, change: str, message: str) -> None:
    path = tmp_path / "ablation.yaml"
    path.write_text((CONFIGS / "ablation.yaml").read_text().replace(line, change))
    with pytest.raises(AttuneError, match=message):
        load_ablation(path)


TINY = """
regularized: with
baseline: without
rows:
  - {name: with, pool: max, cfg: 0.5, weight: 3, paper: {fad: 1.43}}
  - {name: without, pool: none, cfg: 0.5, weight: 0}
profiles:
  tiny:
    recipe: recipe.yaml
    seeds: [0, 1]
    split: train
    clips_per_prompt: 2
    overrides: [lm.steps=3, lm.optim.warmup=1]
"""


def _give_audio(root: Path) -> None:
    """Noise for every clip of the tiny world's manifest."""
    rows = pq.read_table(root / "data" / "manifest.parquet").to_pylist()
    rng = np.random.default_rng(0)
    uris = [str(root / f"{row['sample_id']}.wav") for row in rows]
    for uri, row in zip(uris, rows, strict=True):
        wave = rng.normal(0, 0.1, row["frames"] * 320).clip(-1, 1)
        soundfile.write(uri, wave, 16000, "PCM_16")
    set_column(root / "data", "audio_uri", uris)


def test_a_missing_split_is_reported_before_training(tmp_path: Path) -> None:
    make_world(tmp_path)
    path = tmp_path / "ablation.yaml"
    path.write_text(TINY.replace("split: train", "split: test"))
    with pytest.raises(AttuneError, match="no clips in split 'test'"):
        run_command("ablate", "--config", path, "--profile", "tiny", "--jobs", 1)
    assert not (tmp_path / "run" / "cells").exists()


def test_other_weights_and_methods_are_another_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(tmp_path)
    weights = tmp_path / "weights"
    weights.mkdir()
    recipe = str(tmp_path / "recipe.yaml")
    cell = cells.Cell(recipe, (), "with", 0, "train", (), 1, str(weights))
    without = cell.key()
    file = weights / SOURCES[0].file
    file.write_bytes(b"one")
    one = cell.key()
    file.write_bytes(b"another")
    another = cell.key()
    assert len({without, one, another}) == 3
    with monkeypatch.context() as patch:  # measured in another way
        patch.setattr(cells, "METHOD", "as it was")
        assert cell.key() != another
    (weights / "note.txt").write_text("beside them")
    assert cell.key() == another


@pytest.mark.parametrize(
    ("seen", "device", "expected"),
    [
        (None, "cpu", ""), ("4,5", "cpu", ""), (None, "cuda", None), ("4,5", "cuda", "4,5"),
        (None, "cuda:1", "1"), ("4,5", "cuda:1", "5"), ("", "cuda:1", "1"),
    ],
)  # fmt: skip
def test_training_sees_the_device_that_was_asked_for(
    seen: str | None, device: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert cells._seeing(device).get("CUDA_VISIBLE_DEVICES") == expected


def _make_ablation(root: Path, monkeypatch: pytest.MonkeyPatch, clips: int) -> list[str]:
    """A tiny world whose clips can be heard, and the command that runs `TINY` on it."""
    make_world(root, clips)
    _give_audio(root)
    monkeypatch.setenv("HOME", str(root))
    path = root / "ablation.yaml"
    path.write_text(TINY)
    command = ["ablate", "--config", str(path), "--profile", "tiny", "--json"]
    return [*command, "--weights", str(root / "none")]


def _train_here(command: list[str], stdout: IO[str], **_: object) -> SimpleNamespace:
    """In place of `subprocess.run`: a process takes seconds to start."""
    try:
        with redirect_stdout(stdout):
            train(load_recipe(command[5], command[6:]))
    except AttuneError as error:
        print(error, file=stdout)
        return SimpleNamespace(returncode=1)
    return SimpleNamespace(returncode=0)


def test_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished cells are kept, damaged ones are made again, and a row that fails is named."""
    command = [*_make_ablation(tmp_path, monkeypatch, clips=8), "--jobs", "1"]
    monkeypatch.setattr(cells, "subprocess", SimpleNamespace(run=_train_here))
    monkeypatch.setattr(run, "ProcessPoolExecutor", lambda jobs, _: ThreadPoolExecutor(jobs))
    out = tmp_path / "run"
    assert len(json.loads(run_command(*command, "--dry-run").stdout)["to_do"]) == 4
    with pytest.raises(AttuneError, match="--row other"):
        run_command(*command, "--row", "other")
    with pytest.raises(AttuneError, match="no trained model there") as failed:
        run_command(*command, "--row", "with", f"lm.init_from={tmp_path}/nothing")
    assert "with-seed" in str(failed.value) and ".log" in str(failed.value)

    found = json.loads(run_command(*command).stdout)
    made = [(cell["row"], cell["seed"]) for cell in found["cells"]]
    assert set(made) == {("with", 0), ("with", 1), ("without", 0), ("without", 1)}
    for cell in found["cells"]:
        assert cell["metrics"]["fad_codec"] > 0 and cell["metrics"]["fd_mel"] > 0
        assert "agreement" in cell["missing"] and "fad_vggish" in cell["missing"]
        assert cell["clips"] == 2 * cell["reference_clips"] and "fad_codec" in cell["cards"]
    assert found["tests"]["fad_codec"]["n"] == 2
    names = "tables.md tables.tex results.csv ablation.png ablation.html ablation.json"
    assert all((out / name).stat().st_size > 0 for name in names.split())
    assert "1.43" in (out / "tables.md").read_text()

    moved = tmp_path / "moved"
    moved.mkdir()
    for wave in tmp_path.glob("*.wav"):
        wave.rename(moved / wave.name)
    cells._measurer.cache_clear()
    with pytest.raises(AttuneError, match=r"needs at least two usable clips: .*[.]wav"):
        cells._measurer(
            str(tmp_path), (), str(tmp_path / "codec"), str(tmp_path / "data"), "train", (), "cpu"
        )
    for wave in moved.iterdir():
        wave.rename(tmp_path / wave.name)

    logs = {p.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*.log")}
    (out / "cells" / "with-seed1.json").write_text("{}")
    again = json.loads(run_command(*command).stdout)
    changed = [
        p.name for p in (out / "cells").glob("*.log") if p.stat().st_mtime_ns != logs[p.name]
    ]
    assert changed == ["with-seed1.log"]
    # The same figures follow from its own checkpoint and clips.
    assert again["tests"] == found["tests"]


@pytest.mark.heavy
def test_on_a_ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures as in processes here; a cell that fails there is named."""
    command = [*_make_ablation(tmp_path, monkeypatch, clips=24), f"data_dir={tmp_path}/data"]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
    found = {}
    for where, options in (("here", ["--jobs", 2]), ("ray", ["--ray", "local"])):
        done = run_command(*command, *options, f"run_dir={tmp_path}/{where}")
        made = json.loads(done.stdout)["cells"]
        found[where] = {(c["row"], c["seed"]): c["metrics"] for c in made}
    assert len(found["ray"]) == 4
    for cell, metrics in found["here"].items():
        assert found["ray"][cell] == pytest.approx(metrics, rel=1e-4)
    wrong = [f"run_dir={tmp_path}/wrong", f"lm.init_from={tmp_path}/nothing"]
    with pytest.raises(AttuneError, match="no trained model there") as failed:
        run_command(*command, "--ray", "local", "--row", "with", *wrong)
    assert "Traceback" not in str(failed.value) and "ray::" not in str(failed.value)
