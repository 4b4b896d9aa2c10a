"""The README's tables stay true."""

from __future__ import annotations

import re
from pathlib import Path

import pipeline
from common.audio import REASONS
from pipeline.catalogs import CATALOGS
from pipeline.catalogs.audiofolder import AudioFolder

README = (Path(pipeline.__file__).parent / "README.md").read_text()


def test_every_reason_and_every_catalog_is_documented() -> None:
    source = "".join(p.read_text() for p in Path(pipeline.__file__).parent.rglob("*.py"))
    refusing = r'(?:Refusal|refuse|refuse_where)\((?:[^"]|"(?!catalog|text|split))*?'
    reasons = set(re.findall(refusing + r'"(?:catalog|text|split)",\s*"([a-z_]+)"', source))
    reasons |= set(REASONS) | {"outside_root", "missing_audio"}
    assert {"malformed_row", "leakage", "duplicate", "speech", "truncated"} <= reasons
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in README] == []
    names = [catalog.model_fields["dataset"].default for catalog in CATALOGS]
    assert [name for name in names if f"| `{name}` |" not in README] == []


def test_every_column_of_a_folder_that_is_read_as_text_is_documented(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    columns = AudioFolder(root=tmp_path).text_columns().partition("text is read from ")[2]
    names = re.findall(r"[a-z]+(?:_1)?", columns.replace("also ", ""))
    assert {"text", "caption_1", "labels", "label"} <= set(names)
    row = re.search(r"^\| `audiofolder` \|.*$", README, re.M)
    assert row is not None
    assert [name for name in names if f"`{name}`" not in row[0]] == []
