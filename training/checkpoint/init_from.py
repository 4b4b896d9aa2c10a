"""Initial weights of a run from another run (`lm.init_from`)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from common.prompts import recorded_form
from training.checkpoint.load import load_for_inference
from training.distributed import World
from training.lm.model import LanguageModel
from training.run.folder import find_checkpoint

_DECIDED_BY = {
    "n_codebooks": "the shards' codec",
    "codebook_size": "the shards' codec",
    "text_dim": "the shards' text encoder",
    "ff_mult": "always 4 in models that are trained here",
}
_HEAD = "contrastive."


def begin_with(model: LanguageModel, source: Path, summary: dict[str, Any], world: World) -> None:
    """Load the averaged weights of a checkpoint, or of a run's newest checkpoint.

    Another codec or text encoder of the same shape, or another prompt policy, only causes a
    warning: codes, states or prompts then have another meaning.

    Args:
        model: the model before it is sharded.
        source: folder of a run, of a checkpoint, or of an imported model.
        summary: the shards' summary.

    Raises:
        AttuneError: there is no checkpoint, or it has another architecture.
    """
    try:
        _, checkpoint = find_checkpoint(source)
        other, description = load_for_inference(checkpoint)
    except AttuneError as error:
        raise AttuneError(f"lm.init_from: {error}") from error
    theirs, ours = other.arch.as_dict(), model.arch.as_dict()
    # Only training uses the contrastive head: it always starts from random weights.
    differing = [key for key in ours if ours[key] != theirs[key] and key != "contrastive"]
    if differing:
        listed = ", ".join(
            f"{key} {theirs[key]} there and {ours[key]} here "
            f"({_DECIDED_BY.get(key, f'lm.model.{key}')})"
            for key in differing
        )
        raise AttuneError(f"lm.init_from {checkpoint}: another architecture: {listed}")
    weights = {name: v for name, v in other.state_dict().items() if not name.startswith(_HEAD)}
    fresh = {name: v for name, v in model.state_dict().items() if name.startswith(_HEAD)}
    model.load_state_dict(weights | fresh)
    if not world.is_first:
        return
    there, here = (found | asdict(recorded_form(found)) for found in (description, summary))
    for key, what, remedy in (
        ("codec_id", "codec", ""),
        ("text_encoder_id", "text encoder", ""),
        ("policy", "prompts by policy", " (pipeline.text.policy)"),
        ("negation", "negation", " (pipeline.text.negation)"),
    ):
        if there[key] != here[key]:
            print(
                f"warning: lm.init_from {checkpoint} was trained with {what} {there[key]}, "
                f"the shards were made with {here[key]}{remedy}",
                file=sys.stderr,
            )
    print(f"starts from the weights of {checkpoint} (step {description['step']})", flush=True)
