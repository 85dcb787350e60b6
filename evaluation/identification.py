"""Identification beyond rank 1: CMC curves, with distractors, and open-set identification.

A candidate is a picture, not a person: the rank of a probe is 1 + the number of pictures of other people that score as
high as its best mate. A tie counts against the probe, so that the order of the pictures never matters. (In
evaluation/protocols.py, which keeps to the published figures, the first in order answers on a tie.)

Scores are cosines in float64, one block of them at a time. An embedding without direction is an error; among
distractors it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from evaluation.arrays import (
    SAME_SCORE,
    Units,
    blocks,
    check_max_rank,
    check_same_size,
    directed_units,
    distractor_units,
    first_highest,
    identity_codes,
    identity_labels,
    self_positions,
    shared_codes,
)
from evaluation.metrics import enough_impostors
from meta import UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array, Embeddings

    Distractors: TypeAlias = Array | Iterable[Array]

MAX_RANK = 100
FALSE_ALARM_RATES = {"1e-1": 10, "1e-2": 100, "1e-3": 1_000}  # one non-mated probe in this many
Value: TypeAlias = "float | int | None | list[float]"


# ------------------------------------------------------------------------------------------------------------- search


class SearchResult(NamedTuple):
    """What P probes find among the candidates."""

    best_mate: np.ndarray  # (P,) cosine, -inf without a mate
    best_other: np.ndarray  # (P,) cosine of the nearest image of someone else, -inf without one
    num_as_high: np.ndarray  # (P,) images of others that score as high as the best mate, ties included
    mate: np.ndarray  # (P,) int64, which candidate the best mate is; the first in order on a tie
    other: np.ndarray  # (P,) int64, which the nearest image of someone else is
    nearest_is_mate: np.ndarray  # (P,) bool; the nearest candidate, the first in order on a tie

    @property
    def hits(self) -> np.ndarray:
        """Which probes have their best mate before all others, (P,) bool; as in the CMC a tie is no hit."""
        return self.num_as_high == 0

    @property
    def rank1_percent(self) -> float:
        """Of all probes, those without a mate included, by the rule of the published protocols: the first in order
        answers on a tie."""
        return float(100.0 * np.count_nonzero(self.nearest_is_mate) / len(self.nearest_is_mate))

    def of(self, probes: np.ndarray) -> SearchResult:
        """The same of some probes only."""
        return SearchResult(*(values[probes] for values in self))


def leave_one_out_search(embeddings: Embeddings, identities: Array) -> tuple[SearchResult, np.ndarray]:
    """Each image that has a mate against all others, and the rows (P,) of these probes.

    Raises: UserError as `leave_one_out_cmc`.
    """
    units = directed_units(embeddings, "embeddings")
    codes = identity_codes(identities, len(units))
    probes = np.flatnonzero(_has_mate(codes))
    return search_set(units, codes).of(probes), probes


def probe_gallery_search(
    probe: Embeddings, probe_identities: Array, gallery: Embeddings, gallery_identities: Array
) -> SearchResult:
    """Each probe against the gallery; raises as `probe_gallery_cmc`."""
    probe_units, gallery_units = directed_units(probe, "probe"), directed_units(gallery, "gallery")
    return search_gallery(
        probe_units, gallery_units, *two_sides(probe_units, probe_identities, gallery_units, gallery_identities)
    )


def two_sides(
    probe: Units, probe_identities: Array, gallery: Units, gallery_identities: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Identities of the probes (P,) and of the gallery (G,) as 0..K-1; raises UserError for sides that don't fit."""
    check_same_size(probe.size, gallery.size, "probe", "gallery")
    return shared_codes(
        identity_labels(probe_identities, "probe_identities", len(probe)),
        identity_labels(gallery_identities, "gallery_identities", len(gallery)),
    )


def search_set(units: Units, codes: np.ndarray) -> SearchResult:
    """Each of the N images against all others: (N,)."""
    parts = []
    for rows in blocks(len(units), len(units)):
        scores, is_mate = units.scores(rows), codes[rows, None] == codes
        mates, others = np.where(is_mate, scores, -np.inf), np.where(is_mate, -np.inf, scores)
        mates[self_positions(rows)] = -np.inf
        parts.append(_found(mates, others))
    return _joined(parts)


def search_gallery(probe: Units, gallery: Units, probe_codes: np.ndarray, gallery_codes: np.ndarray) -> SearchResult:
    """Each of the P probes against the G images of the gallery: (P,)."""
    parts = []
    for rows in blocks(len(probe), len(gallery)):
        scores, is_mate = probe.rows[rows] @ gallery.rows.T, probe_codes[rows, None] == gallery_codes
        parts.append(_found(np.where(is_mate, scores, -np.inf), np.where(is_mate, -np.inf, scores)))
    return _joined(parts)


def _found(mates: np.ndarray, others: np.ndarray) -> SearchResult:
    """Of a block of probes: cosines (B,G) of their mates and of other people's images, -inf where it is not one."""
    mate, other, row = mates.argmax(axis=1), others.argmax(axis=1), np.arange(len(mates))
    best_mate, best_other = mates[row, mate], others[row, other]
    nearest = first_highest(np.maximum(mates, others))
    nearest_is_mate = mates[row, nearest] > -np.inf
    return SearchResult(best_mate, best_other, _count_as_high(others, best_mate), mate, other, nearest_is_mate)


def _joined(parts: list[SearchResult]) -> SearchResult:
    return SearchResult(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _count_as_high(others: np.ndarray, best_mate: np.ndarray) -> np.ndarray:
    return np.count_nonzero(others >= (best_mate - SAME_SCORE)[:, None], axis=1)


# ---------------------------------------------------------------------------------------------------------------- CMC


def leave_one_out_cmc(
    embeddings: Embeddings,
    identities: Array,
    distractors: Distractors | None = None,
    max_rank: int = MAX_RANK,
) -> dict[str, Value]:
    """CMC of each image against all others: the share of probes whose nearest mate is among the first k, in percent.

    `embeddings` (N,D), `identities` (N,) whole numbers or strings. `distractors` are images of other people: (M,D), a
    memory-mapped file will do, or an iterator over such arrays, read once. The image of a person with one image is no
    probe, since it has no mate to find; it stays a candidate, and `num_probes_without_mate` counts such images.
    `cmc_percent[k - 1]` is the figure of rank k; the list ends where the candidates do.

    Raises: UserError for wrong shapes, no two images of one identity, values that are not finite floats, an embedding
    without direction, max_rank < 1.
    """
    check_max_rank(max_rank)
    units = directed_units(embeddings, "embeddings")
    search, probes = leave_one_out_search(units, identities)
    probe_units = units if len(probes) == len(units) else units[probes]
    result = cmc_of(search, probe_units, len(units) - 1, distractors, max_rank)
    return result | {"num_probes_without_mate": len(units) - len(probes)}


def probe_gallery_cmc(
    probe: Embeddings,
    probe_identities: Array,
    gallery: Embeddings,
    gallery_identities: Array,
    distractors: Distractors | None = None,
    max_rank: int = MAX_RANK,
) -> dict[str, Value]:
    """CMC of `probe` (P,D) in `gallery` (G,D), which may hold several images of a person: the nearest one counts.

    Identities (P,) and (G,) are whole numbers or strings and are matched by value. `distractors` and the list
    `cmc_percent` are as in `leave_one_out_cmc`.

    Raises: UserError for wrong shapes, values that are not finite floats, an embedding without direction, a probe whose
    identity the gallery lacks, max_rank < 1.
    """
    check_max_rank(max_rank)
    probe_units, gallery_units = directed_units(probe, "probe"), directed_units(gallery, "gallery")
    search = probe_gallery_search(probe_units, probe_identities, gallery_units, gallery_identities)
    return cmc_of(search, probe_units, len(gallery_units), distractors, max_rank)


def cmc_of(
    search: SearchResult,
    probe: Units,
    num_gallery: int,
    distractors: Distractors | None = None,
    max_rank: int = MAX_RANK,
) -> dict[str, Value]:
    """CMC of a search by `probe` (P,D) in `num_gallery` images, with the distractors among them."""
    search, counts = _with_distractors(probe, search, distractors)
    num_ranks = min(max_rank, num_gallery + counts["num_distractors"])
    hits = np.bincount(np.minimum(search.num_as_high, num_ranks), minlength=num_ranks + 1)  # last: beyond the list
    cmc = 100.0 * np.cumsum(hits[:num_ranks]) / len(probe)
    return {"cmc_percent": cmc.tolist(), "num_probes": len(probe), "num_gallery": num_gallery, **counts}


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
    """Which rows are of people whom the gallery holds, drawn by `seed`: (N,) bool. One person at least is in it and one
    is not.

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
    probe: Embeddings,
    probe_identities: Array,
    gallery: Embeddings,
    gallery_identities: Array,
    distractors: Distractors | None = None,
) -> dict[str, Value]:
    """Detection and identification rate (DIR) at rank 1 and false-alarm rates 1e-1, 1e-2, 1e-3, in percent.

    A mated probe is of a person in the gallery, a non-mated one is not; `open_set_split` and `known_rows` make such
    sets. A non-mated probe is a false alarm where its highest score in the gallery is above the threshold. A mated one
    is detected and identified where its best mate is above the threshold and above all images of other people. The
    threshold is exact: the lowest at which no more non-mated probes pass than the rate allows; a score has to be above
    it, a tie is not. `dir_at_far_*_percent` and `threshold_at_far_*_cosine` are None where there are too few non-mated
    probes for the rate. `rank1_percent` is the DIR without a threshold. `distractors` are more images in the gallery.

    Raises: UserError for wrong shapes, values that are not finite floats, an embedding without direction, no mated or
    no non-mated probe.
    Source: ISO/IEC 19795-1 (open-set identification); Grother and Ngan, NIST IR 8009.
    """
    probe_units, gallery_units = directed_units(probe, "probe"), directed_units(gallery, "gallery")
    check_same_size(probe_units.size, gallery_units.size, "probe", "gallery")
    probe_labels = identity_labels(probe_identities, "probe_identities", len(probe_units))
    gallery_labels = identity_labels(gallery_identities, "gallery_identities", len(gallery_units))
    is_mated = _is_mated(probe_labels, gallery_labels)
    names, codes = np.unique(np.concatenate([probe_labels, gallery_labels]), return_inverse=True)
    search = search_gallery(probe_units, gallery_units, codes[: len(probe_units)], codes[len(probe_units) :])
    search, counts = _with_distractors(probe_units, search, distractors)
    found_by = search.best_mate[is_mated]  # cosine
    is_first = search.hits[is_mated]
    false_alarms = np.sort(search.best_other[~is_mated])[::-1]  # cosines, highest first
    result: dict[str, Value] = {"rank1_percent": float(100.0 * is_first.mean())}
    for rate, one_in in FALSE_ALARM_RATES.items():
        allowed, enough = len(false_alarms) // one_in, enough_impostors(len(false_alarms), one_in)
        threshold = float(false_alarms[allowed]) if enough else None
        is_found = is_first & (found_by > threshold + SAME_SCORE) if enough else None
        result[f"dir_at_far_{rate}_percent"] = float(100.0 * is_found.mean()) if enough else None
        result[f"threshold_at_far_{rate}_cosine"] = threshold
        result[f"false_alarms_allowed_at_far_{rate}"] = allowed
    return result | {
        "num_known_probes": int(np.count_nonzero(is_mated)),
        "num_strangers": len(false_alarms),
        "num_gallery": len(gallery_units),
        "num_gallery_people": len(np.unique(gallery_labels)),
        **counts,
    }


def open_set_chance(probe_identities: Array, gallery_identities: Array, num_distractors: int = 0) -> dict[str, float]:
    """Expected `open_set_identification` of random scores: the rank-1 chance, times the false-alarm rate.

    Raises: UserError for no mated or no non-mated probe, a negative number of distractors.
    """
    _check_num_distractors(num_distractors)
    probe_labels = identity_labels(probe_identities, "probe_identities")
    gallery_labels = identity_labels(gallery_identities, "gallery_identities")
    known = probe_labels[_is_mated(probe_labels, gallery_labels)]
    names, counts = np.unique(gallery_labels, return_counts=True)
    mates = counts[np.searchsorted(names, known)]
    rank1 = float(100.0 * mates.mean() / (len(gallery_labels) + num_distractors))
    rates = {f"dir_at_far_{rate}_percent": rank1 / one_in for rate, one_in in FALSE_ALARM_RATES.items()}
    return {"rank1_percent": rank1, **rates}


# ------------------------------------------------------------------------------------------------------- distractors


def _with_distractors(
    probe: Units, search: SearchResult, distractors: Distractors | None
) -> tuple[SearchResult, dict[str, int]]:
    """The search with the distractors among the candidates, and how many took part and were left out."""
    num_used = num_left_out = 0
    best_other, num_as_high = search.best_other.copy(), search.num_as_high.copy()
    for others in () if distractors is None else distractor_units(probe, distractors):
        has_length = others.any(axis=1)
        others = others[has_length]
        num_used += len(others)
        num_left_out += np.count_nonzero(~has_length)
        for rows in blocks(len(probe), len(others)) if len(others) else ():
            scores = probe.rows[rows] @ others.T  # (B,M of this piece)
            best_other[rows] = np.maximum(best_other[rows], scores.max(axis=1))
            num_as_high[rows] += _count_as_high(scores, search.best_mate[rows])
    if distractors is not None and num_used == 0:
        raise UserError("distractors holds no embedding of a length above 0: check the file or folder they come from.")
    # `other` stays the nearest in the gallery: a distractor has no place there.
    return search._replace(best_other=best_other, num_as_high=num_as_high), {
        "num_distractors": num_used,
        "num_distractors_left_out": int(num_left_out),
    }


# ------------------------------------------------------------------------------------------------- chance and checks


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


def _has_mate(codes: np.ndarray) -> np.ndarray:
    """(N,) bool; raises UserError where nobody has two images."""
    has_mate = np.bincount(codes)[codes] > 1
    if not has_mate.any():
        raise UserError("identities has no two images of one identity, so no probe has a mate: check the labels.")
    return has_mate


def _is_mated(probe_labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """(P,) bool; raises UserError unless some probes are of people in the gallery and some are not."""
    if probe_labels.dtype.kind != gallery_labels.dtype.kind:
        raise UserError("probe_identities and gallery_identities are numbers on one side and strings on the other: "
                        "name the identities the same way on both.")  # fmt: skip
    is_mated = np.isin(probe_labels, gallery_labels)
    if is_mated.all() or not is_mated.any():
        lacking = "people whom the gallery lacks" if is_mated.all() else "people of the gallery"
        raise UserError(f"probe_identities has no {lacking} among {len(is_mated)} probes: open-set identification "
                        "needs both, see known_rows.")  # fmt: skip
    return is_mated


def _check_num_distractors(num_distractors: int) -> None:
    if num_distractors < 0:
        raise UserError(f"num_distractors is {num_distractors}, it must be 0 or more.")
