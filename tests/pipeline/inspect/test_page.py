"""`shards report`: one file, nothing fetched, catalog text harmless, size bounded."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from calls import Call
from html_tags import Tags
from in_process import copy_to_bucket

from common.errors import AttuneError
from common.storage import open_store
from pipeline.inspect import page
from pipeline.inspect.page import build_report, draw_clips
from pipeline.inspect.plots import stacked
from pipeline.inspect.tally import Histogram, frequent_words

EVIL = '<script>alert(1)</script> & "quoted" <img src=x onerror=alert(2)> $\\frac{a'


def rewrite(finished: Path, change: Callable[[int, dict[str, Any]], object]) -> None:
    table = pq.read_table(finished / "manifest.parquet")
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        change(i, row)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), finished / "manifest.parquet")


def test_the_page_needs_nothing_else_and_is_the_same_each_time(
    finished: Path, tiny_codec: Path
) -> None:
    store = open_store(finished)
    html, clips = build_report(store, str(tiny_codec), clips=2)
    assert len(clips) == len(set(clips)) == 2
    assert build_report(store, str(tiny_codec), clips=2) == (html, clips)
    assert build_report(store, str(tiny_codec), clips=2, seed=1)[1] != clips
    found = Tags(html)
    assert {source.split(";")[0] for source in found.sources()} == {
        "data:image/png", "data:audio/mpeg",
    }  # fmt: skip
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert "url(" not in html and "@import" not in html
    policy = [a["content"] for tag, a in found.tags if a.get("http-equiv")]
    assert policy and str(policy[0]).startswith("default-src 'none'")
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")
    for words in ("24clips", "Stage audio: 6 rows", "truncated", "speech", "codebook 3", "not sta"):
        assert words in found.text, words


def test_the_clips_can_be_played(finished: Path, tiny_codec: Path) -> None:
    html, clips = build_report(open_store(finished), str(tiny_codec), clips=3)
    sounds = [source for source in Tags(html).sources() if source.startswith("data:audio")]
    assert len(sounds) == len(clips) == 3
    seconds = {
        row["sample_id"]: row["duration_s"]
        for row in pq.read_table(finished / "manifest.parquet").to_pylist()
    }
    for source, sample_id in zip(sounds, clips, strict=True):
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert rate == 16000 and len(wave) / rate == pytest.approx(seconds[sample_id], abs=0.1)
        assert np.abs(wave).max() > 0.001


def test_catalog_text_is_escaped(finished: Path, tiny_codec: Path) -> None:
    def spoil(i: int, row: dict[str, Any]) -> None:
        row["prompts"] = [EVIL] * len(row["prompts"])
        row["dataset"] = f"{EVIL} {i % 2}"
        row |= {"license": EVIL, "native_id": EVIL, "attribution": EVIL, "split": "<s>train"}

    rewrite(finished, spoil)
    html, clips = build_report(open_store(finished), str(tiny_codec), clips=1)
    assert len(clips) == 2
    found = Tags(html)
    assert not {"script", "s"} & {tag for tag, _ in found.tags}
    assert all(key != "onerror" for _, attributes in found.tags for key in attributes)
    assert "<script" not in html and html.count("<img src=x") == 0
    assert found.text.count(EVIL) >= 2 * 4  # it is there, as text


def test_size_is_bounded(finished: Path, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swell(i: int, row: dict[str, Any]) -> None:
        row["prompts"] = [f"{'x' * 20_000} {'word ' * 2_000}"] * len(row["prompts"])
        row["dataset"] = f"dataset {i} " + "y" * 20_000
        row["license"] = f"licence {i} " + "z" * 20_000
        row["attribution"] = "w" * 20_000

    rewrite(finished, swell)
    store = open_store(finished)
    monkeypatch.setattr(page, "_DATASETS", 5)
    monkeypatch.setattr(page, "_LICENSES", 4)
    bare = build_report(store, str(tiny_codec), clips=0)[0]
    assert len(bare.encode()) < page.MAX_BYTES - page.CLIPS_BYTES
    assert len(bare.encode()) < 400_000
    assert "19 smaller datasets are not listed" in bare and "20 others" in bare
    monkeypatch.setattr(page, "CLIPS_BYTES", 200_000)
    html, clips = build_report(store, str(tiny_codec), clips=2)
    assert 1 <= len(clips) < 24
    assert len(html) < len(bare) + 210_000
    assert f"{24 - len(clips)} smaller datasets are not heard" in html


def test_each_dataset_is_heard_before_any_twice(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(finished, lambda i, row: row.update(dataset="abc"[i % 3]))
    monkeypatch.setattr(page, "MAX_CLIPS", 5)
    rows = draw_clips(open_store(finished), ["b", "c", "a"], 3, seed=0)
    assert rows["dataset"].to_pylist() == ["b", "c", "a", "b", "c"]
    assert len(set(rows["sample_id"].to_pylist())) == 5


def test_the_most_frequent_words() -> None:
    prompts = ["dog bark", "a dog", "bark", f"{'x' * 50} dog"]
    assert frequent_words(prompts, 3) == {"dog": 3, "bark": 2, "a": 1}
    assert f"{'x' * 39}…" in frequent_words(prompts, 9)


def test_plots_show_every_clip() -> None:
    series = {
        "short": Histogram(np.array([2.0, 2.5, 3.0]), 0.01),
        "long": Histogram(np.array([60.0, 90.0]), 0.01),
    }
    axis = stacked(series, "seconds", "clips").axes[0]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "seconds (log scale)"
    assert sum(bar.get_height() for bar in axis.patches) == 5
    tokens = Histogram(np.array([3, 3, 4, 77]))
    axis = stacked({"only": tokens}, "tokens", "prompts").axes[0]
    assert sum(bar.get_height() for bar in axis.patches) == 4


def test_the_command_on_a_folder_and_in_a_bucket(
    pipeline: Call, recipe: str, finished: Path, s3_bucket: str, tmp_path: Path
) -> None:
    uri = f"{s3_bucket}/data"
    copy_to_bucket(finished, uri)
    pages = []
    for data in (str(finished), uri):
        out = str(tmp_path / f"{len(pages)}.html")
        arguments = ("shards", "report", "--config", recipe, f"data_dir={data}", "--out", out)
        status, printed, _ = pipeline(*arguments, "--clips", "1", "--sample", "2", "--json")
        found = json.loads(printed)
        assert status == 0 and found["bytes"] == Path(out).stat().st_size
        assert "in 2 of 8 shards (drawn by seed 0)" in Path(out).read_text()
        pages.append(Path(out).read_text().replace(data, "DATA"))
    assert pages[0] == pages[1]
    status, printed, _ = pipeline(*arguments, "--clips", "0")
    assert status == 0 and re.search(r"1\.html: 0\.\d\d MB, 0 clips", printed)
    status, printed, err = pipeline(*arguments[:-1], str(tmp_path / "no" / "a.html"))
    assert (status, printed) == (1, "") and "there is no folder" in err and err.count("\n") == 1


def test_an_unfinished_run_has_no_report(finished: Path, tiny_codec: Path) -> None:
    (finished / "quarantine.parquet").unlink()
    with pytest.raises(AttuneError, match=r"no quarantine\.parquet there"):
        build_report(open_store(finished), str(tiny_codec))
    (finished / "summary.json").unlink()
    with pytest.raises(AttuneError, match="to the end first"):
        build_report(open_store(finished), str(tiny_codec))
