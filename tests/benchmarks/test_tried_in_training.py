"""benchmarks/tried_in_training.py: what it changes about train.py is in the weights and in the prior of its run."""

import sys

import numpy as np
import pytest
import torch
from conftest import identity_flags

from benchmarks import tried_in_training
from benchmarks.held_out import features_of
from meta import TRAINING_SETS
from models.erasure import CHILDHOOD_KNOTS, spline
from models.margin import AgePrior


@pytest.fixture
def run(tiny_faces, age_weights, tmp_path, monkeypatch):
    """Trains two epochs of three steps with its flags; returns the run folder."""
    for owner, name in ((tried_in_training.train.setup, "make_model"), (tried_in_training.train.setup, "AgePrior"),
                        (tried_in_training.train, "train_epoch"), (tried_in_training.train, "finish")):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # restored afterwards

    def train(*flags):
        words = [*flags, *identity_flags(tiny_faces, age_weights), "--run-folder", tmp_path / "run", "--epochs", "2"]
        monkeypatch.setattr(sys, "argv", ["tried_in_training.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            tried_in_training.main()
        assert ended.value.code == 0
        return tmp_path / "run"

    return train


@pytest.mark.parametrize("how", ["folded", "kept"])
def test_the_features_of_a_run_that_erases_each_epoch_have_no_covariance_with_age(run, tiny_faces, how):
    weights = run("--erase-each-epoch", how, "--purification", 0) / "iefp.pth"
    faces = tiny_faces / TRAINING_SETS["ms1mv3"].folder
    features = features_of(weights, faces, torch.device("cpu"), weights.with_name("features.npz"))
    both = np.concatenate([features.original, features.mirror]).astype(np.float64)
    of_age = np.tile(spline(CHILDHOOD_KNOTS)(features.ages), (2, 1))
    covariance = (both - both.mean(0)).T @ (of_age - of_age.mean(0)) / len(both)
    assert both.std() > 1e-2 and np.abs(covariance).max() < 1e-4 * both.std()


def test_the_prior_gets_the_bandwidth(run):
    given = []

    class Watched(AgePrior):
        def __init__(self, *data, bandwidth, **how):
            given.append(bandwidth)
            super().__init__(*data, bandwidth=bandwidth, **how)

    tried_in_training.train.setup.AgePrior = Watched
    run("--prior-bandwidth", 8, "--age-prior", 1)
    assert given == [8.0]
