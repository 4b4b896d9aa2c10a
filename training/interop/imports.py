"""A model that others trained as a run of ours: sampled, judged and fine-tuned like any other.

TO/recipe.yaml       ties the parts together
TO/codec/            EncodecModel folder
TO/text_encoder/     frozen encoder with its tokenizer
TO/imported/         a run's folder with one checkpoint of averaged weights, without optimizer
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from common.codec import codec_identity, load_codec, resolve_codec
from common.config import TextEncoderConfig, load_recipe
from common.errors import AttuneError, one_line
from common.prompts import PromptPolicy
from common.text_encoder import complete_encoder, load_encoder_parts, text_encoder_identity
from training.interop.codec import read_codec, write_codec
from training.interop.folders import read_record
from training.interop.musicgen import architecture, from_musicgen
from training.interop.sources import quiet, read_config, read_weights
from training.lm.model import Architecture
from training.run.folder import as_recorded
from training.sampling.config import SamplingConfig
from training.sampling.outputs import slug
from training.sampling.sampler import longest_frames

RUN = "imported"
_LONGEST_S = 30.0
"""MusicGen's training segments; where a folder does not say otherwise."""
_MAX_TOKENS = 512
"""T5's training length, the bound where a tokenizer states none or more."""
_FINE_TUNING = {"batch_size": 16, "steps": 2000, "optim": {"lr": 3e-5, "warmup": 100}}
"""Of the recipe, where the defaults would train from the beginning for days."""
_VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json")


@dataclass
class Parts:
    """What a source holds."""

    arch: Architecture
    weights: dict[str, Tensor]
    """Of our `LanguageModel`."""
    codec: Any
    """An `EncodecModel`, or the reference of a codec to be used from where it lies."""
    encoder: Any
    """A Hugging Face text encoder, or the reference of one."""
    tokenizer: Any = None
    max_length: int = _MAX_TOKENS
    description: dict[str, Any] = field(default_factory=dict)
    """For `model.json`: prompt_policy, segment_s, trained_s, step, if known."""
    sampling: dict[str, Any] = field(default_factory=dict)


def read_musicgen(folder: Path, where: str, codec: str = "", text_encoder: str = "") -> Parts:
    """Read a `MusicgenForConditionalGeneration` folder.

    Args:
        folder: as Hugging Face's library writes it, or an export of ours.
        where: how messages name it.
        codec, text_encoder: to be used from where they lie, in place of copies of those inside:
            so shards made with them still fit.  Their weights must be the same.

    Raises:
        AttuneError: another architecture, missing weights, or another codec or text encoder.
    """
    from transformers import MusicgenConfig

    settings = read_config(folder)
    try:
        config = MusicgenConfig.from_dict(settings)
    except (TypeError, ValueError, KeyError) as error:
        raise AttuneError(f"{where}: config.json is not MusicGen's: {one_line(error)}") from error
    inner: Any = config.text_encoder
    width = getattr(inner, "hidden_size", None)
    if not isinstance(width, int):
        raise AttuneError(f"{where}: its text encoder states no hidden size")
    arch = architecture(config.decoder, width, where)
    weights = read_weights(folder, "decoder.")
    theirs = {f"decoder.{name}": value for name, value in weights.items()}
    for name, value in read_weights(folder, "enc_to_dec_proj.").items():
        theirs[f"enc_to_dec_proj.{name}"] = value
    encoder = _read_encoder(folder, inner, where)
    tokenizer = _read_tokenizer(folder, where)
    inside = read_codec(folder, where)
    if codec:
        check_same(read_codec(resolve_codec(codec)), inside, f"codec {codec}", where)
    if text_encoder:
        given, _ = load_encoder_parts(text_encoder)
        check_same(given, encoder, f"text encoder {text_encoder}", where)
    generation = _generation(folder)
    rate = inside.config.frame_rate
    longest = _longest_frames(generation, arch, rate) / rate
    record = _checked_record(folder)
    description = {
        "prompt_policy": "plain",
        "segment_s": longest,
        "trained_s": longest,
        "step": 0,
    } | record["description"]
    max_length = record["max_length"] or max(2, min(int(tokenizer.model_max_length), _MAX_TOKENS))
    sampling = record["sampling"] or _sampling(generation)
    return Parts(
        arch,
        from_musicgen(theirs, arch, where),
        codec or inside,
        text_encoder or encoder,
        tokenizer,
        max_length,
        description,
        sampling,
    )


def write_parts(parts: Parts, partial: Path, to: Path, origin: str) -> dict[str, Any]:
    """Write a source's parts as a recipe, a codec, a text encoder and a run.

    Args:
        partial: an empty folder, which will be renamed to `to`.
        to: what the recipe's paths begin with.
        origin: where the weights came from.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: decoder and codec do not belong together, or the codec cannot be run here.
    """
    codec_path, encoder_path = parts.codec, parts.encoder
    here = parts.codec
    if not isinstance(parts.codec, str):
        (partial / "codec").mkdir()
        write_codec(partial / "codec", parts.codec, origin)
        codec_path, here = "${run_dir}/codec", str(partial / "codec")
    codec = load_codec(here)
    arch = parts.arch
    if (codec.n_codebooks, codec.codebook_size) != (arch.n_codebooks, arch.codebook_size):
        raise AttuneError(
            f"{origin}: its decoder speaks {arch.n_codebooks} x {arch.codebook_size} codes, its "
            f"codec {codec.n_codebooks} x {codec.codebook_size}"
        )
    encoder_here = TextEncoderConfig(path=str(parts.encoder), max_length=parts.max_length)
    if not isinstance(parts.encoder, str):
        with quiet():
            parts.encoder.save_pretrained(partial / "text_encoder")
        parts.tokenizer.save_pretrained(partial / "text_encoder")
        encoder_path = "${run_dir}/text_encoder"
        encoder_here = encoder_here.model_copy(update={"path": str(partial / "text_encoder")})
    description = {
        "architecture": arch.as_dict(),
        "codec_id": codec_identity(here),
        "text_encoder_id": text_encoder_identity(encoder_here),
        "sample_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "recipe": slug(Path(origin.rstrip("/")).name),
        "run": RUN,
        "imported_from": origin,
    } | parts.description
    (partial / "recipe.yaml").write_text(
        _recipe_text(parts, description, to, origin, str(codec_path), str(encoder_path)),
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
        raise AttuneError(f"{where}: {config.model_type} is no text encoder of transformers'")
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_weights(
        folder, "text_encoder."
    ).items()}  # fmt: skip
    try:
        with quiet():
            model, loaded = kind.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AttuneError(
            f"{where}: its text encoder cannot be loaded: {one_line(error)}"
        ) from error
    complete_encoder(model, loaded["missing_keys"], f"{where}: its text encoder")
    model.config.name_or_path = ""
    return model.eval().requires_grad_(False)


def _read_tokenizer(folder: Path, where: str) -> Any:
    from transformers import AutoTokenizer

    # Without files it would be an empty one, without a word.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise AttuneError(f"{where}: holds no tokenizer ({', '.join(_VOCABULARIES)})")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AttuneError(f"{where}: its tokenizer cannot be loaded: {one_line(error)}") from error


def check_same(given: Any, inside: Any, what: str, where: str) -> None:
    """Refuse a model with other weights than the one that it is to stand for.

    Raises:
        AttuneError: naming the first that differs.
    """
    one, two = given.state_dict(), inside.state_dict()
    names = {name for name in one.keys() | two.keys() if "pooler." not in name}
    for name in sorted(names):
        if name not in one or name not in two or not torch.equal(one[name], two[name]):
            raise AttuneError(f"{what}: is not the one inside {where}: {name} differs")


def _checked_record(folder: Path) -> dict[str, Any]:
    """What `attune.json` says that an import goes by; of a damaged one, what makes sense."""
    record = read_record(folder)
    known = record.get("description")
    known = known if isinstance(known, dict) else {}
    description: dict[str, Any] = {}
    if known.get("prompt_policy") in get_args(PromptPolicy):
        description["prompt_policy"] = known["prompt_policy"]
    for key in ("segment_s", "trained_s"):
        if isinstance(known.get(key), int | float) and known[key] > 0:
            description[key] = known[key]
    if isinstance(known.get("step"), int) and known["step"] >= 0:
        description["step"] = known["step"]
    max_length = record.get("max_length")
    try:
        sampling = SamplingConfig(**record["sampling"]).model_dump(mode="json")
    except (KeyError, TypeError, ValueError):
        sampling = {}
    is_length = isinstance(max_length, int) and max_length >= 2
    return {
        "description": description,
        "max_length": max_length if is_length else None,
        "sampling": sampling,
    }


def _generation(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _longest_frames(generation: dict[str, Any], arch: Architecture, rate: float) -> int:
    """Frames of the longest clip that the generation settings draw by default."""
    if isinstance(generation.get("max_new_tokens"), int):
        return max(1, generation["max_new_tokens"] - arch.n_codebooks + 1)
    if isinstance(generation.get("max_length"), int):
        return max(1, generation["max_length"])  # MusicGen's 1500: 30 s, without the delay
    return round(_LONGEST_S * rate)


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    found = {
        "cfg": generation.get("guidance_scale"),
        "top_k": generation.get("top_k"),
        "top_p": generation.get("top_p"),
        "temperature": generation.get("temperature"),
    }
    return {key: value for key, value in found.items() if value}


def _recipe_text(
    parts: Parts, description: dict[str, Any], to: Path, origin: str, codec: str, encoder: str
) -> str:
    arch = parts.arch
    longest = float(description["trained_s"])
    sampling = {"duration_s": min(longest, 10.0)} | {
        key: value for key, value in parts.sampling.items() if key != "duration_s"
    }
    head = {"name": description["recipe"], "run_dir": str(to), "data_dir": "${run_dir}/data"}
    tree = {
        "sample_rate": description["sample_rate"],
        "codec": {"path": codec},
        "text_encoder": {"path": encoder, "max_length": parts.max_length},
        "lm": {
            "run": RUN,
            "model": {
                "d_model": arch.d_model,
                "n_layers": arch.n_layers,
                "n_heads": arch.n_heads,
            },
            "segment_s": float(description["segment_s"]),
            **_FINE_TUNING,
        },
        "sampling": sampling,
        "pipeline": {"text": {"policy": description["prompt_policy"]}},
    }
    text = yaml.safe_dump(head | tree, sort_keys=False, allow_unicode=True)
    return (
        f"# Imported from {' '.join(origin.split())}.\n#\n"
        f"#   python -m training generate --config {to}/recipe.yaml --prompt ...\n#\n"
        "# To fine-tune it, make shards with this codec and text encoder (add `catalogs` to "
        "`pipeline`, or data_dir=...),\n# and train under another name from these weights:\n#\n"
        f"#   python -m training lm --config {to}/recipe.yaml lm.run=fine-tuned "
        f"lm.init_from={to}/{RUN}\n#\n"
        "# `policy` keeps prompts in the form that the model knows; batch, steps and learning rate "
        f"are for some hours\n# of audio, and `--dry-run` says what they take.\n{text}"
    )
