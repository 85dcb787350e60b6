"""A new margin and a new critic need their class alone: --help, the checks of flags and a run know them from it."""

import json
import os
import sys

import pytest
import torch
from conftest import SMALL
from processes import in_processes
from scripts import load_script
from torch import nn

from meta import TRAINING_SETS, UserError
from models.disentangle.base import Critic, register_critic
from models.margin import MARGINS, MarginHead
from utils.cli import parse_config, run_script


class ToyMargin(MarginHead):
    summary = "half a cosine"
    default_margin = (0.5, 0.125)

    def with_margin(self, cosine, quality):
        return self.margin[0] * cosine - self.margin[1]


class ToyCritic(Critic):
    summary = "a guess at the first feature"
    objective_name = "toy_objective"
    penalty_name = "toy_penalty"
    default_weight = 0.75

    def __init__(self):
        super().__init__()
        self.guess = nn.Parameter(torch.zeros(1))

    def forward(self, age, identity, age_groups):
        return -((identity[:, 0] - self.guess) ** 2).mean()

    def penalty(self, age, identity, age_groups, permutation):
        return -((identity[:, 0] - self.guess.detach()) ** 2).mean()


def train_with_toys(flags: list[str]) -> None:
    """--help, some flags that do nothing, and a run, in a process where the toys registered before train.py was loaded,
    as they would from a file in models/."""
    os.environ["COLUMNS"] = "400"  # no sentence of the help is broken
    MARGINS["toy"] = ToyMargin
    register_critic("toy")(ToyCritic)
    for name in [name for name in sys.modules if name == "script_train" or name.startswith("training.")]:
        del sys.modules[name]
    train = load_script("train")
    with pytest.raises(SystemExit):
        parse_config(train.TrainConfig, ["--help"])
    with pytest.raises(UserError, match="give --margin cosface or arcface or adaface"):
        parse_config(train.TrainConfig, ["--margin", "toy", "--margin-value", "0.5"])
    with pytest.raises(UserError, match="--club-steps does nothing with --disentangle toy"):
        parse_config(train.TrainConfig, ["--disentangle", "toy", "--club-steps", "2"])
    run_script(lambda: train.train(parse_config(train.TrainConfig, flags)))


def test_a_toy_margin_and_a_toy_critic_are_choices_in_the_help_and_train(tiny_faces, age_weights, tmp_path):
    data, run = tiny_faces / TRAINING_SETS["ms1mv3"].folder, tmp_path / "run"
    flags = ("--train-data", data, *SMALL, "--batch-size", 9, "--epochs", 1, "--run-folder", run, "--age-weights",
             age_weights, "--margin", "toy", "--margin-values", 0.5, 0.25, "--disentangle", "toy",
             "--disentangle-weight", 0.5)  # fmt: skip
    ended = in_processes(1, train_with_toys, [str(flag) for flag in flags])
    assert ended.statuses == [0], ended.err
    for words in ("toy: half a cosine.", "1.0, 0.3, 0.2 for combined, 0.5, 0.125 for toy", "{FLOAT FLOAT}",
                  "toy: a guess at the first feature.", "0.75 for toy"):  # fmt: skip
        assert words in ended.out, words
    events = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    steps = [event for event in events if "toy_penalty" in event]
    assert len(steps) == 2 and all({"toy_objective", "critic_gradient_norm"} <= step.keys() for step in steps)
    (checkpoint,) = (run / "checkpoints").glob("step_*.pth")
    assert torch.load(checkpoint, weights_only=True)["model"]["critic.guess"] != 0
    assert not any(key.startswith("critic.") for key in torch.load(run / "iefp.pth", weights_only=True))
