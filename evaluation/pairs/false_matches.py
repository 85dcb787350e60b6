"""False matches by age: which ages a system takes for one person at the one threshold that it has for everybody.

The false match rate (FMR) is the share of impostor pairs that pass; demographic reports use the word for what
verification calls FAR. A threshold lets one impostor pair in 1,000 (10,000, 100,000) of all pass, and is the same for
all ages: here the share that passes is split by the ages of the two people, in a matrix of age groups, in bands such as
"both up to 5 years", and by the years between them.

A pair passes where its score is at or above the threshold. As in `evaluation.verification` a threshold is a score that
is there, the lowest that lets no more impostors pass than the rate allows; with ties it lets fewer pass, never more.
Everything is exact: all pairs are scored in blocks, and those that pass are kept with their pictures.

Where nobody says who the people are, every pair of pictures counts as two people: a person who is in the set twice
makes the rates higher than they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from evaluation.age_gap import GAP_LOWER_EDGES, UNKNOWN, bin_names, checked_ages
from evaluation.arrays import Units, directed_units, identity_labels
from evaluation.intervals import INTERVAL_PERCENT, MAX_EMPTY_SHARE, MIN_DRAWN, NUM_REPLICATES
from evaluation.verification import genuine_positions, impostor_blocks, rounded
from meta import AGE_GROUP_NAMES, AGE_GROUP_UPPER_EDGES, MAX_AGE, NUM_AGE_GROUPS, UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array, Embeddings

FALSE_MATCH_RATES = {"1e-3": 1_000, "1e-4": 10_000, "1e-5": 100_000}  # one impostor in this many, over all ages
MIN_FALSE_MATCHES = 10  # that a threshold lets pass: one that fewer pairs reach hangs on single pairs
MIN_PAIRS = 100  # impostors of two ages: below this the share that passes is no figure
MIN_GENUINE = 10
BANDS = {"0-5": (0, 5), "0-12": (0, 12), "18+": (18, MAX_AGE), "25-45": (25, 45), "60+": (60, MAX_AGE)}  # both ages
CHILDREN, ADULTS = ("0-5", "0-12"), "18+"  # bands whose rates are set in proportion
NUM_AGES = MAX_AGE + 1
# (121,121) the bin of the years between the younger age (row) and the older (column), -1 where the row is older.
GAP_BIN = np.searchsorted(GAP_LOWER_EDGES, -np.subtract.outer(np.arange(NUM_AGES), np.arange(NUM_AGES)), "right") - 1
NUM_NAMED = 12  # of the impostor pairs most alike

Result: TypeAlias = dict[str, Any]


def false_matches_by_age(
    embeddings: Embeddings, ages: Array, identities: Array | None = None, seed: int = 0
) -> tuple[Result, list[MostAlike]]:
    """The false match rates by age at FMR 1e-3, 1e-4 and 1e-5 over all impostor pairs, and the pairs most alike.

    `embeddings` (N,D), `ages` (N,) whole years, -1 where unknown: such pictures are left out and counted. `identities`
    (N,) whole numbers or strings; None makes every picture a person of its own. The result, ready for JSON, has
    num_pictures, num_pictures_without_age, num_people (None without identities), num_impostor, num_genuine, age_groups
    (8 names), num_impostor_by_groups (8,8) and "at_fmr": rate -> row, see `_row`. Intervals are by drawing people
    (pictures without identities) with replacement at the same threshold, as in `evaluation.intervals`.

    Time and memory: one product of the embeddings with themselves, in blocks; one pair in 1,000 is kept.

    Raises: UserError for wrong shapes, embeddings with NaN, infinity or no length, ages that are none, fewer than two
    pictures with an age, ages of one group only, one person only.
    """
    units = directed_units(embeddings, "embeddings")
    years = checked_ages(ages, "ages", len(units))
    known = years != UNKNOWN
    people = np.arange(len(units)) if identities is None else identity_labels(identities, "identities", len(units))
    codes = np.unique(people[known], return_inverse=True)[1]
    _check_enough(years[known], codes, len(units))
    pairs = _scored(units if known.all() else units[known], years[known], codes)
    draws = _Draws(codes, years[known], seed)
    result = {
        "num_pictures": len(units),
        "num_pictures_without_age": int(np.count_nonzero(~known)),
        "num_people": None if identities is None else int(codes.max()) + 1,
        "num_impostor": pairs.num_impostor,
        "num_genuine": None if identities is None else len(pairs.genuine_scores),
        "age_groups": list(AGE_GROUP_NAMES),
        "num_impostor_by_groups": by_groups(pairs.impostors).tolist(),
        "at_fmr": {rate: _row(pairs, rate, draws) for rate in FALSE_MATCH_RATES},
        "interval_percent": INTERVAL_PERCENT,
        "num_replicates": NUM_REPLICATES,
        "seed": seed,
        "resampled": "pictures" if identities is None else "identities",
        "num_resampled": draws.num_people,
    }
    places = np.flatnonzero(known)
    alike = zip(pairs.scores[:NUM_NAMED], places[pairs.first], places[pairs.second], strict=False)
    return result, [MostAlike(float(score), int(first), int(second)) for score, first, second in alike]


class MostAlike(NamedTuple):
    """An impostor pair."""

    score: float
    first: int  # positions among the N pictures
    second: int


# ------------------------------------------------------------------------------------------------------------ all pairs


@dataclass(frozen=True, eq=False)
class _Pairs:
    """All impostor pairs counted by their two ages, the most alike one by one, and the scores of the genuine pairs."""

    impostors: np.ndarray  # (121,121) int64: pairs with the younger age in the row and the older in the column
    scores: np.ndarray  # (K,) float64, highest first: one impostor more than the loosest rate lets pass
    first: np.ndarray  # (K,) positions
    second: np.ndarray  # (K,)
    ages: np.ndarray  # (K,2) the younger age and the older
    genuine_scores: np.ndarray  # (G,)

    @property
    def num_impostor(self) -> int:
        return int(self.impostors.sum())


def _scored(units: Units, years: np.ndarray, codes: np.ndarray) -> _Pairs:
    """`years` (N,) of 0 to 120 and `codes` (N,) of people."""
    genuine = genuine_positions(codes)
    histogram = np.bincount(years, minlength=NUM_AGES)
    everyone = np.triu(np.outer(histogram, histogram), 1) + np.diag(histogram * (histogram - 1) // 2)
    impostors = everyone - _count_ages(_sorted_ages(years, *genuine))
    num_kept = int(impostors.sum()) // min(FALSE_MATCH_RATES.values()) + 1
    scores, first, second = _most_alike(units, codes, num_kept)
    return _Pairs(
        impostors, scores, first, second, _sorted_ages(years, first, second), rounded(units.pair_scores(*genuine))
    )


def _most_alike(units: Units, codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and positions of the `count` impostor pairs with the highest scores, highest first."""
    kept = (np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    lowest = -np.inf
    for block in impostor_blocks(units, codes):
        higher = block[0] >= lowest
        kept = tuple(np.concatenate([old, new[higher]]) for old, new in zip(kept, block, strict=True))
        if len(kept[0]) > count:
            highest = np.argpartition(kept[0], -count)[-count:]
            kept = tuple(values[highest] for values in kept)
            lowest = kept[0].min()
    order = np.lexsort((kept[2], kept[1], -kept[0]))
    return tuple(values[order] for values in kept)


def _sorted_ages(years: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,2): the younger and the older age of each pair."""
    return np.sort(np.stack([years[first], years[second]], axis=1), axis=1)


def _count_ages(ages: np.ndarray) -> np.ndarray:
    """How many of the pairs (P,2) have which two ages: (121,121) int64."""
    return np.bincount(ages @ [NUM_AGES, 1], minlength=NUM_AGES**2).reshape(NUM_AGES, NUM_AGES)


def by_groups(counts: np.ndarray) -> np.ndarray:
    """Counts by younger and older age (121,121) -> by age groups, symmetric: (8,8) int64."""
    group = np.searchsorted(AGE_GROUP_UPPER_EDGES, np.arange(NUM_AGES), side="left")  # upper edges are inclusive
    member = (group == np.arange(NUM_AGE_GROUPS)[:, None]).astype(np.int64)  # (8,121)
    upper = member @ counts @ member.T
    return upper + upper.T - np.diag(np.diag(upper))


# --------------------------------------------------------------------------------------------------- at one threshold


def _row(pairs: _Pairs, rate: str, draws: _Draws) -> Result:
    """What one threshold lets pass.

    impostors_allowed, threshold, num_false_matches, fmr (a share, as all rates here), tar_percent of the genuine pairs;
    num_false_matches_by_groups (8,8) and log10_fmr_by_groups (8,8), None where no pair passes or where there are too
    few; "bands" (both ages within) and "by_age_gap", name -> num_impostor, num_false_matches, fmr, reason, with
    fmr_low, fmr_high and fmr_interval_reason for bands; "child_to_adult_ratios", children's band -> ratio, ratio_low,
    ratio_high, reason. Without a threshold all of these are None, and reason says why.
    """
    allowed = pairs.num_impostor // FALSE_MATCH_RATES[rate]
    threshold, reason = _threshold(pairs, rate, allowed)
    if threshold is None:
        return {"impostors_allowed": allowed} | dict.fromkeys(FIGURES) | {"reason": reason}
    num_passing = int(np.count_nonzero(pairs.scores >= threshold))
    passing = _count_ages(pairs.ages[:num_passing])
    genuine, matches, impostors = pairs.genuine_scores, by_groups(passing), by_groups(pairs.impostors)
    drawn = draws.fmr_of_bands(pairs.first[:num_passing], pairs.second[:num_passing])
    bands = {band: _share(_within(passing, *ages), _within(pairs.impostors, *ages)) for band, ages in BANDS.items()}
    return {
        "impostors_allowed": allowed,
        "threshold": threshold,
        "num_false_matches": num_passing,
        "fmr": num_passing / pairs.num_impostor,
        "tar_percent": 100.0 * float(np.mean(genuine >= threshold)) if len(genuine) >= MIN_GENUINE else None,
        "num_false_matches_by_groups": matches.tolist(),
        "log10_fmr_by_groups": [
            [_log10(*cell) for cell in zip(*cells, strict=True)] for cells in zip(matches, impostors, strict=True)
        ],
        "bands": {band: row | _interval("fmr", row["fmr"], drawn[band], draws) for band, row in bands.items()},
        "by_age_gap": {
            name: _share(*(int(counts[place == GAP_BIN].sum()) for counts in (passing, pairs.impostors)))
            for place, name in enumerate(bin_names(GAP_LOWER_EDGES))
        },
        "child_to_adult_ratios": {band: _ratio(band, bands, drawn, draws) for band in CHILDREN},
        "reason": None,
    }


FIGURES = (
    "threshold", "num_false_matches", "fmr", "tar_percent", "num_false_matches_by_groups", "log10_fmr_by_groups",
    "bands", "by_age_gap", "child_to_adult_ratios",
)  # fmt: skip


def _threshold(pairs: _Pairs, rate: str, allowed: int) -> tuple[float | None, str | None]:
    """The lowest score of any pair at and above which at most `allowed` impostors lie, or why there is none."""
    if allowed < MIN_FALSE_MATCHES:
        needed = MIN_FALSE_MATCHES * FALSE_MATCH_RATES[rate]
        return None, f"FMR {rate} needs {needed:,} impostor pairs or more, there are {pairs.num_impostor:,}"
    first_refused = pairs.scores[allowed]
    passing = pairs.scores[pairs.scores > first_refused]
    if len(passing) < MIN_FALSE_MATCHES:
        return None, (
            f"at FMR {rate} {allowed:,} impostor pairs may pass, but so many have the same cosine of "
            f"{first_refused:.4f} that {len(passing)} would, and a threshold needs {MIN_FALSE_MATCHES}"
        )
    of_genuine = pairs.genuine_scores[pairs.genuine_scores > first_refused]
    return float(min(passing.min(), of_genuine.min(initial=np.inf))), None


def _within(counts: np.ndarray, low: int, high: int) -> int:
    """Pairs with both ages from `low` to `high`, of counts by age (121,121)."""
    return int(counts[low : high + 1, low : high + 1].sum())


def _share(num_passing: int, num_impostor: int) -> Result:
    enough = num_impostor >= MIN_PAIRS
    return {
        "num_impostor": num_impostor,
        "num_false_matches": num_passing,
        "fmr": num_passing / num_impostor if enough else None,
        "reason": None if enough else f"there are {num_impostor} impostor pairs, a rate needs {MIN_PAIRS}",
    }


def _log10(num_passing: np.int64, num_impostor: np.int64) -> float | None:
    return float(np.log10(num_passing / num_impostor)) if num_passing and num_impostor >= MIN_PAIRS else None


def _ratio(band: str, bands: dict[str, Result], drawn: dict[str, np.ndarray], draws: _Draws) -> Result:
    """How many times as often two children pass as two adults."""
    of_children, of_adults = bands[band]["fmr"], bands[ADULTS]["fmr"]
    if of_children is None or not of_adults:
        short = next((row["reason"] for row in (bands[band], bands[ADULTS]) if row["reason"]), None)
        reason = short or f"no pair of two adults ({ADULTS}) passes"
        return {"ratio": None, "ratio_low": None, "ratio_high": None, "reason": reason}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[band] / drawn[ADULTS]
    interval = _interval("ratio", of_children / of_adults, ratios, draws)
    return {"ratio": of_children / of_adults} | interval | {"reason": None}


# ------------------------------------------------------------------------------------------------------------ intervals


class _Draws:
    """Draws people with replacement: an impostor pair of two counts as often as one was drawn times the other.

    Two copies of one person are no pair, as in `evaluation.intervals`.
    """

    def __init__(self, codes: np.ndarray, years: np.ndarray, seed: int) -> None:
        self.codes, self.years, self.seed = codes, years, seed
        self.num_people = int(codes.max()) + 1

    def counts(self) -> Iterator[np.ndarray]:
        """How often each person was drawn, (people,) int64, replicate by replicate."""
        rng = np.random.default_rng(self.seed)
        for _ in range(NUM_REPLICATES):
            yield np.bincount(rng.integers(self.num_people, size=self.num_people), minlength=self.num_people)

    def fmr_of_bands(self, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
        """The FMR of each band in each replicate (R,), NaN without a pair; `first` and `second` (P,) are those that
        pass."""
        passing, pictures = {}, {}
        for band, (low, high) in BANDS.items():
            within = (self.years >= low) & (self.years <= high)
            both = within[first] & within[second]
            passing[band] = self.codes[first[both]], self.codes[second[both]]
            pictures[band] = np.bincount(self.codes[within], minlength=self.num_people)  # of each person
        drawn = {band: np.empty(NUM_REPLICATES) for band in BANDS}
        for replicate, counts in enumerate(self.counts()):
            for band, (a, b) in passing.items():
                of_person = counts * pictures[band]
                num_pairs = (int(of_person.sum()) ** 2 - int(of_person @ of_person)) / 2
                drawn[band][replicate] = counts[a] @ counts[b] / num_pairs if num_pairs else np.nan
        return drawn


def _interval(name: str, value: float | None, drawn: np.ndarray, draws: _Draws) -> Result:
    """NAME_low, NAME_high and NAME_interval_reason of a figure from its replicates (R,)."""
    reason, finite = None, drawn[np.isfinite(drawn)]
    if value is None:
        reason = "there is no figure"
    elif draws.num_people < MIN_DRAWN:
        reason = f"there are {draws.num_people} people, an interval needs {MIN_DRAWN}"
    elif len(drawn) - len(finite) > MAX_EMPTY_SHARE * len(drawn):
        reason = f"{len(drawn) - len(finite)} of {len(drawn)} resamples have no such figure"
    elif finite.min() == finite.max():
        reason = "every resample gives the same figure: there are too few false matches to say how sure it is"
    tail = (100 - INTERVAL_PERCENT) / 200
    low, high = (None, None) if reason else map(float, np.quantile(finite, [tail, 1 - tail]))
    return {f"{name}_low": low, f"{name}_high": high, f"{name}_interval_reason": reason}


# ---------------------------------------------------------------------------------------------------------- at the door


def _check_enough(years: np.ndarray, codes: np.ndarray, num_pictures: int) -> None:
    """Raises UserError where there is nothing to compare; `years` and `codes` are of the pictures of known age."""
    if len(years) < 2:
        raise UserError(f"ages holds {len(years)} known ages of {num_pictures} pictures, false matches need two at "
                        "least: give ages.")  # fmt: skip
    groups = np.unique(np.searchsorted(AGE_GROUP_UPPER_EDGES, years, side="left"))
    if len(groups) < 2:
        raise UserError(f"ages are all of the group {AGE_GROUP_NAMES[groups[0]]} years, there are no others to compare "
                        "it with: pass pictures of several age groups.")  # fmt: skip
    if codes.max() < 1:
        raise UserError(f"identities names one person for all {len(codes)} pictures with an age: false matches need "
                        "two or more.")  # fmt: skip
