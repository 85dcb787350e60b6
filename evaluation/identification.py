"""Identification beyond rank 1: CMC curves, with distractors, and open-set identification.

A candidate is a picture, not a person: the rank of a probe is 1 + the number of pictures of other people that score as
high as its best mate. A tie counts against the probe, so that the order of the pictures never matters. (In
evaluation/protocols.py, which keeps to the published figures, the first in order answers on a tie.)

Scores are cosines in float64, one block of them at a time. An embedding of length 0 has no direction and is refused;
among distractors it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from evaluation.arrays import (
    SAME_SCORE,
    blocks,
    check_max_rank,
    check_same_size,
    distractor_units,
    embedding_rows,
    identity_codes,
    identity_labels,
    self_positions,
    shared_codes,
    unit_rows,
)
from evaluation.metrics import enough_impostors
from meta import UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array

    Distractors: TypeAlias = Array | Iterable[Array]

MAX_RANK = 100
FALSE_ALARM_RATES = {"1e-1": 10, "1e-2": 100, "1e-3": 1_000}  # one probe of a stranger in this many
Value: TypeAlias = "float | int | None | list[float]"


# ---------------------------------------------------------------------------------------------------------------- CMC


def leave_one_out_cmc(
    embeddings: Array,
    identities: Array,
    distractors: Distractors | None = None,
    max_rank: int = MAX_RANK,
    contest: Contest | None = None,
) -> dict[str, Value]:
    """CMC of each image against all others: the share of probes whose nearest mate is among the first k, in percent.

    `embeddings` (N,D), `identities` (N,) whole numbers or strings. `distractors` are images of other people: (M,D), a
    memory-mapped file will do, or an iterator over such arrays, read once. The image of a person with one image is no
    probe, since it has no mate to find; it stays a candidate, and `num_probes_without_mate` counts such images.
    `cmc_percent[k - 1]` is the figure of rank k; the list ends where the candidates do. `contest` is that of
    `leave_one_out_contest`, where it is known already.

    Raises: UserError for wrong shapes, no two images of one identity, values that are not finite floats, an embedding
    of length 0, max_rank < 1.
    """
    check_max_rank(max_rank)
    units = _units(embeddings, "embeddings")
    codes = identity_codes(identities, len(units))
    has_mate = _has_mate(codes)
    contest = _leave_one_out(units, codes, has_mate) if contest is None else contest
    result = _cmc(units[has_mate], contest, len(units) - 1, distractors, max_rank)
    return result | {"num_probes_without_mate": int(np.count_nonzero(~has_mate))}


def probe_gallery_cmc(
    probe: Array,
    probe_identities: Array,
    gallery: Array,
    gallery_identities: Array,
    distractors: Distractors | None = None,
    max_rank: int = MAX_RANK,
    contest: Contest | None = None,
) -> dict[str, Value]:
    """CMC of `probe` (P,D) in `gallery` (G,D), which may hold several images of a person: the nearest one counts.

    Identities (P,) and (G,) are whole numbers or strings and are matched by value. `distractors` and the list
    `cmc_percent` are as in `leave_one_out_cmc`, `contest` is that of `probe_gallery_contest`.

    Raises: UserError for wrong shapes, values that are not finite floats, an embedding of length 0, a probe whose
    identity the gallery lacks, max_rank < 1.
    """
    check_max_rank(max_rank)
    sides = _two_sides(probe, probe_identities, gallery, gallery_identities)
    contest = _contest(*sides) if contest is None else contest
    return _cmc(sides[0], contest, len(sides[2]), distractors, max_rank)


class Contest(NamedTuple):
    """What P probes have to show against the candidates."""

    best_mate: np.ndarray  # (P,) cosine, -inf without a mate
    best_other: np.ndarray  # (P,) cosine of the nearest image of someone else, -inf without one
    num_as_high: np.ndarray  # (P,) images of others that score as high as the best mate, ties included
    mate: np.ndarray  # (P,) int64, which candidate the best mate is; the first in order on a tie
    other: np.ndarray  # (P,) int64, which the nearest image of someone else is

    @property
    def hits(self) -> np.ndarray:
        """Which probes have their best mate before all others, (P,) bool; as in the CMC a tie is no hit."""
        return self.num_as_high == 0


def leave_one_out_contest(embeddings: Array, identities: Array) -> tuple[Contest, np.ndarray]:
    """Each image that has a mate against all others, and the rows (P,) of these probes.

    Raises: UserError as `leave_one_out_cmc`.
    """
    units = _units(embeddings, "embeddings")
    codes = identity_codes(identities, len(units))
    has_mate = _has_mate(codes)
    return _leave_one_out(units, codes, has_mate), np.flatnonzero(has_mate)


def probe_gallery_contest(probe: Array, probe_identities: Array, gallery: Array, gallery_identities: Array) -> Contest:
    """Each probe against the gallery; raises as `probe_gallery_cmc`."""
    return _contest(*_two_sides(probe, probe_identities, gallery, gallery_identities))


def leave_one_out_cmc_chance(
    identities: Array, num_distractors: int = 0, max_rank: int = MAX_RANK
) -> dict[str, list[float]]:
    """Expected `leave_one_out_cmc` of random scores.

    Raises: UserError for no two images of one identity, a negative number of distractors, max_rank < 1.
    """
    codes = identity_codes(identities)
    mates = (np.bincount(codes) - 1)[codes]
    return _cmc_chance(mates[_has_mate(codes)], len(codes) - 1, num_distractors, max_rank)


def probe_gallery_cmc_chance(
    probe_identities: Array, gallery_identities: Array, num_distractors: int = 0, max_rank: int = MAX_RANK
) -> dict[str, list[float]]:
    """Expected `probe_gallery_cmc` of random scores.

    Raises: UserError for a probe whose identity the gallery lacks, a negative number of distractors, max_rank < 1.
    """
    probe_codes, gallery_codes = shared_codes(
        identity_labels(probe_identities, "probe_identities"),
        identity_labels(gallery_identities, "gallery_identities"),
    )
    return _cmc_chance(np.bincount(gallery_codes)[probe_codes], len(gallery_codes), num_distractors, max_rank)


# ----------------------------------------------------------------------------------------------------------- open set


def known_rows(identities: Array, seed: int = 0, known_percent: float = 50.0) -> np.ndarray:
    """Which rows are of people who are known to the gallery, drawn by `seed`: (N,) bool. One person at least is known
    and one is not.

    Raises: UserError for fewer than two people, a percentage outside 0 to 100.
    """
    if not 0 <= known_percent <= 100:
        raise UserError(f"known_percent is {known_percent}, it must be 0 to 100.")
    labels, codes = np.unique(identity_labels(identities, "identities"), return_inverse=True)
    if len(labels) < 2:
        raise UserError("identities names one person, open-set identification needs people inside and outside the "
                        "gallery: pass two people or more.")  # fmt: skip
    num_known = min(max(round(len(labels) * known_percent / 100), 1), len(labels) - 1)
    return np.isin(codes, np.random.default_rng(seed).permutation(len(labels))[:num_known])


def open_set_split(identities: Array, seed: int = 0, known_percent: float = 50.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one set's images as gallery and as probes, (G,) and (P,) int64, drawn by `seed`.

    Of each known person one image is in the gallery and the others are probes; all images of the others are probes.

    Raises: UserError as `known_rows`, and where no known person has a second image.
    """
    labels = identity_labels(identities, "identities")
    is_known = known_rows(labels, seed, known_percent)
    order = np.random.default_rng((seed, 1)).permutation(len(labels))  # other draws than those of the known people
    order = order[is_known[order]]
    gallery = np.sort(order[np.unique(labels[order], return_index=True)[1]])  # the first of each person in that order
    is_gallery = np.zeros(len(labels), dtype=bool)
    is_gallery[gallery] = True
    if not np.any(is_known & ~is_gallery):
        raise UserError("identities has no known person with a second image, so nobody can be found: give another "
                        "seed, or more images a person.")  # fmt: skip
    return gallery, np.flatnonzero(~is_gallery)


def open_set_identification(
    probe: Array,
    probe_identities: Array,
    gallery: Array,
    gallery_identities: Array,
    distractors: Distractors | None = None,
) -> dict[str, Value]:
    """Detection and identification rate (DIR) at rank 1 and false-alarm rates 1e-1, 1e-2, 1e-3, in percent.

    Probes of people whom the gallery lacks are strangers; `open_set_split` and `known_rows` make such sets. A stranger
    is a false alarm where the highest score in the gallery is above the threshold. A known person is detected and
    identified where the best mate is above the threshold and above all images of other people. The threshold is exact:
    the lowest at which no more strangers pass than the rate allows; a score has to be above it, a tie is not.
    `dir_at_far_*_percent` and `threshold_at_far_*_cosine` are None where there are too few strangers for the rate.
    `rank1_percent` is the DIR without a threshold. `distractors` are further images in the gallery.

    Raises: UserError for wrong shapes, values that are not finite floats, an embedding of length 0, no known person or
    no stranger among the probes.
    Source: ISO/IEC 19795-1 (open-set identification); Grother and Ngan, NIST IR 8009.
    """
    probe_units, gallery_units = _units(probe, "probe"), _units(gallery, "gallery")
    check_same_size(probe_units, gallery_units, "probe", "gallery")
    probe_labels = identity_labels(probe_identities, "probe_identities", len(probe_units))
    gallery_labels = identity_labels(gallery_identities, "gallery_identities", len(gallery_units))
    is_known = _is_known(probe_labels, gallery_labels)
    names, codes = np.unique(np.concatenate([probe_labels, gallery_labels]), return_inverse=True)
    contest = _contest(probe_units, codes[: len(probe_units)], gallery_units, codes[len(probe_units) :])
    contest, counts = _with_distractors(probe_units, contest, distractors)
    found_by = contest.best_mate[is_known]  # cosine
    is_first = contest.num_as_high[is_known] == 0
    strangers = np.sort(contest.best_other[~is_known])[::-1]  # highest first
    result: dict[str, Value] = {"rank1_percent": float(100.0 * is_first.mean())}
    for rate, one_in in FALSE_ALARM_RATES.items():
        allowed, enough = len(strangers) // one_in, enough_impostors(len(strangers), one_in)
        threshold = float(strangers[allowed]) if enough else None
        is_found = is_first & (found_by > threshold + SAME_SCORE) if enough else None
        result[f"dir_at_far_{rate}_percent"] = float(100.0 * is_found.mean()) if enough else None
        result[f"threshold_at_far_{rate}_cosine"] = threshold
        result[f"false_alarms_allowed_at_far_{rate}"] = allowed
    return result | {
        "num_known_probes": int(np.count_nonzero(is_known)),
        "num_strangers": len(strangers),
        "num_gallery": len(gallery_units),
        "num_gallery_people": len(np.unique(gallery_labels)),
        **counts,
    }


def open_set_chance(probe_identities: Array, gallery_identities: Array, num_distractors: int = 0) -> dict[str, float]:
    """Expected `open_set_identification` of random scores: the rank-1 chance, times the false-alarm rate.

    Raises: UserError for no known person or no stranger among the probes, a negative number of distractors.
    """
    _check_num_distractors(num_distractors)
    probe_labels = identity_labels(probe_identities, "probe_identities")
    gallery_labels = identity_labels(gallery_identities, "gallery_identities")
    known = probe_labels[_is_known(probe_labels, gallery_labels)]
    names, counts = np.unique(gallery_labels, return_counts=True)
    mates = counts[np.searchsorted(names, known)]
    rank1 = float(100.0 * mates.mean() / (len(gallery_labels) + num_distractors))
    rates = {f"dir_at_far_{rate}_percent": rank1 / one_in for rate, one_in in FALSE_ALARM_RATES.items()}
    return {"rank1_percent": rank1, **rates}


# ------------------------------------------------------------------------------------------------------ mates and rest


def _leave_one_out(units: np.ndarray, codes: np.ndarray, has_mate: np.ndarray) -> Contest:
    return _contest(units[has_mate], codes[has_mate], units, codes, np.flatnonzero(has_mate))


def _two_sides(
    probe: Array, probe_identities: Array, gallery: Array, gallery_identities: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `_contest` takes, checked: units and codes of the probes and of the gallery."""
    probe_units, gallery_units = _units(probe, "probe"), _units(gallery, "gallery")
    check_same_size(probe_units, gallery_units, "probe", "gallery")
    probe_codes, gallery_codes = shared_codes(
        identity_labels(probe_identities, "probe_identities", len(probe_units)),
        identity_labels(gallery_identities, "gallery_identities", len(gallery_units)),
    )
    return probe_units, probe_codes, gallery_units, gallery_codes


def _contest(
    probe_units: np.ndarray,
    probe_codes: np.ndarray,
    gallery_units: np.ndarray,
    gallery_codes: np.ndarray,
    own_columns: np.ndarray | None = None,
) -> Contest:
    """`own_columns` (P,) says which gallery image is the probe itself, where the two are one set."""
    num_probes = len(probe_units)
    mate, other, num_as_high = (np.empty(num_probes, dtype=np.int64) for _ in range(3))
    contest = Contest(np.empty(num_probes), np.empty(num_probes), num_as_high, mate, other)
    for rows in blocks(num_probes, len(gallery_units)):
        scores = probe_units[rows] @ gallery_units.T  # (B,G)
        is_mate = probe_codes[rows, None] == gallery_codes
        others = np.where(is_mate, -np.inf, scores)
        if own_columns is not None:
            scores[self_positions(rows)[0], own_columns[rows]] = -np.inf
        mates = np.where(is_mate, scores, -np.inf)
        for best, place, shown in ((contest.best_mate, mate, mates), (contest.best_other, other, others)):
            place[rows] = shown.argmax(axis=1)
            best[rows] = np.take_along_axis(shown, place[rows, None], axis=1)[:, 0]
        num_as_high[rows] = _count_as_high(others, contest.best_mate[rows])
    return contest


def _count_as_high(others: np.ndarray, best_mate: np.ndarray) -> np.ndarray:
    return np.count_nonzero(others >= (best_mate - SAME_SCORE)[:, None], axis=1)


def _with_distractors(
    units: np.ndarray, contest: Contest, distractors: Distractors | None
) -> tuple[Contest, dict[str, int]]:
    """The contest with the distractors among the candidates, and how many took part and were left out."""
    num_used = num_left_out = 0
    best_other, num_as_high = contest.best_other.copy(), contest.num_as_high.copy()
    for others in () if distractors is None else distractor_units(units, distractors):
        has_length = others.any(axis=1)
        others = others[has_length]
        num_used += len(others)
        num_left_out += np.count_nonzero(~has_length)
        for rows in blocks(len(units), len(others)) if len(others) else ():
            scores = units[rows] @ others.T  # (B,M of this piece)
            best_other[rows] = np.maximum(best_other[rows], scores.max(axis=1))
            num_as_high[rows] += _count_as_high(scores, contest.best_mate[rows])
    if distractors is not None and num_used == 0:
        raise UserError("distractors holds no embedding of a length above 0: check the file or folder they come from.")
    # `other` stays the nearest in the gallery: a distractor has no place there.
    return contest._replace(best_other=best_other, num_as_high=num_as_high), {
        "num_distractors": num_used,
        "num_distractors_left_out": int(num_left_out),
    }


def _cmc(
    units: np.ndarray, contest: Contest, num_gallery: int, distractors: Distractors | None, max_rank: int
) -> dict[str, Value]:
    contest, counts = _with_distractors(units, contest, distractors)
    num_ranks = min(max_rank, num_gallery + counts["num_distractors"])
    hits = np.bincount(np.minimum(contest.num_as_high, num_ranks), minlength=num_ranks + 1)  # last: beyond the list
    cmc = 100.0 * np.cumsum(hits[:num_ranks]) / len(units)
    return {"cmc_percent": cmc.tolist(), "num_probes": len(units), "num_gallery": num_gallery, **counts}


def _cmc_chance(mates: np.ndarray, num_gallery: int, num_distractors: int, max_rank: int) -> dict[str, list[float]]:
    """`mates` (P,): of how many of the candidates each probe is."""
    check_max_rank(max_rank)
    _check_num_distractors(num_distractors)
    size = num_gallery + num_distractors
    places = np.arange(min(max_rank, size))
    counts = np.bincount(mates)
    expected = np.zeros(len(places))
    for mates_of_one in np.flatnonzero(counts):
        # All of the first k are of others: a product over the places, one candidate fewer at each.
        all_others = np.cumprod(np.maximum(size - mates_of_one - places, 0) / (size - places))
        expected += counts[mates_of_one] * (1 - all_others)
    return {"cmc_percent": (100.0 * expected / len(mates)).tolist()}


# --------------------------------------------------------------------------------------------------------- at the door


def _units(value: Array, name: str) -> np.ndarray:
    """L2-normalised float64 rows (N,D); raises UserError, also for a row of length 0."""
    units = unit_rows(embedding_rows(value, name))
    is_zero = ~units.any(axis=1)
    if is_zero.any():
        raise UserError(
            f"{name} has {np.count_nonzero(is_zero)} of {len(units)} rows of length 0, the first is row "
            f"{np.argmax(is_zero)}, and they have no direction to compare: check that image, or leave it out."
        )
    return units


def _has_mate(codes: np.ndarray) -> np.ndarray:
    """(N,) bool; raises UserError where nobody has two images."""
    has_mate = np.bincount(codes)[codes] > 1
    if not has_mate.any():
        raise UserError("identities has no two images of one identity, so no probe has a mate: check the labels.")
    return has_mate


def _is_known(probe_labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """(P,) bool; raises UserError unless some probes are of people in the gallery and some are not."""
    if probe_labels.dtype.kind != gallery_labels.dtype.kind:
        raise UserError("probe_identities and gallery_identities are numbers on one side and strings on the other: "
                        "name the identities the same way on both.")  # fmt: skip
    is_known = np.isin(probe_labels, gallery_labels)
    if is_known.all() or not is_known.any():
        lacking = "strangers, whom the gallery lacks," if is_known.all() else "people of the gallery"
        raise UserError(f"probe_identities has no {lacking} among {len(is_known)} probes: open-set identification "
                        "needs both, see known_rows.")  # fmt: skip
    return is_known


def _check_num_distractors(num_distractors: int) -> None:
    if num_distractors < 0:
        raise UserError(f"num_distractors is {num_distractors}, it must be 0 or more.")
