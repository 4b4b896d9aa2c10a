"""`shards verify`: check every byte that a reader will trust.

For each shard: the commit accounts for the plan, the tar has the commit's hash, and the codes,
states and record of every sample match plan, commit and text cache.  Then the files of `finalize`
are computed again from plan and commits and compared with the files in the store.  Every problem
names its file and, if there is one, its sample.  Nothing is changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import AttuneError
from common.schema import MANIFEST, RECORD, REJECTS
from common.shards import parquet_table, parse_sample, read_summary
from common.storage import StorageError, Store
from pipeline.datadir.commit import check_account, commit_key, committed_shards, read_commit
from pipeline.datadir.copies import Copies, CopyFinder
from pipeline.datadir.frozen_plan import FrozenPlan, plan_to_read
from pipeline.datadir.results import FROM_ELSEWHERE, Results
from pipeline.datadir.text_cache import TextCache

_ROWS_AT_ONCE = 8192
_PLANNED = (*RECORD.names, "prompts")
_ENCODED = (
    "frames", "duration_s", "prompt_tokens", "source_sample_rate", "source_sha256", "wave_sha256",
)  # fmt: skip
"""Fields of a sample's record that come from its plan row, and from its commit."""


class Problem(NamedTuple):
    where: str
    problem: str
    sample_id: str = ""


def verify_shards(
    store: Store, tell: Callable[[int, int], object] = lambda done, of: None
) -> dict[str, Any]:
    """Check a finished run.

    Args:
        tell: called with the number of checked shards and the number of all shards.

    Returns:
        shards, samples (numbers of checked ones), problems (where, problem, sample_id), and
        orphans: tars that no commit names, which are harmless.

    Raises:
        AttuneError: there is no finished run to check.
    """
    plan = plan_to_read(store)
    problems: list[Problem] = []
    samples = 0
    orphans = {key for key, _ in store.list("shards")}
    try:
        summary = read_summary(store)
    except AttuneError:
        if not store.exists("summary.json"):
            raise
        summary = {}
    if lacking := [name for name in FROM_ELSEWHERE if name not in summary]:
        problems.append(Problem("summary.json", f"is damaged: no {', '.join(lacking)}"))
    elsewhere = {} if lacking else {name: summary[name] for name in FROM_ELSEWHERE}
    ids = {name: plan.info["inputs"][name] for name in ("codec_id", "text_encoder_id")}
    cache = TextCache(store, ids["text_encoder_id"])

    def accounts() -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Shards that are accounted for; checks the tar of every shard meanwhile."""
        nonlocal samples
        for shard, rows in plan.shards():
            tell(shard, plan.n_shards)
            planned = rows.to_pylist()
            try:
                commit = read_commit(store, shard)
                if commit is None:
                    raise AttuneError("is missing")
                if commit["shard"] != shard:
                    raise AttuneError(f"is about shard {commit['shard']}")
                orphans.discard(commit["shard_key"])
                samples += len(commit["samples"])
                problems.extend(_tar(store, commit, planned, ids, elsewhere, cache))
                check_account(planned, commit, plan.plan_hash)
            except StorageError:
                raise
            except AttuneError as error:
                problems.append(Problem(commit_key(shard), str(error)))
            else:
                yield planned, commit

    results = Results(plan, _find_copies(plan))
    parts = [(MANIFEST.empty_table(), REJECTS.empty_table())]
    try:
        parts += (results.add(planned, commit) for planned, commit in accounts())
    except StorageError:
        raise
    except AttuneError as error:
        problems.append(Problem("plan/plan.parquet", str(error)))
    else:
        manifest, quarantine = map(pa.concat_tables, zip(*parts, strict=True))
        problems += _table(store, "manifest.parquet", manifest)
        problems += _table(store, "quarantine.parquet", quarantine)
        if elsewhere:
            problems += _shard_list(store, results.shard_list(elsewhere["name"]))
            expected = results.summary(elsewhere)
            problems += (Problem("summary.json", text) for text in _differing(summary, expected))
    tell(plan.n_shards, plan.n_shards)
    for shard in sorted(committed_shards(store)):
        if shard >= plan.n_shards:
            problems.append(Problem(commit_key(shard), f"the plan has only {plan.n_shards} shards"))
    return {
        "shards": plan.n_shards,
        "samples": samples,
        "problems": [problem._asdict() for problem in problems],
        "orphans": sorted(orphans),
    }


def _find_copies(plan: FrozenPlan) -> Copies:
    """The copies among all samples; shards that cannot be read are reported elsewhere."""
    finder = CopyFinder()
    with suppress(AttuneError):  # a damaged plan
        for shard, rows in plan.shards():
            with suppress(AttuneError):
                finder.add(rows.to_pylist(), read_commit(plan.store, shard) or {"samples": []})
    return finder.find()


def _tar(
    store: Store,
    commit: Mapping[str, Any],
    planned: list[dict[str, Any]],
    ids: Mapping[str, str],
    shapes: Mapping[str, Any],
    cache: TextCache,
) -> Iterator[Problem]:
    """Problems of a shard's tar; `shapes` is empty if the summary is damaged."""
    key, where = commit["shard_key"], commit_key(commit["shard"])
    if key is None:
        if commit["samples"]:
            yield Problem(where, "names samples but no tar")
        return
    if key != (named := f"shards/{commit['shard']:06d}-{commit['sha256'][:12]}.tar"):
        yield Problem(where, f"names {key}, by its shard and sha256 it must be {named}")
    try:
        data = store.read(key)
    except FileNotFoundError:
        yield Problem(key, "is missing")
        return
    if len(data) != commit["bytes"]:
        yield Problem(key, f"has {len(data)} bytes, its commit says {commit['bytes']}")
    if (digest := hashlib.sha256(data).hexdigest()) != commit["sha256"]:
        yield Problem(key, f"has sha256 {digest[:12]}, its commit says {commit['sha256'][:12]}")
    states: dict[str, npt.NDArray[np.float16]] = {}
    try:
        pairs = (zip(row["prompts"], row["chunks"], strict=True) for row in planned)
        states = cache.read(dict(chain.from_iterable(pairs)))
    except (FileNotFoundError, StorageError):
        pass  # a cache may be deleted; the states are covered by the tar's hash
    except (ValueError, KeyError) as error:  # Arrow's errors are ValueErrors
        problem = f"states of shard {commit['shard']:06d} cannot be read: {_short(str(error))}"
        yield Problem(cache.folder, problem)
    by_id = {row["sample_id"]: row for row in planned}
    end = 0
    for found in commit["samples"]:
        sample_id, offset, length = found["sample_id"], found["offset"], found["length"]
        if offset != end:
            yield Problem(key, f"begins at byte {offset}, expected {end}", sample_id)
        end = offset + length
        row = by_id.get(sample_id, {"prompts": []})
        record = {name: row[name] for name in _PLANNED if name in row}
        record |= {**{name: found[name] for name in _ENCODED}, **ids}
        for text in _sample(sample_id, data[offset:end], record, shapes, states):
            yield Problem(key, text, sample_id)
    # The samples follow each other without gaps, so a member of no sample would follow them.
    if data[end:].strip(b"\0"):
        yield Problem(key, f"holds more than its commit names, from byte {end} on")


def _sample(
    sample_id: str,
    data: bytes,
    record: Mapping[str, Any],
    shapes: Mapping[str, Any],
    states: Mapping[str, npt.NDArray[np.float16]],
) -> Iterator[str]:
    """Problems of one sample; `record` is the expected content of its record."""
    try:
        sample = parse_sample(sample_id, data)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        # A damaged header or token count can raise any of these in numpy or Python.
        yield str(error)
        return
    yield from _differing(sample.record, record)
    prompts = record["prompts"]
    if len(prompts) != len(sample.text):
        yield f"{len(prompts)} prompts, {len(sample.text)} text states"
    for prompt, array in zip(prompts, sample.text, strict=False):
        if prompt in states and not np.array_equal(array, states[prompt]):
            yield f"text states of {_short(prompt)} are not those in the text cache"
    if not shapes:
        return
    shape, size = (shapes["n_codebooks"], record["frames"]), shapes["codebook_size"]
    if sample.codes.shape != shape:
        yield f"codes have shape {sample.codes.shape}, expected {shape}"
    low, high = int(sample.codes.min(initial=0)), int(sample.codes.max(initial=0))
    if low < 0 or high >= size:
        yield f"codes range over {low}..{high}, expected 0..{size - 1}"
    frames = math.ceil(round(record["duration_s"] * shapes["frame_rate"], 6))
    if record["frames"] != frames:
        yield f"{record['frames']} frames, {frames} by its duration"
    for array in sample.text:
        if array.shape[1] != shapes["text_dim"] or not len(array):
            yield f"text states have shape {array.shape}"
        elif not np.isfinite(array).all():
            yield "text states are not finite"


def _table(store: Store, key: str, expected: pa.Table) -> Iterator[Problem]:
    """Differences of a Parquet file from the table that it should hold."""
    try:
        found = parquet_table(store.read(key))
    except FileNotFoundError:
        yield Problem(key, "is missing")
        return
    except (pa.ArrowException, OSError) as error:
        yield Problem(key, f"is not readable: {error}")
        return
    if found.schema != expected.schema:
        columns = ({f.name: str(f.type) for f in table.schema} for table in (found, expected))
        differing = "; ".join(_differing(*columns)) or "more columns, or in another order"
        yield Problem(key, f"has other columns than it should: {differing}")
        return
    names = (table["sample_id"].to_pylist() for table in (found, expected))
    yield from (Problem(key, text, name) for name, text in _misplaced(*names))
    place = pc.index_in(expected["sample_id"], found["sample_id"].combine_chunks())
    there, same = expected.filter(pc.is_valid(place)), found.take(place.drop_null())
    for start in range(0, len(there), _ROWS_AT_ONCE):
        rows, wanted = (table.slice(start, _ROWS_AT_ONCE) for table in (same, there))
        if not rows.equals(wanted):
            for row, want in zip(rows.to_pylist(), wanted.to_pylist(), strict=True):
                yield from (Problem(key, t, row["sample_id"]) for t in _differing(row, want))


def _shard_list(store: Store, expected: Mapping[str, Any]) -> Iterator[Problem]:
    key = "shards.json"
    try:
        document = json.loads(store.read(key))
        urls = [entry["url"] for entry in document["shardlist"]]
    except FileNotFoundError:
        yield Problem(key, "is missing")
        return
    except (ValueError, TypeError, KeyError) as error:
        yield Problem(key, f"is damaged: {error!r}")
        return
    wanted = {entry["url"]: entry for entry in expected["shardlist"]}
    yield from (Problem(key, f"{url}: {text}") for url, text in _misplaced(urls, list(wanted)))
    for entry in document["shardlist"]:
        differing = _differing(entry, wanted.get(entry["url"], {}))
        yield from (Problem(key, f"{entry['url']}: {text}") for text in differing)


def _misplaced(found: list[str], expected: list[str]) -> Iterator[tuple[str, str]]:
    """Names that are missing, repeated or not expected in a list, each with its problem."""
    if found == expected:
        return
    counts = Counter(found)
    wrong = {name: "has more than one row" for name, number in counts.items() if number > 1}
    wrong |= {name: "is in no commit" for name in counts.keys() - set(expected)}
    wrong |= {name: "is in a commit but has no row" for name in set(expected) - counts.keys()}
    yield from sorted(wrong.items())
    if not wrong:
        yield "", "rows are not in the order of the commits"


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    for name, value in expected.items():
        if found.get(name) != value:
            yield f"{name} is {_short(found.get(name))}, plan and commits say {_short(value)}"


def _short(value: object, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
