"""CLUB: an upper estimate of the mutual information between age embedding a and identity embedding e.

A network predicts q(e | a) = N(mu(a), exp(logvar(a))). It is trained to raise `log_likelihood`; the identity encoder
is trained to lower `mutual_information`, with the network held fixed. Both take features before L2 normalisation.
Source: Cheng et al., "CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information", ICML 2020, section 3.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from meta import EMBEDDING_SIZE
from models.disentangle.base import Critic, register_critic


class _GaussianPrediction(Critic):
    """q(e | a) with diagonal covariance; parameter names are the published file format.

    As IEFP's critic it learns to predict identity from age. Source: Xie et al., TIFS 2022.
    """

    negatives: ClassVar[str]
    """For the help of --estimator, without a full stop."""
    summary = "mutual information with the age features, estimated by CLUB"
    name = "club"
    attribute = "clubmi"
    objective_name = "log_likelihood"
    penalty_name = "mutual_information"
    needs_age_features = True
    objective_weight = 0.1
    default_weight = 0.001
    flags = {
        "updates": "club_steps",
        "objective_weight": "club_weight",
        "default_weight": "mutual_information_weight",
        "warmup_steps": "mutual_information_warmup",
    }

    def __init__(self, size: int = EMBEDDING_SIZE):
        super().__init__()
        self.p_mu = nn.Sequential(
            nn.BatchNorm1d(size), nn.Linear(size, size), nn.ReLU(), nn.BatchNorm1d(size), nn.Linear(size, size)
        )
        self.p_logvar = nn.Sequential(
            nn.BatchNorm1d(size),
            nn.Linear(size, size),
            nn.ReLU(),
            nn.BatchNorm1d(size),
            nn.Linear(size, size),
            nn.Tanh(),  # keeps the variance between 1/e and e
        )

    def log_likelihood(self, age: Tensor, identity: Tensor) -> Tensor:
        """L = mean_n sum_d [-(mu - e)^2 / exp(logvar) - logvar], up to constants; age, identity (N, 512) -> scalar."""
        mu, logvar = self.p_mu(age), self.p_logvar(age)  # (N, 512) each
        return (-((mu - identity) ** 2) / logvar.exp() - logvar).sum(dim=1).mean()

    def forward(self, age: Tensor, identity: Tensor, age_groups: Tensor | None = None) -> Tensor:
        return self.log_likelihood(age, identity)

    def penalty(
        self, age: Tensor, identity: Tensor, age_groups: Tensor | None = None, permutation: Tensor | None = None
    ) -> Tensor:
        return self.mutual_information(age, identity, permutation)

    @abstractmethod
    def mutual_information(self, age: Tensor, identity: Tensor, permutation: Tensor | None = None) -> Tensor:
        """The estimate of the mutual information, a scalar; its gradient reaches `identity` alone."""

    def _fixed_prediction(self, age: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.p_mu(age), self.p_logvar(age)


@register_critic("iefp")
class SampledCLUB(_GaussianPrediction):
    """CLUB with one negative a sample, drawn by a random permutation: the published estimator."""

    negatives = "one for each image, drawn by a permutation of the batch, as published"

    def mutual_information(self, age: Tensor, identity: Tensor, permutation: Tensor | None = None) -> Tensor:
        """I = 1/2 mean_n sum_d [-(mu_n - e_n)^2 + (mu_n - e_pi(n))^2] / exp(logvar_n).

        age, identity (N, 512); permutation pi (N,), int64, random when None -> scalar.
        Gradients reach `identity` only: the network and the age embedding are held fixed.
        """
        if permutation is None:
            permutation = torch.randperm(len(identity), device=identity.device)
        mu, logvar = self._fixed_prediction(age)
        positive = (mu - identity) ** 2
        negative = (mu - identity[permutation]) ** 2
        return ((negative - positive) / logvar.exp()).sum(dim=1).mean() / 2


class CLUB(_GaussianPrediction):
    """CLUB with every sample of the batch as a negative, after Cheng et al. (the published code has a typo here)."""

    negatives = "all images of the batch"

    def mutual_information(self, age: Tensor, identity: Tensor, permutation: None = None) -> Tensor:
        """I = 1/2 mean_n sum_d [-(mu_n - e_n)^2 + mean_m (mu_n - e_m)^2] / exp(logvar_n).

        age, identity (N, 512) -> scalar. Gradients reach `identity` only. `permutation` is not used: both estimators
        have the same signature. No (N, N, 512) array is allocated:
        mean_m (mu_n - e_m)^2 = (mu_n - mean e)^2 + variance of e.
        """
        mu, logvar = self._fixed_prediction(age)
        positive = (mu - identity) ** 2
        negative = (mu - identity.mean(dim=0)) ** 2 + identity.var(dim=0, unbiased=False)
        return ((negative - positive) / logvar.exp()).sum(dim=1).mean() / 2


ESTIMATORS: dict[str, type[_GaussianPrediction]] = {"sampled": SampledCLUB, "unsampled": CLUB}
