"""Margin softmax heads: features and labels -> logits s * cos, with a margin at the label.

`loss` gives the cross-entropy of those logits and keeps one matrix of (N, identities) for it; `forward` gives the
logits themselves.
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
        logits.scatter_(1, labels.unsqueeze(1), self._at_label(features, weight, labels).unsqueeze(1))
        return logits.mul_(self.scale)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (N, 512), labels (N,) int64 -> mean cross-entropy of the logits, a scalar."""
        features, weight = F.normalize(features), F.normalize(self.weight)
        at_label = self._at_label(features, weight, labels)  # (N,)
        return _ScaledCrossEntropy.apply(features, weight, at_label, labels, self.scale)

    def _at_label(self, features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:  # (N,)
        # Computed apart: autograd would keep the logits for gather's backward and forbid writing into them.
        return self.with_margin((features * weight[labels]).sum(dim=1))

    def with_margin(self, cosine: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no margin: use CosFace or ArcFace")

    def extra_repr(self) -> str:
        return f"scale={self.scale}, margin={self.margin}"


class MarginLoss(nn.Module):
    """A head whose forward pass gives the loss: what DistributedDataParallel can call."""

    def __init__(self, head: MarginHead):
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.head.loss(features, labels)


class _ScaledCrossEntropy(torch.autograd.Function):
    """mean_n [logsumexp_j l_nj - l_ny] with l = s * cos, and l_ny = s * at_label, by one matrix of (N, identities).

    The gradient of l is softmax(l) less 1 at the label; both the logits and, in their place, this gradient stand in the
    same memory. Plain autograd keeps the logits, their softmax and their gradient side by side.
    """

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, at_label: Tensor, labels: Tensor, scale: float) -> Tensor:
        logits = F.linear(features, weight)  # (N, identities)
        logits.scatter_(1, labels.unsqueeze(1), at_label.unsqueeze(1)).mul_(scale)
        logits.sub_(logits.amax(dim=1, keepdim=True))
        target = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # (N,), before exp takes the logits' place
        total = logits.exp_().sum(dim=1)  # (N,)
        loss = (total.log() - target).mean()
        gradient = logits.div_(total.unsqueeze(1))  # softmax
        at_label_gradient = gradient.gather(1, labels.unsqueeze(1)).squeeze(1) - 1
        gradient.scatter_(1, labels.unsqueeze(1), 0)  # what flows there flows through at_label
        ctx.save_for_backward(features, weight, gradient, at_label_gradient)
        ctx.factor = scale / len(labels)
        return loss

    @staticmethod
    def backward(ctx, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, gradient, at_label_gradient = ctx.saved_tensors
        factor = gradient_of_loss * ctx.factor
        # The factor goes onto the small sides, not through the whole matrix once more.
        of_features = (gradient @ weight) * factor if ctx.needs_input_grad[0] else None
        of_weight = gradient.t() @ (features * factor) if ctx.needs_input_grad[1] else None
        return of_features, of_weight, at_label_gradient * factor, None, None


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
