"""Two processes on the CPU (gloo): equal parameters, those and the losses of one with the whole batch, one report."""

import json
from pathlib import Path

import pytest
import torch
from golden_weights import fill
from processes import assert_equal_everywhere, in_processes, run_program
from scripts import SLIM, load_script

from models.iefp import IEFP
from training.partial_fc import own_identities, whole_weight
from utils.distributed import DistInfo, average, init_distributed, leave, shutdown_distributed

STEPS, WHOLE_BATCH, IDENTITIES = 2, 8, 5
LEAST_NORM = 0.5  # at which those runs clip
ADAFACE_START = {"length_mean": 20.0, "length_deviation": 5.0}  # so that pictures differ in quality
WAYS = {
    "whole head": {"sync_batchnorm": True},
    "a head in shares": {"sync_batchnorm": True, "sharded_classes": True},
    "adaface": {"sync_batchnorm": True, "margin": "adaface"},
    "parts and an average": {"sync_batchnorm": True, "accumulation": 2, "ema_decay": 0.5},
    "statistics of its own": {},
}


def rows_of(process: DistInfo, num_parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A process's rows of the whole batch, and its permutation of each part.

    One process takes part by part what two take together. CLUB's negatives are drawn within a process's part.
    """
    size = WHOLE_BATCH // 2 // num_parts  # of a part of one of two processes
    ranks = [process.rank] if process.world_size == 2 else [0, 1]
    rows = [torch.arange(size) + (rank * num_parts + part) * size for part in range(num_parts) for rank in ranks]
    shifted = torch.cat([torch.arange(size).roll(1) + place * size for place in range(len(ranks))])
    return torch.cat(rows), shifted.repeat(num_parts)


def take_steps(process: DistInfo, **settings) -> dict:
    """Losses of the steps and all tensors after them, in float64; a head in shares is put together.

    The batches do not depend on the number of processes, which take their shares of them.
    """
    train = load_script("train")
    config = train.TrainConfig(learning_rate=0.01, clip_norm=LEAST_NORM, **settings)
    held = own_identities(IDENTITIES, process) if config.sharded_classes else None
    of_head = {"margin": config.margin, "margin_value": None}
    model = IEFP(SLIM, 1, IDENTITIES, **of_head, own_identities=held)
    whole = fill(IEFP(SLIM, 1, IDENTITIES, **of_head)).state_dict()
    if config.sharded_classes:
        whole["margin_fc.weight"] = whole["margin_fc.weight"][model.margin_fc.own.start : model.margin_fc.own.stop]
    model.load_state_dict(whole)
    if config.margin == "adaface":
        for name, value in ADAFACE_START.items():
            model.margin_fc.get_buffer(name).fill_(value)
    stage = train.IdentityStage(config, model.double(), process)
    stage.model.train()
    own, permutation = rows_of(process, config.accumulation)
    losses, exchanged, forward_backward = [], [], stage.forward_backward

    def note(*given):
        exchanged.append(getattr(stage.encoder, "require_backward_grad_sync", None))
        return forward_backward(*given)

    stage.forward_backward = note
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        images = torch.rand(WHOLE_BATCH, 3, 112, 112, generator=draw, dtype=torch.float64) * 2 - 1
        identities = torch.randint(0, IDENTITIES, (WHOLE_BATCH,), generator=draw)
        groups = torch.randint(0, 8, (WHOLE_BATCH,), generator=draw)
        out = stage.step(train.Batch(images[own], identities[own], groups[own], permutation=permutation, step=step))
        if stage.ema is not None:
            stage.ema.update()
        losses.append(average(torch.stack([value.double() for value in out.values()]), process))
    state = dict(stage.model.state_dict())
    if stage.ema is not None:
        state |= {f"averaged.{key}": value for key, value in stage.ema.modules["backbone_id"].state_dict().items()}
    if process.world_size > 1:
        assert_equal_everywhere(value for key, value in state.items()
                                if "running" not in key and (held is None or key != "margin_fc.weight"))  # fmt: skip
    if held is not None:
        state["margin_fc.weight"] = whole_weight(model.margin_fc.weight, IDENTITIES, process)
    return {"losses": torch.stack(losses), "exchanged": exchanged, "state": state}


def take_steps_as_one_of_two(path: Path) -> None:
    process = init_distributed("cpu")
    reply = {name: take_steps(process, **settings) for name, settings in WAYS.items()}
    if process.is_first:
        torch.save(reply, path)
    shutdown_distributed(process)
    leave(0)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, dict]:
    """The steps in two processes, each of the ways."""
    path = tmp_path_factory.mktemp("two") / "two.pth"
    ended = in_processes(2, take_steps_as_one_of_two, path)
    assert ended.statuses == [0, 0], ended.err[-3000:]
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def one() -> dict:
    """The steps in one process."""
    return take_steps(DistInfo(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("way", ["whole head", "a head in shares", "adaface", "parts and an average"])
def test_two_processes_with_batchnorm_over_the_whole_batch_train_as_one(one, two, way):
    """Losses, gradient norms (clipping is at work), all weights and buffers, in float64 to 1e-9 relative.

    7a: AdaFace's statistics, so its margins, go by the whole batch. With accumulation, gradients travel once a step.
    """
    if way in ("adaface", "parts and an average"):
        one = take_steps(DistInfo(0, 1, torch.device("cpu")), **WAYS[way] | {"sync_batchnorm": False})
    assert (one["losses"][:, -1] > LEAST_NORM).all()
    torch.testing.assert_close(two[way]["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    assert one["state"].keys() == two[way]["state"].keys()
    for key, value in one["state"].items():
        atol = 0 if key.startswith("margin_fc.length") else 1e-11
        torch.testing.assert_close(two[way]["state"][key], value, rtol=1e-9, atol=atol, msg=key)
    if way == "adaface":
        assert all(one["state"][f"margin_fc.{name}"] != start for name, start in ADAFACE_START.items())
    if way == "parts and an average":
        assert two[way]["exchanged"] == [False, True] * STEPS and one["exchanged"] == [None] * 2 * STEPS


def test_without_it_each_process_has_statistics_of_its_own_share(one, two):
    assert not torch.allclose(two["statistics of its own"]["losses"], one["losses"], rtol=1e-3)


def test_two_processes_report_what_one_reports(run_main, tiny_faces, weights, tmp_path):
    """A picture at a time: a network's last bits depend on how many share a batch, and with two processes fewer do."""
    flags = ["--weights", weights, "--face-dataset", tiny_faces, "--workers", 0, "--device", "cpu",
             "--benchmarks", "fgnet", "--no-analysis", "--batch-size", 1]  # fmt: skip
    of_two = [*flags, "--cache-folder", tmp_path / "cache"]
    outs = [run_program("test", 2, *of_two, "--output", tmp_path / "two").out]
    for folder, given in (("kept", of_two), ("one", flags)):  # one process takes what two kept, or embeds itself
        outs.append(run_main("test", *given, "--output", tmp_path / folder).out)
    assert [out.count("| FG-NET") for out in outs] == [4] * 3  # reported once
    reports = [json.loads((tmp_path / name / "results.json").read_text())["models"] for name in ("one", "two", "kept")]
    one, two, kept = map(leaves, reports)
    assert two == kept and one.keys() == two.keys()
    for place, value in one.items():
        assert two[place] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), place


def leaves(tree: object, place: tuple = ()) -> dict[tuple, object]:
    """Every value of nested lists and dicts by the way to it."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if parts is None:
        return {place: tree}
    return {way: value for key, part in parts for way, value in leaves(part, (*place, key)).items()}
