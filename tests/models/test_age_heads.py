"""models/age_heads.py: the second age head, held to plain loops."""

import math
import random

import pytest
import torch

from meta import AGE_GROUP_UPPER_EDGES, NUM_AGE_GROUPS, age_group
from models.age_heads import (
    MEAN_LOSS_WEIGHT,
    NUM_YEARS,
    VARIANCE_LOSS_WEIGHT,
    YEARS_OF_GROUPS,
    ExpectedAgeHead,
    age_group_probabilities_from_years,
    expected_age,
    year_losses,
    year_probabilities,
)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return torch.randn(6, NUM_YEARS, generator=torch.manual_seed(1), dtype=torch.float64) * 3


def plain_probabilities(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


def plain_losses(logits: torch.Tensor, ages: list[int]) -> tuple[float, float, float]:
    """Cross-entropy, mean loss and variance loss, picture by picture and year by year."""
    cross_entropy = mean_loss = variance_loss = 0.0
    for row, age in zip(logits.tolist(), ages, strict=True):
        age = min(age, 100)
        p = plain_probabilities(row)
        expected = sum(year * p[year] for year in range(101))
        cross_entropy -= math.log(p[age]) / len(ages)
        mean_loss += (expected - age) ** 2 / 2 / len(ages)
        variance_loss += sum(p[year] * (year - expected) ** 2 for year in range(101)) / len(ages)
    return cross_entropy, mean_loss, variance_loss


def test_expected_age_is_the_mean_of_the_years_by_their_probabilities(logits):
    expected = [sum(year * p for year, p in enumerate(plain_probabilities(row))) for row in logits.tolist()]
    assert expected_age(logits).tolist() == pytest.approx(expected, rel=1e-12)
    assert expected_age(torch.zeros(2, NUM_YEARS)).tolist() == pytest.approx([50, 50])
    assert max(expected) - min(expected) > 5


@pytest.mark.parametrize("year", [0, 1, 12, 13, 65, 66, 99, 100])
def test_a_head_that_is_sure_of_a_year_gives_this_year_and_its_group(year):
    sure = torch.full((1, NUM_YEARS), -200.0)
    sure[0, year] = 200.0
    assert expected_age(sure).item() == year
    groups = age_group_probabilities_from_years(sure)[0].tolist()
    assert groups == [float(group == age_group(year)) for group in range(NUM_AGE_GROUPS)]


def test_group_probabilities_are_sums_over_the_years_of_each_group(logits):
    expected = [[0.0] * NUM_AGE_GROUPS for _ in logits]
    for row, sums in zip(logits.tolist(), expected, strict=True):
        for year, p in enumerate(plain_probabilities(row)):
            sums[age_group(year)] += p
    groups = age_group_probabilities_from_years(logits)
    assert groups.shape == (6, NUM_AGE_GROUPS)
    torch.testing.assert_close(groups, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(groups.sum(1), torch.ones(6, dtype=torch.float64))
    assert len(YEARS_OF_GROUPS) == len(AGE_GROUP_UPPER_EDGES) + 1 and sum(YEARS_OF_GROUPS) == NUM_YEARS


def test_losses_are_those_of_a_plain_loop_and_the_total_their_weighted_sum(logits):
    ages = [0, 12, 37, 66, 100, 99]
    plain = plain_losses(logits, ages)
    losses = year_losses(logits, torch.tensor(ages), MEAN_LOSS_WEIGHT, VARIANCE_LOSS_WEIGHT)
    assert [value.item() for value in losses[1:]] == pytest.approx(plain, rel=1e-12)
    assert losses.total.item() == pytest.approx(plain[0] + 0.2 * plain[1] + 0.05 * plain[2], rel=1e-12)
    assert year_losses(logits, torch.tensor(ages)).total.item() == losses.cross_entropy.item()  # without weights


def test_ages_above_100_count_as_100_and_unknown_ages_are_refused(logits):
    old = [100, 101, 120, 100, 115, 100]
    as_int16 = torch.tensor(old, dtype=torch.int16)
    assert [v.item() for v in year_losses(logits, as_int16)] == [
        v.item() for v in year_losses(logits, torch.full((6,), 100))
    ]
    with pytest.raises(IndexError):
        year_losses(logits, torch.tensor([-1, 1, 1, 1, 1, 1]))


def test_gradients_of_the_total_are_those_of_small_differences(logits):
    ages = torch.tensor([3])
    assert torch.autograd.gradcheck(
        lambda x: year_losses(x, ages, 0.2, 0.05).total, logits[:1].clone().requires_grad_(), rtol=1e-4
    )


def test_half_precision_logits_give_float32_ages_close_to_exact_ones(logits):
    rough = logits.to(torch.bfloat16)
    ages = expected_age(rough)
    assert ages.dtype == year_probabilities(rough).dtype == torch.float32
    assert year_losses(rough, torch.zeros(6, dtype=torch.int64), 0.2, 0.05).total.dtype == torch.float32
    torch.testing.assert_close(ages.double(), expected_age(rough.double()), rtol=1e-5, atol=0)


def test_autocast_does_not_round_the_years():
    certain = torch.full((101, NUM_YEARS), -100.0).fill_diagonal_(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ages = expected_age(certain)
    assert ages.tolist() == list(range(101))  # sums in bfloat16 would give steps of half a year at best


def test_the_head_has_a_weight_and_a_bias_and_starts_as_published():
    torch.manual_seed(3)
    head = ExpectedAgeHead()
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "weight": (101, 512),
        "bias": (101,),
    }
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not head.bias.any()
    features = torch.randn(4, 512)
    torch.testing.assert_close(head(features), features @ head.weight.T + head.bias)
    # Nothing is known yet: the middle of all years, give or take what small weights add.
    assert expected_age(head(features)).tolist() == pytest.approx([50] * 4, abs=3)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.2, 0.05)])
def test_the_head_learns_ages_from_features_that_hold_them(weights):
    torch.manual_seed(0)
    draw = random.Random(0)
    ages = torch.tensor([draw.randrange(0, 90) for _ in range(256)])
    directions = torch.randn(101, 512) / 4  # each year looks like itself, and a little like its neighbours
    features = directions[ages] + directions[(ages + 1).clamp(max=100)] / 2
    head = ExpectedAgeHead()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        year_losses(head(features), ages, *weights).total.backward()
        optimiser.step()
    error = (expected_age(head(features)) - ages).abs().mean().item()
    assert error < 2  # years; the best single guess for all is 20 off
