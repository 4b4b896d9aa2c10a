"""Processes that wait for each other and share an error: agreement_process.py OUT, by torchrun.

The first process takes twice as long as the time limit of a collective call; then the last one has
an error.  Each process writes the error that it got to OUT/RANK.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path

from common.errors import AttuneError
from training import distributed

TIMEOUT_S = 4


def main(out: Path) -> None:
    distributed.TIMEOUT = timedelta(seconds=TIMEOUT_S)
    world = distributed.start(1)
    if world.is_first:
        time.sleep(2 * TIMEOUT_S)
    distributed.wait_patiently(world)

    def check() -> None:
        if world.rank == world.size - 1:
            raise AttuneError("no room here")

    said = "nothing"
    try:
        distributed.on_all(check, world)
    except AttuneError as error:
        said = str(error)
    (out / str(world.rank)).write_text(said)
    distributed.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
