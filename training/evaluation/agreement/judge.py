"""Prompt agreement: which of a closed set of sound classes does a clip sound like?

The judge is a small classifier (standardized log-mel statistics, multinomial logistic regression).
It is fitted on real labelled clips and classifies generated clips.  It needs no downloaded
backbone.  Its cross-validated accuracy is always reported next to its verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.mel import FLOOR_DB, log_mel
from training.evaluation.statistics import share

FOLDS = 5
"""Number of folds of the judge's cross-validation."""


def features(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Statistics of a clip's log-mel spectrogram that do not depend on its length or level.

    Returns:
        float64 [F]: for each mel band the mean, standard deviation, 90th percentile and mean
        absolute step over the frames that are not silent; then the modulation spectrum of the
        loudness up to 31 Hz, and the share of frames that are not silent.
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
    """How many clips sound like their label."""

    n: int
    hits: int
    rate: float
    low: float
    high: float
    """95% Clopper-Pearson interval of the rate."""
    chance: float
    """Rate of the best constant guess."""
    p_value: float
    """One-sided exact binomial test against chance."""
    judged: tuple[str, ...]


class SoundJudge:
    """The classifier of sound classes."""

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.accuracy = float("nan")
        """Accuracy of the cross-validation on the training clips."""
        self.classes: tuple[str, ...] = ()
        self._model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))

    def fit(
        self,
        waves: Sequence[NDArray[np.float32]],
        labels: Sequence[str],
        groups: Sequence[str] | None = None,
    ) -> SoundJudge:
        """Fit on real clips and cross-validate by group.

        Args:
            waves: float32 [S_i] each, at `sample_rate`.
            labels: one class name per clip; at least two classes, each with `FOLDS` groups.
            groups: source recording of each clip; a recording is never in two folds.
        """
        matrix, target = self._matrix(waves), np.asarray(labels)
        guesses = cross_val_predict(
            self._model,
            matrix,
            target,
            cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0),
            groups=np.arange(len(target)) if groups is None else np.asarray(groups),
        )
        self.accuracy = float((guesses == target).mean())
        self._model.fit(matrix, target)
        self.classes = tuple(str(name) for name in self._model.classes_)
        return self

    def judge(self, waves: Sequence[NDArray[np.float32]]) -> list[str]:
        """Name the class that each clip sounds like."""
        return [str(name) for name in self._model.predict(self._matrix(waves))]

    def agreement(self, waves: Sequence[NDArray[np.float32]], labels: Sequence[str]) -> Agreement:
        """Judge clips and compare the verdicts with their labels."""
        return measure_agreement(self.judge(waves), labels)

    def _matrix(self, waves: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        return np.stack([features(wave, self.sample_rate) for wave in waves])


def measure_agreement(judged: Sequence[str], labels: Sequence[str]) -> Agreement:
    """Compare verdicts with labels; chance is the frequency of the most frequent label."""
    found = share(sum(a == b for a, b in zip(judged, labels, strict=True)), len(labels))
    chance = max(Counter(labels).values()) / found.n
    p_value = float(binomtest(found.hits, found.n, chance, alternative="greater").pvalue)
    return Agreement(
        found.n, found.hits, found.share, found.low, found.high, chance, p_value, tuple(judged)
    )
