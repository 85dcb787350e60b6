"""Margin softmax heads: features and labels -> logits s * cos, with a margin at the label.

The margin is written into the cosines in place: no one-hot matrix and no copy of (N, identities).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta import EMBEDDING_SIZE


class MarginHead(nn.Module):
    """Cosines between features and one weight vector an identity; a subclass says what the margin does."""

    default_margin: float

    def __init__(
        self, num_identities: int, scale: float = 64.0, margin: float | None = None, size: int = EMBEDDING_SIZE
    ):
        super().__init__()
        self.scale = scale
        self.margin = self.default_margin if margin is None else margin
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_identities, size)))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (N, 512), labels (N,) int64 -> logits (N, identities)."""
        features, weight = F.normalize(features), F.normalize(self.weight)
        logits = F.linear(features, weight)  # (N, identities)
        # Computed apart: autograd would keep the logits for gather's backward and forbid writing into them.
        at_label = (features * weight[labels]).sum(dim=1, keepdim=True)  # (N, 1)
        logits.scatter_(1, labels.unsqueeze(1), self.with_margin(at_label))
        return logits.mul_(self.scale)

    def with_margin(self, cosine: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no margin: use CosFace or ArcFace")

    def extra_repr(self) -> str:
        return f"scale={self.scale}, margin={self.margin}"


class CosFace(MarginHead):
    """cos(theta) - m. Source: Wang et al., "CosFace", CVPR 2018, eq. 4."""

    default_margin = 0.35

    def with_margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class ArcFace(MarginHead):
    """cos(theta + m), and cos(theta) - m sin(pi - m) where theta + m would pass pi.

    Source: Deng et al., "ArcFace", CVPR 2019, eq. 3.
    """

    default_margin = 0.5

    def with_margin(self, cosine: Tensor) -> Tensor:
        sine = (1 - cosine**2).clamp(min=1e-12).sqrt()  # not 0: the root has no gradient there
        shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(math.pi - self.margin)
        return torch.where(cosine > math.cos(math.pi - self.margin), shifted, beyond)


MARGINS = {"cosface": CosFace, "arcface": ArcFace}
