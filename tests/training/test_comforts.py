"""Runs with accumulation, average, schedule and the rest together: resumed, of two processes, from other weights."""

import os
import shutil
import signal
import sys

import pytest
import torch
from scripts import TINY, load_script
from test_trackers import StandIn
from test_train import read_log, same_weights

from models.iefp import IEFP
from models.weights import describe_branches, iefp_file_tensors, load_for_embedding, load_what_fits
from training import setup
from training.checkpoint import load_newest, save_checkpoint

EVERYTHING = ("--epochs", 2, "--accumulation", 2, "--ema-decay", 0.5, "--schedule", "cosine", "--warmup-steps", 2,
              "--final-learning-rate", 0.001, "--backbone-learning-rate-factor", 0.5, "--profile", 3,
              "--wandb", "faces", "--age-cache", "ahead")  # fmt: skip


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", StandIn())
    return sys.modules["wandb"]


@pytest.fixture
def seen(monkeypatch):
    """The batches that steps take; the process is asked to stop after as many as `stop_after`."""
    stage, batches = load_script("train").IdentityStage, []
    step_of_stage = stage.step

    def step(self, batch):
        batches.append(batch)
        losses = step_of_stage(self, batch)
        if len(batches) == step.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    step.stop_after = None
    monkeypatch.setattr(stage, "step", step)
    return step, batches


def trained(folder) -> list[dict]:
    """The log's lines of steps, without what a clock says."""
    lines = [event for event in read_log(folder) if event["event"] == "train"]
    assert all(line["seconds_left"] >= 0 for line in lines) and lines[-1]["seconds_left"] == 0
    return [{k: v for k, v in line.items() if k not in ("time", "images_per_second", "seconds_left")} for line in lines]


def test_a_run_with_everything_on_stopped_and_started_again_ends_as_the_one_never_stopped(
    train_identity, tmp_path, wandb, seen
):
    step, batches = seen
    flags = (*EVERYTHING, "--cache-folder", tmp_path / "cache")
    outcome = train_identity(tmp_path / "whole", *flags)
    assert outcome.status == 0 and "iefp_ema.pth" in outcome.out and "no profile: --profile 3 needs 10" in outcome.out
    for batch in batches:  # each part has negatives of its own
        assert [sorted(part.permutation.tolist()) for part in batch.micro_batches(2)] == [list(range(3))] * 2
        assert [len(part.age_features) for part in batch.micro_batches(2)] == [3, 3]
    step.stop_after = len(batches) + 4
    assert train_identity(tmp_path / "stopped", *flags).status == 128 + signal.SIGTERM
    outcome = train_identity(tmp_path / "stopped", *flags)
    assert outcome.status == 0 and "4 steps done" in outcome.out
    for name in ("iefp.pth", "iefp_ema.pth"):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "stopped" / name), name
    assert trained(tmp_path / "whole") == trained(tmp_path / "stopped")
    ids = [begun["id"] for begun in wandb.begun]
    assert ids[0] != ids[1] == ids[2] and wandb.finished == 3
    curves = [values for values in wandb.logged if "train/face_recognition_loss" in values]
    assert [values["step"] for values in curves] == [1, 2, 3, 4, 5, 6] * 2

    rates = [line["learning_rate"] for line in trained(tmp_path / "whole")]
    halfway = 0.001 + 0.019 / 2  # cosine over the four steps after the warm-up
    assert rates[:3] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02]) and rates[4] == pytest.approx(halfway)
    check_average(tmp_path / "whole")


def check_average(folder) -> None:
    """The average has the layout of the weights, other numbers in the identity encoder, and the rest as it is."""
    last, average = (torch.load(folder / name, weights_only=True) for name in ("iefp.pth", "iefp_ema.pth"))
    assert list(last) == list(average)
    for key, value in last.items():
        is_moved = key.startswith("backbone_id.") and not key.endswith("num_batches_tracked")
        assert torch.equal(value, average[key]) != is_moved, key
    assert (folder / "iefp_ema.json").read_text() == (folder / "iefp.json").read_text()
    assert load_for_embedding(folder / "iefp_ema.pth")[1]


def test_an_average_can_be_asked_for_in_mid_run_and_then_begins_there(train_identity, plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    more = ("--epochs", 2, "--ema-decay", 0.9)
    assert "--ema-decay 0.0 -> 0.9" in train_identity(tmp_path / "run", *more).err
    assert train_identity(tmp_path / "run", *more, "--override-config").status == 0
    content = load_newest(tmp_path / "run" / "checkpoints", print)
    assert content["averaged"]["num_updates"] == 3 and content["position"]["step"] == 6


def test_without_them_a_checkpoint_and_a_run_folder_hold_what_they_held(plain_run):
    content = load_newest(plain_run / "checkpoints", print)
    assert content.keys() == {"format", "step", "config", "position", "index", "best", "is_best", "model", "branches",
                              "optimisers", "scaler", "validated"}  # fmt: skip
    assert {path.name for path in plain_run.iterdir()} == {
        "config.json", "log.jsonl", "tensorboard", "checkpoints", "iefp.json", "iefp.pth"}  # fmt: skip


# -------------------------------------------------------------------------------------------- from other weights

PREFIXES = setup.IDENTITY_STAGE_PREFIXES


@pytest.fixture
def others(tmp_path) -> dict:
    """The same encoder as three files: InsightFace's bare backbone, iefp.pth of seven people, a checkpoint of seven."""
    torch.manual_seed(11)
    model = IEFP(TINY, 1, 7)
    bare = {key: value for key, value in model.backbone_id.state_dict().items() if not key.startswith("spu.")}
    torch.save(bare, tmp_path / "backbone.pth")
    torch.save(iefp_file_tensors(model), tmp_path / "iefp.pth")
    content = {"config": {"stage": "identity"}, "model": model.state_dict(), "branches": describe_branches(model)}
    checkpoint = save_checkpoint(tmp_path, 3, content, keep=1)
    files = {"backbone": tmp_path / "backbone.pth", "iefp": tmp_path / "iefp.pth", "checkpoint": checkpoint}
    return {"model": model, **files}


@pytest.mark.parametrize(
    ("kind", "new", "num_unused"),
    [
        ("backbone", ("backbone_id.spu.", "margin_fc.", "clubmi."), 0),
        ("iefp", ("margin_fc.",), 1),
        ("checkpoint", ("margin_fc.",), 1),
    ],
)
def test_what_fits_is_taken_from_any_supported_file_and_the_rest_starts_new(others, kind, new, num_unused):
    torch.manual_seed(12)
    model = IEFP(TINY, 1, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reply = load_what_fits(model, others[kind], PREFIXES)
    expected = others["model"].state_dict()
    for key, value in model.state_dict().items():
        is_taken = key.startswith(PREFIXES) and not key.startswith(new)
        assert torch.equal(value, (expected if is_taken else before)[key]), key
    num_new = sum(key.startswith(new) for key in before)
    assert f"; {num_new} start new (" in reply and f"; {num_unused} of the file not used (" in reply


def test_fine_tuning_moves_a_trained_encoder_less_than_what_is_new(train_identity, others, tmp_path):
    """By the recipe's factor of 0.1, and at the full rate: the encoder moves less, about as much less as the rate."""
    start = torch.load(others["backbone"], weights_only=True)["fc.weight"]
    moved = {}
    for factor in (0.1, 1.0):
        folder = tmp_path / str(factor)
        flags = ("--epochs", 1, "--init-from", others["backbone"], "--backbone-learning-rate-factor", factor)
        outcome = train_identity(folder, *flags)
        assert outcome.status == 0 and "start new (backbone_id.spu" in outcome.out
        end = torch.load(folder / "iefp.pth", weights_only=True)["backbone_id.fc.weight"]
        moved[factor] = (end - start).norm().item()
    assert 0.05 < moved[0.1] / moved[1.0] < 0.2
