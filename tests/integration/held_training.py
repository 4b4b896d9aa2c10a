"""`python -m training lm` that takes its time once the log has a given step.

python held_training.py STEP ARGUMENTS...

A signal meant for that step then comes long before the end, however late its sender is.  What
torchrun restarts runs at full speed: it has had its signal.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from common.cli import run_app
from training.cli import app
from training.run.log import Progress

PAUSE_S = 0.5


def hold(step: int) -> None:
    """Pause after each row of the log from this step on."""
    log = Progress.log

    def slowly(self: Progress, row: dict[str, Any], say: bool = True) -> None:
        log(self, row, say)
        if row["step"] >= step:
            time.sleep(PAUSE_S)

    Progress.log = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    step = int(sys.argv.pop(1))
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        hold(step)
    run_app(app)
