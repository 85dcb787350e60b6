"""Training in several processes: gradients averaged, BatchNorm over the whole batch, collectives for sharded rows."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import DistInfo


def wrap_ddp(module: nn.Module, process: DistInfo, sync_batchnorm: bool = False) -> nn.Module:
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


def synchronise_batchnorm(module: nn.Module, process: DistInfo) -> None:
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


def share_batchnorm_statistics(model: object, process: DistInfo) -> None:
    """Gives every process the first one's running statistics, as DistributedDataParallel does before the next step.

    Between steps each process has those that its own share led to.
    """
    if process.world_size == 1 or not isinstance(model, nn.Module):
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            dist.broadcast(module.running_mean, 0)
            dist.broadcast(module.running_var, 0)


class Collectives:
    """How processes that each hold a part join what they have; one process alone gets each value back as it is."""

    def __init__(self, process: DistInfo):
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
