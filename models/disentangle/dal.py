"""Age decorrelated from identity: two directions find the largest correlation, the encoder lowers it.

Source: Wang, Gong, Li, Liu, "Decorrelated Adversarial Learning for Age-Invariant Face Recognition", CVPR 2019.
"""

import torch
from torch import Tensor, nn

from meta import EMBEDDING_SIZE
from models.disentangle.base import Critic, register_critic


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """|correlation| of two lists of numbers (N,), a scalar from 0 to 1."""
    a, b = a - a.mean(), b - b.mean()
    variances = (a**2).mean() * (b**2).mean()
    return (a * b).mean().abs() / (variances + 1e-12).sqrt()  # 1e-12: features may all be equal


@register_critic("dal")
class CanonicalCorrelation(Critic):
    """The canonical mapping of DAL: one direction for each side, along which a batch correlates most.

    The paper splits the features of one encoder by a residual layer into age and identity, and trains all three
    together. Here age features are those of the frozen age branch, so only the identity encoder can give way, and
    nothing teaches it age. The largest correlation of one batch alone would mean little, since with fewer pictures
    than features it is always 1: the directions move a little with each batch and so go by many.
    """

    summary = "the canonical correlation with the age features"
    objective_name = "canonical_correlation"
    penalty_name = "canonical_correlation_after"
    needs_age_features = True
    updates = 5
    default_weight = 0.1

    def __init__(self, size: int = EMBEDDING_SIZE):
        super().__init__()
        self.of_age = nn.Parameter(torch.randn(size) / size**0.5)
        self.of_identity = nn.Parameter(torch.randn(size) / size**0.5)

    def forward(self, age: Tensor, identity: Tensor, age_groups: Tensor | None) -> Tensor:
        """age, identity (N, 512) -> correlation along the directions, which they raise; a scalar."""
        return correlation(age @ self.of_age, identity @ self.of_identity)

    def penalty(self, age: Tensor, identity: Tensor, age_groups: Tensor | None, permutation: Tensor | None) -> Tensor:
        """The same along directions held fixed, which the identity encoder lowers."""
        return correlation(age @ self.of_age.detach(), identity @ self.of_identity.detach())
