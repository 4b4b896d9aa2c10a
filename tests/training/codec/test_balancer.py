"""The loss balancer against values worked out by hand."""

import pytest
import torch

from training.codec.balancer import Balancer


def _factors(balancer: Balancer, **norms: float) -> dict[str, float]:
    found = balancer.factors({name: torch.tensor(norm) for name, norm in norms.items()})
    return {name: float(factor) for name, factor in found.items()}


def test_the_first_step_gives_every_loss_its_share_whatever_its_scale():
    balancer = Balancer({"mel": 2.0, "adversarial": 6.0}, decay=0.999)
    found = _factors(balancer, mel=1000.0, adversarial=1e-3)
    # |g| times factor: 2 / 8 and 6 / 8.
    assert found["mel"] * 1000.0 == pytest.approx(0.25)
    assert found["adversarial"] * 1e-3 == pytest.approx(0.75)


def test_later_steps_divide_by_the_bias_corrected_average():
    balancer = Balancer({"mel": 1.0, "time": 1.0}, decay=0.5, total_norm=3.0)
    _factors(balancer, mel=1.0, time=2.0)
    found = _factors(balancer, mel=4.0, time=2.0)
    # mel: (.5 * 1 + 1 * 4) / (.5 + 1) = 3; the share is 3 * 1 / 2.
    assert found == pytest.approx({"mel": 1.5 / 3, "time": 1.5 / 2})
    found = _factors(balancer, mel=3.0, time=2.0)
    # (.25 * 1 + .5 * 4 + 1 * 3) / (.25 + .5 + 1)
    assert found["mel"] == pytest.approx(1.5 / 3)


def test_a_loss_that_sets_in_late_is_balanced_at_once_and_takes_its_share():
    balancer = Balancer({"mel": 2.0, "feature": 2.0}, decay=0.9)
    assert _factors(balancer, mel=5.0) == pytest.approx({"mel": 1 / 5})
    found = _factors(balancer, mel=5.0, feature=100.0)
    assert found == pytest.approx({"mel": 0.5 / 5, "feature": 0.5 / 100})


def test_no_gradient_is_no_infinity():
    assert all(
        torch.isfinite(torch.tensor(f)) for f in _factors(Balancer({"a": 1.0}, 0.9), a=0.0).values()
    )


def test_a_restored_balancer_continues_as_if_never_stopped():
    one, two = (Balancer({"mel": 2.0, "feature": 1.0}, decay=0.9) for _ in range(2))
    _factors(one, mel=3.0)
    _factors(one, mel=5.0, feature=7.0)
    two.load(one.state())
    assert _factors(two, mel=2.0, feature=1.0) == _factors(one, mel=2.0, feature=1.0)
