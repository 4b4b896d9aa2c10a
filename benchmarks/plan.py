"""Planning AudioSet whole: two million rows from the list on disk to the plan in memory.

    python -m benchmarks.plan [--rows 2000000] [--segments FILE --class-labels FILE]

Time is reported as a multiple of what `csv.reader` alone takes over the same file, in the same run;
memory as the peak of all processes together.  Without `--segments` the list is generated after the
statistics of AudioSet's balanced list (see `write_segments`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

LABELS_PER_ROW = {1: 5498, 2: 8512, 3: 4781, 4: 1914, 5: 794, 6: 383, 7: 176, 8: 65, 9: 32, 10: 3}
"""Rows of the balanced list by number of labels."""
N_LABELS = 527
LABEL_SETS = 150_000
"""Different label sets to draw from, with weights 1 / (rank + 300)**1.5: of the first 22,160 rows
5,507 bring a new set; of the balanced list 5,561 do."""


def write_segments(folder: Path, rows: int, seed: int = 0) -> tuple[Path, Path]:
    """Write `segments.csv` and `class_labels_indices.csv` in AudioSet's form.

    Labels are as frequent as a power law has it, with "Music" (28% of rows) and "Speech" (26%) on
    top as in the balanced list; the other names are of one to four made-up words.
    """
    rng = np.random.default_rng(seed)
    syllables = ["ba", "do", "ki", "lu", "men", "ra", "sti", "ton", "vel", "wo"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(400)]
    names = ["Music", "Speech"] + [
        " ".join(rng.choice(words, rng.integers(1, 5))).capitalize() for _ in range(N_LABELS - 2)
    ]
    mids = [f"/m/0{i:05x}" for i in range(N_LABELS)]
    labels = folder / "class_labels_indices.csv"
    with labels.open("w") as file:
        file.write("index,mid,display_name\n")
        file.writelines(f'{i},{mid},"{names[i]}"\n' for i, mid in enumerate(mids))
    frequency = 1 / np.arange(1, N_LABELS + 1) ** 0.6
    frequency[:2] = 0
    frequency /= frequency.sum()
    sizes = rng.choice(
        list(LABELS_PER_ROW), LABEL_SETS, p=np.array([*LABELS_PER_ROW.values()]) / 22158
    )
    sets = []
    for size in sizes:
        top = [i for i, share in enumerate((0.28, 0.26)) if rng.random() < share][:size]
        others = rng.choice(N_LABELS, size - len(top), replace=False, p=frequency)
        sets.append(",".join(sorted(mids[i] for i in (*top, *others))))
    weight = 1 / (np.arange(LABEL_SETS) + 300) ** 1.5
    weight /= weight.sum()
    alphabet = np.frombuffer(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", "S1"
    )
    segments = folder / "segments.csv"
    with segments.open("w") as file:
        file.write("# Segments csv created Sun Mar  5 10:54:31 2017\n")
        file.write(f"# num_ytids={rows}, num_segs={rows}, num_unique_labels={N_LABELS}\n")
        file.write("# YTID, start_seconds, end_seconds, positive_labels\n")
        for first in range(0, rows, 100_000):
            n = min(100_000, rows - first)
            ids = rng.choice(alphabet, (n, 11)).view("S11").ravel().astype(str).tolist()
            start = (rng.integers(0, 60, n) * 10).tolist()
            which = rng.choice(LABEL_SETS, n, p=weight).tolist()
            file.writelines(
                f'{i}, {s}.000, {s + 10}.000, "{sets[w]}"\n'
                for i, s, w in zip(ids, start, which, strict=True)
            )
    return segments, labels


def time_reader(segments: Path) -> float:
    """Seconds that `csv.reader` takes over a file."""
    began = time.perf_counter()
    with segments.open(newline="") as file:
        deque(csv.reader(file), maxlen=0)
    return time.perf_counter() - began


def run(segments: Path, labels: Path, repeats: int = 3) -> dict[str, Any]:
    """Best of `repeats` each, taken in turns; every plan in a process of its own."""
    reader, planner = [], []
    for _ in range(repeats):
        reader.append(time_reader(segments))
        planner.append(_plan_in_child(segments, labels))
    best = min(planner, key=lambda one: one["seconds"])
    return {
        "rows": best["rows"],
        "accepted": best["accepted"],
        "csv_reader_s": round(min(reader), 3),
        "plan_s": round(best["seconds"], 3),
        "ratio": round(best["seconds"] / min(reader), 2),
        "peak_mb": max(one["peak_mb"] for one in planner),
    }


def _plan_in_child(segments: Path, labels: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.plan", "--child"]
    command += ["--segments", str(segments), "--class-labels", str(labels)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while child.poll() is None:
        peak = max(peak, _tree_bytes(child.pid))
        time.sleep(0.02)
    assert child.stdout is not None
    found: dict[str, Any] = json.loads(child.stdout.read())
    return found | {"peak_mb": peak // 2**20}


def _tree_bytes(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_tree_bytes(int(one)) for one in below)


def _plan(segments: Path, labels: Path) -> dict[str, Any]:
    from pipeline.catalogs.audioset import AudioSet
    from pipeline.plan.decide import build_plan
    from pipeline.text.captions import TextRules

    catalog = AudioSet(segments=segments, class_labels=labels).without_audio()
    began = time.perf_counter()
    tables = build_plan([catalog], rules=TextRules(prompts="lemmas"), clips_per_shard=512, seed=0)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "rows": tables.counts["audioset"].read,
        "accepted": len(tables.plan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--segments", type=Path)
    parser.add_argument("--class-labels", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_plan(options.segments, options.class_labels)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        segments, labels = options.segments, options.class_labels
        if segments is None:
            segments, labels = write_segments(Path(scratch), options.rows)
        print(json.dumps(run(segments, labels), indent=2))


if __name__ == "__main__":
    main()
