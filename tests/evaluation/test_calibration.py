"""evaluation/calibration.py: thresholds and what they let pass against plain loops; files that are refused."""

import json
import re

import numpy as np
import pytest
from refusals import refused

from evaluation.age_gap import COMMON_RATES, GAP_LOWER_EDGES, by_age_gap, pairs_by_age_gap
from evaluation.calibration import (
    FILE_NAME,
    GAPS,
    calibrate,
    find_calibration,
    gap_of,
    read_calibration,
    write_calibrations,
)
from evaluation.verification import all_pairs_verification, verification
from meta import UserError

SHA, FINGERPRINT = "ef" * 32, "ab" * 32


def life_pictures(seed, num_pictures=110, num_people=10, size=8):
    """Embeddings (N, D) that change with the years, identities and ages."""
    draw = np.random.default_rng(seed)
    people, ages = draw.integers(0, num_people, num_pictures), draw.integers(0, 70, num_pictures)
    drift = draw.normal(size=(num_people, size))[people] * (ages / 50)[:, None]
    embeddings = draw.normal(size=(num_people, size))[people] + drift + 0.6 * draw.normal(size=(num_pictures, size))
    return embeddings, people, ages


def plain_pairs(embeddings, people, ages):
    """(cosine, is genuine, years between) of every pair, one by one."""
    pairs = []
    for i in range(len(people)):
        for j in range(i):
            lengths = np.sqrt(np.sum(embeddings[i] ** 2)) * np.sqrt(np.sum(embeddings[j] ** 2))
            pairs.append((float(np.sum(embeddings[i] * embeddings[j]) / lengths), bool(people[i] == people[j]),
                          abs(int(ages[i]) - int(ages[j]))))  # fmt: skip
    return pairs


def plain_threshold(pairs, one_in):
    """The lowest genuine score that no more impostors reach than one in so many; each is tried, and counted out."""
    impostors = [score for score, is_genuine, _ in pairs if not is_genuine]
    allowed = len(impostors) // one_in
    fitting = [score for score, is_genuine, _ in pairs
               if is_genuine and sum(other >= score for other in impostors) <= allowed]  # fmt: skip
    return (min(fitting) if fitting else None), allowed


def share(scores, threshold):
    return 100 * sum(score >= threshold for score in scores) / len(scores) if len(scores) >= 10 else None


def result_of(seed=0, **extra):
    """What test.py has of a benchmark with ages."""
    embeddings, people, ages = life_pictures(seed)
    analysis = {"verification": all_pairs_verification(embeddings, people),
                "age_gap": by_age_gap(embeddings, people, ages)}  # fmt: skip
    return {"title": "FG-NET", "analysis": analysis} | extra


@pytest.mark.parametrize("drawn", [False, True])
def test_a_calibration_says_whether_its_faces_were_drawn(drawn):
    assert calibrate(result_of(drawn=drawn))["drawn"] is drawn


@pytest.fixture
def calibrations(tmp_path):
    """A file with one model and two benchmarks, of which the second has no ages and fewer pairs."""
    draw = np.random.default_rng(5)
    of_pairs = verification(draw.normal(size=200) / 5, draw.random(200) < 0.5)
    pairs = {"title": "CALFW", "analysis": {"verification": of_pairs}}
    model = {"name": "a", "weights": "runs/a/iefp.pth", "sha256": SHA, "model_fingerprint": FINGERPRINT,
             "results": {"fgnet": result_of(), "calfw": pairs}}  # fmt: skip
    return write_calibrations(tmp_path, [model], "concatenate")


@pytest.mark.parametrize("seed", range(1))
def test_thresholds_and_tar_by_gap_are_those_of_a_plain_loop_over_all_pairs(seed):
    embeddings, people, ages = life_pictures(seed)
    pairs, calibrated = plain_pairs(embeddings, people, ages), calibrate(result_of(seed))
    num_genuine = sum(pair[1] for pair in pairs)
    assert (calibrated["num_genuine"], calibrated["num_impostor"]) == (num_genuine, len(pairs) - num_genuine)
    edges = [*GAP_LOWER_EDGES, 1000]
    for rate in ("1e-1", "1e-2", "1e-3"):
        row = calibrated["at_far"][rate]
        threshold, allowed = plain_threshold(pairs, COMMON_RATES[rate])
        assert row["threshold"] == pytest.approx(threshold, abs=1e-11) and row["impostors_allowed"] == allowed
        genuine = [(score, years) for score, is_genuine, years in pairs if is_genuine]
        # 1e-9 below: the threshold is one of the scores, which differ in their last digits.
        assert row["tar_percent"] == pytest.approx(share([score for score, _ in genuine], threshold - 1e-9), rel=1e-12)
        for gap, low, end in zip(GAPS, edges, edges[1:], strict=False):
            of_gap = [score for score, years in genuine if low <= years < end]
            expected = share(of_gap, threshold - 1e-9)
            assert calibrated["num_genuine_by_age_gap"][gap] == len(of_gap)
            expected = None if expected is None else pytest.approx(expected, rel=1e-12)
            assert row["tar_by_age_gap_percent"][gap] == expected
    assert len({row["tar_by_age_gap_percent"]["31+"] for row in calibrated["at_far"].values()}) > 1


def test_where_all_ages_are_known_the_thresholds_are_those_of_all_pairs():
    result = result_of(3)
    with_ages = calibrate(result)
    del result["analysis"]["age_gap"]
    without = calibrate(result)
    assert set(without["at_far"]) == set(with_ages["at_far"]) >= {"1e-1", "1e-2", "1e-3"}
    for rate, row in without["at_far"].items():
        assert row["tar_by_age_gap_percent"] == {}
        same = {key: row[key] for key in ("threshold", "impostors_allowed", "tar_percent")}
        assert same == {key: with_ages["at_far"][rate][key] for key in same}


def test_a_list_of_pairs_has_the_thresholds_of_its_set():
    embeddings, people, ages = life_pictures(1, num_pictures=60)
    scores, genuine, gaps = (np.array(column) for column in zip(*plain_pairs(embeddings, people, ages), strict=True))
    of_list = pairs_by_age_gap(scores, genuine, gaps, np.zeros_like(gaps))["common_thresholds"]
    of_set = by_age_gap(embeddings, people, ages)["common_thresholds"]
    for rate, row in of_set.items():
        assert (row["threshold"] is None) == (of_list[rate]["threshold"] is None)
        assert row["threshold"] is None or of_list[rate]["threshold"] == pytest.approx(row["threshold"], abs=1e-11)
        assert row["impostors_allowed"] == of_list[rate]["impostors_allowed"]


def test_a_far_without_enough_impostors_is_left_out_and_said():
    draw = np.random.default_rng(0)
    genuine = np.arange(600) < 100
    scores = draw.normal(size=600) / 4 + genuine
    calibrated = calibrate({"title": "x", "analysis": {"verification": verification(scores, genuine)}})
    assert list(calibrated["at_far"]) == ["1e-1", "1e-2"]
    assert calibrated["left_out"]["1e-3"] == "FAR 1e-3 needs 1,000 impostor pairs or more, there are 500"


def test_a_file_of_embeddings_has_a_calibration_and_a_benchmark_without_analysis_has_none(tmp_path):
    assert calibrate({"title": "MORPH2", "probe_gallery": {}}) is None
    others = {"name": "others", "embeddings": "others.npz", "sha256": SHA, "model_fingerprint": SHA}
    without = others | {"results": {"morph2": {"title": "MORPH2", "probe_gallery": {}}}}
    assert write_calibrations(tmp_path, [without], "concatenate") is None and not list(tmp_path.iterdir())
    path = write_calibrations(tmp_path, [others | {"results": {"fgnet": result_of()}}], "concatenate")
    assert read_calibration(path, SHA, "concatenate").benchmarks["fgnet"].title == "FG-NET"
    assert json.loads(path.read_text())["models"][0]["weights"] == "others.npz"


def test_years_fall_into_their_bin():
    assert [gap_of(years) for years in (0, 1, 2, 20.6, 31, 99)] == ["0-1", "0-1", "2-5", "21-30", "31+", "31+"]


def test_the_benchmark_with_most_impostors_is_taken_unless_another_is_named(calibrations):
    calibration = read_calibration(calibrations, FINGERPRINT, "concatenate")
    benchmark, point = calibration.at(1e-2)
    calibrated = calibrate(result_of())
    assert (benchmark.name, point.far) == ("fgnet", "1e-2")
    assert point.threshold == calibrated["at_far"]["1e-2"]["threshold"]
    assert point.tar_by_gap["2-5"] == (
        calibrated["num_genuine_by_age_gap"]["2-5"], calibrated["at_far"]["1e-2"]["tar_by_age_gap_percent"]["2-5"]
    )  # fmt: skip
    assert calibration.at(0.1, "calfw")[0].num_impostor < benchmark.num_impostor
    assert calibration.benchmark_with("2-5") == "fgnet"


def test_a_far_or_a_benchmark_that_is_not_there_is_refused(calibrations):
    calibration = read_calibration(calibrations, FINGERPRINT, "concatenate")
    refused(calibration.at, 0.05, match=r"--far 0.05 is not calibrated by fgnet .*: give one of 1e-1, 1e-2, 1e-3")
    refused(calibration.at, 1e-3, "calfw", match=r"--far 0.001 .*calfw.* \(FAR 1e-3 needs 1,000 impostor pairs")
    refused(calibration.at, 1e-1, "lfw", match=r"--benchmark lfw is not in .*: give one of fgnet, calfw")


def test_a_calibration_of_another_join_is_refused(calibrations):
    with pytest.raises(UserError, match="joined by 'concatenate', here they are joined by 'add'"):
        read_calibration(calibrations, FINGERPRINT, "add")


def test_it_is_found_beside_the_weights_before_results(calibrations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports, weights = [], tmp_path / "iefp.pth"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / FILE_NAME).write_text(calibrations.read_text())
    assert find_calibration(weights, FINGERPRINT, "concatenate", reports.append).path == str(calibrations)
    calibrations.write_text(calibrations.read_text().replace(FINGERPRINT, "cd" * 32))
    assert find_calibration(weights, FINGERPRINT, "concatenate", reports.append).path == f"results/{FILE_NAME}"
    assert reports and re.search("is not about .*iefp.pth", reports[0])
    assert find_calibration(weights, "ef" * 32, "concatenate", reports.append) is None


def broken(change):
    def write(text):
        content = json.loads(text)
        change(content["models"][0])
        return json.dumps(content)

    return write


def set_threshold(value):
    return broken(lambda model: model["benchmarks"]["fgnet"]["at_far"]["1e-2"].update(threshold=value))


DAMAGES = [
    lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[" * 100_000, lambda text: "[1, 2]",
    lambda text: text.replace('"schema": 1', '"schema": 99'), lambda text: '{"schema": 1, "models": {}}',
    lambda text: '{"schema": 1, "models": [7]}', broken(lambda model: model.pop("benchmarks")),
    broken(lambda model: model.update(benchmarks=[])), broken(lambda model: model.update(benchmarks={})),
    broken(lambda model: model["benchmarks"]["fgnet"].pop("num_impostor")),
    broken(lambda model: model["benchmarks"]["fgnet"].update(num_impostor=-1)),
    *(set_threshold(value) for value in ("0.3", 7.0, float("nan"), True)),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_is_refused_in_a_sentence(calibrations, damage):
    calibrations.write_text(damage(calibrations.read_text()))
    with pytest.raises(UserError, match=r"calibration.*test\.py writes such files") as refused:
        read_calibration(calibrations, FINGERPRINT, "concatenate")
    assert "\n" not in str(refused.value)
