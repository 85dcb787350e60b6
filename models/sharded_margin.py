"""The loss of a margin head whose identities are sharded over processes, over all of them or a sample.

Every process holds the weight vectors of a range of identities, sees the features of the whole batch, and computes the
logits of its own identities only: (whole batch, own identities) is the one matrix that it holds. The softmax is exact:
row maxima, sums of exponentials and the labels' logits are reduced over the processes.
Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial
FC", CVPR 2022, sections 3 and 4.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.margin import MarginHead

SHORTEST = 1e-12  # lengths are clamped to it before dividing, as in F.normalize
ROWS_AT_ONCE = 16384  # 32 MiB at once, not a product as large as the weight that is only summed up


class Collectives(Protocol):
    """Collective operations of the processes that hold the shards; with one process each is the identity."""

    world_size: int

    def gather(self, rows: Tensor) -> Tensor:
        """(N, ...) of each process, N the same everywhere -> (world_size * N, ...) in the order of ranks."""

    def own_part(self, rows: Tensor) -> Tensor:
        """(world_size * N, ...) of each -> (N, ...): the sum over all processes of the rows that came from this one."""

    def sum(self, values: Tensor) -> Tensor: ...

    def maximum(self, values: Tensor) -> Tensor: ...


class ShardedMarginLoss(nn.Module):
    """Features and labels of this process -> mean cross-entropy over the batch of all, the same on every process.

    The gradient of the weights is complete: of all samples. That of the features is `world_size` times the derivative
    of the mean, so that encoders whose gradients are *averaged* over the processes get that of the whole batch.

    With `rate` below 1 the softmax is over a sample: the identities in the batch, and others drawn at random up to
    `rate` of each process's own. The draw depends only on seed, step and the first own identity. The weight then gets a
    sparse gradient: only sampled rows may be updated (training.optim.RowwiseSGD).
    """

    def __init__(self, head: MarginHead, collectives: Collectives, rate: float = 1.0, seed: int = 0):
        super().__init__()
        self.head, self.collectives, self.rate, self.seed = head, collectives, rate, seed
        head.has_sparse_gradient = rate < 1
        if rate < 1:
            # The default; some versions of torch warn until it is set explicitly.
            torch.sparse.check_sparse_tensor_invariants.disable()

    def forward(self, features: Tensor, labels: Tensor, step: int = 0, ages: Tensor | None = None) -> Tensor:
        """features (N, 512), labels (N,) int64 of the whole set of identities -> a scalar. `ages`: see MarginHead."""
        head, own = self.head, self.head.own
        features = _Gather.apply(features, self.collectives)  # (whole batch, 512)
        labels = self.collectives.gather(labels)  # (whole batch,)
        if head.age_prior is not None:
            ages = self.collectives.gather(ages)
        quality = head.quality(features)
        rows = ((labels >= own.start) & (labels < own.stop)).nonzero().squeeze(1)  # (M,) samples of own identities
        columns = labels[rows] - own.start  # (M,)
        weight, kept = head.weight, None  # (own identities, 512)
        if self.rate < 1:
            kept = self.sample(columns, step)
            weight, columns = head.vectors(kept), torch.searchsorted(kept, columns)
        return _ShardedCrossEntropy.apply(
            F.normalize(features),
            weight,
            (rows, columns),
            (
                lambda cosine: head.with_margin(cosine, None if quality is None else quality[rows]),
                lambda logits: head.add_age_prior(logits, ages, kept),
            ),
            head.scale,
            self.collectives,
        )

    def sample(self, present: Tensor, step: int) -> Tensor:
        """Own identities of this step, ascending: `present` (M,) and others drawn up to the rate; at least one."""
        own, device = self.head.own, present.device
        seed = np.random.SeedSequence((self.seed, step, own.start)).generate_state(1, np.uint64)[0]
        draws = torch.Generator(device).manual_seed(int(seed) >> 1)
        present = present.unique()
        order = torch.randperm(len(own), generator=draws, device=device)
        is_present = torch.zeros(len(own), dtype=torch.bool, device=device)
        is_present[present] = True
        wanted = max(1, round(self.rate * len(own)))
        others = order[~is_present[order]][: max(0, wanted - len(present))]
        return torch.cat([present, others]).sort().values


class _Gather(torch.autograd.Function):
    """The features of all processes. Each process computes the gradient through its own identities; their sum, times
    world_size, is propagated back: see ShardedMarginLoss."""

    @staticmethod
    def forward(ctx, features: Tensor, collectives: Collectives) -> Tensor:
        ctx.collectives = collectives
        return collectives.gather(features)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.collectives.own_part(gradient) * ctx.collectives.world_size, None


class _ShardedCrossEntropy(torch.autograd.Function):
    """mean_n [log sum_j exp(l_nj) - l_ny], l = s * cos with the margin at y, j over the identities of all processes.

    Like models.margin's loss it holds one matrix: the logits, overwritten by their gradient. It takes the weights as
    they are and normalises them itself, so that their gradient needs one buffer.
    """

    @staticmethod
    def forward(
        ctx,
        features: Tensor,  # (N, 512) normalised, of the whole batch
        weight: Tensor,  # (own, 512)
        labels: tuple[Tensor, Tensor],  # (M,) samples whose label is one of the own, and (M,) which
        of_head: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], None]],  # margin at the label; prior, in place
        scale: float,
        collectives: Collectives,
    ) -> Tensor:
        (rows, columns), (with_margin, adjust) = labels, of_head
        lengths = weight.norm(dim=1, keepdim=True).clamp(min=SHORTEST)  # (own, 1)
        weight = weight / lengths
        logits = features @ weight.t()  # (N, own)
        with torch.enable_grad():
            cosine = logits[rows, columns].requires_grad_()
            at_label = with_margin(cosine)
            (slope,) = torch.autograd.grad(at_label.sum(), cosine)  # (M,) d at_label / d cosine
        logits[rows, columns] = at_label.detach()
        adjust(logits.mul_(scale))
        logits.sub_(collectives.maximum(logits.amax(dim=1)).unsqueeze(1))
        target = logits.new_zeros(len(logits)).index_copy_(0, rows, logits[rows, columns])  # before exp takes its place
        total, target = collectives.sum(torch.stack([logits.exp_().sum(dim=1), target]))  # (N,) each
        gradient = logits.div_(total.unsqueeze(1))  # softmax
        gradient[rows, columns] = (gradient[rows, columns] - 1) * slope
        ctx.save_for_backward(features, weight, lengths, gradient)
        ctx.factor = scale / len(features)
        return (total.log() - target).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, lengths, gradient = ctx.saved_tensors
        factor = gradient_of_loss * ctx.factor
        of_features = (gradient @ weight) * factor if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            # Through w / |w|: the component along w is removed from the gradient, in place.
            of_weight = gradient.t() @ (features * factor)
            for part in zip(*(rows.split(ROWS_AT_ONCE) for rows in (of_weight, weight, lengths)), strict=True):
                of_rows, rows, lengths_of_rows = part
                along = (of_rows * rows).sum(dim=1, keepdim=True)
                of_rows.addcmul_(rows, along, value=-1).div_(lengths_of_rows)
        return of_features, of_weight, None, None, None, None
