"""What processes agree on: python agreement_process.py OUT, under torchrun.

The first one takes twice as long as anybody waits for anybody; then the last one meets an error of
its own.  Each writes OUT/RANK with what it was told.
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

    told = "nothing"
    try:
        distributed.on_all(check, world)
    except AttuneError as error:
        told = str(error)
    (out / str(world.rank)).write_text(told)
    distributed.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
