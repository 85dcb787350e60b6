"""The rule by which the known-good numbers in tests/golden fill a model: weights are drawn by key, not stored."""

import functools
import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.iefp import IEFP


def fill(model: nn.Module) -> nn.Module:
    """Fills every tensor of the state_dict but num_batches_tracked, in place; the model keeps its dtype."""
    state = model.state_dict()
    model.load_state_dict({key: value if key.endswith("num_batches_tracked") else _draw(key, value.shape)
                           for key, value in state.items()})  # fmt: skip
    return model


def filled(*given: Any, **named: Any) -> IEFP:
    """IEFP(*given, **named) in double precision, filled; its own initial weights, which take as long, aren't drawn."""
    with torch.device("meta"):
        model = IEFP(*given, **named)
    model = model.double().to_empty(device="cpu")
    assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()  # any other would stay undefined
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.num_batches_tracked.zero_()
    return fill(model)


@functools.cache
def _draw(key: str, shape: torch.Size) -> Tensor:
    drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)
    t = torch.from_numpy(np.asarray(drawn))  # float32 arithmetic from here on, as when the numbers were made
    if key.endswith("running_var"):
        return 1 + 0.5 * t.abs()
    if key.endswith(("running_mean", "bias")):
        return 0.1 * t
    if key.endswith("prelu.weight"):
        return 0.25 + 0.05 * t
    if t.ndim == 1:
        return 1 + 0.1 * t
    return t * (1 / math.sqrt(math.prod(t.shape[1:])))  # a division would round otherwise in the last bit
