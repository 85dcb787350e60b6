"""PReLU, BatchNorm and the two as one, as Triton kernels for images in channels-last: rows of pixels, columns of
channels. Values are read and written as they are stored; all between is fp32.

Sums over pixels go in two steps, tiles within a program and programs, in an order that is always the same.
TRITON_INTERPRET=1 runs all of it without a GPU, slowly, which is how the tests hold it to torch's own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values that a program takes at once
WARPS = 8
PROGRAMS_A_PROCESSOR = 8  # where each sums up many tiles before it writes
PROCESSORS_OF_NO_GPU = 1


class _Tiles(NamedTuple):
    """How an image tensor is cut."""

    rows: int  # pixels of all images
    channels: int
    count: int  # tiles
    rows_a_tile: int
    columns: int  # of a tile: a power of two
    programs: int  # where each takes many tiles


def _tiles_of(x: Tensor) -> _Tiles:
    channels = x.shape[1]
    rows, columns = x.numel() // channels, triton.next_power_of_2(channels)
    rows_a_tile = max(1, TILE // columns)
    count = triton.cdiv(rows, rows_a_tile)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else PROCESSORS_OF_NO_GPU
    return _Tiles(rows, channels, count, rows_a_tile, columns, min(count, PROGRAMS_A_PROCESSOR * processors))


@triton.jit
def _places(tile, num_rows, channels, rows_a_tile: tl.constexpr, columns: tl.constexpr):
    """Places of a tile's values, and which of them there are."""
    row = tl.arange(0, rows_a_tile).to(tl.int64) + tile * rows_a_tile  # places pass 2 to the power of 31
    column = tl.arange(0, columns)
    return row[:, None] * channels + column[None, :], (row < num_rows)[:, None] & (column < channels)[None, :]


@triton.jit
def _a_channel(values, channels, columns: tl.constexpr):
    """A number a channel, as a row."""
    column = tl.arange(0, columns)
    return tl.load(values + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]


# ---------------------------------------------------------------------------------------------------------------- PReLU


@triton.jit
def _prelu(x, slope, y, num_rows, channels, rows_a_tile: tl.constexpr, columns: tl.constexpr):
    place, there = _places(tl.program_id(0), num_rows, channels, rows_a_tile, columns)
    value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    tl.store(y + place, tl.where(value > 0, value, value * _a_channel(slope, channels, columns)), mask=there)


@triton.jit
def _prelu_backward(
    x, slope, of_y, of_x, of_slope, num_rows, channels, tiles, rows_a_tile: tl.constexpr, columns: tl.constexpr
):
    factor = _a_channel(slope, channels, columns)
    total = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        place, there = _places(tile, num_rows, channels, rows_a_tile, columns)
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        gradient = tl.load(of_y + place, mask=there, other=0.0).to(tl.float32)
        tl.store(of_x + place, tl.where(value > 0, gradient, gradient * factor), mask=there)
        total += tl.where(value > 0, 0.0, value * gradient)
    column = tl.arange(0, columns)
    tl.store(of_slope + tl.program_id(0) * channels + column, tl.sum(total, axis=0), mask=column < channels)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x (N, C, H, W) in channels-last, slope (C,) -> the same shape, type and layout as x."""
    y, cut = torch.empty_like(x), _tiles_of(x)
    _prelu[(cut.count,)](x, slope, y, cut.rows, cut.channels, cut.rows_a_tile, cut.columns, num_warps=WARPS)
    return y


def prelu_backward(x: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and slope; `gradient` is that of the output, in channels-last."""
    of_x, cut = torch.empty_like(x), _tiles_of(x)
    of_slope = torch.empty(cut.programs, cut.channels, dtype=torch.float32, device=x.device)
    _prelu_backward[(cut.programs,)](x, slope, gradient, of_x, of_slope, cut.rows, cut.channels, cut.count,
                                     cut.rows_a_tile, cut.columns, num_warps=WARPS)  # fmt: skip
    return of_x, of_slope.sum(dim=0)


# --------------------------------------------------------------------------------- BatchNorm, with and without PReLU


@triton.jit
def _sums(x, sums, num_rows, channels, tiles, rows_a_tile: tl.constexpr, columns: tl.constexpr):
    """sums (programs, 2, C), plain and squared, of x less its first pixel: so the variance keeps its digits."""
    first = _a_channel(x, channels, columns)
    plain = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    squared = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        place, there = _places(tile, num_rows, channels, rows_a_tile, columns)
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        value = tl.where(there, value - first, 0.0)
        plain += value
        squared += value * value
    column = tl.arange(0, columns)
    own = sums + tl.program_id(0) * 2 * channels + column
    tl.store(own, tl.sum(plain, axis=0), mask=column < channels)
    tl.store(own + channels, tl.sum(squared, axis=0), mask=column < channels)


@triton.jit
def _finish_statistics(
    x, sums, of_batch, running_mean, running_var, momentum, eps, num_rows, channels, programs,
    programs_at_once: tl.constexpr, channels_at_once: tl.constexpr
):  # fmt: skip
    """Mean and 1 / deviation of some channels, of_batch (2, C); the running ones move."""
    column = tl.program_id(0) * channels_at_once + tl.arange(0, channels_at_once)
    is_channel = column < channels
    plain = tl.zeros((programs_at_once, channels_at_once), dtype=tl.float32)
    squared = tl.zeros((programs_at_once, channels_at_once), dtype=tl.float32)
    for start in range(0, programs, programs_at_once):
        program = start + tl.arange(0, programs_at_once)
        place = program[:, None] * 2 * channels + column[None, :]
        there = (program < programs)[:, None] & is_channel[None, :]
        plain += tl.load(sums + place, mask=there, other=0.0)
        squared += tl.load(sums + place + channels, mask=there, other=0.0)
    from_first = tl.sum(plain, axis=0) / num_rows
    variance = tl.maximum(tl.sum(squared, axis=0) / num_rows - from_first * from_first, 0.0)
    mean = from_first + tl.load(x + column, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(of_batch + column, mean, mask=is_channel)
    tl.store(of_batch + channels + column, 1.0 / tl.sqrt(variance + eps), mask=is_channel)
    before = tl.load(running_mean + column, mask=is_channel, other=0.0)
    tl.store(running_mean + column, before + momentum * (mean - before), mask=is_channel)
    before = tl.load(running_var + column, mask=is_channel, other=0.0)
    unbiased = variance * (num_rows / (num_rows - 1.0))
    tl.store(running_var + column, before + momentum * (unbiased - before), mask=is_channel)


@triton.jit
def _normalise(
    x, weight, bias, slope, of_batch, y, num_rows, channels, tiles,
    has_slope: tl.constexpr, rows_a_tile: tl.constexpr, columns: tl.constexpr
):  # fmt: skip
    mean = _a_channel(of_batch, channels, columns)
    factor = _a_channel(of_batch + channels, channels, columns) * _a_channel(weight, channels, columns)
    offset, below = _a_channel(bias, channels, columns), _a_channel(slope, channels, columns)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        place, there = _places(tile, num_rows, channels, rows_a_tile, columns)
        value = (tl.load(x + place, mask=there, other=0.0).to(tl.float32) - mean) * factor + offset
        if has_slope:
            value = tl.where(value > 0, value, value * below)
        tl.store(y + place, value, mask=there)


@triton.jit
def _backward_sums(
    x, weight, bias, slope, of_batch, of_y, sums, num_rows, channels, tiles,
    has_slope: tl.constexpr, rows_a_tile: tl.constexpr, columns: tl.constexpr
):  # fmt: skip
    """sums (programs, 3, C): gradients of bias, weight and slope."""
    mean, inverse = _a_channel(of_batch, channels, columns), _a_channel(of_batch + channels, channels, columns)
    factor, offset = _a_channel(weight, channels, columns), _a_channel(bias, channels, columns)
    below = _a_channel(slope, channels, columns)
    of_bias = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    of_weight = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    of_slope = tl.zeros((rows_a_tile, columns), dtype=tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        place, there = _places(tile, num_rows, channels, rows_a_tile, columns)
        normal = (tl.load(x + place, mask=there, other=0.0).to(tl.float32) - mean) * inverse
        gradient = tl.load(of_y + place, mask=there, other=0.0).to(tl.float32)
        if has_slope:
            value = normal * factor + offset
            of_slope += tl.where(value > 0, 0.0, value * gradient)
            gradient = tl.where(value > 0, gradient, gradient * below)
        of_bias += gradient
        of_weight += gradient * normal
    column = tl.arange(0, columns)
    own = sums + tl.program_id(0) * 3 * channels + column
    tl.store(own, tl.sum(of_bias, axis=0), mask=column < channels)
    tl.store(own + channels, tl.sum(of_weight, axis=0), mask=column < channels)
    tl.store(own + 2 * channels, tl.sum(of_slope, axis=0), mask=column < channels)


@triton.jit
def _normalise_backward(
    x, weight, bias, slope, of_batch, of_y, sums, of_x, num_rows, channels, tiles,
    has_slope: tl.constexpr, rows_a_tile: tl.constexpr, columns: tl.constexpr
):  # fmt: skip
    mean, inverse = _a_channel(of_batch, channels, columns), _a_channel(of_batch + channels, channels, columns)
    factor, offset = _a_channel(weight, channels, columns), _a_channel(bias, channels, columns)
    below = _a_channel(slope, channels, columns)
    of_bias = _a_channel(sums, channels, columns) / num_rows
    of_weight = _a_channel(sums + channels, channels, columns) / num_rows
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        place, there = _places(tile, num_rows, channels, rows_a_tile, columns)
        normal = (tl.load(x + place, mask=there, other=0.0).to(tl.float32) - mean) * inverse
        gradient = tl.load(of_y + place, mask=there, other=0.0).to(tl.float32)
        if has_slope:
            gradient = tl.where(normal * factor + offset > 0, gradient, gradient * below)
        tl.store(of_x + place, (gradient - of_bias - normal * of_weight) * (factor * inverse), mask=there)


PROGRAMS_AT_ONCE, CHANNELS_AT_ONCE = 64, 16  # whose sums are joined


def statistics(x: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float) -> Tensor:
    """x (N, C, H, W) in channels-last -> mean and 1 / deviation (2, C) over all pixels; `running` mean and variance
    (C,) each, fp32, move by `momentum` towards the batch's."""
    cut = _tiles_of(x)
    sums = torch.empty(cut.programs, 2, cut.channels, dtype=torch.float32, device=x.device)
    _sums[(cut.programs,)](x, sums, cut.rows, cut.channels, cut.count, cut.rows_a_tile, cut.columns, num_warps=WARPS)
    of_batch = torch.empty(2, cut.channels, dtype=torch.float32, device=x.device)
    _finish_statistics[(triton.cdiv(cut.channels, CHANNELS_AT_ONCE),)](
        x, sums, of_batch, *running, momentum, eps, cut.rows, cut.channels, cut.programs,
        PROGRAMS_AT_ONCE, CHANNELS_AT_ONCE, num_warps=4,
    )  # fmt: skip
    return of_batch


def normalise(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, of_batch: Tensor) -> Tensor:
    """(x - mean) / deviation * weight + bias, and PReLU of it where there is a slope: all but x are (C,)."""
    y, cut = torch.empty_like(x), _tiles_of(x)
    _normalise[(cut.programs,)](
        x, weight, bias, weight if slope is None else slope, of_batch, y, cut.rows, cut.channels, cut.count,
        slope is not None, cut.rows_a_tile, cut.columns, num_warps=WARPS,
    )  # fmt: skip
    return y


def normalise_backward(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, of_batch: Tensor, gradient: Tensor
) -> Sequence[Tensor | None]:
    """Gradients of x, weight, bias and slope, with those through mean and deviation."""
    of_x, cut, has_slope = torch.empty_like(x), _tiles_of(x), slope is not None
    given = x, weight, bias, slope if has_slope else weight, of_batch, gradient
    sums = torch.empty(cut.programs, 3, cut.channels, dtype=torch.float32, device=x.device)
    _backward_sums[(cut.programs,)](*given, sums, cut.rows, cut.channels, cut.count, has_slope, cut.rows_a_tile,
                                    cut.columns, num_warps=WARPS)  # fmt: skip
    sums = sums.sum(dim=0)  # (3, C)
    _normalise_backward[(cut.programs,)](*given, sums, of_x, cut.rows, cut.channels, cut.count, has_slope,
                                         cut.rows_a_tile, cut.columns, num_warps=WARPS)  # fmt: skip
    return of_x, sums[1], sums[0], sums[2] if has_slope else None
