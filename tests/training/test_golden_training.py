"""train.py's identity step computes what the published step computes, to 1e-6 in float64."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from golden_weights import filled
from scripts import ROOT, load_script

from utils.distributed import DistInfo

TRACE = json.loads((ROOT / "tests" / "golden" / "train_trace.json").read_text())
RELATIVE = 1e-6
NUM_IDENTITIES, BATCH_SIZE = 10, 8


def make_batch(step: int):
    images = np.random.RandomState(100 + step).uniform(-1, 1, (BATCH_SIZE, 3, 112, 112)).astype(np.float32)
    identities = np.random.RandomState(200 + step).randint(0, NUM_IDENTITIES, BATCH_SIZE)
    age_groups = np.random.RandomState(300 + step).randint(0, 8, BATCH_SIZE)
    permutation = torch.tensor([BATCH_SIZE - 1, *range(BATCH_SIZE - 1)])
    labels = torch.from_numpy(identities), torch.from_numpy(age_groups)
    return load_script("train").Batch(torch.from_numpy(images).double(), *labels, permutation=permutation)


@pytest.fixture(scope="module")
def age_features() -> dict[int, torch.Tensor]:
    """Those that the frozen branch computed, by step: the same with either margin, as a run's cache has them."""
    return {}


@pytest.fixture(scope="module", params=["cosface", "arcface"])
def trained(request, age_features):
    """The stage after four steps, its losses, and what they should be."""
    train = load_script("train")
    config = train.TrainConfig(learning_rate=0.01, precision="fp32")
    model = filled("iresnet18", 1, NUM_IDENTITIES, margin=request.param, margin_value=None)
    stage = train.IdentityStage(config, model, DistInfo(0, 1, torch.device("cpu")))
    model.train()
    losses = []
    for step in range(4):
        batch = make_batch(step)
        if step not in age_features:
            age_features[step] = stage.age_features_of(batch)
        losses.append(stage.step(dataclasses.replace(batch, age_features=age_features[step])))
    return model, losses, TRACE[request.param]


@pytest.mark.parametrize("name", ["face_recognition_loss", "age_loss", "mutual_information", "log_likelihood"])
def test_losses_of_four_steps_agree(trained, name):
    _, losses, expected = trained
    np.testing.assert_allclose([step[name].item() for step in losses], expected[name], rtol=RELATIVE)


@pytest.mark.parametrize("what", ["parameters_after", "identity_buffers_after"])
def test_every_trained_tensor_agrees(trained, what):
    model, _, expected = trained
    state = model.state_dict()
    for key, numbers in expected[what].items():
        assert state[key].norm().item() == pytest.approx(numbers["norm"], rel=RELATIVE), key
        # A sum of many signed values may be near zero: its error is measured against their norm.
        assert state[key].sum().item() == pytest.approx(numbers["sum"], rel=RELATIVE, abs=RELATIVE * numbers["norm"])


def test_every_parameter_that_should_be_trained_is_in_the_trace_and_no_other_moved(trained):
    model, _, expected = trained
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained_names == set(expected["parameters_after"])
    untouched = filled("iresnet18", 1, NUM_IDENTITIES).state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(("backbone_ae.", "age_estimator.")):
            assert torch.equal(value, untouched[key]), key
