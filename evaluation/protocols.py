"""Evaluation protocols: pure functions from embeddings, scores and labels to a flat dict of floats, units in the keys.

Everything takes NumPy arrays or torch tensors (on any device) and computes with NumPy on the CPU, one block of scores
at a time. Embeddings are checked and L2-normalised first, unless they are `evaluation.arrays.Units`, so that every
score is a cosine whatever their length; an all-zero embedding stays zero and has cosine 0 with everything.

Cosines are those of float64 whatever the dtype of the embeddings: products of float32 matrices differ in their last
digits with block size and processor, and a rank must not. The `_chance` functions return what random scores would get.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from evaluation.arrays import (
    SAME_SCORE,
    Units,
    aligned_embeddings,
    as_numpy,
    blocks,
    check_max_rank,
    distractor_units,
    identity_codes,
    identity_labels,
    is_tensor,
    scored_pairs,
    self_positions,
    shared_codes,
    unit_rows,
    units_of,
)
from evaluation.identification import search_gallery, search_set, two_sides
from evaluation.metrics import accepted_counts, area_under_curve, equal_error_rate
from meta import UserError

if TYPE_CHECKING:
    from evaluation.arrays import Array, Embeddings

NUM_FOLDS = 10
FOLD_THRESHOLDS = np.arange(-100, 101) / 100
DISTANCE_THRESHOLDS = np.arange(400) / 100  # squared Euclidean distances of unit vectors run from 0 to 4


# ---------------------------------------------------------------------------------------------- two views, pair scores


def join_views(original: Embeddings, mirror: Embeddings, how: str) -> Array:
    """Joined, L2-normalised embeddings of two views: (N,2D) for "concatenate", (N,D) for "add".

    `original` and `mirror` are (N,D) embeddings before L2 normalisation: each view is normalised, the two are joined,
    the joined embedding is normalised again. NumPy in, NumPy out; torch in, torch out on the same device, no gradient.
    float64 stays float64, all other floating types give float32.

    Raises: UserError for shapes that differ, empty input, values that are not finite floats, or an unknown `how`.
    Source: the two-view test of the published evaluation, which reports both joins.
    """
    if how not in ("concatenate", "add"):
        raise UserError(f'The join {how!r} does not exist, use "concatenate" or "add".')
    original_rows, mirror_rows = aligned_embeddings(original, mirror, "original", "mirror")
    num_images, size = original_rows.shape
    are_units = isinstance(original, Units) and isinstance(mirror, Units)
    kept_dtype = np.float64 if original_rows.dtype == np.float64 and not are_units else np.float32
    joined = np.empty((num_images, 2 * size if how == "concatenate" else size), dtype=kept_dtype)
    for rows in blocks(num_images, 2 * size):
        views = original_rows[rows], mirror_rows[rows]
        views = views if are_units else tuple(map(unit_rows, views))
        joined[rows] = unit_rows(np.concatenate(views, axis=1) if how == "concatenate" else views[0] + views[1])
    return sys.modules["torch"].from_numpy(joined).to(original.device) if is_tensor(original) else joined


def pair_scores(a: Array, b: Array) -> np.ndarray:
    """Cosine of row n of `a` and row n of `b`, both (N,D): (N,) float64 NumPy array.

    Raises: UserError for shapes that differ, empty input or values that are not finite floats.
    """
    a_rows, b_rows = aligned_embeddings(a, b, "a", "b")
    scores = np.empty(len(a_rows))
    for rows in blocks(*a_rows.shape):
        scores[rows] = np.einsum("nd,nd->n", unit_rows(a_rows[rows]), unit_rows(b_rows[rows]))
    return scores


# ------------------------------------------------------------------------------------------------------ identification


def leave_one_out(embeddings: Embeddings, identities: Array) -> dict[str, float]:
    """Rank-1 percent of leave-one-out identification: each image against all others, the nearest by cosine answers.

    `embeddings` (N,D), `identities` (N,) whole numbers or strings. An image never matches itself; on a tie the first in
    order answers. A person with one image has no mate to find and counts as a miss.

    Raises: UserError for wrong shapes, fewer than two images, values that are not finite floats.
    Source: FG-NET leave-one-out ("LOPO") as the IEFP paper reports it.
    """
    units = units_of(embeddings, "embeddings")
    return {"rank1_percent": search_set(units, identity_codes(identities, len(units))).rank1_percent}


def mates_against_rest(
    embeddings: Embeddings, identities: Array, distractors: Array | Iterable[Array] | None = None, max_rank: int = 10
) -> dict[str, float]:
    """CMC percent for ranks 1..max_rank: each mate against every image of other identities, MegaFace style.

    For each ordered pair (probe p, mate i) of one identity the gallery is i, every image of other identities and, where
    given, every distractor. Rank = 1 + number of non-mates n with s(p,n) > s(p,i): a tie is the mate's.
    `embeddings` (N,D), `identities` (N,) whole numbers or strings, `distractors` (M,D) images of other people,
    read in pieces: a memory-mapped file of a million will do, and so will an iterator over arrays (M1,D), (M2,D), ...
    that are never in memory together; it is read once. A person with one image is a non-mate only.

    Raises: UserError for wrong shapes, no two images of one identity, values that are not finite floats, max_rank < 1.
    Source: FG-NET in MegaFace style (Kemelmacher-Shlizerman et al., CVPR 2016) as the IEFP paper reports it.
    """
    check_max_rank(max_rank)
    units = units_of(embeddings, "embeddings")
    codes = identity_codes(identities, len(units))
    num_pairs = _count_mate_pairs(codes)
    strongest = _strongest_distractors(units, distractors, max_rank)
    hits = np.zeros(max_rank, dtype=np.int64)
    for rows in blocks(len(units), len(units)):
        scores = units.scores(rows)  # (P,N)
        is_mate = codes[rows, None] == codes  # (P,N), self included until the non-mates have been taken out
        rest = _keep_strongest(strongest[rows], np.where(is_mate, -np.inf, scores))
        is_mate[self_positions(rows)] = False
        probe, mate = np.nonzero(is_mate)
        mate_scores = scores[probe, mate] + SAME_SCORE
        # Rank <= k exactly where the k-th strongest non-mate is no stronger than the mate.
        hits += [np.count_nonzero(mate_scores >= rest[probe, place]) for place in range(max_rank)]
    return {f"cmc_percent_{rank}": float(100.0 * hits[rank - 1] / num_pairs) for rank in range(1, max_rank + 1)}


def probe_gallery(
    probe: Embeddings, probe_identities: Array, gallery: Embeddings, gallery_identities: Array
) -> dict[str, float]:
    """Rank-1 percent of the probes whose nearest gallery image by cosine is of their identity.

    `probe` (P,D), `gallery` (G,D), identities (P,) and (G,) whole numbers or strings. Identities are matched by value,
    never by position; on a tie the first gallery image in order answers.

    Raises: UserError for wrong shapes, empty input, values that are not finite floats, a probe whose identity the
    gallery lacks.
    Source: MORPH2 with 3,000 and 10,000 subjects (gallery youngest, probe oldest image) as the IEFP paper reports it.
    """
    probe_units, gallery_units = units_of(probe, "probe"), units_of(gallery, "gallery")
    codes = two_sides(probe_units, probe_identities, gallery_units, gallery_identities)
    return {"rank1_percent": search_gallery(probe_units, gallery_units, *codes).rank1_percent}


# -------------------------------------------------------------------------------------------------------- verification


def ten_fold_verification(scores: Array, genuine: Array) -> dict[str, float]:
    """Published-compatible accuracy, AUC and EER in percent of pairs in ten contiguous folds, in list order.

    `scores` (N,) cosines, `genuine` (N,) bool or 0/1. Folds are as equal as can be: where ten does not divide N the
    first N mod 10 folds are one pair longer. Thresholds are -1, -0.99, ..., 1; a score at the threshold is accepted.
    Accuracy: each fold at the first (lowest) threshold that is best on the other nine, then the mean over folds.
    AUC and EER: FPR and TPR averaged over folds, threshold by threshold; the area under that curve, and the point on it
    where 1 - TPR = FPR by linear interpolation. A fold without genuine (impostor) pairs has no TPR (FPR) and stays out
    of that average. The curve is closed at (0, 0) and (1, 1), where that of cosines in [-1, 1) ends anyway.

    Raises: UserError for wrong shapes, fewer than ten pairs, no genuine or no impostor pair, scores not finite.
    Source: the published evaluation of CACD-VS and CALFW. `evaluation.verification` has the same pairs' exact figures.
    """
    score_row, is_genuine = scored_pairs(scores, genuine)
    _check_enough_pairs(len(score_row))
    accepted_genuine, num_genuine = _fold_counts(score_row, is_genuine)
    accepted_impostor, num_impostor = _fold_counts(score_row, ~is_genuine)
    correct = accepted_genuine + num_impostor - accepted_impostor  # (folds, thresholds)
    fold_accuracy = _fold_accuracy(correct, (num_genuine + num_impostor)[:, 0])

    true_positive_rate = _mean_rate_strictest_first(accepted_genuine, num_genuine)
    false_positive_rate = _mean_rate_strictest_first(accepted_impostor, num_impostor)
    return {
        "accuracy_percent": float(100.0 * fold_accuracy.mean()),
        "auc_percent": 100.0 * area_under_curve(false_positive_rate, true_positive_rate),
        "eer_percent": 100.0 * equal_error_rate(false_positive_rate, true_positive_rate),
    }


def insightface_accuracy(
    original_a: Array, mirror_a: Array, original_b: Array, mirror_b: Array, genuine: Array
) -> dict[str, float]:
    """InsightFace's "Accuracy-Flip" of pairs in ten contiguous folds: mean and standard deviation in percent.

    All four are features (N,D) before L2 normalisation, of both views of both pictures of each pair; `genuine` (N,) is
    bool or 0/1. The views' features are added and then normalised. Thresholds of the squared Euclidean distance are 0,
    0.01, ..., 3.99, and below one is the same person. Each fold is scored at the first (lowest) threshold that is best
    on the other nine.

    Raises: UserError for wrong shapes, fewer than ten pairs, no genuine or no impostor pair, values not finite.
    Source: the verification of InsightFace's .bin sets, by which papers report LFW, CFP-FP, AgeDB-30 and CALFW.
    """
    a_views = aligned_embeddings(original_a, mirror_a, "original_a", "mirror_a")
    b_views = aligned_embeddings(original_b, mirror_b, "original_b", "mirror_b")
    aligned_embeddings(a_views[0], b_views[0], "original_a", "original_b")
    distances = np.empty(len(a_views[0]))
    for rows in blocks(*a_views[0].shape):
        a, b = (unit_rows(original[rows].astype(np.float64) + mirror[rows]) for original, mirror in (a_views, b_views))
        distances[rows] = np.square(a - b).sum(axis=1)
    distances, is_genuine = scored_pairs(distances, genuine)
    _check_enough_pairs(len(distances))
    correct, num_pairs = [], []
    for fold in np.array_split(np.arange(len(distances)), NUM_FOLDS):
        of_kinds = [np.sort(distances[fold][kind[fold]]) for kind in (is_genuine, ~is_genuine)]
        genuine_below, impostors_below = (np.searchsorted(of_kind, DISTANCE_THRESHOLDS) for of_kind in of_kinds)
        correct.append(genuine_below + len(of_kinds[1]) - impostors_below)
        num_pairs.append(len(fold))
    accuracy = 100.0 * _fold_accuracy(np.stack(correct), np.array(num_pairs))
    return {"accuracy_flip_percent": float(accuracy.mean()), "accuracy_flip_std_percent": float(accuracy.std())}


# ----------------------------------------------------------------------------------------------------------------- age


def age_group_error(probabilities_original: Array, probabilities_mirror: Array, age_groups: Array) -> dict[str, float]:
    """Mean absolute error in groups, not years, and percent of exact hits of the age group of highest mean probability.

    Probabilities (N,G) are the softmax outputs of the two views, `age_groups` (N,) whole numbers 0..G-1.

    Raises: UserError for wrong shapes, rows that are no probabilities, groups out of range.
    Source: the published evaluation's age error (argmax of the mean of both views' softmaxes).
    """
    original, mirror = aligned_embeddings(
        probabilities_original, probabilities_mirror, "probabilities_original", "probabilities_mirror"
    )
    for rows, name in ((original, "probabilities_original"), (mirror, "probabilities_mirror")):
        if np.any(rows < 0) or np.any(np.abs(rows.sum(axis=1, dtype=np.float64) - 1) > 0.01):  # room for float16
            raise UserError(f"{name} has rows that are no probabilities (0 or more, sum 1): pass softmax outputs.")
    groups = as_numpy(age_groups, "age_groups")
    if groups.shape != (len(original),) or groups.dtype.kind not in "iu":
        raise UserError(
            f"age_groups has shape {groups.shape} and dtype {groups.dtype}, "
            f"it must hold one whole number for each of the {len(original)} images."
        )
    num_groups = original.shape[1]
    if groups.min() < 0 or groups.max() >= num_groups:
        raise UserError(
            f"age_groups runs from {groups.min()} to {groups.max()}, the probabilities are for groups "
            f"0 to {num_groups - 1}: pass group indices, not years."
        )
    predicted = np.argmax(original.astype(np.float64) + mirror, axis=1)
    distance = np.abs(predicted - groups.astype(np.int64))
    return {
        "age_group_mae": float(distance.mean()),
        "age_group_accuracy_percent": float(100.0 * np.mean(distance == 0)),
    }


# -------------------------------------------------------------------------------------------------------------- chance


def leave_one_out_chance(identities: Array) -> dict[str, float]:
    """Expected `leave_one_out` of a random guess: the mean over images of mates / (N - 1), in percent."""
    codes = identity_codes(identities)
    images_per_identity = np.bincount(codes)
    mates_per_image = (images_per_identity - 1)[codes]
    return {"rank1_percent": float(100.0 * mates_per_image.mean() / (len(codes) - 1))}


def mates_against_rest_chance(identities: Array, num_distractors: int = 0, max_rank: int = 10) -> dict[str, float]:
    """Expected `mates_against_rest` of random scores: every rank of the gallery is equally likely, in percent.

    Raises: UserError for no two images of one identity, a negative number of distractors, max_rank below 1.
    """
    check_max_rank(max_rank)
    if num_distractors < 0:
        raise UserError(f"num_distractors is {num_distractors}, it must be 0 or more.")
    codes = identity_codes(identities)
    images_per_identity = np.bincount(codes)
    pairs_per_identity = images_per_identity * (images_per_identity - 1)
    num_pairs = _count_mate_pairs(codes)
    gallery_size = 1 + len(codes) - images_per_identity + num_distractors  # the mate, the others, the distractors
    return {
        f"cmc_percent_{rank}": float(
            100.0 * np.sum(pairs_per_identity * np.minimum(rank / gallery_size, 1.0)) / num_pairs
        )
        for rank in range(1, max_rank + 1)
    }


def probe_gallery_chance(probe_identities: Array, gallery_identities: Array) -> dict[str, float]:
    """Expected `probe_gallery` of a random guess: 100 / gallery size where the gallery has one image per identity.

    Raises: UserError for a probe whose identity the gallery lacks.
    """
    probe_codes, gallery_codes = shared_codes(
        identity_labels(probe_identities, "probe_identities"),
        identity_labels(gallery_identities, "gallery_identities"),
    )
    images_per_identity = np.bincount(gallery_codes)
    return {"rank1_percent": float(100.0 * images_per_identity[probe_codes].mean() / len(gallery_codes))}


# ----------------------------------------------------------------------------------------------------- blocks of scores


def _keep_strongest(strongest: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The K highest of `strongest` (P,K) and `scores` (P,C) together, row by row, highest first: (P,K)."""
    count = strongest.shape[1]
    pool = np.concatenate([strongest, scores], axis=1)
    return np.sort(np.partition(pool, -count, axis=1)[:, -count:], axis=1)[:, ::-1]


def _strongest_distractors(units: Units, distractors: Array | Iterable[Array] | None, count: int) -> np.ndarray:
    """Each probe's `count` highest distractor scores, highest first, -inf where there are fewer: (N,count)."""
    strongest = np.full((len(units), count), -np.inf)
    for others in () if distractors is None else distractor_units(units, distractors):
        for rows in blocks(len(units), len(others)):
            strongest[rows] = _keep_strongest(strongest[rows], units.rows[rows] @ others.T)
    return strongest


# ------------------------------------------------------------------------------------------------------ folds of pairs


def _fold_counts(scores: np.ndarray, is_counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counted pairs of each fold: accepted at each threshold (folds, thresholds), and in all (folds, 1)."""
    # array_split makes contiguous parts and gives what does not divide to the first ones, one each.
    folds = [scores[part][is_counted[part]] for part in np.array_split(np.arange(len(scores)), NUM_FOLDS)]
    accepted = np.stack([accepted_counts(fold, FOLD_THRESHOLDS) for fold in folds])
    return accepted, np.array([[len(fold)] for fold in folds])


def _fold_accuracy(correct: np.ndarray, num_pairs: np.ndarray) -> np.ndarray:
    """Each fold's share of right answers at the first threshold that is best on the others: (folds,).

    `correct` (folds, thresholds) counts right answers, `num_pairs` (folds,) all of them.
    """
    chosen = np.argmax(correct.sum(axis=0) - correct, axis=1)  # argmax takes the first best
    return correct[np.arange(NUM_FOLDS), chosen] / num_pairs


def _check_enough_pairs(count: int) -> None:
    if count < NUM_FOLDS:
        raise UserError(f"scores holds {count} pairs, ten folds need at least {NUM_FOLDS}: pass the whole pair list.")


def _mean_rate_strictest_first(accepted: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Fold average of accepted / totals, highest threshold first, closed with 0 and 1: (thresholds + 2,)."""
    has_pairs = totals[:, 0] > 0
    rate = (accepted[has_pairs] / totals[has_pairs]).mean(axis=0)
    return np.concatenate([[0.0], rate[::-1], [1.0]])


def _count_mate_pairs(codes: np.ndarray) -> int:
    """Number of ordered pairs of two images of one identity; raises UserError where there is none."""
    images_per_identity = np.bincount(codes)
    num_pairs = int(np.sum(images_per_identity * (images_per_identity - 1)))
    if num_pairs == 0:
        raise UserError("identities has no two images of one identity, so no probe has a mate: check the labels.")
    return num_pairs
