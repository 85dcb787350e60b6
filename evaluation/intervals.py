"""95 % intervals of verification figures by bootstrap: how far a figure would move with other people.

The scheme. Where identities are known, K identities are drawn from the K with replacement, and identity k counts c_k
times. A genuine pair of k then counts c_k times, an impostor pair of k and l counts c_k * c_l times: what stands in the
set of the people drawn, except that two copies of one person are never compared with each other. This is the vertex
bootstrap (Snijders and Borgatti, Connections 22(2), 1999); for the genuine pairs it is the subsets bootstrap of Bolle,
Ratha and Pankanti (ICPR 2004). Fogliato, Patil and Perona (IJCV 2024, arXiv 2306.01198) compare such schemes for face
verification. The pairs of a person move together, so these intervals are wider than those over pairs, and rightly so.
Noise of single impostor pairs counts up to threefold in the variance, so an interval is rather too wide than too narrow
where people share few pairs.

Where identities are not known, the genuine pairs and the impostor pairs are drawn with replacement, each kind from
itself. That takes pairs for independent: where people appear in several pairs the interval is too narrow.

An interval runs from the 2.5th to the 97.5th percentile of the replicates. It says nothing about other cameras,
other countries, wrong labels or another training run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.arrays import as_numpy, identity_labels, scored_pairs
from evaluation.metrics import enough_impostors
from evaluation.verification import FALSE_ACCEPT_RATES, Result, too_few_impostors
from meta import UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array

INTERVAL_PERCENT = 95.0
NUM_REPLICATES = 1_000
MIN_DRAWN = 10  # fewer identities, genuine or impostor pairs say nothing about how sure a figure is
MIN_ALLOWED = 3  # impostors at a FAR: a TAR that hangs on fewer has no interval (with 3 some 88 % hold the true TAR)
MIN_REPLICATES = 100
MAX_EMPTY_SHARE = 0.01  # of replicates in which nothing genuine or no impostor was drawn
WEIGHTS_PER_CHUNK = 2**20  # 8 MiB an array

Figures = dict[str, np.ndarray]  # name -> one value a replicate


def verification_intervals(
    scores: Array,
    genuine: Array,
    first_identities: Array | None = None,
    second_identities: Array | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> Result:
    """Pooled AUC, EER and TAR at FAR 1e-1 ... 1e-6 in percent, each with its 95 % interval.

    `scores` (P,), `genuine` (P,) bool or 0/1, `first_identities` and `second_identities` (P,) whole numbers or strings,
    both or neither: with them identities are drawn, without them pairs. The same seed gives the same interval.
    Each figure NAME comes with NAME_low, NAME_high and NAME_interval_reason; where there is no interval both are None
    and the reason says why.

    Raises: UserError for wrong shapes, one kind of pair only, scores that are not finite, identities that contradict
    `genuine`, fewer than 100 replicates.
    """
    draw = _draw_plan(genuine, scores, first_identities, second_identities, num_replicates, seed)
    (samples,) = _replicates([scores], genuine, draw)
    result: Result = {}
    for name, values in samples.items():
        low, high, reason = _interval(name, values, draw, "figure")
        result |= {
            name: _value(values),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_interval_reason": reason,
        }
    return result | draw.description


def paired_differences(
    scores_a: Array,
    scores_b: Array,
    genuine: Array,
    first_identities: Array | None = None,
    second_identities: Array | None = None,
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> Result:
    """Figures of model a minus those of model b on the same pairs, in percentage points with 95 % intervals.

    Both models see the same draws, so what makes the pairs hard for both drops out: an interval without 0 in it says
    that the models differ. Arguments, and what is raised, as in `verification_intervals`.
    """
    draw = _draw_plan(genuine, scores_a, first_identities, second_identities, num_replicates, seed)
    of_a, of_b = _replicates([scores_a, scores_b], genuine, draw)
    result: Result = {}
    for name in of_a:
        low, high, reason = _interval(name, of_a[name] - of_b[name], draw, "difference")
        stem = f"{name.removesuffix('_percent')}_difference_percentage_points"
        result |= {
            stem: _value(of_a[name] - of_b[name]),
            f"{stem}_low": low,
            f"{stem}_high": high,
            f"{stem}_interval_reason": reason,
        }
    return result | draw.description


def share_interval(
    hits: Array, people: Array, name: str, num_replicates: int = NUM_REPLICATES, seed: int = 0
) -> Result:
    """The share of `hits` (P,) bool in percent with its 95 % interval, by drawing `people` (P,) with all their hits.

    Gives NAME, NAME_low, NAME_high, NAME_interval_reason and how it was drawn.

    Raises: UserError for lengths that differ.
    """
    values, reason, described = _drawn_shares([hits], people, num_replicates, seed)
    return _with_interval(name, values[0], reason) | described


def paired_share_difference(
    hits_a: Array, hits_b: Array, people: Array, name: str, num_replicates: int = NUM_REPLICATES, seed: int = 0
) -> Result:
    """The share of model a minus that of model b in percentage points, as in `share_interval`, on the same draws."""
    (of_a, of_b), reason, described = _drawn_shares([hits_a, hits_b], people, num_replicates, seed)
    return _with_interval(f"{name}_difference_percentage_points", of_a - of_b, reason) | described


def _drawn_shares(
    models: Sequence[Array], people: Array, num_replicates: int, seed: int
) -> tuple[list[np.ndarray], str | None, Result]:
    """Each model's share (1 + num_replicates,) in percent, first the plain one; why there is no interval; the draw."""
    names, codes = np.unique(identity_labels(people, "people"), return_inverse=True)
    rows = [as_numpy(hits, "hits").astype(np.float64) for hits in models]
    if any(row.shape != codes.shape for row in rows):
        raise UserError(f"hits has {len(rows[0])} entries for {len(codes)} people: pass one person a hit.")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_replicates)  # (R, people)
    drawn = np.concatenate([np.ones((1, len(names)), dtype=drawn.dtype), drawn])
    counts = drawn @ np.bincount(codes)
    shares = [100.0 * (drawn @ np.bincount(codes, row)) / counts for row in rows]
    few = f"there are {len(names)} identities, an interval needs {MIN_DRAWN}" if len(names) < MIN_DRAWN else None
    described = {
        "interval_percent": INTERVAL_PERCENT,
        "num_replicates": num_replicates,
        "seed": seed,
        "resampled": "identities",
        "num_resampled": len(names),
    }
    return shares, few, described


def _with_interval(name: str, values: np.ndarray, reason: str | None) -> Result:
    if reason is None and values.min() == values.max():
        reason = "every resample gives the same figure: the set is too easy or too small to say how sure it is"
    tail = (100 - INTERVAL_PERCENT) / 200
    low, high = (None, None) if reason else map(float, np.quantile(values[1:], [tail, 1 - tail]))
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high, f"{name}_interval_reason": reason}


# --------------------------------------------------------------------------------------------------------- who is drawn


@dataclass(frozen=True, eq=False)
class DrawPlan:
    """What is drawn, and which drawn units a pair counts by: first, times second for an impostor pair that has one."""

    strata: tuple[int, ...]  # sizes; units of one are drawn from that one only
    first: np.ndarray  # (P,) int64
    second: np.ndarray | None  # (P,) int64
    num_genuine: int
    num_impostor: int
    num_replicates: int
    seed: int
    what: str  # "identities" or "pairs"

    @property
    def description(self) -> Result:
        return {
            "interval_percent": INTERVAL_PERCENT,
            "num_replicates": self.num_replicates,
            "seed": self.seed,
            "resampled": self.what,
            "num_resampled": sum(self.strata),
        }

    def counts(self) -> Iterator[np.ndarray]:
        """How often each unit was drawn, (R, units) int32, some replicates at a time; first that all count once."""
        rng = np.random.default_rng(self.seed)
        num_units = sum(self.strata)
        sizes = np.repeat(self.strata, self.strata)  # of each unit's stratum
        starts = np.repeat(np.cumsum(self.strata) - self.strata, self.strata)
        yield np.ones((1, num_units), dtype=np.int32)
        step = max(1, WEIGHTS_PER_CHUNK // len(self.first))
        for start in range(0, self.num_replicates, step):
            num_rows = min(step, self.num_replicates - start)
            units = starts + rng.integers(sizes, size=(num_rows, num_units))  # row by row, whatever the step
            units += num_units * np.arange(num_rows)[:, None]
            yield np.bincount(units.ravel(), minlength=num_rows * num_units).reshape(num_rows, -1).astype(np.int32)


def _draw_plan(
    genuine: Array, scores: Array, first: Array | None, second: Array | None, num_replicates: int, seed: int
) -> DrawPlan:
    is_genuine = scored_pairs(scores, genuine)[1]
    if num_replicates < MIN_REPLICATES:
        raise UserError(f"num_replicates is {num_replicates}, an interval needs {MIN_REPLICATES} at least.")
    if seed < 0:
        raise UserError(f"seed is {seed}, it must be 0 or more.")
    if (first is None) != (second is None):
        raise UserError("first_identities and second_identities belong together: pass both or neither.")
    num_genuine = int(is_genuine.sum())
    num_impostor = len(is_genuine) - num_genuine
    if first is None:
        positions = np.empty(len(is_genuine), dtype=np.int64)
        positions[is_genuine] = np.arange(num_genuine)
        positions[~is_genuine] = num_genuine + np.arange(num_impostor)
        strata = (num_genuine, num_impostor)
        return DrawPlan(strata, positions, None, num_genuine, num_impostor, num_replicates, seed, "pairs")
    first_codes, second_codes, num_identities = _pair_codes(first, second, is_genuine)
    return DrawPlan(
        strata=(num_identities,),
        first=first_codes,
        second=second_codes,
        num_genuine=num_genuine,
        num_impostor=num_impostor,
        num_replicates=num_replicates,
        seed=seed,
        what="identities",
    )


def _pair_codes(first: Array, second: Array, is_genuine: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Both sides' identities as 0..K-1 (P,), and K; raises UserError where they contradict `is_genuine` (P,)."""
    sides = []
    for value, name in ((first, "first_identities"), (second, "second_identities")):
        labels = identity_labels(value, name)
        if len(labels) != len(is_genuine):
            raise UserError(f"{name} has {len(labels)} entries for {len(is_genuine)} pairs: pass one per pair.")
        sides.append(labels)
    if sides[0].dtype.kind != sides[1].dtype.kind:
        raise UserError(
            "first_identities and second_identities are numbers on one side and strings on the other: "
            "name the identities the same way on both."
        )
    wrong = (sides[0] == sides[1]) != is_genuine
    if wrong.any():
        raise UserError(
            f"genuine contradicts the identities in {np.count_nonzero(wrong)} of {len(wrong)} pairs, the first is pair "
            f"{np.argmax(wrong)} ({sides[0][np.argmax(wrong)]} and {sides[1][np.argmax(wrong)]}): check both."
        )
    names, codes = np.unique(np.concatenate(sides), return_inverse=True)
    return codes[: len(is_genuine)], codes[len(is_genuine) :], len(names)


# ------------------------------------------------------------------------------------------------- figures by replicate


@dataclass(frozen=True, eq=False)
class _Order:
    """How one model orders the pairs: sorted once, then weighted anew for every replicate."""

    genuine_first: np.ndarray  # (G,) the plan's `first` of the genuine pairs, highest score first
    impostor_first: np.ndarray  # (I,) the same of the impostor pairs
    impostor_second: np.ndarray | None  # (I,) and the plan's `second`
    genuine_starts: np.ndarray  # (K,) the places among the genuine pairs where a new score begins
    impostor_starts: np.ndarray  # (S,) the places among the impostors where a stretch begins that no genuine score cuts
    above: np.ndarray  # (K,) how many stretches lie above each distinct genuine score
    accepted: np.ndarray  # (K,) how many lie at or above it


def _order(score_row: np.ndarray, is_genuine: np.ndarray, draw: DrawPlan) -> _Order:
    falling = np.argsort(-score_row, kind="stable")
    genuine, impostor = falling[is_genuine[falling]], falling[~is_genuine[falling]]
    genuine_scores, impostor_scores = -score_row[genuine], -score_row[impostor]  # rising
    genuine_starts = np.flatnonzero(np.diff(genuine_scores, prepend=-np.inf))
    distinct = genuine_scores[genuine_starts]
    num_above = np.searchsorted(impostor_scores, distinct, side="left")
    num_accepted = np.searchsorted(impostor_scores, distinct, side="right")
    cuts = np.unique(np.concatenate([[0], num_above, num_accepted, [len(impostor)]]))
    places = np.searchsorted(cuts, num_above), np.searchsorted(cuts, num_accepted)
    return _Order(
        draw.first[genuine],
        draw.first[impostor],
        None if draw.second is None else draw.second[impostor],
        genuine_starts,
        cuts[:-1],
        *places,
    )


def _replicates(models: Sequence[Array], genuine: Array, draw: DrawPlan) -> list[Figures]:
    """Each model's figures (1 + num_replicates,): first the plain ones, then those of every replicate, NaN for none."""
    pairs = [scored_pairs(scores, genuine) for scores in models]
    if len({len(score_row) for score_row, _ in pairs}) > 1:
        raise UserError("scores_a and scores_b have different lengths: pass the scores of the same pairs.")
    orders = [_order(*pair, draw) for pair in pairs]
    chunks: list[list[Figures]] = [[] for _ in models]
    for counts in draw.counts():
        for order, parts in zip(orders, chunks, strict=True):
            parts.append(_weighted_figures(order, counts))
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in chunks]


def _weighted_figures(order: _Order, counts: np.ndarray) -> Figures:
    """AUC, EER and TAR at FAR in percent of every row of `counts` (R, units): (R,) each, NaN where there is none."""
    genuine_weights = counts.take(order.genuine_first, axis=1)  # much faster than counts[:, ...]
    impostor_weights = counts.take(order.impostor_first, axis=1)
    if order.impostor_second is not None:
        impostor_weights *= counts.take(order.impostor_second, axis=1)
    # Only the sums between genuine scores matter: (R,K) genuine pairs accepted, (R,S+1) impostors.
    genuine = np.cumsum(np.add.reduceat(genuine_weights, order.genuine_starts, axis=1), axis=1, dtype=np.int64)
    impostor = np.zeros((len(counts), len(order.impostor_starts) + 1), dtype=np.int64)
    np.cumsum(np.add.reduceat(impostor_weights, order.impostor_starts, axis=1), axis=1, out=impostor[:, 1:])
    above, accepted = impostor.take(order.above, axis=1), impostor.take(order.accepted, axis=1)  # (R,K) both
    num_genuine, num_impostor = genuine[:, -1:], impostor[:, -1:]  # (R,1)
    before = np.concatenate([np.zeros_like(num_genuine), genuine[:, :-1]], axis=1)

    with np.errstate(divide="ignore", invalid="ignore"):  # a replicate without one kind becomes NaN
        couples = np.sum((genuine - before) * (2 * num_impostor - above - accepted), axis=1) / 2
        figures = {
            "pooled_auc_percent": 100.0 * couples / (num_genuine * num_impostor)[:, 0],
            "pooled_eer_percent": 100.0 * _crossing(genuine, before, above, accepted, num_impostor),
        }
        for rate, one_in in FALSE_ACCEPT_RATES.items():
            rate_accepted = np.full(len(counts), np.nan)
            if enough_impostors(len(order.impostor_first), one_in):
                # Accepted impostors never fall from left to right, so this is the first place beyond the allowed ones.
                place = np.count_nonzero(accepted * one_in <= num_impostor, axis=1)
                reached = np.concatenate([np.zeros_like(num_genuine), genuine], axis=1)
                rate_accepted = np.take_along_axis(reached, place[:, None], axis=1)[:, 0] / num_genuine[:, 0]
            figures[f"tar_at_far_{rate}_percent"] = 100.0 * rate_accepted
    is_empty = (num_genuine[:, 0] == 0) | (num_impostor[:, 0] == 0)
    return {name: np.where(is_empty, np.nan, values) for name, values in figures.items()}


def _crossing(
    genuine: np.ndarray, before: np.ndarray, above: np.ndarray, accepted: np.ndarray, num_impostor: np.ndarray
) -> np.ndarray:
    """FPR (R,) where 1 - TPR = FPR on the lines through (above, before), (accepted, genuine), and so on."""
    num_genuine = genuine[:, -1:]
    # In whole numbers: accepted / num_impostor + genuine / num_genuine >= 1. It holds in the last column at least.
    beyond = accepted * num_genuine + genuine * num_impostor >= num_impostor * num_genuine
    column = np.argmax(beyond, axis=1)[:, None]
    fpr0, tpr0 = (
        np.take_along_axis(values, column, axis=1)[:, 0] / total[:, 0]
        for values, total in ((above, num_impostor), (before, num_genuine))
    )
    fpr1, tpr1 = (
        np.take_along_axis(values, column, axis=1)[:, 0] / total[:, 0]
        for values, total in ((accepted, num_impostor), (genuine, num_genuine))
    )
    excess0, excess1 = fpr0 + tpr0 - 1, fpr1 + tpr1 - 1
    share = excess0 / (excess0 - excess1)
    # The level line to (above, before) is crossed where FPR = 1 - before; else the line from there to the next corner.
    return np.where(excess0 >= 0, 1 - tpr0, fpr0 + share * (fpr1 - fpr0))


# ------------------------------------------------------------------------------------------------------------ intervals


def _value(values: np.ndarray) -> float | None:
    return None if np.isnan(values[0]) else float(values[0])


def _interval(
    name: str, values: np.ndarray, draw: DrawPlan, what: str
) -> tuple[float | None, float | None, str | None]:
    """Low, high and None of `values` (1 + num_replicates,), or None, None and the reason why there is no interval."""
    reason = _why_not(name, values, draw, what)
    if reason is not None:
        return None, None, reason
    tail = (100 - INTERVAL_PERCENT) / 200
    low, high = np.nanquantile(values[1:], [tail, 1 - tail])
    return float(low), float(high), None


def _why_not(name: str, values: np.ndarray, draw: DrawPlan, what: str) -> str | None:
    rate = name.removeprefix("tar_at_far_").removesuffix("_percent")
    if np.isnan(values[0]):
        return too_few_impostors(rate, draw.num_impostor)
    for count, of_what in (
        (sum(draw.strata), draw.what),
        (draw.num_genuine, "genuine pairs"),
        (draw.num_impostor, "impostor pairs"),
    ):
        if count < MIN_DRAWN:
            return f"there are {count} {of_what}, an interval needs {MIN_DRAWN}"
    if rate in FALSE_ACCEPT_RATES and draw.num_impostor // FALSE_ACCEPT_RATES[rate] < MIN_ALLOWED:
        num_needed = MIN_ALLOWED * FALSE_ACCEPT_RATES[rate]
        return f"an interval at FAR {rate} needs {num_needed:,} impostor pairs, there are {draw.num_impostor:,}"
    num_empty = np.count_nonzero(np.isnan(values[1:]))
    if num_empty > MAX_EMPTY_SHARE * draw.num_replicates:
        return f"{num_empty} of {draw.num_replicates} resamples hold no genuine or no impostor pair"
    if np.nanmin(values) == np.nanmax(values):
        return f"every resample gives the same {what}: the set is too easy or too small to say how sure it is"
    return None
