"""BatchNorm and PReLU as the encoders use them, faster on GPUs.

torch's own versions are slow there: its PReLU, in channels-last, moves one value at a time and writes a tensor as large
as the input for the few numbers of the slope's gradient; its BatchNorm doesn't use cuDNN in bf16; and PReLU after
BatchNorm passes all values through memory once more than necessary. The kernels in models.layer_kernels compute PReLU,
BatchNorm, and both fused; the backward pass of the fused one needs only the input of BatchNorm, so nothing else is
saved. They compute in fp32. They are used for images in channels-last on a GPU where Triton works, but not under
torch.compile, which generates kernels itself; everything else is left to torch.
"""

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SHORT_TYPES = (torch.float16, torch.bfloat16)
FEWEST_VALUES = 2**23  # for BatchNorm alone: below, launching its kernels takes longer than they run


class PReLU(nn.PReLU):
    """nn.PReLU with a slope a channel: x where x > 0, else slope * x; (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (*SHORT_TYPES, torch.float32) and _has_kernels_for(x):
            return _KernelPReLU.apply(x, self.weight)
        return F.prelu(x, self.weight)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d: statistics of the batch in training, else the running ones; (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        # In fp16 cuDNN's kernels are just as fast.
        if x.dtype == torch.bfloat16 and x.numel() >= FEWEST_VALUES and self.has_kernels_for(x):
            return self.with_slope(x, None)
        return super().forward(x)

    def has_kernels_for(self, x: Tensor) -> bool:
        is_plain = self.training and self.affine and self.track_running_stats and self.momentum is not None
        return is_plain and x.dtype in SHORT_TYPES and _has_kernels_for(x)

    def with_slope(self, x: Tensor, slope: Tensor | None) -> Tensor:
        """Computed by the kernels, with PReLU after it if there is a slope (C,)."""
        self.num_batches_tracked.add_(1)
        return _KernelBatchNorm.apply(x, self.weight, self.bias, slope, self)


def norm_prelu(norm: nn.Module, prelu: PReLU, x: Tensor) -> Tensor:
    """prelu(norm(x)), fused where there is a kernel for it; for other kinds of BatchNorm there is none."""
    if type(norm) is BatchNorm2d and norm.has_kernels_for(x):
        return norm.with_slope(x, prelu.weight)
    return prelu(norm(x))


def _has_kernels_for(x: Tensor) -> bool:
    if not x.is_cuda or x.dim() != 4 or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cuda") and x.dtype != torch.get_autocast_dtype("cuda"):
        return False  # torch's PReLU would cast x to the shorter type
    return x.is_contiguous(memory_format=torch.channels_last) and kernels(x.device) is not None


class _KernelPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return kernels(x.device).prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        return kernels(x.device).prelu_backward(x, slope, gradient.contiguous(memory_format=torch.channels_last))


class _KernelBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor | None,
        norm: nn.BatchNorm2d,  # its running statistics move in place
    ) -> Tensor:
        running = norm.running_mean, norm.running_var
        of_batch = kernels(x.device).statistics(x, running, norm.momentum, norm.eps)  # (2, C)
        ctx.save_for_backward(x, weight, bias, slope, of_batch)
        return kernels(x.device).normalise(x, weight, bias, slope, of_batch)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, slope, of_batch = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return *kernels(x.device).normalise_backward(x, weight, bias, slope, of_batch, gradient), None


# -------------------------------------------------------------------------------------- whether the kernels can be used


@functools.cache
def kernels(device: torch.device) -> ModuleType | None:
    """The module with the kernels if they reproduce torch's results on this device; else None, with a warning."""
    try:
        from models import layer_kernels

        with torch.inference_mode(False), torch.enable_grad():  # whoever calls first
            _compare(layer_kernels, device)
    except Exception as error:  # Triton, its compiler and the driver raise kinds of their own
        reason = str(error).strip().splitlines() or [""]
        warnings.warn(
            f"BatchNorm and PReLU by torch's own kernels: {type(error).__name__}: {reason[0][:200]}", stacklevel=2
        )
        return None
    return layer_kernels


def _compare(module: ModuleType, device: torch.device) -> None:
    """Raises AssertionError where kernels and torch's float64 differ."""
    draw = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(2, 16, 9, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight, bias, slope = (torch.rand(16, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3))
    running = torch.zeros(16, dtype=torch.float64), torch.ones(16, dtype=torch.float64)
    there = [value.detach().to(device, torch.float32) for value in (x, gradient, weight, bias, slope, *running)]
    x_there, gradient_there = (value.contiguous(memory_format=torch.channels_last) for value in there[:2])

    wanted = [F.prelu(x, slope).detach(), *torch.autograd.grad(F.prelu(x, slope), (x, slope), gradient)]
    found = [module.prelu(x_there, there[4]), *module.prelu_backward(x_there, there[4], gradient_there)]
    for slopes in ([], [slope]):
        y = F.batch_norm(x, None, None, weight, bias, training=True)
        y = F.prelu(y, slope) if slopes else y
        wanted += [y.detach(), *torch.autograd.grad(y, (x, weight, bias, *slopes), gradient)]
        given = there[2], there[3], there[4] if slopes else None
        of_batch = module.statistics(x_there, (there[5], there[6]), 0.1, 1e-5)
        found += [module.normalise(x_there, *given, of_batch)]
        found += [value for value in module.normalise_backward(x_there, *given, of_batch, gradient_there)
                 if value is not None]  # fmt: skip
        F.batch_norm(x, *running, training=True)
    for value, expected in zip([*found, *there[5:]], [*wanted, *running], strict=True):
        torch.testing.assert_close(value.double().cpu(), expected, rtol=1e-4, atol=1e-4)
