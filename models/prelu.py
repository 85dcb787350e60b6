"""PReLU as the encoders use it, faster on GPUs.

Torch's own backward pass writes, for the few numbers of the slope's gradient, a tensor as large as the input and sums
it up in a pass of its own, and in channels-last neither of its passes moves more than a value at a time. Kernels of our
own (models.prelu_kernels) do each pass once, with sums in fp32. They are taken for images in channels-last on a GPU
where Triton works, and not under torch.compile, which makes kernels itself.
"""

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL_TYPES = (torch.float16, torch.bfloat16, torch.float32)


class PReLU(nn.PReLU):
    """nn.PReLU with a slope a channel: x where x > 0, else slope * x; (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if self._has_kernels_for(x):
            return _KernelPReLU.apply(x, self.weight)
        return F.prelu(x, self.weight)

    def _has_kernels_for(self, x: Tensor) -> bool:
        if not x.is_cuda or x.dim() != 4 or x.dtype not in KERNEL_TYPES or torch.compiler.is_compiling():
            return False
        if torch.is_autocast_enabled("cuda") and x.dtype != torch.get_autocast_dtype("cuda"):
            return False  # torch's own would shorten x
        return x.is_contiguous(memory_format=torch.channels_last) and kernels(x.device) is not None


class _KernelPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return kernels(x.device).prelu(x, slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return kernels(x.device).prelu_backward(x, slope, gradient)


@functools.cache
def kernels(device: torch.device) -> ModuleType | None:
    """The module with the kernels, once they were seen to give there what torch gives; else None, with a warning."""
    try:
        from models import prelu_kernels

        _compare(prelu_kernels, device)
    except Exception as error:  # of Triton, of its compiler, of the driver: of any kind
        reason = str(error).strip().splitlines() or [""]
        warnings.warn(f"PReLU by torch's own kernels: {type(error).__name__}: {reason[0][:200]}", stacklevel=2)
        return None
    return prelu_kernels


def _compare(module: ModuleType, device: torch.device) -> None:
    """Raises AssertionError where kernels and torch differ."""
    draw = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(2, 16, 9, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    slope = torch.rand(16, generator=draw, dtype=torch.float64).requires_grad_()
    x.requires_grad_()
    expected = F.prelu(x, slope)
    expected.backward(gradient)
    x_there, gradient_there = (
        value.detach().to(device, torch.float32).contiguous(memory_format=torch.channels_last)
        for value in (x, gradient)
    )
    slope_there = slope.detach().to(device, torch.float32)
    told = module.prelu(x_there, slope_there), *module.prelu_backward(x_there, slope_there, gradient_there)
    for value, wanted in zip(told, (expected.detach(), x.grad, slope.grad), strict=True):
        torch.testing.assert_close(value.double().cpu(), wanted, rtol=1e-4, atol=1e-4)
