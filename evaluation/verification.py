"""Exact verification of pair lists and of all pairs of a set: ROC, AUC, EER, TAR at FAR, DET and score histograms.

Nothing is binned or interpolated away: between two genuine scores a ROC only runs level, so counting the impostors at
and above every genuine score gives each of its corners. Memory goes with the genuine pairs, impostors come in blocks.

A figure that the pairs do not allow is None, and a reason stands beside it. Results are ready for JSON.
Cosines of all pairs are rounded to 12 decimals: the last digits depend on block size and processor, a tie must not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from evaluation.arrays import Units, blocks, directed_units, identity_codes, scored_pairs
from evaluation.metrics import area_under_curve, enough_impostors, equal_error_rate, tar_at_far
from meta import MIN_FALSE_ACCEPTS, UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array, Embeddings

    Progress: TypeAlias = Callable[[Iterable, int, str], Iterable]  # utils.progress.progress fits

FALSE_ACCEPT_RATES = {f"1e-{digits}": 10**digits for digits in range(1, 7)}  # one impostor in this many
PAIR_LIST_RATES = ("1e-2", "1e-3", "1e-4")  # reported beside the ten folds
COSINE_DECIMALS = 12
MAX_CURVE_POINTS = 400
NUM_HISTOGRAM_BINS = 100  # of width 0.02 for cosines
MAX_PAIRS_KEPT = 2**23  # of `all_pairs`: 4,096 pictures, 264 MiB with the positions
MAX_GENUINE_PAIRS = 2**23  # their scores stay in memory

Result: TypeAlias = dict[str, Any]


# -------------------------------------------------------------------------------------------------------- entry points


def verification(scores: Array, genuine: Array, max_points: int = MAX_CURVE_POINTS) -> dict[str, Result]:
    """Figures, curve and histogram of a list of pairs.

    `scores` (P,), higher is more alike, `genuine` (P,) bool or 0/1. Gives "figures" (`verification_figures`), "curve"
    (`verification_curve`) and "histogram" (`score_histogram`).

    Raises: UserError for wrong shapes, no genuine or no impostor pair, scores that are not finite.
    """
    score_row, is_genuine = scored_pairs(scores, genuine)
    genuine_scores, impostor_scores = np.sort(score_row[is_genuine]), np.sort(score_row[~is_genuine])
    roc = RocAccumulator(genuine_scores)
    roc.add(impostor_scores)
    edges = _bin_edges(score_row)
    histogram = _histogram(edges, _binned(genuine_scores, edges), _binned(impostor_scores, edges))
    return _full_result(roc.counts(), histogram, max_points)


def pair_list_figures(scores: Array, genuine: Array) -> Result:
    """AUC, EER and TAR at FAR 1e-2, 1e-3 and 1e-4 of `verification_figures`: what results.json has of a pair list.

    Raises: UserError as `verification`.
    """
    score_row, is_genuine = scored_pairs(scores, genuine)
    roc = RocAccumulator(score_row[is_genuine])
    roc.add(np.sort(score_row[~is_genuine]))
    figures = verification_figures(roc.counts())
    kept = ["pooled_auc_percent", "pooled_eer_percent", "num_genuine", "num_impostor"]
    for rate in PAIR_LIST_RATES:
        kept += [f"tar_at_far_{rate}_percent", f"impostors_allowed_at_far_{rate}"]
        kept += [] if figures[f"tar_at_far_{rate}_reason"] is None else [f"tar_at_far_{rate}_reason"]
    return {name: figures[name] for name in kept}


def all_pairs_verification(
    embeddings: Embeddings, identities: Array, max_points: int = MAX_CURVE_POINTS, progress: Progress | None = None
) -> dict[str, Result]:
    """`verification` of every pair of different pictures of a set: one identity is genuine, two are impostors.

    `embeddings` (N,D), `identities` (N,) whole numbers or strings. Exact at any N. The impostors, about N * N / 2, pass
    in blocks of some 300 MiB; the time is that of N * N / 2 cosines.

    Raises: UserError for wrong shapes, embeddings with NaN, infinity or no length, no two pictures of one identity, one
    identity only, more than 8,388,608 genuine pairs.
    """
    units, codes = labelled_units(embeddings, identities)
    _check_both_kinds(codes)
    genuine_scores = np.sort(rounded(units.pair_scores(*genuine_positions(codes))))
    roc, edges = RocAccumulator(genuine_scores), _bin_edges(genuine_scores)
    binned = np.zeros(NUM_HISTOGRAM_BINS, dtype=np.int64)
    for block, _, _ in impostor_blocks(units, codes, progress):
        block.sort()
        roc.add(block)
        binned += _binned(block, edges)
    return _full_result(roc.counts(), _histogram(edges, _binned(genuine_scores, edges), binned), max_points)


class AllPairs(NamedTuple):
    """Every pair of different pictures of a set, P = N * (N - 1) / 2."""

    scores: np.ndarray  # (P,) float64 cosines
    genuine: np.ndarray  # (P,) bool
    first: np.ndarray  # (P,) int64, positions of pictures; first < second
    second: np.ndarray  # (P,) int64


def all_pairs(embeddings: Embeddings, identities: Array) -> AllPairs:
    """All pairs of `all_pairs_verification` one by one, for what needs them so (intervals, the worst pairs).

    Genuine pairs come first. Raises: as `all_pairs_verification`, and UserError for more than 8,388,608 pairs.
    """
    units, codes = labelled_units(embeddings, identities)
    _check_both_kinds(codes)
    num_pairs = len(codes) * (len(codes) - 1) // 2
    if num_pairs > MAX_PAIRS_KEPT:
        raise UserError(
            f"embeddings has {len(codes):,} rows and so {num_pairs:,} pairs, more than the {MAX_PAIRS_KEPT:,} that are "
            "kept one by one: pass fewer identities."
        )
    positions = genuine_positions(codes)
    parts = [(rounded(units.pair_scores(*positions)), *positions), *impostor_blocks(units, codes)]
    scores, first, second = (np.concatenate(column) for column in zip(*parts, strict=True))
    return AllPairs(scores, np.arange(num_pairs) < len(positions[0]), first, second)


# ------------------------------------------------------------------------------------------------------------ counting


@dataclass(frozen=True, eq=False)
class PairCounts:
    """What the whole ROC follows from: counts at the K distinct genuine scores, highest first."""

    thresholds: np.ndarray  # (K,) float64, the distinct genuine scores
    accepted_genuine: np.ndarray  # (K,) int64, with a score at or above the threshold
    accepted_impostor: np.ndarray  # (K,) int64, the same
    impostors_above: np.ndarray  # (K,) int64, with a score above the threshold
    num_genuine: int
    num_impostor: int


class RocAccumulator:
    """Counts impostors at all scores of `genuine_scores` (G,) float64, block by block."""

    def __init__(self, genuine_scores: np.ndarray) -> None:
        self._rising, self._multiplicity = np.unique(genuine_scores, return_counts=True)
        self._below = np.zeros(len(self._rising), dtype=np.int64)
        self._at_or_below = np.zeros(len(self._rising), dtype=np.int64)
        self._sum = 0.0
        self.num_genuine, self.num_impostor = len(genuine_scores), 0

    def add(self, impostor_scores: np.ndarray) -> None:
        """Counts more impostors; their scores (I,) float64 must be sorted, lowest first."""
        self._below += np.searchsorted(impostor_scores, self._rising, side="left")
        self._at_or_below += np.searchsorted(impostor_scores, self._rising, side="right")
        self._sum += float(impostor_scores.sum())
        self.num_impostor += len(impostor_scores)

    @property
    def mean_impostor(self) -> float:
        """The mean score of the impostors so far, of which there must be one."""
        return self._sum / self.num_impostor

    def counts(self) -> PairCounts:
        """What was counted so far."""
        return PairCounts(
            thresholds=self._rising[::-1],
            accepted_genuine=np.cumsum(self._multiplicity[::-1]),
            accepted_impostor=self.num_impostor - self._below[::-1],
            impostors_above=self.num_impostor - self._at_or_below[::-1],
            num_genuine=self.num_genuine,
            num_impostor=self.num_impostor,
        )


def roc_corners(counts: PairCounts) -> tuple[np.ndarray, np.ndarray]:
    """Accepted impostors and accepted genuine pairs at the corners of the exact ROC, from (0, 0) on: (C,) int64 each.

    Straight lines through them are the ROC with a point at every score: equal scores enter together, by a diagonal.
    """
    before = np.concatenate([[0], counts.accepted_genuine[:-1]])
    impostor = np.stack([counts.impostors_above, counts.accepted_impostor], axis=1).ravel()
    genuine = np.stack([before, counts.accepted_genuine], axis=1).ravel()
    impostor = np.concatenate([[0], impostor, [counts.num_impostor]])
    genuine = np.concatenate([[0], genuine, [counts.num_genuine]])
    is_new = np.concatenate([[True], (np.diff(impostor) > 0) | (np.diff(genuine) > 0)])
    impostor, genuine = impostor[is_new], genuine[is_new]
    # A point in the middle of an upright line is no corner; level lines have none, each ends at a genuine score.
    same = np.diff(impostor) == 0
    turns = ~np.concatenate([[False], same[1:] & same[:-1], [False]])
    return impostor[turns], genuine[turns]


# ------------------------------------------------------------------------------------------------------------- figures


def verification_figures(counts: PairCounts) -> Result:
    """AUC, EER and TAR at FAR 1e-1 ... 1e-6 in percent, from one ROC over all pairs.

    AUC is the share of (genuine, impostor) couples in which the genuine score is higher, a tie counting one half. TAR
    at FAR f is the largest of any threshold with FAR <= f. `impostors_allowed_at_far_*` is how many of the impostors
    that FAR lets pass; where they are too few (meta.MIN_FALSE_ACCEPTS) the TAR is None, and `tar_at_far_*_reason` says
    how many impostors there are and how many it needs. `threshold_at_far_*` is the highest score threshold of that TAR,
    None where it accepts no genuine pair.
    """
    impostor, genuine = roc_corners(counts)
    error_rate = equal_error_rate(impostor / counts.num_impostor, genuine / counts.num_genuine)
    result: Result = {
        "pooled_auc_percent": 100.0 * auc(counts),
        "pooled_eer_percent": 100.0 * error_rate,
    }
    for rate, one_in in FALSE_ACCEPT_RATES.items():
        allowed, enough = counts.num_impostor // one_in, enough_impostors(counts.num_impostor, one_in)
        result[f"impostors_allowed_at_far_{rate}"] = allowed
        result[f"tar_at_far_{rate}_percent"] = 100.0 * tar_at_far(genuine, impostor, allowed) if enough else None
        result[f"threshold_at_far_{rate}"] = threshold_at(counts, allowed) if enough else None
        result[f"tar_at_far_{rate}_reason"] = None if enough else too_few_impostors(rate, counts.num_impostor)
    return result | {"num_genuine": counts.num_genuine, "num_impostor": counts.num_impostor}


def auc(counts: PairCounts) -> float:
    """Share of (genuine, impostor) couples in which the genuine score is higher, a tie counting one half."""
    impostor, genuine = roc_corners(counts)
    return area_under_curve(impostor, genuine) / (counts.num_genuine * counts.num_impostor)


def tar(counts: PairCounts, one_in: int) -> float:
    """Largest share of genuine pairs accepted while one impostor in `one_in` is, at most."""
    impostor, genuine = roc_corners(counts)
    return tar_at_far(genuine, impostor, counts.num_impostor // one_in)


def too_few_impostors(rate: str, num_impostor: int) -> str:
    """Why there is no TAR at FAR `rate`, a key of FALSE_ACCEPT_RATES."""
    needed = MIN_FALSE_ACCEPTS * FALSE_ACCEPT_RATES[rate]
    return f"FAR {rate} needs {needed:,} impostor pairs or more, there are {num_impostor:,}"


def threshold_at(counts: PairCounts, allowed: int) -> float | None:
    """The lowest genuine score at and above which at most `allowed` impostors lie, None where there is none."""
    num_reached = int(np.searchsorted(counts.accepted_impostor, allowed, side="right"))
    return float(counts.thresholds[num_reached - 1]) if num_reached else None


# -------------------------------------------------------------------------------------------------- curve and histogram


def verification_curve(counts: PairCounts, max_points: int = MAX_CURVE_POINTS) -> Result:
    """ROC and DET to draw by straight lines: lists of floats, all of them exact corners of the curve.

    Where the curve has more than `max_points` corners some are left out, and `is_exact` is False: kept are its ends,
    its last corner without a false accept, its first without a false reject, those of TAR at FAR and EER, and others
    evenly along the curve, along log FAR and along log FRR. The DET lists hold the kept corners whose FAR and FRR are
    above 0, so that a logarithmic or probit axis takes them.

    Raises: UserError for `max_points` below 32.
    """
    if max_points < 32:
        raise UserError(f"max_points is {max_points}, a curve needs 32 at least.")
    impostor, genuine = roc_corners(counts)
    kept = _kept_corners(impostor, genuine, max_points)
    far = 100.0 * impostor[kept] / counts.num_impostor
    frr = 100.0 * (counts.num_genuine - genuine[kept]) / counts.num_genuine
    drawable = (far > 0) & (frr > 0)
    return {
        "roc_far_percent": far.tolist(),
        "roc_tar_percent": (100.0 * genuine[kept] / counts.num_genuine).tolist(),
        "det_far_percent": far[drawable].tolist(),
        "det_frr_percent": frr[drawable].tolist(),
        "num_corners": len(impostor),
        "is_exact": len(kept) == len(impostor),
    }


def _kept_corners(impostor: np.ndarray, genuine: np.ndarray, max_points: int) -> np.ndarray:
    """Which corners to draw, positions in order."""
    if len(impostor) <= max_points:
        return np.arange(len(impostor))
    num_impostor, num_genuine = impostor[-1], genuine[-1]
    rejected = num_genuine - genuine
    crossing = int(np.argmax(impostor / num_impostor - rejected / num_genuine >= 0))
    allowed = [0, *(num_impostor // one_in for one_in in FALSE_ACCEPT_RATES.values())]
    at_rates = np.searchsorted(impostor, allowed, side="right") - 1
    wanted = [0, len(impostor) - 1, int(np.argmax(rejected == 0)), crossing - 1, crossing, *at_rates]
    # Each of these rises along the curve; the halves keep the logarithm away from 0.
    measures = (
        impostor / num_impostor + genuine / num_genuine,
        np.log(np.maximum(impostor, 0.5)),
        -np.log(np.maximum(rejected, 0.5)),
    )
    share = (max_points - len(wanted)) // len(measures)
    for along in measures:
        wanted.extend(np.searchsorted(along, np.linspace(along[0], along[-1], share)))
    return np.unique(np.minimum(wanted, len(impostor) - 1))


def _bin_edges(scores: np.ndarray) -> np.ndarray:
    """Edges (101,) of the histogram: of cosines from -1 to 1, of other scores from the lowest to the highest."""
    low, high = min(-1.0, float(scores.min())), max(1.0, float(scores.max()))
    if low >= -1 - 1e-6 and high <= 1 + 1e-6:  # a float32 cosine may be a little above 1
        return np.linspace(-1.0, 1.0, NUM_HISTOGRAM_BINS + 1)
    return np.linspace(float(scores.min()), float(scores.max()), NUM_HISTOGRAM_BINS + 1)


def _binned(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many of the sorted scores lie in each bin (B,); a bin holds its lower edge, the last one both."""
    inner = np.searchsorted(ordered, edges[1:-1], side="left")
    return np.diff(np.concatenate([[0], inner, [len(ordered)]]))


def _histogram(edges: np.ndarray, genuine: np.ndarray, impostor: np.ndarray) -> Result:
    return {
        "bin_edges": edges.tolist(),
        "genuine_counts": genuine.tolist(),
        "impostor_counts": impostor.tolist(),
    }


def _full_result(counts: PairCounts, histogram: Result, max_points: int) -> dict[str, Result]:
    return {
        "figures": verification_figures(counts),
        "curve": verification_curve(counts, max_points),
        "histogram": histogram,
    }


# ----------------------------------------------------------------------------------------------------- pairs of a set


def labelled_units(embeddings: Embeddings, identities: Array) -> tuple[Units, np.ndarray]:
    """Embeddings (N,D) and identities as 0..K-1 (N,).

    Raises: UserError for wrong shapes, fewer than two pictures, embeddings with NaN, infinity or no direction.
    """
    units = directed_units(embeddings, "embeddings")
    return units, identity_codes(identities, len(units))


def genuine_positions(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one identity, as positions (G,) and (G,) with first < second. Raises: UserError for too many."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes) if len(codes) else np.zeros(0, dtype=np.int64)
    num_pairs = int(np.sum(sizes * (sizes - 1) // 2))
    if num_pairs > MAX_GENUINE_PAIRS:
        raise UserError(
            f"identities has {num_pairs:,} pairs of one identity, at most {MAX_GENUINE_PAIRS:,} fit in memory: "
            "pass fewer pictures per identity."
        )
    end_of_group = np.repeat(np.cumsum(sizes), sizes)
    num_later_mates = end_of_group - np.arange(len(codes)) - 1
    first = np.repeat(np.arange(len(codes)), num_later_mates)
    start_of_run = np.repeat(np.cumsum(num_later_mates) - num_later_mates, num_later_mates)
    second = first + 1 + np.arange(num_pairs) - start_of_run
    return order[first], order[second]


def impostor_blocks(
    units: Units, codes: np.ndarray, progress: Progress | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cosines of all pairs of two identities and the pictures' positions, (I,) each with first < second, in blocks."""
    pieces = list(blocks(len(units), max(1, len(units))))
    for rows in pieces if progress is None else progress(pieces, len(pieces), "pairs of pictures"):
        scores = units.scores(rows, first=rows.start)
        is_impostor = codes[rows, None] != codes[rows.start :]
        is_impostor &= np.arange(rows.start, len(units)) > np.arange(rows.start, rows.stop)[:, None]
        first, second = np.nonzero(is_impostor)
        yield rounded(scores[first, second]), first + rows.start, second + rows.start


def rounded(cosines: np.ndarray) -> np.ndarray:
    """Cosines to 12 decimals, within -1 to 1."""
    return np.clip(np.round(cosines, COSINE_DECIMALS), -1.0, 1.0)


def _check_both_kinds(codes: np.ndarray) -> None:
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        raise UserError(f"identities names one person for all {len(codes)} pictures: verification needs two or more.")
    if sizes.max() < 2:
        raise UserError(
            f"identities has no two pictures of one person among {len(codes)}, so there is no genuine pair: "
            "check the labels."
        )
