"""The published training loop as we read it, written plainly: what ours is measured against.

Two passes a step (one for CLUB, one for the identity branch), each through both encoders and all heads; contiguous
layout, one-hot margin, foreach SGD, and losses read from the device at every step.
`tests/benchmarks/test_published_loop.py` holds it to our step, and so to the known-good numbers: what is measured is
the method.
Source: the published scripts (github.com/JeffersonXie/IEFP); Xie et al., TIFS 2022, section III.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from models.club import SampledCLUB
from models.iefp import IEFP


def published_logits(features: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """CosFace with a one-hot matrix: three matrices of (N, identities)."""
    cosine = F.linear(F.normalize(features), F.normalize(weight))
    one_hot = torch.zeros_like(cosine).scatter_(1, labels.view(-1, 1), 1.0)
    return scale * (one_hot * (cosine - margin) + (1.0 - one_hot) * cosine)


class PublishedLoop:
    """One step a call, on images (N, 3, 112, 112) float in [-1, 1]; every pass computes every output, as published."""

    def __init__(self, model: IEFP, learning_rate: float, autocast: torch.autocast, scaler: torch.amp.GradScaler):
        self.model, self.autocast, self.scaler = model.freeze_age_branch().train(), autocast, scaler
        recipe = {"lr": learning_rate, "momentum": 0.9, "weight_decay": 1e-4}
        identity = [*model.backbone_id.parameters(), *model.margin_fc.parameters()]
        self.of_identity, self.of_club = (
            torch.optim.SGD(identity, **recipe),
            torch.optim.SGD(model.clubmi.parameters(), **recipe),
        )

    def outputs(self, images: Tensor, identities: Tensor, permutation: Tensor | None) -> tuple[Tensor, ...]:
        """Identity logits, age logits, mutual information, log-likelihood."""
        model, head = self.model, self.model.margin_fc
        with self.autocast:
            identity, age = model.backbone_id(images), model.backbone_ae(images)
        club = model.clubmi
        mutual_information = plain_mutual_information(club, age, identity, permutation)
        logits = published_logits(identity, head.weight, identities, head.scale, head.margin)
        return logits, model.age_estimator(age), mutual_information, club.log_likelihood(age, identity)

    def train_only(self, club: bool) -> None:
        """Either CLUB or the identity branch gets gradients."""
        for module, wanted in (
            (self.model.clubmi, club),
            (self.model.backbone_id, not club),
            (self.model.margin_fc, not club),
        ):
            module.requires_grad_(wanted)

    def update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimiser)
        clip_grad_norm_(self.model.parameters(), 5)
        self.scaler.step(optimiser)
        self.scaler.update()

    def step(
        self, images: Tensor, identities: Tensor, groups: Tensor, permutation: Tensor | None = None
    ) -> tuple[float, float, float]:
        """Face recognition loss, mutual information, log-likelihood."""
        self.train_only(club=True)
        *_, log_likelihood = self.outputs(images, identities, permutation)
        self.update(self.of_club, -0.1 * log_likelihood)
        entry = log_likelihood.item()
        self.of_club.zero_grad()

        self.train_only(club=False)
        logits, age_logits, mutual_information, _ = self.outputs(images, identities, permutation)
        loss, age_loss = F.cross_entropy(logits, identities), F.cross_entropy(age_logits, groups)
        accuracy = (logits.topk(1).indices.squeeze(1) == identities).float().mean()
        age_error = (age_logits.cpu().argmax(1) - groups.cpu()).abs().float().mean()
        self.update(self.of_identity, loss + 0.001 * mutual_information)
        self.read = [value.item() for value in (age_loss, accuracy, age_error)]
        self.of_identity.zero_grad()
        return loss.item(), mutual_information.item(), entry


def plain_mutual_information(club: SampledCLUB, age: Tensor, identity: Tensor, permutation: Tensor | None) -> Tensor:
    """As `SampledCLUB.mutual_information`, with gradients of CLUB where they are wanted."""
    permutation = torch.randperm(len(identity), device=identity.device) if permutation is None else permutation
    mu, logvar = club.p_mu(age), club.p_logvar(age)
    positive = -((mu - identity) ** 2) / logvar.exp()
    negative = -((mu - identity[permutation]) ** 2) / logvar.exp()
    return (positive.sum(1) - negative.sum(1)).mean() / 2


class InsightFaceLoop:
    """A plain face recognition trainer in the style of InsightFace's: contiguous layout, autocast, full softmax."""

    def __init__(self, model: IEFP, learning_rate: float, autocast: torch.autocast, scaler: torch.amp.GradScaler):
        self.model, self.autocast, self.scaler = model.train(), autocast, scaler
        self.parameters = [*model.backbone_id.parameters(), *model.margin_fc.parameters()]
        self.optimiser = torch.optim.SGD(self.parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)

    def step(self, images: Tensor, identities: Tensor) -> float:
        with self.autocast:
            features = self.model.backbone_id(images)
        head = self.model.margin_fc
        logits = published_logits(features, head.weight, identities, head.scale, head.margin)
        loss = F.cross_entropy(logits, identities)
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        clip_grad_norm_(self.parameters, 5)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()
