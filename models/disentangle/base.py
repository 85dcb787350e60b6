"""The interface of critics, and the table that they register in.

A critic and the identity encoder train by turns: the critic raises its objective (`forward`) on identity features that
are held fixed, then the identity encoder lowers `penalty` with the critic held fixed. Both see features before L2
normalisation. A critic without `updates` is a penalty alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from models.margin import MarginHead


class Critic(nn.Module, ABC):
    """What finds age in the identity embedding. A subclass needs `@register_critic` to be a choice of --disentangle."""

    summary: ClassVar[str]
    """For the help of --disentangle, without a full stop."""
    name: ClassVar[str] = "critic"
    """Of its optimiser in checkpoints, and of its gradient norm in the log."""
    attribute: ClassVar[str] = "critic"
    """Where models.iefp.IEFP holds it, which is the prefix of its weights in checkpoints."""

    objective_name: ClassVar[str]
    """Of the objective in the log."""
    penalty_name: ClassVar[str]
    """Of the penalty in the log."""
    higher_objective_is_better: ClassVar[bool] = False
    """Whether the embedding holds less age when the objective is higher."""
    higher_penalty_is_better: ClassVar[bool] = False
    """Whether the embedding holds less age when the penalty is higher."""

    needs_age_features: ClassVar[bool] = False
    """Whether `age` is used: features of the frozen age branch."""
    needs_age_groups: ClassVar[bool] = False
    """Whether `age_groups` are used."""

    updates: ClassVar[int] = 1
    """Updates of the critic in a training step; 0 for one that has nothing to learn, and so no objective."""
    objective_weight: ClassVar[float] = 1.0
    """Of the objective in the critic's own loss."""
    default_weight: ClassVar[float]
    """Of the penalty in the identity loss."""
    warmup_steps: ClassVar[int] = 0
    """Steps over which that weight rises from 0 in a straight line."""
    flags: ClassVar[Mapping[str, str]] = {"default_weight": "disentangle_weight"}
    """Which setting of train.py, unless it is None, replaces which of these numbers, or of a critic's own."""

    @classmethod
    def setting(cls, config: Any, name: str) -> float:
        """One of these numbers: what the settings say, else the critic's own."""
        value = getattr(config, cls.flags[name]) if name in cls.flags else None
        return getattr(cls, name) if value is None else value

    def attach(
        self,
        config: Any,
        head: MarginHead,
        identities: np.ndarray,
        age_groups: np.ndarray,
        total: Callable[[Tensor], Tensor],
    ) -> str | None:
        """Called once before training, for critics that go by the margin head; returns what to print, if anything.

        identities, age_groups (N,), -1 where unknown, are those of all training pictures. `total` adds up a tensor over
        all processes, which may each hold a share of the head.

        Raises:
            UserError: these pictures give the critic nothing to do.
        """

    def forward(self, age: Tensor | None, identity: Tensor, age_groups: Tensor | None) -> Tensor:
        """age, identity (N, 512), age_groups (N,), -1 where unknown -> the objective, a scalar."""
        raise TypeError(f"{type(self).__name__} has no objective: it learns nothing")

    @abstractmethod
    def penalty(
        self, age: Tensor | None, identity: Tensor, age_groups: Tensor | None, permutation: Tensor | None
    ) -> Tensor:
        """The same, with CLUB's negatives (N,) -> a scalar whose gradient reaches `identity` or the head alone."""


CRITICS: dict[str, type[Critic]] = {}  # by the name that --disentangle takes; models.disentangle.registry fills it


def register_critic(name: str) -> Callable[[type[Critic]], type[Critic]]:
    """A class decorator that makes a critic a choice of --disentangle."""

    def register(kind: type[Critic]) -> type[Critic]:
        CRITICS[name] = kind
        return kind

    return register
