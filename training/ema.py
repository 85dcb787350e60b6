"""The exponential moving average of a network's weights: often a better network than the last step's.

Source: Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages of some parts of a model: parameters, and BatchNorm's running statistics with them.

    `modules` are the averaged copies by the names that the parts have in `model`, in eval mode and without gradients.
    Step n (from 1) moves them by 1 - min(decay, n / (n + 9)) towards the model: the first steps, when an average over
    1 / (1 - decay) steps would still be the weights it began with, go by fewer.
    """

    def __init__(self, model: nn.Module, names: list[str], decay: float):
        self.model, self.decay, self.num_updates = model, decay, 0
        self.modules = {name: copy.deepcopy(getattr(model, name)).requires_grad_(False).eval() for name in names}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the model as it is now."""
        self.num_updates += 1
        rate = 1 - min(self.decay, self.num_updates / (self.num_updates + 9))
        averages, values = self._tensors()
        torch._foreach_lerp_(averages, values, rate)

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averages that are numbers with a point, and the model's values; counters are copied at once."""
        averages, values = [], []
        for name, averaged in self.modules.items():
            found = getattr(self.model, name).state_dict()
            for key, average in averaged.state_dict().items():
                if average.is_floating_point():
                    averages.append(average)
                    values.append(found[key])
                else:
                    average.copy_(found[key])
        return averages, values

    @contextmanager
    def in_the_model(self) -> Iterator[nn.Module]:
        """The model with the averages in the place of its own parts, as long as the block runs."""
        own = {name: getattr(self.model, name) for name in self.modules}
        try:
            for name, averaged in self.modules.items():
                setattr(self.model, name, averaged)
            yield self.model
        finally:
            for name, module in own.items():
                setattr(self.model, name, module)
                self.modules[name].eval()

    def state_tensors(self) -> Iterator[Tensor]:
        """All that is averaged, and the counters beside it."""
        for averaged in self.modules.values():
            yield from averaged.state_dict().values()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold: tensors and a number."""
        tensors = {name: averaged.state_dict() for name, averaged in self.modules.items()}
        return {"num_updates": self.num_updates, "modules": tensors}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Goes on where a checkpoint stood; None, of a run without an average, begins at the model as it is now.

        Raises:
            KeyError, RuntimeError: the state is of another model.
        """
        for name, averaged in self.modules.items():
            averaged.load_state_dict(state["modules"][name] if state else getattr(self.model, name).state_dict())
        self.num_updates = state["num_updates"] if state else 0
