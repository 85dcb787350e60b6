"""Figures of several variants over the same seeds: mean, deviation, and differences to one of them seed by seed."""

import math
import statistics
from collections.abc import Sequence

Figures = dict[str, float | None]  # of one run; None where it gave none
Runs = dict[str, dict[int, Figures]]  # variant -> seed -> figures

# Two-sided 95 % points of Student's t with 1, 2, ... degrees of freedom: how many standard errors an interval takes.
STUDENT_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (of a sample, None for one value), and number of values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "num_seeds": len(values)}


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> dict[str, float | int | bool | None]:
    """Mean over the seeds that both have of value - baseline, its standard error, and its 95 % interval's half width.

    `is_beyond_chance` says that the interval leaves 0 out. With several figures and variants, one in twenty does so by
    chance alone.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    entry = {"mean": statistics.fmean(differences), "num_seeds": len(differences)}
    if len(differences) < 2:
        return entry | {"standard_error": None, "half_width": None, "is_beyond_chance": None}
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half_width = STUDENT_95[min(len(differences) - 1, len(STUDENT_95)) - 1] * error
    return entry | {
        "standard_error": error,
        "half_width": half_width,
        "is_beyond_chance": abs(entry["mean"]) > half_width,
    }


def of_figure(runs: dict[int, Figures], figure: str) -> dict[int, float]:
    """The values of one figure by seed, without the seeds that gave none."""
    return {seed: figures[figure] for seed, figures in runs.items() if figures.get(figure) is not None}


def summarise(runs: Runs, baseline: str, figures: Sequence[str]) -> dict[str, dict[str, dict]]:
    """variant -> figure -> {"spread", "difference"}: the difference is to `baseline`, absent for itself."""
    summary: dict[str, dict[str, dict]] = {}
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


def tables(summary: dict[str, dict[str, dict]], figures: dict[str, tuple[str, int]]) -> str:
    """Two Markdown tables, mean ± deviation and paired difference ± standard error; `figures`: name -> title, decimals.

    A star marks a difference whose 95 % interval leaves 0 out.
    """
    head = "\n".join((f"| variant | {' | '.join(title for title, _ in figures.values())} |",
                      "|---|" + "---:|" * len(figures)))  # fmt: skip
    levels, differences = [head], [head]
    for variant, of_variant in summary.items():
        cells, paired_cells = [], []
        for figure, (_, decimals) in figures.items():
            row = of_variant.get(figure, {})
            cells.append(_plus_minus(row.get("spread"), "deviation", decimals))
            paired_cells.append(_plus_minus(row.get("difference"), "standard_error", decimals, "+"))
        levels.append(f"| {variant} | {' | '.join(cells)} |")
        if any("difference" in row for row in of_variant.values()):
            differences.append(f"| {variant} | {' | '.join(paired_cells)} |")
    return "\n".join(levels) + "\n\nPaired differences, ± standard error:\n\n" + "\n".join(differences)


def _plus_minus(row: dict | None, error: str, decimals: int, sign: str = "") -> str:
    if row is None:
        return ""
    spread_of_it = "" if row[error] is None else f" ± {row[error]:.{decimals}f}"
    return f"{row['mean']:{sign}.{decimals}f}{spread_of_it}{'*' if row.get('is_beyond_chance') else ''}"
