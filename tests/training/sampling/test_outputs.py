"""Prompts out of files, clips into files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
from tiny_runs import contents, names_in, run_command

from common.cli import Interrupted
from common.errors import AttuneError
from common.loudness import PEAK_DB, at_loudness
from training.sampling import sampler as generate
from training.sampling.outputs import Prompt, find_place, read_prompts, slug, write_clip

ROWS = [{"name": "dog", "prompt": "a dog, barking", "seed": 3}, {"text": "rain"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'name,prompt,seed\ndog,"a dog, barking",3\n,rain,\n'),
        ("p.CSV", 'name;caption;seed\r\ndog;"a dog, barking";3\r\n;rain;\r\n'),
        ("p.csv", "name\ttext\tseed\ndog\ta dog, barking\t3\n\train\t"),
        ("p.tsv", "name\tprompt\tseed\ndog\ta dog, barking\t3\n\train\t\n"),
        ("p.json", json.dumps(ROWS, indent=1)),
        ("p.json", json.dumps({"data": ROWS})),
        ("p.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
    ],
)
def test_prompts_of_tables(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    assert read_prompts(path) == [Prompt("a dog, barking", 3, "dog"), Prompt("rain")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("p.txt", "caf\u00e9\r\n\r\n  a dog, barking \r\n", ["caf\u00e9", "a dog, barking"]),
        ("prompts", "caf\u00e9\na dog, barking", ["caf\u00e9", "a dog, barking"]),
        ("p.json", '["caf\u00e9", "a dog, barking"]', ["caf\u00e9", "a dog, barking"]),
        # Line breaks inside a cell, and separators that only some programs take for line breaks.
        ("p.csv", 'prompt,seed\n"a dog\nbarks",\nrain,\n', ["a dog\nbarks", "rain"]),
        ("p.jsonl", '{"text": "dog\u2028bark"}\n{"text": "rain"}', ["dog\u2028bark", "rain"]),
    ],
)  # fmt: skip
def test_prompts_of_other_files(
    tmp_path: Path, name: str, content: str, wanted: list[str], encoding: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    assert [prompt.text for prompt in read_prompts(path)] == wanted


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "a,b\n1,2\n", "no column prompt, caption or text; .* found a, b"),
        ("p.csv", "prompt,seed\nrain,1.5\n", ":2: seed '1.5' is not a whole number"),
        ("p.csv", "prompt,seed\nrain,-1\n", ":2: seed '-1' is not"),
        ("p.csv", "prompt,seed\n\n ,\n", ":3: no prompt"),
        ("p.csv", "prompt\na dog, barking\n", ":2: expected 1 fields, found 2"),
        ("p.csv", 'prompt\nrain\n"a\ndog', ":3: not valid CSV"),
        ("p.json", '[{"prompt": "a"}, 3]', ":2: expected an object"),
        ("p.json", '{"prompts": []}', "expected a list of prompts"),
        ("p.txt", b"PK\x03\x04", "xlsx workbook"),
        ("p.txt", b"rain\ncaf\xe9\n", ":2: byte 0xe9: not UTF-8"),
        ("p.jsonl", '{"prompt": "rain"}\nrain\n', ":2: not valid JSON"),
        ("p.jsonl", "[1]\n", ":1: expected an object"),
        ("p.jsonl", '{"prompt": 3}\n', ":1: no prompt"),
        ("p.jsonl", '{"prompt": "rain", "name": "../up"}\n', "is not a file name"),
        ("p.jsonl", '{"prompt": "rain", "name": ".hidden"}\n', "is not a file name"),
        ("p.csv", f"prompt,name\nrain,{'a' * 181}\n", ":2: name 'a+'... is longer than 180"),
        ("p.txt", b"\xff\xfe\xff", "not UTF-16 text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AttuneError, match=words):
        read_prompts(path)


def _noise(seconds: float, level: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (level * rng.standard_normal(round(16000 * seconds))).clip(-1, 1).astype(np.float32)


def test_loudness_is_reached() -> None:
    for level in (0.001, 0.02, 0.2):
        found = at_loudness(_noise(3, level), 16000, -30)
        assert pyloudnorm.Meter(16000).integrated_loudness(found) == pytest.approx(-30, abs=0.05)
    short = at_loudness(_noise(0.1, 0.01), 16000, -30)
    meter = pyloudnorm.Meter(16000, block_size=0.1)
    assert meter.integrated_loudness(short) == pytest.approx(-30, abs=0.05)


@pytest.mark.parametrize(("samples", "rate"), [(2007, 16_000), (13_233, 44_100), (1, 48_000)])
def test_short_clips_of_any_length_have_a_loudness(samples: int, rate: int) -> None:
    wave = np.full(samples, 0.1, np.float32)
    wave[::2] *= -1
    assert np.isfinite(at_loudness(wave, rate, -30)).all()


def test_no_peak_is_clipped() -> None:
    clicks = _noise(3, 0.001)
    clicks[::4000] = 0.5
    found = at_loudness(clicks, 16000, -10)
    assert np.abs(found).max() == pytest.approx(10 ** (PEAK_DB / 20), rel=1e-4)
    # One gain for all: nothing is bent.
    np.testing.assert_allclose(found / clicks, found[0] / clicks[0], rtol=1e-4)
    silence = np.zeros(16000, np.float32)
    assert at_loudness(silence, 16000, -10) is silence


def test_clips_as_wav_and_flac(tmp_path: Path) -> None:
    wave = _noise(0.5, 0.1)
    for kind in ("wav", "flac"):
        made = write_clip(tmp_path, f"clip.{kind}", wave, {"sample_rate": 16000}, kind)  # type: ignore[arg-type]
        read, rate = soundfile.read(made[kind])
        assert rate == 16000
        np.testing.assert_allclose(read, wave, atol=1 / 32767)
    assert slug("A dog, barking!") == "a-dog-barking"
    assert slug("!!") == "prompt"


def test_names_keep_the_letters_of_every_script() -> None:
    assert slug("Müde Hunde, ÉTÉ 2!") == "müde-hunde-été-2"
    assert slug("mu\u0308de") == slug("m\u00fcde")  # one way to write it
    assert slug("犬が吠える") == "犬が吠える" and slug("雨") != slug("犬")
    assert slug("कुत्ता") == "कुत्ता"  # its vowels are marks
    assert slug("../a_b\\c\0\n~") == "a-b-c"
    assert slug("❤\ufe0f") == "prompt"
    long = slug("犬" * 200)
    assert set(long) == {"犬"} and 70 < len(long.encode()) <= 80
    assert not slug("a" * 79 + " b").endswith("-")


def test_another_clip_is_never_overwritten(tmp_path: Path) -> None:
    first, other = {"sample_rate": 16000, "cfg": 1.0}, {"sample_rate": 16000, "cfg": 9.0}
    wave = _noise(0.1, 0.1)
    assert find_place(tmp_path, "clip", first, "wav") == (tmp_path / "clip.wav", False)
    write_clip(tmp_path, "clip", wave, first, "wav")
    assert find_place(tmp_path, "clip", first, "wav") == (tmp_path / "clip.wav", True)
    # The same clip in another format gets the same name; a clip with other facts does not.
    assert find_place(tmp_path, "clip", first, "flac") == (tmp_path / "clip.flac", False)
    for kind in ("wav", "flac"):
        place = (tmp_path / f"clip-2.{kind}", False)
        assert find_place(tmp_path, "clip", other, kind) == place  # type: ignore[arg-type]
    write_clip(tmp_path, "clip-2", wave, other, "wav")
    assert find_place(tmp_path, "clip", other, "wav") == (tmp_path / "clip-2.wav", True)
    assert find_place(tmp_path, "clip", other | {"cfg": 3}, "wav")[0].name == "clip-3.wav"
    # A file of someone's own, and facts that cannot be read.
    (tmp_path / "mine.flac").touch()
    assert find_place(tmp_path, "mine", first, "wav")[0].name == "mine-2.wav"
    (tmp_path / "clip.json").write_text("{")
    assert find_place(tmp_path, "clip", first, "wav")[0].name == "clip-3.wav"
    # A clip that was removed gets the name of its facts again.
    (tmp_path / "clip-2.wav").unlink()
    assert find_place(tmp_path, "clip", other, "wav") == (tmp_path / "clip-2.wav", False)


def test_a_failed_write_leaves_no_facts_beside_another_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"sample_rate": 16000, "step": 1}
    write_clip(tmp_path, "clip", _noise(0.5, 0.1), facts, "wav")
    whole = (tmp_path / "clip.wav").read_bytes()

    def broken(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"RIFF")
        raise error

    monkeypatch.setattr(soundfile, "write", broken)
    error: BaseException = soundfile.LibsndfileError(2)
    with pytest.raises(AttuneError, match=r"clip[.]wav: cannot be written"):
        write_clip(tmp_path, "clip", _noise(0.5, 0.2), facts | {"step": 2}, "wav")
    error = Interrupted()
    with pytest.raises(Interrupted):
        write_clip(tmp_path, "other", _noise(0.5, 0.2), facts, "wav")
    assert contents(tmp_path) == {tmp_path / "clip.wav": whole}
    with pytest.raises(AttuneError, match=r"clip[.]wav/below/clip[.]wav: cannot be written"):
        write_clip(tmp_path / "clip.wav" / "below", "clip", _noise(0.5, 0.2), facts, "wav")


def test_a_clip_without_room_for_its_facts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(AttuneError, match="No space left"):
        write_clip(tmp_path, "clip", _noise(0.5, 0.1), {"sample_rate": 16000}, "wav")
    assert list(tmp_path.iterdir()) == []


def test_the_command_with_a_file_of_prompts(
    tiny_root: Path, tiny_run: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The dogs", "name": "hound", "seed": 4}\n{"prompt": "rain"}\n')
    beginning = tmp_path / "start.wav"
    soundfile.write(beginning, _noise(0.1, 0.1), 16000)
    command = ["generate", "--config", tiny_root / "recipe.yaml", "--prompts", prompts, "--n", 2]
    command += ["--format", "flac", "--duration", 0.7, "--json", "--continue", beginning]
    command += ["--out", tmp_path / "out", "sampling.loudness=-20", "sampling.weights=int8"]
    result = run_command(*command)
    made = json.loads(result.stdout)
    names = [Path(facts["flac"]).name for facts in made]
    assert names == ["hound-0.flac", "hound-1.flac", "002-rain-seed0.flac", "003-rain-seed1.flac"]
    assert [facts["seed"] for facts in made] == [4, 5, 0, 1]
    for facts in made:
        wave, rate = soundfile.read(facts["flac"])
        assert (len(wave), rate) == (11200, 16000)
        assert facts["weights"] == "int8" and facts["continued"] == str(beginning)
        assert len(facts["config_hash"]) == 16 and "licence" in facts
        assert facts["step"] == 12 and facts["checkpoint"].endswith("step-00000012")
        sidecar = json.loads(Path(facts["flac"]).with_suffix(".json").read_text())
        assert sidecar == {key: value for key, value in facts.items() if key != "flac"}
    assert made[0]["normalized_prompt"] == "dog"
    assert "in windows of that length" in result.stderr and "x real time" in result.stderr
    first = contents(tmp_path / "out")
    run_command(*command)
    assert contents(tmp_path / "out") == first


def test_what_the_model_hears_is_said(tiny_root: Path, tiny_run: Path, tmp_path: Path) -> None:
    def made(*arguments: object) -> tuple[list[dict[str, Any]], list[str]]:
        command = ["generate", "--config", tiny_root / "recipe.yaml", "--out", tmp_path, "--json"]
        result = run_command(*command, "--duration", 0.1, *arguments)
        said = result.stderr.split("\n")
        return json.loads(result.stdout), [
            line for line in said if "heard as" in line or line.startswith("warning")
        ]

    prompts = ["--prompt", "The dogs bark", "--prompt", "rain", "--n", 2]
    clips, said = made(*prompts, "sampling.negative_prompt=Songs #2")
    assert [clip["normalized_prompt"] for clip in clips] == ["dog bark"] * 2 + ["rain"] * 2
    assert said == ["'The dogs bark' heard as: dog bark", "'Songs #2' heard as: song"]
    assert all(clip["normalized_negative_prompt"] == "song" for clip in clips)
    assert not any("warnings" in clip or "as_is" in clip for clip in clips)
    clips, said = made(*prompts, "--as-is", "sampling.negative_prompt=Songs #2")
    assert [clip["normalized_prompt"] for clip in clips[::2]] == ["The dogs bark", "rain"]
    assert said == [] and all(clip["as_is"] for clip in clips)
    assert len(list(tmp_path.glob("*.wav"))) == 8, "a clip of another form was taken for this one"

    dogs = "\U0001f415 bark"
    clips, said = made("--as-is", "--prompt", dogs, "--prompt", "rain " * 14 + "falls far away")
    unknown, long = (clip["warnings"] for clip in clips)
    assert unknown == [f"the text encoder does not know 1 of the 2 tokens of {dogs!r}"]
    assert long[0].startswith("the text encoder takes 16 of the 19 tokens of 'rain rain")
    assert long[0].endswith("cut off: falls far away")
    assert said == [f"warning: {text}" for text in unknown + long]
    sidecar = json.loads(Path(clips[0]["wav"]).with_suffix(".json").read_text())
    assert sidecar["warnings"] == unknown


def test_two_clips_of_one_name_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "dog", "name": "a"}\n{"prompt": "rain", "name": "a"}\n')
    command = ["generate", "--config", tiny_root / "recipe.yaml"]
    with pytest.raises(AttuneError, match="twice"):
        run_command(*command, "--prompts", prompts)
    with pytest.raises(AttuneError, match="--continue"):
        run_command(*command, "--prompt", "dog", "--continue", prompts)


def test_a_stopped_command_can_be_resumed(
    tiny_root: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever this processor's default is: a single remaining clip would get other weights.
    monkeypatch.setattr(generate, "default_kind", lambda _, clips: "int8" if clips == 1 else "fp32")
    command = ["generate", "--config", tiny_root / "recipe.yaml", "--n", 5]
    command += ["--prompt", "dog", "--duration", 0.2, "--json"]
    expected = json.loads(run_command(*command, "--out", tmp_path / "whole").stdout)

    batches: list[int] = []
    sample = generate.sample_codes

    def stop_at_the_third(*args: Any, **settings: Any) -> Any:
        batches.append(len(settings["states"]))
        if len(batches) == 3:
            raise Interrupted
        return sample(*args, **settings)

    monkeypatch.setattr(generate, "sample_codes", stop_at_the_third)
    out = tmp_path / "out"
    command += ["sampling.batch_size=2", "--out", out]
    with pytest.raises(Interrupted):
        run_command(*command)
    assert names_in(out) == sorted(
        f"{i:03d}-dog-seed{i}.{kind}" for i in range(4) for kind in ("wav", "json")
    )
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "001-dog-seed1.wav").unlink()
    rest = run_command(*command)
    assert "3 of them exist" in rest.stderr
    # The whole batch of the lost clip, and the batch that was not made.
    assert batches == [2, 2, 1, 2, 1]
    assert all(
        path.stat().st_mtime_ns == time for path, time in times.items() if "001" not in path.name
    )
    made = json.loads(rest.stdout)
    assert [Path(facts["wav"]).name for facts in made] == [
        f"{i:03d}-dog-seed{i}.wav" for i in range(5)
    ]
    for facts, one in zip(made, expected, strict=True):
        assert Path(facts.pop("wav")).read_bytes() == Path(one.pop("wav")).read_bytes()
        assert facts == one and facts["weights"] == "fp32"
    again = run_command(*command)
    assert len(batches) == 5
    assert "5 of them exist" in again.stderr and len(json.loads(again.stdout)) == 5


def test_clips_of_other_settings_get_other_names(
    tiny_root: Path, tiny_run: Path, tmp_path: Path
) -> None:
    beginning, out = tmp_path / "start.wav", tmp_path / "out"
    soundfile.write(beginning, _noise(0.1, 0.1), 16000)

    def made(*arguments: str) -> tuple[str, bytes]:
        command = ["generate", "--config", tiny_root / "recipe.yaml", "--duration", 0.2]
        command += ["--prompt", "dog", "--out", out, "--json"]
        (facts,) = json.loads(run_command(*command, *arguments).stdout)
        path = Path(facts["wav"])
        return path.name, path.read_bytes()

    orders = [("sampling.cfg=1",), ("sampling.cfg=9",), ("--continue", str(beginning))]
    orders += [("--duration", "0.3"), ("sampling.loudness=-20",)]
    first = [made(*order) for order in orders]
    assert [name for name, _ in first] == [
        f"000-dog-seed0{end}.wav" for end in ("", "-2", "-3", "-4", "-5")
    ]
    assert [made(*order) for order in orders] == first
    # Other contents at the same path: the clip to continue, and the checkpoint.
    soundfile.write(beginning, _noise(0.1, 0.2), 16000)
    assert made("--continue", str(beginning))[0] == "000-dog-seed0-6.wav"
    sidecar = out / "000-dog-seed0.json"
    facts = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(facts | {"checkpoint_sha256": "of another training"}))
    assert made("sampling.cfg=1")[0] == "000-dog-seed0-7.wav"


def test_a_folder_that_cannot_be_written_is_reported_before_sampling(
    tiny_root: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(generate, "sample_codes", unreachable)
    command = ["generate", "--config", tiny_root / "recipe.yaml", "--prompt", "dog", "--out"]
    for out in ("/dev/null/below", "/proc/none", "/tmp/" + "a" * 300):
        with pytest.raises(AttuneError, match=f"--out {out}: "):
            run_command(*command, out)
