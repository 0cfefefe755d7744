"""What single samples' probabilities decide: areas under curves, and decisions at a threshold."""

from __future__ import annotations

import math

import numpy as np

EVEN = 0.5  # the threshold where training rows show no better one


def resample_areas(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return AUROC and average precision of resamples, (B,) each, NaN where undefined.

    They are those of scikit-learn's `roc_auc_score` and `average_precision_score` with the counts as weights, of one
    column against the rest, and a mean over the columns that some samples of a resample have and some lack.

    Args:
        scores: finite numbers (n, C).
        truth: whether a sample has the column's class, (n, C) bool.
        counts: how often each sample is in each resample, (B, n).
    """
    found = [_areas(scores[:, c], truth[:, c], counts) for c in np.flatnonzero(truth.any(0) & ~truth.all(0))]
    names = ("auroc", "average_precision")
    return {name: mean_known(np.array([f[i] for f in found]), len(counts)) for i, name in enumerate(names)}


def mean_known(values: np.ndarray, size: int) -> np.ndarray:
    """Return means over classes of values (C, size) that are not NaN; NaN where there are none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(known, values, 0.0).sum(0) / known.sum(0)
    return means if len(values) else np.full(size, math.nan)


def _areas(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # equal scores are decided together
    true, false = ((counts * which)[:, order].cumsum(1)[:, ends] for which in (positive, ~positive))
    more, false_more = (np.diff(found, axis=1, prepend=0) for found in (true, false))
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (false_more * (true - more / 2)).sum(1) / (true[:, -1] * false[:, -1])
        precision = np.where(true > 0, true / (true + false), 0.0)
        return auroc, np.where(false[:, -1] > 0, (more * precision).sum(1) / true[:, -1], math.nan)


def choose_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the score from which a sample counts as positive: the one with the largest Youden's J on these rows.

    J is sensitivity + specificity - 1 (Youden 1950); of equal ones, the highest threshold. 0.5 if the rows are all
    positive or all negative, or if no threshold is better than chance.
    """
    from sklearn.metrics import roc_curve

    if positive.all() or not positive.any():
        return EVEN
    false, true, thresholds = roc_curve(positive, scores)
    best = int(np.argmax(true - false))
    return float(thresholds[best]) if true[best] > false[best] else EVEN


def count_decisions(decided: np.ndarray, positive: np.ndarray) -> dict[str, tuple[int, int]]:
    """Return hits and samples behind the sensitivity and the specificity of decisions (n,) for truth (n,)."""
    return {
        "sensitivity": (int((decided & positive).sum()), int(positive.sum())),
        "specificity": (int((~decided & ~positive).sum()), int((~positive).sum())),
    }


def resample_classes(truth: np.ndarray, guess: np.ndarray, classes: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy and F1 score of resamples, (B,) each.

    The F1 score is that of scikit-learn's `f1_score`, a mean over the classes that occur or are predicted.
    """
    real, predicted = (np.eye(classes)[numbers] for numbers in (truth, guess))
    right = counts @ (real * predicted)  # (B, C)
    total = counts @ (real + predicted)
    with np.errstate(invalid="ignore"):
        f1 = mean_known((2 * right / total).T, len(counts))
    return {"accuracy": right.sum(1) / counts.sum(1), "f1": f1}
