"""Chaos: SIGKILL drivers, workers, raylets and a whole node; the result is that of a calm run.

pytest tests/integration/test_pipeline_chaos.py -m heavy -s     # prints what it did
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pipeline_process import below, content, finish, kill_tree, run_to_end, send, start_pipeline
from ray_nodes import RayNodes

from common.storage import open_store
from pipeline.inspect.verify import verify_shards
from pipeline.repair.gc import collect_garbage

KILLS = 25
CLIPS = 126
PER_SHARD = 3
"""44 shards."""
DEADLINE_S = 1500.0


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """126 clips that take a worker a while each, and six planted bad files."""
    root = tmp_path / "corpus"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = [("file_name", "text")]
    for i in range(CLIPS):
        t = np.arange(16_000 * 20) / 16_000
        wave = 0.4 * np.sin(2 * np.pi * (100 + 9 * i) * t) + 0.02 * rng.standard_normal(t.size)
        soundfile.write(root / f"{i:03d}.wav", wave, 16_000)
        rows.append((f"{i:03d}.wav", f"a tone of kind {'abcdefghij'[i % 10]}"))
    soundfile.write(root / "silent.wav", np.zeros(32_000), 16_000)
    (root / "zero.wav").write_bytes(b"")
    (root / "page.wav").write_text("<html></html>" * 30)
    (root / "cut.wav").write_bytes((root / "000.wav").read_bytes()[:40_000])
    soundfile.write(root / "nan.wav", np.full(16_000, np.nan), 16_000, "FLOAT")
    soundfile.write(root / "short.wav", wave[:900], 16_000)
    rows += [
        (f"{name}.wav", "broken") for name in ("silent", "zero", "page", "cut", "nan", "short")
    ]
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """Two nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = RayNodes(tmp_path / "ray.log")
    try:
        made.start()
        made.add()
        yield made
    finally:
        made.stop()


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """All drivers that the test started; those that still run at its end are killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for driver in started:
        kill_tree(driver)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_whatever_dies_the_manifest_is_that_of_a_calm_run(
    corpus: Path,
    recipe_text: Callable[..., str],
    cluster: RayNodes,
    drivers: list[subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"

    def write_recipe(data: Path) -> str:
        text = recipe_text(data, f"dataset: audiofolder, root: {corpus}")
        text = text.replace("clips_per_shard: 4", f"clips_per_shard: {PER_SHARD}")
        recipe.write_text(text.replace("workers: 1", "workers: 2"))
        return str(recipe)

    began = time.monotonic()
    run_to_end("run", "--config", write_recipe(calm))
    calm_s = time.monotonic() - began

    write_recipe(shaken)
    rng = random.Random(0)
    done: Counter[str] = Counter()
    taken_back = 0
    count = tmp_path / "count"
    script = ["counting_pipeline.py", str(count)]
    began = time.monotonic()
    driver: subprocess.Popen[str] | None = None
    while sum(done.values()) < KILLS:
        assert time.monotonic() - began < DEADLINE_S, done
        if driver is None or driver.poll() is not None:
            if (shaken / "summary.json").exists():
                # Finished before enough had died: take a few commits back and go on.
                (shaken / "summary.json").unlink()
                for path in rng.sample(sorted((shaken / "commits").glob("*.json")), 12):
                    taken_back += len(json.loads(path.read_bytes())["samples"])
                    path.unlink()
            _collect(driver)
            driver = start_pipeline(
                "run", "--config", str(recipe),
                ray_address=cluster.address, script=script,
            )  # fmt: skip
            drivers.append(driver)
        # Something gets done between two deaths, or it would only ever start: one more shard.
        known, patience = _commits(shaken), time.monotonic() + 60
        while driver.poll() is None and _commits(shaken) <= known and time.monotonic() < patience:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 1.5))
        victim = rng.choices(
            ["worker", "driver", "raylet", "node", "head"], weights=[10, 5, 3, 3, 1]
        )[0]
        if victim == "driver":
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                done[victim] += 1
        elif victim == "worker":
            workers = [
                pid
                for node in cluster.nodes
                for pid in below(node.pid)
                # A node dies with its agents: that is another victim.
                if _title(pid, "ray::") and not _title(pid, "Agent")
            ]
            encoders = [pid for pid in workers if _title(pid, "ray::EncodeWorker")]
            if encoders or workers:
                send(rng.choice(encoders or workers), signal.SIGKILL)
                done[victim] += 1
        elif victim == "raylet" and len(cluster.nodes) > 1:
            raylets = [pid for pid in below(cluster.nodes[1].pid) if _title(pid, "raylet")]
            if raylets:
                send(raylets[0], signal.SIGKILL)
                done[victim] += 1
                time.sleep(1)
            cluster.kill(1)
            cluster.add()
        elif victim == "node":
            cluster.kill(1)
            done[victim] += 1
            time.sleep(rng.uniform(0, 3))
            cluster.add()
        elif victim == "head":
            cluster.stop()
            done[victim] += 1
            with suppress(ProcessLookupError):  # it would wait for the cluster a long time
                os.killpg(driver.pid, signal.SIGKILL)
            cluster.start()
            cluster.add()
    _collect(driver)
    for _ in range(5):  # a driver that lost its cluster, or parked a shard, is started again
        if (shaken / "summary.json").exists():
            break
        drivers.append(
            start_pipeline(
                "run", "--config", str(recipe), ray_address=cluster.address, script=script
            )
        )
        finish(drivers[-1], 300)
    shaken_s = time.monotonic() - began

    left, right = content(shaken), content(calm)
    orphans = sorted(left.keys() - right.keys())
    encoded = count.stat().st_size
    needed = CLIPS + taken_back
    print(
        f"\n{sum(done.values())} kills ({dict(done)}), {len(drivers)} drivers, {shaken_s:.0f} s "
        f"against {calm_s:.0f} s undisturbed; {encoded} clips encoded where {needed} had to be "
        f"({encoded - needed} again); {len(orphans)} objects that no commit names"
    )
    assert encoded >= needed
    assert sum(name.startswith("commits/") for name in right) == (CLIPS + 6) // PER_SHARD == 44
    assert left["manifest.parquet"] == right["manifest.parquet"]
    # Tars by their hashes, commits, caches, summary: everything there is, byte for byte.
    assert {name: left.get(name) for name in right} == right
    # NAME#1 is a file that was killed before its rename.
    left_over = re.compile(r"(shards|text|poison)/.+|.+#\d+")
    assert all(map(left_over.fullmatch, orphans)), orphans
    store = open_store(shaken)
    assert verify_shards(store)["problems"] == []
    # No orphan survives; nothing else goes.
    collected = collect_garbage(store, 0.0, delete=True)
    assert {item["key"] for item in collected["items"]} >= set(orphans)
    assert content(shaken) == right
    assert verify_shards(store)["problems"] == []


def _collect(driver: subprocess.Popen[str] | None) -> None:
    if driver is not None and driver.stdout is not None and not driver.stdout.closed:
        finish(driver, 300)


def _commits(data: Path) -> int:
    return len(list((data / "commits").glob("*.json")))


def _title(pid: int, text: str) -> bool:
    try:
        return text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
