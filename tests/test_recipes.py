"""recipes/*.args: each says what it is and is what it says; one of each kind starts."""

import dataclasses
import functools
import shlex

import pytest
import torch
from conftest import SMALL
from scripts import ROOT, load_script

from benchmarks.purification import PLAIN, VARIANTS
from models.weights import read_weight_file
from training.setup import check_flags
from utils.cli import parse_config

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.args") if not path.stem.startswith("demo"))
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
TrainConfig = load_script("train").TrainConfig
DEFAULTS = dataclasses.asdict(TrainConfig())


@functools.cache
def config_of(path) -> TrainConfig:
    return parse_config(TrainConfig, [f"@{path}"])


def settings(path) -> dict:
    return dataclasses.asdict(config_of(path))


@each
def test_a_recipe_is_described_passes_the_checks_and_an_ablation_differs_in_one_setting(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(f": python train.py @recipes/{path.name}")
    assert settings(path)["run_folder"].as_posix() == f"runs/{path.stem}"
    check_flags(config_of(path))
    changed = {name for name, value in settings(path).items() if value != DEFAULTS[name]} - {"run_folder"}
    assert len(changed) == 1 or not path.stem.startswith("ablation-"), changed


def test_the_published_recipe_is_the_defaults_and_no_two_recipes_are_the_same():
    assert settings(ROOT / "recipes" / "published.args") == DEFAULTS | {
        "run_folder": settings(ROOT / "recipes" / "published.args")["run_folder"],
        "margin_value": 0.35,  # which None is, for CosFace
    }
    reply = [tuple(sorted((k, str(v)) for k, v in settings(path).items() if k != "run_folder")) for path in RECIPES]
    assert len(set(reply)) == len(reply)


@pytest.mark.parametrize(
    "name",
    ["published", "combined-margin", "grl", "ablation-club-unsampled", "ablation-unit-linear-relu-bn", "finetune"],
)
def test_a_recipe_starts_and_ends_at_a_small_size(name, train_identity, weights, tmp_path):
    """One that changes the margin, the critic, the estimator, the unit, the start and the schedule each."""
    path = ROOT / "recipes" / f"{name}.args"
    small = (*SMALL, "--run-folder", tmp_path / "run", "--epochs", 1, "--warmup-steps", 1)
    if settings(path)["schedule"] == "steps":
        small += ("--learning-rate-epochs", 1)
    if settings(path)["disentangle"] == "inter_prototype":
        small += ("--child-pictures", 1)
    if settings(path)["init_from"] is not None:
        small += ("--init-from", weights)
    outcome = train_identity(tmp_path / "run", f"@{path}", *small, "--batch-size", 9)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "iefp.pth").is_file()


def test_plain_cosface_is_one_thing_in_recipe_benchmark_and_readme():
    """The recipe's flags, but for the run folder, are those of the benchmark and of the README's line."""
    recipe = settings(ROOT / "recipes" / "plain-cosface.args") | {"run_folder": None}
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith("runs/plain_cosface"))
    for words in (shlex.split(VARIANTS[PLAIN]), shlex.split(line)[2:]):
        config = parse_config(load_script("train").TrainConfig, words)
        assert dataclasses.asdict(config) | {"run_folder": None} == recipe


def test_a_critic_that_weighs_nothing_changes_no_bit_and_the_age_branch_is_kept_without_a_critic(
    train_identity, tmp_path
):
    """Plain CosFace was once measured with a CLUB of weight 0 beside it; those figures are of the same networks."""
    files = []
    for name, method in (("none", "--disentangle none"), ("weightless", "--mutual-information-weight 0")):
        outcome = train_identity(tmp_path / name, "--purification", 0, *method.split(), "--epochs", 1,
                                 "--cache-folder", tmp_path / "cache")  # fmt: skip
        assert outcome.status == 0, outcome.err
        files.append(read_weight_file(tmp_path / name / "iefp.pth"))
    plain, weightless = (file.tensors for file in files)
    identity = [key for key in plain if key.startswith(("backbone_id.", "margin_fc."))]
    assert len(identity) > 50 and all(torch.equal(plain[key], weightless[key]) for key in identity)
    assert any(not torch.equal(plain[key], weightless[key]) for key in plain if key.startswith("clubmi."))
    assert files[0].age_branch is not None
