"""Margin softmax heads: features and labels -> logits s * cos, with a margin at the label.

`loss` returns the cross-entropy of those logits and holds one matrix of (N, identities) for it; `forward` returns the
logits themselves.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta import EMBEDDING_SIZE, UserError


class MarginHead(nn.Module):
    """Cosines between features and one weight vector per identity; a subclass defines the margin.

    `own` is the range of identities whose vectors this head holds if it is sharded (models.sharded_margin); None means
    all. Its weights start as those rows of a whole head would.
    """

    summary: ClassVar[str]
    """For the help of --margin, without a full stop."""
    default_margin: ClassVar[float | tuple[float, ...]]
    """A head with several values takes as many, in the order of this tuple."""
    rate: float | None = None
    """By which running statistics of the head move in a step, None where it keeps none."""

    def __init__(
        self,
        num_identities: int,
        scale: float = 64.0,
        margin: float | tuple[float, ...] | None = None,
        size: int = EMBEDDING_SIZE,
        own: range | None = None,
    ):
        super().__init__()
        self.scale = scale
        self.margin = self.default_margin if margin is None else margin
        self.num_identities, self.own = num_identities, range(num_identities) if own is None else own
        self.weight = nn.Parameter(_draw_weight(num_identities, size, self.own))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (N, 512), labels (N,) int64 -> logits (N, identities)."""
        quality = self.quality(features)
        features, weight = F.normalize(features), F.normalize(self.weight)
        logits = F.linear(features, weight)  # (N, identities)
        logits.scatter_(1, labels.unsqueeze(1), self._at_label(features, weight, labels, quality).unsqueeze(1))
        return logits.mul_(self.scale)

    def loss(self, features: Tensor, labels: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """features (N, 512), labels (N,) int64 -> mean cross-entropy of the logits, a scalar. `gather`: see quality."""
        quality = self.quality(features, gather)
        features, weight = F.normalize(features), F.normalize(self.weight)
        at_label = self._at_label(features, weight, labels, quality)  # (N,)
        return _ScaledCrossEntropy.apply(features, weight, at_label, labels, self.scale)

    def _at_label(self, features: Tensor, weight: Tensor, labels: Tensor, quality: Tensor | None) -> Tensor:  # (N,)
        # Computed apart: autograd would save the logits for gather's backward and forbid writing into them.
        return self.with_margin((features * weight[labels]).sum(dim=1), quality)

    def quality(self, features: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
        """Image quality (N,), without gradient, for a margin that adapts to it; None for the others.

        If `features` are one process's share of a batch, `gather` joins rows (N, ...) of all processes.
        """
        return None

    def with_margin(self, cosine: Tensor, quality: Tensor | None) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no margin: use CosFace or ArcFace")

    def extra_repr(self) -> str:
        return f"scale={self.scale}, margin={self.margin}"


class MarginLoss(nn.Module):
    """A head whose forward pass returns the loss, so that DistributedDataParallel can wrap it.

    It has the signature of models.sharded_margin's loss, which samples by the step; here all identities take part.
    `gather` joins rows of all processes that share a batch, see MarginHead.quality.
    """

    def __init__(self, head: MarginHead, gather: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.head, self.gather = head, gather

    def forward(self, features: Tensor, labels: Tensor, step: int = 0) -> Tensor:
        return self.head.loss(features, labels, self.gather)


ROWS_DRAWN = 65536  # at a time: 128 MiB


def _draw_weight(num_identities: int, size: int, own: range) -> Tensor:
    """The rows `own` of nn.init.xavier_uniform_ on (identities, size); the others are drawn and discarded."""
    if len(own) == num_identities:
        return nn.init.xavier_uniform_(torch.empty(num_identities, size))
    bound = math.sqrt(3) * math.sqrt(2 / (num_identities + size))
    weight = torch.empty(len(own), size)
    for start in range(0, num_identities, ROWS_DRAWN):
        rows = torch.empty(min(ROWS_DRAWN, num_identities - start), size).uniform_(-bound, bound)
        low, high = max(start, own.start), min(start + len(rows), own.stop)
        if low < high:
            weight[low - own.start : high - own.start] = rows[low - start : high - start]
    return weight


class _ScaledCrossEntropy(torch.autograd.Function):
    """mean_n [logsumexp_j l_nj - l_ny] with l = s * cos, and l_ny = s * at_label, by one matrix of (N, identities).

    The gradient of l is softmax(l), less 1 at the label, and overwrites the logits in memory. Plain autograd holds the
    logits, their softmax and their gradient side by side.
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
        # The factor multiplies the small operands, not the whole matrix.
        of_features = (gradient @ weight) * factor if ctx.needs_input_grad[0] else None
        of_weight = gradient.t() @ (features * factor) if ctx.needs_input_grad[1] else None
        return of_features, of_weight, at_label_gradient * factor, None, None


class CosFace(MarginHead):
    """cos(theta) - m. Source: Wang et al., "CosFace", CVPR 2018, eq. 4."""

    summary = "cos(theta) - m"
    default_margin = 0.35

    def with_margin(self, cosine: Tensor, quality: Tensor | None) -> Tensor:
        return cosine - self.margin


class ArcFace(MarginHead):
    """cos(theta + m), and cos(theta) - m sin(pi - m) where theta + m would pass pi.

    Source: Deng et al., "ArcFace", CVPR 2019, eq. 3.
    """

    summary = "cos(theta + m)"
    default_margin = 0.5

    def with_margin(self, cosine: Tensor, quality: Tensor | None) -> Tensor:
        sine = (1 - cosine**2).clamp(min=1e-12).sqrt()  # not 0: the root has no gradient there
        shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(math.pi - self.margin)
        return torch.where(cosine > math.cos(math.pi - self.margin), shifted, beyond)


class CombinedMargin(MarginHead):
    """cos(m1 theta + m2) - m3, with `margin` = (m1, m2, m3); (1, 0, m) is CosFace.

    Where t = m1 theta + m2 passes k pi the cosine keeps falling as (-1)^k cos(t) - 2 k, which is continuous (ArcFace's
    own head takes a straight line there).
    Source: Deng et al., "ArcFace", CVPR 2019, eq. 4; beyond pi Liu et al., "SphereFace", CVPR 2017.
    """

    summary = "cos(m1 theta + m2) - m3"
    default_margin = (1.0, 0.3, 0.2)

    def __init__(
        self,
        num_identities: int,
        scale: float = 64.0,
        margin: tuple[float, float, float] | None = None,
        size: int = EMBEDDING_SIZE,
        own: range | None = None,
    ):
        super().__init__(num_identities, scale, margin, size, own)
        is_three = isinstance(self.margin, Sequence) and len(self.margin) == 3
        if not is_three or self.margin[0] < 1 or min(self.margin[1:]) < 0:
            raise UserError(f"margin {self.margin} of the combined head is out of range: give three numbers, m1 of at "
                            f"least 1, m2 and m3 of at least 0.")  # fmt: skip

    def with_margin(self, cosine: Tensor, quality: Tensor | None) -> Tensor:
        times, plus, less = self.margin
        angle = times * _angle(cosine) + plus
        turns = (angle.detach() / math.pi).floor()
        return torch.where(turns % 2 == 0, angle.cos(), -angle.cos()) - 2 * turns - less


class AdaFace(MarginHead):
    """cos(theta - m z) - (m z + m), where z in [-1, 1] is the image quality, read off the length of the features.

    z = (length - mean) h / deviation, clipped to [-1, 1], h = 0.333; mean and deviation of the lengths are running
    ones: in training running <- t * batch + (1 - t) * running, over the batch of all processes, t = 0.01. Images of
    high quality get a margin like CosFace's, which emphasises hard samples, those of low quality one like a negative
    ArcFace's. theta - m z is clipped to [0, pi].
    Source: Kim et al., "AdaFace", CVPR 2022, section 3; t as in the authors' programs (AdaFace, CVLface).
    """

    summary = "a margin that adapts to the image quality, read off the length of its features"
    default_margin = 0.4
    concentration = 0.333  # h
    rate = 0.01  # t; the 0.99 of the paper is the weight of the old value
    shortest = 0.001  # lengths are clipped to these two
    longest = 100.0

    def __init__(
        self,
        num_identities: int,
        scale: float = 64.0,
        margin: float | None = None,
        size: int = EMBEDDING_SIZE,
        own: range | None = None,
    ):
        super().__init__(num_identities, scale, margin, size, own)
        self.register_buffer("length_mean", torch.tensor(20.0))
        self.register_buffer("length_deviation", torch.tensor(100.0))

    @torch.no_grad()
    def quality(self, features: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        lengths = features.norm(dim=1).clamp(self.shortest, self.longest)  # (N,)
        if self.training:
            self._update_statistics(lengths if gather is None else gather(lengths))
        return (self.concentration * (lengths - self.length_mean) / (self.length_deviation + 1e-3)).clamp(-1, 1)

    def _update_statistics(self, lengths: Tensor) -> None:  # (N,) of the whole batch
        if len(lengths) > 1:  # one length has no deviation
            self.length_mean.lerp_(lengths.mean().to(self.length_mean), self.rate)
            self.length_deviation.lerp_(lengths.std().to(self.length_deviation), self.rate)

    def with_margin(self, cosine: Tensor, quality: Tensor) -> Tensor:
        shifted = (_angle(cosine) - self.margin * quality).clamp(1e-3, math.pi - 1e-3)
        return shifted.cos() - self.margin * (quality + 1)


def _angle(cosine: Tensor) -> Tensor:
    """The angle in [0, pi]; the cosine is clipped 1e-6 from -1 and 1, where the angle has no gradient."""
    return cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()


MARGINS: dict[str, type[MarginHead]] = {
    "cosface": CosFace,
    "arcface": ArcFace,
    "adaface": AdaFace,
    "combined": CombinedMargin,
}
