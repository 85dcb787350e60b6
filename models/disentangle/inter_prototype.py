"""Inter-Prototype: the margin head's weight vectors of people known as children are kept apart.

Pairs of a child and an adult get wrong answers because children look alike, so it is children of different people that
have to be distinguished; neither more pictures nor more parameters are needed for that.
Source: Lee, Yun, Park, Kim, Choo, "Improving Face Recognition with Large Age Gaps by Learning to Distinguish Children",
BMVC 2021 (arXiv 2110.11630); details after the authors' program (github leebebeto/Inter-Prototype).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meta import AGE_GROUP_UPPER_EDGES, UserError
from models.disentangle.base import Critic, register_critic
from models.margin import MarginHead

CHILDREN = 0  # the age group
OLDEST_CHILD = AGE_GROUP_UPPER_EDGES[CHILDREN]  # years


@register_critic("inter_prototype")
class InterPrototype(Critic):
    """mean_ij (cos(w_i, w_j) - [i = j])^2 over the people i, j known as children; w: their rows of the head's weight.

    Features follow the weight vectors, so children's features move apart too; no other vector gets a gradient. From the
    authors' program: this mean over all n^2 ordered pairs in every step, its weight 1, and who counts as a child, by 10
    pictures below 13 years. Ours: any margin, where theirs is ArcFace's, and no n x n matrix: sum_ij cos^2 is the
    squared norm of the sum of the w_i w_i' (512 x 512), to which each share of a head adds its own.
    """

    summary = "the margin head's weight vectors of children are kept apart"
    penalty_name = "child_similarity"
    needs_age_groups = True
    updates = 0
    default_weight = 1.0
    child_pictures: int = 10
    """Pictures of up to 12 years by which a person is known as a child."""
    flags = Critic.flags | {"child_pictures": "child_pictures"}

    def attach(
        self,
        config: Any,
        head: MarginHead,
        identities: np.ndarray,
        age_groups: np.ndarray,
        total: Callable[[Tensor], Tensor],
    ) -> str:
        least = self.setting(config, "child_pictures")
        people = np.flatnonzero(np.bincount(identities[age_groups == CHILDREN]) >= least)
        if len(people) < 2:
            raise UserError(f"--disentangle inter_prototype keeps people apart who have {least} pictures of up to "
                            f"{OLDEST_CHILD} years, and --train-data holds {len(people)} of them: lower "
                            f"--child-pictures, or give another method.")  # fmt: skip
        own = people[(people >= head.own.start) & (people < head.own.stop)] - head.own.start
        places = torch.from_numpy(own).to(head.weight.device)
        self.num_people = len(people)
        self.total = total if len(head.own) < head.num_identities else lambda value: value
        self.own_vectors = lambda: head.vectors(places)  # the head itself would become a part of this module
        return f"inter_prototype: {len(people):,} of {head.num_identities:,} people are known as children"

    def penalty(
        self, age: Tensor | None, identity: Tensor, age_groups: Tensor | None, permutation: Tensor | None
    ) -> Tensor:
        """A scalar from 0 to 1 whose gradient reaches the margin head alone, in each process its own vectors."""
        vectors = F.normalize(self.own_vectors())  # (own of the n, 512)
        outer = vectors.t() @ vectors
        outer = outer + (self.total(outer.detach()) - outer.detach())  # others' vectors have no gradient here
        return ((outer**2).sum() - self.num_people) / self.num_people**2  # the n are cos(w_i, w_i)
