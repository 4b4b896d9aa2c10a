"""`catalog check` and `catalog show`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calls import Call
from typer.testing import CliRunner

from common.errors import AttuneError
from common.storage import StorageError, Store
from pipeline.cli import app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["catalog", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_check_accounts_for_every_row(recipe: str, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(run("check", recipe, "--json"))
    entry = found["datasets"]["small"]
    assert entry["read"] == 34 == entry["accepted"] + sum(entry["refused"].values())
    assert entry["refused"] == {
        "empty_prompt": 1, "missing_audio": 1, "outside_root": 1, "speech": 1,
    }  # fmt: skip
    assert entry["speech"] == {"word": 1, "term": 1, "wide": 1}
    assert entry["prompts"] == 30 and entry["unique_prompts"] == 8
    assert entry["licenses"] == {"not stated": 30}
    assert entry["examples"]["missing_audio"][0]["raw"] == "gone.wav,a dog barks,train"
    assert not (tmp_path / "data").exists()  # nothing is written
    blind = json.loads(run("check", recipe, "--no-audio", "--json"))["datasets"]["small"]
    assert blind["refused"] == {"empty_prompt": 1, "outside_root": 1, "speech": 1}

    text = run("check", recipe, "pipeline.text.speech=keep")
    assert "missing_audio 1" in text and "outside_root 1" in text and "speech 1" not in text


def test_show_explains_a_clip(recipe: str) -> None:
    (first,) = json.loads(run("show", recipe, "--id", "tone_00.wav", "--json"))
    (second,) = json.loads(run("show", recipe, "--id", "talk.wav", "--json"))
    assert [row["outcome"] for row in (first, second)] == ["accepted", "text: speech"]
    assert first["raw"] == "tone_00.wav,A tone is humming in the garden,train"
    assert first["prompts"] == ["tone hum garden"]
    assert dict(map(tuple, first["steps"]))["prompts"] == "tone hum garden"
    assert second["detail"] == "Speech of a man"
    by_id = json.loads(run("show", recipe, "--id", first["sample_id"][:12], "--json"))
    assert first in by_id
    assert "tone hum garden" in run("show", recipe, "--id", "tone_00.wav")
    assert "speech" in run("show", recipe, "--id", "talk.wav")

    (gone,) = json.loads(run("show", recipe, "--id", "gone.wav", "--json"))
    assert gone["outcome"] == "catalog: missing_audio" and gone["steps"] == []


def test_show_has_what_encoding_refused(recipe: str, finished: Path) -> None:
    def page() -> dict[str, Any]:
        (row,) = json.loads(run("show", recipe, "--id", "page.wav", "--json"))
        assert row["prompts"] == ["broken page machine"]
        return dict(row)

    found = page()
    assert found["outcome"] == "audio: unreadable"
    assert found["detail"].startswith("refused while encoding: ")
    assert "outcome    audio: unreadable\ndetail     refused while" in run(
        "show", recipe, "--id", "page.wav"
    )
    for name in ("quarantine.parquet", "summary.json"):  # then the commits have it
        (finished / name).unlink()
        assert page() == found
    (tone,) = json.loads(run("show", recipe, "--id", "tone_00.wav", "--json"))
    assert tone["outcome"] == "accepted"
    elsewhere = run("show", recipe, f"data_dir={finished}/none", "--id", "page.wav", "--json")
    assert json.loads(elsewhere)[0]["outcome"] == "accepted"
    assert not (finished / "none").exists()


def test_show_works_while_the_store_is_out_of_reach(
    recipe: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(store: Store, key: str) -> bytes:
        raise StorageError(f"{store.uri}/{key}: access denied")

    monkeypatch.setattr(Store, "read", read)
    result = CliRunner().invoke(app, ["catalog", "show", recipe, "--id", "page.wav", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["outcome"] == "accepted"
    assert result.stderr.startswith("note: what encoding refused is not shown: ")


def test_columns_that_are_not_read_are_reported_once(
    recipe: str, tmp_path: Path, pipeline: Call
) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,sentence\na.wav,A dog barks\nb.wav,Rain\n")
    folder = f"pipeline.catalogs=[{{dataset: audiofolder, root: {tmp_path}, name: own}}]"
    _, text, _ = pipeline("catalog", "check", recipe, folder, "--no-audio")
    assert "no_text 2" in text
    assert text.count("columns: file_name, sentence; text is read from text, caption") == 1


def test_mistakes_are_one_line(recipe: str) -> None:
    with pytest.raises(AttuneError, match="no catalog row has 'nobody'"):
        run("show", recipe, "--id", "nobody")
    with pytest.raises(AttuneError, match="name a recipe"):
        run("check", "pipeline.text.speech=keep")
    with pytest.raises(AttuneError, match="speech"):
        run("check", recipe, "pipeline.text.speech=loud")


def test_check_fails_if_nothing_is_accepted_and_says_if_nothing_is_trained_on(
    recipe: str, tmp_path: Path, pipeline: Call
) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text,split\na.wav,A dog,test\n")
    folder = f"pipeline.catalogs=[{{dataset: audiofolder, root: {tmp_path}, name: own}}]"
    code, out, err = pipeline("catalog", "check", recipe, folder)
    assert (code, err) == (1, "error: all rows of own are refused\n") and "missing_audio 1" in out
    (tmp_path / "a.wav").touch()
    code, out, _ = pipeline("catalog", "check", recipe, folder)
    assert code == 0 and "no row is left for train" in out
    found = json.loads(run("check", recipe, folder, "--json"))["datasets"]["own"]
    assert found["splits"] == {"train": 0, "valid": 0, "test": 1}
    code, out, _ = pipeline("plan", "--config", recipe, folder, f"data_dir={tmp_path}/other")
    assert code == 0 and "note: no row is left for train" in out
    assert "no row is left" not in run("check", recipe)


def test_check_counts_negations_and_refusals_for_no_speech(recipe: str, tmp_path: Path) -> None:
    texts = (
        "A hall (no distinct speech)",
        "Speech, no traffic",
        "It doesn't bark",
        "A note, a knot",
    )
    rows = (f'{i}.wav,"{text}"' for i, text in enumerate(texts))
    (tmp_path / "metadata.csv").write_text("\n".join(("file_name,text", *rows)))
    folder = f"pipeline.catalogs=[{{dataset: audiofolder, root: {tmp_path}, name: own}}]"
    found = json.loads(run("check", recipe, folder, "--no-audio", "--json"))["datasets"]["own"]
    assert found["negations"] == {"captions": 3, "no_speech": {"word": 1, "term": 1}}
    text = run("check", recipe, folder, "--no-audio")
    assert (
        "negations  3 captions (no, without, ...); dropped for saying 'no speech': word 1" in text
    )
