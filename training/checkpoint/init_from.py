"""Weights that a run begins with (`lm.init_from`), in place of random ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common.errors import AttuneError
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
    """Load the averaged weights of a run's newest checkpoint, or of the checkpoint named.

    Another codec or text encoder of the same shape, or another form of prompts, is allowed, with a
    warning: codes, states or prompts mean something else.

    Args:
        model: whole, before it is spread over processes.
        source: folder of a run, of a checkpoint, or of an imported model.
        summary: of the shards.

    Raises:
        AttuneError: no checkpoint there, or of another architecture.
    """
    try:
        _, checkpoint = find_checkpoint(source)
        other, description = load_for_inference(checkpoint)
    except AttuneError as error:
        raise AttuneError(f"lm.init_from: {error}") from error
    theirs, ours = other.arch.as_dict(), model.arch.as_dict()
    # The contrastive head serves training only: without one there, it starts at random.
    differing = [key for key in ours if ours[key] != theirs[key] and key != "contrastive"]
    if differing:
        told = ", ".join(
            f"{key} {theirs[key]} there and {ours[key]} here "
            f"({_DECIDED_BY.get(key, f'lm.model.{key}')})"
            for key in differing
        )
        raise AttuneError(f"lm.init_from {checkpoint}: another architecture: {told}")
    weights = {name: v for name, v in other.state_dict().items() if not name.startswith(_HEAD)}
    fresh = {name: v for name, v in model.state_dict().items() if name.startswith(_HEAD)}
    model.load_state_dict(weights | fresh)
    if not world.is_first:
        return
    # Older models and shards do not tell their form of prompts.
    there, here = ({"prompt_policy": "lemmas"} | told for told in (description, summary))
    for key, what, remedy in (
        ("codec_id", "codec", ""),
        ("text_encoder_id", "text encoder", ""),
        ("prompt_policy", "prompts by policy", " (pipeline.text.policy)"),
    ):
        if there[key] != here[key]:
            print(
                f"warning: lm.init_from {checkpoint} was trained with {what} {there[key]}, "
                f"the shards were made with {here[key]}{remedy}",
                file=sys.stderr,
            )
    print(f"begins with the weights of {checkpoint} (step {description['step']})", flush=True)
