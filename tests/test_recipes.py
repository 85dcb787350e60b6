"""recipes/*.args: each says what it is, is what it says, and starts."""

import dataclasses

import pytest
from conftest import SMALL
from scripts import ROOT, load_script

from utils.cli import parse_config

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.args") if not path.stem.startswith("demo"))
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def settings(path) -> dict:
    return dataclasses.asdict(parse_config(load_script("train").TrainConfig, [f"@{path}"]))


DEFAULTS = dataclasses.asdict(load_script("train").TrainConfig())


@each
def test_the_first_line_says_what_it_is_and_how_it_is_run_and_the_run_folder_is_its_own(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(f": python train.py @recipes/{path.name}")
    assert settings(path)["run_folder"].as_posix() == f"runs/{path.stem}"


def test_the_published_recipe_is_the_defaults():
    assert settings(ROOT / "recipes" / "published.args") == DEFAULTS | {
        "run_folder": settings(ROOT / "recipes" / "published.args")["run_folder"],
        "margin_value": 0.35,  # which None is, for CosFace
    }


@each
def test_an_ablation_differs_from_the_published_recipe_in_one_setting(path):
    changed = {name for name, value in settings(path).items() if value != DEFAULTS[name]} - {"run_folder"}
    assert len(changed) == 1 or not path.stem.startswith("ablation-"), changed


def test_no_two_recipes_are_the_same():
    reply = [tuple(sorted((k, str(v)) for k, v in settings(path).items() if k != "run_folder")) for path in RECIPES]
    assert len(set(reply)) == len(reply)


@each
def test_a_recipe_starts_and_ends_at_a_small_size(path, train_identity, weights, tmp_path):
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
