"""From features and ages to an erasure, and how well a linear reader finds the age before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.erasure.features import Piece, feature_pieces
from evaluation.erasure.pictures import AgedPictures
from evaluation.erasure.sources import Source
from evaluation.models_under_test import Extraction, in_step
from evaluation.probes import NUM_FOLDS, RIDGE_ALPHA, person_folds
from meta import UserError
from models.erasure import SHRINKAGE, Basis, Erasure, ErasureFitter
from utils.distributed import DistInfo

MIN_VARIANCE = 1e-12  # of a feature, as a share of the largest; one that is constant is read from as little as others


def fit_erasure(
    source: Source,
    pictures: AgedPictures,
    chosen: np.ndarray,
    basis: Basis,
    *,
    seed: int,
    extraction: Extraction,
    process: DistInfo,
) -> tuple[Erasure, dict[str, Any]] | None:
    """An erasure fitted to both views of the `chosen` pictures, and facts about it; None beside the first process.

    Where no ages are known those of the source's age branch are taken. Sums are kept for each of five folds: their
    total is what the erasure is fitted to, and what one of them leaves out tests it.

    Raises:
        UserError: in every process, for a picture that can't be read, features that are not finite, or ages that are
            all the same to the basis.
    """
    folds, by_people = folds_of(pictures, chosen, seed)
    fitters = [ErasureFitter(source.network.size, basis=basis) for _ in range(NUM_FOLDS)]
    ages = np.full(len(pictures.faces), np.nan, np.float32)
    if pictures.ages is not None:
        ages[chosen] = pictures.ages[chosen]

    def add(piece: Piece | None) -> None:
        if piece is None:
            return
        if piece.ages is not None:
            ages[piece.rows] = piece.ages
        _check_finite(piece, pictures, source)
        for fold, fitter in enumerate(fitters):
            own = folds[piece.rows] == fold
            fitter.add(piece.features[own].reshape(-1, source.network.size), np.repeat(ages[piece.rows[own]], 2))

    for piece in feature_pieces(source, pictures.faces, chosen, pictures.ages is None, extraction, process):
        in_step(lambda piece=piece: add(piece), process)

    def solve() -> tuple[Erasure, dict[str, Any]]:
        erasure = merged(fitters, basis).solve()
        return erasure, {
            "num_pictures": len(chosen),
            "num_people": len(np.unique(pictures.faces.identities[chosen])) if by_people else None,
            "years": dict(zip(("min", "median", "max"), np.quantile(ages[chosen], (0, 0.5, 1)).tolist(), strict=True)),
            "shrinkage": SHRINKAGE,
            "rank": erasure.rank,
            "variance_removed_percent": 100 * erasure.variance_removed,
            "age_r2_before": held_out_r2(fitters, basis, erased=False),
            "age_r2_after": held_out_r2(fitters, basis, erased=True),
            "num_folds": NUM_FOLDS,
            "folds_by": "people" if by_people else "pictures",
        }

    return in_step(lambda: solve() if process.is_first else None, process)


def folds_of(pictures: AgedPictures, chosen: np.ndarray, seed: int) -> tuple[np.ndarray, bool]:
    """The fold 0..4 of each picture (N,) int8, -1 where it is not chosen, and whether each person stands in one."""
    folds = np.full(len(pictures.faces), -1, np.int8)
    identities = pictures.faces.identities[chosen]
    by_people = pictures.has_people and len(np.unique(identities)) >= NUM_FOLDS
    order = np.random.default_rng(seed).permutation(len(chosen))
    folds[chosen] = person_folds(identities, seed) if by_people else order % NUM_FOLDS
    return folds, by_people


def _check_finite(piece: Piece, pictures: AgedPictures, source: Source) -> None:
    is_finite = np.isfinite(piece.features).all(axis=(1, 2))
    if not is_finite.all():
        name = pictures.faces.name(int(piece.rows[np.argmin(is_finite)]))
        raise UserError(
            f"the features of {name!r} hold NaN or infinity: {source.network.path} is damaged, give other weights."
        )


def merged(fitters: Sequence[ErasureFitter], basis: Basis) -> ErasureFitter:
    """A fitter that has seen what all of these have."""
    whole = ErasureFitter(fitters[0].size, basis=basis)
    for fitter in fitters:
        whole.merge(fitter)
    return whole


def held_out_r2(folds: Sequence[ErasureFitter], basis: Basis, erased: bool) -> float | None:
    """R2 of the age that ridge regression reads from the features of each fold, fitted to the others.

    With `erased` from the features after the erasure that is fitted to those others. Of the strengths RIDGE_ALPHA that
    counts which reads best, on features of deviation 1. None where the others are too alike to fit an erasure to.
    All of it is computed from the folds' sums.
    """
    from threadpoolctl import threadpool_limits

    size, errors = folds[0].size, np.zeros(len(RIDGE_ALPHA))
    with threadpool_limits(1):  # matrices this small are done before a second thread has begun
        for fold in folds:
            rest = merged([other for other in folds if other is not fold], basis)
            try:
                projection = rest.solve().projection if erased else np.eye(size)
            except UserError:
                return None
            errors += _squared_errors(rest, fold, projection)
    total = merged(folds, basis).moments.scatter[-1, -1]
    return float(1 - errors.min() / total)


def _squared_errors(fitted: ErasureFitter, tested: ErasureFitter, projection: np.ndarray) -> np.ndarray:
    """(A,) sums of squared errors of the age on `tested`, read from projected features by each of RIDGE_ALPHA."""
    size, count = fitted.size, tested.moments.count
    # Scatter of the projected features, of these with the age, and of the age.
    (features, with_age, _), (new_features, new_with_age, new_age) = (
        (projection @ one[:size, :size] @ projection.T, projection @ one[:size, -1], one[-1, -1])
        for one in (fitted.moments.scatter, tested.moments.scatter)
    )
    shift = tested.moments.mean - fitted.moments.mean
    variances = features.diagonal() / fitted.moments.count
    deviations = np.sqrt(np.maximum(variances, MIN_VARIANCE * variances.max()))
    scaled = features / np.outer(deviations, deviations)
    errors = []
    for alpha in RIDGE_ALPHA:
        slopes = np.linalg.solve(scaled + alpha * np.eye(size), with_age / deviations) / deviations
        mean_error = shift[-1] - slopes @ (projection @ shift[:size])
        around_it = new_age - 2 * slopes @ new_with_age + slopes @ new_features @ slopes
        errors.append(around_it + count * mean_error**2)
    return np.array(errors)
