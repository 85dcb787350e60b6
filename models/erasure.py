"""Age erased from features in closed form: afterwards no linear reader finds it on what the erasure was fitted to.

With features x (N, D), functions z of the age (N, K), Sigma = cov(x) + s (tr cov(x) / D) I, C = cov(x, z), and U the
left singular vectors of Sigma^-1/2 C: y = P (x - mean) with P = I - Sigma^1/2 U U^T Sigma^-1/2, so that cov(y, z) = 0.
Of all such changes it is the smallest in the mean square of x (for s = 0). Any root of Sigma gives the same P: here it
is the Cholesky factor.

Source: Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023, theorem 4.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from meta import AGE_GROUP_UPPER_EDGES, NUM_AGE_GROUPS, UserError

SHRINKAGE = 1e-3  # of the covariance towards a multiple of the identity, see Sigma
KNOTS = (0.0, 8.0, 16.0, 30.0, 50.0, 80.0)  # years; of the known-good numbers
# Denser where faces change fastest, which on real faces keeps children further apart (docs/PURIFY.md).
CHILDHOOD_KNOTS = (0.0, 2.0, 4.0, 7.0, 11.0, 16.0, 25.0, 40.0, 60.0, 90.0)
BLOCK = 4_096  # rows that become float64 at a time: 17 MB of 512 numbers
MIN_SINGULAR = 1e-6  # of the largest: directions of C below are rounding
MIN_SPREAD = 1e-12  # variance of a function of the age below which it is constant but for rounding

Basis = Callable[[np.ndarray], np.ndarray]  # ages (N,) in years -> (N, K) float64


def spline(knots: Sequence[float] = KNOTS) -> Basis:
    """Hat functions at `knots` in ascending years, the first left out: together all functions that are linear between
    two knots and constant outside. A first knot at 0 is added where it is missing."""
    places = np.array(knots if len(knots) and knots[0] == 0 else (0, *knots), np.float64)
    if len(places) < 2 or not (np.diff(places) > 0).all():
        raise UserError(f"knots {' '.join(f'{knot:g}' for knot in knots)} are not ascending years above 0: sort them.")
    return lambda ages: np.stack([np.interp(ages, places, hat) for hat in np.eye(len(places))[1:]], axis=1)


def age_groups() -> Basis:
    """One function for each age group but the first: 1 inside it, else 0."""
    return lambda ages: np.eye(NUM_AGE_GROUPS)[np.searchsorted(AGE_GROUP_UPPER_EDGES, ages, side="left"), 1:]


def linear() -> Basis:
    """The age itself."""
    return lambda ages: np.asarray(ages, np.float64)[:, None]


BASES: dict[str, Callable[..., Basis]] = {"spline": spline, "groups": age_groups, "linear": linear}


class Moments:
    """Count, mean (V,) and scatter (V, V), sum of (v - mean)(v - mean)^T, of vectors v; float64.

    Blocks are centred before they are multiplied, so that a large mean costs no digits.
    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation 1.5.
    """

    def __init__(self, size: int):
        self.count, self.mean, self.scatter = 0, np.zeros(size), np.zeros((size, size))

    def add(self, rows: np.ndarray) -> None:
        """Takes rows (B, V) float64, which are centred in place."""
        block = Moments(0)
        block.count, block.mean = len(rows), rows.mean(axis=0)
        rows -= block.mean
        block.scatter = rows.T @ rows
        self.merge(block)

    def merge(self, other: "Moments") -> "Moments":
        """Adds what another one has seen, in another process, say; returns itself."""
        total = self.count + other.count
        if other.count:
            shift = other.mean - self.mean
            self.scatter += other.scatter + np.outer(shift, shift) * (self.count * other.count / total)
            self.mean += shift * (other.count / total)
            self.count = total
        return self


@dataclass(frozen=True, eq=False)
class Erasure:
    """y = projection (x - mean): features without what the basis finds of the age."""

    mean: np.ndarray  # (D,) float64
    projection: np.ndarray  # (D, D) float64, of rank D - rank
    rank: int  # number of directions that are erased
    variance_removed: float  # share of the features' variance that goes with them

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, D) any float -> (N, D) float64."""
        return (np.asarray(features, np.float64) - self.mean) @ self.projection.T


class ErasureFitter:
    """Fits an Erasure to any number of pictures in memory of D x D numbers; `basis` is a name of BASES or a Basis.

    The order and the batches in which features come change the result by rounding alone.
    """

    def __init__(self, size: int, shrinkage: float = SHRINKAGE, basis: Basis | str = "spline"):
        self.size, self.shrinkage = size, shrinkage
        self.basis = BASES[basis]() if isinstance(basis, str) else basis
        # Of features, basis, and the age itself, for whoever asks how well it can be read.
        self.moments = Moments(size + self.basis(np.zeros(1)).shape[1] + 1)

    def add(self, features: np.ndarray, ages: np.ndarray) -> None:
        """Takes features (N, D), any float, of pictures whose ages are (N,) years.

        Raises:
            UserError: for other shapes, a feature or an age that is not finite, or a negative age; nothing of the
                block of BLOCK rows that holds it is taken.
        """
        features, ages = np.asarray(features), np.asarray(ages, np.float64)
        if features.shape != (len(ages), self.size):
            raise UserError(f"features {features.shape} do not fit {len(ages)} ages: give ({len(ages)}, {self.size}).")
        if not (ages >= 0).all():  # NaN too
            raise UserError("ages hold negative numbers or NaN: leave out pictures whose age is not known.")
        for start in range(0, len(ages), BLOCK):
            rows = np.empty((min(BLOCK, len(ages) - start), len(self.moments.mean)))
            years = ages[start : start + BLOCK]
            rows[:, : self.size] = features[start : start + BLOCK]
            rows[:, self.size : -1], rows[:, -1] = self.basis(years), years
            if not np.isfinite(rows.sum()):
                row = start + int(np.argmin(np.isfinite(rows).all(axis=1)))
                raise UserError(f"features hold NaN or infinity in row {row}: leave it out, or check the weights.")
            self.moments.add(rows)

    def merge(self, other: "ErasureFitter") -> "ErasureFitter":
        """Adds what another fitter of the same size and basis has seen; returns itself."""
        self.moments.merge(other.moments)
        return self

    def solve(self) -> Erasure:
        """The erasure of all that was added.

        Raises:
            UserError: all ages are the same to the basis, or all features are the same.
        """
        size, moments = self.size, self.moments
        covariance = moments.scatter / max(1, moments.count)
        if not covariance.diagonal()[size:-1].max() > MIN_SPREAD:
            raise UserError(f"the {moments.count:,} ages are all the same to the erasure: give pictures of people of "
                            f"several ages.")  # fmt: skip
        of_features, with_ages = covariance[:size, :size], covariance[:size, size:-1]
        variance = np.trace(of_features)
        try:
            root = np.linalg.cholesky(of_features + self.shrinkage * variance / size * np.eye(size))
        except np.linalg.LinAlgError:
            raise UserError("the features do not vary in every direction: give more pictures, or a larger shrinkage.") \
                from None  # fmt: skip
        directions, strengths, _ = np.linalg.svd(np.linalg.solve(root, with_ages), full_matrices=False)
        erased = directions[:, strengths > MIN_SINGULAR * strengths[0]]
        projection = np.eye(size) - (root @ erased) @ np.linalg.solve(root.T, erased).T
        kept = np.trace(projection @ of_features @ projection.T)
        return Erasure(moments.mean[:size].copy(), projection, erased.shape[1], float(1 - kept / variance))
