"""Every module has a test file of its name, or tests/README.md says where it is tested."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_no_module_is_without_a_place() -> None:
    rows = re.findall(r"^\| (`.+) \| (`.+) \|$", (TESTS / "README.md").read_text(), re.MULTILINE)
    code, tests = (re.findall(r"`(.+?)`", " ".join(column)) for column in zip(*rows, strict=True))
    gone = [path for path in code if not (TESTS.parent / path).exists()]
    gone += [path for path in tests if not (TESTS / path).is_file()]
    assert not gone, "named in tests/README.md and not there"
    for top in ("common", "pipeline", "training"):
        for path in (TESTS.parent / top).rglob("[!_]*.py"):
            module = path.relative_to(TESTS.parent)
            mirrored = (TESTS / module.with_name(f"test_{module.name}")).is_file()
            assert mirrored or module.as_posix().startswith(tuple(code)), module
