"""Tables by age agree with slow plain versions, and find a model out that compares ages instead of people."""

import numpy as np
import pytest
import reference
from refusals import refused
from sklearn.metrics import roc_auc_score

from evaluation import arrays
from evaluation.age_gap import (
    by_age_gap,
    by_younger_age,
    pairs_by_age_gap,
    pairs_by_younger_age,
    rank1_by_mate_distance,
)

GAPS = {"0-1": (0, 1), "2-5": (2, 5), "6-10": (6, 10), "11-20": (11, 20), "21-30": (21, 30), "31+": (31, 120)}
YOUNGER = {"0-3": (0, 3), "4-10": (4, 10), "11-17": (11, 17), "18-30": (18, 30), "31-50": (31, 50), "51+": (51, 120)}


def life_pictures(seed, num_pictures=60, num_people=6, size=6, oldest=70, noise=1.0):
    """Embeddings around a person's centre, identities and ages from 0 to `oldest`."""
    rng = np.random.default_rng(seed)
    identities = rng.integers(num_people, size=num_pictures)
    ages = rng.integers(oldest + 1, size=num_pictures)
    embeddings = rng.normal(size=(num_people, size))[identities] + noise * rng.normal(size=(num_pictures, size))
    return embeddings, identities, ages


def age_only(ages, size=16):
    """Embeddings that hold nothing but the age: equal ages give equal embeddings, near ages near ones."""
    angles = np.asarray(ages)[:, None] / 120 * np.pi  # half a circle: the cosine falls with the gap
    return np.concatenate([np.cos(angles), np.sin(angles), np.zeros((len(ages), size - 2))], axis=1)


def plain_pairs(embeddings, identities, ages):
    """(score, genuine, gap, younger age) of all pairs with two known ages, by loops."""
    pairs = []
    for i in range(len(ages)):
        for j in range(i + 1, len(ages)):
            if ages[i] >= 0 and ages[j] >= 0:
                score = round(reference.cosine(embeddings[i], embeddings[j]), 12)
                gap, younger = abs(int(ages[i]) - int(ages[j])), min(ages[i], ages[j])
                pairs.append((score, identities[i] == identities[j], gap, younger))
    return pairs


def plain_row(pairs, low, high, column):
    """One row of a table by its definition."""
    genuine = [pair[0] for pair in pairs if pair[1] and low <= pair[column] <= high]
    random = [pair[0] for pair in pairs if not pair[1]]
    matched = [pair[0] for pair in pairs if not pair[1] and low <= pair[column] <= high]
    row = {
        "num_genuine": len(genuine),
        "num_random_impostor": len(random),
        "num_matched_impostor": len(matched),
        "mean_genuine_cosine": np.mean(genuine) if len(genuine) >= 10 else None,
    }
    for kind, impostors in (("random", random), ("matched", matched)):
        scores = genuine + impostors
        labels = [True] * len(genuine) + [False] * len(impostors)
        enough = min(len(genuine), len(impostors)) >= 10
        row[f"auc_{kind}_impostors_percent"] = reference.exact_auc(scores, labels) if enough else None
        for rate, one_in in (("1e-2", 100), ("1e-3", 1000)):
            row[f"tar_at_far_{rate}_{kind}_impostors_percent"] = (
                reference.exact_tar_at_far(scores, labels, one_in) if enough and len(impostors) >= one_in else None
            )
        row[f"mean_{kind}_impostor_cosine"] = np.mean(impostors) if len(impostors) >= 10 else None
    return row


def plain_same_years_auc(pairs, low, high, column):
    """Share won of all genuine pairs against the impostors of as many years: the mean over genuine pairs."""
    shares, num_impostors = [], set()
    for score, is_genuine, *years in pairs:
        year = years[column - 2]
        if is_genuine and low <= year <= high:
            impostors = [pair[0] for pair in pairs if not pair[1] and pair[column] == year]
            num_impostors.add((year, len(impostors)))
            if impostors:
                shares.append(sum((score > other) + (score == other) / 2 for other in impostors) / len(impostors))
    enough = len(shares) >= 10 and sum(count for _, count in num_impostors) >= 10
    return 100 * np.mean(shares) if enough else None


def assert_same_row(row, expected):
    for key, value in expected.items():
        same = value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-9, abs=1e-12)
        assert row[key] == same, key


@pytest.mark.parametrize(
    ("of_pictures", "of_pairs", "bins", "column"),
    [(by_age_gap, pairs_by_age_gap, GAPS, 2), (by_younger_age, pairs_by_younger_age, YOUNGER, 3)],
)
@pytest.mark.parametrize("seed", range(1))
def test_tables_are_the_plain_ones(seed, of_pictures, of_pairs, bins, column, monkeypatch):
    embeddings, identities, ages = life_pictures(seed)
    ages[::9] = -1
    pairs = plain_pairs(embeddings, identities, ages)
    expected = {
        name: plain_row(pairs, low, high, column)
        | {"auc_same_years_impostors_percent": plain_same_years_auc(pairs, low, high, column)}
        for name, (low, high) in bins.items()
    }
    for numbers_a_block in (2**22, 500):
        monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", numbers_a_block)
        table = of_pictures(embeddings, identities, ages)
        assert list(table["bins"]) == [*bins, "all"]
        assert (table["num_pictures"], table["num_pictures_without_age"]) == (60, 7)
        for name, row in expected.items():
            assert_same_row(table["bins"][name], row)
    scores, genuine, gaps, younger = (np.array(column) for column in zip(*pairs, strict=True))
    of_list = of_pairs(scores, genuine, younger, younger + gaps)
    assert (of_list["num_pairs"], of_list["num_pairs_without_age"]) == (len(pairs), 0)
    for name, row in (table["bins"]).items():
        assert_same_row(of_list["bins"][name], row)


def test_the_row_of_all_pools_random_impostors_and_averages_matched_ones():
    embeddings, identities, ages = life_pictures(4, num_pictures=100)
    table = by_age_gap(embeddings, identities, ages)["bins"]
    pairs = plain_pairs(embeddings, identities, ages)
    everything = table.pop("all")
    scores, genuine = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert everything["num_genuine"] == sum(genuine) == sum(row["num_genuine"] for row in table.values())
    assert everything["auc_random_impostors_percent"] == pytest.approx(100 * roc_auc_score(genuine, scores), rel=1e-12)
    assert everything["num_matched_impostor"] == everything["num_random_impostor"] == len(pairs) - sum(genuine)
    for key in ("auc_matched_impostors_percent", "tar_at_far_1e-2_matched_impostors_percent"):
        mean = sum(row["num_genuine"] * row[key] for row in table.values()) / sum(genuine)
        assert everything[key] == pytest.approx(mean, rel=1e-12)
    assert everything["auc_same_years_impostors_percent"] == pytest.approx(plain_same_years_auc(pairs, 0, 120, 2))
    with_tar = [row for row in table.values() if row["tar_at_far_1e-3_matched_impostors_percent"] is not None]
    covered = sum(row["num_genuine"] for row in with_tar)
    assert everything["reason"] == (
        f"TAR at FAR 1e-3 against matched impostors covers {covered:,} of {sum(genuine):,} genuine pairs"
    )


@pytest.mark.parametrize("seed", range(2))
def test_rank1_with_distant_mates_is_the_plain_version(seed, monkeypatch):
    embeddings, identities, ages = life_pictures(seed, num_pictures=40)
    ages[::11] = -1
    if seed % 2:
        embeddings = np.round(embeddings) + 0.25  # ties
    expected = {}
    for years in (0, 5, 30):
        hits, chances = [], []
        for p, probe in enumerate(embeddings):
            mates = [j for j in range(40) if j != p and identities[j] == identities[p]]
            distant = [j for j in mates if ages[p] >= 0 <= ages[j] and abs(ages[p] - ages[j]) >= years]
            others = [j for j in range(40) if identities[j] != identities[p]]
            gallery = sorted(distant + others)
            if distant:
                best = reference.nearest(probe, [(j, embeddings[j]) for j in gallery])
                hits.append(identities[best] == identities[p])
                chances.append(len(distant) / len(gallery))
        enough = len(hits) >= 10
        expected[f"{years}+"] = [len(hits), *(100 * np.mean(part) if enough else None for part in (hits, chances))]
    for numbers_a_block in (2**22, 90):
        monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", numbers_a_block)
        result = rank1_by_mate_distance(embeddings, identities, ages, years=(0, 5, 30))
        assert list(result) == ["0+", "5+", "30+"]
        for name, (count, rank1, chance) in expected.items():
            row = result[name]
            assert (row["num_probes"], row["num_probes_left_out"]) == (count, 40 - count)
            assert row["rank1_percent"] == (rank1 if rank1 is None else pytest.approx(rank1))
            assert row["chance_rank1_percent"] == (chance if chance is None else pytest.approx(chance))


def test_a_model_that_compares_ages_is_found_out():
    _, identities, ages = life_pictures(7, num_pictures=500, num_people=50)
    # The pictures of a person are some years apart only, as in sets from the web.
    ages = np.random.default_rng(8).integers(70, size=50)[identities] + ages // 6
    table = by_age_gap(age_only(ages), identities, ages)["bins"]
    for name in ("0-1", "2-5"):
        assert table[name]["auc_random_impostors_percent"] > 85
        assert table[name]["auc_matched_impostors_percent"] == pytest.approx(50, abs=7)
        assert table[name]["tar_at_far_1e-2_matched_impostors_percent"] < 3
        assert table[name]["auc_same_years_impostors_percent"] == pytest.approx(50, abs=1e-9)
    assert table["all"]["auc_random_impostors_percent"] > 80
    assert table["all"]["auc_matched_impostors_percent"] == pytest.approx(50, abs=7)
    assert table["all"]["auc_same_years_impostors_percent"] == pytest.approx(50, abs=1e-9)
    assert by_younger_age(age_only(ages), identities, ages)["bins"]["all"]["auc_random_impostors_percent"] > 80
    _, identities, ages = life_pictures(9, num_pictures=400, num_people=40)  # it looks for the age, not for the mate
    assert all(row["rank1_percent"] < 5 for row in rank1_by_mate_distance(age_only(ages), identities, ages).values())


def test_a_bin_with_too_few_pairs_has_counts_and_a_reason_but_no_figure():
    embeddings, identities, ages = life_pictures(15, num_pictures=60, num_people=20)
    table = by_age_gap(embeddings, identities, ages)["bins"]
    row = table["0-1"]
    assert 0 < row["num_genuine"] < 10
    assert row["reason"] == f"{row['num_genuine']} genuine pairs, a figure needs 10"
    for key, value in row.items():
        if key.endswith("percent") or key == "mean_genuine_cosine":
            assert value is None, key


def test_too_few_matched_impostors_for_a_far_are_said():
    embeddings, identities, ages = life_pictures(16, num_pictures=60, num_people=3)
    row = by_age_gap(embeddings, identities, ages)["bins"]["2-5"]
    assert 100 <= row["num_matched_impostor"] < 1000 <= row["num_random_impostor"]
    assert row["tar_at_far_1e-3_matched_impostors_percent"] is None
    assert row["tar_at_far_1e-2_matched_impostors_percent"] is not None
    assert row["tar_at_far_1e-3_random_impostors_percent"] is not None
    assert row["reason"] == f"{row['num_matched_impostor']} matched impostor pairs, TAR needs 1,000 for FAR 1e-3"


@pytest.mark.parametrize("num_known", [0, 2])
def test_no_known_ages_give_empty_bins(num_known):
    embeddings, identities, ages = life_pictures(18)
    ages[num_known:] = -1
    for table in (by_age_gap(embeddings, identities, ages), by_younger_age(embeddings, identities, ages)):
        assert table["num_pictures_without_age"] == 60 - num_known
        for row in table["bins"].values():
            assert row["num_genuine"] + row["num_random_impostor"] <= 1
            assert row["auc_random_impostors_percent"] is None and row["reason"]
    for row in rank1_by_mate_distance(embeddings, identities, ages).values():
        assert row["rank1_percent"] is None and row["num_probes_left_out"] >= 58


def test_pairs_without_an_age_are_counted_and_left_out():
    rng = np.random.default_rng(19)
    scores, genuine = rng.normal(size=400), rng.random(400) < 0.5
    first, second = rng.integers(60, size=(2, 400))
    first[:30], second[20:50] = -1, -1
    table = pairs_by_age_gap(scores, genuine, first, second)
    assert table["num_pairs_without_age"] == 50
    assert table["bins"] == pairs_by_age_gap(scores[50:], genuine[50:], first[50:], second[50:])["bins"]
    nothing = pairs_by_younger_age(scores, genuine, np.full(400, -1), second)
    assert nothing["num_pairs_without_age"] == 400 and nothing["bins"]["all"]["reason"]


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda e, i, a: (e * (np.arange(60) != 7)[:, None], i, a), "no direction in 1 of 60 rows, the first is row 7"),
    (lambda e, i, a: (e, i, a[:-1]), r"ages has shape \(59,\)"),
    (lambda e, i, a: (e, i, a + 0.5), "dtype float64, it must hold 60 whole numbers"),
    (lambda e, i, a: (e, i, a + 100), "it must hold years from 0 to 120"),
    (lambda e, i, a: (e, i, a - 100), "ages holds -"),
])  # fmt: skip
def test_a_bad_set_is_refused_in_a_sentence(spoil, message):
    arrays = spoil(*life_pictures(22))
    for function in (by_age_gap, by_younger_age, rank1_by_mate_distance):
        refused(function, *arrays, match=message)
    refused(rank1_by_mate_distance, *life_pictures(22), years=(10, -5), match="years holds -5")


@pytest.mark.parametrize(("scores", "first", "message"), [
    ([0.1, np.nan, 0.2], [1, 2, 3], "not finite"), ([0.1, 0.2, 0.3], [1, 2], "first_ages has shape"),
    ([0.1, 0.2, 0.3], [1, 2, 121], "first_ages holds 121 at position 2"),
    ([0.1, 0.2, 0.3], [1, 2, -2], "first_ages holds -2 at position 2"),
])  # fmt: skip
def test_a_bad_list_is_refused_in_a_sentence(scores, first, message):
    for function in (pairs_by_age_gap, pairs_by_younger_age):
        refused(function, np.array(scores), np.array([1, 0, 1]), np.array(first), np.array([4, 5, 6]), match=message)
