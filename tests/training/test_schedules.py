"""training/schedules.py: the curves are the plain ones, every group gets its rate, and what does nothing is refused."""

import math

import pytest
import torch
from scripts import TINY, load_script

from meta import UserError
from models.iefp import IEFP
from training.optim import load_optimiser, make_optimiser
from training.schedules import check_schedule, learning_rate_at, set_learning_rate
from utils.distributed import DistInfo

TrainConfig = load_script("train").TrainConfig
STEPS_AN_EPOCH, EPOCHS = 4, 25
NUM_STEPS = STEPS_AN_EPOCH * EPOCHS


def curve(**settings) -> list[float]:
    config = TrainConfig(**settings)
    return [learning_rate_at(config, step // STEPS_AN_EPOCH, step, NUM_STEPS) for step in range(NUM_STEPS)]


def by_torch(make, steps: int = NUM_STEPS, rate: float = 0.1) -> list[float]:
    """The curve of one of torch's own schedulers."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler, rates = make(optimiser), []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def test_the_default_is_the_published_schedule_to_the_bit():
    rates = {10: 0.1 * 0.1**0, 18: 0.1 * 0.1**1, 22: 0.1 * 0.1**2, 25: 0.1 * 0.1**3}
    assert curve() == [next(rate for end, rate in rates.items() if step < STEPS_AN_EPOCH * end)
                       for step in range(NUM_STEPS)]  # fmt: skip


@pytest.mark.parametrize("final", [0.0, 0.001])
def test_cosine_is_torchs(final):
    expected = by_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, NUM_STEPS, eta_min=final))
    assert curve(schedule="cosine", final_learning_rate=final) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_is_torchs_between_the_highest_and_the_final_rate(power):
    falling = by_torch(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, NUM_STEPS, power), rate=1.0)
    expected = [0.01 + (0.1 - 0.01) * share for share in falling]
    found = curve(schedule="polynomial", polynomial_power=power, final_learning_rate=0.01)
    assert found == pytest.approx(expected, rel=1e-9)


def test_constant_is_constant():
    assert curve(schedule="constant") == [0.1] * NUM_STEPS


def test_the_warmup_rises_on_a_straight_line_and_the_curve_begins_after_it():
    warmup = [0.1 * step / 9 for step in range(1, 9)]
    assert curve(schedule="constant", warmup_steps=8) == pytest.approx(warmup + [0.1] * (NUM_STEPS - 8))
    after = [0.05 * (1 + math.cos(math.pi * step / (NUM_STEPS - 8))) for step in range(NUM_STEPS - 8)]
    assert curve(schedule="cosine", warmup_steps=8) == pytest.approx(warmup + after)
    assert curve(warmup_steps=8)[:8] == pytest.approx(warmup) and curve(warmup_steps=8)[8:] == curve()[8:]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup_steps": NUM_STEPS}, f"--warmup-steps {NUM_STEPS} leaves nothing of a run of {NUM_STEPS} steps"),
        ({"schedule": "cosine", "final_learning_rate": 0.2}, "--final-learning-rate 0.2 is above --learning-rate 0.1"),
    ],
)
def test_a_schedule_that_can_not_be_followed_is_one_sentence(settings, words):
    with pytest.raises(UserError, match=words):
        check_schedule(TrainConfig(**settings), NUM_STEPS)
    check_schedule(TrainConfig(schedule="cosine", final_learning_rate=0.1, warmup_steps=NUM_STEPS - 1), NUM_STEPS)


# --------------------------------------------------------------------------------------------- groups of parameters


@pytest.mark.parametrize("stage", ["identity", "age"])
def test_only_the_encoder_less_its_purification_unit_has_the_lower_rate(stage):
    train = load_script("train")
    model = IEFP(TINY, 1, 5 if stage == "identity" else None, year_head=stage == "age")
    config = TrainConfig(stage=stage, backbone_learning_rate_factor=0.25)
    trained = train.STAGES[stage](config, model, DistInfo(0, 1, torch.device("cpu")))
    set_learning_rate(trained.optimisers.values(), 0.04)
    groups = [group for optimiser in trained.optimisers.values() for group in optimiser.param_groups]
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    encoder = "backbone_id." if stage == "identity" else "backbone_ae."
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (stage == "identity" or not name.startswith(("backbone_id.", "clubmi."))):
            is_lower = name.startswith(encoder) and ".spu." not in name
            assert rates[parameter] == (0.01 if is_lower else 0.04), name


def test_without_a_factor_there_is_one_group_as_there_always_was():
    encoder = IEFP(TINY, 1, None).backbone_id
    (group,) = make_optimiser(TrainConfig(), list(encoder.parameters()), encoder).param_groups
    assert "rate_factor" not in group


def test_what_an_optimiser_remembers_goes_into_other_groups_and_settings():
    """A checkpoint of a run without the factor goes on with it; momenta stay with their parameters."""
    encoder = IEFP(TINY, 1, None).backbone_id
    parameters = list(encoder.parameters())
    before = make_optimiser(TrainConfig(), parameters, encoder)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(number))
    before.step()
    config = TrainConfig(backbone_learning_rate_factor=0.1, momentum=0.5)
    after = make_optimiser(config, parameters, encoder)
    load_optimiser(after, before.state_dict())
    assert len(after.param_groups) == 2 and {group["momentum"] for group in after.param_groups} == {0.5}
    for parameter in parameters:
        assert torch.equal(after.state[parameter]["momentum_buffer"], before.state[parameter]["momentum_buffer"])
