"""Trains a recipe twice: undisturbed as run `whole`, and as run `killed` with SIGKILLs between.

python killed_process.py RECIPE STEP[,STEP...] [OVERRIDE ...]

Each attempt is a child of its own, forked where everything is imported and nothing has begun; it is
killed at a random moment once its log has the given step.  Until `AT_SPEED` steps later the child
runs at full speed, so that a kill may hit anything.  After that it is slowed down, so that it has
not ended even if this process gets no CPU for a while.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from held_training import hold

from common.config import Recipe, load_recipe
from training.train import train

AT_SPEED = 4


def main(path: str, steps: list[int], overrides: list[str]) -> None:
    whole = load_recipe(path, [*overrides, "lm.run=whole"])
    if os.waitpid(_child(whole), 0)[1]:
        sys.exit("the undisturbed run failed")
    recipe = load_recipe(path, [*overrides, "lm.run=killed"])
    log = Path(recipe.run_dir) / "killed" / "log.jsonl"
    for step in steps:
        pid = _child(recipe, hold_from=step + AT_SPEED)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if log.is_file() and f'"step": {step},' in log.read_text():
                break
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] != signal.SIGKILL:
            sys.exit(f"the run that was to be killed at step {step} ended before")
    if os.waitpid(_child(recipe), 0)[1]:
        sys.exit("the last attempt failed")


def _child(recipe: Recipe, hold_from: int | None = None) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        if hold_from is not None:
            hold(hold_from)
        train(recipe)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], [int(step) for step in sys.argv[2].split(",")], sys.argv[3:])
