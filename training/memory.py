"""What a step of training takes at its peak: what autograd keeps is counted, the rest follows from sizes."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from meta import EMBEDDING_SIZE

FP32 = 4  # bytes
FEW_IMAGES = (2, 4)  # what is kept grows in a straight line with the images, so two small batches tell it


class SavedTensors:
    """Counts the bytes that autograd keeps for backward passes while it is entered: `now`, and at most, `peak`.

    Each piece of memory counts once, however many operations keep it, until the last of them lets it go. `left_out` is
    there anyway: parameters and buffers.
    """

    def __init__(self, left_out: Iterable[Tensor] = ()):
        self.now = self.peak = 0
        self._left_out = {_place(tensor) for tensor in left_out}
        self._times_kept: Counter[int] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(tensor, self), _Kept.given_back)

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor, times: int) -> None:
        place = _place(tensor)
        if place in self._left_out:
            return
        before = self._times_kept[place]
        self._times_kept[place] += times
        if before == 0 or before + times == 0:
            self.now += times * tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self.now)


class _Kept:
    """A tensor as autograd holds it; the graph lets it go after its backward pass."""

    def __init__(self, tensor: Tensor, counter: SavedTensors):
        self.tensor, self.counter = tensor, counter
        counter._keep(tensor, 1)

    def given_back(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.counter._keep(self.tensor, -1)


def _place(tensor: Tensor) -> int:
    """The same for all tensors that share memory, also on the device "meta", where there is none."""
    return tensor.untyped_storage()._cdata


def saved_by(step: Callable[[int], object], left_out: Iterable[Tensor] = ()) -> tuple[float, float]:
    """Bytes that autograd keeps at most during `step`: for an image more, and whatever their number.

    `step` makes what is to be measured with a batch of so many images.
    """
    left_out, peaks = list(left_out), []
    for num_images in FEW_IMAGES:
        with SavedTensors(left_out) as saved:
            step(num_images)
        peaks.append(saved.peak)
    an_image = (peaks[1] - peaks[0]) / (FEW_IMAGES[1] - FEW_IMAGES[0])
    return an_image, peaks[0] - FEW_IMAGES[0] * an_image


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a step, by what takes them."""

    weights: float  # parameters and buffers, frozen ones too
    gradients: float
    momentum: float
    activations: float  # what autograd keeps of the images, without the logits
    beside: float  # what it keeps whatever the batch: the margin head's normalised weights, 16-bit copies
    logits: float  # one matrix (images, identities)
    head_gradient: float  # of the normalised weights

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


def step_memory(
    num_images: int,
    num_identities: int,
    weights: float,
    trained: float,
    an_image: float,
    beside: float,
    momentum: bool = True,
    logits_an_image: int | None = None,
) -> StepMemory:
    """The peak of a step on one device.

    `weights` and `trained` are bytes of parameters, `an_image` and `beside` as `saved_by` gives them for an encoder
    alone or less the logits for a whole step; `num_identities` is 0 without a margin head.
    An image has as many logits, unless told otherwise: where identities are shared out, a process has those of the
    others' images too.
    """
    logits_an_image = num_identities if logits_an_image is None else logits_an_image
    return StepMemory(
        weights=weights,
        gradients=trained,
        momentum=trained if momentum else 0,
        activations=num_images * an_image,
        beside=beside,
        logits=num_images * logits_an_image * FP32,
        head_gradient=num_identities * EMBEDDING_SIZE * FP32,
    )
