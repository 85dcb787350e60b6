"""--age-prior and --disentangle inter_prototype in train.py: resumed runs, unknown ages, two processes as one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from golden_weights import fill
from processes import in_processes
from scripts import TINY, load_script
from test_train import same_weights

from data.faces import index_identity_folders, index_names, with_ages
from data.record_packing import pack_folder
from meta import FILENAME_PATTERNS, TRAINING_SETS
from models.iefp import IEFP
from training import setup
from training.checkpoint import list_checkpoints
from training.partial_fc import own_identities, whole_weight
from utils.distributed import DistInfo, init_distributed, leave, shutdown_distributed

BOTH = ("--age-prior", 1, "--disentangle", "inter_prototype", "--child-pictures", 1)


@pytest.fixture(scope="module")
def faces(tiny_faces):
    return index_identity_folders(tiny_faces / TRAINING_SETS["ms1mv3"].folder, FILENAME_PATTERNS["ms1mv3"])


@pytest.fixture
def train(run_main, faces, age_weights, tmp_path):
    """Runs train.py on the pictures with these ages, in records."""

    def train(ages: np.ndarray | None, name: str, *flags: object):
        if not (tmp_path / "train.rec").exists():
            pack_folder(with_ages(faces, ages), tmp_path / "train.rec")
        return run_main("train", "--train-data", tmp_path / "train.rec", "--age-weights", age_weights, *SMALL,
                        "--epochs", 1, "--run-folder", tmp_path / name, *flags)  # fmt: skip

    return train


def test_a_run_resumes_to_the_bit_and_says_once_how_many_ages_are_unknown(train, faces, tmp_path):
    """Both are made anew from the index: a checkpoint holds no trace of them but the settings, which have to agree."""
    ages = faces.ages.copy()
    ages[[2, 7]] = -1
    flags = (*BOTH, "--sharded-classes", "--class-sampling-rate", 0.5, "--precision", "bf16", "--accumulation", 3,
             "--save-every", 1, "--keep-checkpoints", 9)  # fmt: skip
    outcome = train(ages, "run", *flags)
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("--age-prior: the age of 2 of 18 pictures is unknown") == 1
    children = len(set(faces.identities[(ages >= 0) & (ages <= 12)]))
    assert f"inter_prototype: {children} of 6 people are known as children" in outcome.out and children >= 2
    whole = (tmp_path / "run" / "iefp.pth").rename(tmp_path / "whole.pth")
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    content = torch.load(checkpoints[-1], weights_only=True)
    assert content["config"]["age_prior"] == 1 and set(content["optimisers"]) == {"identity"}
    with torch.device("meta"):  # the rows of the head stand in a file of their own
        assert {*content["model"], "margin_fc.weight"} == set(IEFP(TINY, 1, 6).state_dict())
    for path in checkpoints[1:]:
        path.unlink()
    assert "1 steps done" in train(ages, "run", *flags).out and same_weights(whole, tmp_path / "run" / "iefp.pth")
    other = train(ages, "run", *flags, "--age-prior", 2)
    assert other.status == 2 and "--age-prior 1.0 -> 2.0" in other.err


def test_without_any_age_it_is_refused_in_one_sentence(train):
    outcome = train(None, "run", "--age-prior", 1)
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1
    assert "has no picture with an age, which --age-prior needs: give --ages" in outcome.err
    outcome = train(None, "run", "--stage", "age", "--age-prior", 1)
    assert outcome.status == 2 and "--age-prior do nothing with --stage age" in outcome.err


# ------------------------------------------------------------------------------------------------- two processes

WHOLE_BATCH, IDENTITIES = 8, 5


def take_step(process: DistInfo, sharded: bool) -> dict[str, torch.Tensor]:
    """All tensors after a step with both, in float64, on the process's share of the same batch."""
    train = load_script("train")
    config = train.TrainConfig(
        learning_rate=0.01, age_prior=2.0, disentangle="inter_prototype", disentangle_weight=50.0, child_pictures=1,
        sharded_classes=sharded, sync_batchnorm=True,
    )  # fmt: skip
    own = own_identities(IDENTITIES, process) if sharded else range(IDENTITIES)
    model = IEFP(TINY, 1, IDENTITIES, critic="inter_prototype", own_identities=own)
    whole = fill(IEFP(TINY, 1, IDENTITIES)).state_dict()
    model.load_state_dict(whole | {"margin_fc.weight": whole["margin_fc.weight"][own.start : own.stop]})
    identities, ages = torch.arange(40) % IDENTITIES, torch.arange(40) * 7 % 60
    index = dataclasses.replace(index_names("made up", map(str, range(40))), identities=identities.numpy(),
                                ages=ages.numpy(), identity_names=tuple("abcde"))  # fmt: skip
    setup.use_ages(config, model.double(), index, process)
    stage = train.IdentityStage(config, model, process)
    model.train()
    images = torch.rand(WHOLE_BATCH, 3, 112, 112, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = torch.arange(WHOLE_BATCH).chunk(process.world_size)[process.rank]
    stage.step(train.Batch(images[rows], identities[rows], torch.zeros_like(rows), ages=ages[rows]))
    state = dict(model.state_dict())
    if sharded:
        state["margin_fc.weight"] = whole_weight(model.margin_fc.weight, IDENTITIES, process)
    return state


def take_step_as_one_of_two(path: Path) -> None:
    process = init_distributed("cpu")
    states = [take_step(process, sharded) for sharded in (False, True)]
    if process.is_first:
        torch.save(states, path)
    shutdown_distributed(process)
    leave(0)


def test_two_processes_train_as_one_with_a_whole_head_and_one_in_shares(tmp_path):
    """In float64 to 1e-9: shares of a head add up what they know of children, and each holds its part of the prior."""
    one = take_step(DistInfo(0, 1, torch.device("cpu")), sharded=False)
    ended = in_processes(2, take_step_as_one_of_two, tmp_path / "two.pth")
    assert ended.statuses == [0, 0], ended.err[-3000:]
    for two in torch.load(tmp_path / "two.pth", weights_only=True):
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-11, msg=key)
