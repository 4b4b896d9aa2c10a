"""A Ray cluster on this machine, each of its nodes started by a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from pipeline_process import kill_tree

RAY = str(Path(sys.executable).with_name("ray"))


class RayNodes:
    """A head, `nodes[0]`, and those that join it.

    Args:
        log: file for what the nodes say.
        cpus: of each node.
        environment: of their processes.
    """

    def __init__(self, log: Path, cpus: int = 1, environment: dict[str, str] | None = None) -> None:
        self.log, self.cpus = log, cpus
        # A head makes a token of its own as it starts, which whoever connects does not have.
        self.environment = {**(environment or os.environ), "RAY_AUTH_MODE": "disabled"}
        self.nodes: list[subprocess.Popen[str]] = []
        self.address = ""

    def start(self, *options: str) -> None:
        """Start the head; `options` of `ray start` are instead of no dashboard."""
        self.log.write_text("")
        options = options or ("--include-dashboard=false",)
        self._start("--head", "--port=0", "--disable-usage-stats", *options)
        self.address = self.read_log(r"--address='([\d.:]+)'")

    def add(self, *options: str) -> None:
        self._start(f"--address={self.address}", *options)

    def _start(self, *options: str) -> None:
        command = [RAY, "start", "--block", *options, f"--num-cpus={self.cpus}"]
        with self.log.open("a") as out:
            self.nodes.append(
                subprocess.Popen(
                    [*command, "--object-store-memory=100000000"], stdout=out,
                    stderr=subprocess.STDOUT, text=True, env=self.environment,
                    cwd=self.log.parent, start_new_session=True,
                )
            )  # fmt: skip

    def read_log(self, pattern: str) -> str:
        """Wait for a line in the log; returns what the pattern's group finds."""
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern, self.log.read_text())):
            assert self.nodes[-1].poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        return found.group(1)

    def kill(self, index: int = -1) -> None:
        kill_tree(self.nodes.pop(index))

    def stop(self) -> None:
        while self.nodes:
            self.kill()
