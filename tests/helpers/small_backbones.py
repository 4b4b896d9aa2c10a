"""Backbones with small random weights, in the files that the real ones come in."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def write_vggish(path: Path, dim: int = 16) -> dict[str, torch.Tensor]:
    """A state dict like `vggish-10086976.pth`'s: names and layout, narrower layers."""
    torch.manual_seed(0)
    widths = {0: (1, 8), 3: (8, 8), 6: (8, 12), 8: (12, 12), 11: (12, 16), 13: (16, 16)}
    state = {}
    for place, (inside, out) in widths.items():
        state[f"features.{place}.weight"] = torch.randn(out, inside, 3, 3) * (2 / inside / 9) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(out)
    for place, (inside, out) in {0: (16 * 6 * 4, 24), 2: (24, 24), 4: (24, dim)}.items():
        state[f"embeddings.{place}.weight"] = torch.randn(out, inside) * (2 / inside) ** 0.5
        state[f"embeddings.{place}.bias"] = 0.1 * torch.randn(out)
    torch.save(state, path)
    return state


def write_passt(path: Path, columns: int = 99, labels: int = 527) -> dict[str, torch.Tensor]:
    """A state dict like PaSST's releases: 12 rows of patches, two blocks of two heads."""
    generator = torch.Generator().manual_seed(1)
    dim, hidden = 128, 64

    def normal(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": normal(1, 1, dim),
        "dist_token": normal(1, 1, dim),
        "new_pos_embed": normal(1, 2, dim),
        "freq_new_pos_embed": normal(1, dim, 12, 1),
        "time_new_pos_embed": normal(1, dim, 1, columns),
        "patch_embed.proj.weight": normal(dim, 1, 16, 16),
        "patch_embed.proj.bias": normal(dim),
        "norm.weight": 1 + normal(dim),
        "norm.bias": normal(dim),
        "head.0.weight": 1 + normal(dim),
        "head.0.bias": normal(dim),
        "head.1.weight": normal(labels, dim),
        "head.1.bias": normal(labels),
        "head_dist.weight": normal(labels, dim),
        "head_dist.bias": normal(labels),
    }
    for block in range(2):
        for name, out, inside in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", hidden, dim),
            ("mlp.fc2", dim, hidden),
        ):
            state[f"blocks.{block}.{name}.weight"] = normal(out, inside)
            state[f"blocks.{block}.{name}.bias"] = normal(out)
        for name in ("norm1", "norm2"):
            state[f"blocks.{block}.{name}.weight"] = 1 + normal(dim)
            state[f"blocks.{block}.{name}.bias"] = normal(dim)
    torch.save(state, path)
    return state


def write_clap(folder: Path) -> None:
    """A `ClapModel` folder with tokenizer and feature extractor, as `laion/clap-htsat-*`."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(2)
    config = ClapConfig(
        text_config={
            "vocab_size": len(pieces),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "projection_dim": 8,
            "pad_token_id": 1,
        },
        audio_config={
            "enable_fusion": True,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "projection_dim": 8,
        },
        projection_dim=8,
    )
    ClapModel(config).save_pretrained(folder)
    # The real fusion models' extractor: the kind that draws.
    ClapFeatureExtractor(truncation="fusion").save_pretrained(folder)
