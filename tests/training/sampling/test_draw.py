"""Weights laid out for decoding, windows, continuation, streaming, negative prompts, top-p."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from common.config import Recipe
from common.shards import ShardDataset
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delay
from training.sampling import packed
from training.sampling.config import SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights, StaticDecoder
from training.sampling.draw import choose, gumbel_noise, sample_codes, stream_codes
from training.sampling.packed import Kind, default_kind, head_kind, linear, quantize
from training.sampling.sampler import Sampler

ARCH = Architecture(d_model=64, n_layers=2, n_heads=4, n_codebooks=3, codebook_size=40, text_dim=20)
PLAIN = SamplingConfig(weights="fp32")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    model = LanguageModel(ARCH)
    model.initialize(0)
    with torch.no_grad():
        model.text_projection.bias.normal_(generator=torch.Generator().manual_seed(1))
        model.head.weight.mul_(4)  # far from uniform, so that changes would show
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(model: LanguageModel) -> DecodingWeights:
    return DecodingWeights(model)


def _states(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, 20)).astype(np.float16) for n in lengths]


def _given(states: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and mask as the model wants them."""
    text = torch.zeros(len(states), max(map(len, states)), 20)
    mask = torch.zeros(text.shape[:2], dtype=torch.bool)
    for i, state in enumerate(states):
        text[i, : len(state)] = torch.from_numpy(state.astype(np.float32))
        mask[i, : len(state)] = True
    return text, mask


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_packed_products_are_linear_layers(rows: int) -> None:
    _are_linear_layers(rows)


def _are_linear_layers(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(96, 64, generator=generator) / 8
    x, total = (torch.randn(rows, n, generator=generator) for n in (64, 96))
    exact = F.linear(x, weight)
    bounds: dict[Kind, float] = {"fp32": 1e-6, "bf16": 0.02, "int8": 0.02}
    for kind, bound in bounds.items():
        given = x if kind == "fp32" else x.bfloat16()
        # Made for these rows, or for others.
        for gelu, expected_rows in itertools.product((False, True), (0, rows, rows + 8)):
            expected = F.gelu(exact) if gelu else exact
            product = linear(weight, kind, gelu)
            product.expect(expected_rows)
            found = product(given)
            assert found.shape == expected.shape
            assert (found.float() - expected).abs().max() < bound * exact.abs().max()
        # The sum is float32 whatever the weights are, and the total stays what it was.
        before, product = total.clone(), linear(weight, kind)
        product.expect(rows)
        assert (product.plus(total, given) - total - exact).abs().max() < bound * exact.abs().max()
        assert product.plus(total, given).dtype == torch.float32
        assert torch.equal(total, before)


@pytest.mark.parametrize(("layout", "alone"), [("MKL's", 0), ("a convolution's", 2)])
@pytest.mark.skipif(not (packed._has_mkl() and packed._has_onednn()), reason="other libraries")
def test_weights_laid_out_for_some_rows_are_so_once(
    weights: DecodingWeights, monkeypatch: pytest.MonkeyPatch, layout: str, alone: int
) -> None:
    _takes(monkeypatch, layout)
    whole = DecodingWeights(weights.model)
    Decoder(whole, _states(4, 2, 3, 4), 5, guided=True)
    head = whole.head
    assert isinstance(head, packed._LaidOut) and head._rows == 8
    before = head._packed
    Decoder(whole, _states(3, 2, 3, 4), 5, guided=True)
    assert head._packed is before
    Decoder(whole, _states(4), 5, guided=True)
    assert head._rows == alone and head._packed is not before
    assert (head._packed.numel() == 0) == (alone == 0)


LAYOUTS = {
    "MKL's": packed._Mkl,
    "oneDNN's": packed._Packed,
    "oneDNN's by rows": packed._ByRows,
    "a convolution's": packed._Convolution,
}


def _takes(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """Have exact weights read in this layout, whatever the processor is."""
    monkeypatch.setattr(packed, "_is_intel", lambda: layout == "MKL's")
    monkeypatch.setattr(packed, "_is_avx2", lambda: layout == "a convolution's")
    monkeypatch.setattr(packed, "_is_avx512", lambda: layout == "oneDNN's by rows")
    monkeypatch.setattr(packed._Convolution, "LEAST_SIZE", 0)
    monkeypatch.setattr(packed._ByRows, "LEAST_SIZE", 0)


@pytest.mark.parametrize("least", [0, 1 << 40])
@pytest.mark.skipif(not packed._has_onednn(), reason="another library")
def test_a_layout_for_the_rows_that_are_expected(
    monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    _takes(monkeypatch, "oneDNN's by rows")
    monkeypatch.setattr(packed._ByRows, "LEAST_SIZE", least)
    product = linear(torch.ones(8, 8), "fp32")
    assert isinstance(product, packed._ByRows)
    seen = []
    for rows in (2, 8, 8, 32, 1):
        product.expect(rows)
        seen.append(product._product)
    few, eight, again, many, one = seen
    assert isinstance(few, packed._Packed) and isinstance(one, packed._Packed)
    assert again is eight and many is not eight and (eight is few) == (least > 0)
    assert isinstance(many, packed._Packed if least else packed._Convolution)


@pytest.mark.parametrize("rows", [1, 2, 8, 70])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.skipif(not (packed._has_mkl() and packed._has_onednn()), reason="other libraries")
def test_all_ways_to_read_exact_weights(
    monkeypatch: pytest.MonkeyPatch, layout: str, rows: int
) -> None:
    """Whichever this processor takes, the others are the same function."""
    _takes(monkeypatch, layout)
    assert isinstance(linear(torch.ones(8, 8), "fp32"), LAYOUTS[layout])
    _are_linear_layers(rows)
    # Not contiguous, as keys of one clip multiplied into weights are.
    generator = torch.Generator().manual_seed(0)
    _are_near(torch.randn(64, 96, generator=generator).t(), torch.randn(2, 64, generator=generator))


def _are_near(weight: torch.Tensor, x: torch.Tensor) -> None:
    exact = x @ weight.t()
    # Of the largest that a sum of products of such sizes could be.
    size = float((x.abs() @ weight.abs().t()).max())
    bounds: dict[Kind, float] = {"fp32": 1e-6, "bf16": 0.01, "int8": 0.02}
    for kind, bound in bounds.items():
        found = linear(weight, kind)(x if kind == "fp32" else x.bfloat16())
        assert (found.float() - exact).abs().max() < bound * size


def test_bf16_without_instructions_for_it(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_has_bf16", lambda: False)
    _are_linear_layers(2)
    column = torch.zeros(1, 3, dtype=torch.long)
    exact, found = (
        Decoder(DecodingWeights(model, kind), _states(4), 5, guided=True).step(column)
        for kind in ("fp32", "int8")
    )
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.06 * exact.abs().max()


@pytest.mark.parametrize("width", [1, 15, 20, 48, 100])
def test_widths_that_kernels_do_not_expect(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    _are_near(
        torch.randn(5, width, generator=generator), torch.randn(3, width, generator=generator)
    )


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
    inputs, _ = delay(codes, torch.tensor([9, 9]), ARCH.special)
    one, many = (Decoder(weights, _states(4, 2), 11, guided=True) for _ in range(2))
    with torch.inference_mode():
        singly = [one.step(inputs[:, :, step]) for step in range(11)]
        torch.testing.assert_close(many.step(inputs[:, :, :4]), singly[3], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(many.step(inputs[:, :, 4]), singly[4], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(many.step(inputs[:, :, 5:]), singly[10], atol=1e-5, rtol=1e-4)


def _steps_of(decoder: Decoder, inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        first = decoder.step(inputs[:, :, :3])
        rest = [decoder.step(inputs[:, :, s]).clone() for s in range(3, inputs.shape[-1])]
        return torch.stack([first, *rest])


def test_a_graph_is_recorded_and_launched_on_the_gpu_of_its_cache(
    weights: DecodingWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, seen = [torch.device("cuda:0")], []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    decoder = StaticDecoder(weights, _states(2), 3, guided=False)
    gpu = torch.device("cuda:1")

    def launch() -> None:
        seen.append(("launched", current[-1]))

    def record(column: torch.Tensor) -> None:
        seen.append(("recorded", current[-1]))
        decoder._graph = SimpleNamespace(replay=launch)

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(decoder, "_cache", SimpleNamespace(device=gpu))
    monkeypatch.setattr(decoder, "_record", record)
    for _ in range(2):
        decoder.step(torch.zeros(1, 3, dtype=torch.long))
    assert seen == [("recorded", gpu), ("launched", gpu), ("launched", gpu)]


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:1"])
def test_static_shapes_change_nothing(model: LanguageModel, device: str) -> None:
    """On a GPU, also one that is not the current one, the static steps are a recorded graph."""
    if device != "cpu" and torch.cuda.device_count() <= int(device[-1]):
        pytest.skip("no such GPU here")
    codes = torch.randint(0, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    inputs = delay(codes, torch.tensor([9, 9]), ARCH.special)[0].to(device)
    weights = DecodingWeights(copy.deepcopy(model).to(device))
    for states in (_states(4, 2), _states(20, 13)):  # folded cross-attention, and not
        found = _steps_of(StaticDecoder(weights, states, 14, guided=True), inputs)
        expected = _steps_of(Decoder(weights, states, 14, guided=True), inputs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_smaller_weights_are_nearly_the_same_model(model: LanguageModel, kind: Kind) -> None:
    codes = torch.randint(0, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    inputs, _ = delay(codes, torch.tensor([9, 9]), ARCH.special)
    for states in (_states(4, 2), _states(5), _states(20)):  # one clip alone, folded and not
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
    ("bf16", "avx2", "one", "head", "several"),
    [
        (True, False, "int8", "bf16", "bf16"),
        (False, True, "int8", "fp32", "fp32"),
        (False, False, "fp32", "fp32", "fp32"),
    ],
)
def test_the_default_is_what_the_processor_can_do(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, avx2: bool, one: Kind, head: Kind, several: Kind
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    monkeypatch.setattr(packed, "_is_avx2", lambda: avx2)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert default_kind(cpu, 1) == one and head_kind(one, cpu) == head
    assert default_kind(cpu, 2) == several and head_kind(several, cpu) == several
    assert default_kind(gpu, 1) == "bf16" and head_kind("int8", gpu) == "bf16"


def test_sixteen_clips_alone_and_together(weights: DecodingWeights) -> None:
    states, keys = _states(*range(1, 17)), list(range(16))
    together = sample_codes(weights, states, keys, 40, PLAIN)
    for i in range(16):
        alone = sample_codes(weights, states[i : i + 1], keys[i : i + 1], 40, PLAIN)
        assert torch.equal(alone[0], together[i])


def test_a_continuation_begins_with_the_clip_and_goes_on_as_the_model_does(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    """Greedy codes after a given beginning, against argmax over full forwards."""
    states = _states(5, 3)
    prefix = torch.randint(0, 40, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    greedy = SamplingConfig(temperature=0.0, cfg=1.0)
    codes = sample_codes(weights, states, [0, 0], 15, greedy, prefix=prefix)
    assert torch.equal(codes[:, :, :7], prefix)
    inputs, targets = delay(codes, torch.tensor([15, 15]), ARCH.special)
    best = model(inputs, *_given(states))[0].argmax(-1).transpose(1, 2)
    own = torch.zeros_like(targets, dtype=torch.bool)
    for k in range(3):
        own[:, k, 7 + k : 15 + k] = True
    assert torch.equal(best[own], targets[own])


def test_continuing_a_clip_by_its_own_codes_repeats_it(weights: DecodingWeights) -> None:
    states = _states(5)
    whole = sample_codes(weights, states, [3], 30, PLAIN)
    again = sample_codes(weights, states, [3], 30, PLAIN, prefix=whole[:, :, :11])
    # Codes of later streams are drawn at other steps only where they are given.
    assert torch.equal(again, whole)


def test_windows_are_continuations_of_their_overlap(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    """Every greedy code of a long clip is the model's choice given its window alone."""
    states, window = _states(5), 10
    greedy = SamplingConfig(temperature=0.0, cfg=1.0, overlap=0.4)
    codes = sample_codes(weights, states, [0], 25, greedy, window=window)
    assert codes.shape == (1, 3, 25)
    grid = torch.full((3, 27), ARCH.special)
    for k in range(3):
        grid[k, k : k + 25] = codes[0, k]
    # Steps 0...9 in the first window; then each begins with the 4 steps before it.
    begins = [0] * 10
    while len(begins) < 27:
        begins += [len(begins) - 4] * 6
    for step in range(27):
        begin = begins[step]
        inputs = torch.full((1, 3, step - begin + 1), ARCH.special)
        for k in range(3):
            inputs[0, k, k + 1 :] = grid[k, begin + k : step]
        best = model(inputs, *_given(states))[0][0, -1].argmax(-1)
        for k in range(3):
            if 0 <= step - k < 25:
                assert best[k] == grid[k, step]


def test_a_clip_that_fits_is_not_cut(weights: DecodingWeights) -> None:
    states = _states(5)
    whole = sample_codes(weights, states, [0], 20, PLAIN)
    assert torch.equal(sample_codes(weights, states, [0], 20, PLAIN, window=20), whole)
    longer = sample_codes(weights, states, [0], 40, PLAIN, window=20)
    assert torch.equal(longer[:, :, :17], whole[:, :, :17])
    long_prefix = sample_codes(weights, states, [0], 45, PLAIN, window=20, prefix=longer)
    assert torch.equal(long_prefix[:, :, :40], longer)
    assert int(long_prefix.max()) < 40


def test_streaming_hands_out_the_same_codes(weights: DecodingWeights) -> None:
    states = _states(5, 2)
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
    states, negative = _states(5), _states(3, 4)[1]
    greedy = SamplingConfig(temperature=0.0, cfg=2.5)
    codes = sample_codes(weights, states, [0], 12, greedy, negative=negative)
    assert not torch.equal(codes, sample_codes(weights, states, [0], 12, greedy))
    inputs, targets = delay(codes, torch.tensor([12]), ARCH.special)
    toward, away = (model(inputs, *_given([state]))[0] for state in (states[0], negative))
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
    # Of the top k alone: .5 and .3 are all there is.
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
    assert np.array_equal(longer[0, :, :10], expected) and np.array_equal(
        longer[1, :, :10], expected
    )
    assert not np.array_equal(longer[0], longer[1])
    assert told[-1] == (13, 13)
