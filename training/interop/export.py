"""Write a trained run as a folder that Hugging Face's library plays by itself.

The folder holds a complete `MusicgenForConditionalGeneration`: decoder, codec and text encoder in
one safetensors file, configurations, tokenizer, feature extractor, generation settings, a model
card, and `attune.json`, from which `import` makes the same run again.

Three things differ from our models:

- Their pipeline passes everything that the tokenizer returns to `generate`, which refuses BERT's
  `token_type_ids`.  So the exported tokenizer only returns ids and mask.
- T frames take T + K - 1 steps.  The export sets `max_new_tokens`; without it the pipeline makes
  256 steps.
- Their model has no text projection where text encoder and decoder are equally wide; ours always
  has one.  Such a model can only be exported if its projection changes nothing
  (`_check_projection`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from common.codec import resolve_codec
from common.config import Recipe
from common.errors import AttuneError
from common.text_encoder import load_encoder_parts
from training.checkpoint.load import load_for_inference
from training.data import check_made_with
from training.interop.card import data_section, left_behind, metrics_section, model_card
from training.interop.codec import read_codec
from training.interop.folders import write_record
from training.interop.musicgen import decoder_config, to_musicgen
from training.interop.sources import quiet, read_object
from training.lm.model import LanguageModel
from training.lm.patterns import delayed_steps
from training.run.folder import find_checkpoint
from training.sampling.config import SamplingConfig
from training.sampling.sampler import longest_frames


def export_run(source: Path, recipe: Recipe, to: Path, raw: bool = False) -> dict[str, Any]:
    """Write a checkpoint, or a run's newest one, into the empty folder `to`.

    Args:
        source: as in `find_checkpoint`.
        recipe: names codec, text encoder and shards of the run.
        raw: export the weights of the last step instead of the averaged weights.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: damaged checkpoint, another codec or text encoder, or an encoder or a text
            projection that `MusicgenForConditionalGeneration` cannot hold.
    """
    from transformers import EncodecFeatureExtractor, GenerationConfig, MusicgenProcessor

    run, checkpoint = find_checkpoint(source)
    model, description = load_for_inference(checkpoint, raw)
    whose = f"checkpoint {checkpoint} was trained with"
    check_made_with(recipe.codec.path, recipe.text_encoder, description, whose)
    codec_folder = resolve_codec(recipe.codec.path)
    codec = read_codec(codec_folder)
    max_length = recipe.text_encoder.max_length
    encoder, tokenizer = load_encoder_parts(
        recipe.text_encoder.path,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_length,
    )
    _check_encoder(encoder, recipe.text_encoder.path)
    _check_projection(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    arch = model.arch
    sampling = recipe.section("sampling", SamplingConfig)
    frames = longest_frames(description, codec.config.frame_rate)
    greedy = sampling.temperature == 0
    composite = _compose(encoder, codec, model)
    composite.generation_config = GenerationConfig(
        do_sample=not greedy,
        guidance_scale=max(sampling.cfg, 1.0),  # their guidance only acts above 1
        top_k=None if greedy else min(sampling.top_k, arch.codebook_size),
        top_p=None if greedy or sampling.top_p == 1 else sampling.top_p,
        temperature=None if greedy else sampling.temperature,
        max_new_tokens=delayed_steps(frames, arch.n_codebooks),
        pad_token_id=arch.special,
        bos_token_id=arch.special,
        decoder_start_token_id=arch.special,
    )
    with quiet():
        composite.save_pretrained(to)
    # Tokenizer and feature extractor, together and (for older versions of the library) separately.
    extractor = EncodecFeatureExtractor(
        feature_size=1, sampling_rate=codec.config.sampling_rate, padding_side="left"
    )
    extractor.save_pretrained(to)
    MusicgenProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(to)
    has_card = (codec_folder / "README.md").is_file()
    if has_card:
        shutil.copyfile(codec_folder / "README.md", to / "codec.md")
    run_config = read_object(run / "config.json")
    card = model_card(
        description,
        run_config,
        data_section(recipe.data_dir, run_config),
        metrics_section(description, run, checkpoint, Path(recipe.run_dir), raw),
        parameters=parameters,
        weights="of the last step (not averaged)" if raw else "averaged (EMA)",
        sample_rate=codec.config.sampling_rate,
        frame_rate=codec.config.frame_rate,
        frames=frames,
        encoder=f"{encoder.config.model_type}, width {arch.text_dim}",
        max_length=max_length,
        sampling=sampling.model_dump(),
        codec_card=has_card,
    )
    (to / "README.md").write_text(card, encoding="utf-8")
    facts = {
        "kind": "model",
        "weights": "raw" if raw else "average",
        "description": description,
        "max_length": max_length,
        "sampling": sampling.model_dump(mode="json"),
    }
    write_record(to, facts)
    notes = left_behind(sampling.model_dump())
    return {
        "kind": "model",
        "checkpoint": str(checkpoint),
        "step": description["step"],
        "weights": facts["weights"],
        "parameters": parameters,
        "codec_id": description["codec_id"],
        "text_encoder_id": description["text_encoder_id"],
        "max_new_tokens": delayed_steps(frames, arch.n_codebooks),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def _compose(encoder: Any, codec: Any, model: LanguageModel) -> Any:
    """Put a `MusicgenForConditionalGeneration` together from its parts, only to be saved.

    Do not run it: built from parts, it has no attention implementation (transformers 5.23), and T5
    then attends to padding.  A model that `from_pretrained` loads from the saved files is right.

    Args:
        encoder, codec: Hugging Face's models.
        model: our decoder; its text projection is left out if the widths are equal.
    """
    from transformers import (
        MusicgenConfig,
        MusicgenForCausalLM,
        MusicgenForConditionalGeneration,
    )

    decoder = decoder_config(model.arch)
    for part in (encoder, codec):
        part.config.name_or_path = ""  # was a path on this machine
    config = MusicgenConfig(
        text_encoder=encoder.config, audio_encoder=codec.config, decoder=decoder
    )
    composite: Any = MusicgenForConditionalGeneration(
        config, text_encoder=encoder, audio_encoder=codec, decoder=MusicgenForCausalLM(decoder)
    )
    theirs = to_musicgen(model.state_dict(), model.arch)
    if not hasattr(composite, "enc_to_dec_proj"):
        theirs = {k: v for k, v in theirs.items() if not k.startswith("enc_to_dec_proj.")}
    missing, unexpected = composite.load_state_dict(theirs, strict=False)
    left = [name for name in missing if not name.startswith(("text_encoder.", "audio_encoder."))]
    assert not left and not unexpected, (left, unexpected)
    return composite.eval().requires_grad_(False)


def _check_encoder(encoder: Any, path: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    known: Any = MODEL_FOR_TEXT_ENCODING_MAPPING
    expected = known.get(type(encoder.config), None)
    if type(encoder) is not expected:
        raise AttuneError(
            f"text encoder {path}: transformers cannot load a {type(encoder).__name__} inside a "
            "MusicgenForConditionalGeneration (it is not in its list of text encoders), so this "
            "model cannot be exported"
        )


def _check_projection(model: LanguageModel) -> None:
    """Refuse a learnt text projection where their model has none.

    Models that were imported from there have a projection that changes nothing.
    """
    weight, bias = model.text_projection.weight, model.text_projection.bias
    width, text_width = weight.shape
    if text_width != width or (weight.equal(torch.eye(width)) and not bias.any()):
        return
    raise AttuneError(
        f"export: text encoder and decoder are equally wide ({width}), and for equal widths "
        "MusicgenForConditionalGeneration has no text projection, but this model has learnt one; "
        "train with another lm.model.d_model to export it (`python -m training generate` plays it "
        "without an export)"
    )
