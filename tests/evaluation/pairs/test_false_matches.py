"""False matches by age agree with a slow plain version and with sums done by hand; a threshold never lets more pass."""

import json

import numpy as np
import pytest
import reference

from evaluation import arrays
from evaluation.pairs import false_matches
from evaluation.pairs.false_matches import BANDS, false_matches_by_age
from evaluation.verification import all_pairs_verification
from meta import AGE_GROUP_UPPER_EDGES, UserError

GAPS = {"0-1": (0, 1), "2-5": (2, 5), "6-10": (6, 10), "11-20": (11, 20), "21-30": (21, 30), "31+": (31, 120)}


def pictures(seed, num_pictures=150, num_people=30, size=5):
    """Embeddings around a person's centre that hold the age too, identities and ages, some of them unknown."""
    rng = np.random.default_rng(seed)
    identities, ages = rng.integers(num_people, size=num_pictures), rng.integers(0, 90, num_pictures)
    rows = rng.normal(size=(num_people, size))[identities] + rng.normal(size=(num_pictures, size))
    rows += np.maximum(0, 13 - ages)[:, None] / 3 * rng.normal(size=size)  # children look alike
    ages[::11] = -1
    return rows, ages, identities


def small_sets(monkeypatch, min_pairs=1):
    """Rates and counts that sets of some pictures can have."""
    monkeypatch.setattr(false_matches, "FALSE_MATCH_RATES", {"1e-1": 10, "1e-2": 100})
    monkeypatch.setattr(false_matches, "MIN_FALSE_MATCHES", 1)
    monkeypatch.setattr(false_matches, "MIN_PAIRS", min_pairs)


def share(pairs, kept):
    """Share of the impostor pairs of the wanted ages that pass; None where there is none."""
    chosen = [passes for low, high, passes in pairs if kept(low, high)]
    return sum(chosen) / len(chosen) if chosen else None


def group(age):
    return sum(age > edge for edge in AGE_GROUP_UPPER_EDGES)


@pytest.mark.parametrize("with_identities", [True, False])
def test_figures_are_those_of_the_plain_version_whatever_the_blocks(with_identities, monkeypatch):
    small_sets(monkeypatch)
    rows, ages, identities = pictures(0, num_pictures=90)
    people = identities if with_identities else np.arange(len(ages))
    results = []
    for numbers_a_block in (2**22, 1000):
        monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", numbers_a_block)
        results.append(false_matches_by_age(rows, ages, identities if with_identities else None)[0])
    assert results[0] == results[1]
    assert (results[0]["num_pictures"], results[0]["num_pictures_without_age"]) == (90, 9)
    for rate, one_in in false_matches.FALSE_MATCH_RATES.items():
        threshold, accepted, pairs = reference.false_matches(rows, ages, people, one_in)
        row = results[0]["at_fmr"][rate]
        assert row["threshold"] == pytest.approx(threshold, abs=1e-12)
        assert row["num_false_matches"] == sum(passes for *_, passes in pairs) <= row["impostors_allowed"]
        assert results[0]["num_impostor"] == len(pairs)
        if with_identities:
            assert row["tar_percent"] == pytest.approx(100 * len(accepted) / results[0]["num_genuine"])
        for band, (youngest, oldest) in BANDS.items():
            expected = share(pairs, lambda low, high, ends=(youngest, oldest): ends[0] <= low and high <= ends[1])
            assert row["bands"][band]["fmr"] == (expected if expected is None else pytest.approx(expected))
        for name, (least, most) in GAPS.items():
            expected = share(pairs, lambda low, high, ends=(least, most): ends[0] <= high - low <= ends[1])
            assert row["by_age_gap"][name]["fmr"] == pytest.approx(expected)
        of_groups = [(group(low), group(high), passes) for low, high, passes in pairs]
        for g in range(8):
            for h in range(8):
                cell = [passes for a, b, passes in of_groups if (a, b) in ((g, h), (h, g))]
                assert results[0]["num_impostor_by_groups"][g][h] == len(cell)
                assert row["num_false_matches_by_groups"][g][h] == sum(cell)
                expected = pytest.approx(np.log10(sum(cell) / len(cell))) if sum(cell) else None
                assert row["log10_fmr_by_groups"][g][h] == expected


def test_the_tar_is_that_of_verification_at_the_same_far():
    rows, ages, identities = pictures(1, num_pictures=170)
    ages[ages < 0] = 40
    figures = all_pairs_verification(rows, identities)["figures"]
    row = false_matches_by_age(rows, ages, identities)[0]["at_fmr"]["1e-3"]
    assert row["tar_percent"] == figures["tar_at_far_1e-3_percent"]
    assert row["impostors_allowed"] == figures["impostors_allowed_at_far_1e-3"] == 13
    assert row["threshold"] <= figures["threshold_at_far_1e-3"]


def on_a_circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_tiny_case_by_hand(monkeypatch):
    """Five children and an adult: of 15 pairs one may pass, that 1 degree apart; the one 2 degrees apart may not."""
    small_sets(monkeypatch)
    rows, ages = on_a_circle(0, 1, 3, 40, 80, 120), np.array([3, 4, 5, 10, 12, 30])
    result, most_alike = false_matches_by_age(rows, ages)
    row = result["at_fmr"]["1e-1"]
    assert row["threshold"] == pytest.approx(np.cos(np.deg2rad(1)), abs=1e-12) and row["fmr"] == 1 / 15
    assert result["num_impostor_by_groups"][0][:4] == [10, 0, 0, 5] and result["num_impostor_by_groups"][3][0] == 5
    assert row["log10_fmr_by_groups"][0][0] == pytest.approx(-1) and row["log10_fmr_by_groups"][0][3] is None
    assert row["bands"]["0-5"]["fmr"] == 1 / 3 and row["bands"]["0-12"]["fmr"] == 0.1
    assert row["bands"]["18+"] | {"reason": ""} == {
        "num_impostor": 0, "num_false_matches": 0, "fmr": None, "reason": "", "fmr_low": None, "fmr_high": None,
        "fmr_interval_reason": "there is no figure",
    }  # fmt: skip
    assert row["by_age_gap"]["0-1"]["fmr"] == 0.5 and row["by_age_gap"]["2-5"]["fmr"] == 0  # 2 pairs, 3 pairs
    assert row["child_to_adult_ratios"]["0-5"]["reason"] == "there are 0 impostor pairs, a rate needs 1"
    assert most_alike[0][1:] == (0, 1) and most_alike[1][1:] == (1, 2)  # as many as the loosest rate and one more
    assert (
        result["at_fmr"]["1e-2"]["threshold"] is None
        and "needs 100 impostor pairs" in result["at_fmr"]["1e-2"]["reason"]
    )


def test_equal_scores_at_the_threshold_all_stay_out(monkeypatch):
    """Of 21 pairs two may pass: one is most alike, three are equally alike after it."""
    small_sets(monkeypatch)
    ages = np.array([3, 4, 20, 20, 20, 20, 20])
    row = false_matches_by_age(on_a_circle(0, 1, 10, 12, 14, 16, 60), ages)[0]["at_fmr"]["1e-1"]
    assert (row["impostors_allowed"], row["num_false_matches"]) == (2, 1)
    assert row["threshold"] == pytest.approx(np.cos(np.deg2rad(1)), abs=1e-12)
    row = false_matches_by_age(on_a_circle(0, 2, 10, 12, 14, 16, 60), ages)[0]["at_fmr"]["1e-1"]
    assert row["threshold"] is row["fmr"] is row["bands"] is None
    assert row["reason"] == ("at FMR 1e-1 2 impostor pairs may pass, but so many have the same cosine of 0.9994 that 0 "
                             "would, and a threshold needs 1")  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_lets_more_pass_than_its_rate(seed, monkeypatch):
    small_sets(monkeypatch)
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, size=(60, 3)) + 0.0  # many cosines are equal
    rows[~rows.any(axis=1)] = 1
    for rate, row in false_matches_by_age(rows, rng.integers(0, 90, 60))[0]["at_fmr"].items():
        assert row["threshold"] is None or 0 < row["fmr"] <= float(rate)


def test_rates_and_cells_of_too_few_pairs_have_none_but_a_reason():
    rows, ages, identities = pictures(2, num_pictures=160, num_people=160)
    ages[ages > 65] = 60
    ages[1:3] = 80
    result = false_matches_by_age(rows, ages, identities)[0]
    assert result["at_fmr"]["1e-4"]["threshold"] is None
    assert "FMR 1e-4 needs 100,000 impostor pairs or more, there are" in result["at_fmr"]["1e-4"]["reason"]
    row = result["at_fmr"]["1e-3"]
    assert row["fmr"] <= 1e-3 and row["log10_fmr_by_groups"][7][7] is None
    assert result["num_impostor_by_groups"][7][7] == 1 and row["bands"]["0-12"]["fmr"] > row["bands"]["18+"]["fmr"]


def test_intervals_draw_people_and_a_pair_counts_by_both(monkeypatch):
    """One replicate as loops: a pair of two people counts as often as both were drawn."""
    small_sets(monkeypatch)
    monkeypatch.setattr(false_matches, "NUM_REPLICATES", 3)
    rows, ages, identities = pictures(3, num_pictures=60, num_people=12)
    ages[ages < 0] = 30
    codes = np.unique(identities, return_inverse=True)[1]
    draws = false_matches._Draws(codes, ages, seed=5)
    passing = [(a, b) for a in range(60) for b in range(a) if codes[a] != codes[b] and (a + b) % 3 == 0]
    drawn = draws.fmr_of_bands(*np.array(passing).T)
    for replicate, counts in enumerate(draws.counts()):
        for band, (low, high) in BANDS.items():
            weights = {
                (a, b): counts[codes[a]] * counts[codes[b]]
                for a in range(60)
                for b in range(a)
                if codes[a] != codes[b] and low <= min(ages[a], ages[b]) and max(ages[a], ages[b]) <= high
            }
            total = sum(weights.values())
            expected = sum(weights.get(pair, 0) for pair in passing) / total if total else np.nan
            assert drawn[band][replicate] == pytest.approx(expected, nan_ok=True)


def test_intervals_hold_the_figure_and_a_seed_repeats():
    rows, ages, identities = pictures(4, num_pictures=220, num_people=60)
    first, again, other = (false_matches_by_age(rows, ages, identities, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again and first != other and json.loads(json.dumps(first)) == first
    children = first["at_fmr"]["1e-3"]["bands"]["0-12"]
    assert children["fmr_low"] < children["fmr"] < children["fmr_high"]
    num_people = len(set(identities[ages >= 0]))
    assert (first["resampled"], first["num_people"], first["num_resampled"]) == ("identities", num_people, num_people)


ROWS, AGES = on_a_circle(0, 30, 60, 90), np.array([3, 4, 30, 60])
ERRORS = {
    "one age": ((ROWS, np.array([3, -1, -1, -1])), "1 known ages of 4 pictures"),
    "no age": ((ROWS, AGES * 0 - 1), "0 known ages of 4 pictures"),
    "one group": ((ROWS, AGES * 0 + 30), "all of the group 26-35 years"),
    "one person": ((ROWS, AGES, [5, 5, 5, 5]), "one person for all 4 pictures"),
    "too few ages": ((ROWS, AGES[:3]), "must hold 4 whole numbers of years"),
    "age 130": ((ROWS, AGES + 70), "ages holds 130 at position 3"),
    "broken years": ((ROWS, AGES + 0.5), "whole numbers of years"),
    "too few identities": ((ROWS, AGES, [1, 2]), "2 entries for 4 images"),
    "NaN": ((ROWS * np.nan, AGES), "NaN or infinity in 4 of 4"),
    "no direction": ((ROWS * 0, AGES), "no direction in 4 of 4"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_users_mistake_is_one_sentence(case):
    arguments, words = ERRORS[case]
    with pytest.raises(UserError, match=words) as raised:
        false_matches_by_age(*arguments)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
