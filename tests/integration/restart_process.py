"""A process of two, the first of which dies once: python restart_process.py OUT, under torchrun.

The other process is busy then, so that its launcher restarts it before it has failed.
OUT/RANK.starts gets the launcher's count of restarts at each start.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from training.distributed import leave, start, sum_on_host


def main(out: Path) -> None:
    world = start(1)
    with (out / f"{world.rank}.starts").open("a") as starts:
        starts.write(os.environ["TORCHELASTIC_RESTART_COUNT"] + "\n")
    died = out / "died"
    for step in range(4):
        time.sleep(0.5 if world.is_first else 4)
        if world.is_first and step == 1 and not died.exists():
            died.touch()
            os._exit(9)
        sum_on_host([step], world)
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
