"""Probes: how much of the age an identity embedding reveals, and how much of the identity an age embedding.

Most probes are linear, and what an erasure in closed form takes away is what linear readers find. Beside them stands
one that is not linear, kernel ridge regression with a Gaussian kernel; its figures are called `nonlinear_*`. What a
network could read, both may miss.

Embeddings are L2-normalised, as they are compared; every feature is then standardised by the training folds. No person
stands in two folds. How strongly a probe is regularised, and how wide its kernel is, is chosen on one of the training
folds, by the log loss or the squared error, before it is fitted to all of them. Ages are whole years, -1 where unknown;
pictures without an age and embeddings of length 0 are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from evaluation.arrays import (
    as_numpy,
    embedding_rows,
    identity_labels,
    units_of,
)
from evaluation.identification import leave_one_out_cmc, leave_one_out_cmc_chance
from meta import AGE_GROUP_NAMES, AGE_GROUP_UPPER_EDGES, MAX_AGE, MIN_AGE, NUM_AGE_GROUPS, UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

    from evaluation.arrays import Array, Embeddings

MEANING = (
    "A lower figure means that these estimators read less age from the embedding on these pictures (an erasure in "
    "closed form removes what the linear ones find, and the non-linear one says what is left); it does not mean that "
    "the age is gone, since a stronger reader or more pictures may still find it, nor that people are distinguished "
    "any better."
)
NUM_FOLDS = 5
UNKNOWN = -1  # an age
LOGISTIC_C = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths, strongest regularisation first
RIDGE_ALPHA = (1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0)  # strengths, strongest first
KERNEL_WIDTH = (0.1, 0.5, 2.0)  # exp(-w d / m): d the squared distance of two pictures, m the median of the fitted ones
KERNEL_ALPHA = (10.0, 1.0, 1e-1, 1e-2, 1e-3)  # strengths, strongest regularisation first
MAX_FITTED = 2_000  # pictures the kernel is of: its time grows with their cube
CLUB_BATCH = 1024

MutualInformation = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


# --------------------------------------------------------------------------------------------------------- age probes


def age_probe(
    embeddings: Embeddings, ages: Array, identities: Array, seed: int = 0, *, linear_only: bool = False
) -> dict[str, float | int]:
    """How well linear probes, and a non-linear one, read the age of people they have never seen.

    `embeddings` (N,D), `ages` (N,) whole years or -1, `identities` (N,) whole numbers or strings. Multinomial logistic
    regression predicts the age group: accuracy and balanced accuracy (mean over the groups of the share that is right)
    in percent, mean absolute error in groups. Ridge regression predicts the years: mean absolute error, R2 over all
    pictures. `nonlinear_*`, unless `linear_only`, are the same figures of a reader that is not, see `_read_by_kernel`.
    `chance_*` is predicted from the training folds without the embedding: their most frequent group and their mean age.
    `permuted_*` and `nonlinear_permuted_*` are the whole procedure with the ages randomly permuted. Five folds, three
    with three people.

    Raises: UserError for wrong shapes, values that are not finite floats, ages outside 0 to 120 other than -1, fewer
    than three people or a single age group among the pictures with an age.
    """
    units = units_of(embeddings, "embeddings").rows
    labels = identity_labels(identities, "identities", len(units))
    years = _ages(ages, len(units))
    has_age, has_length = years != UNKNOWN, units.any(axis=1)
    kept = has_age & has_length
    folds = person_folds(labels[kept], seed)
    units, years = units[kept], years[kept]
    groups = np.searchsorted(AGE_GROUP_UPPER_EDGES, years, side="left")  # upper edges are inclusive
    if len(np.unique(groups)) < 2:
        raise UserError(f"ages are all of the group {AGE_GROUP_NAMES[groups[0]]} years, there is nothing to classify: "
                        "pass pictures of several age groups.")  # fmt: skip
    order = np.random.default_rng((seed, 1)).permutation(len(years))
    both_years = np.stack([years, years[order]], axis=1).astype(np.float64)  # (N,2)
    both_groups = np.stack([groups, groups[order]], axis=1)
    read = {"": _read_by_probes(units, both_groups, both_years, folds)}
    if not linear_only:
        read["nonlinear_"] = _read_by_kernel(units, both_groups, both_years, folds, seed)
    figures = {}
    for reader, (read_groups, read_years) in read.items():
        figures |= _figures(reader, groups, years, read_groups[:, 0], read_years[:, 0])
        permuted = both_groups[:, 1], both_years[:, 1], read_groups[:, 1], read_years[:, 1]
        figures |= _figures(f"{reader}permuted_", *permuted)
    return {
        **figures,
        **_figures("chance_", groups, years, *_guesses(groups, years, folds)),
        "num_images": len(years),
        "num_people": len(np.unique(labels[kept])),
        "num_age_groups": len(np.unique(groups)),
        "num_folds": int(folds.max()) + 1,
        "num_without_age": int(np.count_nonzero(~has_age)),
        "num_of_length_zero": int(np.count_nonzero(has_age & ~has_length)),
    }


def person_folds(identities: Array, seed: int = 0, num_folds: int = NUM_FOLDS) -> np.ndarray:
    """The fold 0, 1, ... of each image, (N,) int64: no person in two, about as many images in each.

    People are drawn in an order of `seed`; each goes to the fold with the fewest images, those with most images first.

    Raises: UserError for fewer than three people: a fold to test, one to choose on, one to train on.
    """
    labels = as_numpy(identities, "identities")
    codes = np.unique(labels, return_inverse=True)[1]
    counts = np.bincount(codes) if len(codes) else np.empty(0, np.int64)
    if len(counts) < 3:
        raise UserError(f"identities names {len(counts)} people with an age and an embedding, the probes need three at "
                        "least: pass more people, or look where their ages are missing.")  # fmt: skip
    sizes = np.zeros(min(num_folds, len(counts)), dtype=np.int64)
    fold_of_person = np.empty(len(counts), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(counts))
    for person in order[np.argsort(-counts[order], kind="stable")]:
        fold_of_person[person] = np.argmin(sizes)
        sizes[fold_of_person[person]] += counts[person]
    return fold_of_person[codes]


def _read_by_probes(
    units: np.ndarray, groups: np.ndarray, years: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Age groups and ages predicted for each picture when its fold is left out: (N,T) and (N,T), as the targets are."""
    from sklearn.linear_model import Ridge  # scikit-learn takes a second to import, which only a probe shall cost
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    read_groups, read_years = np.empty_like(groups), np.empty_like(years)
    with threadpool_limits(1):  # products this thin are done before a second thread has begun
        for test, rest, chosen_on, fitted in _rounds(folds):
            scaler = StandardScaler().fit(units[fitted])
            rows, held_out = scaler.transform(units[fitted]), scaler.transform(units[chosen_on])
            candidates = (Ridge(alpha).fit(rows, years[fitted]).predict(held_out) for alpha in RIDGE_ALPHA)
            errors = [np.square(predicted - years[chosen_on]).mean(axis=0) for predicted in candidates]  # (A,T)
            alphas = np.array(RIDGE_ALPHA)[np.argmin(errors, axis=0)]  # (T,)
            cs = [_best_c(rows, known[fitted], held_out, known[chosen_on]) for known in groups.T]
            scaler = StandardScaler().fit(units[rest])
            rows, held_out = scaler.transform(units[rest]), scaler.transform(units[test])
            read_years[test] = Ridge(alphas).fit(rows, years[rest]).predict(held_out)
            for target, c in enumerate(cs):
                known = groups[rest, target]
                one_group = len(np.unique(known)) == 1  # which LogisticRegression refuses
                predicted = known[0] if one_group else _classifier(c).fit(rows, known).predict(held_out)
                read_groups[test, target] = predicted
    return read_groups, read_years


def _read_by_kernel(
    units: np.ndarray, groups: np.ndarray, years: np.ndarray, folds: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same by kernel ridge regression with a Gaussian kernel: of the years, and of each group's 0 and 1, of which
    the highest is the group read. It is fitted to 2,000 pictures at most, drawn by `seed`.

    On made-up faces after an erasure it read more than nearest neighbours, boosted trees and the same on 64 principal
    components (benchmarks/RESULTS.md).
    """
    from sklearn.kernel_ridge import KernelRidge
    from threadpoolctl import threadpool_limits

    read_groups, read_years = np.empty_like(groups), np.empty_like(years)
    draw = np.random.default_rng((seed, 2))
    with threadpool_limits(1):
        for test, rest, chosen_on, fitted in _rounds(folds):
            rows = _at_most(fitted, draw)
            kernels, mean = _kernels(units, rows, chosen_on), years[rows].mean(axis=0)
            errors = {}
            for width, (own, other) in kernels.items():
                for alpha in KERNEL_ALPHA:
                    probe = KernelRidge(alpha=alpha, kernel="precomputed").fit(own, years[rows] - mean)
                    errors[width, alpha] = np.square(probe.predict(other) + mean - years[chosen_on]).mean(
                        axis=0
                    )  # (T,)
            rows = _at_most(rest, draw)
            kernels = _kernels(units, rows, test)
            for target in range(years.shape[1]):
                width, alpha = min(errors, key=lambda chosen, target=target: errors[chosen][target])
                own, other = kernels[width]
                both = np.column_stack([years[:, target], np.eye(NUM_AGE_GROUPS)[groups[:, target]]])  # (N,9)
                mean = both[rows].mean(axis=0)
                probe = KernelRidge(alpha=alpha, kernel="precomputed").fit(own, both[rows] - mean)
                predicted = probe.predict(other) + mean
                read_years[test, target] = predicted[:, 0]
                read_groups[test, target] = predicted[:, 1:].argmax(axis=1)
    return read_groups, read_years


def _at_most(is_fitted: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Positions of the pictures to fit, (N,) bool -> (F,): all of them, or MAX_FITTED in an order of `draw`."""
    rows = np.flatnonzero(is_fitted)
    return rows if len(rows) <= MAX_FITTED else np.sort(draw.permutation(rows)[:MAX_FITTED])


def _kernels(units: np.ndarray, rows: np.ndarray, others: np.ndarray) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """By KERNEL_WIDTH the Gaussian kernel of the rows (F,F), and of the others with the rows (O,F)."""
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(units[rows])
    fitted = scaler.transform(units[rows])
    own = euclidean_distances(fitted, squared=True)
    other = euclidean_distances(scaler.transform(units[others]), fitted, squared=True)
    median = np.median(own[np.triu_indices(len(own), 1)]) or 1.0  # 0 where most pictures are equal
    return {width: (np.exp(-width / median * own), np.exp(-width / median * other)) for width in KERNEL_WIDTH}


def _best_c(rows: np.ndarray, groups: np.ndarray, held_out: np.ndarray, groups_held_out: np.ndarray) -> float:
    """The value of LOGISTIC_C with the least log loss, over the held-out pictures whose group was fitted."""
    from sklearn.metrics import log_loss

    classes = np.unique(groups)
    is_known = np.isin(groups_held_out, classes)
    if len(classes) == 1 or not is_known.any():
        return LOGISTIC_C[0]
    probe, losses = _classifier(), []
    for c in LOGISTIC_C:  # each fit begins where the one before ended
        probabilities = probe.set_params(C=c).fit(rows, groups).predict_proba(held_out[is_known])
        losses.append(log_loss(groups_held_out[is_known], probabilities, labels=classes))
    return LOGISTIC_C[int(np.argmin(losses))]


def _classifier(c: float = 1.0) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    # L-BFGS, the default, takes up to ten times as long where the features are correlated.
    return LogisticRegression(C=c, solver="newton-cg", tol=1e-3, warm_start=True)


def _guesses(groups: np.ndarray, years: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent group and the mean age of the other folds, for each picture: (N,) and (N,)."""
    guessed_groups, guessed_years = np.empty_like(groups), np.empty(len(years))
    for fold in range(folds.max() + 1):
        test = folds == fold
        guessed_groups[test] = np.argmax(np.bincount(groups[~test]))
        guessed_years[test] = years[~test].mean()
    return guessed_groups, guessed_years


def _rounds(folds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For each fold as the test: its pictures, all others, and these in two: one fold to choose on, the rest to fit."""
    num_folds = folds.max() + 1
    for fold in range(num_folds):
        test, chosen_on = folds == fold, folds == (fold + 1) % num_folds
        yield test, ~test, chosen_on, ~(test | chosen_on)


def _figures(
    prefix: str, groups: np.ndarray, years: np.ndarray, read_groups: np.ndarray, read_years: np.ndarray
) -> dict[str, float]:
    is_right = read_groups == groups
    share_right = [is_right[groups == group].mean() for group in np.unique(groups)]
    spread = np.square(years - years.mean()).sum()
    return {
        f"{prefix}age_group_accuracy_percent": float(100.0 * is_right.mean()),
        f"{prefix}age_group_balanced_accuracy_percent": float(100.0 * np.mean(share_right)),
        f"{prefix}age_group_mae": float(np.abs(read_groups - groups).mean()),
        f"{prefix}age_mae_years": float(np.abs(read_years - years).mean()),
        f"{prefix}age_r2": float(1 - np.square(read_years - years).sum() / spread),
    }


# ------------------------------------------------------------------------------------------- identity, and both at once


def identity_in_age_embedding(age_embeddings: Embeddings, identities: Array) -> dict[str, float | int]:
    """Rank 1 of leave-one-out identification by the age embedding, in percent, and what random scores would give.

    `age_embeddings` (N,D), `identities` (N,). Pictures of one photo session are of one age, so that figures somewhat
    above chance need not come from the identity.

    Raises: UserError for wrong shapes, values that are not finite floats, no two images of one identity.
    """
    units = units_of(age_embeddings, "age_embeddings")
    labels = identity_labels(identities, "identities", len(units))
    has_length = units.rows.any(axis=1)
    found = leave_one_out_cmc(units[has_length], labels[has_length], max_rank=1) if has_length.any() else None
    if found is None:
        raise UserError("age_embeddings holds rows of length 0 only: check the weights of the age branch.")
    chance = leave_one_out_cmc_chance(labels[has_length], max_rank=1)
    return {
        "rank1_percent": found["cmc_percent"][0],
        "chance_rank1_percent": chance["cmc_percent"][0],
        "num_probes": found["num_probes"],
        "num_probes_without_mate": found["num_probes_without_mate"],
        "num_of_length_zero": int(np.count_nonzero(~has_length)),
    }


def club_estimate(
    mutual_information: MutualInformation,
    age_features: Array,
    identity_features: Array,
    seed: int = 0,
    batch_size: int = CLUB_BATCH,
) -> dict[str, float | int]:
    """The sampled CLUB estimate of the mutual information in nats, on one permutation of all pictures drawn by `seed`.

    `mutual_information(age, identity, permutation)` takes NumPy arrays (B,D), (B,E), (B,) int64 and returns the mean
    over its rows; it has to be in evaluation mode. `age_features` (N,D) and `identity_features` (N,E) are before L2
    normalisation. The same seed gives the same figure, whatever the batch size. `shuffled_club_nats` is the estimate
    where each age stands beside another picture's identity: near 0, and how near says what to trust. CLUB is an upper
    bound only as far as its network predicts well; it may come out below 0.

    Raises: UserError for wrong shapes, values that are not finite floats, fewer than two pictures, an estimator that
    does not follow the permutation, an estimate that is not finite.
    Source: Cheng et al., ICML 2020, section 3.
    """
    age = embedding_rows(age_features, "age_features")
    identity = embedding_rows(identity_features, "identity_features")
    if len(age) != len(identity) or len(age) < 2:
        raise UserError(f"age_features has {len(age)} rows and identity_features {len(identity)}: pass the rows of the "
                        "same two pictures or more.")  # fmt: skip
    _check_follows_permutation(mutual_information, age[:batch_size], identity[:batch_size])
    rng = np.random.default_rng(seed)
    partner, other = rng.permutation(len(age)), rng.permutation(len(age))

    def mean_over_all(own: np.ndarray) -> float:
        total = 0.0
        for start in range(0, len(age), batch_size):
            rows = slice(start, min(start + batch_size, len(age)))
            count = rows.stop - start
            # A partner may lie in any batch, so partners come along as further rows. These are their own partners
            # and add 0 to the mean over all 2 B rows.
            both_ages = np.concatenate([age[rows], age[rows]])
            both_identities = np.concatenate([identity[own[rows]], identity[partner[rows]]])
            permutation = np.tile(np.arange(count, 2 * count), 2)
            total += 2 * count * float(mutual_information(both_ages, both_identities, permutation))
        return total / len(age)

    result = {"club_nats": mean_over_all(np.arange(len(age))), "shuffled_club_nats": mean_over_all(other)}
    if not np.isfinite(list(result.values())).all():
        raise UserError("the CLUB estimate is not finite: check the weights of the estimator.")
    return result | {"num_images": len(age)}


def _check_follows_permutation(mutual_information: MutualInformation, age: np.ndarray, identity: np.ndarray) -> None:
    """Where every picture is its own partner, a sampled estimate is 0."""
    estimate = float(mutual_information(age, identity, np.arange(len(age))))
    if not np.isfinite(estimate):
        raise UserError("the CLUB estimate is not finite: check the weights of the estimator.")
    if estimate != 0:
        raise UserError("mutual_information does not follow the permutation, so its figure would hang on the batches: "
                        "pass the sampled estimator.")  # fmt: skip


# --------------------------------------------------------------------------------------------------------- at the door


def _ages(value: Array, num_images: int) -> np.ndarray:
    """(N,) int64, years or -1; raises UserError."""
    years = as_numpy(value, "ages")
    if years.shape != (num_images,) or years.dtype.kind not in "iu":
        raise UserError(f"ages has shape {years.shape} and dtype {years.dtype}, it must hold whole years, or "
                        f"{UNKNOWN} where unknown, for each of the {num_images} images.")  # fmt: skip
    years = years.astype(np.int64)
    wrong = np.flatnonzero((years != UNKNOWN) & ((years < MIN_AGE) | (years > MAX_AGE)))
    if len(wrong):
        raise UserError(f"ages has {years[wrong[0]]} in row {wrong[0]}, outside {MIN_AGE} to {MAX_AGE} years: correct "
                        f"it, or give {UNKNOWN} for an unknown age.")  # fmt: skip
    return years
