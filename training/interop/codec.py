"""Codecs to and from `EncodecModel` folders, MusicGen folders and other names of the same weights.

A convolution with weight norm is stored in one of three ways, all of which are read here:

    conv.parametrizations.weight.original0 / original1    PyTorch today, what we write
    conv.weight_g / conv.weight_v                         the files that Meta released
    conv.weight                                           folded: the product g v / |v|

The first two hold the same numbers; a folded weight w is read as g = |w|, v = w.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.codec import codec_identity, load_codec
from common.errors import AttuneError
from training.interop.folders import write_record
from training.interop.sources import check_weights, quiet, read_config, read_weights, refusing

_G, _V = "parametrizations.weight.original0", "parametrizations.weight.original1"
_LEFT_OUT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
"""Keys of a configuration that say where it came from, not what the model is."""


def read_codec(folder: Path, where: str = "") -> Any:
    """The codec of an `EncodecModel` folder, or the one inside a MusicGen folder.

    Args:
        folder: holds `config.json` and the weights.
        where: the source, for messages; the folder if empty.

    Returns:
        A Hugging Face `EncodecModel` on the CPU, with weight norm in two parts (g and v).

    Raises:
        AttuneError: another kind of folder, or the weights do not fit the configuration.
    """
    where = where or str(folder)
    settings = read_config(folder)
    kind = settings.get("model_type")
    if kind == "musicgen":
        inner = settings.get("audio_encoder")
        if not isinstance(inner, dict) or inner.get("model_type") != "encodec":
            raise AttuneError(f"{where}: its audio encoder is not an EncodecModel")
        return build_codec(inner, read_weights(folder, "audio_encoder."), where)
    if kind != "encodec":
        raise AttuneError(
            f"{where}: config.json says model_type {kind!r}, expected 'encodec' or 'musicgen'"
        )
    return build_codec(settings, read_weights(folder), where)


def build_codec(settings: dict[str, Any], weights: dict[str, Tensor], where: str) -> Any:
    """An `EncodecModel` of these weights, with weight norm stored in any of the three ways.

    Statistics that only codebook training reads may be missing.  They are then filled in such that
    training continues from the codebooks as they are.

    Raises:
        AttuneError: weights are missing, unknown, or of other shapes.
    """
    from transformers import EncodecConfig, EncodecModel

    plain = {key: value for key, value in settings.items() if key not in _LEFT_OUT}
    with refusing(f"{where}: EncodecModel refuses the configuration"):
        model: Any = EncodecModel(EncodecConfig.from_dict(plain))
    expected = model.state_dict()
    state = canonical_names(weights)
    for name in expected:
        book, _, part = name.rpartition(".")
        if part in ("inited", "cluster_size"):
            state.setdefault(name, torch.ones_like(expected[name]))
        elif part == "embed_avg" and f"{book}.embed" in state:
            state.setdefault(name, state[f"{book}.embed"].clone())
    check_weights(state, expected, f"{where}: the codec")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def canonical_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an `EncodecModel`, float32, with weight norm under PyTorch's present names."""
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        value = value.float() if value.is_floating_point() else value
        layer, _, part = name.rpartition(".")
        if part == "weight_g":
            state[f"{layer}.{_G}"] = value
        elif part == "weight_v":
            state[f"{layer}.{_V}"] = value
        elif part == "weight" and layer.endswith(".conv"):
            norm = value.norm(dim=(1, 2), keepdim=True)
            state[f"{layer}.{_G}"] = norm
            # A channel of zeros has no direction, and 0/0 would be NaN.
            state[f"{layer}.{_V}"] = torch.where(norm == 0, torch.ones_like(value), value)
        else:
            state[name] = value
    return state


def bandwidth(n_codebooks: int, codebook_size: int, frame_rate: int) -> float:
    """Bandwidth in kbit/s from which `EncodecConfig` computes this number of streams."""
    exact = n_codebooks * math.ceil(math.log2(codebook_size)) * frame_rate / 1000
    if 1000 * exact // (frame_rate * math.ceil(math.log2(codebook_size))) == n_codebooks:
        return exact
    return round(exact + 1e-3, 6)  # slightly more, because the quotient is rounded down


def write_codec(folder: Path, model: Any, origin: str, source: Path | None = None) -> str:
    """Write a complete `EncodecModel` folder: weights, configuration, feature extractor, card.

    Args:
        folder: an empty folder.
        model: an `EncodecModel`, with weight norm in two parts.
        origin: where it came from, for the card.
        source: the model's own folder, from which configuration and weights are copied byte for
            byte, so that the `codec_id` stays the same.

    Returns:
        Its `codec_id`.

    Raises:
        AttuneError: Attune cannot run such a codec (it is not mono, ...).
    """
    from transformers import EncodecFeatureExtractor

    config = model.config
    if source:
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(source / name, folder / name)
    else:
        with quiet():
            model.save_pretrained(folder)
    EncodecFeatureExtractor(
        feature_size=config.audio_channels,
        sampling_rate=config.sampling_rate,
        chunk_length_s=config.chunk_length_s,
        overlap=config.overlap,
    ).save_pretrained(folder)
    codec = load_codec(str(folder))
    (folder / "README.md").write_text(
        "---\nlibrary_name: transformers\ntags: [encodec, audio-codec]\n---\n\n# EnCodec\n\n"
        f"{codec.sample_rate} Hz, {codec.frame_rate:g} frames per second, {codec.n_codebooks} x "
        f"{codec.codebook_size} codes. Taken from {origin}.\n\n"
        "```python\nfrom transformers import AutoProcessor, EncodecModel\n\n"
        'codec = EncodecModel.from_pretrained("THIS_FOLDER")\n'
        "codes = codec.encode(audio).audio_codes      # audio: [batch, 1, samples]\n"
        "audio = codec.decode(codes, [None]).audio_values\n```\n"
    )
    return codec_identity(str(folder))


def import_codec(folder: Path, to: Path, origin: str) -> str:
    """Write the codec of an `EncodecModel` or MusicGen folder into the empty folder `to`.

    Files that Attune can read are copied without a change, so that `codec_id` stays the same.

    Returns:
        Its `codec_id`.
    """
    whole = is_codec(folder) and (folder / "model.safetensors").is_file()
    as_it_is = whole and not any(name.endswith(".conv.weight") for name in read_weights(folder))
    return write_codec(to, read_codec(folder, origin), origin, folder if as_it_is else None)


def export_codec(source: Path, to: Path) -> dict[str, Any]:
    """Copy a codec folder into the empty folder `to`, with all files that Hugging Face needs.

    Returns:
        Its kind and `codec_id`, for `--json`.
    """
    codec_id = write_codec(to, read_codec(source), source.name, source)
    if (source / "README.md").is_file():
        shutil.copyfile(source / "README.md", to / "README.md")
    facts = {"kind": "codec", "codec_id": codec_id}
    write_record(to, facts)
    return facts


def is_codec(folder: Path) -> bool:
    """Whether a folder's `config.json` says that it is an `EncodecModel`."""
    return folder.is_dir() and read_config(folder).get("model_type") == "encodec"
