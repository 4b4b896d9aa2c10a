"""`shards report`: one file, nothing fetched, catalog text harmless, size bounded."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from in_process import copy_to_bucket

from common.errors import AttuneError
from common.storage import open_store
from pipeline.inspect import report
from pipeline.inspect.plots import spectrogram, stacked
from pipeline.inspect.report import build_report, draw_clips
from pipeline.inspect.tally import Histogram, frequent_words

EVIL = '<script>alert(1)</script> & "quoted" <img src=x onerror=alert(2)> $\\frac{a'


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every tag is closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def sources(self) -> list[str]:
        return [str(a[k]) for _, a in self.tags for k in ("src", "href", "srcset") if k in a]


def rewrite(finished: Path, change: Callable[[int, dict[str, Any]], object]) -> None:
    table = pq.read_table(finished / "manifest.parquet")
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        change(i, row)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), finished / "manifest.parquet")


def test_the_page_stands_alone_and_comes_out_the_same(finished: Path, tiny_codec: Path) -> None:
    store = open_store(finished)
    html, clips = build_report(store, str(tiny_codec), clips=2)
    assert len(clips) == len(set(clips)) == 2
    assert build_report(store, str(tiny_codec), clips=2) == (html, clips)
    assert build_report(store, str(tiny_codec), clips=2, seed=1)[1] != clips
    page = Page(html)
    assert {source.split(";")[0] for source in page.sources()} == {
        "data:image/png", "data:audio/mpeg",
    }  # fmt: skip
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in html and "@import" not in html
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy and str(policy[0]).startswith("default-src 'none'")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    for words in ("24clips", "Stage audio: 6 rows", "truncated", "speech", "codebook 3", "not sta"):
        assert words in page.text, words


def test_the_clips_can_be_played(finished: Path, tiny_codec: Path) -> None:
    html, clips = build_report(open_store(finished), str(tiny_codec), clips=3)
    sounds = [source for source in Page(html).sources() if source.startswith("data:audio")]
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
    page = Page(html)
    assert not {"script", "s"} & {tag for tag, _ in page.tags}
    assert all(key != "onerror" for _, attributes in page.tags for key in attributes)
    assert "<script" not in html and html.count("<img src=x") == 0
    assert page.text.count(EVIL) >= 2 * 4  # it is there, as text


def test_size_is_bounded(finished: Path, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swell(i: int, row: dict[str, Any]) -> None:
        row["prompts"] = [f"{'x' * 20_000} {'word ' * 2_000}"] * len(row["prompts"])
        row["dataset"] = f"dataset {i} " + "y" * 20_000
        row["license"] = f"licence {i} " + "z" * 20_000
        row["attribution"] = "w" * 20_000

    rewrite(finished, swell)
    store = open_store(finished)
    monkeypatch.setattr(report, "_DATASETS", 5)
    monkeypatch.setattr(report, "_LICENSES", 4)
    bare = build_report(store, str(tiny_codec), clips=0)[0]
    assert len(bare.encode()) < report.MAX_BYTES - report.CLIPS_BYTES
    assert len(bare.encode()) < 400_000
    assert "19 smaller datasets are not listed" in bare and "20 others" in bare
    monkeypatch.setattr(report, "CLIPS_BYTES", 200_000)
    html, clips = build_report(store, str(tiny_codec), clips=2)
    assert 1 <= len(clips) < 24
    assert len(html) < len(bare) + 210_000
    assert f"{24 - len(clips)} smaller datasets are not heard" in html


def test_each_dataset_is_heard_before_any_twice(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(finished, lambda i, row: row.update(dataset="abc"[i % 3]))
    monkeypatch.setattr(report, "MAX_CLIPS", 5)
    rows = draw_clips(open_store(finished), ["b", "c", "a"], 3, seed=0)
    assert rows["dataset"].to_pylist() == ["b", "c", "a", "b", "c"]
    assert len(set(rows["sample_id"].to_pylist())) == 5


def test_the_most_frequent_words() -> None:
    prompts = ["dog bark", "a dog", "bark", f"{'x' * 50} dog"]
    assert frequent_words(prompts, 3) == {"dog": 3, "bark": 2, "a": 1}
    assert f"{'x' * 39}…" in frequent_words(prompts, 9)


def test_plots_show_every_clip_and_spectrograms_the_right_pitch() -> None:
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
    wave = np.sin(2 * np.pi * 2000 * np.arange(32000) / 16000).astype(np.float32)
    picture = spectrogram(wave, 16000)
    assert picture.max() == 0 and picture.min() == -80
    loudest = picture[:, picture.shape[1] // 2].argmax()
    assert loudest * 62.5 == pytest.approx(2000, abs=63)


def test_the_command_on_a_folder_and_in_a_bucket(
    pipeline: Callable[..., tuple[int, str, str]],
    write_recipe: Callable[..., Path],
    finished: Path,
    s3_bucket: str,
    tmp_path: Path,
) -> None:
    recipe = str(write_recipe(finished))
    uri = f"{s3_bucket}/data"
    copy_to_bucket(finished, uri)
    pages = []
    for data in (str(finished), uri):
        out = str(tmp_path / f"{len(pages)}.html")
        arguments = ("shards", "report", "--config", recipe, f"data_dir={data}", "--out", out)
        status, told, _ = pipeline(*arguments, "--clips", "1", "--sample", "2", "--json")
        found = json.loads(told)
        assert status == 0 and found["bytes"] == Path(out).stat().st_size
        assert "in 2 of 8 shards (drawn by seed 0)" in Path(out).read_text()
        pages.append(Path(out).read_text().replace(data, "DATA"))
    assert pages[0] == pages[1]
    status, told, _ = pipeline(*arguments, "--clips", "0")
    assert status == 0 and re.search(r"1\.html: 0\.\d\d MB, 0 clips", told)
    status, told, err = pipeline(*arguments[:-1], str(tmp_path / "no" / "a.html"))
    assert (status, told) == (1, "") and "there is no folder" in err and err.count("\n") == 1


def test_an_unfinished_run_has_no_report(finished: Path, tiny_codec: Path) -> None:
    (finished / "quarantine.parquet").unlink()
    with pytest.raises(AttuneError, match=r"no quarantine\.parquet there"):
        build_report(open_store(finished), str(tiny_codec))
    (finished / "summary.json").unlink()
    with pytest.raises(AttuneError, match="to the end first"):
        build_report(open_store(finished), str(tiny_codec))
