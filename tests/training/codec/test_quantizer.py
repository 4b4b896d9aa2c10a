"""Vector quantization while training: nearest codes, straight-through gradients, living codes."""

import pytest
import torch
from torch import Tensor, nn

from training.codec.config import CodecArchitecture
from training.codec.model import build_model
from training.codec.quantizer import (
    ResidualQuantizerTrainer,
    count_uses,
    kmeans,
    nearest,
    usage,
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(CodecArchitecture(num_filters=2, hidden_size=8, codebook_size=16), 16_000)


def _latents(seed: int = 0) -> Tensor:
    return torch.randn(4, 8, 50, generator=torch.Generator().manual_seed(seed))


def test_codes_are_those_that_the_saved_model_gives(model: nn.Module):
    trainer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.1)
    trainer.start(_latents(), torch.Generator().manual_seed(1))
    latents = _latents(1)
    quantized = trainer(latents, None)
    assert torch.equal(quantized.codes, model.quantizer.encode(latents))
    torch.testing.assert_close(quantized.latents, model.quantizer.decode(quantized.codes))


def test_each_stream_leaves_a_smaller_residual(model: nn.Module):
    trainer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.1)
    trainer.start(_latents(), torch.Generator().manual_seed(1))
    latents = _latents()
    codes = trainer(latents, None).codes
    errors = [
        float((latents - model.quantizer.decode(codes[:k])).pow(2).mean()) for k in range(1, 5)
    ]
    assert errors == sorted(errors, reverse=True)


def test_gradients_pass_straight_through_and_commitment_reaches_the_encoder(model: nn.Module):
    trainer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.1)
    trainer.start(_latents(), torch.Generator().manual_seed(1))
    latents = _latents(2).requires_grad_()
    weight = torch.randn(4, 8, 50)
    quantized = trainer(latents, None)
    (straight,) = torch.autograd.grad(
        (quantized.latents * weight).sum(), latents, retain_graph=True
    )
    torch.testing.assert_close(straight, weight)
    (pull,) = torch.autograd.grad(quantized.commitment, latents)
    assert pull.abs().sum() > 0


def test_codebooks_move_to_the_mean_of_their_vectors(model: nn.Module):
    trainer = ResidualQuantizerTrainer(model.quantizer, decay=0.5, dead_code_threshold=0.0)
    trainer.start(_latents(), torch.Generator().manual_seed(1))
    book = trainer.codebooks[0]
    vectors = _latents(3).transpose(1, 2).flatten(0, 1)
    chosen = nearest(vectors, book.embed)
    expected_size = book.cluster_size * 0.5 + 0.5 * torch.bincount(chosen, minlength=16)
    sums = torch.stack([vectors[chosen == c].sum(0) for c in range(16)])
    expected = (book.embed_avg * 0.5 + 0.5 * sums) / expected_size[:, None]
    trainer(_latents(3), torch.Generator().manual_seed(2))
    torch.testing.assert_close(book.embed, expected)


def test_a_dead_code_comes_back_to_life_where_the_data_are(model: nn.Module):
    trainer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.1)
    trainer.start(_latents(), torch.Generator().manual_seed(1))
    book = trainer.codebooks[0]
    book.embed[3] = 1e6
    book.embed_avg[3] = 1e6 * 1e-3
    book.cluster_size[3] = 1e-3
    trainer(_latents(4), torch.Generator().manual_seed(2))
    vectors = _latents(4).transpose(1, 2).flatten(0, 1)
    assert (vectors - book.embed[3]).norm(dim=1).min() < 1e-4
    assert book.cluster_size[3] > 1
    used = trainer(_latents(4), None).codes[0]
    assert (used == 3).any()


def test_kmeans_finds_separated_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    generator = torch.Generator().manual_seed(4)
    vectors = torch.cat([c + 0.1 * torch.randn(50, 2, generator=generator) for c in centres])
    # More clusters than groups of vectors: random starts then miss none of them.
    found, sizes = kmeans(vectors, 8, 20, generator)
    assert sizes.sum() == 150
    distances = torch.cdist(centres, found)
    assert distances.min(dim=1).values.max() < 0.5
    assert distances.min(dim=0).values.max() < 0.5


def test_usage_and_perplexity_of_known_distributions():
    codes = torch.stack([torch.arange(16).repeat(4), torch.zeros(64, dtype=torch.long)])
    used, perplexity = usage(count_uses(codes, 16))
    assert used == pytest.approx([1.0, 1 / 16])
    assert perplexity == pytest.approx([16.0, 1.0])


def test_what_is_dead_is_measured_against_the_mean_use(model: nn.Module):
    """200 vectors for 16 codes: a code used 7 times lives at half the mean of 12.5, one used 6
    times does not."""
    trainer = ResidualQuantizerTrainer(model.quantizer, decay=0.999_999, dead_code_threshold=0.5)
    trainer.start(_latents(), torch.Generator().manual_seed(1))
    book = trainer.codebooks[0]
    before = book.embed.clone()
    book.cluster_size.fill_(12.5)
    book.cluster_size[3], book.cluster_size[5] = 6.0, 7.0
    book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
    trainer(_latents(4), torch.Generator().manual_seed(2))
    moved = (book.embed - before).norm(dim=1) > 1e-3
    assert moved.nonzero().flatten().tolist() == [3]
    assert float(book.cluster_size[3]) == 12.5
