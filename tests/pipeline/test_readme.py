"""The README's tables stay true."""

from __future__ import annotations

import re
from pathlib import Path

import pipeline
from common.audio import REASONS
from pipeline.catalogs import CATALOGS

README = (Path(pipeline.__file__).parent / "README.md").read_text()


def test_every_reason_and_every_catalog_is_documented() -> None:
    source = "".join(p.read_text() for p in Path(pipeline.__file__).parent.rglob("*.py"))
    refusing = r'(?:Refusal|refuse|refuse_where)\((?:[^"]|"(?!catalog|text|split))*?'
    told = set(re.findall(refusing + r'"(?:catalog|text|split)",\s*"([a-z_]+)"', source))
    told |= set(REASONS) | {"outside_root", "missing_audio"}
    assert {"malformed_row", "leakage", "duplicate", "speech", "truncated"} <= told
    assert [reason for reason in sorted(told) if f"`{reason}`" not in README] == []
    names = [catalog.model_fields["dataset"].default for catalog in CATALOGS]
    assert [name for name in names if f"| `{name}` |" not in README] == []
