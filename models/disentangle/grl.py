"""Gradient reversal: a classifier predicts the age group from the embedding, the encoder learns to prevent it.

Source: Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, section 3; with age in the
place of the domain: Huang et al., "When Age-Invariant Face Recognition Meets Face Age Synthesis", CVPR 2021.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta import EMBEDDING_SIZE, NUM_AGE_GROUPS
from models.disentangle.base import Critic, register_critic


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """x itself; its gradient is negated (eq. 9 and 10; lambda is the weight of the loss)."""
    return _Reverse.apply(x)


@register_critic("grl")
class ReversedAgeClassifier(Critic):
    """Two layers that predict the age group from an embedding; the encoder gets their gradient reversed.

    The papers update both from one backward pass; here the classifier is updated first and then held fixed, like CLUB.
    It sees only the direction, by which faces are compared. Images of unknown age (-1) are ignored.
    """

    summary = "gradient reversal through a classifier of age groups"
    objective_name = "age_log_likelihood"
    penalty_name = "age_classifier_loss"
    higher_penalty_is_better = True  # the worse age is found, the better
    needs_age_groups = True
    objective_weight = 0.1
    default_weight = 0.1

    def __init__(self, size: int = EMBEDDING_SIZE):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, NUM_AGE_GROUPS))

    def forward(self, age: Tensor | None, identity: Tensor, age_groups: Tensor) -> Tensor:
        """identity (N, 512), age_groups (N,) -> mean log-likelihood of the age groups; the classifier raises it."""
        return -_cross_entropy(self.layers(_scaled_direction(identity)), age_groups)

    def penalty(self, age: Tensor | None, identity: Tensor, age_groups: Tensor, permutation: Tensor | None) -> Tensor:
        """The classifier's cross-entropy, a scalar; its gradient reaches `identity` only, reversed."""
        fixed = {name: parameter.detach() for name, parameter in self.layers.named_parameters()}
        inputs = _scaled_direction(reverse_gradient(identity))
        return _cross_entropy(torch.func.functional_call(self.layers, fixed, (inputs,)), age_groups)


def _scaled_direction(features: Tensor) -> Tensor:  # (N, 512), coordinates of about 1
    return F.normalize(features) * features.shape[1] ** 0.5


def _cross_entropy(logits: Tensor, age_groups: Tensor) -> Tensor:
    total = F.cross_entropy(logits, age_groups, ignore_index=-1, reduction="sum")
    return total / (age_groups >= 0).sum().clamp(min=1)  # 0, not nan, where no age is known
