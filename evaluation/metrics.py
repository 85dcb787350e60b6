"""Threshold maths of verification: counts, curves, areas and rates from scores. NumPy only.

A pair is accepted where its score is at or above the threshold. A curve runs from the strictest threshold, where
nothing is accepted, to the loosest, where everything is, so neither of its two rates ever falls.
Rates here are fractions.
"""

import numpy as np

from meta import MIN_FALSE_ACCEPTS


def enough_impostors(num_impostor: int, one_in: int) -> bool:
    """Whether so many impostors allow a figure at the false-accept rate of one in `one_in`; the rule of all reports."""
    return num_impostor >= MIN_FALSE_ACCEPTS * one_in


def accepted_counts(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of `scores` (N,) each of `thresholds` (T,) accepts: (T,) int64."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def area_under_curve(x: np.ndarray, y: np.ndarray) -> float:
    """Area under the straight lines through the points (x, y), x never falling.

    On the counts of a ROC's corners it is the rank statistic: the number of (impostor, genuine) couples in which the
    genuine score is higher, an equal score counting one half because one diagonal line joins equal scores.
    """
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def equal_error_rate(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray) -> float:
    """FPR where 1 - TPR = FPR on the straight lines through the points of a curve from (0, 0) to (1, 1)."""
    excess = false_positive_rate + true_positive_rate - 1  # -1 at (0, 0), 1 at (1, 1), never falls
    after = int(np.argmax(excess >= 0))
    before = after - 1
    share = excess[before] / (excess[before] - excess[after])
    step = false_positive_rate[after] - false_positive_rate[before]
    return float(false_positive_rate[before] + share * step)


def tar_at_far(accepted_genuine: np.ndarray, accepted_impostor: np.ndarray, impostors_allowed: int) -> float:
    """Largest share of genuine pairs that any threshold accepts while it accepts `impostors_allowed` impostors at most.

    Takes the counts at the corners of a ROC, see `evaluation.verification.roc_corners`.
    """
    loosest_allowed = np.searchsorted(accepted_impostor, impostors_allowed, side="right") - 1
    return float(accepted_genuine[loosest_allowed] / accepted_genuine[-1])
