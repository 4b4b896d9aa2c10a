"""Leakage: the same sound must not be in two splits.

A row that shares its group, its clip or its audio file with a row of a stricter split is refused,
also through other rows.  `plan/overlap.py` is about clips in two datasets, not in two splits, and
`datadir/copies.py` about equal sounds under two names, which are only known once they are decoded.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.audio import AUDIO_EXTENSIONS
from common.errors import AttuneError
from common.schema import SPLITS
from pipeline.catalogs.audio_root import plain_name
from pipeline.rows import MERGED, is_in, plain, refuse_where, sources_of

_TEST, _VALID = SPLITS.index("test"), SPLITS.index("valid")
_EXTENSION = rf"(?i)\.({'|'.join(sorted(name[1:] for name in AUDIO_EXTENSIONS))})$"


def strictness(rows: pa.Table) -> NDArray[np.int64]:
    """Strictness of each row's split: 0 train, 1 valid, 2 test.  No split counts as train."""
    return np.asarray(
        pc.index_in(plain(rows["split"]), value_set=pa.array(SPLITS)).fill_null(0), np.int64
    )


def sound_keys(rows: pa.Table) -> dict[str, pa.Array]:
    """What a row's sound is known by: group, clip, file; null where it is not known.

    The file is the one behind links.  Its extension does not count: a catalog that only has the
    stem of its files must find them, and `a.wav` beside `a.flac` is hardly another sound.  Upper
    and lower case do not count either: a hold-out list, whose files are not looked for, may write
    them in another way than the disk, and on some disks both are one file.  In a folder that is
    not known, a file's name says nothing.
    """
    uri = plain(rows["audio_uri"])
    is_path = pc.match_substring_regex(uri, "^(/|s3:)")
    file = pc.coalesce(plain(rows["real_uri"]), pc.if_else(is_path, uri, None))
    names = ("group_id", "also", "clip")
    keys = {name: plain(rows[name]) for name in names}
    keys["group_id"] = pc.utf8_normalize(keys["group_id"], "NFC")
    keys["file"] = pc.utf8_lower(pc.replace_substring_regex(_plain_names(file), _EXTENSION, ""))
    return {name: pc.if_else(pc.equal(key, ""), None, key) for name, key in keys.items()}


def _plain_names(paths: pa.Array) -> pa.Array:
    """Paths as every list would spell them: a list whose files are not looked for is taken as it
    is written.  Most paths have no other spelling."""
    odd = pc.fill_null(pc.match_substring_regex(paths, r"[^ -~]|[%&\\]|\s(/|\.|$)|/\s"), False)
    plain_ones = [plain_name(path) for path in paths.filter(odd).to_pylist()]
    return pc.replace_with_mask(paths, odd, pa.array(plain_ones, pa.string()))


def check_held_out(rows: pa.Table, held_out: NDArray[np.bool_]) -> None:
    """Check that every row that keeps clips out of training says which.

    Args:
        held_out: bool [N], the rows of hold-out catalogs.

    Raises:
        AttuneError: rows of hold-out catalogs, or of the splits valid or test, have no usable id.
    """
    protects = held_out | (strictness(rows) > 0)
    protects &= ~np.asarray(pc.fill_null(pc.equal(plain(rows["reason"]), MERGED), False))
    for key in sound_keys(rows).values() if protects.any() else ():
        protects &= np.asarray(pc.is_null(key))
    lost = rows.filter(pa.array(protects))
    if not len(lost):
        return
    (place, *_), (detail, *_) = sources_of(lost["file"], lost["line"]).to_pylist(), lost["detail"]
    counts = Counter(plain(lost["file"]).to_pylist())
    numbers = ", ".join(f"{n} rows of {file}" for file, n in counts.items())
    raise AttuneError(
        f"{place}: {detail}; {numbers} have no usable id, so the clips that they hold out would "
        "stay in training; take the original list, or correct these rows"
    )


def refuse_leaks(rows: pa.Table, held_out: NDArray[np.bool_]) -> tuple[pa.Table, dict[str, int]]:
    """Refuse every row that shares a group, clip or audio file with a row of a stricter split.

    This is transitive: rows that are linked through other rows are refused too.  Test (2) is
    stricter than valid (1), valid than train (0).  An example of three rows:

        row  split  group_id      clip
        A    test   artist:ann    freesound:7
        B    train  cd:1          freesound:7
        C    train  cd:1          freesound:8

    B is the same clip as A, so B is refused.  C shares nothing with A, but it is on the same CD as
    B, so it may sound like the test clip, and is refused too.  The first pass looks at group_id
    before it has found B, so only the second pass finds C.  The third pass finds nothing and ends
    the search.  A chain can have any length.

    Rows that were refused for other reasons (no audio, say) also exclude others: their sound may be
    in the test set under another name.

    Args:
        held_out: bool [N], the rows of hold-out catalogs; they count as test rows.

    Returns:
        The rows, and the number of refused rows by `REFUSED_DATASET <- OTHER_DATASET SPLIT`.
    """
    strict = np.where(held_out, _TEST, strictness(rows))
    found: Counter[str] = Counter()
    keys = sound_keys(rows) if strict.any() else {}
    uri, real = (plain(rows[name]) for name in ("audio_uri", "real_uri"))
    shown = pc.if_else(pc.fill_null(pc.starts_with(uri, "member:"), False), real, uri)
    # Test before valid: a row that is linked to both is reported as linked to test.
    for level in (_TEST, _VALID):
        # For each row: the number of the stricter row that excludes it, or -1 if there is none.
        # The search starts at the rows of the level; they are their own holders.
        holder = np.where(strict == level, np.arange(len(rows)), -1)
        grows = bool((holder >= 0).any())
        while grows:
            grows = False
            for name, key in keys.items():
                there = np.flatnonzero(holder >= 0)
                held = key.take(pa.array(there))
                reached = np.asarray(pc.is_in(key, value_set=pc.unique(held.drop_null())))
                reached &= (strict < level) & (holder < 0)  # each row once, so the search ends
                if not reached.any():
                    continue
                grows = True
                at = pc.index_in(key.filter(pa.array(reached)), value_set=held)
                holder[reached] = holder[there[np.asarray(at)]]
                leaks = reached & np.asarray(is_in(rows))
                by = _holders(rows, holder[leaks], held_out)
                mask = pa.array(leaks)
                losers = plain(rows["dataset"].filter(mask)).to_pylist()
                found.update(map("{} <- {}".format, losers, by))
                shared = (shown if name == "file" else key).filter(mask).to_pylist()
                order = pa.array(holder[leaks])
                places = sources_of(rows["file"].take(order), rows["line"].take(order)).to_pylist()
                form = "{} is linked to a clip in {} ({})".format
                details = list(map(form, shared, by, places))
                rows = refuse_where(rows, leaks, "split", "leakage", details)
    return rows, dict(sorted(found.items()))


def _holders(rows: pa.Table, numbers: NDArray[np.int64], held_out: NDArray[np.bool_]) -> list[str]:
    """`DATASET SPLIT` for each row number; `hold_out` for a split other than test of such rows."""
    order = pa.array(numbers)
    datasets, splits = (plain(rows[name].take(order)).to_pylist() for name in ("dataset", "split"))
    return [
        f"{dataset} {'hold_out' if is_held and split != 'test' else split}"
        for dataset, split, is_held in zip(datasets, splits, held_out[numbers], strict=True)
    ]
