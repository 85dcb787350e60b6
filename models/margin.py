"""Margin softmax heads: features and labels -> logits s * cos, with a margin at the label.

`loss` returns the cross-entropy of those logits, or of their sum with an age prior, and holds one matrix of
(N, identities) for it; `forward` returns the logits themselves.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from meta import EMBEDDING_SIZE, MAX_AGE, UserError


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
    age_prior: "AgePrior | None" = None
    """What `loss` adds to the logits of pictures of known age; no parameter, and in no state_dict."""
    has_sparse_gradient = False
    """Whether only the rows that a step uses get a gradient (models.sharded_margin)."""

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

    def loss(
        self,
        features: Tensor,
        labels: Tensor,
        gather: Callable[[Tensor], Tensor] | None = None,
        ages: Tensor | None = None,
    ) -> Tensor:
        """features (N, 512), labels (N,) int64 -> mean cross-entropy of the logits, a scalar. `gather`: see quality.

        With an age prior it is that of logits + tau log p(j | age), for ages (N,) in years, -1 where unknown.
        """
        quality = self.quality(features, gather)
        features, weight = F.normalize(features), F.normalize(self.weight)
        at_label = self._at_label(features, weight, labels, quality)  # (N,)
        return _ScaledCrossEntropy.apply(
            features, weight, at_label, labels, self.scale, lambda logits: self.add_age_prior(logits, ages)
        )

    def add_age_prior(self, logits: Tensor, ages: Tensor | None, columns: Tensor | None = None) -> None:
        """Adds the age prior, if there is one, to logits (N, own identities, or those at `columns` among them)."""
        if self.age_prior is not None:
            self.age_prior.add_to(logits, ages, columns)

    def vectors(self, own: Tensor) -> Tensor:
        """Weight vectors (M, 512) of the identities at the places `own` (M,) among its own, each there once."""
        return _Rows.apply(self.weight, own) if self.has_sparse_gradient else self.weight.index_select(0, own)

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

    def forward(self, features: Tensor, labels: Tensor, step: int = 0, ages: Tensor | None = None) -> Tensor:
        return self.head.loss(features, labels, self.gather, ages)


PEOPLE_SMOOTHED = 16384  # at a time: 16 MiB in float64
ROWS_ADJUSTED = 16  # of the logits at a time: their prior is copied from the table first


class AgePrior:
    """log p(j | a): what an age a alone says of who somebody is; training logits get it, times `strength`.

    p(j | a) is the share of person j among the training pictures of about age a, where a picture of age b counts
    exp(-(a - b)^2 / (2 bandwidth^2)). A network that is given log(p + floor / num_identities) has no reason to learn
    from the face what the age gives anyhow. The table holds it for every age and the identities of `own` (None: all):
    488 bytes an identity, where the head's weight, gradient and momentum take 6 KB.

    identities, ages (N,) are those of all training pictures, in whole years; -1 is an unknown age, and counts nowhere.

    Source: the logit-adjusted loss of Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, with the bias
    known of each picture in the place of the classes' shares, as in Hong, Yang, "Unbiased Classification through
    Bias-Contrastive and Bias-Balanced Learning", NeurIPS 2021.
    """

    def __init__(
        self,
        identities: np.ndarray,
        ages: np.ndarray,
        num_identities: int,
        bandwidth: float = 4.0,
        floor: float = 1e-3,
        *,
        own: range | None = None,
        strength: float = 1.0,
        device: torch.device | None = None,
    ):
        identities, ages, self.strength = np.asarray(identities), np.asarray(ages).astype(np.int64), strength
        own = range(num_identities) if own is None else own
        years = np.arange(MAX_AGE + 1)
        kernel = np.exp(-((years[:, None] - years) ** 2) / (2 * bandwidth**2))  # (121, 121)
        total = kernel @ np.bincount(ages[ages >= 0], minlength=len(years))  # (121,) over all people
        is_own = (ages >= 0) & (identities >= own.start) & (identities < own.stop)
        # The last row stays 0: index -1, an unknown age, finds it.
        table = torch.zeros(len(years) + 1, len(own))
        places = torch.from_numpy(ages[is_own]), torch.from_numpy(identities[is_own].astype(np.int64) - own.start)
        table.index_put_(places, torch.ones(()), accumulate=True)  # pictures of a person at an age
        for people in table[:-1].split(PEOPLE_SMOOTHED, dim=1):
            share = kernel @ people.numpy().astype(np.float64) / np.maximum(total, np.finfo(float).tiny)[:, None]
            people.copy_(torch.from_numpy(np.log(share + floor / num_identities)))
        self.table = table.to(device)  # (122, own identities)

    def log_prior(self, ages: Tensor) -> Tensor:
        """ages (N,), whole years -> (N, own identities) float32, zeros where the age is -1."""
        return self.table[torch.as_tensor(ages, device=self.table.device).long()]

    def add_to(self, logits: Tensor, ages: Tensor, columns: Tensor | None = None) -> None:
        """Adds strength * log_prior(ages), of the own identities at `columns` (None: all), to the logits in place."""
        for rows, some in zip(logits.split(ROWS_ADJUSTED), ages.split(ROWS_ADJUSTED), strict=True):
            prior = self.table[some] if columns is None else self.table[some[:, None], columns]
            rows.add_(prior, alpha=self.strength)


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


class _Rows(torch.autograd.Function):
    """weight[kept], with a sparse gradient: a dense one would be as large as the weight."""

    @staticmethod
    def forward(ctx, weight: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.shape = weight.shape
        return weight.index_select(0, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(kept[None], gradient, ctx.shape, check_invariants=False), None


class _ScaledCrossEntropy(torch.autograd.Function):
    """mean_n [logsumexp_j l_nj - l_ny] with l = s * cos, and l_ny = s * at_label, by one matrix of (N, identities).

    `adjust` adds constants to the l in place.

    The gradient of l is softmax(l), less 1 at the label, and overwrites the logits in memory. Plain autograd holds the
    logits, their softmax and their gradient side by side.
    """

    @staticmethod
    def forward(
        ctx,
        features: Tensor,
        weight: Tensor,
        at_label: Tensor,
        labels: Tensor,
        scale: float,
        adjust: Callable[[Tensor], None],
    ) -> Tensor:
        logits = F.linear(features, weight)  # (N, identities)
        logits.scatter_(1, labels.unsqueeze(1), at_label.unsqueeze(1)).mul_(scale)
        adjust(logits)
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
        return of_features, of_weight, at_label_gradient * factor, None, None, None


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
