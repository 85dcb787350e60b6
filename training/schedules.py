"""The learning rate of every step: falling by steps as published, along a cosine or a power, or constant.

With t steps done of T, W of them warm-up, and p = (t - W) / (T - W) after it, the rate goes from a (--learning-rate) to
f (--final-learning-rate):

    steps       a / 10^k, k of the epochs in --learning-rate-epochs having begun
    cosine      f + (a - f) (1 + cos(pi p)) / 2      (Loshchilov, Hutter, "SGDR", ICLR 2017, eq. 5, without restarts)
    polynomial  f + (a - f) (1 - p)^power
    constant    a

f is where the curve ends, one step after the last: no step is lost to a rate of 0. In the warm-up the rate is
(t + 1) / (W + 1) of what it would be: W steps on a straight line, none of them at 0.
"""

import math
from collections.abc import Iterable
from typing import Protocol

import torch

from meta import UserError


class Settings(Protocol):
    """The settings that are used here."""

    schedule: str
    learning_rate: float
    learning_rate_epochs: tuple[int, ...]
    warmup_steps: int
    polynomial_power: float
    final_learning_rate: float


def check_schedule(config: Settings, num_steps: float = math.inf) -> None:
    """Checks that the schedule fits into a run of so many steps; infinitely many check what holds for any run.

    Raises:
        UserError: a warm-up as long as the run, or a rate that would rise to its end.
    """
    if config.warmup_steps >= num_steps:
        raise UserError(f"--warmup-steps {config.warmup_steps} leaves nothing of a run of {num_steps} steps: give "
                        f"fewer, or more --epochs.")  # fmt: skip
    if config.final_learning_rate > config.learning_rate:
        raise UserError(f"--final-learning-rate {config.final_learning_rate} is above --learning-rate "
                        f"{config.learning_rate}: give a lower one.")  # fmt: skip


def learning_rate_at(config: Settings, epoch: int, done: int, num_steps: int) -> float:
    """The rate of the step in `epoch` (from 0) before which `done` of the run's `num_steps` steps were made."""
    highest, final, warmup = config.learning_rate, config.final_learning_rate, config.warmup_steps
    progress = max(0.0, (done - warmup) / (num_steps - warmup))
    if config.schedule == "steps":
        rate = highest * 0.1 ** sum(epoch >= lower for lower in config.learning_rate_epochs)
    elif config.schedule == "cosine":
        rate = final + (highest - final) * (1 + math.cos(math.pi * progress)) / 2
    elif config.schedule == "polynomial":
        rate = final + (highest - final) * (1 - progress) ** config.polynomial_power
    else:
        rate = highest
    return rate * (done + 1) / (warmup + 1) if done < warmup else rate


def set_learning_rate(optimisers: Iterable[torch.optim.Optimizer], learning_rate: float) -> None:
    """Gives every group of parameters the rate, times its `rate_factor` where it has one."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group.get("rate_factor", 1.0)
