"""Lower bounds of mutual information with a learned critic f(x, y), to set beside CLUB's upper bound.

A critic gives a matrix scores[i, j] = f(x_i, y_j) of a batch: its diagonal holds joint pairs, the rest stands for the
product of the marginals. All bounds are in nats.
"""

import math

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """f(x, y) = g(x) . h(y) with two small networks: (N, d), (N, d) -> (N, N)."""

    def __init__(self, size: int, hidden: int = 256, embedding: int = 64):
        super().__init__()
        self.g, self.h = (
            nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, embedding)) for _ in range(2)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.g(x) @ self.h(y).T / math.sqrt(self.g[-1].out_features)


def infonce(scores: Tensor) -> Tensor:
    """I >= log N + mean_i log softmax_j(scores[i, :])[i], never above log N.

    Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, equation 4.
    """
    return math.log(len(scores)) + scores.log_softmax(dim=1).diagonal().mean()


def nwj(scores: Tensor) -> Tensor:
    """I >= E_joint[f] - E_marginals[exp(f - 1)].

    Source: Nguyen, Wainwright, Jordan, "Estimating Divergence Functionals and the Likelihood Ratio by Convex Risk
    Minimization", IEEE Transactions on Information Theory 56, 2010; written so by Belghazi et al., 2018, equation 6.
    """
    return scores.diagonal().mean() - torch.exp(log_mean_exp_of_rest(scores) - 1)


def mine(scores: Tensor) -> Tensor:
    """I >= E_joint[f] - log E_marginals[exp f] (Donsker and Varadhan); the batch's own mean, so gradients are biased.

    Source: Belghazi et al., "Mutual Information Neural Estimation", ICML 2018, equation 5.
    """
    return scores.diagonal().mean() - log_mean_exp_of_rest(scores)


def log_mean_exp_of_rest(scores: Tensor) -> Tensor:
    """log of the mean of exp(scores[i, j]) over i != j."""
    num = len(scores)
    rest = scores.masked_fill(torch.eye(num, dtype=torch.bool, device=scores.device), -math.inf)
    return rest.flatten().logsumexp(0) - math.log(num * (num - 1))


BOUNDS = {"InfoNCE": infonce, "NWJ": nwj, "MINE": mine}
