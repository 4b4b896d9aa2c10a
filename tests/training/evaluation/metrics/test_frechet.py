"""The Fréchet distance: closed forms, scipy's root, singular covariances, streams, intervals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from training.evaluation.metrics.divergence import around
from training.evaluation.metrics.frechet import (
    Gaussian,
    GroupedMoments,
    Moments,
    frechet_distance,
    frechet_infinity,
    frechet_resamples,
    matrix_root,
)


def _gaussian(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    return Gaussian(np.asarray(mean, float), matrix_root(np.asarray(covariance, float)))


@pytest.mark.parametrize("case", range(50))
def test_distance_equals_scipys_square_root(case: int):
    rng = np.random.default_rng(case)
    dim = int(rng.integers(1, 40))
    a, b = (rng.standard_normal((dim + 20, dim)) @ rng.standard_normal((dim, dim)) for _ in "ab")
    b += rng.standard_normal(dim)
    sa, sb = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = scipy.linalg.sqrtm(sa @ sb)
    step = a.mean(0) - b.mean(0)
    expected = step @ step + np.trace(sa) + np.trace(sb) - 2 * np.trace(root).real
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-6)


def test_distance_equals_closed_forms():
    one = _gaussian([0.0], [[4.0]])
    other = _gaussian([3.0], [[25.0]])
    assert frechet_distance(one, other) == pytest.approx(3**2 + (5 - 2) ** 2, rel=1e-12)
    # Covariances that commute: the distance of the roots.
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    x, y = np.array([1, 2, 3, 4, 5, 6.0]), np.array([6, 1, 5, 2, 4, 3.0])
    a, b = _gaussian(np.zeros(6), q * x**2 @ q.T), _gaussian(np.ones(6), q * y**2 @ q.T)
    assert frechet_distance(a, b) == pytest.approx(6 + np.sum((x - y) ** 2), rel=1e-12)


def test_singular_covariances_keep_their_distance():
    # Rank one each, at an angle: tr (Sa Sb)^(1/2) = |cos|.
    u, v = np.eye(100)[0], np.full(100, 0.1)
    a, b = _gaussian(np.zeros(100), np.outer(u, u)), _gaussian(np.zeros(100), np.outer(v, v))
    assert frechet_distance(a, b) == pytest.approx(2 - 2 * 0.1, rel=1e-9)
    # Twelve orders of magnitude between the eigenvalues.
    scales = np.logspace(-12, 0, 30)
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))[0]
    a, b = (
        _gaussian(np.zeros(30), q * scales @ q.T),
        _gaussian(np.zeros(30), q * (4 * scales) @ q.T),
    )
    assert frechet_distance(a, b) == pytest.approx(scales.sum(), rel=1e-6)
    rows = np.random.default_rng(2).standard_normal((5, 64))  # fewer than dimensions
    assert 0 <= frechet_distance(Moments.of(rows), Moments.of(rows)) < 1e-12


def test_distance_is_symmetric_and_does_not_see_rotations_and_shifts():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((50, 8)), 2 * rng.standard_normal((60, 8)) + 1
    q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    plain = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(plain, rel=1e-10)
    turned = frechet_distance(Moments.of(a @ q + 7), Moments.of(b @ q + 7))
    assert turned == pytest.approx(plain, rel=1e-10)


def test_stream_gives_the_moments_of_the_whole():
    rows = np.random.default_rng(4).standard_normal((1000, 6)) + 1e6  # mean large against spread
    moments = Moments(6)
    for start in range(0, 1000, 37):
        moments.update(rows[start : start + 37])
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-7, atol=1e-9)


def test_groups_bound_memory_and_lose_nothing():
    rng = np.random.default_rng(5)
    clips = [rng.standard_normal((int(rng.integers(1, 9)), 4)) for _ in range(95)]
    grouped = GroupedMoments(groups=20)
    for clip in clips:
        grouped.add(clip)
    assert len(grouped.groups) == 20 and grouped.clips == 95
    rows = np.concatenate(clips)
    np.testing.assert_allclose(grouped.total().covariance, np.cov(rows.T), rtol=1e-12)


def test_a_group_holds_whole_clusters():
    rng = np.random.default_rng(6)
    clips = [rng.standard_normal((3, 4)) for _ in range(90)]
    apart, together = GroupedMoments(groups=8), GroupedMoments(groups=8)
    alone = GroupedMoments(groups=8)
    for i, clip in enumerate(clips):
        alone.add(clip)
        apart.add(clip, f"cluster {i}")
        together.add(clip, f"cluster {i % 30}")
    assert (together.clips, together.clusters, len(together.groups)) == (90, 30, 8)
    for place, group in enumerate(together.groups):
        rows = np.concatenate([clip for i, clip in enumerate(clips) if i % 30 % 8 == place])
        assert group.count == len(rows)
        np.testing.assert_allclose(group.mean, rows.mean(0), atol=1e-12)
    # Clusters of one clip each are clips.
    assert apart.clusters == alone.clusters == 90
    for one, other in zip(apart.groups, alone.groups, strict=True):
        assert one.count == other.count
        np.testing.assert_array_equal(one.scatter, other.scatter)


def test_intervals_are_as_wide_as_clusters_make_them():
    """Twenty clusters of ten clips that are all but equal: as sure as twenty clips, not as 200."""
    truth = _gaussian(np.zeros(4), np.eye(4))
    rng = np.random.default_rng(7)
    sets = {name: GroupedMoments() for name in ("twenty", "clips", "clusters")}
    for i in range(20):
        frames = rng.standard_normal((4, 4))
        sets["twenty"].add(frames)
        for _ in range(10):
            frames = frames + 0.01 * rng.standard_normal((4, 4))
            sets["clips"].add(frames)
            sets["clusters"].add(frames, i)
    spread = {name: np.std(frechet_resamples([s], truth)) for name, s in sets.items()}
    assert spread["clusters"] == pytest.approx(spread["twenty"], rel=0.1)
    assert spread["clips"] < 0.5 * spread["twenty"]


def _clips(n: int, seed: int, shift: float = 0.0, dim: int = 12) -> GroupedMoments:
    rng = np.random.default_rng(seed)
    grouped = GroupedMoments()
    for _ in range(n):
        grouped.add(rng.standard_normal((4, dim)) + shift)
    return grouped


def test_extrapolation_takes_the_bias_of_few_clips_away():
    truth = _gaussian(np.zeros(12), np.eye(12))
    plain, infinite = [], []
    for seed in range(8):
        clips = _clips(60, seed)
        found = frechet_infinity(clips, truth, seed=seed)
        assert found is not None and found.slope > 0 and found.r2 > 0.5
        assert found == frechet_infinity(clips, truth, seed=seed)
        plain.append(frechet_distance(clips.total(), truth))
        infinite.append(found.value)
    assert np.mean(plain) > 0.15  # the true distance is 0
    assert abs(np.mean(infinite)) < 0.2 * np.mean(plain)
    assert frechet_infinity(_clips(19, 0), truth) is None
    # 7 clips of 4 frames are fewer embeddings than 40 values: nothing to fit a line through.
    assert frechet_infinity(_clips(21, 0, dim=40), _gaussian(np.zeros(40), np.eye(40))) is None


def test_interval_covers_the_distance_of_other_clips():
    truth = _gaussian(np.zeros(12), np.eye(12))
    others = [frechet_distance(_clips(60, 100 + i, 0.3).total(), truth) for i in range(60)]
    centre = float(np.mean(others))
    hits, widths = 0, []
    for seed in range(20):
        clips = _clips(60, seed, 0.3)
        drawn = frechet_resamples([clips], truth, resamples=100, seed=seed)
        assert drawn is not None
        interval = around(frechet_distance(clips.total(), truth), drawn[:, 0])
        assert interval.low < interval.value < interval.high
        same = frechet_resamples([clips], truth, resamples=3, seed=seed)
        assert same is not None and np.array_equal(same, drawn[:3])
        hits += interval.low <= centre <= interval.high
        widths.append(interval.high - interval.low)
    assert hits >= 16
    assert np.mean(widths) == pytest.approx(3.92 * np.std(others), rel=0.4)
    assert frechet_resamples([_clips(9, 0)], truth) is None
    # A draw's distance is that of the picked clips.
    clips, picks = _clips(12, 0), np.random.default_rng(5).integers(0, 12, 12)
    drawn = frechet_resamples([clips], truth, resamples=1, seed=5)
    assert drawn is not None
    assert drawn[0, 0] == pytest.approx(frechet_distance(clips.total(picks), truth), rel=1e-6)


def test_bad_embeddings_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="n > 0"):
        Moments.of(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="two embeddings"):
        frechet_distance(Moments.of(np.zeros((1, 3))), Moments.of(np.zeros((5, 3))))
    with pytest.raises(ValueError, match="do not go together"):
        Moments(3).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="same clips"):
        frechet_resamples([_clips(20, 0), _clips(21, 0)], _gaussian(np.zeros(12), np.eye(12)))
