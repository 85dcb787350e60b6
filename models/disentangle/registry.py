"""What keeps age out of the identity embedding: a critic and the identity encoder, by turns.

A critic raises its objective (`forward`) on identity features that are held fixed; then the identity encoder lowers
`penalty`, with the critic held fixed. Both take features before L2 normalisation. A critic names the two for the log,
says of each whether the embedding is better when it is higher, how many updates it makes a step, by what weight of its
objective (of CLUB the settings say both), which weight its penalty has unless told, and what it needs to know.
"""

from torch import Tensor, nn

from models.disentangle.dal import CanonicalCorrelation
from models.disentangle.grl import ReversedAgeClassifier
from models.disentangle.orthogonal import AgeOfLength


class MutualInformation(nn.Module):
    """IEFP's critic is CLUB: it learns to predict identity from age. Source: Xie et al., TIFS 2022."""

    name, objective_name, penalty_name = "club", "log_likelihood", "mutual_information"
    higher_objective_is_better, higher_penalty_is_better = False, False  # both: how much age and identity share
    needs_age_features, needs_age_groups = True, False

    def __init__(self, club: nn.Module):
        super().__init__()
        self.club = club

    def forward(self, age: Tensor, identity: Tensor, age_groups: Tensor | None) -> Tensor:
        """age, identity (N, 512) -> log-likelihood, a scalar."""
        return self.club.log_likelihood(age, identity)

    def penalty(self, age: Tensor, identity: Tensor, age_groups: Tensor | None, permutation: Tensor | None) -> Tensor:
        """The estimate of the mutual information, a scalar; its gradient reaches `identity` alone."""
        return self.club.mutual_information(age, identity, permutation)


# The critics beside IEFP's own, whose parameters are no part of the published file layout.
CRITICS = {"grl": ReversedAgeClassifier, "dal": CanonicalCorrelation, "orthogonal": AgeOfLength}
