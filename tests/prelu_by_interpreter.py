"""Runs models/prelu_kernels.py without a GPU and compares it with torch's PReLU: a program, since Triton reads the
variable that asks for it once, at import. The last line is JSON: the largest error of each case.

    TRITON_INTERPRET=1 python tests/prelu_by_interpreter.py
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F

from models import prelu_kernels

SHAPES = [(2, 16, 9, 5), (3, 64, 28, 28), (2, 512, 7, 7), (1, 24, 3, 3)]


def error(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    draw = torch.Generator().manual_seed(1)
    x, gradient = (
        torch.randn(shape, generator=draw).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    x[0, :, 0, 0] = 0  # torch takes 0 as not positive
    slope = torch.randn(shape[1], generator=draw)
    told = prelu_kernels.prelu(x, slope), *prelu_kernels.prelu_backward(x, slope, gradient)
    exact_x, exact_slope = x.double().requires_grad_(), slope.double().requires_grad_()
    expected = F.prelu(exact_x, exact_slope)
    expected.backward(gradient.double())
    wanted = expected.detach(), exact_x.grad, exact_slope.grad
    assert [value.dtype for value in told] == [dtype, dtype, torch.float32]
    assert all(value.stride() == x.stride() for value in told[:2])
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(told, wanted, strict=True))


if __name__ == "__main__":
    print(json.dumps({str(dtype).removeprefix("torch."): max(error(shape, dtype) for shape in SHAPES)
                      for dtype in (torch.float32, torch.bfloat16, torch.float16)}))  # fmt: skip
