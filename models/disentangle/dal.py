"""DAL, decorrelated adversarial learning: two directions find the largest correlation, the encoder lowers it.

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
    """The canonical mapping of DAL: one direction per side, along which a batch correlates most.

    The paper splits the features of one encoder by a residual layer into age and identity and trains all three jointly.
    Here the age features come from the frozen age branch, so only the identity encoder adapts, and it has no age loss.
    The largest correlation of a single batch means little, since it is 1 whenever there are fewer images than features:
    the directions are updated a little with every batch, so they follow many batches.
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
        """age, identity (N, 512) -> correlation along the directions, which are trained to raise it; a scalar."""
        return correlation(age @ self.of_age, identity @ self.of_identity)

    def penalty(self, age: Tensor, identity: Tensor, age_groups: Tensor | None, permutation: Tensor | None) -> Tensor:
        """The same with the directions held fixed; the identity encoder lowers it."""
        return correlation(age @ self.of_age.detach(), identity @ self.of_identity.detach())
