"""--accumulation: parts with their gradients added up are one step; statistics, memory, loss scale, bad divisors."""

import copy
import dataclasses

import pytest
import torch
from scripts import TINY, load_script
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from meta import UserError
from models.disentangle.registry import CRITICS
from models.iefp import IEFP
from models.iresnet import set_batchnorm_momentum
from training.optim import check_accumulation, momentum_of_passes
from utils.distributed import DistInfo

CPU = torch.device("cpu")
ALONE = DistInfo(0, 1, CPU)
NUM_IDENTITIES, BATCH_SIZE, RATE = 5, 8, 0.01
train = load_script("train")


def settings(**changed):
    return train.TrainConfig(**({"learning_rate": RATE, "precision": "fp32", "batch_size": BATCH_SIZE} | changed))


def make_model(**changed) -> IEFP:
    torch.manual_seed(2)
    return IEFP(TINY, 1, NUM_IDENTITIES, margin_value=None, **changed).double()


def make_stage(model=None, **changed):
    config = settings(**changed)
    critic = config.disentangle if config.disentangle in CRITICS else None
    stage = train.IdentityStage(
        config, make_model(critic=critic, margin=config.margin) if model is None else model, ALONE
    )
    stage.model.train()
    return stage


def make_batch(step: int = 0, size: int = BATCH_SIZE):
    draw = torch.Generator().manual_seed(step)
    images = torch.rand(size, 3, 112, 112, generator=draw, dtype=torch.float64) * 2 - 1
    identities = torch.randint(0, NUM_IDENTITIES, (size,), generator=draw)
    groups = torch.randint(0, 8, (size,), generator=draw)
    return train.Batch(images, identities, groups, ages=12.0 * groups, step=step)


def with_negatives(batch, num_parts: int):
    """The batch with a permutation of each part."""
    of_part = torch.roll(torch.arange(len(batch.images) // num_parts), 1)
    return dataclasses.replace(batch, permutation=of_part.repeat(num_parts))


def same_state(a: torch.nn.Module, b: torch.nn.Module, **tolerance) -> None:
    states = a.state_dict(), b.state_dict()
    for key, value in states[0].items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(states[1][key], value, **tolerance, msg=key)


# ------------------------------------------------------------------------------------------- what a step computes


def plain_step(model: IEFP, optimisers: dict, batch, num_parts: int) -> dict[str, float]:
    """All parts in one graph and one backward pass, CLUB as it was before; then CLUB by the whole batch."""
    recognition, information, features = [], [], []
    size = len(batch.images) // num_parts
    for number in range(num_parts):
        own = slice(number * size, (number + 1) * size)
        with torch.no_grad():
            age = model.age_features(batch.images[own])
        identity = model.identity_features(batch.images[own])
        recognition.append(F.cross_entropy(model.margin_fc(identity, batch.identities[own]), batch.identities[own]))
        information.append(model.clubmi.mutual_information(age, identity, batch.permutation[own]))
        features.append((age, identity.detach()))
    loss = sum(recognition) / num_parts + 0.001 * sum(information) / num_parts
    optimisers["identity"].zero_grad()
    loss.backward()
    clip_grad_norm_(optimisers["identity"].param_groups[0]["params"], 5.0)
    optimisers["identity"].step()
    age, identity = (torch.cat(each) for each in zip(*features, strict=True))
    objective = model.clubmi.log_likelihood(age, identity)
    optimisers["club"].zero_grad()
    (-0.1 * objective).backward()
    clip_grad_norm_(optimisers["club"].param_groups[0]["params"], 5.0)
    optimisers["club"].step()
    reply = {
        "face_recognition_loss": sum(recognition) / num_parts,
        "mutual_information": sum(information) / num_parts,
        "log_likelihood": objective,
        "age_loss": F.cross_entropy(model.age_logits(age), batch.age_groups),
    }
    return {name: value.item() for name, value in reply.items()}


def test_a_step_of_two_parts_is_the_plain_one_of_one_graph_and_returns_the_whole_batchs_losses():
    """In float64 to 1e-9, BatchNorm's buffers included; two steps, for the critic's lag shows in the second."""
    stage, model = make_stage(accumulation=2), make_model().freeze_age_branch().train()
    set_batchnorm_momentum(model.backbone_id, 1 - 0.81**0.5)
    set_batchnorm_momentum(model.clubmi, 1 - 0.9 ** (2 / 3))  # one pass to learn and two parts, in the place of one
    sgd = {"lr": RATE, "momentum": 0.9, "weight_decay": 1e-4}
    optimisers = {
        "identity": torch.optim.SGD([*model.backbone_id.parameters(), *model.margin_fc.parameters()], **sgd),
        "club": torch.optim.SGD(model.clubmi.parameters(), **sgd),
    }
    for step in range(2):
        batch = with_negatives(make_batch(step), 2)
        losses = stage.step(batch)
        for name, value in plain_step(model, optimisers, batch, 2).items():
            assert losses[name].item() == pytest.approx(value, rel=1e-9), (step, name)
    same_state(model, stage.model, rtol=1e-9, atol=1e-11)


def test_without_what_sees_a_batch_as_a_whole_four_parts_are_one_step():
    """--disentangle none and BatchNorm in eval mode: the same update in float64 to 1e-9."""
    stages = [make_stage(accumulation=parts, disentangle="none") for parts in (1, 4)]
    before = copy.deepcopy(stages[0].model)
    for stage in stages:
        stage.model.eval()
        reply = [stage.step(make_batch(step)) for step in range(2)]
        stage.reply = torch.stack([value for losses in reply for value in losses.values()])
    same_state(stages[0].model, stages[1].model, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stages[0].reply, stages[1].reply, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(before.backbone_id.conv1.weight, stages[0].model.backbone_id.conv1.weight, rtol=1e-6)


def test_the_age_branch_takes_parts_too():
    stages = []
    for parts in (1, 4):
        torch.manual_seed(2)
        model = IEFP(TINY, 1, None, year_head=True).double()
        config = settings(stage="age", age_head="years", accumulation=parts, mean_loss_weight=0.2)
        stage = train.AgeStage(config, model, ALONE)
        stage.model.eval()
        stage.reply = stage.step(make_batch())
        stages.append(stage)
    same_state(stages[0].model, stages[1].model, rtol=1e-9, atol=1e-12)
    assert stages[0].reply.keys() == stages[1].reply.keys() == train.AgeStage.logged_metrics(config).keys()
    for name, value in stages[0].reply.items():
        torch.testing.assert_close(stages[1].reply[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("method", ["none", *(name for name, critic in CRITICS.items() if critic.updates)])
def test_every_method_learns_in_parts_and_returns_the_same_losses(method):
    stages = [make_stage(accumulation=parts, disentangle=method) for parts in (1, 2)]
    reply = [stage.step(make_batch()) for stage in stages]
    assert reply[0].keys() == reply[1].keys() and all(value.isfinite() for value in reply[1].values())
    assert reply[0].keys() == stages[0].logged_metrics(stages[0].config).keys()  # what --best-metric may name
    if stages[1].critic is not None:
        learned = zip(stages[1].critic.parameters(), make_stage(disentangle=method).critic.parameters(), strict=True)
        assert any(not torch.equal(after, before) for after, before in learned)


# ---------------------------------------------------------------------------------------------------- statistics


def test_running_statistics_move_as_far_in_a_step_of_two_equal_parts_as_in_one():
    """A batch whose halves are alike has the means of its halves; variances differ by the count in n / (n - 1)."""
    half = make_batch(size=4)
    twice = {name: torch.cat([value, value]) for name, value in vars(half).items() if torch.is_tensor(value)}
    stages = [make_stage(accumulation=parts, margin="adaface") for parts in (1, 2)]
    for stage in stages:
        stage.step(train.Batch(**twice))
    means = [{key: value for key, value in stage.model.state_dict().items() if key.endswith("mean")}
             for stage in stages]  # fmt: skip
    untouched = make_model(margin="adaface").state_dict()
    moved = [key for key in means[0] if not torch.equal(means[0][key], untouched[key])]
    assert len(moved) > 20 and "margin_fc.length_mean" in moved
    for key in moved:
        if not key.startswith("clubmi."):  # whose own weights move between its passes
            torch.testing.assert_close(means[1][key], means[0][key], rtol=1e-6, atol=1e-9, msg=key)


def test_one_pass_keeps_the_momentum_to_the_bit():
    assert momentum_of_passes(0.19, 1, 1) == 0.19
    assert 1 - (1 - momentum_of_passes(0.19, 1, 5)) ** 5 == pytest.approx(0.19)


# -------------------------------------------------------------------------------------------------------- memory


def peak_bytes_of_graph(stage, batch) -> int:
    """The most bytes that autograd kept at one time for a backward pass; what several nodes keep counts once each."""
    held = {"now": 0, "peak": 0}

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            held["now"] += self.size
            held["peak"] = max(held.values())

        def __del__(self):
            held["now"] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        stage.step(batch)
    assert held["now"] == 0
    return held["peak"]


def test_the_graph_of_one_part_is_there_at_a_time():
    """Weights are in every graph, so a quarter of the images takes somewhat more than a quarter of the bytes."""
    whole, quarter = (peak_bytes_of_graph(make_stage(accumulation=parts), make_batch()) for parts in (1, 4))
    alone = peak_bytes_of_graph(make_stage(), make_batch(size=2))
    assert quarter < 0.4 * whole
    assert quarter < 1.1 * alone


# ----------------------------------------------------------------------------------------------------- loss scale


def test_a_loss_scale_changes_nothing_but_where_it_overflows_the_whole_step_is_left_out():
    stages = [make_stage(accumulation=2) for _ in range(3)]
    for stage, scale in zip(stages[1:], (2.0**10, float("inf")), strict=True):
        stage.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=scale)
    for stage in stages:
        stage.step(with_negatives(make_batch(), 2))
    same_state(stages[0].model, stages[1].model, rtol=1e-9, atol=1e-11)
    unmoved = dict(make_model().backbone_id.named_parameters())
    for name, parameter in stages[2].model.backbone_id.named_parameters():
        assert torch.equal(parameter, unmoved[name]), name


# ---------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(("batch_size", "parts", "processes"), [(12, 5, 1), (12, 4, 2), (12, 12, 1), (12, 24, 1)])
def test_parts_that_are_not_equal_or_too_small_are_one_sentence(batch_size, parts, processes):
    with pytest.raises(UserError, match=f"--accumulation {parts} can't cut the {12 // processes} images"):
        check_accumulation(batch_size, parts, DistInfo(0, processes, CPU))
    for parts, processes in ((1, 1), (6, 1), (3, 2)):
        check_accumulation(12, parts, DistInfo(0, processes, CPU))
