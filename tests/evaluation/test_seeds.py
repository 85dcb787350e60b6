"""evaluation/groups: statistics over seeds against hand-computed cases, and mistakes in --group."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from evaluation.groups.models import check_groups, compare_groups, figures_of
from evaluation.groups.seeds import paired_difference, sign_flip_p_value, spread, student_quantile, summarise
from meta import UserError

RUNS = {
    "plain": {0: {"a": 1.0, "b": 5.0}, 1: {"a": 2.0, "b": None}, 2: {"a": 4.0, "b": 6.0}},
    "other": {0: {"a": 2.0, "b": 5.5}, 1: {"a": 3.5, "b": 7.0}, 2: {"a": 4.5, "b": 6.0}},
}
# Heights of crossed less self-fertilised maize in eighths of an inch (Darwin, 1876), as Fisher (1935) tests them: 1,726
# of the 32,768 sign patterns have a sum at least as far from 0 as 314, and t is 2.148 with 14 degrees of freedom.
DARWIN = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def test_paired_differences_are_those_computed_by_hand():
    reply = paired_difference({0: 2.0, 1: 3.5, 2: 4.5, 9: 100.0}, {0: 1.0, 1: 2.0, 2: 4.0, 8: 3.0})
    assert (reply["num_seeds"], reply["mean"]) == (3, 1.0)  # of 1.0, 1.5 and 0.5
    assert reply["standard_error"] == pytest.approx(0.5 / 3**0.5)
    assert reply["half_width"] == pytest.approx(4.3027 * 0.5 / 3**0.5, rel=1e-4)
    assert not reply["is_beyond_chance"]  # 1.0 against 1.24
    assert reply["p_value"] == 2 / 8  # all three signs as they are, or all turned


def test_the_t_interval_and_the_sign_flips_of_darwins_maize_are_fishers():
    reply = paired_difference(dict(enumerate(DARWIN)), dict.fromkeys(range(15), 0))
    assert reply["p_value"] == 1726 / 32768
    assert reply["mean"] / reply["standard_error"] == pytest.approx(2.148, abs=5e-4)
    assert reply["half_width"] / reply["standard_error"] == pytest.approx(2.145, abs=5e-4)


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([3.0], 1.0),
        ([1.0, 2.0], 0.5),
        ([1.0, 1.0, -1.0], 1.0),  # no pattern is nearer to 0
        ([5.0, 4.0, 3.0, -1.0], 4 / 16),  # 11 and 13, and both turned
        ([0.0, 0.0], 1.0),
        ([0.1, 0.2, -0.3, 1e-17], 1.0),  # a sum of 0 but for rounding
        ([1.0] * 20, 2 / 2**20),
        ([1.0] * 21, None),
        ([], None),
    ],
)
def test_a_sign_flip_p_value_is_the_one_counted_by_hand(differences, p_value):
    assert sign_flip_p_value(differences) == p_value


def test_sign_flips_are_those_of_a_plain_loop_over_all_patterns():
    differences = np.random.default_rng(0).normal(0.4, 1, 9)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=9)]
    assert sign_flip_p_value(differences) == np.mean([one >= abs(differences.sum()) - 1e-9 for one in sums])


def test_the_interval_covers_a_true_difference_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2_000):
        values, baseline = (dict(enumerate(rng.normal(size=3))) for _ in range(2))
        covered += not paired_difference(values, baseline)["is_beyond_chance"]
    assert 0.935 < covered / 2_000 < 0.965


def test_quantiles_are_those_of_the_tables():
    assert [round(student_quantile(degrees), 3) for degrees in (1, 2, 9, 30)] == [12.706, 4.303, 2.262, 2.042]


def test_one_seed_has_no_error():
    reply = paired_difference({0: 2.0}, {0: 1.5})
    assert reply["mean"] == 0.5
    assert reply["standard_error"] is reply["half_width"] is reply["is_beyond_chance"] is reply["p_value"] is None
    assert spread([3.0]) == {"mean": 3.0, "deviation": None, "num_seeds": 1}


def test_a_summary_leaves_out_seeds_without_a_figure():
    summary = summarise(RUNS, "plain", ["a", "b", "c"])
    assert summary["plain"]["b"]["spread"] == {"mean": 5.5, "deviation": pytest.approx(0.5**0.5), "num_seeds": 2}
    assert "difference" not in summary["plain"]["a"]
    assert summary["other"]["b"]["difference"]["num_seeds"] == 2
    assert summary["other"]["b"]["difference"]["mean"] == 0.25
    assert "c" not in summary["other"]


def results(rank1: float, r2: float | None, title: str = "FG-NET") -> dict:
    """What results.json holds of one model on one set, as far as groups ask for it."""
    leaks = {"reason": "too few people"} if r2 is None else {"age_in_identity": {"age_r2": r2}}
    return {
        "fgnet": {
            "title": title,
            "leave_one_out": {"concatenate": {"rank1_percent": rank1}, "add": {"rank1_percent": 0.0}},
            "analysis": {
                "mate_distance": {"20+": {"rank1_percent": rank1 - 30}},
                "verification": {"figures": {"tar_at_far_1e-3_percent": None}},
                "leaks": leaks,
            },
        }
    }


def test_groups_are_compared_by_the_tables_rows_and_three_figures_beyond():
    assert {one.measure: value for one, value in figures_of(results(80.0, 0.5)).items()} == {
        "leave-one-out rank-1 %": 80.0,
        "rank-1 %, mates 20+ years away": 50.0,
        "age probe, R2": 0.5,
    }
    models = {f"{name}{seed}": results(rank1, r2) for name, seed, rank1, r2 in
              (("a", 0, 80.0, 0.5), ("a", 1, 84.0, 0.7), ("b", 0, 83.0, 0.1), ("b", 1, 89.0, None))}  # fmt: skip
    reply = compare_groups({"A": ["a0", "a1"], "B": ["b0", "b1"]}, models)
    assert reply["first"] == "A" and reply["members"][1] == {"name": "B", "models": ["b0", "b1"]}
    rows = {(row["measure"], row["group"]): row for row in reply["figures"]}
    assert [row["setting"] for row in reply["figures"]] == ["fgnet"] * 6
    rank1 = rows["leave-one-out rank-1 %", "B"]
    assert rank1["values"] == [83.0, 89.0] and rank1["deviation"] == pytest.approx(18**0.5)
    assert rank1["difference"]["mean"] == 4.0 and rank1["difference"]["half_width"] == pytest.approx(12.706, abs=1e-3)
    assert rows["age probe, R2", "B"]["values"] == [0.1, None]
    assert rows["age probe, R2", "B"]["difference"]["num_seeds"] == 1
    assert rows["age probe, R2", "A"]["difference"] is None


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([("a", "x y"), ("a", "z w")], "--group a is given twice"),
        ([("a", "")], "--group a has no file"),
        ([("a", "x y"), ("b", "z")], "--group b has 1 files and --group a 2: they are paired by order"),
        ([(__file__, "x y")], "begins with no name but a file: give --group NAME FILE"),
        ([(" ", "x")], "begins with no name"),
    ],
)
def test_a_mistake_in_the_groups_is_one_sentence(groups, sentence):
    with pytest.raises(UserError) as refused:
        check_groups([(name, tuple(map(Path, paths.split()))) for name, paths in groups])
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_one_group_alone_is_no_mistake():
    check_groups([("a", (Path("x"),))])
    check_groups([])
