"""Pictures -> embeddings of both views, once for all protocols."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meta import EMBEDDING_SIZE, IMAGE_SIZE, NUM_AGE_GROUPS, PIXEL_MEAN, PIXEL_SCALE, UserError
from utils.distributed import DistInfo, gather_lists, sum_rows
from utils.progress import counted

GREY_SIDE = IMAGE_SIZE // 2  # the baseline compares grey pictures of half the side: same ranks, a quarter the memory
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of red, green, blue (ITU-R BT.601)


class TwoBranches(Protocol):
    """What extraction asks of a model (models.iefp.IEFP has it)."""

    def identity_features(self, images: Tensor) -> Tensor: ...
    def age_features(self, images: Tensor) -> Tensor: ...
    def age_logits(self, age_features: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Extracted:
    """What the protocols need of N images, in their order, on the CPU."""

    original: np.ndarray  # (N, D) float32, before L2 normalisation
    mirror: np.ndarray  # (N, D) float32, of the mirror images
    age_probabilities_original: np.ndarray | None  # (N, 8) float32; None without an age branch
    age_probabilities_mirror: np.ndarray | None
    grey_pixels: np.ndarray | None  # (N, 56 * 56) float32 in [-1, 1], of the original view; None where none were read
    age_features: np.ndarray | None = None  # (N, 512) float32, before L2 normalisation, of the original view

    @property
    def has_mirror(self) -> bool:
        """False for another model's embeddings of one view, which then stand for both: one array under two names."""
        return self.mirror is not self.original


@torch.inference_mode()
def extract(
    model: TwoBranches,
    batches: Iterable,
    num_images: int,
    process: DistInfo,
    to_network_input: Callable[..., Tensor],
    with_age: bool = True,
    *,
    what: str | None = "embedding",
    with_grey: bool = True,
    size: int = EMBEDDING_SIZE,
    silent_below: float = 0.0,
) -> Extracted:
    """Embeds every image and its mirror image; each is decoded once and mirrored on the device.

    `batches` yields objects with `.images` uint8 (B, 3, 112, 112) and `.indices` (B,); over all processes each index
    0..N-1 comes once. Every process gets the whole result. `size` is that of the model's features. No progress is shown
    without `what`, or where there is no terminal of what takes fewer seconds than `silent_below`.

    Raises:
        UserError: in every process, for a picture that one of them can't read.
    """
    views = np.zeros((2, num_images, size), np.float32)
    ages = np.zeros((2, num_images, NUM_AGE_GROUPS), np.float32)
    grey = np.zeros((num_images if with_grey else 0, GREY_SIDE**2), np.float32)
    age_features = np.zeros((num_images if with_age else 0, EMBEDDING_SIZE), np.float32)
    seen = np.zeros(num_images, np.int64)
    failures = []
    try:
        is_shown = process.is_first and what is not None
        for batch in counted(batches, -(-num_images // process.world_size), what, is_shown, silent_below):
            rows = batch.indices.numpy()
            np.add.at(seen, rows, 1)  # seen[rows] += 1 would count an index once that a batch holds twice
            if with_grey:
                grey[rows] = grey_pixels(batch.images).numpy()
            images = batch.images.to(process.device, non_blocking=True)
            both = both_views(images, to_network_input)
            views[:, rows] = _two_views(model.identity_features(both))
            if with_age:
                of_age = model.age_features(both)
                ages[:, rows] = _two_views(F.softmax(model.age_logits(of_age), dim=1))
                age_features[rows] = _two_views(of_age)[0]
    except UserError as error:
        failures.append(str(error))
    failures = gather_lists(failures, process)  # before the sums, for which a process that failed would not come
    if failures:
        raise UserError(failures[0])
    for array in (views, ages, grey, seen, age_features):
        sum_rows(array, process)
    assert (seen == 1).all(), "every image has to be embedded exactly once"
    grey = grey if with_grey else None
    of_age = (*ages, grey, age_features) if with_age else (None, None, grey, None)
    return Extracted(views[0], views[1], *of_age)


def both_views(images: Tensor, to_network_input: Callable[..., Tensor]) -> Tensor:
    """uint8 (B, 3, 112, 112) -> the images and then their mirror images as the network takes them, (2 B, ...)."""
    images = images.contiguous(memory_format=torch.channels_last)  # as bytes: a quarter of what floats would move
    return to_network_input(torch.cat([images, images.flip(-1)]), channels_last=True)


def grey_pixels(images: Tensor) -> Tensor:
    """uint8 (N, 3, 112, 112) -> grey values (N, 56 * 56) in [-1, 1], each the mean of 2 x 2 pixels."""
    weights = torch.tensor(GREY_WEIGHTS).view(1, 3, 1, 1)
    # The means first: exact, of a quarter of the numbers, and the same whatever the batch (a convolution may not be).
    luma = (F.avg_pool2d(images.float(), 2) * weights).sum(dim=1)  # (N, 56, 56)
    return luma.flatten(1).sub_(PIXEL_MEAN).div_(PIXEL_SCALE)


def _two_views(values: Tensor) -> np.ndarray:  # (2 B, D) -> (2, B, D)
    return values.float().cpu().numpy().reshape(2, len(values) // 2, -1)
