"""Ages of all pictures of a data set, estimated by an age branch; an interrupted estimation resumes."""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.faces import UNKNOWN, Faces
from data.loaders import batches, evaluation_loader
from data.transforms import to_network_input
from meta import AGE_GROUP_MIDDLES, MAX_AGE, MIN_AGE, UserError
from models.age_heads import expected_age
from models.weights import load_for_ages, model_fingerprint
from utils.cli import printable
from utils.files import Progress, no_progress, sha256
from utils.progress import counted

MAGIC = b"ages of pictures 1 "  # a part file begins with it, then the fingerprint's SHA-256
HEADER_BYTES = 128
NUM_SHOWN = 5  # of pictures that can't be decoded
Predict = Callable[[Tensor], Tensor]  # images uint8 (B, 3, 112, 112) -> years (B,)


class LabelledAges(NamedTuple):
    ages: np.ndarray  # (N,) float32, years; NaN where the picture cannot be decoded
    failures: tuple[str, ...]  # a sentence for each of these pictures


def estimate_ages(
    faces: Faces,
    weights: str | Path,
    part_path: str | Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: Progress = no_progress,
) -> np.ndarray:
    """(N,) years of all pictures by the age branch of a weight file, -1 where a picture can't be decoded.

    See `label_ages`, also for `part_path`.

    Raises:
        UserError: no such weight file, or one without an age branch; pictures that can't be decoded (unless "skip"),
            after all others got their ages.
    """
    predict, fingerprint = load_age_predictor(weights, device)
    load = functools.partial(evaluation_loader, faces, batch_size, workers, device.type == "cuda", on_bad_image="skip")
    labelled = label_ages(
        predict,
        lambda positions: batches(load(indices=positions.tolist())),
        len(faces),
        device,
        part_path=part_path,
        fingerprint=f"{fingerprint} {faces.state(progress)}",
    )
    for failure in labelled.failures[:NUM_SHOWN]:
        print(f"cannot be decoded: {printable(failure)}", file=sys.stderr)
    if labelled.failures and on_bad_image == "error":
        raise UserError(
            f"{len(labelled.failures):,} pictures cannot be decoded: replace them and start again (the ages of the "
            "others are kept), or give --on-bad-image skip to leave them out of the table."
        )
    return np.where(np.isnan(labelled.ages), UNKNOWN, labelled.ages)


def load_age_predictor(weights: str | Path, device: torch.device) -> tuple[Predict, str]:
    """A function from images uint8 (B, 3, 112, 112) to years (B,) by an age branch, and the model's fingerprint.

    The years are the expected age where the branch has a head for years, else the middle of the most probable group.
    """
    model = load_for_ages(weights).to(device)
    fingerprint = model_fingerprint(sha256(weights), model)
    middles = torch.tensor(AGE_GROUP_MIDDLES, dtype=torch.float32, device=device)

    def predict(images: Tensor) -> Tensor:
        age = model.age_features(to_network_input(images, channels_last=True))
        if model.year_head is not None:
            return expected_age(model.year_head(age))
        return middles[model.age_logits(age).argmax(1)]

    return predict, fingerprint


@torch.inference_mode()
def label_ages(
    predict: Predict,
    batches_of: Callable[[np.ndarray], Iterable],
    num_images: int,
    device: torch.device,
    *,
    part_path: str | Path,
    fingerprint: str,
    flush_every: int = 50,
    report: Callable[[str], object] = print,
) -> LabelledAges:
    """The age of every picture, the mean of `predict` over the picture and its mirror image.

    `batches_of` maps the positions (K,) int64 that still need an age to batches with `.images` uint8
    (B, 3, 112, 112), `.indices` (B,) and `.failures`: sentences about pictures that could not be decoded, which another
    picture of the data set replaces in the batch. So one broken picture does not end the work of hours.
    The ages so far are in the file `part_path`, written every `flush_every` batches. A file with another `fingerprint`
    (of the weights, and of the pictures' names, sizes and times) is discarded and reported. The caller removes it once
    the ages are stored.

    Raises:
        UserError: `part_path` holds something else, or a predicted age is out of range.
    """
    ages = open_part_file(part_path, num_images, fingerprint, report)
    waiting = np.flatnonzero(np.isnan(ages))
    if len(waiting) < num_images:
        report(f"{num_images - len(waiting):,} of {num_images:,} ages are in {part_path} already: going on from there.")
    failures: dict[str, None] = {}  # an ordered set: a broken picture may be reported twice
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


def both_views(predict: Predict, images: Tensor) -> Tensor:
    """Years (B,) of images (B, 3, 112, 112): the mean of `predict` over each and its mirror image."""
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


def open_part_file(
    path: str | Path, num_images: int, fingerprint: str, report: Callable[[str], object] = print
) -> np.memmap:
    """(N,) float32 on disk, NaN where no age is known yet: a new file, or that of an earlier run.

    Raises:
        UserError: `path` is something else than such a file.
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
        report(f"The unfinished ages in {path} are of other weights or other pictures, or damaged: starting anew.")
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
