"""A batch that passes through a network in parts: gradients are added up, and averaged over processes with the last."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meta import UserError
from utils.distributed import Process


def check_parts(batch_size: int, num_parts: int, process: Process) -> None:
    """Raises UserError where the batch can't be shared equally by processes and parts, or a part would be too small."""
    if batch_size % process.world_size:
        raise UserError(f"--batch-size {batch_size} can't be shared equally by {process.world_size} processes: "
                        f"give a multiple.")  # fmt: skip
    share = batch_size // process.world_size
    if num_parts > 1 and (share % num_parts or share // num_parts < 2):
        raise UserError(f"--accumulation {num_parts} can't cut the {share} images of --batch-size {batch_size} that a "
                        f"process has a step into equal parts of 2 or more: give a divisor.")  # fmt: skip


@contextmanager
def gradients_stay_here(enabled: bool, *modules: nn.Module) -> Iterator[None]:
    """Keeps what the block does out of the exchange between processes: its gradients are only added up."""
    with ExitStack() as stack:
        for module in modules:
            if enabled and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def mean_of_parts(told: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each value (scalars) over equal parts."""
    if len(told) == 1:
        return told[0]
    return {name: torch.stack([part[name] for part in told]).mean(dim=0) for name in told[0]}


def momentum_of_parts(momentum: float, passes: int, passes_in_parts: int) -> float:
    """BatchNorm's momentum with which more passes a step move the running statistics as far as fewer did."""
    if passes_in_parts == passes:
        return momentum
    return 1 - (1 - momentum) ** (passes / passes_in_parts)
