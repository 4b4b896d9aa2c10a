"""Guards: what is said, when the discriminator rests, and when a run stops."""

from typing import Any

import pytest
import torch

from common.errors import AttuneError
from training.codec.guards import Guards

SETTINGS = {"window": 2, "usage_floor": 0.5, "usage_patience": 3}


def _guards(**changes: Any) -> Guards:
    return Guards(n_codebooks=2, codebook_size=4, **(SETTINGS | changes))


def _uses(*first: int) -> torch.Tensor:
    return torch.tensor([first, (1, 1, 1, 1)])


def _losses(discriminator: float, adversarial: float) -> dict[str, torch.Tensor]:
    return {
        "discriminator": torch.tensor(discriminator),
        "adversarial": torch.tensor(adversarial),
    }


def test_usage_is_that_of_the_whole_window_not_of_one_step():
    guards = _guards()
    assert guards.observe(1, _uses(8, 0, 0, 0), {}) == ([], {})
    lines, row = guards.observe(2, _uses(0, 8, 0, 0), {})
    assert lines == []
    assert row["window_used"] == [0.5, 1.0]
    assert row["window_perplexity"] == pytest.approx([2.0, 4.0])


def test_a_collapsed_first_stream_is_reported_and_stops_the_run_if_it_stays():
    guards = _guards()
    said = []
    for step in range(1, 5):
        said += guards.observe(step, _uses(8, 0, 0, 0), {})[0]
    assert len(said) == 2 and "25.0% of its codes" in said[0] and "perplexity 1.0" in said[0]
    guards.observe(5, _uses(8, 0, 0, 0), {})
    with pytest.raises(AttuneError, match="3 windows in a row: the codebook has collapsed"):
        guards.observe(6, _uses(8, 0, 0, 0), {})


def test_a_window_above_the_floor_restarts_the_count():
    guards = _guards()
    for step in range(1, 13):
        uses = _uses(2, 2, 2, 2) if step in (5, 9) else _uses(8, 0, 0, 0)
        guards.observe(step, uses, {})


def test_the_window_that_quantization_began_in_does_not_count():
    guards = _guards()
    guards.observe(1, None, {})
    assert guards.observe(2, _uses(8, 0, 0, 0), {}) == ([], {})


def test_a_discriminator_that_always_wins_rests_until_it_does_not():
    guards = _guards(discriminator_floor=0.1)
    guards.observe(1, None, _losses(0.0, 1.0))
    (line,) = guards.observe(2, None, _losses(0.1, 1.5))[0]
    assert guards.resting and "its loss was 0.050" in line and "adversarial loss 1.25" in line
    guards.observe(3, None, _losses(0.15, 1.0))
    assert guards.observe(4, None, _losses(0.15, 1.0))[0] == [] and guards.resting
    guards.observe(5, None, _losses(0.5, 1.0))
    (line,) = guards.observe(6, None, _losses(0.5, 1.0))[0]
    assert not guards.resting and "learns again" in line


def test_an_adversarial_loss_that_doubles_past_the_margin_rests_the_discriminator():
    guards = _guards(adversarial_growth=2.0)
    for step, adversarial in enumerate((0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 5.5, 5.5), start=1):
        guards.observe(step, None, _losses(1.0, adversarial))
        # 1.5 is thrice as much and within the margin, 2.5 is not twice 1.5.
        assert guards.resting == (step == 8)


def test_guards_restored_in_the_middle_of_a_window_continue_alike():
    one, two = _guards(), _guards()
    for step in range(1, 6):
        one.observe(step, _uses(8, 0, 0, step), _losses(0.01, 1.0))
    two.load({name: value.clone() for name, value in one.state().items()})
    assert two.resting
    for step in range(6, 9):
        figures = (step, _uses(8, 0, 0, 0), _losses(0.3, 9.0))
        assert one.observe(*figures) == two.observe(*figures)
