"""evaluation/scoring.py, evaluation/analysis.py and the shares of evaluation/intervals.py, against plain loops."""

from types import SimpleNamespace

import numpy as np
import pytest
from refusals import refused

from evaluation.analysis import worst_searches
from evaluation.calibration import calibrate
from evaluation.embeddings.embedding_set import EmbeddingSet
from evaluation.embeddings.extraction import Extracted
from evaluation.groups.models import Figure
from evaluation.groups.models import figures_of as figures_of_groups
from evaluation.identification import leave_one_out_search, probe_gallery_search
from evaluation.intervals import MIN_DRAWN, paired_share_difference, share_interval
from evaluation.report.page import report_html
from evaluation.report.section_summary import main_rows, settings_of
from evaluation.report.tables import table
from evaluation.scoring import Comparable, Options, compare, make_rows, missing_figures, score_pair_list
from meta import MIN_FALSE_ACCEPTS, PUBLISHED_FIGURES
from training.validation import figures_of
from utils.cli import as_plain

NUM_PEOPLE = 30


@pytest.fixture(scope="module")
def people() -> np.ndarray:
    return np.random.default_rng(3).integers(0, NUM_PEOPLE, 120)


def clustered(people: np.ndarray, noise: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(NUM_PEOPLE, 16))[people] + noise * draw.normal(size=(len(people), 16))


def test_leave_one_out_hits_are_those_of_a_plain_loop(people):
    people = np.append(people, NUM_PEOPLE - 1 + 1)  # who has one picture is no probe
    embeddings = np.random.default_rng(0).normal(size=(len(people), 8))
    embeddings[:-1] = clustered(people[:-1], 1.5, 0)[:, :8]
    search, probes = leave_one_out_search(embeddings, people)
    hits = search.hits
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = []
    for probe in range(len(people)):
        scores = units @ units[probe]
        scores[probe] = -2
        if (people == people[probe]).sum() > 1:
            expected.append((probe, people[np.argmax(scores)] == people[probe]))
    assert list(zip(probes.tolist(), hits.tolist(), strict=True)) == expected
    assert 0 < hits.mean() < 1


def test_a_share_is_the_plain_share_and_its_interval_that_of_people_drawn_one_by_one(people):
    hits = np.random.default_rng(2).random(len(people)) < 0.4
    figures = share_interval(hits, people, "rank1_percent", num_replicates=4000, seed=1)
    assert figures["rank1_percent"] == pytest.approx(100 * hits.mean())
    draw, shares = np.random.default_rng(9), []
    rows = [np.flatnonzero(people == k) for k in np.unique(people)]
    for _ in range(4000):
        drawn = np.concatenate([rows[k] for k in draw.integers(0, len(rows), len(rows))])
        shares.append(100 * hits[drawn].mean())
    expected = np.quantile(shares, [0.025, 0.975])
    assert [figures["rank1_percent_low"], figures["rank1_percent_high"]] == pytest.approx(expected, abs=0.8)
    assert figures == share_interval(hits, people, "rank1_percent", num_replicates=4000, seed=1)


def test_pictures_of_one_person_hang_together_and_widen_the_interval():
    people = np.repeat(np.arange(40), 25)
    by_person = np.repeat(np.random.default_rng(0).random(40) < 0.5, 25)
    figures = share_interval(by_person, people, "r")
    single = share_interval(by_person, np.arange(len(people)), "r")
    assert figures["r_high"] - figures["r_low"] > 3 * (single["r_high"] - single["r_low"])


def test_two_models_are_drawn_alike_so_that_what_is_hard_for_both_drops_out(people):
    hard = np.random.default_rng(2).random(len(people)) < 0.4
    better = hard.copy()
    better[np.flatnonzero(~hard)[:6]] = True
    figures = paired_share_difference(better, hard, people, "rank1", seed=0)
    alone = share_interval(hard, people, "r", seed=0)
    assert figures["rank1_difference_percentage_points"] == pytest.approx(100 * 6 / len(people))
    width = figures["rank1_difference_percentage_points_high"] - figures["rank1_difference_percentage_points_low"]
    assert width < 0.7 * (alone["r_high"] - alone["r_low"])
    same = paired_share_difference(hard, hard, people, "rank1")
    assert same["rank1_difference_percentage_points"] == 0
    assert "same figure" in same["rank1_difference_percentage_points_interval_reason"]


def test_too_few_people_give_a_reason_and_no_interval():
    figures = share_interval([True, False], ["a", "b"], "r")
    assert figures["r"] == 50 and figures["r_low"] is None and f"needs {MIN_DRAWN}" in figures["r_interval_reason"]
    refused(share_interval, [True, False], ["a", "b", "c"], "r", match="2 entries for 3 people")


def test_models_are_compared_by_all_that_both_have(people):
    scores = np.random.default_rng(0).normal(size=200)
    genuine = np.arange(200) % 2 == 0
    a, b = (Comparable((scores + k * genuine, genuine, None, None), (people > k, people)) for k in (2, 1))
    figures = compare(a, b)
    assert figures["pooled_auc_difference_percentage_points"] > 0
    expected = 100 * ((people > 2).mean() - (people > 1).mean())
    assert figures["rank1_difference_percentage_points"] == pytest.approx(expected)
    assert "pooled_auc_difference_percentage_points" not in compare(Comparable(hits=a.hits), Comparable(hits=b.hits))


def test_the_worst_searches_are_those_of_a_sorted_matrix():
    draw = np.random.default_rng(7)
    probe, gallery = draw.normal(size=(20, 6)), draw.normal(size=(25, 6))
    people = np.arange(20), np.concatenate([np.arange(20), np.arange(5)])
    ages = draw.integers(0, 60, 20), np.where(np.arange(25) == 3, -1, 30)
    search = probe_gallery_search(probe, people[0], gallery, people[1])
    figures = worst_searches(search, ages, (lambda i: f"p{i}", lambda i: f"g{i}"))
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (probe, gallery)]
    scores = unit[0] @ unit[1].T
    is_mate = people[0][:, None] == people[1]
    others = np.where(is_mate, -2, scores)
    order = np.argsort(-others.max(axis=1))[:12]
    expected = [(f"p{i}", f"g{others[i].argmax()}") for i in order]
    assert [(pair["name_a"], pair["name_b"]) for pair in figures["false_matches"]] == expected
    mates = np.where(is_mate, scores, -2)
    order = np.argsort(mates.max(axis=1))[:12]
    expected = [(f"p{i}", f"g{mates[i].argmax()}") for i in order]
    assert [(pair["name_a"], pair["name_b"]) for pair in figures["false_non_matches"]] == expected
    for pair in figures["false_matches"] + figures["false_non_matches"]:
        assert pair["age_a"] == ages[0][int(pair["name_a"][1:])]
        assert ("age_b" in pair) == (pair["name_b"] != "g3")


def result_of_pairs(num_impostor: int, with_mirror: bool = True) -> dict:
    """Of 40 genuine pairs and so many impostor pairs of made-up embeddings."""
    draw = np.random.default_rng(num_impostor)
    first, second = np.arange(40 + num_impostor), np.arange(40 + num_impostor) + 40 + num_impostor
    genuine = np.arange(40 + num_impostor) % (40 + num_impostor) < 40
    views = draw.normal(size=(2, 2 * len(genuine), 8)).astype(np.float32)
    views[:, second[genuine]] += views[:, first[genuine]]
    original = views[0]
    extracted = Extracted(original, views[1] if with_mirror else original, None, None, grey_pixels=views[0])
    order = draw.permutation(len(genuine))
    pairs = first[order], second[order], genuine[order]
    return {"title": "Own"} | score_pair_list(EmbeddingSet(extracted, str), *pairs, Options(), with_sum=True)[0]


def test_insightface_accuracy_has_a_row_with_its_deviation_in_table_and_page():
    """7: of the features as they are, views added before they are normalised."""
    result, words = result_of_pairs(120), "InsightFace accuracy %"
    figures = result["insightface_accuracy"]["sum"]
    cell = f"{figures['accuracy_flip_percent']:.2f} +- {figures['accuracy_flip_std_percent']:.2f}"
    line = next(line for line in table(make_rows({"own.bin": result})).splitlines() if words in line)
    assert [each.strip() for each in line.strip("|").split("|")] == ["Own", words, "", "", cell, "", "50.00"]
    report = {"models": [{"name": "a", "results": {"lfw.bin": result | {"benchmark": "lfw"}}}],
              "published": [as_plain(figure) for figure in PUBLISHED_FIGURES]}  # fmt: skip
    page = report_html(report, None)
    assert f'<td class="n">{cell}</td>' in page
    assert f'<td>Own, {words}, sum</td><td class="n">{cell}</td>' in page  # beside LFW's published figures
    assert figures_of_groups({"own.bin": result})[Figure("own.bin", "Own", words)] == figures["accuracy_flip_percent"]


def test_embeddings_of_one_view_have_no_insightface_accuracy_and_the_reason_is_said():
    result = result_of_pairs(120, with_mirror=False)
    reason = result["insightface_accuracy"]["reason"]
    assert "one view" in reason and missing_figures({"own": result}) == [f"Own, InsightFace accuracy %: {reason}"]
    assert "InsightFace" not in table(make_rows({"own": result}))
    _, reasons = main_rows(settings_of({"models": [{"name": "a", "results": {"own": result}}]}))
    assert f"InsightFace accuracy %: {reason}" in reasons


@pytest.mark.parametrize("num_impostor", [12, 100 * MIN_FALSE_ACCEPTS - 1, 100 * MIN_FALSE_ACCEPTS])
def test_table_json_page_calibration_and_validation_have_one_rule_for_a_tar(num_impostor):
    """14: TAR at FAR 1e-2 needs 100 impostor pairs wherever it is shown; else the reason stands there."""
    key, words, enough = "tar_at_far_1e-2_percent", "TAR % at FAR 1e-2, all pairs", num_impostor >= 100
    result = result_of_pairs(num_impostor)
    verification = result["verification"]
    for column in ("concatenate", "add", "sum", "grey_pixels"):
        figures = verification[column]
        assert (figures[key] is not None) == enough and figures["tar_at_far_1e-4_percent"] is None
        assert figures["num_impostor"] == num_impostor and figures["impostors_allowed_at_far_1e-2"] == int(enough)
        reason = f"FAR 1e-2 needs 100 impostor pairs or more, there are {num_impostor}"
        assert figures.get("tar_at_far_1e-2_reason") == (None if enough else reason)
    shown = table(make_rows({"own.bin": result}))
    assert (words in shown) == enough and "ten-fold EER %" in shown
    assert missing_figures({"own.bin": result}) == ([] if enough else [f"Own, {words}: {reason}"])
    assert ("1e-2" in calibrate(result)["at_far"]) == enough
    rows, _ = main_rows(settings_of({"models": [{"name": "a", "results": {"own.bin": result}}]}))
    assert (words in [row[2] for row in rows]) == enough
    benchmark = SimpleNamespace(
        protocol="ten_fold_verification", pairs=SimpleNamespace(genuine=np.arange(40 + num_impostor) < 40)
    )
    assert (f"own_{key}" in figures_of({"own": benchmark})) == enough
    assert "own_eer_percent" in figures_of({"own": benchmark})
