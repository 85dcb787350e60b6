"""Error by the years between two pictures, by the age of the younger one, and rank-1 with distant mates only.

Every figure of a bin comes twice. Random impostors are all impostor pairs; matched impostors are those of the same bin.
A model that compares ages instead of people looks good on small gaps against random impostors, whose ages differ, and
falls towards chance (AUC 50 percent) against matched ones. A bin is some years wide, so the AUC is also there against
impostors of the same number of years: for a score that depends on the gap alone it is 50 percent exactly.

A program that compares faces has one threshold for all of them: `common_thresholds` says what it lets through at each
gap.

Ages are whole years, -1 where unknown: such pictures or pairs are left out and counted. A bin with too few pairs gets
its counts, None for each figure, and the reason. Results are ready for JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.arrays import (
    as_numpy,
    blocks,
    first_highest,
    scored_pairs,
    self_positions,
)
from evaluation.metrics import enough_impostors
from evaluation.verification import (
    PairCounts,
    Result,
    RocAccumulator,
    auc,
    genuine_positions,
    impostor_blocks,
    labelled_units,
    rounded,
    tar,
    threshold_at,
    too_few_impostors,
)
from meta import MAX_AGE, MIN_AGE, MIN_FALSE_ACCEPTS, UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array, Embeddings
    from evaluation.verification import Progress

GAP_LOWER_EDGES = (0, 2, 6, 11, 21, 31)  # years between the two pictures
YOUNGER_LOWER_EDGES = (0, 4, 11, 18, 31, 51)  # years, age in the younger picture
MATE_YEARS = (5, 10, 20, 30)
UNKNOWN = -1

FALSE_ACCEPT_RATES = {"1e-2": 100, "1e-3": 1_000}  # one impostor in this many
COMMON_RATES = {"1e-1": 10, "1e-2": 100, "1e-3": 1_000, "1e-4": 10_000}  # of the thresholds common to all bins
MIN_PAIRS = 10  # of each kind: below this a share of them is no figure
MIN_PROBES = 10
FIGURES = ("auc", *(f"tar_at_far_{rate}" for rate in FALSE_ACCEPT_RATES))
ALL = "all"  # name of the row over all bins


def bin_names(lower_edges: Sequence[int]) -> tuple[str, ...]:
    """Names of bins of whole years by their lower edges, for example "0-1", "2-5", "6+"."""
    uppers = [f"-{following - 1}" for following in lower_edges[1:]] + ["+"]
    return tuple(f"{low}{upper}" for low, upper in zip(lower_edges, uppers, strict=True))


# ------------------------------------------------------------------------------------------------------- pictures


def by_age_gap(embeddings: Embeddings, identities: Array, ages: Array, progress: Progress | None = None) -> Result:
    """Verification over all pairs of pictures, in bins of the years between them: 0-1, 2-5, 6-10, 11-20, 21-30, 31+.

    `embeddings` (N,D), `identities` (N,) whole numbers or strings, `ages` (N,) whole years, -1 where unknown. Gives
    num_pictures, num_pictures_without_age, "common_thresholds" (see that function) and "bins": name -> row, with a last
    row "all". A row holds num_genuine, num_random_impostor, num_matched_impostor;
    {auc,tar_at_far_1e-2,tar_at_far_1e-3}_{random,matched}_impostors_percent;
    auc_same_years_impostors_percent, each genuine pair against the impostors whose gap equals its own to the year;
    mean_genuine_cosine, mean_random_impostor_cosine, mean_matched_impostor_cosine; reason, None or why one is None.
    In the row "all" a matched figure is the mean of the bins' figures, each weighted by its genuine pairs.

    Raises: UserError for wrong shapes, embeddings with NaN, infinity or no length, ages that are none, more than
    8,388,608 genuine pairs.
    """
    return _picture_tables(embeddings, identities, ages, (BY_GAP,), progress)[0]


def by_younger_age(embeddings: Embeddings, identities: Array, ages: Array, progress: Progress | None = None) -> Result:
    """The same in bins of the age in the younger picture: 0-3, 4-10, 11-17, 18-30, 31-50, 51+. See `by_age_gap`."""
    return _picture_tables(embeddings, identities, ages, (BY_YOUNGER,), progress)[0]


def by_age_gap_and_younger_age(
    embeddings: Embeddings, identities: Array, ages: Array, progress: Progress | None = None
) -> tuple[Result, Result]:
    """Both tables from one pass over the pairs."""
    return tuple(_picture_tables(embeddings, identities, ages, (BY_GAP, BY_YOUNGER), progress))


def _gap(first_ages: np.ndarray, second_ages: np.ndarray) -> np.ndarray:
    return np.abs(first_ages - second_ages)


class _Axis(NamedTuple):
    """What a table's bins are of."""

    lower_edges: Sequence[int]  # years
    years_of_pair: Callable[[np.ndarray, np.ndarray], np.ndarray]


BY_GAP, BY_YOUNGER = _Axis(GAP_LOWER_EDGES, _gap), _Axis(YOUNGER_LOWER_EDGES, np.minimum)


def _picture_tables(embeddings, identities, ages, axes: Sequence[_Axis], progress) -> list[Result]:
    units, codes = labelled_units(embeddings, identities)
    years = checked_ages(ages, "ages", len(units)).astype(np.int16)  # of 18 million pairs: small
    known = years != UNKNOWN
    first, second = _of_known(known, *genuine_positions(codes))
    genuine_scores = rounded(units.pair_scores(first, second))
    tables = [
        _Table(axis.lower_edges, genuine_scores, axis.years_of_pair(years[first], years[second])) for axis in axes
    ]
    for block in impostor_blocks(units, codes, progress):
        one, other, scores = _of_known(known, block[1], block[2], block[0])
        order = np.argsort(scores)
        scores, one, other = scores[order], years[one[order]], years[other[order]]
        for table, axis in zip(tables, axes, strict=True):
            table.add(scores, axis.years_of_pair(one, other))
    counts = {"num_pictures": len(known), "num_pictures_without_age": int(np.count_nonzero(~known))}
    return [counts | table.result() for table in tables]


def _of_known(known: np.ndarray, first: np.ndarray, second: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """The pairs whose two ages are known, `known` (N,)."""
    if known.all():
        return [first, second, *others]
    kept = known[first] & known[second]
    return [values[kept] for values in (first, second, *others)]


# ----------------------------------------------------------------------------------------------------- lists of pairs


def pairs_by_age_gap(scores: Array, genuine: Array, first_ages: Array, second_ages: Array) -> Result:
    """`by_age_gap` of a list of pairs: its impostor pairs are the random ones, those of the same bin the matched ones.

    `scores` (P,), `genuine` (P,) bool or 0/1, `first_ages` and `second_ages` (P,) whole years, -1 where unknown. Gives
    num_pairs, num_pairs_without_age (one age or both unknown), "common_thresholds" and "bins".

    Raises: UserError for wrong shapes, one kind of pair only, scores that are not finite, ages that are none.
    """
    return _pair_table(scores, genuine, first_ages, second_ages, BY_GAP)


def pairs_by_younger_age(scores: Array, genuine: Array, first_ages: Array, second_ages: Array) -> Result:
    """`by_younger_age` of a list of pairs. See `pairs_by_age_gap`."""
    return _pair_table(scores, genuine, first_ages, second_ages, BY_YOUNGER)


def _pair_table(scores, genuine, first_ages, second_ages, axis: _Axis) -> Result:
    score_row, is_genuine = scored_pairs(scores, genuine)
    first = checked_ages(first_ages, "first_ages", len(score_row))
    second = checked_ages(second_ages, "second_ages", len(score_row))
    known = (first != UNKNOWN) & (second != UNKNOWN)
    score_row, is_genuine, first, second = score_row[known], is_genuine[known], first[known], second[known]
    pair_years = axis.years_of_pair(first, second)
    table = _Table(axis.lower_edges, score_row[is_genuine], pair_years[is_genuine])
    order = np.flatnonzero(~is_genuine)[np.argsort(score_row[~is_genuine])]
    table.add(score_row[order], pair_years[order])
    return {
        "num_pairs": len(known),
        "num_pairs_without_age": int(np.count_nonzero(~known)),
        **table.result(),
    }


# ------------------------------------------------------------------------------------------------------ distant mates


def rank1_by_mate_distance(
    embeddings: Embeddings, identities: Array, ages: Array, years: Sequence[int] = MATE_YEARS
) -> dict[str, Result]:
    """Leave-one-out rank-1 with only those mates that are at least so many years older or younger than the probe.

    Nearer mates are taken out of the gallery, pictures of other people all stay. A probe without such a mate is left
    out and counted. A picture of unknown age (-1) is a non-mate only. On a tie the first in order answers.
    Gives for each of `years` a row "5+", ...: rank1_percent, chance_rank1_percent (of random scores), num_probes,
    num_probes_left_out, reason, None or why the two figures are None.

    Raises: UserError for wrong shapes, embeddings with NaN, infinity or no length, ages that are none, negative years.
    """
    units, codes = labelled_units(embeddings, identities)
    ages_row = checked_ages(ages, "ages", len(units))
    if any(least < 0 for least in years):
        raise UserError(f"years holds {min(years)}, it must hold whole numbers of 0 or more.")
    sums = np.zeros((len(years), 3))  # probes, hits, expected hits by chance
    for rows in blocks(len(units), len(units)):
        scores = units.scores(rows).copy()
        is_mate = codes[rows, None] == codes
        is_mate[self_positions(rows)] = False
        scores[self_positions(rows)] = -np.inf
        distance = np.abs(ages_row[rows, None] - ages_row)
        distance[(ages_row[rows, None] == UNKNOWN) | (ages_row == UNKNOWN)] = UNKNOWN
        for row, least in enumerate(years):
            sums[row] += _distant_rank1(scores, is_mate, distance >= least, codes, codes[rows])
    return {f"{least}+": _rank1_row(*sums[row], len(units)) for row, least in enumerate(years)}


def _distant_rank1(
    scores: np.ndarray, is_mate: np.ndarray, is_distant: np.ndarray, codes: np.ndarray, probe_codes: np.ndarray
) -> tuple[int, int, float]:
    """Probes with a distant mate, hits among them and the hits expected by chance; matrices are (B,N)."""
    num_mates = np.count_nonzero(is_mate & is_distant, axis=1)
    is_near_mate = is_mate & ~is_distant
    has_mate = num_mates > 0
    nearest = (
        first_highest(np.where(is_near_mate, -np.inf, scores)[has_mate]) if has_mate.any() else np.zeros(0, np.int64)
    )
    gallery_size = len(codes) - 1 - np.count_nonzero(is_near_mate, axis=1)
    num_hits = np.count_nonzero(codes[nearest] == probe_codes[has_mate])
    return int(has_mate.sum()), num_hits, float(np.sum(num_mates[has_mate] / gallery_size[has_mate]))


def _rank1_row(num_probes: float, num_hits: float, expected_hits: float, num_pictures: int) -> Result:
    enough = num_probes >= MIN_PROBES
    return {
        "rank1_percent": 100.0 * float(num_hits / num_probes) if enough else None,
        "chance_rank1_percent": 100.0 * float(expected_hits / num_probes) if enough else None,
        "num_probes": int(num_probes),
        "num_probes_left_out": num_pictures - int(num_probes),
        "reason": None if enough else f"{int(num_probes)} probes have such a mate, a figure needs {MIN_PROBES}",
    }


# ------------------------------------------------------------------------------------------------------ rows of a table


class _Table:
    """One row a bin and one for all: scores (G,) and years (G,) of the genuine pairs, and impostors block by block."""

    def __init__(self, lower_edges: Sequence[int], genuine_scores: np.ndarray, genuine_years: np.ndarray) -> None:
        self.lower_edges, self.genuine_scores = lower_edges, genuine_scores
        self.bin_of_year = (np.searchsorted(lower_edges, np.arange(MAX_AGE + 1), side="right") - 1).astype(np.uint8)
        by_year = _split(genuine_scores, genuine_years, MAX_AGE + 1)
        self.of_bin = _split(genuine_scores, self.bin_of_year[genuine_years], len(lower_edges))
        self.same_years = [RocAccumulator(scores) for scores in by_year]
        self.matched, self.random = ([RocAccumulator(scores) for scores in self.of_bin] for _ in range(2))
        self.random_all = RocAccumulator(genuine_scores)

    def add(self, impostor_scores: np.ndarray, years: np.ndarray) -> None:
        """Counts more impostors: their scores (I,), sorted, lowest first, and years (I,)."""
        # Parted by numbers of one byte, which NumPy sorts by counting; each part stays sorted by score.
        for roc, scores in zip(self.same_years, _split(impostor_scores, years, MAX_AGE + 1), strict=True):
            roc.add(scores)
        bins = self.bin_of_year[years]
        for roc, scores in zip(self.matched, _split(impostor_scores, bins, len(self.lower_edges)), strict=True):
            roc.add(scores)
        for roc in (*self.random, self.random_all):
            roc.add(impostor_scores)

    def result(self) -> Result:
        """What was counted so far: "common_thresholds", and "bins" with a row a bin and one for all."""
        ends, names, rows = [*self.lower_edges[1:], MAX_AGE + 1], bin_names(self.lower_edges), {}
        for place, name in enumerate(names):
            same_years = self.same_years[self.lower_edges[place] : ends[place]]
            rows[name] = _row(self.of_bin[place], self.random[place], self.matched[place], same_years)
        of_all = _row_of_all(self.genuine_scores, self.random_all, self.matched, self.same_years, list(rows.values()))
        scores_of = dict(zip(names, self.of_bin, strict=True)) | {ALL: self.genuine_scores}
        return {
            "common_thresholds": common_thresholds(self.random_all.counts(), scores_of),
            "bins": rows | {ALL: of_all},
        }


def common_thresholds(counts: PairCounts, genuine_scores: dict[str, np.ndarray]) -> dict[str, Result]:
    """At FAR 1e-1 ... 1e-4 over all impostors the threshold, and the TAR in percent that it has in each bin.

    `genuine_scores` are those of the bins, (G,) each. A row has impostors_allowed, how many the FAR lets pass at most;
    threshold, the lowest genuine score at and above which no more of them lie; tar_percent, by bin, None below ten
    genuine pairs; and reason, None or why there is no threshold.
    """
    rows = {}
    for rate, one_in in COMMON_RATES.items():
        allowed, threshold, reason = counts.num_impostor // one_in, None, None
        if not enough_impostors(counts.num_impostor, one_in):
            reason = too_few_impostors(rate, counts.num_impostor)
        else:
            threshold = threshold_at(counts, allowed)
            reason = None if threshold is not None else f"at FAR {rate} no genuine pair passes"
        rows[rate] = {
            "impostors_allowed": allowed,
            "threshold": threshold,
            "tar_percent": {name: _share_from(scores, threshold) for name, scores in genuine_scores.items()},
            "reason": reason,
        }
    return rows


def _share_from(scores: np.ndarray, threshold: float | None) -> float | None:
    """Percent of the scores at or above the threshold; None without one, or of too few."""
    if threshold is None or len(scores) < MIN_PAIRS:
        return None
    return 100.0 * float(np.mean(scores >= threshold))


def _split(scores: np.ndarray, parts: np.ndarray, num_parts: int) -> list[np.ndarray]:
    """The scores of part 0, 1, ..., each in the order they had."""
    parts = parts.astype(np.uint8)
    return np.split(scores[np.argsort(parts, kind="stable")], np.cumsum(np.bincount(parts, minlength=num_parts))[:-1])


def _row(
    genuine_scores: np.ndarray, random: RocAccumulator, matched: RocAccumulator, same_years: Sequence[RocAccumulator]
) -> Result:
    reasons = _shortages(len(genuine_scores), random.num_impostor, "random")
    # The matched ones are among the random ones: where those are too few, these are, and one reason will do.
    reasons = reasons or _shortages(len(genuine_scores), matched.num_impostor, "matched")
    return {
        **_pair_numbers(genuine_scores, random.num_impostor, matched.num_impostor),
        **_figures(random.counts(), "random"),
        **_figures(matched.counts(), "matched"),
        "auc_same_years_impostors_percent": _same_years_auc(same_years),
        "mean_genuine_cosine": _mean_genuine(genuine_scores),
        "mean_random_impostor_cosine": _mean_impostor(random),
        "mean_matched_impostor_cosine": _mean_impostor(matched),
        "reason": "; ".join(reasons) or None,
    }


def _same_years_auc(accumulators: Sequence[RocAccumulator]) -> float | None:
    """Mean AUC in percent of the years that have impostors, each weighted by its genuine pairs."""
    having = [roc.counts() for roc in accumulators if roc.num_genuine and roc.num_impostor]
    num_genuine = sum(counts.num_genuine for counts in having)
    if num_genuine < MIN_PAIRS or sum(counts.num_impostor for counts in having) < MIN_PAIRS:
        return None
    return 100.0 * sum(counts.num_genuine * auc(counts) for counts in having) / num_genuine


def _row_of_all(
    genuine_scores: np.ndarray,
    random: RocAccumulator,
    matched: Sequence[RocAccumulator],
    same_years: Sequence[RocAccumulator],
    rows: Sequence[Result],
) -> Result:
    num_genuine, num_matched = len(genuine_scores), sum(roc.num_impostor for roc in matched)
    figures, reasons = {}, _shortages(num_genuine, random.num_impostor, "random")
    for figure in FIGURES:
        key = f"{figure}_matched_impostors_percent"
        having = [row for row in rows if row[key] is not None]
        covered = sum(row["num_genuine"] for row in having)
        figures[key] = sum(row["num_genuine"] * row[key] for row in having) / covered if covered else None
        if covered < num_genuine:
            reasons.append(
                f"{_words(figure)} against matched impostors covers {covered:,} of {num_genuine:,} genuine pairs"
            )
    means = [(row["num_genuine"], row["mean_matched_impostor_cosine"]) for row in rows]
    means = [(weight, mean) for weight, mean in means if weight and mean is not None]
    weights = sum(weight for weight, _ in means)
    return {
        **_pair_numbers(genuine_scores, random.num_impostor, num_matched),
        **_figures(random.counts(), "random"),
        **figures,
        "auc_same_years_impostors_percent": _same_years_auc(same_years),
        "mean_genuine_cosine": _mean_genuine(genuine_scores),
        "mean_random_impostor_cosine": _mean_impostor(random),
        "mean_matched_impostor_cosine": sum(weight * mean for weight, mean in means) / weights if weights else None,
        "reason": "; ".join(reasons) or None,
    }


def _pair_numbers(genuine_scores: np.ndarray, num_random: int, num_matched: int) -> Result:
    return {
        "num_genuine": len(genuine_scores),
        "num_random_impostor": num_random,
        "num_matched_impostor": num_matched,
    }


def _figures(counts: PairCounts, kind: str) -> Result:
    """AUC and TAR at FAR in percent where the pairs allow them, else None."""
    enough = min(counts.num_genuine, counts.num_impostor) >= MIN_PAIRS
    result: Result = {f"auc_{kind}_impostors_percent": 100.0 * auc(counts) if enough else None}
    for rate, one_in in FALSE_ACCEPT_RATES.items():
        allowed = enough and enough_impostors(counts.num_impostor, one_in)
        result[f"tar_at_far_{rate}_{kind}_impostors_percent"] = 100.0 * tar(counts, one_in) if allowed else None
    return result


def _shortages(num_genuine: int, num_impostor: int, kind: str) -> list[str]:
    """What is too few for a figure of a bin, in words; empty where all can be had."""
    if num_genuine < MIN_PAIRS:
        return [f"{num_genuine} genuine pairs, a figure needs {MIN_PAIRS}"]
    if num_impostor < MIN_PAIRS:
        return [f"{num_impostor} {kind} impostor pairs, a figure needs {MIN_PAIRS}"]
    missing = [
        f"{MIN_FALSE_ACCEPTS * one_in:,} for FAR {rate}"
        for rate, one_in in FALSE_ACCEPT_RATES.items()
        if not enough_impostors(num_impostor, one_in)
    ]
    return [f"{num_impostor} {kind} impostor pairs, TAR needs {' and '.join(missing)}"] if missing else []


def _words(figure: str) -> str:
    return "AUC" if figure == "auc" else f"TAR at FAR {figure.removeprefix('tar_at_far_')}"


def _mean_genuine(scores: np.ndarray) -> float | None:
    return float(scores.mean()) if len(scores) >= MIN_PAIRS else None


def _mean_impostor(roc: RocAccumulator) -> float | None:
    return roc.mean_impostor if roc.num_impostor >= MIN_PAIRS else None


# ------------------------------------------------------------------------------------------------------- at the door


def checked_ages(ages: Array, name: str, count: int) -> np.ndarray:
    """`ages` as (count,) int64, years or -1; raises UserError."""
    row = as_numpy(ages, name)
    if row.shape != (count,) or row.dtype.kind not in "iu":
        raise UserError(
            f"{name} has shape {row.shape} and dtype {row.dtype}, it must hold {count} whole numbers of years, "
            f"{UNKNOWN} where an age is unknown."
        )
    wrong = ((row < MIN_AGE) | (row > MAX_AGE)) & (row != UNKNOWN)
    if wrong.any():
        raise UserError(
            f"{name} holds {row[np.argmax(wrong)]} at position {np.argmax(wrong)}, it must hold years from "
            f"{MIN_AGE} to {MAX_AGE}, {UNKNOWN} where an age is unknown."
        )
    return row.astype(np.int64)
