"""Choice of the precision for `precision: auto`, before a run starts."""

from __future__ import annotations

from common.bfloat16 import has_bfloat16
from training.distributed import World, sum_on_host


def settle(asked: str, recorded: str | None, world: World) -> str:
    """The precision of a run.

    Args:
        asked: precision in the recipe.
        recorded: precision that the run was started with, the same on all processes; None if the
            run is new.

    Returns:
        `asked`; for `auto` the recorded precision, so that a run resumes on any machine with the
        precision it started with, and for a new run bf16 if all processes have it, else fp32.
    """
    if asked != "auto":
        return asked
    if recorded:
        return recorded
    (have,) = sum_on_host([has_bfloat16(world.device)], world)
    return "bf16" if have == world.size else "fp32"
