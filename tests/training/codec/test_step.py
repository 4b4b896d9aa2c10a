"""One training step: which gradient the decoder gets, and when the discriminator learns."""

from typing import Any

import pytest
import torch
from tiny_codec_run import DISCRIMINATOR, SIZES
from torch import Tensor
from torch.utils._pytree import tree_leaves

from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.losses import MultiScaleMelLoss, discriminator_loss
from training.codec.quantizer import ResidualQuantizerTrainer
from training.codec.state import CodecState
from training.codec.step import CodecStep

SMALL = {
    "out": "unused",
    "audio": ["unused"],
    "validation": ["unused"],
    "architecture": SIZES,
    "discriminator": DISCRIMINATOR,
    "steps": 10,
}


def _step(**changes: Any) -> CodecStep:
    torch.set_num_threads(1)
    config = CodecTrainingConfig(**(SMALL | changes))
    state = CodecState(config, 16_000, seed=0)
    quantizer = ResidualQuantizerTrainer(state.model.quantizer, 0.99, 0.1)
    mel = MultiScaleMelLoss(16_000, [256])
    return CodecStep(state, quantizer, mel, config, seed=0)


def _tensors(step_fn: CodecStep) -> list[Tensor]:
    """All that a checkpoint would hold."""
    return [leaf for leaf in tree_leaves(step_fn.state.state()) if isinstance(leaf, Tensor)]


def _batch() -> Tensor:
    return 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))


def _gradient(step_fn: CodecStep, step: int = 0) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    estimate = (_batch().flip(0) * 0.5).requires_grad_()
    verdicts = step_fn._verdicts(_batch(), estimate, step, update=False)
    losses = step_fn._waveform_losses(_batch(), estimate, verdicts)
    gradient, _ = step_fn._gradient(losses, estimate)
    return gradient, losses, estimate


def test_the_balancer_gives_each_loss_its_share_of_a_unit_gradient():
    gradient, losses, estimate = _gradient(_step())
    expected = torch.zeros_like(estimate)
    for name, weight in (("time", 0.1), ("mel", 2), ("adversarial", 4), ("feature", 4)):
        (part,) = torch.autograd.grad(losses[name], estimate, retain_graph=True)
        expected += weight / 10.1 * part / part.norm()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("late", [0, 3])
def test_losses_of_the_discriminator_begin_at_its_first_step(late: int):
    step_fn = _step(discriminator=DISCRIMINATOR | {"start_step": 3})
    outcome = step_fn(_batch(), late, 1e-3)
    there = {"adversarial", "feature", "discriminator"} & outcome.losses.keys()
    assert len(there) == (3 if late else 0)


def test_the_discriminator_learns_on_its_share_of_steps_and_the_codec_on_all():
    step_fn = _step()
    discriminator, model = step_fn.state.discriminator, step_fn.state.model
    updates = 0
    for step in range(10):
        before = [p.detach().clone() for p in discriminator.parameters()]
        codec = next(model.decoder.parameters()).detach().clone()
        step_fn(_batch(), step, 1e-3)
        after = list(discriminator.parameters())
        changed = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not torch.equal(codec, next(model.decoder.parameters()))
        updates += changed
    assert 2 <= updates <= 8


def test_the_discriminator_gets_no_gradient_of_the_generators_losses(
    monkeypatch: pytest.MonkeyPatch,
):
    """Its update is that of its own hinge loss, on the logits of this step."""
    monkeypatch.setattr("training.codec.step.UPDATE_PROBABILITY", 1)
    step_fn = _step()
    discriminator = step_fn.state.discriminator
    seen: list[Tensor] = []
    forward = discriminator.forward

    def listen(wav: Tensor) -> Any:
        seen.append(wav.detach().clone())
        return forward(wav)

    discriminator.forward = listen  # type: ignore[method-assign]
    fresh = _step().state.discriminator
    step_fn(_batch(), 0, 1e-3)
    discriminator_loss(fresh(seen[0]), fresh(seen[1])).backward()
    for mine, alone in zip(discriminator.parameters(), fresh.parameters(), strict=True):
        assert mine.grad is not None and alone.grad is not None
        torch.testing.assert_close(mine.grad, alone.grad)


@pytest.mark.parametrize("window", [8, 130])
def test_windows_that_no_hop_divides_are_refused(window: int):
    with pytest.raises(ValueError, match="expected a multiple of 4"):
        _step(discriminator={"windows": [window]})


def test_bf16_multiplies_in_bf16_and_learns_in_fp32():
    # Widths for which no known processor's bf16 is wrong (`common/bfloat16.py`).
    four = SIZES | {"num_filters": 4}
    exact = _step(architecture=four)(_batch(), 0, 1e-3)
    step_fn = _step(architecture=four, precision="bf16")
    before = [value.clone() for value in _tensors(step_fn)]
    step_fn.check_precision()
    assert all(map(torch.equal, _tensors(step_fn), before))
    seen = []
    for module in (step_fn.state.model.decoder.layers[0], step_fn.state.discriminator.scales[0]):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    outcome = step_fn(_batch(), 0, 1e-3)
    assert seen[0].dtype == torch.bfloat16 and seen[1][0].dtype == torch.bfloat16
    assert not any(value.dtype == torch.bfloat16 for value in _tensors(step_fn))
    # Each of a dozen layers rounds to 2**-8 of what it gives: .05 is all of that, adding up.
    for name, value in exact.losses.items():
        assert outcome.losses[name].dtype == torch.float32
        assert float(outcome.losses[name]) == pytest.approx(float(value), rel=0.05), name


@pytest.mark.parametrize(
    ("part", "layer"),
    [
        ("encoder", "layers.3"),
        ("encoder", "layers.0"),
        ("decoder", "layers.3"),
        ("decoder", "layers.10"),
        ("discriminator", "scales.0.layers.1"),
        ("discriminator", "scales.1.verdict"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["outputs", "gradients"])
def test_bf16_that_is_noise_is_refused(part: str, layer: str, late: bool):
    """As oneDNN's convolutions are on some processors, forwards or backwards, in any layer."""

    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone() if late else x.std() * torch.randn_like(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.std() * torch.randn_like(gradient) if late else gradient

    four = SIZES | {"num_filters": 4}
    step_fn = _step(architecture=four, precision="bf16")
    state = step_fn.state
    whole = state.discriminator if part == "discriminator" else getattr(state.model, part)

    def spoil(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return Noisy.apply(output) if output.dtype == torch.bfloat16 else output

    step_fn.check_precision()
    whole.get_submodule(layer).register_forward_hook(spoil)
    words = f"wrong on this processor.*{part}.*codec_training.precision=fp32"
    with pytest.raises(AttuneError, match=words):
        step_fn.check_precision()
