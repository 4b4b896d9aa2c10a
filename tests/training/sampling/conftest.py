"""A small random decoder, whose choices show every change of its inputs."""

from __future__ import annotations

import pytest
import torch

from training.lm.model import Architecture, LanguageModel
from training.sampling.decoder import DecodingWeights


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    """Three codebooks of 40 codes, text 20 wide."""
    model = LanguageModel(Architecture(64, 2, 4, n_codebooks=3, codebook_size=40, text_dim=20))
    model.initialize(0)
    with torch.no_grad():
        model.text_projection.bias.normal_(generator=torch.Generator().manual_seed(1))
        model.head.weight.mul_(4)  # far from uniform, so that changes would show
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def weights(model: LanguageModel) -> DecodingWeights:
    return DecodingWeights(model)
