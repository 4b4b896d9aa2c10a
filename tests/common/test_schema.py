"""Sample ids: the same for the same clip, always, and safe as tar keys."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from common.schema import MANIFEST, PLAN, RECORD, Record, sample_id

seconds = st.none() | st.floats(0, 1e5)


@settings(deadline=None)
@given(st.text(), st.text(), seconds, seconds)
def test_ids_are_32_hex_digits(dataset: str, native: str, start: float, end: float) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", sample_id(dataset, native, start, end))


def test_ids_never_change() -> None:
    # Shards hold them: a change here is a change of the format.
    expected = "316026af27c4d147581f26414f346c27"
    assert sample_id("audioset", "-0abc_30000_40000", None, None) == expected
    assert sample_id("a", "b", 1.0, 2.0) != sample_id("a", "b", 1.0, 2.001)
    assert sample_id("a", "bc", None, None) != sample_id("ab", "c", None, None)


def test_a_record_has_the_fields_of_its_schema() -> None:
    record = Record("d", "n", "g", "train", "/x.wav", "f:1")
    assert set(record.as_row()) == set(RECORD.names)
    assert record.sample_id == sample_id("d", "n", None, None)
    assert PLAN.names[: len(RECORD)] == MANIFEST.names[: len(RECORD)] == RECORD.names
