"""Weights laid out for decoding, batches, windows, continuation, streaming, guidance, top-p."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from random_run import padded, text_states

from common.config import Recipe
from common.shards import ShardDataset
from training.lm.model import LanguageModel
from training.lm.patterns import delay
from training.sampling.config import SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights
from training.sampling.draw import choose, gumbel_noise, sample_codes, stream_codes
from training.sampling.packed import (
    LAYOUTS,
    Kind,
    Processor,
    default_kind,
    head_kind,
    linear,
    processor_of,
    quantize,
)
from training.sampling.sampler import Sampler

SPECIAL = 40
PLAIN = SamplingConfig(weights="fp32")
CPU = torch.device("cpu")


def _runs(layouts: str) -> bool:
    """Whether these layouts' libraries are here; the processor need not be the one they suit."""
    mkl, onednn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()
    return {"Intel": mkl, "other": True}.get(layouts, onednn)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 33])
@pytest.mark.parametrize("layouts", LAYOUTS)
def test_products_are_those_of_linear_layers_on_every_processor(layouts: str, rows: int) -> None:
    """In a weight small enough for each processor's layouts and in one that is large enough."""
    if not _runs(layouts):
        pytest.skip("another library")
    processor = Processor(layouts, bf16=False, int8=True)
    _are_linear_layers(processor, rows, 96, 64)
    _are_linear_layers(processor_of(CPU), rows, 96, 64)
    large = torch.randn(1 << 10, 1 << 9, generator=torch.Generator().manual_seed(0)) / 22
    x = torch.randn(rows, 1 << 9, generator=torch.Generator().manual_seed(1))
    product = linear(large, "fp32", processor=processor)
    # Made for these rows, for others, and for these once more.
    for expected in (rows, rows + 8, rows):
        product.expect(expected)
        torch.testing.assert_close(product(x), F.linear(x, large), atol=1e-5, rtol=1e-5)
        found = product.plus(torch.ones(rows, 1 << 10), x)
        torch.testing.assert_close(found, 1 + F.linear(x, large), atol=1e-5, rtol=1e-5)
    # Not contiguous, as keys of one clip multiplied into weights are.
    turned = linear(large.t(), "fp32", processor=processor)
    turned.expect(rows)
    y = torch.randn(rows, 1 << 10, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(turned(y), y @ large, atol=2e-5, rtol=1e-5)


def _are_linear_layers(processor: Processor, rows: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(height, width, generator=generator) / width**0.5
    x, total = (torch.randn(rows, n, generator=generator) for n in (width, height))
    exact = F.linear(x, weight)
    bounds: dict[Kind, float] = {"fp32": 1e-6, "bf16": 0.02, "int8": 0.02}
    for kind, bound in bounds.items():
        given = x if kind == "fp32" else x.bfloat16()
        # Made for these rows, or for others.
        for gelu, expected_rows in itertools.product((False, True), (0, rows, rows + 8)):
            expected = F.gelu(exact) if gelu else exact
            product = linear(weight, kind, gelu, processor)
            product.expect(expected_rows)
            found = product(given)
            assert found.shape == expected.shape
            assert (found.float() - expected).abs().max() < bound * exact.abs().max()
        # The sum is float32 whatever the weights are, and the total stays what it was.
        before, product = total.clone(), linear(weight, kind, processor=processor)
        product.expect(rows)
        assert (product.plus(total, given) - total - exact).abs().max() < bound * exact.abs().max()
        assert product.plus(total, given).dtype == torch.float32
        assert torch.equal(total, before)


@pytest.mark.parametrize("layouts", ["Intel", "AVX2", "AVX-512"])
def test_weights_are_laid_out_once_for_as_many_rows(model: LanguageModel, layouts: str) -> None:
    if not _runs(layouts):
        pytest.skip("another library")
    processor = Processor(layouts, bf16=False, int8=True)
    small = DecodingWeights(model, processor=processor).head
    large = linear(torch.ones(1 << 10, 1 << 9), "fp32", processor=processor)
    for product in (small, large):
        product.expect(16)
        layout = product.layout
        product.expect(16)
        assert product.layout is layout
        product.expect(2)
        # AVX2 leaves small weights plain, whatever the rows.
        assert (product.layout is not layout) == (product is large or layouts != "AVX2")


def test_int8_without_instructions_for_bf16(model: LanguageModel) -> None:
    """The head is exact then, not bf16."""
    plain = Processor("other", bf16=False, int8=True)
    column = torch.zeros(1, 3, dtype=torch.long)
    exact, found = (
        Decoder(DecodingWeights(model, kind, plain), text_states(4), 5, guided=True).step(column)
        for kind in ("fp32", "int8")
    )
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.06 * exact.abs().max()


@pytest.mark.parametrize("width", [1, 15, 20, 48, 100])
def test_widths_that_kernels_do_not_expect(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weight, x = (torch.randn(rows, width, generator=generator) for rows in (5, 3))
    # Relative to the largest sum that products of such sizes could have.
    size = float((x.abs() @ weight.abs().t()).max())
    bounds: dict[Kind, float] = {"fp32": 1e-6, "bf16": 0.01, "int8": 0.02}
    for kind, bound in bounds.items():
        found = linear(weight, kind)(x if kind == "fp32" else x.bfloat16())
        assert (found.float() - x @ weight.t()).abs().max() < bound * size


def test_int8_rounds_to_the_nearest_of_255_levels() -> None:
    weight = torch.randn(50, 64) * torch.logspace(-4, 3, 50)[:, None]
    weight[3] = 0
    codes, scale = quantize(weight)
    assert codes.dtype == torch.int8 and scale.dtype == torch.bfloat16
    # Half a level, and one part in 256 where the scale was rounded down and 127 levels end early.
    off = (codes.float() * scale.float()[:, None] - weight).abs()
    assert bool((off <= 0.5 * scale.float()[:, None] + weight.abs() / 250).all())
    assert bool((codes[3] == 0).all())


def test_columns_together_are_columns_one_by_one(weights: DecodingWeights) -> None:
    codes = torch.randint(0, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    inputs, _ = delay(codes, torch.tensor([9, 9]), SPECIAL)
    one, many = (Decoder(weights, text_states(4, 2), 11, guided=True) for _ in range(2))
    with torch.inference_mode():
        singly = [one.step(inputs[:, :, step]) for step in range(11)]
        torch.testing.assert_close(many.step(inputs[:, :, :4]), singly[3], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(many.step(inputs[:, :, 4]), singly[4], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(many.step(inputs[:, :, 5:]), singly[10], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_computes_the_same_steps(model: LanguageModel, weights: DecodingWeights) -> None:
    codes = torch.randint(0, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    inputs, _ = delay(codes, torch.tensor([9, 9]), SPECIAL)
    there = DecodingWeights(copy.deepcopy(model).cuda())
    for states in (text_states(4, 2), text_states(20, 13)):  # folded cross-attention, and not
        here = Decoder(weights, states, 11, guided=True).step(inputs)
        found = Decoder(there, states, 11, guided=True).step(inputs.cuda())
        torch.testing.assert_close(found.cpu(), here, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_smaller_weights_are_nearly_the_same_model(model: LanguageModel, kind: Kind) -> None:
    codes = torch.randint(0, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    inputs, _ = delay(codes, torch.tensor([9, 9]), SPECIAL)
    # Two clips; one clip with folded cross-attention, and one without.
    for states in (text_states(4, 2), text_states(5), text_states(20)):
        found = []
        for one in (DecodingWeights(model), DecodingWeights(model, kind)):
            decoder = Decoder(one, states, 11, guided=True)
            columns = inputs[: len(states)]
            with torch.inference_mode():
                found.append(torch.stack([decoder.step(columns[:, :, s]) for s in range(11)]))
        exact, near = found
        assert (near - exact).abs().max() < 0.06 * exact.abs().max()
        assert (near - exact).abs().mean() < 0.01 * exact.abs().max()
        assert not torch.equal(near, exact)


@pytest.mark.parametrize(
    ("bf16", "int8", "one", "head", "several"),
    [
        (True, True, "int8", "bf16", "bf16"),
        (False, True, "int8", "fp32", "fp32"),
        (True, False, "bf16", "bf16", "bf16"),
        (False, False, "fp32", "fp32", "fp32"),
    ],
)
def test_the_default_follows_the_processor(
    bf16: bool, int8: bool, one: Kind, head: Kind, several: Kind
) -> None:
    processor = Processor("other", bf16, int8)
    assert default_kind(processor, 1) == one and head_kind(one, processor) == head
    assert default_kind(processor, 2) == several and head_kind(several, processor) == several


def test_the_default_on_a_gpu_is_bf16() -> None:
    gpu = processor_of(torch.device("cuda"))
    assert default_kind(gpu, 1) == "bf16" and head_kind("int8", gpu) == "bf16"


def test_a_clip_does_not_depend_on_its_batch(weights: DecodingWeights) -> None:
    states, keys = text_states(*range(1, 17)), list(range(16))
    together = sample_codes(weights, states, keys, 40, PLAIN)
    for i in range(16):
        alone = sample_codes(weights, states[i : i + 1], keys[i : i + 1], 40, PLAIN)
        assert torch.equal(alone[0], together[i])


def test_a_continuation_begins_with_the_clip_and_continues_as_the_model_does(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    """Greedy codes after a given beginning, against argmax over full forwards."""
    states = text_states(5, 3)
    prefix = torch.randint(0, 40, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    greedy = SamplingConfig(temperature=0.0, cfg=1.0)
    codes = sample_codes(weights, states, [0, 0], 15, greedy, prefix=prefix)
    assert torch.equal(codes[:, :, :7], prefix)
    inputs, targets = delay(codes, torch.tensor([15, 15]), SPECIAL)
    best = model(inputs, *padded(states))[0].argmax(-1).transpose(1, 2)
    own = torch.zeros_like(targets, dtype=torch.bool)
    for k in range(3):
        own[:, k, 7 + k : 15 + k] = True
    assert torch.equal(best[own], targets[own])


def test_continuing_a_clip_by_its_own_codes_repeats_it(weights: DecodingWeights) -> None:
    states = text_states(5)
    whole = sample_codes(weights, states, [3], 30, PLAIN)
    again = sample_codes(weights, states, [3], 30, PLAIN, prefix=whole[:, :, :11])
    # Codes of later streams are drawn at other steps only where they are given.
    assert torch.equal(again, whole)


def test_windows_are_continuations_of_their_overlap(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    """Every greedy code of a long clip is the model's choice given only its window."""
    states, window = text_states(5), 10
    greedy = SamplingConfig(temperature=0.0, cfg=1.0)
    codes = sample_codes(weights, states, [0], 25, greedy, window=window)
    assert codes.shape == (1, 3, 25)
    grid = torch.full((3, 27), SPECIAL)
    for k in range(3):
        grid[k, k : k + 25] = codes[0, k]
    # Steps 0...9 in the first window; then each begins with the 5 steps before it.
    begins = [0] * 10
    while len(begins) < 27:
        begins += [len(begins) - 5] * 5
    for step in range(27):
        begin = begins[step]
        inputs = torch.full((1, 3, step - begin + 1), SPECIAL)
        for k in range(3):
            inputs[0, k, k + 1 :] = grid[k, begin + k : step]
        best = model(inputs, *padded(states))[0][0, -1].argmax(-1)
        for k in range(3):
            if 0 <= step - k < 25:
                assert best[k] == grid[k, step]


def test_a_clip_that_fits_is_not_cut(weights: DecodingWeights) -> None:
    states = text_states(5)
    whole = sample_codes(weights, states, [0], 20, PLAIN)
    assert torch.equal(sample_codes(weights, states, [0], 20, PLAIN, window=20), whole)
    longer = sample_codes(weights, states, [0], 40, PLAIN, window=20)
    assert torch.equal(longer[:, :, :17], whole[:, :, :17])
    long_prefix = sample_codes(weights, states, [0], 45, PLAIN, window=20, prefix=longer)
    assert torch.equal(long_prefix[:, :, :40], longer)
    assert int(long_prefix.max()) < 40


def test_streaming_hands_out_the_same_codes(weights: DecodingWeights) -> None:
    states = text_states(5, 2)
    whole = sample_codes(weights, states, [0, 1], 12, PLAIN)
    seen = []
    for done, grid in stream_codes(weights, states, [0, 1], 12, PLAIN):
        seen.append(done)
        for k in range(3):
            assert torch.equal(grid[:, k, k : k + done], whole[:, k, :done])
    assert seen == [0, 0, *range(1, 13)]


def test_a_negative_prompt_takes_the_place_of_no_text(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    states, negative = text_states(5), text_states(3, 4)[1]
    greedy = SamplingConfig(temperature=0.0, cfg=2.5)
    codes = sample_codes(weights, states, [0], 12, greedy, negative=negative)
    assert not torch.equal(codes, sample_codes(weights, states, [0], 12, greedy))
    inputs, targets = delay(codes, torch.tensor([12]), SPECIAL)
    toward, away = (model(inputs, *padded([state]))[0] for state in (states[0], negative))
    best = (away + 2.5 * (toward - away)).argmax(-1).transpose(1, 2)
    valid = targets >= 0
    assert torch.equal(best[valid], targets[valid])
    with pytest.raises(ValidationError, match="cfg=1 has none"):
        SamplingConfig(negative_prompt="noise", cfg=1)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    shares = torch.tensor([0.05, 0.5, 0.3, 0.15])
    draws = torch.from_numpy(np.random.default_rng(0).integers(1 << 32, size=(20000, 1)))
    logits = shares.log().expand(20000, 1, 4)
    found = Counter(choose(logits, draws, 250, 1.0, top_p=0.7).flatten().tolist())
    assert set(found) == {1, 2}
    assert abs(found[1] / 20000 - 0.5 / 0.8) < 0.015
    assert set(choose(logits, draws, 250, 1.0, top_p=0.5001).flatten().tolist()) == {1, 2}
    assert set(choose(logits, draws, 250, 1.0, top_p=0.4).flatten().tolist()) == {1}
    # Within the top k only: .5 and .3 remain.
    assert set(choose(logits, draws, 2, 1.0, top_p=0.7).flatten().tolist()) == {1, 2}
    assert set(choose(logits, draws, 2, 1.0, top_p=0.6).flatten().tolist()) == {1}
    everything = choose(logits, draws, 250, 1.0)
    assert torch.equal(choose(logits, draws, 250, 1.0, top_p=1.0), everything)


def test_noise_is_gumbels_whatever_draws_and_codes_are() -> None:
    """Its uniform numbers are even, and do not go together over codes or neighbouring draws."""
    codes = torch.arange(2048)[None, None]
    apart = torch.from_numpy(np.random.default_rng(0).integers(1 << 32, size=(1, 500)))
    for draws in (torch.arange(500)[None], apart, (1 << 32) - 1 - torch.arange(500)[None]):
        noise = gumbel_noise(draws, codes.expand(1, 500, -1))[0]
        assert torch.equal(noise, gumbel_noise(draws, codes.expand(1, 500, -1))[0])
        uniform = torch.exp(-torch.exp(-noise.double()))
        counts = torch.histc(uniform.float(), bins=1000, min=0, max=1).double()
        expected = uniform.numel() / 1000
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - 999) < 5 * (2 * 999) ** 0.5
        for one, other in ((uniform[1:], uniform[:-1]), (uniform[:, 1:], uniform[:, :-1])):
            found = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
            assert abs(float(found)) < 5 / one.numel() ** 0.5
    # Draws whose hash with a code is 0 at its lowest, and at its highest.
    ends = gumbel_noise(torch.tensor([[0, (-7 * 0x9E3779B1) % (1 << 32)]]), codes.expand(1, 2, -1))
    assert bool(torch.isfinite(ends).all()) and ends.min() < -2.5
    likely = torch.full((1, 1, 2048), -30.0).index_fill(2, torch.tensor(7), 0.0)
    for draw in (0, (-7 * 0x9E3779B1) % (1 << 32)):
        for top_p in (1.0, 0.5):
            assert choose(likely, torch.tensor([[draw]]), 250, 1.0, top_p).item() == 7


def test_2048_codes_come_as_often_as_they_should() -> None:
    """A chi-squared test over sampled codes."""
    logits = 2 * torch.randn(2048, generator=torch.Generator().manual_seed(0))
    draws = torch.from_numpy(np.random.default_rng(1).integers(1 << 32, size=(500, 400)))
    found = torch.cat(
        [choose(logits.expand(1, 400, -1), row[None], 250, 1.3).flatten() for row in draws]
    )
    kept = logits.topk(250).indices
    share = torch.softmax(logits[kept].double() / 1.3, dim=0)
    counts = torch.bincount(found, minlength=2048)[kept].double()
    assert counts.sum() == len(found) == 200_000
    expected = share * len(found)
    assert expected.min() > 50
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert chi < 249 + 5 * (2 * 249) ** 0.5


def test_a_choice_outlasts_small_changes_of_its_logits() -> None:
    """Nearly as few choices change as any coupling needs: the distance of the distributions."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(64, 50, 2048, generator=generator)
    other = logits + 0.05 * torch.randn(logits.shape, generator=generator)
    draws = torch.randint(1 << 32, (64, 50), generator=generator)
    one, two = (choose(x, draws, 2048, 1.0) for x in (logits, other))
    shares = [torch.softmax(x.double(), dim=-1) for x in (logits, other)]
    distance = float((shares[0] - shares[1]).abs().sum(-1).mean()) / 2
    changed = float((one != two).double().mean())
    assert 0.5 * distance < changed < 2 * distance < 0.05


def test_a_stream_of_sound_is_the_clip(tiny_recipe: Recipe, tiny_run: Path) -> None:
    sampler = Sampler.load(tiny_recipe, tiny_run)
    prompts, seeds = ["a dog is barking", "rain"], [1, 2]
    wavs, _ = sampler.generate(prompts, 0.4, seeds, PLAIN)
    chunks = list(sampler.stream(prompts, 0.4, seeds, PLAIN, chunk_s=0.04))
    assert len(chunks) > 1
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), np.stack(wavs), atol=1e-5)


def test_longer_than_trained_and_continued(tiny_recipe: Recipe, tiny_run: Path) -> None:
    sampler = Sampler.load(tiny_recipe, tiny_run)
    data = ShardDataset.open(tiny_recipe.data_dir)
    wavs, codes = sampler.generate(["rain"], 1.0, [1], PLAIN)
    assert wavs[0].shape == (16000,) and codes.shape == (1, 4, 50)
    assert sampler.trained_s < 1
    given = torch.from_numpy(data.read(0).codes[None, :, :10].astype(np.int64))
    beginning = sampler.codec.decode(given)[0].numpy()
    told: list[tuple[int, int]] = []
    _, longer = sampler.generate(
        ["rain", "dog"], 0.4, [1, 2], PLAIN, lambda *s: told.append(s), continue_from=beginning
    )
    expected = sampler.codec.encode_track(beginning)
    assert all(np.array_equal(codes[:, :10], expected) for codes in longer)
    assert not np.array_equal(longer[0], longer[1])
    assert told[-1] == (13, 13)
