"""`ray job submit`: a run as a job on a cluster that is only reached through its dashboard."""

from __future__ import annotations

import csv
import fnmatch
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from pipeline_process import below, kill_tree, run_to_end, send
from ray_nodes import RAY, RayNodes

from common.storage import open_store

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = [".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split())]
RATE = 16_000


class Cluster(RayNodes):
    """A head with a dashboard and a second node, of one CPU each, without the repository.

    What a job needs must come with it: the nodes' own `common` and `pipeline` refuse to be
    imported, they know no bucket, and neither looks into the other's temporary folder.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.scratch = scratch
        self.jobs: list[subprocess.Popen[str]] = []
        environment = {
            name: value
            for name, value in os.environ.items()
            if name != "RAY_ADDRESS" and not name.startswith("AWS_")
        }
        for package in ("common", "pipeline"):
            module = folder / "bare" / package / "__init__.py"
            module.parent.mkdir(parents=True)
            module.write_text("raise ImportError('not the code that came with the job')\n")
        nodes = environment | {
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(scratch),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "bare"),
        }
        super().__init__(scratch / "ray.log", environment=nodes)
        self.job_environment = environment | {"RAY_AUTH_MODE": "disabled"}

    def start_both(self) -> None:
        port, other = _free_ports(2)
        self.start(
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
            f"--ray-client-server-port={other}", *self._of_its_own("head"),
        )  # fmt: skip
        self.dashboard = f"http://127.0.0.1:{port}"
        self.add(*self._of_its_own("second"))
        self.read_log(r"Ray runtime started(?s:.)*(Ray runtime started)")

    def _of_its_own(self, name: str) -> list[str]:
        return [f"--temp-dir={self.scratch / name}", "--dashboard-agent-listen-port=0"]

    def submit(self, *arguments: str) -> subprocess.Popen[str]:
        """`pipeline run ARGUMENTS` as the README has it; `AWS_*` go along."""
        variables = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        command = [
            RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ".",
            "--runtime-env-json", json.dumps({"env_vars": variables}),
            "--", "python", "-m", "pipeline", "run", *arguments,
        ]  # fmt: skip
        job = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self.job_environment, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        self.jobs.append(job)
        return job

    def tasks(self, name: str) -> list[dict[str, str]]:
        """Ray's rows on the tasks of this name."""
        command = [
            RAY, "list", "tasks", "--address", self.dashboard, "--filter", f"name={name}",
            "--limit", "1000", "--format", "json",
        ]  # fmt: skip
        found = subprocess.check_output(command, env=self.job_environment, text=True, timeout=60)
        return json.loads(found)

    def stop(self) -> None:
        for job in self.jobs:
            with job:
                kill_tree(job)
        super().stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # A short path, because it holds sockets, whose paths have a limit.
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        made = Cluster(tmp_path_factory.mktemp("cluster"), Path(scratch))
        try:
            made.start_both()
            yield made
        finally:
            made.stop()


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    """12 clips and a silent one in ESC-50's layout."""
    root = tmp_path / "ESC-50-master"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    rows = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    t = np.arange(RATE * 5) / RATE
    for i in range(13):
        wave = 0.4 * np.sin(2 * np.pi * (100 + 9 * i) * t) + 0.02 * rng.standard_normal(t.size)
        fold, kind = str(1 + i % 5), ("dog", "rain", "sea_waves")[i % 3]
        name = f"{fold}-{i}-A-{i % 3}.wav"
        soundfile.write(root / "audio" / name, wave * (i < 12), RATE)
        rows.append((name, fold, str(i % 3), kind, "True", str(i), "A"))
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_a_job_on_two_nodes_gives_the_manifest_of_an_ordinary_run(
    cluster: Cluster, esc50: Path, s3_bucket: str, tmp_path: Path
) -> None:
    url = f"{s3_bucket}/attune/data"
    recipe = [
        "--config", "configs/esc10.yaml", f"root={esc50}", "codec.path=builtin:sfx-small",
        "pipeline.clips_per_shard=1", "pipeline.workers=2",
    ]  # fmt: skip
    before = _files(ROOT)
    job = cluster.submit(*recipe, f"data_dir={url}")
    copy = _see_it_run(cluster, job)
    after = _files(ROOT)
    printed = job.communicate(timeout=240)[0]
    assert job.returncode == 0 and "done: 12 clips" in printed, printed

    # It ran in a copy of the repository, which someone may be at work on, without what is ignored.
    assert copy.is_relative_to(cluster.scratch / "head") and "runtime_resources" in copy.parts
    files = _files(copy)
    assert "pipeline/run.py" in files and before & after <= files <= before | after
    assert not [path for path in copy.iterdir() if _is_left_out(path.name)]

    # Both nodes encoded, and have no code but what came along.
    shards = cluster.tasks("EncodeWorker.encode_shard")
    assert len({shard["node_id"] for shard in shards if shard["state"] == "FINISHED"}) == 2, shards

    run_to_end("run", *recipe, f"data_dir={tmp_path / 'data'}")
    store = open_store(url)
    for name in ("manifest.parquet", "quarantine.parquet", "shards.json"):
        assert store.read(name) == (tmp_path / "data" / name).read_bytes()

    job = cluster.submit(*recipe, f"data_dir={url}")
    printed = job.communicate(timeout=240)[0]
    assert job.returncode == 0 and "nothing to do" in printed, printed


def test_a_mistake_fails_the_job_and_is_printed_where_it_was_submitted(cluster: Cluster) -> None:
    job = cluster.submit("--config", "configs/esc10.yaml", "root=/data", "pipeline.worker=2")
    printed = job.communicate(timeout=240)[0]
    assert job.returncode == 1, printed
    error = "error: config configs/esc10.yaml: unknown key 'pipeline.worker'; did you mean"
    assert re.search(f"^{re.escape(error)}", printed, re.MULTILINE), printed
    assert "Traceback" not in printed


def _see_it_run(cluster: Cluster, job: subprocess.Popen[str]) -> Path:
    """The working directory of the job's process, once a worker on each node is ready.

    The first worker is stopped until the second is there: so short a run would be over before.
    """
    folder: Path | None = None
    held: dict[int, int] = {}
    deadline = time.monotonic() + 240
    while job.poll() is None and time.monotonic() < deadline:
        for i, node in enumerate(cluster.nodes):
            for pid in below(node.pid):
                with suppress(OSError):  # gone meanwhile
                    process = Path(f"/proc/{pid}")
                    title = (process / "cmdline").read_bytes()
                    if b"\0-m\0pipeline\0run\0" in title:
                        folder = (process / "cwd").readlink()
                    ready = title.startswith(b"ray::EncodeWorker") and b"__init__" not in title
                    if ready and i not in held:
                        held[i] = pid
                        send(pid, signal.SIGSTOP)
        if len(held) == 2:
            for pid in held.values():
                send(pid, signal.SIGCONT)
            assert folder is not None
            return folder
        time.sleep(0.02)
    job.terminate()
    raise AssertionError(f"workers only on nodes {sorted(held)}: {job.communicate()[0]}")


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _is_left_out(name: str) -> bool:
    """Whether files and folders of this name stay behind: git's own, and what it ignores."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)


def _files(root: Path) -> set[str]:
    """The paths of all files below a folder that should be in the package."""
    found = set()
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _is_left_out(name)]
        paths = [Path(folder, name) for name in files if not _is_left_out(name)]
        found |= {str(path.relative_to(root)) for path in paths}
    return found
