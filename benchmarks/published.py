"""The published training loop as we read it, written plainly: what ours is measured against.

Two passes of both encoders a step (one for CLUB, one for the identity branch), contiguous layout, one-hot margin,
foreach SGD, and losses read from the device at every step. `tests/test_published_loop.py` holds it to the known-good
numbers, so that what is measured is the method.
Source: the published scripts (github.com/JeffersonXie/IEFP), SPEC of the step in Xie et al., TIFS 2022, section III.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from models.iefp import IEFP


def published_logits(features: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """CosFace with a one-hot matrix: three matrices of (N, identities)."""
    cosine = F.linear(F.normalize(features), F.normalize(weight))
    one_hot = torch.zeros_like(cosine).scatter_(1, labels.view(-1, 1), 1.0)
    return scale * (one_hot * (cosine - margin) + (1.0 - one_hot) * cosine)


class PublishedLoop:
    """One step a call, on images (N, 3, 112, 112) float in [-1, 1]."""

    def __init__(self, model: IEFP, learning_rate: float, autocast: torch.autocast, scaler: torch.amp.GradScaler):
        self.model, self.autocast, self.scaler = model.freeze_age_branch().train(), autocast, scaler
        self.identity = [*model.backbone_id.parameters(), *model.margin_fc.parameters()]
        self.club = list(model.clubmi.parameters())
        recipe = {"lr": learning_rate, "momentum": 0.9, "weight_decay": 1e-4}
        self.optimisers = torch.optim.SGD(self.identity, **recipe), torch.optim.SGD(self.club, **recipe)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast:
            with torch.no_grad():
                age = self.model.backbone_ae(images)
            identity = self.model.backbone_id(images)
        return age.float() if age.dtype != torch.float64 else age, identity

    def step(self, images: Tensor, identities: Tensor, permutation: Tensor | None = None) -> tuple[float, float, float]:
        """Face recognition loss, mutual information, log-likelihood."""
        of_identity, of_club = self.optimisers
        age, identity = self.features(images)
        log_likelihood = self.model.clubmi.log_likelihood(age, identity.detach())
        of_club.zero_grad()
        (-0.1 * log_likelihood).backward()
        clip_grad_norm_(self.club, 5)
        of_club.step()

        age, identity = self.features(images)
        mutual_information = self.model.clubmi.mutual_information(age, identity, permutation)
        head = self.model.margin_fc
        logits = published_logits(identity, head.weight, identities, head.scale, head.margin)
        loss = F.cross_entropy(logits, identities)
        of_identity.zero_grad()
        self.scaler.scale(loss + 0.001 * mutual_information).backward()
        self.scaler.unscale_(of_identity)
        clip_grad_norm_(self.identity, 5)
        self.scaler.step(of_identity)
        self.scaler.update()
        return loss.item(), mutual_information.item(), log_likelihood.item()


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
