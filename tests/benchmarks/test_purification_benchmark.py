"""benchmarks/purification.py: its tables, its estimate of what two embeddings share, and one whole tiny run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import TINY, load_script

from benchmarks import held_out, paired, purification
from evaluation.groups.seeds import summarise
from utils.cli import parse_config


def test_tables_show_means_deviations_and_stars():
    runs = {"plain": {0: {"a": 1.0}, 1: {"a": 2.0}}, "other": {0: {"a": 3.0}, 1: {"a": 4.0}}}
    text = paired.tables(summarise(runs, "plain", ["a"]), {"a": ("A, %", 1)})
    assert "| variant | A, % |\n|---|---:|\n| plain | 1.5 ± 0.7 |\n| other | 3.5 ± 0.7 |" in text
    assert text.endswith("| other | +2.0 ± 0.0* (p 0.5) |")
    assert "2.0 ± " in text and "| plain | +" not in text


def test_a_fresh_club_distinguishes_dependent_from_independent():
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


@pytest.mark.parametrize("name, script", [("prior", "train.py"), ("prior-bandwidth-8", "tried_in_training.py")])
def test_flags_that_train_py_lacks_go_to_the_script_that_knows_them(name, script, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(purification.subprocess, "run", lambda command, **_: asked.append(command) or SimpleNamespace(
        returncode=0))  # fmt: skip
    flags = purification.VARIANTS[name].split()
    purification.run_train(flags, tmp_path / "log")
    assert [command[1].rpartition("/")[2] for command in asked] == [script] and asked[0][2:] == flags


def test_variants_differ_in_purification_alone():
    assert set(purification.VARIANTS) >= {"plain", "implicit", "explicit", "iefp"}
    for flags in purification.VARIANTS.values():
        assert {word for word in flags.split() if word.startswith("--")} <= {
            "--purification", "--mutual-information-weight", "--disentangle", "--disentangle-weight", "--club-steps",
            "--mutual-information-warmup", "--age-prior", "--child-pictures", *purification.TRIED}  # fmt: skip


def test_a_tiny_run_goes_on_where_it_was_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    def train_here(command, **_) -> SimpleNamespace:
        train = load_script("train")
        return SimpleNamespace(returncode=train.train(parse_config(train.TrainConfig, command[2:])))

    def run(*flags):
        words = ["--output", tmp_path / "out", "--variants", "plain", "iefp", "--seeds", "0", "--people", "5",
                 "--pictures", "4", "--held-out", "8", "--held-out-pictures", "4", "--epochs", "1", "--age-epochs", "1",
                 "--batch", "8", "--backbone", TINY, "--club-steps", "3", "--device", "cpu",
                 "--plot", tmp_path / "plot.png", *flags]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["purification.py", *map(str, words)])
        purification.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(purification.subprocess, "run", train_here)
    reply = run()
    assert set(reply["runs"]) == {
        name + how for name in ("plain", "iefp") for how in ("", "+erasure", "+erasure-others")
    }
    assert all(0 <= of_seeds["0"]["rank1_percent"] <= 100 for of_seeds in reply["runs"].values())
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    weights = tmp_path / "out/seed0/iefp/iefp.pth"
    written = weights.stat().st_mtime_ns
    assert run() == reply
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="was begun with"):
        run("--nuisance", "0.5")
