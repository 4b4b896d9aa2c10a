"""What `precision: auto` stands for: settled before a run begins, recorded, kept from then on."""

from __future__ import annotations

from common.bfloat16 import has_bfloat16
from training.distributed import World, sum_on_host


def settle(asked: str, recorded: str | None, world: World) -> str:
    """The precision of a run.

    Args:
        asked: by the recipe.
        recorded: what the run was begun with, the same for all processes; None if it is new.

    Returns:
        What was asked for; for `auto` what was recorded, so that a run goes on as it began on any
        machine, and in a new one bf16 if all processes have it, else fp32.
    """
    if asked != "auto":
        return asked
    if recorded:
        return recorded
    (have,) = sum_on_host([has_bfloat16(world.device)], world)
    return "bf16" if have == world.size else "fp32"
