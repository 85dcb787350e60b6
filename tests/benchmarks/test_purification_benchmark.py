"""benchmarks/purification.py: its statistics, its estimate of what two embeddings share, and one whole tiny run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import TINY, load_script

from benchmarks import held_out, paired, purification
from utils.cli import parse_config

RUNS = {
    "plain": {0: {"a": 1.0, "b": 5.0}, 1: {"a": 2.0, "b": None}, 2: {"a": 4.0, "b": 6.0}},
    "other": {0: {"a": 2.0, "b": 5.5}, 1: {"a": 3.5, "b": 7.0}, 2: {"a": 4.5, "b": 6.0}},
}


def test_paired_differences_agree_with_numpy():
    differences = np.array([1.0, 1.5, 0.5])
    reply = paired.paired_difference({0: 2.0, 1: 3.5, 2: 4.5, 9: 100.0}, {0: 1.0, 1: 2.0, 2: 4.0, 8: 3.0})
    assert reply["num_seeds"] == 3
    assert reply["mean"] == pytest.approx(differences.mean())
    assert reply["standard_error"] == pytest.approx(differences.std(ddof=1) / np.sqrt(3))
    assert reply["half_width"] == pytest.approx(4.30 * differences.std(ddof=1) / np.sqrt(3))
    assert not reply["is_beyond_chance"]  # 1.0 against 1.24


def test_the_interval_covers_a_true_difference_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2_000):
        values, baseline = (dict(enumerate(rng.normal(size=3))) for _ in range(2))
        covered += not paired.paired_difference(values, baseline)["is_beyond_chance"]
    assert 0.935 < covered / 2_000 < 0.965


def test_one_seed_has_no_error():
    reply = paired.paired_difference({0: 2.0}, {0: 1.5})
    assert reply["mean"] == 0.5
    assert reply["standard_error"] is reply["is_beyond_chance"] is None
    assert paired.spread([3.0]) == {"mean": 3.0, "deviation": None, "num_seeds": 1}


def test_a_summary_leaves_out_seeds_without_a_figure():
    summary = paired.summarise(RUNS, "plain", ["a", "b", "c"])
    assert summary["plain"]["b"]["spread"] == {
        "mean": 5.5,
        "deviation": pytest.approx(np.std([5, 6], ddof=1)),
        "num_seeds": 2,
    }
    assert "difference" not in summary["plain"]["a"]
    assert summary["other"]["b"]["difference"]["num_seeds"] == 2
    assert summary["other"]["b"]["difference"]["mean"] == 0.25
    assert "c" not in summary["other"]


def test_tables_tell_means_deviations_and_stars():
    runs = {"plain": {0: {"a": 1.0}, 1: {"a": 2.0}}, "other": {0: {"a": 3.0}, 1: {"a": 4.0}}}
    text = paired.tables(paired.summarise(runs, "plain", ["a"]), {"a": ("A, %", 1)})
    assert "| variant | A, % |\n|---|---:|\n| plain | 1.5 ± 0.7 |\n| other | 3.5 ± 0.7 |" in text
    assert text.endswith("| other | +2.0 ± 0.0* |")
    assert "2.0 ± " in text and "| plain | +" not in text


def test_a_fresh_club_tells_dependent_from_independent():
    rng = np.random.default_rng(0)
    age = rng.normal(size=(240, 512)).astype(np.float32)
    people = np.arange(240) // 4
    noise = rng.normal(size=(240, 512)).astype(np.float32)
    of_strangers = held_out.fresh_club(age, noise, people, steps=20)
    of_age = held_out.fresh_club(age, age + 0.3 * noise, people, steps=20)
    assert of_age["club_nats"] > 20 + abs(of_strangers["club_nats"])
    assert abs(of_age["club_shuffled_nats"]) < of_age["club_nats"] / 4
    scaled = held_out.fresh_club(3 * age + 1, 5 * (age + 0.3 * noise), people, steps=20)
    assert scaled["club_nats"] == pytest.approx(of_age["club_nats"], rel=1e-2)  # scales do not matter


def test_standardising_looks_at_the_first_half_only():
    rows = np.array([[0.0, 1.0], [2.0, 1.0], [9.0, 5.0]], np.float32)
    reply = held_out.standardised(rows, np.array([True, True, False]))
    assert reply.tolist() == [[-1, 0], [1, 0], [8, 0]]


def test_variants_differ_in_purification_alone():
    assert set(purification.VARIANTS) >= {"plain", "implicit", "explicit", "both"}
    for flags in purification.VARIANTS.values():
        assert {word for word in flags.split() if word.startswith("--")} <= {
            "--purification", "--mutual-information-weight", "--disentangle", "--disentangle-weight", "--club-steps",
            "--mutual-information-warmup"}  # fmt: skip


def test_a_tiny_run_goes_on_where_it_was_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    def train_here(command, **_) -> SimpleNamespace:
        train = load_script("train")
        return SimpleNamespace(returncode=train.train(parse_config(train.TrainConfig, command[2:])))

    def run(*flags):
        words = ["--output", tmp_path / "out", "--variants", "plain", "both", "--seeds", "0", "--people", "5",
                 "--pictures", "4", "--held-out", "8", "--held-out-pictures", "4", "--epochs", "1", "--age-epochs", "1",
                 "--batch", "8", "--backbone", TINY, "--club-steps", "3", "--device", "cpu",
                 "--plot", tmp_path / "plot.png", *flags]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["purification.py", *map(str, words)])
        purification.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(purification.subprocess, "run", train_here)
    reply = run()
    assert set(reply["runs"]) == {"plain", "both"}
    assert 0 <= reply["runs"]["both"]["0"]["rank1_percent"] <= 100
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    weights = tmp_path / "out/seed0/both/iefp.pth"
    written = weights.stat().st_mtime_ns
    assert run() == reply
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="was begun with"):
        run("--nuisance", "0.5")
