"""Read checkpoints of audiocraft (MusicGen, AudioGen and their EnCodec) without running their code.

They are `torch.save` files, each a dictionary with

    xp.cfg         the training configuration as YAML text
    best_state     weights, by the names of audiocraft's modules

A codec's checkpoint may name another codec (`pretrained`) instead of holding one.  Weights are
renamed to Hugging Face's names.  Configurations that our models do not compute are refused.

One difference from audiocraft: there, steps attend to the (zero) padding of shorter prompts, so the
logits of a prompt depend on the other prompts of its batch.  Here and in Hugging Face's library
padding is masked.  For single prompts, and for prompts of one length, the results are the same.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from common.codec import resolve_codec
from common.errors import AttuneError, one_line
from common.text_encoder import load_encoder_parts
from training.interop.codec import bandwidth, build_codec, read_codec
from training.interop.imports import Parts, check_same
from training.interop.musicgen import from_musicgen
from training.interop.sources import AUDIOCRAFT_FILES, load_pickle
from training.lm.model import Architecture

_LM, _CODEC = AUDIOCRAFT_FILES
_PRETRAINED = "//pretrained/"

_CODEC_IS: dict[str, Any] = {
    "compression_model": "encodec",
    "encodec.autoencoder": "seanet",
    "encodec.quantizer": "rvq",
    "encodec.renormalize": False,
    "seanet.activation": "ELU",
    "seanet.norm": "weight_norm",
    "seanet.disable_norm_outer_blocks": 0,
    "seanet.decoder.final_activation": None,
    "seanet.encoder": {},
}
_LM_IS: dict[str, Any] = {
    "lm_model": "transformer_lm",
    "transformer_lm.norm_first": True,
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.activation": "gelu",
    "transformer_lm.positional_embedding": "sin",
    "transformer_lm.causal": True,
    "transformer_lm.past_context": None,
    "transformer_lm.layer_scale": None,
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.kv_repeat": 1,
    "interleave_stereo_codebooks.use": False,
    "codebooks_pattern.delay.flatten_first": 0,
    "codebooks_pattern.delay.empty_initial": 0,
    "fuser.cross_attention_pos_emb": False,
    "fuser.cross": ["description"],
    "fuser.sum": [],
    "fuser.prepend": [],
    "fuser.input_interpolate": [],
    "conditioners.description.model": "t5",
}
"""Values that these keys of a configuration must have, if it has the keys."""

_CODEC_NAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)\.\1\.", ".conv."),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)
_LM_NAMES = (
    (r"^condition_provider\.conditioners\.description\.output_proj\.", "enc_to_dec_proj."),
    (r"^emb\.", "decoder.model.decoder.embed_tokens."),
    (r"^linears\.", "decoder.lm_heads."),
    (r"^out_norm\.", "decoder.model.decoder.layer_norm."),
    (r"^transformer\.layers\.", "decoder.model.decoder.layers."),
    (r"(\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(\.\d+)\.norm_cross\.", r"\1.encoder_attn_layer_norm."),
    (r"(\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"(\.\d+)\.linear(\d)\.", r"\1.fc\2."),
    (r"(\.\d+)\.cross_attention\.", r"\1.encoder_attn."),
    (r"_attn\.mha\.", "_attn."),  # if it was trained with PyTorch's own attention
)


@dataclass
class Checkpoint:
    """One file's configuration and weights."""

    where: str
    config: DictConfig
    weights: dict[str, Tensor]
    pretrained: str = ""
    """The codec that a codec's checkpoint names instead of holding one."""

    @property
    def is_codec(self) -> bool:
        """Whether it holds or names a codec; otherwise it holds a language model."""
        return bool(self.pretrained) or any(name.startswith("encoder.") for name in self.weights)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the configuration, with its references resolved.

        Raises:
            AttuneError: a reference has no target.
        """
        try:
            value = OmegaConf.select(self.config, key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raise AttuneError(f"{self.where}: xp.cfg: {key}: {one_line(error)}") from error
        return default if value is None else value

    def number(self, key: str) -> int:
        """A whole number above 0 that the configuration must have.

        Raises:
            AttuneError: the key is missing, or is something else.
        """
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AttuneError(f"{self.where}: xp.cfg: {key} is {value!r}, expected a number")
        return value

    def check(self, expected: dict[str, Any]) -> None:
        """Refuse a configuration with other values of these keys.

        Raises:
            AttuneError: naming the first such key.
        """
        for key, value in expected.items():
            found = self.get(key, value)
            if found != value:
                raise AttuneError(
                    f"{self.where}: xp.cfg: {key} is {found!r}; only {value!r} is supported"
                )


def is_audiocraft(path: Path) -> bool:
    """Whether a source is a file, or a folder of audiocraft's checkpoints only."""
    if not path.is_dir() or (path / "config.json").is_file():
        return path.is_file()
    return any((path / name).is_file() for name in AUDIOCRAFT_FILES)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file.

    Raises:
        AttuneError: it is not such a checkpoint, or reading its objects could run code.
    """
    package = load_pickle(path)
    if not isinstance(package, dict):
        raise AttuneError(f"{path}: holds a {type(package).__name__}, expected a dictionary")
    if isinstance(package.get("pretrained"), str):
        return Checkpoint(str(path), OmegaConf.create({}), {}, package["pretrained"])
    weights = package.get("best_state") or package.get("model")
    if isinstance(weights, dict) and isinstance(weights.get("model"), dict):
        weights = weights["model"]  # training checkpoints have one level more
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise AttuneError(f"{path}: has no best_state of named tensors; is it audiocraft's?")
    text = package.get("xp.cfg")
    try:
        tree = yaml.safe_load(text) if isinstance(text, str) else text
        config = OmegaConf.create(tree)
    except (YAMLError, ValueError, OmegaConfBaseException) as error:
        raise AttuneError(f"{path}: xp.cfg is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict) or not isinstance(config, DictConfig):
        raise AttuneError(
            f"{path}: has no xp.cfg, the configuration of the model that its weights belong to"
        )
    return Checkpoint(str(path), config, dict(weights))


def read_codec_checkpoint(checkpoint: Checkpoint) -> Any:
    """The `EncodecModel` of a codec's checkpoint.

    Raises:
        AttuneError: another codec, or one that `EncodecModel` does not compute.
    """
    if checkpoint.pretrained:
        return read_codec(resolve_codec(checkpoint.pretrained), checkpoint.pretrained)
    checkpoint.check(_CODEC_IS)
    number, get = checkpoint.number, checkpoint.get
    ratios, rate = get("seanet.ratios"), number("sample_rate")
    if not isinstance(ratios, list) or not all(isinstance(r, int) and r > 0 for r in ratios):
        raise AttuneError(
            f"{checkpoint.where}: xp.cfg: seanet.ratios is {ratios!r}, expected a list of numbers"
        )
    frame_rate = -(-rate // math.prod(ratios))
    settings = {
        "sampling_rate": rate,
        "audio_channels": get("encodec.channels", get("channels", 1)),
        "normalize": False,
        "chunk_length_s": None,
        "norm_type": "weight_norm",
        "num_filters": number("seanet.n_filters"),
        "num_residual_layers": number("seanet.n_residual_layers"),
        "hidden_size": number("seanet.dimension"),
        "codebook_dim": number("seanet.dimension"),
        "upsampling_ratios": ratios,
        "kernel_size": get("seanet.kernel_size", 7),
        "last_kernel_size": get("seanet.last_kernel_size", 7),
        "residual_kernel_size": get("seanet.residual_kernel_size", 3),
        "dilation_growth_rate": get("seanet.dilation_base", 2),
        "compress": get("seanet.compress", 2),
        "num_lstm_layers": number("seanet.lstm"),
        "pad_mode": get("seanet.pad_mode", "reflect"),
        "use_causal_conv": get("seanet.causal", False),
        "trim_right_ratio": get("seanet.decoder.trim_right_ratio", 1.0),
        "use_conv_shortcut": not get("seanet.true_skip", True),
        "codebook_size": number("rvq.bins"),
        "target_bandwidths": [bandwidth(number("rvq.n_q"), number("rvq.bins"), frame_rate)],
    }
    weights = _renamed(checkpoint.weights, _CODEC_NAMES)
    return build_codec(settings, weights, checkpoint.where)


def read_lm(path: Path, codec: str = "", text_encoder: str = "") -> Parts:
    """A language model with the codec and the text encoder that it names.

    Args:
        path: `state_dict.bin`, with `compression_state_dict.bin` beside it, or their folder.
        codec, text_encoder: paths to use instead; needed if the checkpoint names none, or if those
            that it names are not available.

    Raises:
        AttuneError: another architecture, or no codec.
    """
    file = path / _LM if path.is_dir() else path
    if not file.is_file():
        raise AttuneError(f"{path}: has no {_LM}; --only codec takes only its {_CODEC}")
    lm = read_checkpoint(file)
    lm.check(_LM_IS)
    n_codebooks = lm.number("transformer_lm.n_q")
    modeling = lm.get("codebooks_pattern.modeling") or lm.get("transformer_lm.q_modeling")
    delays = lm.get("codebooks_pattern.delay.delays") or list(range(n_codebooks))
    if modeling != "delay" or delays != list(range(n_codebooks)):
        raise AttuneError(
            f"{lm.where}: xp.cfg: its streams have the pattern {modeling!r} {delays}; only "
            f"'delay' {list(range(n_codebooks))} is supported"
        )
    theirs = _renamed(_split_projections(lm.weights), _LM_NAMES)
    projection = theirs.get("enc_to_dec_proj.weight")
    if projection is None:
        raise AttuneError(f"{lm.where}: has no projection of a text condition named description")
    arch = Architecture(
        d_model=lm.number("transformer_lm.dim"),
        n_layers=lm.number("transformer_lm.num_layers"),
        n_heads=lm.number("transformer_lm.num_heads"),
        n_codebooks=n_codebooks,
        codebook_size=lm.number("transformer_lm.card"),
        text_dim=projection.shape[1],
        ff_mult=int(lm.get("transformer_lm.hidden_scale", 4)),
    )
    weights = from_musicgen(theirs, arch, lm.where)
    name = text_encoder or str(lm.get("conditioners.description.t5.name", "t5-base"))
    encoder, tokenizer = load_encoder_parts(name)
    if encoder.config.hidden_size != arch.text_dim:
        raise AttuneError(
            f"text encoder {name}: is {encoder.config.hidden_size} wide, but {lm.where} was "
            f"trained with one of {arch.text_dim}; name it with --text-encoder"
        )
    seconds = float(lm.get("dataset.segment_duration", 30.0))
    normalized = lm.get("conditioners.description.t5.normalize_text", False)
    return Parts(
        arch,
        weights,
        _codec_of(lm, file, codec),
        name,
        tokenizer,
        description={
            "prompt_policy": "lemmas" if normalized else "plain",
            "segment_s": seconds,
            "trained_s": seconds,
            "step": 0,
        },
        sampling={"cfg": float(lm.get("classifier_free_guidance.inference_coef", 3.0))},
    )


def _codec_of(lm: Checkpoint, file: Path, given: str) -> Any:
    """The codec beside a language model, or the path of one."""
    beside = file.with_name(_CODEC)
    if beside.is_file():
        checkpoint = read_checkpoint(beside)
        if checkpoint.pretrained:
            return given or checkpoint.pretrained
        inside = read_codec_checkpoint(checkpoint)
        if given:
            check_same(read_codec(resolve_codec(given)), inside, f"codec {given}", str(beside))
        return given or inside
    named = str(lm.get("compression_model_checkpoint", ""))
    if given or named.startswith(_PRETRAINED):
        return given or named.removeprefix(_PRETRAINED)
    raise AttuneError(
        f"{lm.where}: there is no {_CODEC} beside it; name the codec that it was trained with "
        "(--codec)"
    )


def _renamed(weights: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _split_projections(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split each `in_proj_weight` `[3 d, d]` into queries, keys and values."""
    split: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, found, _ = name.partition("in_proj_weight")
        if not found or value.shape[0] % 3:
            split[name] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            split[f"{stem}{letter}_proj.weight"] = part
    return split
