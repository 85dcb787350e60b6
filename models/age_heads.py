"""A second age head: a probability for each year of life, and the expected age.

The published head predicts eight groups; labelling images with ages needs years.
Source: Rothe, Timofte, Van Gool, "DEX: Deep EXpectation of apparent age from a single image", ICCV workshops 2015.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta import AGE_GROUP_UPPER_EDGES, EMBEDDING_SIZE

LAST_YEAR = 100  # one class per year, 0..100 as in DEX; older ages count as 100
NUM_YEARS = LAST_YEAR + 1
# How many of the classes each age group holds: 13 (0-12), 6 (13-18), ..., 35 (66-100).
_EDGES = (-1, *AGE_GROUP_UPPER_EDGES, LAST_YEAR)
YEARS_OF_GROUPS = tuple(upper - lower for lower, upper in zip(_EDGES, _EDGES[1:], strict=False))
# Source: Pan, Han, Shan, Chen, "Mean-Variance Loss for Deep Age Estimation from a Face", CVPR 2018.
MEAN_LOSS_WEIGHT = 0.2
VARIANCE_LOSS_WEIGHT = 0.05


class ExpectedAgeHead(nn.Linear):
    """Age features (N, 512) before L2 -> (N, 101), one logit per year; its state_dict has `weight` and `bias`."""

    def __init__(self):
        super().__init__(EMBEDDING_SIZE, NUM_YEARS)

    def reset_parameters(self) -> None:
        """Like every linear layer of the published model."""
        nn.init.normal_(self.weight, 0, 0.01)
        nn.init.zeros_(self.bias)


class YearLosses(NamedTuple):
    """Means over the batch, scalars; `total` is what to minimise."""

    total: Tensor
    cross_entropy: Tensor
    mean: Tensor  # half the squared error of the expected age, years^2
    variance: Tensor  # of the predicted distribution, years^2


def year_probabilities(logits: Tensor) -> Tensor:
    """(N, 101) -> (N, 101), float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)


def expected_age(logits: Tensor) -> Tensor:
    """(N, 101) logits -> (N,) years, the sum over y of p(y) y, as in DEX."""
    return _mean(year_probabilities(logits))


def age_group_probabilities_from_years(logits: Tensor) -> Tensor:
    """(N, 101) logits -> (N, 8): the summed probabilities of the years of each age group."""
    parts = year_probabilities(logits).split(YEARS_OF_GROUPS, dim=1)
    return torch.stack([part.sum(dim=1) for part in parts], dim=1)


def year_losses(logits: Tensor, ages: Tensor, mean_weight: float = 0.0, variance_weight: float = 0.0) -> YearLosses:
    """Cross-entropy on years, plus the mean-variance loss with these weights; published: 0.2 and 0.05.

    `ages` (N,) are whole years from 0; those above 100 count as 100. Source: Pan et al., CVPR 2018.
    """
    years = ages.long().clamp(max=LAST_YEAR)  # not clamped below: an unknown age, -1, has to fail
    probabilities = year_probabilities(logits)  # (N, 101)
    cross_entropy = F.cross_entropy(logits.to(probabilities.dtype), years)
    expected = _mean(probabilities)  # (N,)
    mean = ((expected - years) ** 2).mean() / 2
    distances = _years_like(probabilities) - expected[:, None]  # (N, 101)
    variance = (probabilities * distances**2).sum(dim=1).mean()
    return YearLosses(cross_entropy + mean_weight * mean + variance_weight * variance, cross_entropy, mean, variance)


def _mean(probabilities: Tensor) -> Tensor:  # (N, 101) -> (N,)
    # Not a matrix product, which would round to bfloat16 or TF32: half a year at 100.
    return (probabilities * _years_like(probabilities)).sum(dim=1)


def _years_like(probabilities: Tensor) -> Tensor:  # (101,)
    return torch.arange(NUM_YEARS, dtype=probabilities.dtype, device=probabilities.device)


def group_errors(scores: Tensor, age_groups: Tensor) -> dict[str, Tensor]:
    """Error and accuracy of the most probable group, for the log: scores (N, 8), age_groups (N,)."""
    error = (scores.argmax(1) - age_groups).abs().float()
    return {"age_group_mae": error.mean(), "age_group_accuracy_percent": 100 * (error == 0).float().mean()}


def year_errors(years: Tensor, ages: Tensor, age_groups: Tensor) -> dict[str, Tensor]:
    """Error of the expected age in years, and of the groups that the years add up to: logits (N, 101)."""
    of_groups = group_errors(age_group_probabilities_from_years(years), age_groups)
    mae = (expected_age(years) - ages).abs().mean()
    return {"age_mae_years": mae} | {f"by_years_{name}": value for name, value in of_groups.items()}
