"""Prompt agreement: which of a closed set of sound classes does a clip sound like?

A small classifier (log-mel statistics, standardized, multinomial logistic regression) is fitted on
real labelled clips and asked about generated ones.  It needs no downloaded backbone; its own
cross-validated accuracy is always reported beside its verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from common.mel import FLOOR_DB, log_mel

FOLDS = 5
"""Of the judge's cross-validation."""


def features(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Statistics of a clip's log-mel spectrogram that do not depend on its length or level.

    Returns:
        float64 [F]: per mel band mean, spread, 90th percentile and mean absolute step over the
        frames that are not silent, and the modulation spectrum of the loudness up to 31 Hz.
    """
    mel = log_mel(wave, sample_rate)
    loud = mel[mel.max(axis=1) > -FLOOR_DB + 10]
    steps = np.abs(np.diff(mel, axis=0)).mean(axis=0)
    loudness = 10 * np.log10((10 ** (mel / 10)).mean(axis=1))
    n = 128
    rows = [
        np.abs(np.fft.rfft(np.hanning(n) * (block - block.mean())))
        for start in range(0, max(1, len(loudness) - n // 2), n // 2)
        for block in [np.pad(loudness[start : start + n], (0, max(0, n - len(loudness) + start)))]
    ]
    modulation = np.log1p(np.mean(rows, axis=0))
    modulation = modulation[1:65].reshape(16, 4).mean(axis=1)
    return np.concatenate(
        [
            loud.mean(axis=0),
            loud.std(axis=0),
            np.percentile(loud, 90, axis=0),
            steps,
            modulation * 10,
            [10.0 * len(loud) / len(mel)],
        ]
    )


@dataclass(frozen=True)
class Agreement:
    """How often clips were judged to be what they should be."""

    n: int
    hits: int
    rate: float
    low: float
    high: float
    """95% Clopper-Pearson interval of the rate."""
    chance: float
    """Rate of the best constant or random guess."""
    p_value: float
    """One-sided exact binomial test against chance."""
    judged: tuple[str, ...]


class SoundJudge:
    """The classifier; fit once, then ask."""

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.accuracy = float("nan")
        """Cross-validated on the clips that it was fitted on."""
        self.classes: tuple[str, ...] = ()
        self._model: Pipeline | None = None

    def fit(
        self,
        waves: Sequence[NDArray[np.float32]],
        labels: Sequence[str],
        groups: Sequence[str] | None = None,
        folds: int = FOLDS,
    ) -> SoundJudge:
        """Fit on real clips and cross-validate by group.

        Args:
            waves: float32 [S_i] each, at `sample_rate`.
            labels: one class name per clip; every class needs at least `folds` groups.
            groups: clips of one group stay in one fold (same source recording).

        Raises:
            ValueError: fewer than two classes.
        """
        matrix = np.stack([features(wave, self.sample_rate) for wave in waves])
        target = np.asarray(labels)
        if len(set(labels)) < 2:
            raise ValueError("prompt agreement needs at least two classes of real clips")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))
        fold = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        guesses = cross_val_predict(
            model,
            matrix,
            target,
            cv=fold,
            groups=np.arange(len(target)) if groups is None else np.asarray(groups),
        )
        self.accuracy = float((guesses == target).mean())
        self._model = model.fit(matrix, target)
        self.classes = tuple(str(name) for name in model.classes_)
        return self

    def judge(self, waves: Sequence[NDArray[np.float32]]) -> list[str]:
        """The class that each clip sounds like."""
        if self._model is None:
            raise ValueError("fit the judge first")
        matrix = np.stack([features(wave, self.sample_rate) for wave in waves])
        return [str(name) for name in self._model.predict(matrix)]

    def agreement(self, waves: Sequence[NDArray[np.float32]], labels: Sequence[str]) -> Agreement:
        """Judge clips and compare with what they should be."""
        return measure_agreement(self.judge(waves), labels)


def measure_agreement(judged: Sequence[str], labels: Sequence[str]) -> Agreement:
    """Compare verdicts with labels; chance is the frequency of the commonest label."""
    hits = sum(a == b for a, b in zip(judged, labels, strict=True))
    n = len(labels)
    chance = max(labels.count(name) for name in set(labels)) / n if n else float("nan")
    test = binomtest(hits, n, chance, alternative="greater")
    interval = binomtest(hits, n, chance).proportion_ci(0.95, method="exact")
    return Agreement(
        n,
        hits,
        hits / n,
        float(interval.low),
        float(interval.high),
        chance,
        float(test.pvalue),
        tuple(judged),
    )
