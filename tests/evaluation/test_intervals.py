"""Bootstrap intervals: the weights are those of rebuilt lists, the figures the exact ones, the coverage near 95 %."""

import math

import numpy as np
import pytest
from refusals import refused
from scipy.stats import norm

from evaluation import intervals
from evaluation.intervals import paired_differences, verification_intervals
from evaluation.verification import verification

FIGURES = ("pooled_auc_percent", "pooled_eer_percent", "tar_at_far_1e-1_percent", "tar_at_far_1e-2_percent")


def people_pairs(rng, num_people=30, per_person=4, num_impostor=None, share=0.5, apart=1.5):
    """Scores with a part `share` of their variance from the people in them: scores, genuine, first, second identity.

    Impostor scores are N(0, 1), genuine ones N(apart, 1), whatever the share.
    """
    in_impostor = rng.normal(size=num_people) * math.sqrt(share / 2)
    in_genuine = rng.normal(size=num_people) * math.sqrt(share)
    own = np.repeat(np.arange(num_people), per_person)
    if num_impostor is None:
        first, second = np.triu_indices(num_people, 1)
    else:
        first = rng.integers(num_people, size=num_impostor)
        second = (first + 1 + rng.integers(num_people - 1, size=num_impostor)) % num_people
    noise = math.sqrt(1 - share)
    genuine_scores = apart + in_genuine[own] + noise * rng.normal(size=len(own))
    impostor_scores = in_impostor[first] + in_impostor[second] + noise * rng.normal(size=len(first))
    genuine = np.arange(len(own) + len(first)) < len(own)
    scores = np.concatenate([genuine_scores, impostor_scores])
    return scores, genuine, np.concatenate([own, first]), np.concatenate([own, second])


def true_figures(apart=1.5):
    """What `people_pairs` would give with endlessly many people, in percent."""
    return {
        "pooled_auc_percent": 100 * norm.cdf(apart / math.sqrt(2)),
        "pooled_eer_percent": 100 * norm.cdf(-apart / 2),
        "tar_at_far_1e-1_percent": 100 * norm.sf(norm.isf(0.1) - apart),
    }


def rebuilt(scores, genuine, first, second, counts):
    """The list of pairs among the people drawn, each copy of a person compared with all copies of others, by loops."""
    kept_scores, kept_genuine = [], []
    for score, is_genuine, one, other in zip(scores, genuine, first, second, strict=True):
        copies = counts[one] if is_genuine else counts[one] * counts[other]
        kept_scores += [score] * int(copies)
        kept_genuine += [is_genuine] * int(copies)
    return np.array(kept_scores), np.array(kept_genuine)


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_every_replicate_is_that_of_the_rebuilt_list_of_pairs(seed, with_ties):
    scores, genuine, first, second = people_pairs(np.random.default_rng(seed), num_people=15)
    scores = np.round(scores, 1) if with_ties else scores
    plan = intervals._draw_plan(genuine, scores, first, second, 100, seed)
    (figures,) = intervals._replicates([scores], genuine, plan)
    every_count = np.concatenate(list(plan.counts()))
    assert len(every_count) == 101 and np.all(every_count.sum(axis=1) == 15)
    for row in (0, 1, 2, 50, 100):
        expected = verification(*rebuilt(scores, genuine, first, second, every_count[row]))["figures"]
        for name in ("pooled_auc_percent", "pooled_eer_percent", "tar_at_far_1e-1_percent"):
            assert figures[name][row] == pytest.approx(expected[name], rel=1e-9), (name, row)


def test_every_replicate_over_pairs_is_that_of_the_drawn_pairs():
    scores, genuine, *_ = people_pairs(np.random.default_rng(5))
    scores = np.round(scores, 1)
    plan = intervals._draw_plan(genuine, scores, None, None, 100, 5)
    (figures,) = intervals._replicates([scores], genuine, plan)
    for row, counts in enumerate(np.concatenate(list(plan.counts()))):
        copies = counts[plan.first]
        assert copies[genuine].sum() == genuine.sum() and copies[~genuine].sum() == np.sum(~genuine)
        expected = verification(np.repeat(scores, copies), np.repeat(genuine, copies))["figures"]
        for name in FIGURES:
            assert figures[name][row] == pytest.approx(expected[name], rel=1e-9)


def test_the_figures_are_the_exact_ones_and_lie_in_their_intervals():
    scores, genuine, first, second = people_pairs(np.random.default_rng(6), num_people=80)
    for identities in ((), (first, second)):
        result = verification_intervals(scores, genuine, *identities)
        figures = verification(scores, genuine)["figures"]
        for name in FIGURES:
            assert result[name] == pytest.approx(figures[name], rel=1e-12)
            assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]
            assert result[f"{name}_interval_reason"] is None


def coverage(with_identities, num_sets, **how):
    """Percent of simulated sets whose interval holds the true figure, by figure."""
    hits = dict.fromkeys(true_figures(), 0)
    for seed in range(num_sets):
        pairs = people_pairs(np.random.default_rng(10_000 + seed), **how)
        result = verification_intervals(*pairs[: 4 if with_identities else 2], num_replicates=200, seed=seed)
        for name, truth in true_figures().items():
            hits[name] += result[f"{name}_low"] <= truth <= result[f"{name}_high"]
    return {name: 100 * count / num_sets for name, count in hits.items()}


@pytest.mark.parametrize(("with_identities", "num_sets", "how", "least", "most"), [
    (False, 100, {"num_people": 150, "per_person": 1, "num_impostor": 150, "share": 0.0}, 88, 99),
    (True, 100, {"num_people": 40}, 88, 99),
    (False, 50, {"num_people": 40}, 0, 79.9),  # too narrow where people differ
    (True, 50, {"num_people": 150, "per_person": 2, "num_impostor": 300, "share": 0.0}, 92, 100),  # rather too wide
])  # fmt: skip
def test_intervals_cover_over_pairs_where_they_are_independent_over_identities_where_people_differ(
    with_identities, num_sets, how, least, most
):
    covered = coverage(with_identities, num_sets, **how)
    assert least <= min(covered.values()) and covered["pooled_auc_percent"] <= most, covered
    assert least != 88 or max(covered.values()) <= 99, covered


def test_a_difference_is_that_of_the_figures_and_its_interval_that_of_the_replicates():
    rng = np.random.default_rng(7)
    a, genuine, first, second = people_pairs(rng, num_people=50)
    b = a + rng.normal(size=len(a))
    result = paired_differences(a, b, genuine, first, second, num_replicates=300, seed=9)
    of_a, of_b = (verification(scores, genuine)["figures"] for scores in (a, b))
    plan = intervals._draw_plan(genuine, a, first, second, 300, 9)
    alone = [intervals._replicates([scores], genuine, plan)[0] for scores in (a, b)]  # each on its own, the same draws
    assert (result["resampled"], result["num_resampled"], result["interval_percent"]) == ("identities", 50, 95)
    for name in FIGURES[:3]:
        stem = name.replace("_percent", "_difference_percentage_points")
        assert result[stem] == pytest.approx(of_a[name] - of_b[name], abs=1e-9)
        low, high = np.quantile((alone[0][name] - alone[1][name])[1:], [0.025, 0.975])
        assert (result[f"{stem}_low"], result[f"{stem}_high"]) == pytest.approx((low, high), abs=1e-9)


def test_a_difference_swaps_its_sign_with_the_models_and_is_narrower_than_theirs():
    rng = np.random.default_rng(8)
    a, genuine, first, second = people_pairs(rng, num_people=60)
    b = a + 0.3 * rng.normal(size=len(a))
    single = verification_intervals(a, genuine, first, second)
    one, other = paired_differences(a, b, genuine, first, second), paired_differences(b, a, genuine, first, second)
    stem = "pooled_auc_difference_percentage_points"
    width = single["pooled_auc_percent_high"] - single["pooled_auc_percent_low"]
    assert one[f"{stem}_high"] - one[f"{stem}_low"] < 0.6 * width
    assert one[f"{stem}_low"] > 0  # b is a and noise: worse
    assert one[stem] == -other[stem] and one[f"{stem}_low"] == pytest.approx(-other[f"{stem}_high"])


def test_equal_models_have_no_interval_of_their_difference_but_a_reason():
    scores, genuine, first, second = people_pairs(np.random.default_rng(10))
    result = paired_differences(scores, 2 * scores, genuine, first, second)
    stem = "pooled_auc_difference_percentage_points"
    assert result[stem] == 0 and result[f"{stem}_low"] is None
    assert "every resample gives the same difference" in result[f"{stem}_interval_reason"]


def test_the_same_seed_repeats_and_another_does_not():
    pairs = people_pairs(np.random.default_rng(11))
    for arguments in (pairs, pairs[:2]):
        first = verification_intervals(*arguments, seed=3)
        assert verification_intervals(*arguments, seed=3) == first
        assert verification_intervals(*arguments, seed=4)["pooled_auc_percent_low"] != first["pooled_auc_percent_low"]


@pytest.mark.parametrize("num_columns", [2, 4])
def test_the_size_of_a_chunk_does_not_matter(num_columns, monkeypatch):
    pairs = people_pairs(np.random.default_rng(12))[:num_columns]
    whole = verification_intervals(*pairs)
    monkeypatch.setattr(intervals, "WEIGHTS_PER_CHUNK", 1)
    assert verification_intervals(*pairs) == whole


def test_a_figure_that_the_pairs_do_not_allow_has_no_interval_but_a_reason():
    pairs = people_pairs(np.random.default_rng(15), num_people=25)  # 300 impostors
    result = verification_intervals(*pairs)
    assert result["tar_at_far_1e-2_percent_low"] is not None
    assert result["tar_at_far_1e-3_percent"] is None and result["tar_at_far_1e-3_percent_high"] is None
    assert "1,000 impostor pairs or more, there are 300" in result["tar_at_far_1e-3_percent_interval_reason"]
    short = verification_intervals(*people_pairs(np.random.default_rng(15), num_people=24))  # 276
    assert short["tar_at_far_1e-2_percent"] is not None and short["tar_at_far_1e-2_percent_low"] is None
    assert "needs 300 impostor pairs, there are 276" in short["tar_at_far_1e-2_percent_interval_reason"]


@pytest.mark.parametrize(("how", "with_identities", "reason"), [
    ({"num_people": 9}, True, "there are 9 identities, an interval needs 10"),
    ({"num_people": 40, "per_person": 0}, True, None),
    ({"num_people": 9, "per_person": 1}, False, "there are 9 genuine pairs, an interval needs 10"),
    ({"num_people": 20, "num_impostor": 9}, True, "there are 9 impostor pairs, an interval needs 10"),
    ({"apart": 50.0}, True, "every resample gives the same figure"),
])  # fmt: skip
def test_too_few_or_too_easy_pairs_have_no_interval_but_a_reason(how, with_identities, reason):
    pairs = people_pairs(np.random.default_rng(16), **how)
    if reason is None:
        refused(verification_intervals, *pairs, match="no genuine pair")
        return
    result = verification_intervals(*pairs[: 4 if with_identities else 2])
    assert result["pooled_auc_percent"] is not None
    assert result["pooled_auc_percent_low"] is None and result["pooled_auc_percent_high"] is None
    assert reason in result["pooled_auc_percent_interval_reason"]


def test_resamples_without_a_kind_of_pair_are_not_made_up():
    # One person has all genuine pairs: a third of the resamples is without that person.
    first = np.concatenate([np.zeros(20, int), np.arange(20)])
    second = np.concatenate([np.zeros(20, int), (np.arange(20) + 1) % 20])
    scores = np.random.default_rng(17).normal(size=40) + (np.arange(40) < 20)
    result = verification_intervals(scores, np.arange(40) < 20, first, second)
    assert result["pooled_auc_percent_low"] is None
    assert "resamples hold no genuine or no impostor pair" in result["pooled_auc_percent_interval_reason"]


@pytest.mark.parametrize(("change", "message"), [
    ({"scores": np.full(555, np.nan)}, "not finite"), ({"genuine": np.ones(555, bool)}, "no impostor pair"),
    ({"second": None}, "belong together"),
    ({"second": np.arange(3)}, "second_identities has 3 entries for 555 pairs"),
    ({"second": np.full(555, "a")}, "numbers on one side and strings on the other"),
    ({"second": np.arange(555) - 1000}, "contradicts the identities in 120 of 555 pairs, the first is pair 0"),
    ({"num_replicates": 99}, "num_replicates is 99"), ({"seed": -1}, "seed is -1"),
])  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(change, message):
    scores, genuine, first, second = people_pairs(np.random.default_rng(19))
    arguments = {"scores": scores, "genuine": genuine, "first": first, "second": second} | change
    positions = [arguments.pop(name) for name in ("scores", "genuine", "first", "second")]
    refused(verification_intervals, *positions, **arguments, match=message)
    refused(paired_differences, positions[0], *positions, **arguments, match=message)
    refused(paired_differences, scores, scores[:-1], genuine, first, second, match="one score and one label")
