"""Runs models/layer_kernels.py without a GPU and compares it with torch in float64: a program, since Triton reads the
variable that asks for it once, at import. The last line is JSON: each case's largest error, over the largest value.

    TRITON_INTERPRET=1 python tests/kernels_by_interpreter.py
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn import functional as F

from models import layer_kernels as kernels

SHAPES = [(2, 16, 9, 5), (1, 24, 3, 3), (1, 512, 9, 8)]  # the last: several tiles a program
MOMENTUM, EPS = 0.19, 1e-5


def make_images(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """Images far from 0 where a mean is given, and a gradient."""
    draw = torch.Generator().manual_seed(1)
    x, gradient = (torch.randn(shape, generator=draw) for _ in range(2))
    x = x + mean
    return tuple(value.to(dtype).contiguous(memory_format=torch.channels_last) for value in (x, gradient))


def error(reply: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(reply, wanted, strict=True))


def of_prelu(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    x, gradient = make_images(shape, dtype)
    x[0, :, 0, 0] = 0  # torch takes 0 as not positive
    slope = torch.randn(shape[1])
    reply = kernels.prelu(x, slope), *kernels.prelu_backward(x, slope, gradient)
    exact = x.double().requires_grad_(), slope.double().requires_grad_()
    y = F.prelu(*exact)
    assert [value.dtype for value in reply] == [dtype, dtype, torch.float32]
    assert all(value.stride() == x.stride() for value in reply[:2])
    return error(reply, [y.detach(), *torch.autograd.grad(y, exact, gradient.double())])


def of_batchnorm(shape: tuple[int, ...], dtype: torch.dtype, has_slope: bool) -> float:
    x, gradient = make_images(shape, dtype, mean=20.0)
    weight, bias, slope = (torch.randn(shape[1]) for _ in range(3))
    running = torch.randn(shape[1]), torch.rand(shape[1])
    of_running = [value.double() for value in running]
    slopes = [slope] if has_slope else []
    of_batch = kernels.statistics(x, running, MOMENTUM, EPS)
    given = weight, bias, slope if has_slope else None, of_batch
    reply = [kernels.normalise(x, *given), *kernels.normalise_backward(x, *given, gradient)]
    assert (reply[-1] is None) is not has_slope
    assert all(value.dtype == dtype and value.stride() == x.stride() for value in reply[:2])
    exact = [value.double().requires_grad_() for value in (x, weight, bias, *slopes)]
    y = F.batch_norm(exact[0], *of_running, *exact[1:3], training=True, momentum=MOMENTUM, eps=EPS)
    y = F.prelu(y, exact[3]) if has_slope else y
    wanted = [y.detach(), *torch.autograd.grad(y, exact, gradient.double())]
    return error([*(value for value in reply if value is not None), *running], [*wanted, *of_running])


CASES = {
    "prelu": of_prelu,
    "batchnorm": lambda shape, dtype: of_batchnorm(shape, dtype, False),
    "batchnorm and prelu": lambda shape, dtype: of_batchnorm(shape, dtype, True),
}

if __name__ == "__main__":
    torch.manual_seed(2)
    print(json.dumps({f"{name}, {str(dtype).removeprefix('torch.')}": max(case(shape, dtype) for shape in SHAPES)
                      for name, case in CASES.items()
                      for dtype in (torch.float32, torch.bfloat16, torch.float16)}))  # fmt: skip
