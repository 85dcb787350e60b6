"""evaluation/probes.py: a planted age is found, a removed one is gone, and chance is chance."""

import warnings

import numpy as np
import pytest
import torch

from evaluation import probes
from meta import AGE_GROUP_UPPER_EDGES, UserError
from models.club import CLUB, SampledCLUB

NUM_PEOPLE, NUM_IMAGES, SIZE = 40, 480, 24


def people(seed=0):
    """Identities, ages that go with the person, and embeddings that know nothing of the ages."""
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(NUM_PEOPLE), NUM_IMAGES // NUM_PEOPLE)
    ages = np.clip(rng.normal(35, 15, NUM_PEOPLE)[identities] + rng.normal(0, 14, NUM_IMAGES), 0, 90).astype(int)
    rows = rng.normal(size=(NUM_PEOPLE, SIZE))[identities] + rng.normal(size=(NUM_IMAGES, SIZE))
    return rows, ages, identities


def planted(rows, ages, strength=3.0):
    direction = np.random.default_rng(9).normal(size=rows.shape[1])
    return rows + strength * ((ages - 35) / 20)[:, None] * direction / np.linalg.norm(direction)


def without_linear_age(rows, ages):
    """The rows, at length 1, less what a straight line in the age and the group's means say of each number."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    groups = np.searchsorted(AGE_GROUP_UPPER_EDGES, ages)
    known = np.column_stack([ages, np.eye(8)[groups]])
    return units - known @ np.linalg.lstsq(known, units, rcond=None)[0]


def plain_ridge(features, targets, alpha):
    """Weights and offset that make the squared error plus alpha times the squared weights least."""
    mean = features.mean(axis=0)
    centred = features - mean
    weights = np.linalg.solve(
        centred.T @ centred + alpha * np.eye(len(mean)), centred.T @ (targets - targets.mean())
    )  # fmt: skip
    return weights, targets.mean() - mean @ weights


def plain_softmax_regression(features, groups, c):
    """Weights found by plain gradient descent on the loss written out; classes in the order of their numbers."""
    classes = np.unique(groups)
    x = torch.tensor(np.column_stack([features, np.ones(len(features))]))
    y = torch.tensor(np.searchsorted(classes, groups))
    weights = torch.zeros(x.shape[1], len(classes), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights, y, reduction="sum") + (weights[:-1] ** 2).sum() / (2 * c)
        value.backward()
        return value

    optimiser.step(loss)
    return classes, weights.detach().numpy()


def plain_age_probe(rows, ages, folds):
    """The probe's own figures, everything written out."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    groups = np.array([sum(age > edge for edge in AGE_GROUP_UPPER_EDGES) for age in ages])
    read_years, read_groups = np.empty(len(ages)), np.empty(len(ages), int)

    def scaled(fitted, others):
        mean, deviation = units[fitted].mean(axis=0), units[fitted].std(axis=0)
        return (units[fitted] - mean) / deviation, (units[others] - mean) / deviation

    num_folds = max(folds) + 1
    for fold in range(num_folds):
        test = folds == fold
        chosen_on = folds == (fold + 1) % num_folds
        x, held_out = scaled(~test & ~chosen_on, chosen_on)
        years, known = ages[~test & ~chosen_on], groups[~test & ~chosen_on]
        errors = []
        for alpha in probes.RIDGE_ALPHA:
            weights, offset = plain_ridge(x, years, alpha)
            errors.append(np.mean((held_out @ weights + offset - ages[chosen_on]) ** 2))
        losses = []
        for c in probes.LOGISTIC_C:
            classes, weights = plain_softmax_regression(x, known, c)
            logits = held_out @ weights[:-1] + weights[-1]
            log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            losses.append(-np.mean([row[list(classes).index(group)]
                                    for row, group in zip(log_probabilities, groups[chosen_on], strict=True)
                                    if group in classes]))  # fmt: skip
        x, others = scaled(~test, test)
        weights, offset = plain_ridge(x, ages[~test], probes.RIDGE_ALPHA[int(np.argmin(errors))])
        read_years[test] = others @ weights + offset
        classes, weights = plain_softmax_regression(x, groups[~test], probes.LOGISTIC_C[int(np.argmin(losses))])
        read_groups[test] = classes[np.argmax(others @ weights[:-1] + weights[-1], axis=1)]
    hits = read_groups == groups
    return {
        "age_group_accuracy_percent": 100 * np.mean(hits),
        "age_group_balanced_accuracy_percent": 100 * np.mean([np.mean(hits[groups == g]) for g in set(groups)]),
        "age_group_mae": np.mean(abs(read_groups - groups)),
        "age_mae_years": np.mean(abs(read_years - ages)),
        "age_r2": 1 - np.sum((read_years - ages) ** 2) / np.sum((ages - ages.mean()) ** 2),
    }


def plain_kernel_probe(rows, ages, folds):
    """R2 and mean absolute error of the years, and the age groups read, by sums over a Gaussian kernel."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    groups = np.array([sum(age > edge for edge in AGE_GROUP_UPPER_EDGES) for age in ages])
    read_years, read_groups, num_folds = np.empty(len(ages)), np.empty(len(ages), int), max(folds) + 1

    def read(fitted, others, width, alpha, targets):
        x = (units - units[fitted].mean(axis=0)) / units[fitted].std(axis=0)
        distances = [[np.sum((a - b) ** 2) for b in x[fitted]] for a in x]
        own = [distances[i][k] for k, i in enumerate(np.flatnonzero(fitted)) for k in range(k)]
        kernel = np.exp(-width * np.array(distances) / np.median(own))
        mean = targets[fitted].mean(axis=0)
        weights = np.linalg.solve(kernel[fitted] + alpha * np.eye(sum(fitted)), targets[fitted] - mean)
        return kernel[others] @ weights + mean

    for fold in range(num_folds):
        test, chosen_on = folds == fold, folds == (fold + 1) % num_folds
        errors = {
            (width, alpha): np.mean((read(~test & ~chosen_on, chosen_on, width, alpha, ages) - ages[chosen_on]) ** 2)
            for width in probes.KERNEL_WIDTH
            for alpha in probes.KERNEL_ALPHA
        }
        best = min(errors, key=errors.get)
        read_years[test] = read(~test, test, *best, ages)
        read_groups[test] = read(~test, test, *best, np.eye(8)[groups]).argmax(axis=1)
    spread = np.sum((ages - ages.mean()) ** 2)
    return {
        "nonlinear_age_r2": 1 - np.sum((read_years - ages) ** 2) / spread,
        "nonlinear_age_mae_years": np.mean(abs(read_years - ages)),
        "nonlinear_age_group_accuracy_percent": 100 * np.mean(read_groups == groups),
        "nonlinear_age_group_mae": np.mean(abs(read_groups - groups)),
    }


# -------------------------------------------------------------------------------------------------------- age probes


def test_the_linear_probes_are_the_plain_version(monkeypatch):
    monkeypatch.setattr(probes, "LOGISTIC_C", (1e-3, 1e-1))  # the plain one is slow
    rows, ages, identities = (array[:72] for array in people())
    rows = planted(rows, ages)[:, :5]
    result = probes.age_probe(rows, ages, identities, seed=3, linear_only=True)
    expected = plain_age_probe(rows, ages, probes.person_folds(identities, seed=3))
    for key, value in expected.items():
        # The solver stops a little before the optimum: a picture or two may be classified differently.
        slack = {"age_r2": 1e-9, "age_mae_years": 1e-6}.get(key, 1.7)
        assert result[key] == pytest.approx(value, abs=slack)


def test_the_kernel_probe_is_the_plain_version(monkeypatch):
    monkeypatch.setattr(probes, "KERNEL_WIDTH", (0.5, 2.0))  # the plain one is slow
    monkeypatch.setattr(probes, "KERNEL_ALPHA", (1.0, 1e-2))
    rows, ages, identities = (array[:72] for array in people())
    rows = planted(rows, ages)[:, :5]
    result = probes.age_probe(rows, ages, identities, seed=3)
    for key, value in plain_kernel_probe(rows, ages, probes.person_folds(identities, seed=3)).items():
        assert result[key] == pytest.approx(value, rel=1e-8), key


def test_an_age_that_no_line_holds_is_found_by_the_kernel_probe_alone():
    """The age is the distance from the middle of life, to either side at random."""
    rows, ages, identities = (array[:300] for array in people(4))
    side = np.random.default_rng(1).choice([-1, 1], len(ages))
    folded = planted(0.5 * rows, np.where(side > 0, ages, 0))
    folded -= planted(0 * rows, np.where(side > 0, 0, ages))
    figures = probes.age_probe(folded, ages, identities)
    assert figures["age_r2"] < 0.1 < 0.3 < figures["nonlinear_age_r2"]
    assert figures["nonlinear_permuted_age_r2"] < 0.05
    alone = probes.age_probe(folded, ages, identities, linear_only=True)
    assert alone == {key: value for key, value in figures.items() if not key.startswith("nonlinear")}


def test_the_kernel_is_of_no_more_pictures_than_it_should_be_drawn_by_the_seed(monkeypatch):
    rows, ages, identities = (array[:144] for array in people(6))
    whole = probes.age_probe(planted(rows, ages), ages, identities)
    monkeypatch.setattr(probes, "MAX_FITTED", 40)
    parts = [probes.age_probe(planted(rows, ages), ages, identities, seed) for seed in (0, 0)]
    assert parts[0] == parts[1] and 0.1 < parts[0]["nonlinear_age_r2"] < whole["nonlinear_age_r2"]


# Number of images, features and people, strength of the planted age, ages to draw from; then what the version before
# scikit-learn gave, by L-BFGS at its optimum: accuracy, balanced accuracy, errors in groups and years, R2.
PROBES = {
    "fewer features than images": ((400, 32, 30, 3.0, 80), (43.0, 37.1994, 0.885, 7.0602, 0.86)),
    "as many": ((260, 150, 25, 3.0, 80), (35.3846, 27.3097, 1.2577, 8.1683, 0.8142)),
    "more": ((300, 700, 25, 4.0, 80), (30.0, 26.3828, 1.1067, 6.2045, 0.8711)),
    "no age in them": ((300, 200, 25, 0.0, 80), (21.3333, 12.6482, 2.9367, 20.4486, -0.0034)),
    "two groups": ((240, 40, 20, 1.5, (5, 30)), (76.25, 76.047, 0.7125, 9.1874, 0.2989)),
}


@pytest.mark.parametrize("case", PROBES)
def test_figures_are_those_of_the_version_before_scikit_learn(case):
    """7: percentages within 0.5 points and R2 within 0.01 of the hand-made solver's."""
    (num_images, size, num_people, strength, ages), (accuracy, balanced, group_error, year_error, r2) = PROBES[case]
    rng = np.random.default_rng((num_images, size))
    identities, ages = rng.integers(0, num_people, num_images), rng.choice(ages, num_images)
    rows = rng.normal(size=(num_people, size))[identities] + rng.normal(size=(num_images, size))
    result = probes.age_probe(planted(rows, ages, strength), ages, identities, linear_only=True)
    assert result["age_group_accuracy_percent"] == pytest.approx(accuracy, abs=0.5)
    assert result["age_group_balanced_accuracy_percent"] == pytest.approx(balanced, abs=0.5)
    assert result["age_group_mae"] == pytest.approx(group_error, abs=0.01)
    assert result["age_mae_years"] == pytest.approx(year_error, abs=1e-3)
    assert result["age_r2"] == pytest.approx(r2, abs=1e-4)


def test_the_figures_are_those_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score

    rng = np.random.default_rng(0)
    groups, read = rng.integers(1, 7, 90), rng.integers(0, 8, 90)
    years, read_years = rng.normal(30, 10, (2, 90))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups that were read and are not there
        balanced = balanced_accuracy_score(groups, read)
    assert probes._figures("x_", groups, years, read, read_years) == pytest.approx({
        "x_age_group_accuracy_percent": 100 * np.mean(groups == read),
        "x_age_group_balanced_accuracy_percent": 100 * balanced,
        "x_age_group_mae": mean_absolute_error(groups, read),
        "x_age_mae_years": mean_absolute_error(years, read_years),
        "x_age_r2": r2_score(years, read_years),
    })  # fmt: skip


def test_a_planted_age_is_found_and_a_removed_one_is_gone():
    rows, ages, identities = people()
    clean = probes.age_probe(rows, ages, identities, linear_only=True)
    planted_figures = probes.age_probe(planted(rows, ages), ages, identities, linear_only=True)
    removed = probes.age_probe(without_linear_age(planted(rows, ages), ages), ages, identities, linear_only=True)
    assert planted_figures["age_r2"] > 0.6 and planted_figures["permuted_age_r2"] < 0.03
    assert planted_figures["age_mae_years"] < 0.65 * planted_figures["chance_age_mae_years"]
    permuted = planted_figures["permuted_age_mae_years"]
    assert permuted == pytest.approx(planted_figures["chance_age_mae_years"], rel=0.04)
    assert planted_figures["permuted_age_group_accuracy_percent"] == pytest.approx(
        planted_figures["chance_age_group_accuracy_percent"], abs=6
    )
    assert planted_figures["age_group_accuracy_percent"] > planted_figures["chance_age_group_accuracy_percent"] + 8
    assert planted_figures["age_group_mae"] < planted_figures["chance_age_group_mae"] - 0.4
    for nothing_there in (clean, removed):
        assert nothing_there["age_r2"] < 0.05
        assert nothing_there["age_mae_years"] > 0.95 * nothing_there["chance_age_mae_years"]
        chance = nothing_there["chance_age_group_accuracy_percent"]
        assert nothing_there["age_group_accuracy_percent"] == pytest.approx(chance, abs=5)


def test_a_person_known_by_heart_gives_no_age_away():
    # Every person has one age and embeddings of no other use: folds that split a person would read it perfectly.
    rng = np.random.default_rng(5)
    identities = np.repeat(np.arange(60), 8)
    ages = rng.integers(5, 80, 60)[identities]
    rows = rng.normal(size=(60, 40))[identities] + 0.01 * rng.normal(size=(480, 40))
    assert probes.age_probe(rows, ages, identities)["age_r2"] < 0.15


def test_lengths_do_not_matter_and_a_seed_repeats():
    rows, ages, identities = (array[:120] for array in people(2))
    first = probes.age_probe(rows, ages, identities, seed=1)
    assert probes.age_probe(torch.tensor(rows), torch.tensor(ages), identities, seed=1) == first
    scaled = probes.age_probe(rows * np.linspace(0.5, 9, len(rows))[:, None], ages, [f"p{i:02}" for i in identities], 1)
    assert scaled == pytest.approx(first, abs=0.9)
    assert probes.age_probe(rows, ages, identities, seed=2) != first


def test_unknown_ages_and_empty_embeddings_are_left_out_and_counted():
    rows, ages, identities = (array[:180] for array in people(3))
    more = np.concatenate([rows, rows[:7], np.zeros((2, SIZE))])
    result = probes.age_probe(more, np.concatenate([ages, [-1] * 7, [30, 40]]), np.concatenate([identities, [99] * 9]))
    assert (result["num_images"], result["num_people"]) == (180, 15)
    assert (result["num_without_age"], result["num_of_length_zero"], result["num_folds"]) == (7, 2, 5)
    for key, value in probes.age_probe(rows, ages, identities).items():
        assert result[key] == value or key in ("num_without_age", "num_of_length_zero")


def test_features_that_never_change_and_groups_that_a_fold_lacks_do_no_harm():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=(12, 3)), np.zeros(12)])
    ages = np.array([5] * 8 + [30, 30, 70, 70])  # two people, each alone in their group
    result = probes.age_probe(rows, ages, np.repeat([0, 1, 2], 4))
    assert result["num_folds"] == 3 and all(np.isfinite(value) for value in result.values())


@pytest.mark.parametrize("seed", range(2))
def test_no_person_is_in_two_folds_and_folds_are_about_equal(seed):
    identities = np.random.default_rng(seed).geometric(0.05, 400)
    folds = probes.person_folds(identities, seed)
    assert all(len(set(folds[identities == person])) == 1 for person in set(identities))
    sizes = np.bincount(folds)
    assert len(sizes) == 5 and sizes.max() - sizes.min() <= np.bincount(identities).max()
    assert np.array_equal(folds, probes.person_folds(identities, seed))
    assert not np.array_equal(folds, probes.person_folds(identities, seed + 1))
    assert sorted(set(probes.person_folds(["a", "b", "a", "c"]))) == [0, 1, 2]


def test_identity_in_an_age_embedding_is_found_where_it_is_and_else_chance():
    rows, ages, identities = people()
    only_age = planted(np.random.default_rng(7).normal(size=rows.shape), ages)
    found, clean = (probes.identity_in_age_embedding(e, identities) for e in (3 * rows + only_age, only_age))
    assert found["rank1_percent"] > 60
    assert clean["rank1_percent"] < 3 * clean["chance_rank1_percent"]
    assert clean["chance_rank1_percent"] == pytest.approx(100 * 11 / 479)
    more = np.concatenate([rows, np.zeros((2, SIZE)), rows[:1] + 1])
    lone = probes.identity_in_age_embedding(more, [*identities, 0, 0, 99])
    assert (lone["num_probes"], lone["num_probes_without_mate"], lone["num_of_length_zero"]) == (NUM_IMAGES, 1, 2)


def club_of(estimator):
    estimator = estimator.eval()

    @torch.no_grad()
    def mutual_information(age, identity, permutation):
        return float(estimator.mutual_information(*map(torch.from_numpy, (age, identity, permutation))))

    return mutual_information


def test_club_is_the_sum_written_out_whatever_the_batches_and_it_repeats():
    torch.manual_seed(0)
    club = SampledCLUB(6).double()
    rng = np.random.default_rng(0)
    age, identity = rng.normal(size=(2, 53, 6))
    partner = np.random.default_rng(4).permutation(53)
    with torch.no_grad():
        mu, logvar = (part(torch.from_numpy(age)).numpy() for part in (club.eval().p_mu, club.p_logvar))
    expected = np.mean([
        np.sum(((mu[n] - identity[partner[n]]) ** 2 - (mu[n] - identity[n]) ** 2) / np.exp(logvar[n])) / 2
        for n in range(53)
    ])  # fmt: skip
    results = [probes.club_estimate(club_of(club), age, identity, 4, size) for size in (1024, 53, 10, 1)]
    for result in results:
        assert result["club_nats"] == pytest.approx(expected, rel=1e-12) and result["num_images"] == 53
        assert result == pytest.approx(results[0], rel=1e-9)
    assert probes.club_estimate(club_of(club), age, identity, seed=5)["club_nats"] != results[0]["club_nats"]
    assert probes.club_estimate(club_of(club), torch.tensor(age), torch.tensor(identity), 4) == results[0]


def test_club_finds_what_is_shared_and_little_beside_other_people():
    rng = np.random.default_rng(0)
    age = rng.normal(size=(3000, 4)).astype(np.float32)
    identity = 0.8 * age + 0.6 * rng.normal(size=age.shape).astype(np.float32)

    def known(age, identity, permutation):  # the true q(e | a), in place of a trained network
        mu, variance = 0.8 * age, 0.36
        distances = (mu - identity[permutation]) ** 2 - (mu - identity) ** 2
        return distances.sum(axis=1).mean() / variance / 2

    result = probes.club_estimate(known, age, identity)
    assert result["club_nats"] == pytest.approx(4 * 0.64 / 0.36, rel=0.1)  # 4 times rho^2 / (1 - rho^2)
    assert abs(result["shuffled_club_nats"]) < 0.1 * result["club_nats"]


ROWS, AGES, IDENTITIES = (
    np.random.default_rng(0).normal(size=(6, 3)), np.array([5, 20, 40, 6, 21, 41]), [0, 0, 1, 1, 2, 2],
)  # fmt: skip
ERRORS = {
    "two people": (probes.age_probe, (ROWS, AGES, [0, 0, 0, 1, 1, 1]), "2 people with an age"),
    "no ages": (probes.age_probe, (ROWS, AGES * 0 - 1, IDENTITIES), "0 people with an age"),
    "one group": (probes.age_probe, (ROWS, AGES * 0 + 30, IDENTITIES), "all of the group 26-35 years"),
    "age 130": (probes.age_probe, (ROWS, AGES + 90, IDENTITIES), "ages has 130 in row 2, outside 0 to 120"),
    "age -2": (probes.age_probe, (ROWS, -AGES, IDENTITIES), "ages has -5 in row 0"),
    "broken years": (probes.age_probe, (ROWS, AGES + 0.5, IDENTITIES), "whole years"),
    "too few ages": (probes.age_probe, (ROWS, AGES[:4], IDENTITIES), "each of the 6 images"),
    "too few identities": (probes.age_probe, (ROWS, AGES, [0, 1, 2]), "3 entries for 6 images"),
    "nobody has a mate": (probes.identity_in_age_embedding, (ROWS, list("abcdef")), "no two images"),
    "empty age embeddings": (probes.identity_in_age_embedding, (ROWS * 0, IDENTITIES), "rows of length 0 only"),
    "rows that do not belong together": (probes.club_estimate, (lambda *_: 0, ROWS, ROWS[:4]), "6 rows and .* 4"),
    "one picture": (probes.club_estimate, (lambda *_: 0, ROWS[:1], ROWS[:1]), "two pictures or more"),
    "an unsampled estimator": (probes.club_estimate, (club_of(CLUB(3).double()), ROWS, ROWS), "the sampled estimator"),
    "no estimate": (probes.club_estimate, (lambda *_: np.nan, ROWS, ROWS), "not finite"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_users_mistake_is_one_sentence(case):
    function, arguments, words = ERRORS[case]
    with pytest.raises(UserError, match=words) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
