"""Making the plan, in this process or on a cluster; it needs neither codec nor torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common.cluster import ray_session
from common.config import Recipe
from common.storage import Store
from pipeline.config import PipelineConfig
from pipeline.datadir.frozen_plan import FrozenPlan, ensure_plan, plan_inputs
from pipeline.plan.decide import PlanTables, build_plan
from pipeline.plan.mapping import map_here, map_on_ray

_OBJECT_STORE_BYTES = 200 * 2**20
"""Size of Ray's object store; small, because only plan rows pass through it."""


def make_plan(store: Store, recipe: Recipe, config: PipelineConfig) -> tuple[FrozenPlan, bool]:
    """The frozen plan of a recipe, and whether it is new (see `ensure_plan`).

    The plan is computed on the cluster at `RAY_ADDRESS` if that is set, otherwise in this process.
    """

    def build() -> PlanTables:
        on_cluster = bool(os.environ.get("RAY_ADDRESS"))
        with pipeline_session(store) if on_cluster else nullcontext():
            return build_plan(
                config.catalogs,
                rules=config.text_rules(recipe.seed),
                clips_per_shard=config.clips_per_shard,
                seed=recipe.seed,
                overlap=config.overlap,
                mapper=map_on_ray if on_cluster else map_here,
            )

    inputs = plan_inputs(recipe, config)
    return ensure_plan(store, inputs, build, config.recorded_form(), recipe.text_encoder)


@contextmanager
def pipeline_session(store: Store) -> Iterator[str]:
    """The cluster at `RAY_ADDRESS`, or a local Ray that ends with this process; yields its name.

    Raises:
        AttuneError: there is no cluster at that address, or Ray does not start.
    """
    import ray
    from ray.data import DataContext

    address = os.environ.get("RAY_ADDRESS")
    root = Path(__file__).resolve().parent.parent
    # The cluster's nodes get our code from here; all other packages must be installed there.
    code = {"py_modules": [str(root / "common"), str(root / "pipeline")]}
    options = {"runtime_env": code} if address else {"object_store_memory": _OBJECT_STORE_BYTES}
    # Without an address, "local": else Ray would join any cluster that it finds on this machine.
    with ray_session(address or "local", "RAY_ADDRESS=" if address else "", **options):
        DataContext.get_current().enable_progress_bars = False
        nodes = sum(node["Alive"] for node in ray.nodes())
        if address and nodes > 1 and "://" not in store.uri:
            note = f"note: {nodes} nodes write to {store.uri}: it must be a shared folder"
            print(note, file=sys.stderr)
        yield f"cluster at {address}, {nodes} nodes" if address else "local"
