"""Prompt agreement: the judge recognizes sounds, and finds none that are not there."""

import numpy as np
import pytest

from training.evaluation.agreement.judge import SoundJudge, features, measure_agreement

RATE = 16_000


def _clip(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(RATE * rng.uniform(1, 2))) / RATE
    pitch = rng.uniform(0.9, 1.1)
    if kind == "low":
        wave = np.sin(2 * np.pi * 200 * pitch * t)
    elif kind == "high":
        wave = np.sin(2 * np.pi * 3000 * pitch * t)
    else:
        wave = rng.standard_normal(len(t))
    return (0.3 * rng.uniform(0.2, 1) * wave).astype(np.float32)


@pytest.fixture(scope="module")
def judge() -> SoundJudge:
    kinds = ["low", "high", "noise"] * 10
    return SoundJudge(RATE).fit([_clip(k, i) for i, k in enumerate(kinds)], kinds)


def test_judge_recognizes_new_clips_of_known_classes(judge: SoundJudge):
    kinds = ["low", "high", "noise"] * 5
    result = judge.agreement([_clip(k, 100 + i) for i, k in enumerate(kinds)], kinds)
    assert judge.accuracy > 0.9
    assert result.rate > 0.9 and result.p_value < 1e-4
    assert result.chance == pytest.approx(1 / 3)
    assert result.low < result.rate <= result.high


def test_clips_that_do_not_follow_the_prompt_score_at_chance(judge: SoundJudge):
    kinds = ["low", "high", "noise"] * 8
    everything_noise = [_clip("noise", 200 + i) for i in range(len(kinds))]
    result = judge.agreement(everything_noise, kinds)
    assert result.rate == pytest.approx(1 / 3, abs=0.1) and result.p_value > 0.05


def test_labels_shuffled_in_training_show_in_the_judges_own_accuracy():
    rng = np.random.default_rng(0)
    kinds = ["low", "high", "noise"] * 10
    shuffled = [str(k) for k in rng.permutation(kinds)]
    judge = SoundJudge(RATE).fit([_clip(k, i) for i, k in enumerate(kinds)], shuffled)
    assert judge.accuracy < 0.67


def test_features_do_not_depend_on_level():
    wave = _clip("high", 5)
    np.testing.assert_allclose(features(wave, RATE), features(0.1 * wave, RATE), atol=1e-3)


def test_features_survive_silence_and_very_short_clips():
    for wave in (np.zeros(RATE, np.float32), np.ones(10, np.float32)):
        assert np.isfinite(features(wave, RATE)).all()


def test_agreement_counts_exactly():
    result = measure_agreement(["a", "b", "b", "a"], ["a", "b", "a", "b"])
    assert (result.n, result.hits, result.rate, result.chance) == (4, 2, 0.5, 0.5)
