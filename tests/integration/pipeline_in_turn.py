"""`python -m pipeline` without Ray: this process does the workers' work itself, one call at a time.

python pipeline_in_turn.py ARGUMENTS...
"""

from __future__ import annotations

import pytest
from in_process import without_ray

from common.cli import run_app
from common.config import TextEncoderConfig
from pipeline.cli import app
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.encode.embed import EmbedChunks


def embed(plan: FrozenPlan, encoder: TextEncoderConfig, *rest: object) -> None:
    """In place of `pipeline.run.embed`."""
    chunks = plan.missing_chunks()
    embedder = EmbedChunks(plan.store.uri, encoder, plan.plan_hash, 1, "cpu")
    groups = [list(chunk.row_groups) for chunk in chunks]
    embedder({"chunk": [chunk.name for chunk in chunks], "row_groups": groups})


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch, embed)
        run_app(app)
