"""Write a model that others trained as a run, to be sampled, evaluated and fine-tuned like ours.

TO/recipe.yaml       names the parts
TO/codec/            EncodecModel folder
TO/text_encoder/     frozen encoder with its tokenizer
TO/imported/         run folder with one checkpoint of averaged weights, without optimizer
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from common.codec import codec_identity, load_codec, resolve_codec
from common.config import TextEncoderConfig, load_recipe
from common.errors import AttuneError
from common.prompts import Negation, PromptPolicy, TagForm
from common.text_encoder import complete_encoder, load_encoder_parts, text_encoder_identity
from training.interop.codec import read_codec, write_codec
from training.interop.folders import RECORD, read_record
from training.interop.musicgen import architecture, from_musicgen
from training.interop.sources import (
    quiet,
    read_config,
    read_object,
    read_weights,
    refusing,
)
from training.lm.model import Architecture
from training.run.folder import as_recorded
from training.sampling.config import SamplingConfig
from training.sampling.outputs import slug
from training.sampling.sampler import longest_frames

RUN = "imported"
_LONGEST_S = 30.0
"""Length of MusicGen's training segments, if a folder does not state its own."""
_MAX_TOKENS = 512
"""T5's training length: the limit where a tokenizer states none, or a higher one."""
_FINE_TUNING = {"batch_size": 16, "steps": 2000, "optim": {"lr": 3e-5, "warmup": 100}}
"""Training settings of the written recipe; the defaults are for days of training from scratch."""
_VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json")


class _Description(BaseModel):
    """Values of `model.json` that an import keeps."""

    prompt_policy: PromptPolicy = "plain"
    negation: Negation = "drop"
    tag_form: TagForm = "as_is"
    segment_s: PositiveFloat | None = None
    trained_s: PositiveFloat | None = None
    step: NonNegativeInt = 0


class _Record(BaseModel):
    """What an import reads of an export's `attune.json`."""

    description: _Description = _Description()
    max_length: int | None = Field(default=None, ge=2)
    sampling: SamplingConfig | None = None


@dataclass
class Parts:
    """The parts of a source."""

    arch: Architecture
    weights: dict[str, Tensor]
    """Weights of our `LanguageModel`."""
    codec: Any
    """An `EncodecModel`, or the path of a codec that is used without a copy."""
    encoder: Any
    """A Hugging Face text encoder, or the path of one that is used without a copy."""
    tokenizer: Any = None
    max_length: int = _MAX_TOKENS
    description: dict[str, Any] = field(default_factory=dict)
    """For `model.json`: `PROMPT_FORM`, segment_s, trained_s, step, if known."""
    sampling: dict[str, Any] = field(default_factory=dict)


def read_musicgen(folder: Path, where: str, codec: str = "", text_encoder: str = "") -> Parts:
    """Read a `MusicgenForConditionalGeneration` folder.

    Args:
        folder: as Hugging Face's library writes it, or an export of ours.
        where: the source, for messages.
        codec, text_encoder: paths to use instead of copies from the folder, so that shards made
            with them still fit.  Their weights must be the same.

    Raises:
        AttuneError: another architecture, missing weights, another codec or text encoder, or a
            damaged `attune.json`.
    """
    from transformers import MusicgenConfig

    with refusing(f"{where}: config.json is not a MusicGen configuration"):
        config = MusicgenConfig.from_dict(read_config(folder))
    inner: Any = config.text_encoder
    width = getattr(inner, "hidden_size", None)
    if not isinstance(width, int):
        raise AttuneError(f"{where}: the config.json of its text encoder states no hidden size")
    arch = architecture(config.decoder, width, where)
    theirs = {
        f"{part}{name}": value
        for part in ("decoder.", "enc_to_dec_proj.")
        for name, value in read_weights(folder, part).items()
    }
    encoder = _read_encoder(folder, inner, where)
    tokenizer = _read_tokenizer(folder, where)
    inside = read_codec(folder, where)
    if codec:
        check_same(read_codec(resolve_codec(codec)), inside, f"codec {codec}", where)
    if text_encoder:
        given, _ = load_encoder_parts(text_encoder)
        check_same(given, encoder, f"text encoder {text_encoder}", where)
    generation = read_object(folder / "generation_config.json")
    rate = inside.config.frame_rate
    longest = _longest_frames(generation, arch, rate) / rate
    try:
        record = _Record.model_validate(read_record(folder))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise AttuneError(
            f"{folder / RECORD}: damaged: {key} is {fault['input']!r}: {fault['msg']}; export the "
            "run again, or delete this file to import without it"
        ) from error
    known = {"segment_s": longest, "trained_s": longest}
    sampling = {key: generation.get(key) for key in ("top_k", "top_p", "temperature")}
    sampling["cfg"] = generation.get("guidance_scale")
    return Parts(
        arch,
        from_musicgen(theirs, arch, where),
        codec or inside,
        text_encoder or encoder,
        tokenizer,
        record.max_length or max(2, min(int(tokenizer.model_max_length), _MAX_TOKENS)),
        known | record.description.model_dump(exclude_none=True),
        record.sampling.model_dump(mode="json")
        if record.sampling
        else {key: value for key, value in sampling.items() if value},
    )


def write_parts(parts: Parts, partial: Path, to: Path, origin: str) -> dict[str, Any]:
    """Write a source's parts as a recipe, a codec, a text encoder and a run.

    Args:
        partial: an empty folder, which will be renamed to `to`.
        to: the folder that the recipe's paths begin with.
        origin: where the weights came from.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: decoder and codec do not belong together, or the codec cannot be run here.
    """
    codec_here = codec_path = parts.codec
    if not isinstance(parts.codec, str):
        codec_here, codec_path = str(partial / "codec"), "${run_dir}/codec"
        (partial / "codec").mkdir()
        write_codec(partial / "codec", parts.codec, origin)
    codec = load_codec(codec_here)
    arch = parts.arch
    if (codec.n_codebooks, codec.codebook_size) != (arch.n_codebooks, arch.codebook_size):
        raise AttuneError(
            f"{origin}: its decoder has {arch.n_codebooks} x {arch.codebook_size} codes, its codec "
            f"{codec.n_codebooks} x {codec.codebook_size}"
        )
    encoder_here = encoder_path = parts.encoder
    if not isinstance(parts.encoder, str):
        encoder_here, encoder_path = str(partial / "text_encoder"), "${run_dir}/text_encoder"
        with quiet():
            parts.encoder.save_pretrained(encoder_here)
        parts.tokenizer.save_pretrained(encoder_here)
    encoder = TextEncoderConfig(path=encoder_here, max_length=parts.max_length)
    description = (
        _Description().model_dump(exclude_none=True)
        | {
            "architecture": arch.as_dict(),
            "codec_id": codec_identity(codec_here),
            "text_encoder_id": text_encoder_identity(encoder),
            "sample_rate": codec.sample_rate,
            "frame_rate": codec.frame_rate,
            "recipe": slug(Path(origin.rstrip("/")).name),
            "run": RUN,
            "imported_from": origin,
        }
        | parts.description
    )
    (partial / "recipe.yaml").write_text(
        _recipe_text(parts, description, to, origin, codec_path, encoder_path),
        encoding="utf-8",
    )
    recipe = load_recipe(partial / "recipe.yaml")
    checkpoint = partial / RUN / "checkpoints" / f"step-{description['step']:08d}"
    checkpoint.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in parts.weights.items()}
    save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "model.json").write_text(json.dumps(description, indent=2) + "\n")
    started = {"imported": {"from": origin}, "recipe": as_recorded(recipe)}
    (partial / RUN / "config.json").write_text(json.dumps(started, indent=2) + "\n")
    (partial / RUN / "latest").write_text(checkpoint.name + "\n")
    return {
        "kind": "model",
        "recipe": str(to / "recipe.yaml"),
        "run": str(to / RUN),
        "parameters": sum(value.numel() for value in weights.values()),
        "codec_id": description["codec_id"],
        "text_encoder_id": description["text_encoder_id"],
        "prompt_policy": description["prompt_policy"],
        "longest_s": longest_frames(description, codec.frame_rate) / codec.frame_rate,
    }


def _read_encoder(folder: Path, config: Any, where: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    known: Any = MODEL_FOR_TEXT_ENCODING_MAPPING
    kind = known.get(type(config), None)
    if kind is None:
        raise AttuneError(f"{where}: transformers has no text encoder {config.model_type}")
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in read_weights(folder, "text_encoder.").items()
    }
    with refusing(f"{where}: its text encoder cannot be loaded"), quiet():
        model, loaded = kind.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True
        )
    complete_encoder(model, loaded["missing_keys"], f"{where}: its text encoder")
    model.config.name_or_path = ""
    return model.eval().requires_grad_(False)


def _read_tokenizer(folder: Path, where: str) -> Any:
    from transformers import AutoTokenizer

    # Without such a file, `from_pretrained` makes an empty tokenizer and reports nothing.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise AttuneError(f"{where}: holds no tokenizer ({', '.join(_VOCABULARIES)})")
    with refusing(f"{where}: its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_same(given: Any, inside: Any, what: str, where: str) -> None:
    """Refuse a model in place of another one with different weights.

    Raises:
        AttuneError: naming the first weight that differs.
    """
    one, two = given.state_dict(), inside.state_dict()
    for name in sorted(one.keys() | two.keys()):
        if "pooler." in name:  # nobody reads a pooler's output
            continue
        if name not in one or name not in two or not torch.equal(one[name], two[name]):
            raise AttuneError(f"{what}: is not the one inside {where}: {name} differs")


def _longest_frames(generation: dict[str, Any], arch: Architecture, rate: float) -> int:
    """Frames of the longest clip that the generation settings make by default."""
    if isinstance(generation.get("max_new_tokens"), int):
        return max(1, generation["max_new_tokens"] - arch.n_codebooks + 1)
    if isinstance(generation.get("max_length"), int):
        return max(1, generation["max_length"])  # MusicGen's 1500: 30 s, without the delay
    return round(_LONGEST_S * rate)


def _recipe_text(
    parts: Parts, description: dict[str, Any], to: Path, origin: str, codec: str, encoder: str
) -> str:
    duration = {"duration_s": min(float(description["trained_s"]), 10.0)}
    tree = {
        "name": description["recipe"],
        "run_dir": str(to),
        "data_dir": "${run_dir}/data",
        "sample_rate": description["sample_rate"],
        "codec": {"path": codec},
        "text_encoder": {"path": encoder, "max_length": parts.max_length},
        "lm": {
            "run": RUN,
            "model": {key: getattr(parts.arch, key) for key in ("d_model", "n_layers", "n_heads")},
            "segment_s": float(description["segment_s"]),
            **_FINE_TUNING,
        },
        "sampling": duration | parts.sampling | duration,  # the duration first
        "pipeline": {
            "text": {
                "policy": description["prompt_policy"],
                "negation": description["negation"],
                "tag_form": description["tag_form"],
            }
        },
    }
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return (
        f"# Imported from {' '.join(origin.split())}.\n#\n"
        f"#   python -m training generate --config {to}/recipe.yaml --prompt ...\n#\n"
        "# To fine-tune it, make shards with this codec and text encoder (add `catalogs` to "
        "`pipeline`, or set data_dir),\n# and train under another name from these weights:\n#\n"
        f"#   python -m training lm --config {to}/recipe.yaml lm.run=fine-tuned "
        f"lm.init_from={to}/{RUN}\n#\n"
        "# `policy` keeps prompts in the form that the model was trained on. Batch, steps and "
        f"learning rate suit\n# some hours of audio; `--dry-run` estimates time and memory.\n{text}"
    )
