"""CLAP, the backbone of the CLAP score: one embedding space for sounds and texts.

Wu et al., "Large-scale contrastive language-audio pretraining" (2023); the model is `ClapModel` of
transformers, whose feature extraction takes random crops of long clips.  Here a clip is cut into
consecutive windows instead, so that nothing is random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.audio import Wave
from common.errors import one_line
from training.evaluation.metrics.backbones.backbone import Embeddings, MissingBackbone, file_hash

WINDOW_S = 10
SHORTEST_S = 1.0
"""A shorter remainder of a clip is skipped."""


class Clap:
    """The backbone of the CLAP score; `embed` gives a vector per window, `embed_texts` per text."""

    name = "clap"

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """
        Args:
            folder: `ClapModel` with tokenizer and feature extractor, weights as safetensors.

        Raises:
            MissingBackbone: no such folder, or another model in it.
        """
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel
        from transformers.utils import logging as transformers_logging

        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise MissingBackbone(f"{self.name}: no {weights}; `make weights` downloads it")
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        loader: Any = ClapModel  # its types ignore output_loading_info
        try:
            model, loaded = loader.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
                dtype=torch.float32,
            )  # fmt: skip
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.extractor: Any = ClapFeatureExtractor.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise MissingBackbone(
                f"{self.name}: {folder} cannot be loaded: {one_line(error)}"
            ) from error
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
        if missing := sorted(loaded["missing_keys"]):
            raise MissingBackbone(
                f"{self.name}: {weights} lacks {len(missing)} weights ({missing[0]}, ...)"
            )
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.sample_rate = int(self.extractor.sampling_rate)
        settings = self.extractor.to_json_string()
        self.facts = {
            "weights": folder.name,
            "weights_sha256": file_hash(weights),
            "window_s": WINDOW_S,
            "hop_s": WINDOW_S,
            # `preprocessor_config.json` has padding and bands, which also change embeddings.
            "extractor_sha256": hashlib.sha256(settings.encode()).hexdigest()[:16],
        }

    @torch.inference_mode()
    def embed(self, wave: Wave) -> Embeddings:
        """Waveform at 48 kHz to float32 [windows, D], each of norm 1.

        A window shorter than 10 s is repeated as often as it fits and padded with silence, as in
        CLAP's training.
        """
        size = WINDOW_S * self.sample_rate
        parts = [wave[start : start + size] for start in range(0, len(wave), size)]
        parts = [p for p in parts if len(p) >= SHORTEST_S * self.sample_rate] or parts[:1]
        found = self.extractor(parts, sampling_rate=self.sample_rate, return_tensors="pt")
        vectors = self.model.get_audio_features(
            input_features=found["input_features"].to(self.device),
            is_longer=torch.zeros(len(parts), 1, dtype=torch.bool, device=self.device),
        )
        return _unit(vectors)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts to float32 [texts, D], each of norm 1; cut at 512 tokens."""
        found = [
            self.tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
            for text in texts
        ]
        # One by one, because padding would change the vector of a text.
        return np.concatenate(
            [_unit(self.model.get_text_features(**one.to(self.device))) for one in found]
        )


def _unit(output: Any) -> Embeddings:
    vectors = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
