"""Measuring sets of clips: figures move as they must, gaps are reported, comparisons are fair."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from rich.console import Console
from small_backbones import write_clap, write_passt, write_vggish
from tiny_runs import run_command

from common.audio import AudioError, resample
from common.codec import load_codec
from common.config import Recipe, load_recipe
from common.errors import AttuneError
from common.schema import MANIFEST
from common.storage import open_store
from training.evaluation.clip_sets import (
    SetClip,
    cluster,
    key,
    load_clip,
    pair,
    read_folder,
    read_preset,
    read_reference,
    read_shards,
)
from training.evaluation.generated_set import generate_set
from training.evaluation.metrics.cache import EmbeddingCache
from training.evaluation.metrics.frechet import frechet_distance
from training.evaluation.metrics.measure import Backbones, Measurer, compare, figures
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler

RATE = 16_000
LEVELS = (0.01, 0.02, 0.04, 0.08)
SOUNDS = ("dog", "rain", "bell", "engine")


def _sound(kind: str, seed: int, seconds: float = 1.2) -> np.ndarray:
    """A synthesized sound, of its kind but never the same twice."""
    rng = np.random.default_rng(abs(hash((SOUNDS.index(kind), seed))) % 2**32)
    t = np.arange(round(RATE * seconds)) / RATE
    pitch = rng.uniform(0.8, 1.25)
    noise = rng.standard_normal(len(t))
    if kind == "dog":
        wave = np.sin(2 * np.pi * 500 * pitch * t) * (np.sin(2 * np.pi * 3 * pitch * t) > 0.3)
    elif kind == "rain":
        wave = np.diff(noise, prepend=0) * rng.uniform(0.3, 0.6)
    elif kind == "bell":
        wave = sum(np.sin(2 * np.pi * f * pitch * t) for f in (700, 1870, 2900)) * np.exp(-3 * t)
    else:
        wave = np.convolve(noise, np.ones(40) / 12, "same") * (1 + np.sin(2 * np.pi * 30 * t))
    return (0.2 * rng.uniform(0.5, 1) * wave).astype(np.float32)


@pytest.mark.parametrize("extension", ["au", "caf", "w64"])
def test_unusual_kinds_of_files_are_read(extension: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"a.{extension}", _sound("dog", 0), RATE, "PCM_16")
    (clip,) = read_folder(tmp_path).clips
    wave, rate = load_clip(clip, None)
    assert (wave.shape[-1], rate) == (len(_sound("dog", 0)), RATE)


def _write(folder: Path, name: str, wave: np.ndarray, **facts: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}.wav", np.clip(wave, -1, 1), RATE, "FLOAT")
    if facts:
        (folder / f"{name}.json").write_text(json.dumps(facts))


def _add_facts(sidecar: Path, **facts: object) -> None:
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | facts))


def _real(folder: Path, seeds: range) -> Path:
    for kind in SOUNDS:
        for seed in seeds:
            _write(folder, f"{kind}-{seed}", _sound(kind, seed), prompt=f"a {kind} {seed}")
    return folder


def _generated(folder: Path, seeds: range, noise: float) -> Path:
    rng = np.random.default_rng(0)
    for kind in SOUNDS:
        for seed in seeds:
            wave = _sound(kind, seed + 1000)
            wave = wave + noise * rng.standard_normal(len(wave)).astype(np.float32)
            facts = {"prompt": f"a {kind} {seed}", "seed": seed, "checkpoint": "run/step-1"}
            _write(folder, f"{seed:03d}-{kind}", wave, **facts)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_vggish(folder / "vggish-10086976.pth")
    write_passt(folder / "passt-s-f128-p16-s10-ap.476-swa.pt")
    write_passt(folder / "passt-s-f128-20sec-p16-s10-ap.474-swa.pt", columns=200)
    write_clap(folder / "clap-htsat-fused")
    return folder


def _run(tmp_path: Path, *arguments: object) -> dict:
    result = run_command("evaluate", *arguments, "--cache", tmp_path / "cache", "--json")
    return json.loads(result.stdout)


def _measurer(
    root: Path, weights: Path, codec: str = "builtin:sfx-small", loudness: float | None = None
) -> Measurer:
    return Measurer(Backbones.load(weights, codec), EmbeddingCache(root / "cache"), loudness)


def test_every_metric_end_to_end_with_its_card(tmp_path: Path, weights: Path, tiny_codec: Path):
    real = _real(tmp_path / "real", range(3))
    made = _generated(tmp_path / "made", range(3), 0.0)
    hostile = {"prompt": "<script>alert(1)</script>", "seed": 0, "reference": "dog-0"}
    (made / "000-dog.json").write_text(json.dumps(hostile))
    shared = ("--reference", real, "--weights", weights, "--codec", tiny_codec)
    found = _run(tmp_path, made, *shared)
    assert set(found["metrics"]) == {
        "fad_vggish", "fad_codec", "fd_mel", "clap",
        *(f"kl_passt_{s}s{d}" for s in (10, 20) for d in ("", "_reverse", "_both")),
    }  # fmt: skip
    assert found["missing"] == {} and found["unusable"] == {"clips": {}, "reference": {}}
    for name, row in found["metrics"].items():
        assert row["clips"] == 12, name
        assert row["low"] <= row["value"] <= row["high"], name
        assert row["low"] >= 0 or name == "clap"
    both = found["metrics"]["kl_passt_10s_both"]["value"]
    one, other = (found["metrics"][f"kl_passt_10s{d}"]["value"] for d in ("", "_reverse"))
    assert both == pytest.approx(one + other) and one > 0
    assert -1 <= found["metrics"]["clap"]["value"] <= 1
    vggish = found["cards"]["fad_vggish"]
    assert vggish["sample_rate"] == RATE and vggish["hop_s"] == 0.48
    assert re.fullmatch("[0-9a-f]{16}", vggish["weights_sha256"])
    card = found["card"]
    assert card["loudness"] == "as it is" and card["prompts"] == 12
    assert "run/step-1" in card["checkpoints"] and 2 in card["seeds"]
    scores = [row["clap"] for row in found["per_clip"]]
    assert scores == sorted(scores) and len(scores) == 12
    assert json.loads((made / "evaluation" / "metrics.json").read_text()) == found
    html = (made / "evaluation" / "metrics.html").read_text()
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert html.count("<audio") == 24 and html.count("mel spectrogram") == 24
    # Written files are not taken for clips, and embeddings come from the cache.
    before = sorted((tmp_path / "cache").rglob("*.npz"))
    again = _run(tmp_path, made, *shared)
    assert again["metrics"] == found["metrics"]
    assert sorted((tmp_path / "cache").rglob("*.npz")) == before


def test_kl_does_not_hear_the_band_that_the_model_cannot_have(tmp_path: Path, weights: Path):
    """A model at 16 kHz that repeats the real clip except for the band above 8 kHz."""
    rng = np.random.default_rng(0)
    (tmp_path / "wide").mkdir()
    for i in range(4):
        wave = (0.1 * rng.standard_normal(44_100 * 2)).astype(np.float32)
        soundfile.write(tmp_path / "wide" / f"{i}.wav", wave, 44_100, "FLOAT")
        _write(tmp_path / "narrow", str(i), resample(wave, 44_100, RATE))
    measurer = _measurer(tmp_path, weights)
    for generated, reference, alike in (("narrow", "wide", True), ("wide", "narrow", False)):
        real = measurer.reference(read_folder(tmp_path / reference).clips)
        made = read_folder(tmp_path / generated).clips
        found = measurer.generated(made, pair(made, real.clips), real.gaussians())
        for seconds in (10, 20):
            values = list(found.scores[f"kl_passt_{seconds}s"].values())
            # Not the other way round: a band that only the model has counts against it.
            assert len(values) == 4 and (max(values) < 1e-6) is alike, (generated, seconds)


def test_metrics_without_backbone_are_reported(tmp_path: Path, tiny_codec: Path):
    real = _real(tmp_path / "real", range(3))
    made = _generated(tmp_path / "made", range(2), 0.0)
    (made / "000-rain.wav").write_bytes(b"")
    shared = ("--reference", real, "--weights", tmp_path / "no", "--codec", tiny_codec)
    found = _run(tmp_path, made, *shared)
    assert set(found["metrics"]) == {"fad_codec", "fd_mel"}
    assert set(found["missing"]) == {"fad_vggish", "kl_passt_10s", "kl_passt_20s", "clap"}
    assert all("make weights" in why and "\n" not in why for why in found["missing"].values())
    assert found["clips"] == 7 and "empty_file" in found["unusable"]["clips"]["000-rain.wav"]
    # Seven clips are too few to be resampled.
    assert found["metrics"]["fd_mel"]["low"] is None
    html = (made / "evaluation" / "metrics.html").read_text()
    assert "make weights" in html and "empty_file" in html


def test_distance_grows_with_noise(tmp_path: Path, tiny_codec: Path):
    write_vggish(tmp_path / "vggish-10086976.pth")
    measurer = _measurer(tmp_path, tmp_path, str(tiny_codec))
    real = measurer.reference(read_folder(_real(tmp_path / "real", range(8))).clips)
    sets = [_real(tmp_path / "half", range(20, 28))]
    codec = load_codec("builtin:sfx-small")
    rng = np.random.default_rng(1)
    for kind in SOUNDS:
        for seed in range(20, 28):
            wave = _sound(kind, seed)
            codes = codec.encode_track(wave).astype(np.int64)
            heard = codec.decode(torch.from_numpy(codes)[None])[0].numpy()[: len(wave)]
            _write(tmp_path / "codec", f"{kind}-{seed}", heard)
            for level in LEVELS:
                noise = level * rng.standard_normal(len(wave)).astype(np.float32)
                _write(tmp_path / f"noise {level}", f"{kind}-{seed}", heard + noise)
    sets += [tmp_path / "codec", *(tmp_path / f"noise {level}" for level in LEVELS)]
    gaussians = real.gaussians()
    rows: dict[str, list[float]] = {}
    for folder in sets:
        measured = measurer.reference(read_folder(folder).clips)
        for metric, groups in measured.moments.items():
            total = groups.total().gaussian()
            rows.setdefault(metric, []).append(frechet_distance(total, gaussians[metric]))
    for metric in ("fad_vggish", "fd_mel"):
        assert rows[metric] == sorted(rows[metric])
        assert rows[metric][-1] > 5 * rows[metric][0]


def test_two_models_are_compared_in_pairs(tmp_path: Path, weights: Path, tiny_codec: Path):
    real = _real(tmp_path / "real", range(6))
    first = _generated(tmp_path / "first", range(6), 0.0)
    noisy = _generated(tmp_path / "noisy", range(5), 0.1)
    shared = ("--reference", real, "--weights", tmp_path / "no", "--codec", tiny_codec)
    found = _run(tmp_path, first, *shared, "--against", noisy)["comparison"]
    assert found["clips"] == 20  # of 24 and 20, by prompt and seed
    mel = found["differences"]["fd_mel"]
    assert mel["more_than_noise"] and mel["better"] == "first" and mel["p_value"] < 0.02
    assert mel["low"] <= mel["value"] <= mel["high"]
    assert "first is better" in (first / "evaluation" / "metrics.html").read_text()
    same = _run(tmp_path, first, *shared, "--against", first)["comparison"]
    assert same["differences"]["fd_mel"]["value"] == 0
    assert not same["differences"]["fd_mel"]["more_than_noise"]
    # `evaluate` writes down which real clip is meant, `generate` cannot.
    named = _generated(tmp_path / "named", range(5), 0.1)
    for path in named.glob("*.json"):
        _add_facts(path, reference=path.stem)
    assert _run(tmp_path, first, *shared, "--against", named)["comparison"]["clips"] == 20
    # A caption in the sidecars of one side is the text for CLAP on both sides.
    plain = Path(shutil.copytree(named, tmp_path / "plain"))
    for path in named.glob("*.json"):
        _add_facts(path, caption=path.stem)
    shared = ("--reference", real, "--weights", weights, "--codec", tiny_codec)
    clap = _run(tmp_path, named, *shared, "--against", plain)["comparison"]["differences"]["clap"]
    assert clap["value"] == 0 and not clap["more_than_noise"]
    stranger = tmp_path / "stranger"
    for i in range(3):
        _write(stranger, f"x{i}", _sound("dog", i))
    with pytest.raises(AttuneError, match="0 clips in common"):
        _run(tmp_path, first, *shared, "--against", stranger)


def test_two_sets_are_drawn_in_pairs_if_only_one_names_references(tmp_path: Path):
    """Whatever is drawn, a set and its copy do not differ."""
    measurer = _measurer(tmp_path, tmp_path)
    real = measurer.reference(read_folder(_real(tmp_path / "real", range(6))).clips)
    folders = [_generated(tmp_path / name, range(6), 0.0) for name in ("plain", "named")]
    for path in folders[1].glob("*.json"):
        seed, kind = path.stem.split("-")
        _add_facts(path, reference=f"{kind}-{int(seed)}.wav")
    sets = [read_folder(folder).clips for folder in folders]
    pairs = [pair(clips, real.clips) for clips in sets]
    gaussians = real.gaussians()
    measured = [measurer.generated(c, p, gaussians) for c, p in zip(sets, pairs, strict=True)]
    for order in ((0, 1), (1, 0)):
        first, second = (measured[i] for i in order)
        found = compare(measurer, first, second, [pairs[i] for i in order], gaussians)
        assert found[:2] == (24, 24)
        for metric in ("fad_codec", "fd_mel"):
            difference = found[2][metric]
            ends = (difference.value, difference.low, difference.high)
            assert ends == pytest.approx((0, 0, 0), abs=1e-9), (order, metric)
    Path(sets[1][0].uri).unlink()  # it was there when the sets were measured
    with pytest.raises(AttuneError, match="files were added or deleted"):
        compare(measurer, *measured, pairs, gaussians)


def test_clips_of_one_real_clip_are_drawn_together(tmp_path: Path, tiny_codec: Path):
    """Five captions of each of twelve real clips: sixty clips, twelve of them independent."""
    real = _real(tmp_path / "real", range(3))
    for name in ("first", "second"):
        for kind in SOUNDS:
            for seed in range(15):
                wave = _sound(kind, seed + (1000 if name == "first" else 2000))
                facts = {"prompt": f"{kind} {seed}", "seed": 0, "reference": f"{kind}-{seed % 3}"}
                _write(tmp_path / name, f"{kind}-{seed}", wave, **facts)
    shared = ("--weights", tmp_path / "no", "--codec", tiny_codec, "--reference", real)
    found = _run(tmp_path, tmp_path / "first", *shared, "--against", tmp_path / "second")
    for row in (*found["metrics"].values(), found["comparison"]):
        assert (row["clips"], row["clusters"]) == (60, 12)
    html = (tmp_path / "first" / "evaluation" / "metrics.html").read_text()
    assert html.count("60 in 12 clusters") == 3
    # Without a real clip, clips of one prompt go together; without both, every clip is its own.
    clips = [SetClip(f"{i}", "", prompts=(f"{i % 2}",)) for i in range(4)]
    assert len({cluster(clip, None) for clip in clips}) == 2
    assert len({cluster(SetClip(f"{i}", ""), None) for i in range(4)}) == 4


def test_a_run_is_measured_by_its_own_clips(
    tmp_path: Path, tiny_root: Path, tiny_recipe: Recipe, tiny_run: Path
):
    real = _real(tmp_path / "real", range(4))
    # In fp32 a clip does not depend on the size of its batch.
    shared = ("sampling.weights=fp32", "--config", tiny_root / "recipe.yaml", "--reference", real)
    shared = (*shared, "--weights", tmp_path / "no", "--out", tmp_path / "out", "--clips", 5)
    found = _run(tmp_path, tiny_run.name, *shared)
    folder = Path(found["target"])
    assert folder.is_relative_to(Path(tiny_recipe.run_dir) / "evaluated")
    assert found["clips"] == 5 and len(list(folder.glob("*.wav"))) == 5
    card = found["card"]
    assert card["checkpoints"][0].endswith("step-00000012") and card["steps"] == [12]
    assert re.fullmatch("[0-9a-f]{16}", card["checkpoints_sha256"][0])
    prompts = {row["prompt"] for row in found["per_clip"]}
    assert prompts < {clip.prompt for clip in read_folder(real).clips}
    # Clips that exist are kept; a clip that is gone is made again.
    kept, gone = sorted(folder.glob("*.wav"))[:2]
    before, content = kept.stat().st_mtime_ns, gone.read_bytes()
    gone.unlink()
    again = _run(tmp_path, tiny_run, *shared)
    assert again["metrics"] == found["metrics"]
    assert kept.stat().st_mtime_ns == before and gone.read_bytes() == content
    with pytest.raises(AttuneError, match="give its recipe with --config"):
        _run(tmp_path, tiny_run, "--reference", real)


def test_clips_for_a_benchmark_are_no_longer_than_its_own(
    tmp_path: Path, tiny_root: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
):
    _real(tmp_path / "real", range(2))
    listed = tmp_path / "musiccaps-public.csv"
    rows = [f"{p.stem},0,{p.stem[-4:]},False" for p in sorted((tmp_path / "real").glob("*.wav"))]
    listed.write_text("\n".join(["ytid,start_s,caption,is_balanced_subset", *rows]))
    monkeypatch.setattr("training.evaluation.config.PRESET_S", 0.3)
    shared = ("--config", tiny_root / "recipe.yaml", "--weights", tmp_path / "no", "--clips", 3)
    shared = (*shared, "--reference", tmp_path / "real", "--out", tmp_path / "out")
    for asked, seconds in (((), 0.4), (("--preset", "musiccaps", "--list", listed), 0.3)):
        found = _run(tmp_path, tiny_run.name, "sampling.duration_s=0.4", *shared, *asked)
        made = read_folder(Path(found["target"])).clips
        assert {clip.facts["duration_s"] for clip in made} == {seconds}


def test_loudness_is_taken_out_where_one_is_given(tmp_path: Path):
    real = read_folder(_real(tmp_path / "real", range(5))).clips
    for clip in real:
        wave, _ = load_clip(clip, None)
        _write(tmp_path / "quiet", Path(clip.name).stem, 0.1 * wave)
    quiet = read_folder(tmp_path / "quiet").clips
    for loudness, most in ((None, np.inf), (-30.0, 1e-3)):
        measurer = _measurer(tmp_path, tmp_path, loudness=loudness)
        gaussians = measurer.reference(real).gaussians()
        value = figures(measurer.generated(quiet, {}, gaussians), gaussians)["fd_mel"]["value"]
        assert value < most and (loudness is not None or value > 1)


def _generate(recipe: Recipe, run: Path, prompts: list[SetClip], out: Path, seed: int = 0) -> Path:
    sampling = recipe.section("sampling", SamplingConfig)
    sampler = Sampler.load(recipe, run)
    return generate_set(sampler, sampling, prompts, out, Console(quiet=True), seed)


def test_no_clip_of_a_run_is_made_twice(tmp_path: Path, tiny_root: Path, tiny_run: Path):
    """Real clips often share a prompt; the same prompt and seed would give the same clip."""
    recipe = load_recipe(tiny_root / "recipe.yaml", ["sampling.weights=fp32"])
    # In training form the first three are one.
    texts = ("dog", "The dogs", "A dog!", "rain")
    prompts = [SetClip(f"{i}", "", prompts=(text,)) for i, text in enumerate(texts)]
    folder = _generate(recipe, tiny_run, prompts, tmp_path, seed=5)
    clips = read_folder(folder).clips
    assert sorted((c.facts["prompt"], c.facts["seed"], c.facts["reference"]) for c in clips) == [
        ("A dog!", 7, "2"), ("The dogs", 6, "1"), ("dog", 5, "0"), ("rain", 5, "3"),
    ]  # fmt: skip
    assert len({Path(clip.uri).read_bytes() for clip in clips}) == 4


def test_a_prompt_in_two_forms_is_asked_for_once(
    tmp_path: Path, tiny_recipe: Recipe, tiny_run: Path
):
    """As `generate` writes it beside its clips, which may be another run's reference."""
    facts = {"prompt": "A dog is barking", "normalized_prompt": "dog bark", "seed": 0}
    _write(tmp_path / "real", "a", _sound("dog", 0), **facts)
    _write(tmp_path / "real", "b", _sound("dog", 1), normalized_prompt="rain fall")
    real = read_folder(tmp_path / "real").clips
    assert [clip.prompts for clip in real] == [("A dog is barking",), ("rain fall",)]
    folder = _generate(tiny_recipe, tiny_run, real, tmp_path / "made")
    made = read_folder(folder).clips
    assert sorted((c.facts["reference"], c.prompt) for c in made) == [
        ("a.wav", "A dog is barking"), ("b.wav", "rain fall"),
    ]  # fmt: skip
    # Either form finds the real clip.
    said = [SetClip(text, "", prompts=(text,)) for text in ("dog bark", "A dog is barking")]
    assert [clip.name for clip in pair(said, real).values()] == ["a.wav", "a.wav"]


def test_clap_gets_the_caption_that_a_prompt_was_made_of(
    tmp_path: Path, tiny_recipe: Recipe, tiny_run: Path
):
    prompts = [
        SetClip("0", "", prompts=("dog bark", "dog"), normalized=True, captions=("A dog barks.",)),
        SetClip("1", "", prompts=("rain",), normalized=True, captions=("It thunders.",)),
        SetClip("2", "", prompts=("dog",), normalized=True),
    ]
    folder = _generate(tiny_recipe, tiny_run, prompts, tmp_path)
    found = {clip.facts["reference"]: clip for clip in read_folder(folder).clips}
    assert [found[name].text for name in "012"] == ["A dog barks.", "rain", "dog"]
    assert [found[name].prompt for name in "012"] == ["dog bark", "rain", "dog"]


def test_real_clips_may_be_in_a_bucket(tmp_path: Path, s3_bucket: str):
    _write(tmp_path, "dog", _sound("dog", 0))
    store = open_store(f"{s3_bucket}/audio")
    store.write("some/dog.wav", tmp_path / "dog.wav")
    wave, rate = load_clip(SetClip("dog", f"{s3_bucket}/audio/some/dog.wav", 0.2, 0.7), None)
    assert rate == RATE and len(wave) == RATE // 2
    whole, _ = load_clip(SetClip("dog", str(tmp_path / "dog.wav")), None)
    np.testing.assert_array_equal(wave, whole[3200:11200])
    with pytest.raises(AudioError, match=r"missing: s3://bucket/audio/some/cat[.]wav"):
        load_clip(SetClip("cat", f"{s3_bucket}/audio/some/cat.wav"), None)


def test_pairs_go_by_reference_then_name_then_prompt():
    real = [
        SetClip("a.wav", "", prompts=("dog",)),
        SetClip("b.wav", "", prompts=("rain",)),
        SetClip("c.wav", "", prompts=("rain",)),
    ]
    made = [
        SetClip("1.wav", "", prompts=("rain",), facts={"reference": "a.wav"}),
        SetClip("b.flac", ""),
        SetClip("3.wav", "", prompts=("dog",)),
        SetClip("4.wav", "", prompts=("rain",)),  # two real clips have that prompt
        SetClip("5.wav", "", prompts=("bell",)),
    ]
    found = {name: clip.name for name, clip in pair(made, real).items()}
    assert found == {"1.wav": "a.wav", "b.flac": "b.wav", "3.wav": "a.wav"}
    # An unreadable real clip still counts among the clips of its prompt, and a clip that names a
    # real clip is never compared with another.
    made = [
        SetClip("1", "", prompts=("rain",)),
        SetClip("2", "", prompts=("dog",), facts={"reference": "b.wav"}),
        SetClip("3", "", prompts=("dog",), facts={"reference": "gone.wav"}),
        SetClip("4", "", prompts=("dog",), facts={"reference": None}),
    ]
    found = {name: clip.name for name, clip in pair(made, real, {"b.wav": "why"}).items()}
    assert found == {"4": "a.wav"}
    assert key(SetClip("x.wav", "")) == "x"
    one, other = (key(SetClip(name, "", prompts=("p",), facts={"seed": 1})) for name in "xy")
    assert one == other


def test_presets_take_the_benchmarks_clips_and_list_missing_ones(tmp_path: Path):
    listed = tmp_path / "test.csv"
    rows = [f"{n},-yt{n // 5},30,caption {n}" for n in range(15)]
    listed.write_text("audiocap_id,youtube_id,start_time,caption\n" + "\n".join(rows) + "\n")
    audio = tmp_path / "audio"
    for name in ("-yt0_30", "Y-yt2"):
        _write(audio, name, _sound("dog", 0))
    first = read_preset("audiocaps", listed, audio, "first")
    assert [c.name for c in first.clips] == ["-yt0_30", "-yt2_30"]
    assert first.missing == ("-yt1_30",)
    assert [c.prompt for c in first.clips] == ["caption 0", "caption 10"]
    drawn = read_preset("audiocaps", listed, audio, "draw")
    assert drawn == read_preset("audiocaps", listed, audio, "draw")
    assert all(len(c.prompts) == 1 for c in drawn.clips)
    assert [len(c.prompts) for c in read_preset("audiocaps", listed, audio, "all").clips] == [5, 5]
    music = tmp_path / "musiccaps-public.csv"
    music.write_text(
        "ytid,start_s,end_s,caption,is_balanced_subset\n"
        "-yt0,30,40,a slow ballad,False\n-yt2,30,40,a fast jig,True\n"
    )
    (unbalanced,) = read_preset("musiccaps", music, audio, "first").clips
    assert unbalanced.prompt == "a slow ballad"
    with pytest.raises(AttuneError, match="no column youtube_id"):
        read_preset("audiocaps", music, audio, "first")
    _write(tmp_path / "elsewhere", "yt1", _sound("dog", 0))
    with pytest.raises(AttuneError, match="none of the 3 clips"):
        read_preset("audiocaps", listed, tmp_path / "elsewhere", "first")
    for start in ("soon", "nan", "inf"):
        listed.write_text(f"audiocap_id,youtube_id,start_time,caption\n1,x,{start},a dog\n")
        with pytest.raises(AttuneError, match="line 2"):
            read_preset("audiocaps", listed, audio, "first")


def test_a_split_of_shards_is_a_reference(tmp_path: Path, tiny_codec: Path):
    real = _real(tmp_path / "real", range(3))
    rows = [
        dict.fromkeys(MANIFEST.names)
        | {"sample_id": f"id{i}", "split": "valid" if i % 4 else "train", "audio_uri": str(path)}
        | {"prompts": [path.stem, "other words"], "start_s": 0.1, "end_s": 1.1}
        | {"dataset": "some" if i % 2 else "others"}
        for i, path in enumerate(sorted(real.glob("*.wav")))
    ]
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), data / "manifest.parquet")
    (data / "summary.json").write_text("{}")
    found = read_reference(str(data), "valid")
    assert len(found.clips) == 9 and found.clips[0].normalized
    assert found.source.endswith("split valid of others, some")
    some = read_shards(str(data), "valid", ["some"])
    assert [clip.name for clip in some.clips] == [f"id{i}" for i in range(1, 12, 2)]
    assert some.source.endswith("split valid of some")
    with pytest.raises(AttuneError, match="'none' in split 'valid'; there is others, some"):
        read_shards(str(data), "valid", ["some", "none"])
    wave, rate = load_clip(found.clips[0], None)
    assert len(wave) == rate  # the second that the plan cut out
    made = _generated(tmp_path / "made", range(3), 0.0)
    shared = ("--split", "valid", "--weights", tmp_path / "no", "--codec", tiny_codec)
    assert _run(tmp_path, made, "--reference", data, *shared)["reference_clips"] == 9
    with pytest.raises(AttuneError, match="no clips in split 'test'; its splits are train, valid"):
        read_reference(str(data), "test")


def test_a_real_clip_that_cannot_be_read_is_not_replaced(
    tmp_path: Path, weights: Path, tiny_codec: Path
):
    real, made = _real(tmp_path / "real", range(2)), tmp_path / "made"
    for path in real.glob("*.json"):
        path.write_text(json.dumps({"prompt": path.stem.split("-")[0]}))
        facts = {"prompt": path.stem.split("-")[0], "seed": 0, "reference": path.stem}
        _write(made, path.stem, _sound("dog", 5), **facts)
    (real / "dog-0.wav").write_bytes(b"")
    found = _run(tmp_path, made, "--reference", real, "--weights", weights, "--codec", tiny_codec)
    assert found["metrics"]["kl_passt_10s"]["clips"] == 7
    assert found["missing"]["kl_passt_10s"].startswith("7 of 8 clips")


def test_mistakes_are_reported_in_one_line(tmp_path: Path, tiny_codec: Path):
    made, lone = _generated(tmp_path / "made", range(1), 0.0), tmp_path / "lone"
    _write(lone, "x", _sound("dog", 0))
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((made, "--reference", tmp_path / "none"), "no such folder"),
        ((tmp_path / "empty", "--reference", made), "no audio files"),
        ((made, "--reference", made, "--preset", "audiocaps"), "go together"),
        ((made, "--reference", lone, "--codec", tiny_codec), "two usable clips"),
    ):
        with pytest.raises(AttuneError, match=words):
            _run(tmp_path, *arguments)
    (made / "000-dog.json").write_text("{")
    with pytest.raises(AttuneError, match="not JSON"):
        _run(tmp_path, made, "--reference", made)
    soundfile.write(lone / "x.wav", np.full(100, np.nan), RATE, "FLOAT")
    with pytest.raises(AudioError, match="non_finite"):
        load_clip(SetClip("x", str(lone / "x.wav")), None)


def test_unusable_clips_and_folders_are_reported(tmp_path: Path, tiny_root: Path):
    made = _generated(tmp_path / "made", range(3), 0.0)
    (made / "broken.wav").write_bytes(b"no sound")
    real = _real(tmp_path / "real", range(3))
    arguments = ["--reference", real, "--cache", tmp_path / "cache", "--weights", tmp_path / "none"]
    result = run_command("evaluate", made, *arguments)
    assert "left out of clips: broken.wav: " in result.stderr
    assert "N = 12" in result.stdout
    file = tmp_path / "file"
    file.touch()
    for option in ("--out", "--cache"):
        with pytest.raises(AttuneError, match=rf"{option} .*file/x: cannot be written"):
            run_command("evaluate", made, *arguments, option, file / "x")
    with pytest.raises(AttuneError, match="lm-x: neither a folder of clips nor a run in"):
        run_command("evaluate", "lm-x", *arguments, "--config", tiny_root / "recipe.yaml")
