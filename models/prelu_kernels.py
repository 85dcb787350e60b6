"""PReLU's two passes as Triton kernels, for images in channels-last: rows of pixels, columns of channels.

TRITON_INTERPRET=1 runs them without a GPU, slowly, which is how the tests hold them to torch's own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values that a program takes at once
WARPS = 8
PROGRAMS_A_PROCESSOR = 8  # of the backward pass: each sums up many tiles before it writes
PROCESSORS_OF_NO_GPU = 1


@triton.jit
def _forward(x, slope, y, num_rows, channels, rows_a_tile: tl.constexpr, columns: tl.constexpr):
    row = tl.arange(0, rows_a_tile).to(tl.int64) + tl.program_id(0) * rows_a_tile  # places pass 2 to the power of 31
    column = tl.arange(0, columns)
    place = row[:, None] * channels + column[None, :]
    there = (row < num_rows)[:, None] & (column < channels)[None, :]
    value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    factor = tl.load(slope + column, mask=column < channels, other=0.0).to(tl.float32)
    tl.store(y + place, tl.where(value > 0, value, value * factor[None, :]), mask=there)


@triton.jit
def _backward(
    x, slope, of_y, of_x, of_slope, num_rows, channels, tiles, rows_a_tile: tl.constexpr, columns: tl.constexpr
):
    column = tl.arange(0, columns)
    factor = tl.load(slope + column, mask=column < channels, other=0.0).to(tl.float32)
    total = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tl.arange(0, rows_a_tile).to(tl.int64) + tile * rows_a_tile
        place = row[:, None] * channels + column[None, :]
        there = (row < num_rows)[:, None] & (column < channels)[None, :]
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        gradient = tl.load(of_y + place, mask=there, other=0.0).to(tl.float32)
        tl.store(of_x + place, tl.where(value > 0, gradient, gradient * factor[None, :]), mask=there)
        total += tl.where(value > 0, 0.0, value * gradient)
    own = of_slope + tl.program_id(0) * channels + column
    tl.store(own, tl.sum(total, axis=0), mask=column < channels)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    """Rows, channels, rows of a tile and columns of a tile, which are powers of two."""
    channels = x.shape[1]
    columns = triton.next_power_of_2(channels)
    return x.numel() // channels, channels, max(1, TILE // columns), columns


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x (N, C, H, W) in channels-last, slope (C,) -> the same shape, type and layout as x."""
    y = torch.empty_like(x)
    rows, channels, rows_a_tile, columns = _shape(x)
    _forward[(triton.cdiv(rows, rows_a_tile),)](x, slope, y, rows, channels, rows_a_tile, columns, num_warps=WARPS)
    return y


def prelu_backward(x: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and slope; gradient is that of the output, in channels-last. The order of sums is fixed."""
    rows, channels, rows_a_tile, columns = _shape(x)
    tiles = triton.cdiv(rows, rows_a_tile)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else PROCESSORS_OF_NO_GPU
    programs = min(tiles, PROGRAMS_A_PROCESSOR * processors)
    of_x = torch.empty_like(x)
    of_slope = torch.empty(programs, channels, dtype=torch.float32, device=x.device)
    _backward[(programs,)](x, slope, gradient, of_x, of_slope, rows, channels, tiles, rows_a_tile, columns,
                           num_warps=WARPS)  # fmt: skip
    return of_x, of_slope.sum(dim=0).to(slope.dtype)
