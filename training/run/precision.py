"""What `precision: auto` stands for: settled before a run starts, recorded, and kept."""

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
        `asked`; for `auto` `recorded`, so that a run resumes on any machine as it started, and for
        a new run bf16 if all processes have it, else fp32.
    """
    if asked != "auto":
        return asked
    if recorded:
        return recorded
    (have,) = sum_on_host([has_bfloat16(world.device)], world)
    return "bf16" if have == world.size else "fp32"
