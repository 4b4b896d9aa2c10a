"""The multi-scale STFT discriminator: what it looks at, and what its losses are by hand."""

import pytest
import torch
from torch import Tensor

from training.codec.discriminator import MultiScaleDiscriminator, Verdict, WindowDiscriminator
from training.codec.losses import (
    adversarial_loss,
    discriminator_loss,
    feature_levels,
    feature_loss,
)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_window_gives_logits_and_five_feature_maps():
    torch.manual_seed(0)
    verdict = MultiScaleDiscriminator((512, 128), filters=3)(_noise(2, 4000))
    frames = {window: (4000 - window) // (window // 4) + 1 for window in (512, 128)}
    shapes = [tuple(x.shape) for x in verdict.logits]
    assert shapes == [(2, 1, frames[512], 33), (2, 1, frames[128], 9)]
    bins = [257, 129, 65, 33, 33, 65, 33, 17, 9, 9]
    windows = [512] * 5 + [128] * 5
    assert [tuple(x.shape) for x in verdict.features] == [
        (2, 3, frames[window], count) for window, count in zip(windows, bins, strict=True)
    ]


def test_the_spectrum_of_white_noise_has_its_level_whatever_the_window():
    for window in (128, 2048):
        spectrum = WindowDiscriminator(window, 1).spectrum(0.1 * _noise(1, 64_000))
        power = spectrum.square().sum(1).mean()  # real and imaginary part together
        assert float(power.sqrt()) == pytest.approx(0.1, rel=0.02)


def test_dilated_layers_see_frames_far_away_and_bins_nearby():
    scale = WindowDiscriminator(256, 2)
    wav = (0.1 * _noise(1, 8000)).requires_grad_()
    logits = scale(wav)[0]
    (gradient,) = torch.autograd.grad(logits[0, 0, 60, 5], wav)
    seen = gradient[0].nonzero().flatten()
    # 1 + 1 + 2 + 4 + 1 + 1 frames to both sides, hop 64, and the last frame's window.
    assert (int(seen[0]), int(seen[-1])) == pytest.approx(
        ((60 - 10) * 64, (60 + 10) * 64 + 255), abs=3
    )


def test_hinge_losses_by_hand():
    real = Verdict([torch.tensor([2.0, 0.5]), torch.tensor([[-1.0]])], [])
    fake = Verdict([torch.tensor([-3.0, 0.0]), torch.tensor([[1.0]])], [])
    # (0 + .5) / 2 + (0 + 1) / 2 and 2 + 2
    assert float(discriminator_loss(real, fake)) == pytest.approx((0.75 + 4) / 2)
    # (4 + 1) / 2 and 0
    assert float(adversarial_loss(fake)) == pytest.approx((2.5 + 0) / 2)


def test_feature_matching_is_relative_and_only_moves_the_generator():
    real = Verdict([], [torch.tensor([1.0, -3.0]).requires_grad_(), torch.tensor([10.0])])
    fake = Verdict([], [torch.tensor([2.0, -3.0]).requires_grad_(), torch.tensor([5.0])])
    levels = feature_levels(real)
    assert levels.tolist() == [2.0, 10.0] and not levels.requires_grad
    loss = feature_loss(real, fake, levels)
    assert float(loss.detach()) == pytest.approx((0.5 / 2 + 5 / 10) / 2)
    loss.backward()
    assert real.features[0].grad is None and fake.features[0].grad is not None
    silent = Verdict([], [torch.zeros(2), torch.zeros(1)])
    assert torch.isfinite(feature_loss(silent, fake, feature_levels(silent)))


@pytest.mark.filterwarnings("ignore")
def test_it_computes_the_same_as_encodecs():
    """Same weights, same logits and features as `encodec.msstftd` (extra `bench`)."""
    msstftd = pytest.importorskip("encodec.msstftd")
    windows = (2048, 512)
    hops = [window // 4 for window in windows]
    torch.manual_seed(0)
    theirs = msstftd.MultiScaleSTFTDiscriminator(
        filters=4, n_ffts=list(windows), hop_lengths=hops, win_lengths=list(windows)
    )
    ours = MultiScaleDiscriminator(windows, filters=4)
    with torch.no_grad():
        for scale, other in zip(ours.scales, theirs.discriminators, strict=True):
            pairs = zip(
                [*scale.layers, scale.verdict], [*other.convs, other.conv_post], strict=True
            )
            for layer, source in pairs:
                layer.weight = source.conv.weight.detach()  # its own form of weight norm, folded
                layer.bias.copy_(source.conv.bias)
        wav = 0.1 * _noise(2, 8000)
        verdict = ours(wav)
        logits, features = theirs(wav[:, None])
    for mine, other in zip(verdict.logits, logits, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
    flat = [feature for maps in features for feature in maps]
    for mine, other in zip(verdict.features, flat, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
