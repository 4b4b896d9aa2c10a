"""`shards verify` on spoiled data: every planted fault is found and named."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import AttuneError
from common.schema import MANIFEST
from common.shards import MEMBERS
from common.storage import open_store
from pipeline.inspect.shards import list_shards, show_sample
from pipeline.inspect.verify import verify_shards

SHARD = 2
SHARD_FILE = f"shards/{SHARD:06d}-"


def commit(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / f"commits/{SHARD:06d}.json").read_text())
    return found


def rewrite_commit(data: Path, **changes: object) -> None:
    (data / f"commits/{SHARD:06d}.json").write_text(json.dumps(commit(data) | changes))


def rewrite_manifest(data: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    table = pq.read_table(data / "manifest.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), data / "manifest.parquet")


def in_tar(data: Path, change: Callable[[bytearray, int], object]) -> str:
    """Spoil the tar of SHARD at its second sample: `change(bytes, offset)`.

    Returns:
        The id of that sample.
    """
    sample = commit(data)["samples"][1]
    path = data / commit(data)["shard_key"]
    content = bytearray(path.read_bytes())
    change(content, sample["offset"])
    path.write_bytes(content)
    return str(sample["sample_id"])


def out_of_range(content: bytearray, offset: int) -> None:
    content[offset + 512 + 128 : offset + 512 + 130] = np.int16(99).tobytes()


def rename_member(content: bytearray, offset: int) -> None:
    content[offset : offset + 4] = b"xxxx"


def test_a_sound_folder_has_no_problems(finished: Path) -> None:
    (finished / "shards" / "000000-000000000000.tar").write_bytes(b"left by a lost race")
    found = verify_shards(open_store(finished))
    assert found["problems"] == []
    assert (found["shards"], found["samples"]) == (8, 24)
    assert found["orphans"] == ["shards/000000-000000000000.tar"]


@pytest.mark.parametrize("lost", [1, 7, 24])
def test_a_manifest_that_lacks_rows_is_still_compared(finished: Path, lost: int) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        del rows[:lost]
        if rows:
            rows[-1]["offset"] = 7

    rewrite_manifest(finished, change)
    problems = verify_shards(open_store(finished))["problems"]
    found = Counter(problem["problem"].split(",")[0] for problem in problems)
    assert found == {"is in a commit but has no row": lost} | (
        {"offset is 7": 1} if lost < 24 else {}
    )


Arrays = dict[str, Any]


def remake(data: Path, change: Callable[[list[Arrays]], object]) -> str:
    """Write the tar of SHARD again with other content, and everything that names the tar with it.

    Hash, name, spans, manifest and shard list are right again: only reading the content finds it.
    `change` gets per sample `codes`, `record`, `text`, and may add `order`.

    Returns:
        The id of the second sample.
    """
    old = commit(data)
    samples: list[Arrays] = []
    with tarfile.open(data / old["shard_key"]) as tar:
        for listed in old["samples"]:
            codes, record, text = (
                tar.extractfile(f"{listed['sample_id']}.{extension}").read()  # type: ignore[union-attr]
                for extension in MEMBERS
            )
            samples.append(
                {
                    "codes": np.load(io.BytesIO(codes)),
                    "record": json.loads(record),
                    "text": np.load(io.BytesIO(text)),
                }
            )
    change(samples)
    buffer, spans = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for listed, sample in zip(old["samples"], samples, strict=True):
            start = tar.offset
            contents = {
                "codes.npy": npy(sample["codes"]),
                "json": json.dumps(sample["record"]).encode(),
                "text.npy": npy(sample["text"]),
            }
            for extension in sample.get("order", MEMBERS):
                member = tarfile.TarInfo(f"{listed['sample_id']}.{extension}")
                member.size = len(contents[extension])
                tar.addfile(member, io.BytesIO(contents[extension]))
            spans.append({"offset": start, "length": tar.offset - start})
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    key = f"shards/{SHARD:06d}-{digest[:12]}.tar"
    (data / old["shard_key"]).unlink()
    (data / key).write_bytes(content)
    listing = [sample | span for sample, span in zip(old["samples"], spans, strict=True)]
    rewrite_commit(data, shard_key=key, sha256=digest, bytes=len(content), samples=listing)
    where = {sample["sample_id"]: sample | {"shard_key": key} for sample in listing}
    rewrite_manifest(
        data,
        lambda rows: [
            row.update({k: v for k, v in where[row["sample_id"]].items() if k in MANIFEST.names})
            for row in rows
            if row["sample_id"] in where
        ],
    )
    rewrite_shard_list(data, SHARD_ENTRY, url=key, sha256=digest, filesize=len(content))
    return str(old["samples"][1]["sample_id"])


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


SHARD_ENTRY = 2
"""Index of SHARD in `shards.json`."""


def rewrite_shard_list(data: Path, entry: int, **changes: object) -> str:
    index = json.loads((data / "shards.json").read_text())
    assert index["shardlist"][entry]["url"].startswith(f"shards/{SHARD:06d}-")
    index["shardlist"][entry] |= changes
    (data / "shards.json").write_text(json.dumps(index))
    return f"shards/{SHARD:06d}-"


def rewrite_quarantine(data: Path, change: Callable[[list[dict[str, Any]]], object]) -> str:
    """Change the rows; returns the sample id of the second."""
    table = pq.read_table(data / "quarantine.parquet")
    rows = table.to_pylist()
    sample_id = str(rows[1]["sample_id"])
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), data / "quarantine.parquet")
    return sample_id


def manifest_row(data: Path, change: Callable[[list[dict[str, Any]], int], object]) -> str:
    """Spoil the manifest at the second sample of SHARD; returns the id of the sample."""
    sample_id = str(commit(data)["samples"][1]["sample_id"])

    def find(rows: list[dict[str, Any]]) -> None:
        change(rows, next(i for i, row in enumerate(rows) if row["sample_id"] == sample_id))

    rewrite_manifest(data, find)
    return sample_id


def second(**changes: Callable[[Any], Any]) -> Callable[[Path], str]:
    """Write the tar again with parts of its second sample changed."""

    def change(samples: list[Arrays]) -> None:
        for name, function in changes.items():
            samples[1][name] = function(samples[1].get(name))

    return lambda data: remake(data, change)


def edited(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: record | changes


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[0, -1] = value
        return array

    return change


def swap_text(samples: list[Arrays]) -> None:
    """Exchange the states of two samples of equal token counts."""
    by_count: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        by_count.setdefault(tuple(sample["record"]["prompt_tokens"]), []).append(i)
    texts = [sample["text"] for sample in samples]
    i, j = next(
        (i, j) for same in by_count.values() for i in same for j in same
        if i < j and not np.array_equal(texts[i], texts[j])
    )  # fmt: skip
    samples[i]["text"], samples[j]["text"] = texts[j], texts[i]


def swap_members(data: Path) -> str:
    """Exchange the blocks of the first two samples in the file; its name stays."""
    first, other = commit(data)["samples"][:2]
    path = data / commit(data)["shard_key"]
    content = path.read_bytes()
    end = other["offset"] + other["length"]
    path.write_bytes(content[other["offset"] : end] + content[: other["offset"]] + content[end:])
    return str(first["sample_id"])


def name_another_tar(data: Path) -> str:
    other = json.loads((data / "commits/000003.json").read_text())
    rewrite_commit(data, **{name: other[name] for name in ("shard_key", "sha256", "bytes")})
    return f"commits/{SHARD:06d}.json"


def narrow_offsets(data: Path) -> str:
    table = pq.read_table(data / "manifest.parquet")
    place = table.schema.get_field_index("offset")
    table = table.set_column(place, "offset", table["offset"].cast(pa.int32()))
    pq.write_table(table, data / "manifest.parquet")
    return "manifest.parquet"


def tear(data: Path, name: str) -> str:
    whole = (data / name).read_bytes()
    (data / name).write_bytes(whole[: len(whole) // 2])
    return name


def rewrite_summary(data: Path, **changes: object) -> str:
    summary = json.loads((data / "summary.json").read_text())
    (data / "summary.json").write_text(json.dumps(summary | changes))
    return "summary.json"


# What spoils a folder (it returns the sample, shard or file that must be named), and the message.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "code out of range": (lambda d: in_tar(d, out_of_range), "codes range over"),
    "renamed member": (lambda d: in_tar(d, rename_member), "expected members|not a tar"),
    "tar gone": (lambda d: (d / commit(d)["shard_key"]).unlink(), "is missing"),
    "commit gone": (lambda d: (d / f"commits/{SHARD:06d}.json").unlink(), "is missing"),
    "commit torn": (lambda d: (d / f"commits/{SHARD:06d}.json").write_text("{"), "not JSON"),
    "commit of another shard": (lambda d: rewrite_commit(d, shard=5), "is about shard 5"),
    "commit of another plan": (
        lambda d: rewrite_commit(d, plan_hash="0") or f"commits/{SHARD:06d}.json", "is of plan 0",
    ),
    "commit loses a sample": (
        lambda d: rewrite_commit(d, samples=commit(d)["samples"][1:]), "neither committed",
    ),
    "commit without a key": (
        lambda d: (d / f"commits/{SHARD:06d}.json").write_text('{"shard": 2}'), "no bytes",
    ),
    "commit of a sample without a length": (
        lambda d: rewrite_commit(d, samples=[{"sample_id": "a"}]), "samples has no duration_s",
    ),
    "summary torn": (lambda d: (d / "summary.json").write_text("{"), "damaged: no codebook_size"),
    "plan's table damaged": (
        lambda d: (d / "plan/plan.parquet").write_bytes(b"PAR1" + bytes(99)), "is damaged",
    ),
    "plan's table gone": (lambda d: (d / "plan/plan.parquet").unlink(), "is missing"),
    "commit past the plan": (
        lambda d: shutil.copy(d / "commits/000000.json", d / "commits/000099.json"), "8 shards",
    ),
    "manifest gone": (lambda d: (d / "manifest.parquet").unlink(), "is missing"),
    "manifest not parquet": (lambda d: (d / "manifest.parquet").write_bytes(b"x" * 99), "readable"),
    "manifest rows swapped": (lambda d: rewrite_manifest(d, lambda rows: rows.reverse()), "order"),
    "manifest row twice": (
        lambda d: manifest_row(d, lambda rows, i: rows.insert(i, rows[i])), "more than one row",
    ),
    "summary count wrong": (lambda d: rewrite_summary(d, n_samples=25), "n_samples is 25"),
    "bit flip under its old name": (
        lambda d: in_tar(d, lambda c, o: c.__setitem__(o + 700, c[o + 700] ^ 1)) and SHARD_FILE,
        "has sha256",
    ),
    "tar cut short in a sample": (
        lambda d: in_tar(d, lambda c, o: c.__delitem__(slice(o + 600, None))) and SHARD_FILE,
        "bytes, its commit says",
    ),
    "samples swapped in the tar": (swap_members, "expected members"),
    "members of a sample swapped": (second(order=lambda _: MEMBERS[::-1]), "expected members"),
    "a member missing": (second(order=lambda _: MEMBERS[:2]), "expected members"),
    "code too high": (second(codes=put(32)), r"codes range over 0\.\.32, expected 0\.\.31"),
    "code below zero": (second(codes=put(-1)), r"codes range over -1\.\."),
    "codes of another dtype": (second(codes=lambda a: a.astype(np.int32)), "found int32"),
    "codes big-endian": (second(codes=lambda a: a.astype(">i2")), "found >i2"),
    "a codebook short": (second(codes=lambda a: a[:3]), r"codes have shape \(3, "),
    "a frame short": (second(codes=lambda a: a[:, 1:]), "codes have shape"),
    "codes flat": (second(codes=lambda a: a.ravel()), "expected int16"),
    "text of another dtype": (second(text=lambda a: a.astype(np.float32)), "found float32"),
    "text with NaN": (second(text=put(np.nan)), "not finite"),
    "text infinite": (second(text=put(np.inf)), "not finite"),
    "text of another prompt": (lambda d: remake(d, swap_text) and SHARD_FILE, "the text cache"),
    "text one bit off": (second(text=put(0.125)), "are not those in the text cache"),
    "a text state short": (second(text=lambda a: a[1:]), "states for prompts of"),
    "token counts that are no numbers": (
        second(record=edited(prompt_tokens=["x"])), "unsupported operand|states for prompts",
    ),
    "token counts of another sum": (second(record=edited(prompt_tokens=[99])), "tokens"),
    "token counts negative": (second(record=edited(prompt_tokens=[4, -1])), "prompt|states|split"),
    "record of another sample": (second(record=edited(sample_id="0" * 32)), 'sample_id is "0+"'),
    "record with another prompt": (second(record=edited(prompts=["cat"])), "prompts is"),
    "record with another split": (second(record=edited(split="valid")), "split is"),
    "record with another licence": (
        second(record=edited(license="CC0")), 'license is "CC0", plan and commits say null',
    ),
    "record with another source": (second(record=edited(source_sample_rate=8)), "source_sample_r"),
    "manifest row missing": (
        lambda d: manifest_row(d, lambda rows, i: rows.pop(i)), "in a commit but has no row",
    ),
    "manifest row extra": (
        lambda d: manifest_row(d, lambda rows, i: rows.append(rows[i] | {"sample_id": "f" * 32}))
        and "f" * 32,
        "is in no commit",
    ),
    "manifest offset wrong": (
        lambda d: manifest_row(d, lambda rows, i: rows[i].update(offset=512)), "offset is 512",
    ),
    "manifest position wrong": (
        lambda d: manifest_row(d, lambda rows, i: rows[i].update(position=77)), "position is 77",
    ),
    "manifest of another codec": (
        lambda d: manifest_row(d, lambda rows, i: rows[i].update(codec_id="0")), 'codec_id is "0"',
    ),
    "shards.json with another count": (
        lambda d: rewrite_shard_list(d, SHARD_ENTRY, nsamples=99), "nsamples is 99",
    ),
    "shards.json with another hash": (
        lambda d: rewrite_shard_list(d, SHARD_ENTRY, sha256="0" * 64), "sha256 is",
    ),
    "shards.json with another tar": (
        lambda d: rewrite_shard_list(d, SHARD_ENTRY, url="shards/000002-0.tar"), "is in no commit",
    ),
    "shards.json torn": (lambda d: tear(d, "shards.json"), "is damaged"),
    "shards.json gone": (
        lambda d: (d / "shards.json").unlink() or "shards.json", "is missing",
    ),
    "quarantine torn": (lambda d: tear(d, "quarantine.parquet"), "is not readable"),
    "quarantine gone": (
        lambda d: (d / "quarantine.parquet").unlink() or "quarantine.parquet", "is missing",
    ),
    "quarantine row missing": (
        lambda d: rewrite_quarantine(d, lambda rows: rows.pop(1)), "in a commit but has no row",
    ),
    "quarantine row extra": (
        lambda d: rewrite_quarantine(d, lambda rows: rows.append(rows[1] | {"sample_id": "f" * 32}))
        and "f" * 32,
        "is in no commit",
    ),
    "quarantine row twice": (
        lambda d: rewrite_quarantine(d, lambda rows: rows.append(rows[1]))
        and "quarantine.parquet",
        "more than one row",
    ),
    "quarantine with another reason": (
        lambda d: rewrite_quarantine(d, lambda rows: rows[1].update(reason="silly")), "reason is",
    ),
    "commit naming another tar": (name_another_tar, "by its shard and sha256 it must be"),
    "more in a tar than its commit names": (
        lambda d: in_tar(d, lambda c, o: c.extend(b"x" * 512)) and SHARD_FILE,
        "holds more than its commit names",
    ),
    "a column of another type": (narrow_offsets, "offset is .*int32.* say .*int64"),
    "text cache torn": (
        lambda d: tear(d, next(d.glob("text/*/*.parquet")).relative_to(d).as_posix()) and "text/",
        "cannot be read",
    ),
    "summary with other hours": (lambda d: rewrite_summary(d, hours=9.0), "hours is 9.0"),
    "summary with other reasons": (
        lambda d: rewrite_summary(d, rejected_by_reason={}), "rejected_by_reason is",
    ),
}  # fmt: skip


def named_in(problem: dict[str, str]) -> str:
    return " ".join(problem[key] for key in ("where", "sample_id", "problem"))


def test_writing_a_shard_again_plants_no_fault_by_itself(finished: Path) -> None:
    remake(finished, lambda samples: None)
    assert verify_shards(open_store(finished))["problems"] == []
    shutil.rmtree(finished / "text")  # a cache may go
    assert verify_shards(open_store(finished))["problems"] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(finished: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    culprit = spoil(finished)
    culprit = culprit if isinstance(culprit, str) else ""
    problems = verify_shards(open_store(finished))["problems"]
    assert any(
        re.search(culprit, named_in(problem)) and re.search(message, problem["problem"])
        for problem in problems
    ), problems
    if fault == "code out of range":  # nor is another sample blamed
        assert {p["sample_id"] for p in problems if p["sample_id"]} == {culprit}


def test_no_flipped_bit_escapes_or_ends_the_check_early(finished: Path) -> None:
    rng = np.random.default_rng(0)
    path = finished / commit(finished)["shard_key"]
    whole = path.read_bytes()
    # Half of them in the first member's headers, where parsing goes wrong in the most ways.
    places = [*rng.integers(0, 700, 30), *rng.integers(0, len(whole), 30)]
    for place in places:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        problems = verify_shards(open_store(finished))["problems"]
        assert any(path.name in problem["where"] for problem in problems), place


def test_shards_and_samples_are_listed(finished: Path) -> None:
    store = open_store(finished)
    rows = list_shards(store)
    assert sum(row["clips"] for row in rows) == 24
    assert sum(row["refused"] for row in rows) == 6
    sample_id = commit(finished)["samples"][0]["sample_id"]
    found = show_sample(store, sample_id[:12])
    assert found["record"]["sample_id"] == sample_id
    assert found["codes_shape"][0] == 4
    with pytest.raises(AttuneError, match="24 samples"):
        show_sample(store, "")
