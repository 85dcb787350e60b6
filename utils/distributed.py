"""One path for one and for many processes: torchrun's environment, nothing else."""

import atexit
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from meta import UserError

# Groups of gloo stay until the process ends (`leave`). To let go of one waits, with the interpreter locked, for its
# thread, which may need the interpreter to let go of a tensor: the process would hang (seen with torch 2.6).
JOINED: list[dist.ProcessGroup] = []

# How long a process of the CPU group waits for the others: one may list five million pictures, look at each of them on
# a slow network disk, or score a large benchmark. One that dies is noticed at once, by its closed connection.
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Process:
    """Who this process is among the ones that train together."""

    rank: int
    world_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None  # for what lies on the CPU: small facts and results; None when alone
    node: int = 0  # machine, of `num_nodes`, which all have as many processes
    num_nodes: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def processes_of_node(self) -> int:
        return self.world_size // self.num_nodes

    @property
    def local_rank(self) -> int:
        """Its number among the processes of its machine."""
        return self.rank % self.processes_of_node

    @property
    def is_first_of_node(self) -> bool:
        return self.local_rank == 0


def start_process(device: str = "auto") -> Process:
    """Joins the group that torchrun started (NCCL on GPUs, gloo on CPUs), or stands alone without torchrun.

    Raises:
        UserError: a device that this machine has not.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        return Process(rank, world_size, chosen)
    if not dist.is_initialized():
        join_group("nccl" if chosen.type == "cuda" else "gloo")
    cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE) if chosen.type == "cuda" else dist.group.WORLD
    JOINED.append(cpu_group)
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # torchrun gives every machine as many
    return Process(rank, world_size, chosen, cpu_group, rank // of_node, world_size // of_node)


def join_group(backend: str) -> None:
    """Meets the other processes of this attempt.

    Between restarts torchrun may keep the store in which processes leave their addresses (it does unless it was given
    --standalone or --rdzv-backend c10d), so each attempt has names of its own: the dead are not called again.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    attempt = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    timeout = PATIENCE if backend == "gloo" else None  # NCCL's own, ten minutes, for what takes milliseconds
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=timeout)


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """`auto` -> the process's GPU where there is one, else the CPU; other names as torch spells them.

    Raises:
        UserError: a device that this machine has not.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device} is no device: give auto, cpu, cuda or cuda:0.") from None
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and not has_cuda):
        raise UserError(f"--device {device} is not on this machine: give auto or cpu.")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank)
    if chosen.type == "cuda" and chosen.index >= torch.cuda.device_count():
        raise UserError(
            f"{chosen} is not on this machine, which has {torch.cuda.device_count()} GPUs: "
            f"lower --nproc-per-node of torchrun or change --device."
        )
    return chosen


def stop_process(process: Process) -> None:
    """Leaves the group."""
    if process.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Ends this process with an exit status.

    One of several ends without taking the interpreter down piece by piece: gloo's threads may still hold tensors then,
    and to let go of one without an interpreter ends the process with SIGABRT (pytorch issue 190489).
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        atexit._run_exitfuncs()  # data workers are ended there
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def in_parallel(module: nn.Module, process: Process, sync_batchnorm: bool = False) -> nn.Module:
    """`module` with gradients averaged over the processes, or the module itself where there is only one.

    Which parameters need gradients must be settled before. `sync_batchnorm` replaces its BatchNorm layers, in place, by
    ones whose batch statistics are of the whole batch.
    """
    if process.world_size == 1:
        return module
    if sync_batchnorm:
        synchronise_batchnorm(module, process)
    devices = [process.device] if process.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices)


class SumOverProcesses(torch.autograd.Function):
    """The sum of all processes' values; each one's value counts in every sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient)


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose batch statistics are of all processes' equal shares, on any device; torch's own is for GPUs."""

    def _check_input_dim(self, x: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:  # (N, C) or (N, C, H, W)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        others = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size()  # values a channel
        mean = SumOverProcesses.apply(x.sum(others)) / count
        centred = x - mean.view(shape)
        variance = SumOverProcesses.apply((centred**2).sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        return centred * torch.rsqrt(variance + self.eps).view(shape) * self.weight.view(shape) + self.bias.view(shape)


def synchronise_batchnorm(module: nn.Module, process: Process) -> None:
    """Makes every BatchNorm inside `module` take its batch statistics over all processes; parameters stay the same."""
    if process.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            whole = WholeBatchNorm(child.num_features, child.eps, child.momentum)
            whole.weight, whole.bias = child.weight, child.bias
            whole.running_mean, whole.running_var = child.running_mean, child.running_var
            whole.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, whole.train(child.training))
        else:
            synchronise_batchnorm(child, process)


class Collectives:
    """How processes that each hold a part join what they have; one process alone gets each value back as it is."""

    def __init__(self, process: Process):
        self.rank, self.world_size = process.rank, process.world_size
        self.is_alone = process.world_size == 1

    def gather(self, rows: Tensor) -> Tensor:
        """(N, ...) of each process, N the same on all -> (world_size * N, ...) in order of rank."""
        if self.is_alone:
            return rows
        everyones = rows.new_empty(self.world_size * len(rows), *rows.shape[1:])
        dist.all_gather(list(everyones.chunk(self.world_size)), rows.contiguous())
        return everyones

    def own_part(self, rows: Tensor) -> Tensor:
        """(world_size * N, ...) of each process -> (N, ...): the rows that `gather` had of it, over all summed up."""
        if self.is_alone:
            return rows
        share = len(rows) // self.world_size
        if rows.is_cuda:
            part = rows.new_empty(share, *rows.shape[1:])
            dist.reduce_scatter(part, list(rows.contiguous().chunk(self.world_size)))
            return part
        return self.sum(rows)[self.rank * share : (self.rank + 1) * share]  # older versions of gloo can't do it in one

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def maximum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Tensor, how: dist.ReduceOp) -> Tensor:
        if not self.is_alone:
            values = values.contiguous().clone()
            dist.all_reduce(values, how)
        return values


def average(values: Tensor, process: Process) -> Tensor:
    """The mean of `values` over all processes."""
    if process.world_size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= process.world_size
    return values


def gather_lists(own: list, process: Process) -> list:
    """The lists of all processes joined, in order of rank; every process gets them."""
    if process.world_size == 1:
        return own
    everyones: list = [None] * process.world_size
    dist.all_gather_object(everyones, own, group=process.cpu_group)
    return [item for one in everyones for item in one]


def sum_rows(array: np.ndarray, process: Process) -> None:
    """Adds up the arrays of all processes, in place; each process has filled rows of its own and left the others 0."""
    if process.world_size > 1:
        dist.all_reduce(torch.from_numpy(array), group=process.cpu_group)


def share_batchnorm_statistics(model: object, process: Process) -> None:
    """Gives every process the first one's running statistics, as DistributedDataParallel does before the next step.

    Between steps each process has those that its own share led to.
    """
    if process.world_size == 1 or not isinstance(model, nn.Module):
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            dist.broadcast(module.running_mean, 0)
            dist.broadcast(module.running_var, 0)


def wait_for_all(process: Process) -> None:
    """Waits for the others, for hours if need be (on GPUs the group of NCCL would give up after ten minutes)."""
    if process.world_size > 1:
        dist.barrier(group=process.cpu_group)


def tell(process: Process, sentence: str) -> None:
    """Prints a sentence once, not once a process."""
    if process.is_first:
        print(sentence, flush=True)
