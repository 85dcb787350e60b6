"""Two processes on the CPU (gloo): the same losses and parameters as one with the same whole batch, the same report."""

import json
from pathlib import Path

import pytest
import torch
from golden_weights import fill
from processes import in_processes, run_program
from scripts import load_script

from models.iefp import IEFP
from training.partial_fc import own_identities, whole_weight
from utils.distributed import DistInfo, average, init_distributed, leave, shutdown_distributed

STEPS, WHOLE_BATCH, IDENTITIES = 2, 8, 5
LEAST_NORM = 0.5  # at which those runs clip
ADAFACE_START = {"length_mean": 20.0, "length_deviation": 5.0}  # so that pictures differ in quality


def take_steps(process: DistInfo, **settings) -> dict:
    """Losses of the steps and all tensors after them, in float64; a head in shares is put together.

    The batches do not depend on the number of processes, which take their shares of them.
    """
    train = load_script("train")
    config = train.TrainConfig(learning_rate=0.01, clip_norm=LEAST_NORM, **settings)
    own = own_identities(IDENTITIES, process) if config.sharded_classes else None
    of_head = {"margin": config.margin, "margin_value": None}
    model = IEFP("iresnet18_quarter", 1, IDENTITIES, **of_head, own_identities=own)
    whole = fill(IEFP("iresnet18_quarter", 1, IDENTITIES, **of_head)).state_dict()
    if config.sharded_classes:
        whole["margin_fc.weight"] = whole["margin_fc.weight"][model.margin_fc.own.start : model.margin_fc.own.stop]
    model.load_state_dict(whole)
    if config.margin == "adaface":
        for name, value in ADAFACE_START.items():
            model.margin_fc.get_buffer(name).fill_(value)
    stage = train.IdentityStage(config, model.double(), process)
    stage.model.train()
    share = WHOLE_BATCH // process.world_size
    part = slice(process.rank * share, (process.rank + 1) * share)
    # CLUB's negatives are drawn within a process's share, so the whole permutation is one of two halves.
    permutation = torch.tensor([3, 0, 1, 2, 7, 4, 5, 6])[:share]
    losses = []
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        images = torch.rand(WHOLE_BATCH, 3, 112, 112, generator=draw, dtype=torch.float64) * 2 - 1
        identities = torch.randint(0, IDENTITIES, (WHOLE_BATCH,), generator=draw)
        groups = torch.randint(0, 8, (WHOLE_BATCH,), generator=draw)
        out = stage.step(train.Batch(images[part], identities[part], groups[part], permutation=permutation, step=step))
        losses.append(average(torch.stack([value.double() for value in out.values()]), process))
    state = dict(stage.model.state_dict())
    if config.sharded_classes:
        state["margin_fc.weight"] = whole_weight(model.margin_fc.weight, IDENTITIES, process)
    return {"losses": torch.stack(losses), "state": state}


def take_steps_as_one_of_two(path: Path, settings: dict) -> None:
    process = init_distributed("cpu")
    reply = take_steps(process, **settings)
    if process.is_first:
        torch.save(reply, path)
    shutdown_distributed(process)
    leave(0)


@pytest.fixture(scope="module")
def one() -> dict:
    """The steps in one process."""
    return take_steps(DistInfo(0, 1, torch.device("cpu")))


@pytest.fixture
def two(tmp_path):
    def run(**settings) -> dict:
        ended = in_processes(2, take_steps_as_one_of_two, tmp_path / "two.pth", settings)
        assert ended.statuses == [0, 0], ended.err[-3000:]
        return torch.load(tmp_path / "two.pth", weights_only=True)

    return run


@pytest.mark.parametrize("settings", [{}, {"sharded_classes": True}], ids=["whole head", "a head in shares"])
def test_two_processes_with_batchnorm_over_the_whole_batch_train_as_one(one, two, settings):
    """Losses, gradient norms (clipping is at work), all weights and buffers, in float64 to 1e-9 relative."""
    assert (one["losses"][:, -1] > LEAST_NORM).all()
    reply = two(sync_batchnorm=True, **settings)
    torch.testing.assert_close(reply["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    assert one["state"].keys() == reply["state"].keys()
    for key, value in one["state"].items():
        torch.testing.assert_close(reply["state"][key], value, rtol=1e-9, atol=1e-11, msg=key)


def test_two_processes_with_adaface_train_as_one(two):
    """7a: AdaFace's statistics, so its margins, go by the whole batch (shares of a head: test_sharded_margin.py)."""
    one, reply = (
        take_steps(DistInfo(0, 1, torch.device("cpu")), margin="adaface"),
        two(margin="adaface", sync_batchnorm=True),
    )
    torch.testing.assert_close(reply["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    for name, start in ADAFACE_START.items():
        value = one["state"][f"margin_fc.{name}"]
        torch.testing.assert_close(reply["state"][f"margin_fc.{name}"], value, rtol=1e-9, atol=0)
        assert value != start


def test_without_it_each_process_has_statistics_of_its_own_share(one, two):
    assert not torch.allclose(two()["losses"], one["losses"], rtol=1e-3)


def test_two_processes_report_what_one_reports(tiny_faces, weights, tmp_path):
    flags = ["--weights", weights, "--face-dataset", tiny_faces, "--workers", 0, "--device", "cpu",
             "--benchmarks", "fgnet", "calfw"]  # fmt: skip
    for processes, folder in ((1, "one"), (2, "two"), (2, "kept")):  # the last run takes what the second one kept
        kept = ["--cache-folder", tmp_path / f"cache{processes}"]
        reply = run_program("test", processes, *flags, *kept, "--output", tmp_path / folder).out
        assert reply.count("| FG-NET") == 4  # reported once
    reports = [json.loads((tmp_path / name / "results.json").read_text())["models"] for name in ("one", "two", "kept")]
    one, two, kept = map(leaves, reports)
    assert two == kept and one.keys() == two.keys()
    for place, value in one.items():  # a network's last bits depend on how many pictures share a batch
        assert two[place] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), place


def leaves(tree: object, place: tuple = ()) -> dict[tuple, object]:
    """Every value of nested lists and dicts by the way to it."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if parts is None:
        return {place: tree}
    return {way: value for key, part in parts for way, value in leaves(part, (*place, key)).items()}
