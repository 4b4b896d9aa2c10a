"""Studies made of folders and runs: matched, blind from outside, whole or not there at all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from tiny_runs import contents, run_command, set_column
from two_models import RATE, a_is_higher, make_study, prompt, write, write_models

from common.config import Recipe
from common.errors import AttuneError
from common.text_encoder import TextEncoder
from training.evaluation.preference.prepare import invite
from training.evaluation.preference.sources import split_prompts
from training.evaluation.preference.study import clip_path, read_study


def _run(*arguments: object) -> Any:
    """Output of a command; its JSON if `--json` is asked for."""
    output = run_command("preference", *arguments).stdout
    return json.loads(output) if "--json" in arguments else output


def _prepare(a: Path | str, b: Path | str, out: Path, *more: object) -> Any:
    return _run("prepare", "--a", a, "--b", b, "--out", out, *more)


def _pitch(path: Path) -> float:
    wave, rate = soundfile.read(path)
    return float(np.argmax(np.abs(np.fft.rfft(wave))) * rate / len(wave))


def test_only_the_plan_tells_the_models_apart(tmp_path: Path) -> None:
    folder, study = make_study(tmp_path, 12, 5)
    assert len(study.pairs) == 12 and len(study.raters) == 5
    files = sorted((folder / "clips").iterdir())
    assert len(files) == 24
    assert len({path.stat().st_size for path in files}) == 1
    assert len({path.stat().st_mtime_ns for path in files}) == 1
    assert len({path.read_bytes()[:44] for path in files}) == 1
    assert all(re.fullmatch(r"[\w-]{22}\.wav", path.name) for path in files)
    for pair in study.pairs:
        number = next(n for n in range(12) if prompt(n) == pair.prompt)
        pitches = [_pitch(clip_path(folder, name)) for name in (pair.a, pair.b)]
        assert (pitches[0] > pitches[1]) == a_is_higher(number), "A is not A"
        # The models' own levels are 18 dB apart.
        levels = [soundfile.read(clip_path(folder, n))[0].std() for n in (pair.a, pair.b)]
        assert 20 * abs(np.log10(levels[0] / levels[1])) < 4, "K-weighting alone accounts for less"
    # Other users of the machine can read neither the plan nor the clips.
    assert (folder / "study.json").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_a_seed_repeats_order_and_sides_but_no_name() -> None:
    first, again, other = (invite(8, 20, seed) for seed in (5, 5, 6))
    shown, same, different = (
        [[(showing.pair, showing.a_left) for showing in rater.showings] for rater in raters]
        for raters in (first, again, other)
    )
    assert shown == same and shown != different
    names = [
        name
        for raters in (first, again)
        for rater in raters
        for name in (rater.token, *(n for s in rater.showings for n in (s.name, s.left, s.right)))
    ]
    assert len(set(names)) == len(names) == 2 * 8 * 61
    orders = [tuple(showing.pair for showing in rater.showings) for rater in first]
    assert all(sorted(order) == list(range(20)) for order in orders) and len(set(orders)) == 8


def test_clips_are_matched_by_prompt_and_seed(tmp_path: Path) -> None:
    a, b = write_models(tmp_path, 3)
    tone = 0.1 * np.sin(np.arange(4000))
    for folder, seed in ((a, 1), (a, 2), (b, 2)):
        write(folder, f"more{seed}", tone, {"prompt": prompt(0), "seed": seed})
    facts = _prepare(a, b, tmp_path / "study", "--raters", 2, "--json")
    assert facts["pairs"] == 4 and len(facts["links"]) == 2
    assert any("1 clips have no partner" in note and "1)" in note for note in facts["notes"])
    assert any("4 pairs instead of 20" in note for note in facts["notes"])
    study = read_study(tmp_path / "study")
    assert {(p.prompt, p.seed) for p in study.pairs} == {
        (prompt(0), 0), (prompt(1), 0), (prompt(2), 0), (prompt(0), 2)
    }  # fmt: skip


def test_seeds_do_not_matter_if_one_side_has_none(tmp_path: Path) -> None:
    a, b = write_models(tmp_path, 3)
    for path in b.glob("*.json"):
        path.write_text(json.dumps({"prompt": json.loads(path.read_text())["prompt"]}))
    _prepare(a, b, tmp_path / "study")
    assert [pair.seed for pair in read_study(tmp_path / "study").pairs] == [None] * 3
    write(a, "again", np.full(4000, 0.1), {"prompt": prompt(0), "seed": 1})
    with pytest.raises(AttuneError, match="several clips on one side and no seeds"):
        _prepare(a, b, tmp_path / "other")


def test_rates_and_lengths_become_one(tmp_path: Path) -> None:
    time = np.arange(32000) / 32000
    for name, rate, seconds in (("a", 32000, 1.0), ("b", 16000, 0.5)):
        wave = 0.1 * np.sin(2 * np.pi * 440 * time[: round(seconds * rate)] * 32000 / rate)
        write(tmp_path / name, "x", wave, {"prompt": "hum", "seed": 0}, rate)
    facts = _prepare(tmp_path / "a", tmp_path / "b", tmp_path / "study", "--json")
    assert facts["sample_rate"] == 16000
    assert "'hum': a clip of 1.00 s was cut to 0.50 s" in facts["notes"]
    (pair,) = read_study(tmp_path / "study").pairs
    for name in (pair.a, pair.b):
        info = soundfile.info(clip_path(tmp_path / "study", name))
        assert (info.samplerate, info.frames, info.channels) == (16000, 8000, 1)
        assert _pitch(clip_path(tmp_path / "study", name)) == pytest.approx(440, abs=2)


def test_a_study_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    folder, _ = make_study(tmp_path, 2, 2)
    before = contents(folder)
    for more in ((), ("--dry-run",)):
        with pytest.raises(AttuneError, match="has a study, which is not overwritten"):
            _prepare(tmp_path / "lm-north", tmp_path / "lm-south", folder, *more)
    assert contents(folder) == before
    with pytest.raises(AttuneError, match="not an empty folder"):
        _prepare(tmp_path / "lm-north", tmp_path / "lm-south", tmp_path / "lm-north")
    (tmp_path / "empty").mkdir()
    _prepare(tmp_path / "lm-north", tmp_path / "lm-south", tmp_path / "empty")
    assert len(read_study(tmp_path / "empty").pairs) == 2


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    a, b = write_models(tmp_path, 3)
    (b / "001.wav").write_bytes(b"not audio")
    with pytest.raises(AttuneError, match=r"clip .*001\.wav: unreadable"):
        _prepare(a, b, tmp_path / "deep" / "study")
    soundfile.write(b / "001.wav", np.full(4000, np.nan), RATE, "FLOAT")
    with pytest.raises(AttuneError, match=r"clip .*001\.wav: non_finite"):
        _prepare(a, b, tmp_path / "deep" / "study")
    assert list(tmp_path.rglob("*study*")) == []


def test_a_dry_run_makes_nothing(tmp_path: Path) -> None:
    a, b = write_models(tmp_path, 3)
    facts = _prepare(a, b, tmp_path / "study", "--dry-run", "--json", "--pairs", 2)
    assert len(facts["pairs"]) == 2 and facts["raters"] == 8
    assert facts["a"] == {"name": "lm-north", "run": None}
    assert "3 pairs for 8 raters" in _prepare(a, b, tmp_path / "study", "--dry-run")
    assert not (tmp_path / "study").exists()


def test_mistakes_get_a_message(tmp_path: Path) -> None:
    a, b = write_models(tmp_path, 2)
    write(tmp_path / "others", "x", np.full(4000, 0.1), {"prompt": "else", "seed": 0})
    (tmp_path / "bare").mkdir()
    soundfile.write(tmp_path / "bare" / "x.wav", np.full(4000, 0.1), RATE)
    write(tmp_path / "twice", "x", np.full(4000, 0.1), {"prompt": "p", "seed": 0})
    write(tmp_path / "twice", "y", np.full(4000, 0.1), {"prompt": "p", "seed": 0})
    write(tmp_path / "odd", "x", np.full(4000, 0.1), {"prompt": "p", "seed": "one"})
    write(tmp_path / "blip", "x", np.full(90, 0.1), {"prompt": prompt(0), "seed": 0})
    (tmp_path / "prompts.txt").write_text("a dog\n")
    out = tmp_path / "study"
    for first, second, more, words in (
        (a, a, (), "--a and --b are the same"),
        (a, tmp_path / "gone", (), "gone: neither a trained run nor a folder of clips; a run by"),
        (a, tmp_path / "others", (), "no prompt and seed in common"),
        (a, tmp_path / "bare", (), r"x\.wav has no sidecar with a `prompt`"),
        (a, tmp_path / "twice", (), "x.wav and y.wav have the same prompt and seed"),
        (a, tmp_path / "odd", (), "seed 'one' of x.wav is not a whole number"),
        (a, tmp_path / "blip", (), "the shorter clip has 0.011 s; a pair needs"),
        (a, b, ("--prompts", tmp_path / "prompts.txt"), "--prompts is for two runs"),
        (a, b, ("lm.run=x",), "'lm.run=x' needs --config"),
        (a, b, ("--url", "lab.example"), "--url lab.example: expected an address"),
        (a, b, ("--url", "ftp://lab.example"), "expected an address"),
    ):
        with pytest.raises(AttuneError, match=words):
            _prepare(first, second, out, *more)
    with pytest.raises(AttuneError, match="is below a file"):
        _prepare(a, b, tmp_path / "prompts.txt" / "study")
    assert not out.exists()


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    folder, study = make_study(tmp_path, 2, 2)
    good = json.loads((folder / "study.json").read_text())
    with pytest.raises(AttuneError, match="no study there"):
        read_study(tmp_path)

    def damaged(change: object) -> str:
        (folder / "study.json").write_text(json.dumps(change))
        with pytest.raises(AttuneError) as caught:
            read_study(folder)
        return str(caught.value)

    for name in ("../../secret", "a/b", "short", "x" * 22 + "\n"):
        pairs = [good["pairs"][0] | {"a": name}, good["pairs"][1]]
        assert "damaged at pairs.0.a" in damaged(good | {"pairs": pairs}), name
    assert "damaged at more" in damaged(good | {"more": 1})
    raters = [good["raters"][0], good["raters"][0]]
    assert "a name is there twice" in damaged(good | {"raters": raters})
    raters = [good["raters"][0] | {"showings": good["raters"][0]["showings"][:1]}]
    assert "rater 1 does not get every pair once" in damaged(good | {"raters": raters})
    (folder / "study.json").write_text(json.dumps(good))
    path = clip_path(folder, study.pairs[0].b)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(AttuneError, match="differ in size"):
        read_study(folder)
    path.unlink()
    with pytest.raises(AttuneError, match="a clip of the study is missing"):
        read_study(folder)


def test_links_show_each_raters_progress(tmp_path: Path) -> None:
    folder, study = make_study(tmp_path, 2, 2)
    rows = _run("links", folder, "--url", "https://lab.example/", "--json")
    assert [row["link"] for row in rows] == [
        f"https://lab.example/#{rater.token}" for rater in study.raters
    ]
    assert [(row["answered"], row["of"]) for row in rows] == [(0, 2), (0, 2)]
    assert study.raters[1].token in _run("links", folder)


@pytest.fixture
def two_runs(tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """Options for a recipe of two trained runs, and its folder of runs."""
    for name in ("one", "two"):
        shutil.copytree(tiny_run, tmp_path / "run" / name)
    return ["--config", tiny_recipe.source_file, f"run_dir={tmp_path}/run"], tmp_path / "run"


def test_runs_are_asked_for_the_prompts_of_a_split(
    two_runs: tuple[list[str], Path], tmp_path: Path
) -> None:
    options, runs = two_runs
    facts = _prepare(
        "one", "two", tmp_path / "study", *options, "sampling.top_k=5",
        "--split", "valid", "--pairs", 6, "--raters", 3, "--clip-seed", 4, "--json",
    )  # fmt: skip
    assert facts["pairs"] == 6 and facts["sample_rate"] == 16000
    study = read_study(tmp_path / "study")
    assert (study.a.name, study.b.name) == ("one", "two")
    assert study.a.facts["step"] == 12 and study.a.facts["top_k"] == 5
    # Four clips of that split with four prompts; two of them come again with the next seed.
    asked = [(pair.prompt, pair.seed) for pair in study.pairs]
    assert [seed for _, seed in asked] == [4, 4, 4, 4, 5, 5]
    assert len({text for text, _ in asked[:4]}) == 4 and asked[4][0] == asked[0][0]
    made = list((runs / "evaluated").rglob("*.wav"))
    assert len(made) == 12
    times = {path: path.stat().st_mtime_ns for path in made}
    _prepare(
        "one", "two", tmp_path / "again", *options, "sampling.top_k=5",
        "--split", "valid", "--pairs", 6, "--clip-seed", 4,
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in made} == times, "clips were made again"


def test_a_run_beside_a_folder_is_asked_for_its_prompts(
    two_runs: tuple[list[str], Path], tmp_path: Path
) -> None:
    options, _ = two_runs
    for i, (text, seed) in enumerate((("a dog barks", 3), ("rain falls", 5))):
        wave = 0.1 * np.random.default_rng(i).standard_normal(6400)
        write(tmp_path / "real", str(i), wave, {"prompt": text, "seed": seed}, 16000)
    _prepare(tmp_path / "real", "two", tmp_path / "study", *options)
    study = read_study(tmp_path / "study")
    assert {(p.prompt, p.seed) for p in study.pairs} == {("a dog barks", 3), ("rain falls", 5)}


def test_prompts_of_a_file(two_runs: tuple[list[str], Path], tmp_path: Path) -> None:
    options, _ = two_runs
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,seed\nA dog barks,7\nRain falls,\n")
    arguments = ("one", "two", tmp_path / "study", *options, "--prompts", file)
    facts = _prepare(*arguments, "--dry-run", "--json")
    asked = [(pair["prompt"], pair["seed"]) for pair in facts["pairs"]]
    assert asked == [("A dog barks", 7), ("Rain falls", 0)]
    assert [pair["heard"] for pair in facts["pairs"]] == [["dog bark"], ["rain fall"]]
    assert "  A dog barks  (seed 7)  heard as: dog bark\n" in _prepare(*arguments, "--dry-run")
    as_typed = _prepare(*arguments, "--as-is", "--dry-run", "--json")
    assert as_typed["pairs"][0]["heard"] == ["A dog barks"]
    assert "heard as" not in _prepare(*arguments, "--as-is", "--dry-run")
    _prepare(*arguments)
    pairs = read_study(tmp_path / "study").pairs
    assert [pair.prompt for pair in pairs] == ["A dog barks", "Rain falls"]
    file.write_text("prompt,seed\nA dog barks,7\nA dog barks,7\n")
    with pytest.raises(AttuneError, match="'A dog barks' with seed 7 is there twice"):
        _prepare("one", "two", tmp_path / "other", *options, "--prompts", file)
    with pytest.raises(AttuneError, match="no clips in split 'test'; its splits are train, valid"):
        _prepare("one", "two", tmp_path / "other", *options)


def test_prompts_as_typed_are_other_clips(
    two_runs: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, runs = two_runs
    heard: list[str] = []
    encode = TextEncoder.encode

    def listen(self: TextEncoder, texts: list[str]) -> list[np.ndarray]:
        heard.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", listen)
    file = tmp_path / "prompts.txt"
    file.write_text("Dogs\n")
    options = [*options, "sampling.negative_prompt=Songs", "--prompts", file]
    _prepare("one", "two", tmp_path / "study", *options)
    assert heard == ["song", "dog"] * 2
    _prepare("one", "two", tmp_path / "other", *options, "--as-is")
    assert heard[4:] == ["Songs", "Dogs"] * 2
    assert len(list((runs / "evaluated").rglob("*.wav"))) == 4
    with pytest.raises(AttuneError, match="name it with --prompts FILE"):
        _prepare("one", "two", tmp_path / "third", *options[:2], "--as-is")


def test_raters_read_the_tags_that_a_prompt_was_made_of(tiny_root: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    data, table = str(tmp_path / "data"), tmp_path / "data" / "manifest.parquet"
    summary = tmp_path / "data" / "summary.json"

    def shown(prompt: str, tags: list[str], form: str) -> str:
        rows = len(pq.read_table(table))
        set_column(tmp_path / "data", "prompts", [[prompt]] * rows)
        set_column(tmp_path / "data", "tags", [tags] * rows)
        facts = json.loads(summary.read_text()) | {"tag_form": form, "negation": "keep"}
        summary.write_text(json.dumps(facts))
        return split_prompts(data, "train")[prompt]

    booing = ["Booing", "People, booing", "Dogs"]
    assert shown("people boo dog", booing, "policy") == "People, booing, Dogs"
    assert shown("people booing dogs", booing, "as_is") == "People, booing, Dogs"
    assert shown("dog", ["Dog", "Dogs"], "policy") == "Dog"  # a repeated tag counts once
    assert shown("dog genre rock", ["Dog"], "policy") == "dog genre rock"
    assert shown("people booing", booing, "policy") == "people booing"


def test_raters_read_the_caption_that_a_prompt_was_made_of(tiny_root: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    prompts = pq.read_table(tmp_path / "data" / "manifest.parquet")["prompts"].to_pylist()
    captions = [["Loud dogs!", "The Dogs"] if texts[0] == "dog" else None for texts in prompts]
    set_column(tmp_path / "data", "captions", captions)
    found = split_prompts(str(tmp_path / "data"), "train")
    assert found["dog"] == "The Dogs" and found["rain"] == "rain"
