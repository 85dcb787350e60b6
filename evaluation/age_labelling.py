"""An age for every picture, estimated by a network; stopped and started again it goes on where it was."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from meta import MAX_AGE, MIN_AGE, UserError
from utils.progress import counted

MAGIC = b"ages of pictures 1 "  # a part file begins with it, then the fingerprint's SHA-256
HEADER_BYTES = 128
Tell = Callable[[str], object]


class LabelledAges(NamedTuple):
    ages: np.ndarray  # (N,) float32, years; NaN where the picture cannot be decoded
    failures: tuple[str, ...]  # what the batches said of these pictures


@torch.inference_mode()
def label_ages(
    predict: Callable[[Tensor], Tensor],
    batches_of: Callable[[np.ndarray], Iterable],
    num_images: int,
    device: torch.device,
    part_path: str | Path,
    fingerprint: str,
    *,
    flush_every: int = 50,
    tell: Tell = print,
) -> LabelledAges:
    """The age of every picture, the mean of what `predict` says of it and of its mirror image.

    `predict` maps images uint8 (B, 3, 112, 112) on `device` to years (B,). `batches_of` maps the positions (K,) int64
    that still need an age to batches with `.images` uint8 (B, 3, 112, 112), `.indices` (B,) and `.failures`: sentences
    about pictures that could not be decoded, in whose place another one of the data set comes. One broken picture so
    does not end the work of hours.
    What is known so far stands in the file `part_path`, written every `flush_every` batches. It is thrown away, and
    `tell` reports it, where its `fingerprint` (of the weights, and of the pictures' names, sizes and times) is another.
    The caller removes it once the ages are stored.

    Raises:
        UserError: for a `part_path` that holds something else, or ages that are none.
    """
    ages = open_part_file(part_path, num_images, fingerprint, tell)
    waiting = np.flatnonzero(np.isnan(ages))
    if len(waiting) < num_images:
        tell(f"{num_images - len(waiting):,} of {num_images:,} ages are in {part_path} already: going on from there.")
    failures: dict[str, None] = {}  # a set in order: a broken picture may be reported twice
    try:
        for count, batch in enumerate(counted(batches_of(waiting), len(waiting), "ages") if len(waiting) else (), 1):
            rows = batch.indices.numpy()
            ages[rows] = _checked(both_views(predict, batch.images.to(device, non_blocking=True)), rows)
            failures |= dict.fromkeys(batch.failures)
            if count % flush_every == 0:
                ages.flush()
    finally:
        ages.flush()
    assert np.isnan(ages).sum() <= len(failures), "every picture has to come once"
    return LabelledAges(np.array(ages), tuple(failures))


def both_views(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Years (B,) of images (B, 3, 112, 112): the mean of what `predict` says of each and of its mirror image."""
    years = predict(torch.cat([images, images.flip(-1)]))  # (2 B,)
    return years.float().view(2, len(images)).mean(dim=0)


def _checked(years: Tensor, rows: np.ndarray) -> np.ndarray:
    years = years.cpu().numpy()
    wrong = np.flatnonzero(~((years >= MIN_AGE) & (years <= MAX_AGE)))  # NaN too: it would wait for an age for ever
    if len(wrong):
        raise UserError(
            f"The network gives picture number {rows[wrong[0]]} the age {years[wrong[0]]:g}, outside {MIN_AGE} to "
            f"{MAX_AGE}: its weights are damaged or not those of an age branch, give others."
        )
    return years


def open_part_file(path: str | Path, num_images: int, fingerprint: str, tell: Tell = print) -> np.memmap:
    """(N,) float32 on the disk, NaN where no age is known yet: a new file, or the one of an earlier run.

    Raises:
        UserError: where `path` is something else than such a file.
    """
    path = Path(path)
    header = (MAGIC + hashlib.sha256(f"{num_images} {fingerprint}".encode()).hexdigest().encode()).ljust(HEADER_BYTES)
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder, where unfinished ages are to be written: move it away.")
    if path.exists():
        with open(path, "rb") as file:
            found = file.read(HEADER_BYTES)
        if not found.startswith(MAGIC):
            raise UserError(f"{str(path)!r} holds no unfinished ages, whose place it is: move it away.")
        if found == header and path.stat().st_size == HEADER_BYTES + 4 * num_images:
            ages = _mapped(path, num_images)
            if (np.isnan(ages) | ((ages >= MIN_AGE) & (ages <= MAX_AGE))).all():
                return ages
        tell(f"The unfinished ages in {path} are of other weights or other pictures, or damaged: starting anew.")
    _write_new(path, header, num_images)
    return _mapped(path, num_images)


def _write_new(path: Path, header: bytes, num_images: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "wb") as file:
            file.write(header)
            file.write(np.full(num_images, np.nan, "<f4"))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _mapped(path: Path, num_images: int) -> np.memmap:
    return np.memmap(path, "<f4", "r+", offset=HEADER_BYTES, shape=(num_images,))
