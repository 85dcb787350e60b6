"""Identities sharded over processes: who holds which, one gradient norm and one loss scale for all, checkpoints.

A process's rows of the margin weight and of its momentum are saved apart from the main checkpoint, in a file of its own
(training.checkpoint); any number of processes can go on from those files, also a single one that holds all rows.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from meta import UserError
from training.checkpoint import load_checkpoint, read_rows, save_shard, shard_path
from training.data_parallel import Collectives
from utils.distributed import DistInfo, gather_lists

WEIGHT = "margin_fc.weight"  # its name in the model; the last of the parameters of the optimiser "identity"
ROWS_SENT = 65536  # at a time: 128 MiB


def own_identities(num_identities: int, process: DistInfo) -> range:
    """The contiguous identities of this process; shares differ by one at most.

    Raises:
        UserError: fewer identities than processes.
    """
    if num_identities < process.world_size:
        raise UserError(f"--sharded-classes can't share {num_identities} identities out over {process.world_size} "
                        f"processes: leave it out, or start fewer.")  # fmt: skip
    return _share(num_identities, process.rank, process.world_size)


def _share(num_identities: int, rank: int, world_size: int) -> range:
    return range(num_identities * rank // world_size, num_identities * (rank + 1) // world_size)


class ClassShards:
    """What processes must agree on in a step where each has its own rows, `weight`, beside parameters alike on all."""

    def __init__(self, weight: Tensor, process: DistInfo):
        self.weight, self.collectives = weight, Collectives(process)

    def clip(self, parameters: list[Tensor], max_norm: float) -> Tensor:
        """Clips as clip_grad_norm_ does by the norm of the whole gradient: all rows, the other parameters once."""
        shared = [parameter for parameter in parameters if parameter is not self.weight]
        if self.weight.grad.is_sparse:
            self.weight.grad = self.weight.grad.coalesce()
        own = self._own_gradient()
        of_rows = self.collectives.sum(torch.linalg.vector_norm(own) ** 2).sqrt()
        of_shared = get_total_norm([parameter.grad for parameter in shared if parameter.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack([of_shared, of_rows]))
        clip_grads_with_norm_(shared, max_norm, norm)
        own.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
        return norm

    def make_scaler(self, device: str, enabled: bool) -> torch.amp.GradScaler:
        """A loss scaler that leaves a step out on all processes where it does on one."""
        return _AgreeingScaler(self, device, enabled=enabled)

    def spread_overflow(self) -> None:
        """Where some process's rows have a gradient that is not finite, each process's gets one."""
        own = self._own_gradient()
        overflow = (~torch.linalg.vector_norm(own).isfinite()).float()
        own[:1].masked_fill_(self.collectives.maximum(overflow) > 0, torch.inf)

    def _own_gradient(self) -> Tensor:  # (own or sampled identities, 512)
        return self.weight.grad._values() if self.weight.grad.is_sparse else self.weight.grad


class _AgreeingScaler(torch.amp.GradScaler):
    """A scaler sees the gradients of its own process; all other parameters' are alike on all."""

    def __init__(self, shards: ClassShards, device: str, enabled: bool):
        super().__init__(device, enabled=enabled)
        self.shards = shards

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        if self.is_enabled():
            self.shards.spread_overflow()
        super().unscale_(optimizer)


# ---------------------------------------------------------------------------------------------------- checkpoints


def save_shards(folder: Path, step: int, content: dict[str, Any], process: DistInfo) -> None:
    """Every process writes its rows and takes them out of `content`, where "shards" then lists the files.

    Raises:
        OSError: on all processes, when one could not write its file.
        UserError: on all processes, when the first one can't see a file that another one wrote.
    """
    rows, digest, reason = _take_rows(content), None, None
    try:
        digest = save_shard(folder, step, process.rank, process.world_size, rows)
    except OSError as error:
        reason = str(error)
    shards = gather_lists([(digest, len(rows["weight"]), reason)], process)
    reasons = [reason for _, _, reason in shards if reason]
    if reasons:
        raise OSError(reasons[0])
    content["shards"] = {"sha256": [digest for digest, _, _ in shards], "rows": [count for _, count, _ in shards]}
    paths = [shard_path(folder / f"step_{step:08d}.pth", rank, process.world_size) for rank in range(len(shards))]
    missing = gather_lists([path for path in paths if process.is_first and not path.is_file()], process)
    if missing:
        raise UserError(f"{missing[0]} was written by another machine and is not visible on this one: give a "
                        f"--run-folder on storage that all machines share.")  # fmt: skip


def load_with_rows(path: Path, own: range | None, num_identities: int, process: DistInfo) -> dict[str, Any]:
    """A checkpoint with those rows, `own`, of margin weight and momentum that this process holds; None: as it is.

    Only files that overlap them are read. Of a checkpoint of another number of identities the rows stay away.

    Raises:
        UserError: on all processes, when one of them can't use it.
    """
    content, errors = None, []
    try:
        content = load_checkpoint(path)
        if own is not None:
            _put_rows(path, content, own, num_identities)
    except UserError as error:
        errors = [error.with_traceback(None)]
    except (KeyError, IndexError, TypeError):
        pass  # of another stage or model: loading it reports what is missing
    errors = gather_lists(errors, process)
    if errors:
        raise errors[0]
    return content


def _momentum_place(content: dict[str, Any]) -> tuple[dict, int]:
    optimiser = content["optimisers"]["identity"]
    return optimiser["state"], optimiser["param_groups"][-1]["params"][-1]


def _take_rows(content: dict[str, Any]) -> dict[str, Tensor]:
    """Moves the rows out of a checkpoint's content; the optimiser's own tables are left as they are."""
    rows = {"weight": content["model"].pop(WEIGHT)}
    state, place = _momentum_place(content)
    momentum = state.get(place, {}).get("momentum_buffer")
    if momentum is not None:
        rows["momentum"] = momentum
        optimiser = content["optimisers"]["identity"]
        others = {key: value for key, value in state.items() if key != place}
        content["optimisers"] = content["optimisers"] | {"identity": optimiser | {"state": others}}
    return rows


def _put_rows(path: Path, content: dict[str, Any], own: range, num_identities: int) -> None:
    """Puts the rows `own` into the content, from the shards beside it or from the whole weight in it."""
    state, place = _momentum_place(content)
    if "shards" in content:
        if sum(content["shards"]["rows"]) != num_identities:
            return
        rows = read_rows(path, content["shards"], own)
    elif len(own) == num_identities or len(content["model"][WEIGHT]) != num_identities:
        return
    else:
        rows = {"weight": content["model"][WEIGHT], "momentum": state.get(place, {}).get("momentum_buffer")}
        rows = {name: whole[own.start : own.stop].clone() for name, whole in rows.items() if whole is not None}
    content["model"][WEIGHT] = rows["weight"]
    if "momentum" in rows:
        state[place] = {"momentum_buffer": rows["momentum"]}


def whole_weight(own: Tensor, num_identities: int, process: DistInfo) -> Tensor | None:
    """All rows of the margin weight on the first process, on the CPU, gathered piece by piece; None on others."""
    if not process.is_first:
        for rows in own.detach().split(ROWS_SENT):
            dist.send(rows.cpu(), 0, group=process.cpu_group)
        return None
    whole = torch.empty(num_identities, *own.shape[1:], dtype=own.dtype)
    whole[: len(own)] = own.detach()
    for rank in range(1, process.world_size):
        share = _share(num_identities, rank, process.world_size)
        for rows in whole[share.start : share.stop].split(ROWS_SENT):
            dist.recv(rows, rank, group=process.cpu_group)
    return whole
