"""The plan on disk: frozen once, then read by every later stage.

plan/plan.parquet      accepted clips (`PLAN`) and the text chunks of their prompts (`chunks`), by
                       shard and position; row groups hold whole shards
plan/rejects.parquet   refused rows: stage, reason, detail
plan/prompts.parquet   every unique prompt and its chunk; chunks to embed first, a row group each
plan/plan.json         plan_hash, its inputs, counts; written last: it makes the plan exist
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.codec_files import codec_identity, resolve_codec
from common.config import Recipe, TextEncoderConfig
from common.errors import AttuneError, one_line
from common.prompts import normalizer_id
from common.storage import Store
from common.text_encoder import check_max_length, text_encoder_identity
from common.uris import remote_uri
from pipeline.config import EXECUTION_ONLY, PipelineConfig
from pipeline.datadir.commit import check_account, commit_key, committed_shards, read_commit
from pipeline.datadir.text_cache import TextCache
from pipeline.plan.decide import PlanTables, differing_inputs, hash_inputs
from pipeline.text.tokens import count_prompts

PLAN_VERSION = 7
"""Increase it when the same inputs would make other shards."""
CLIPS_PER_ROW_GROUP = 8192
PROMPTS_PER_CHUNK = 1024
"""Number of prompts that are embedded and stored together in the text cache.  Part of the plan's
inputs, because an encoder's rounding depends on which prompts share its batches."""
NO_TRAINING = "no row is left for train: every accepted clip is in the splits valid and test"
_HASH_KEY = b"attune.plan_hash"
_PLAN_AGAIN = (
    "delete the folder plan/ and run again: the same recipe over the same audio files makes the "
    "same plan, and the run reports it where the plan differs"
)
_PLAN_KEYS = {
    "plan_hash", "inputs", "n_planned", "n_shards", "n_refused", "n_unique_prompts",
    "clips_per_shard", "prompt_policy", "catalogs",
}  # fmt: skip


class MissingChunk(NamedTuple):
    """A chunk of the text cache that is still to be made."""

    name: str
    row_groups: tuple[int, ...]
    """The row groups of `prompts.parquet` that hold its prompts."""
    prompts: int
    """Number of prompts."""


@dataclass(frozen=True)
class FrozenPlan:
    """A plan that is on disk; `info` is the content of `plan.json`."""

    store: Store
    info: dict[str, Any]

    @property
    def plan_hash(self) -> str:
        return str(self.info["plan_hash"])

    @property
    def n_shards(self) -> int:
        return int(self.info["n_shards"])

    @property
    def n_planned(self) -> int:
        return int(self.info["n_planned"])

    @property
    def n_train(self) -> int:
        """Number of clips planned for the split that is trained on."""
        return sum(int(count["splits"]["train"]) for count in self.info["catalogs"].values())

    @property
    def shards_per_row_group(self) -> int:
        return _shards_per_row_group(int(self.info["clips_per_shard"]))

    def clips_in(self, shard: int) -> int:
        """Number of clips planned for a shard: all shards except the last are full."""
        size = int(self.info["clips_per_shard"])
        return min(size, self.n_planned - shard * size)

    def shards(self, skip: Collection[int] = ()) -> Iterator[tuple[int, pa.Table]]:
        """Number and rows of each shard; holds one row group at a time."""
        with self._open("plan") as file:
            for group in range(file.num_row_groups):
                first = group * self.shards_per_row_group
                numbers = range(first, min(first + self.shards_per_row_group, self.n_shards))
                if all(number in skip for number in numbers):
                    continue
                table = file.read_row_group(group)
                for number in numbers:
                    if number not in skip:
                        yield number, table.filter(pc.equal(table["shard"], number))

    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of `plan`, `rejects` or `prompts`, one batch of rows at a time."""
        with self._open(name) as file:
            yield from file.iter_batches(columns=list(columns))

    def audio_folders(self, roots: Iterable[str]) -> tuple[str, ...]:
        """Find, below each root, the deepest folder that holds all its planned files.

        These folders show whether a mount is lost.  A root can hold files other than audio, which
        stay there when a mount below it is lost; the folder of a single file can hold only that
        file.
        """
        spans: dict[str, tuple[str, str]] = {}
        deepest_first = sorted({os.path.join(root, "") for root in roots}, key=len, reverse=True)
        for batch in self.batches("plan", ["audio_uri"]):
            left = batch["audio_uri"]
            for root in deepest_first:
                inside = pc.starts_with(left, root)
                found = pc.min_max(left.filter(inside)).as_py()
                if found["min"] is not None:
                    low, high = spans.get(root, (found["min"], found["max"]))
                    spans[root] = min(low, found["min"]), max(high, found["max"])
                left = left.filter(pc.invert(inside))
        # All paths between the first and the last in order share what these two have in common.
        return tuple(
            os.path.commonpath([os.path.dirname(path) for path in span]) for span in spans.values()
        )

    def missing_chunks(self) -> list[MissingChunk]:
        """Chunks of prompts that are not in the text cache, in the plan's order."""
        cached = TextCache(self.store, self.info["inputs"]["text_encoder_id"]).chunks()
        groups: dict[str, tuple[int, ...]] = {}
        prompts: Counter[str] = Counter()
        with self._open("prompts") as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, columns=["chunk"])["chunk"]
                for count in names.value_counts().to_pylist():
                    if (name := count["values"]) not in cached:
                        groups[name] = (*groups.get(name, ()), group)
                        prompts[name] += count["counts"]
        return [MissingChunk(name, groups[name], prompts[name]) for name in groups]

    def prompts_of(self, chunk: str, row_groups: Iterable[int]) -> list[str]:
        """Prompts of a chunk, in the plan's order, from the row groups that hold them."""
        with self._open("prompts") as file:
            rows = file.read_row_groups(list(row_groups))
        return list(rows.filter(pc.equal(rows["chunk"], chunk))["prompt"].to_pylist())

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        """A table of this plan; damage that is found meanwhile becomes one line."""
        where = f"{self.store.uri}/plan/{name}.parquet"
        try:
            with self.store.open(f"plan/{name}.parquet") as source:
                file = pq.ParquetFile(source)
                found = (file.schema_arrow.metadata or {}).get(_HASH_KEY, b"(none)").decode()
                if found != self.plan_hash:
                    raise AttuneError(
                        f"{where} is of plan {found}, plan.json of plan {self.plan_hash}: two runs "
                        "with different recipes planned there at once; delete the folder plan/ and "
                        "run one of them again"
                    )
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            raise AttuneError(f"{where}: {reason}; {_PLAN_AGAIN}") from error


def plan_inputs(recipe: Recipe, config: PipelineConfig) -> dict[str, Any]:
    """Everything that decides what the shards hold, as plain JSON values.

    Later stages know nothing else of a recipe.

    Raises:
        AttuneError: a catalog file, the codec or the text encoder is missing, or the codec has
            another sample rate than the recipe.
    """
    settings = codec_settings(recipe.codec.path)
    if settings.get("sampling_rate") != recipe.sample_rate:
        raise AttuneError(
            f"codec {recipe.codec.path} runs at {settings.get('sampling_rate')} Hz, but "
            f"sample_rate is {recipe.sample_rate}"
        )
    sources = {
        remote_uri(path) or str(path): str(copy)
        for catalog in config.catalogs
        for path, copy in zip(catalog.sources(), catalog.fetched().sources(), strict=True)
    }
    return {
        "version": PLAN_VERSION,
        "seed": recipe.seed,
        "sample_rate": recipe.sample_rate,
        "codec_id": codec_identity(recipe.codec.path),
        "text_encoder_id": text_encoder_identity(recipe.text_encoder),
        "text_max_length": recipe.text_encoder.max_length,
        "normalizer": normalizer_id(config.prompt_form.policy),
        "pipeline": config.model_dump(mode="json", exclude=set(EXECUTION_ONLY))
        | {"prompts_per_chunk": PROMPTS_PER_CHUNK},
        "sources": {name: _file_sha256(copy) for name, copy in sorted(sources.items())}
        | {k: v for catalog in config.catalogs for k, v in catalog.fingerprints().items()},
    }


def load_plan(store: Store) -> FrozenPlan | None:
    """Read the plan on disk; None if there is none.

    Raises:
        AttuneError: `plan.json` is damaged.
    """
    try:
        info = json.loads(store.read("plan/plan.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        info = None
    if not isinstance(info, dict) or not info.keys() >= _PLAN_KEYS:
        raise AttuneError(f"{store.uri}/plan/plan.json: is damaged; {_PLAN_AGAIN}")
    return FrozenPlan(store, info)


def plan_to_read(store: Store) -> FrozenPlan:
    """The plan on disk.

    Raises:
        AttuneError: there is none yet, or `plan.json` is damaged.
    """
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(
            f"{store.uri}: no plan there; run `python -m pipeline run --config RECIPE` first"
        )
    return plan


def ensure_plan(
    store: Store,
    inputs: dict[str, Any],
    build: Callable[[], PlanTables],
    form: Mapping[str, str],
    encoder: TextEncoderConfig,
) -> tuple[FrozenPlan, bool]:
    """The frozen plan of these inputs (`plan_inputs`), and whether it was made now.

    A plan with other inputs is replaced if no shard was made from it yet.

    Args:
        build: computes the tables; called only if there is no such plan.
        encoder: the text encoder; `plan.json` counts the prompts that it cuts or does not know.
        form: the entries `PROMPT_FORM` of `common.prompts`, which readers of shards must know.

    Raises:
        AttuneError: there are shards of a plan with other inputs (names both hashes and what
            differs), or of a plan that is gone and had other inputs or other audio files; or the
            encoder has too few positions.
    """
    plan_hash = hash_inputs(inputs)
    found = load_plan(store)
    if found is not None:
        if found.plan_hash == plan_hash:
            return found, False
        # Tars count too: a `retry` that was killed may have deleted every commit.
        if store.list("commits") or store.list("shards"):
            differing = differing_inputs(found.info["inputs"], inputs)
            raise AttuneError(
                f"{store.uri} holds shards of plan {found.plan_hash}, this recipe makes plan "
                f"{plan_hash}; differs: {'; '.join(differing[:6])}. Set another data_dir, restore "
                "what differs, or delete commits/ and shards/ there to encode everything again"
            )
    check_max_length(encoder)
    tables = build()
    if found is not None:
        # Until the new plan.json is written there is no plan, so a killed replacement leaves none.
        store.delete("plan/plan.json")
    return _freeze(store, tables, inputs, form, encoder)


def _freeze(
    store: Store,
    tables: PlanTables,
    inputs: dict[str, Any],
    form: Mapping[str, str],
    encoder: TextEncoderConfig,
) -> tuple[FrozenPlan, bool]:
    """Write the plan's files, `plan.json` last; False if another run was first.

    The first `plan.json` wins.  Every table carries the hash of its plan, so a run that lost to
    another recipe, or whose tables another run replaced, ends with an error.

    Raises:
        AttuneError: another run froze the plan of another recipe meanwhile, or there are shards of
            another plan, which is gone.
    """
    plan_hash = hash_inputs(inputs)
    clips_per_shard = inputs["pipeline"]["clips_per_shard"]
    if standing := _standing(store, plan_hash):
        return standing, False
    _check_commits(store, tables.plan, plan_hash, clips_per_shard)
    cache = TextCache(store, str(inputs["text_encoder_id"]))
    prompts, chunks = cache.assign_chunks(tables.plan, PROMPTS_PER_CHUNK)
    # A row group holds whole shards, so reading one shard takes a few thousand rows of memory.
    per_group = _shards_per_row_group(clips_per_shard) * clips_per_shard
    for name, table, row_group_size in (
        ("rejects", tables.rejects, CLIPS_PER_ROW_GROUP),
        ("prompts", prompts, PROMPTS_PER_CHUNK),
        ("plan", tables.plan.append_column("chunks", chunks), per_group),
    ):
        table = table.replace_schema_metadata({_HASH_KEY: plan_hash})
        _write_parquet(store, f"plan/{name}.parquet", table, row_group_size)
    info = {
        "plan_hash": plan_hash,
        "inputs": inputs,
        "n_planned": len(tables.plan),
        "n_shards": tables.n_shards,
        "n_refused": len(tables.rejects),
        "n_unique_prompts": len(prompts),
        "clips_per_shard": clips_per_shard,
        **form,
        "text_encoder": count_prompts(prompts["prompt"].combine_chunks(), encoder),
        "catalogs": {label: count.as_dict() for label, count in tables.counts.items()},
        "overlaps": tables.overlaps,
        "leakage": tables.leakage,
    }
    document = (json.dumps(info, indent=2, sort_keys=True) + "\n").encode()
    if not store.create("plan/plan.json", document):
        standing = _standing(store, plan_hash)
        if standing is None:
            raise AttuneError(f"{store.uri}: another run is planning there; run again after it")
        return standing, False
    return FrozenPlan(store, info), True


def _standing(store: Store, plan_hash: str) -> FrozenPlan | None:
    """The plan that another run froze while this one was planning."""
    standing = load_plan(store)
    if standing is not None and standing.plan_hash != plan_hash:
        raise AttuneError(
            f"{store.uri}: another run froze plan {standing.plan_hash} there meanwhile, this "
            f"recipe makes plan {plan_hash}; give each recipe a data_dir of its own"
        )
    return standing


def _check_commits(store: Store, plan: pa.Table, plan_hash: str, clips_per_shard: int) -> None:
    """Check that shards whose plan is gone are shards of the new plan.

    The plan depends on the audio files that were there, which `plan_hash` does not cover.

    Raises:
        AttuneError: a commit does not account for the new plan's rows.
    """
    ids = plan["sample_id"]
    for shard in sorted(committed_shards(store)):
        commit = read_commit(store, shard)
        if commit is None:
            continue
        planned = ids.slice(shard * clips_per_shard, clips_per_shard).to_pylist()
        try:
            if not planned:
                raise AttuneError(f"{commit_key(shard)} is of no shard of plan {plan_hash}")
            check_account([{"sample_id": key} for key in planned], commit, plan_hash)
        except AttuneError as error:
            raise AttuneError(
                f"{store.uri} holds shards of a plan that is gone, and this recipe with the audio "
                f"files that are there now makes another: {error}. Set another data_dir, restore "
                "plan/ (or recipe, catalogs and audio files as they were), or delete commits/ and "
                "summary.json to encode everything again"
            ) from error


def codec_settings(path: str) -> dict[str, Any]:
    """Content of a codec's `config.json`.

    Raises:
        AttuneError: there is no such codec, or the file is damaged.
    """
    file = resolve_codec(path) / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AttuneError(f"codec {path}: {file} is not readable: {one_line(error)}") from error
    if not isinstance(settings, dict):
        raise AttuneError(f"codec {path}: {file} is not a JSON object")
    return settings


def _shards_per_row_group(clips_per_shard: int) -> int:
    return max(1, CLIPS_PER_ROW_GROUP // clips_per_shard)


def _write_parquet(store: Store, key: str, table: pa.Table, row_group_size: int) -> None:
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "table.parquet"
        pq.write_table(table, path, row_group_size=row_group_size, compression="zstd")
        store.write(key, path)


def _file_sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AttuneError(f"{path}: cannot be read: {error.strerror}") from error
