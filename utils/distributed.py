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
from torch import Tensor

from meta import UserError

# Groups of gloo are kept until the process ends (`leave`). Destroying one waits, holding the GIL, for its thread, which
# may need the GIL to free a tensor: a deadlock (seen with torch 2.6).
JOINED: list[dist.ProcessGroup] = []

# Timeout of the CPU group: another process may be listing five million pictures on a slow network disk, or scoring a
# large benchmark. A process that dies is noticed at once, by its closed connection.
PATIENCE = timedelta(hours=24)
# How long one waits for the others to start, and in a step: a process whose flags are wrong never joins.
JOINING = timedelta(minutes=10)


@dataclass(frozen=True)
class DistInfo:
    """Rank and device of this process, and its place among the processes that work together."""

    rank: int
    world_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None  # for data on the CPU, such as Python objects; None when alone
    node: int = 0  # index of the machine among `num_nodes`, which all run the same number of processes
    num_nodes: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def processes_of_node(self) -> int:
        return self.world_size // self.num_nodes

    @property
    def local_rank(self) -> int:
        """Index among the processes of its machine."""
        return self.rank % self.processes_of_node

    @property
    def is_first_of_node(self) -> bool:
        return self.local_rank == 0


def init_distributed(device: str = "auto") -> DistInfo:
    """Joins the group that torchrun started (NCCL on GPUs, gloo on CPUs), or stands alone without torchrun.

    Raises:
        UserError: a device that this machine does not have.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        return DistInfo(rank, world_size, chosen)
    if not dist.is_initialized():
        join_group("nccl" if chosen.type == "cuda" else "gloo")
    cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)
    JOINED.append(cpu_group)
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # torchrun starts the same number on each
    return DistInfo(rank, world_size, chosen, cpu_group, rank // of_node, world_size // of_node)


def join_group(backend: str) -> None:
    """Joins the process group of this attempt.

    torchrun may keep the store of the processes' addresses between restarts (unless --standalone or --rdzv-backend
    c10d was given), so each attempt prefixes its keys: processes that died are not contacted again.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    attempt = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=JOINING)


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """`auto` -> the process's GPU where there is one, else the CPU; other names as torch spells them.

    Raises:
        UserError: a device that this machine does not have.
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


def shutdown_distributed(process: DistInfo) -> None:
    """Leaves the group."""
    if process.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Ends this process with an exit status.

    One of several processes skips the interpreter's teardown: gloo's threads may still hold tensors, and freeing one
    without an interpreter aborts the process with SIGABRT (pytorch issue 190489).
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        atexit._run_exitfuncs()  # ends data workers
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def average(values: Tensor, process: DistInfo) -> Tensor:
    """The mean of `values` over all processes."""
    if process.world_size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= process.world_size
    return values


def gather_lists(own: list, process: DistInfo) -> list:
    """The lists of all processes joined, in order of rank; every process gets them."""
    if process.world_size == 1:
        return own
    everyones: list = [None] * process.world_size
    dist.all_gather_object(everyones, own, group=process.cpu_group)
    return [item for one in everyones for item in one]


def sum_rows(array: np.ndarray, process: DistInfo) -> None:
    """Adds up the arrays of all processes, in place; each process has filled rows of its own and left the others 0."""
    if process.world_size > 1:
        dist.all_reduce(torch.from_numpy(array), group=process.cpu_group)


def barrier(process: DistInfo) -> None:
    """Waits for the other processes, on the CPU group: NCCL's would time out after ten minutes."""
    if process.world_size > 1:
        dist.barrier(group=process.cpu_group)


def print_rank0(process: DistInfo, sentence: str) -> None:
    """Prints on rank 0 only."""
    if process.is_first:
        print(sentence, flush=True)
