"""Figures of several variants over the same seeds: mean, deviation, and differences to one of them seed by seed.

A pair is one seed with both variants: what makes a seed easy for both drops out of the difference. Its interval is
Student's t over the pairs, its p-value the exact one of a sign-flip test. Both say how far another seed would move the
difference; they say nothing about other people's pictures.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Figures: TypeAlias = Mapping[Hashable, float | None]  # of one run; None where it gave none
Runs: TypeAlias = Mapping[str, Mapping[int, Figures]]  # variant -> seed -> figures

CONFIDENCE = 0.95
MAX_FLIPPED = 20  # differences whose 2^n sign patterns are all tried: 8 MiB


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (of a sample, None for one value), and number of values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "num_seeds": len(values)}


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Mean over the seeds that both have of value - baseline, its standard error, and its 95 % interval's half width.

    `is_beyond_chance` says that the interval leaves 0 out. With several figures and variants, one in twenty does so by
    chance alone. `p_value` is that of `sign_flip_p_value`. One seed has only a mean; the others are None.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    entry = {"mean": statistics.fmean(differences), "num_seeds": len(differences)}
    if len(differences) < 2:
        return entry | dict.fromkeys(("standard_error", "half_width", "is_beyond_chance", "p_value"))
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half_width = student_quantile(len(differences) - 1) * error
    return entry | {
        "standard_error": error,
        "half_width": half_width,
        "is_beyond_chance": abs(entry["mean"]) > half_width,
        "p_value": sign_flip_p_value(differences),
    }


def student_quantile(degrees_of_freedom: int) -> float:
    """How many standard errors a two-sided 95 % interval takes to each side."""
    from scipy.special import stdtrit  # imported where it is used: most tests of models compare no groups

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def sign_flip_p_value(differences: Sequence[float]) -> float | None:
    """Exact two-sided p-value of paired differences (n,), None for more than 20 of them.

    If the variants do not differ, each difference is as likely to have the other sign. The p-value is the share of the
    2^n sign patterns with a sum at least as far from 0 as the one found, so it can't be below 2 / 2^n: 0.25 for three
    pairs, 0.03 for six. No distribution is assumed.

    Source: Fisher, The Design of Experiments, 1935, section 21.
    """
    if not 1 <= len(differences) <= MAX_FLIPPED:
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    found = abs(sums[0])  # no sign flipped
    rounding = 1e-9 * sum(map(abs, differences))  # equal sums may differ in their last digits
    return float(np.mean(np.abs(sums) >= found - rounding))


def of_figure(runs: Mapping[int, Figures], figure: Hashable) -> dict[int, float]:
    """The values of one figure by seed, without the seeds that gave none."""
    return {seed: figures[figure] for seed, figures in runs.items() if figures.get(figure) is not None}


def summarise(runs: Runs, baseline: str, figures: Sequence[Hashable]) -> dict[str, dict[Hashable, dict]]:
    """variant -> figure -> {"spread", "difference"}: the difference is to `baseline`, absent for itself."""
    summary: dict[str, dict[Hashable, dict]] = {}
    for variant, by_seed in runs.items():
        for figure in figures:
            values = of_figure(by_seed, figure)
            if not values:
                continue
            row = {"spread": spread(list(values.values()))}
            compared = of_figure(runs.get(baseline, {}), figure)
            if variant != baseline and values.keys() & compared.keys():
                row["difference"] = paired_difference(values, compared)
            summary.setdefault(variant, {})[figure] = row
    return summary
