"""Age in the length of the features, identity in their direction: their gradients are orthogonal.

Source: Wang et al., "Orthogonal Deep Features Decomposition for Age-Invariant Face Recognition" (OE-CNN), ECCV 2018.
"""

import torch
from torch import Tensor, nn

from models.disentangle.base import Critic, register_critic


@register_critic("orthogonal")
class AgeOfLength(Critic):
    """A linear regression of age on the length of the identity features; both the line and the encoder fit it.

    The gradient of the age loss is parallel to the features, that of a margin head is orthogonal to them: embeddings,
    which are directions, lose the age that the length explains. The paper takes the age in years; here it is the number
    of the age group, 0 to 7. Images of unknown age (-1) are ignored.
    """

    summary = "age goes into the length of the features"
    objective_name = "age_log_likelihood"
    penalty_name = "age_of_length_loss"
    higher_objective_is_better = True  # age in the length leaves the direction alone
    needs_age_groups = True
    objective_weight = 0.1
    default_weight = 0.01

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, age: Tensor | None, identity: Tensor, age_groups: Tensor) -> Tensor:
        """identity (N, 512), age_groups (N,) -> minus half the mean squared error; the line raises it."""
        return -_half_squared_error(self.slope, self.offset, identity, age_groups)

    def penalty(self, age: Tensor | None, identity: Tensor, age_groups: Tensor, permutation: Tensor | None) -> Tensor:
        """Half the mean squared error, in groups^2, with the line held fixed; the identity encoder lowers it."""
        return _half_squared_error(self.slope.detach(), self.offset.detach(), identity, age_groups)


def _half_squared_error(slope: Tensor, offset: Tensor, identity: Tensor, age_groups: Tensor) -> Tensor:
    lengths = identity.norm(dim=1) / identity.shape[1] ** 0.5  # (N,), 1 where coordinates are of size 1
    errors = (slope * lengths + offset - age_groups) * (age_groups >= 0)
    return (errors**2).sum() / 2 / (age_groups >= 0).sum().clamp(min=1)
