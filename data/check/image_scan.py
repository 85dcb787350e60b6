"""What the pictures of a data set are like: whether they can be decoded, their sizes, and which are the same."""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data.alignment.template import HOW_TO_ALIGN
from data.faces import FaceIndex, Faces
from data.transforms import UnreadablePicture, decode_picture, picture_size
from meta import IMAGE_SIZE, UserError
from utils.files import Progress
from utils.worker_processes import started

BATCH = 64  # pictures that a worker process hands over at once
FEW = 500  # pictures for which no worker process is worth its start
DIGEST_BYTES = 16  # of a SHA-256: enough that no two different pictures of any set have the same
SAMPLE = 200  # pictures whose headers say whether a set is one of photographs
MAX_ODD_SHARE = 0.1  # of pictures that may be unlike the others
NUM_SHOWN = 3  # sizes, in a message
MAX_STRETCH = 1.1  # longer to shorter side; a face crop that is less oblong is hardly squashed


class ImageScan(NamedTuple):
    """N pictures, read."""

    digests: np.ndarray  # (N, 2) uint64, of the files' bytes; zeros where a picture is in `failures`
    sizes: np.ndarray  # (N, 2) int32, width and height in pixels; zeros where it is in `failures`
    failures: dict[int, str]  # position -> reason


class _Pictures(Dataset):
    """Item i is (digest, width, height, reason); the reason is empty where all is well."""

    def __init__(self, faces: Faces, quick: bool):
        self.faces, self.quick = faces, quick

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, i: int) -> tuple[bytes, int, int, str]:
        try:
            content = self.faces.read(i)
            width, height = picture_size(content) if self.quick else decode_picture(content, self.faces.name(i)).size
        except UnreadablePicture as error:
            return bytes(DIGEST_BYTES), 0, 0, error.reason
        return hashlib.sha256(content).digest()[:DIGEST_BYTES], width, height, ""


def scan_images(faces: Faces, quick: bool, workers: int, progress: Progress, what: str) -> ImageScan:
    """Reads every picture with `workers` processes; `quick` reads its header alone and doesn't decode it."""
    digests = np.zeros((len(faces), 2), dtype=np.uint64)
    sizes = np.zeros((len(faces), 2), dtype=np.int32)
    failures = {}
    batches = DataLoader(
        _Pictures(faces, quick), BATCH, num_workers=workers if len(faces) > FEW else 0, collate_fn=list
    )
    items = (item for batch in started(batches) for item in batch)
    for i, (digest, width, height, reason) in enumerate(progress(items, len(faces), what)):
        digests[i] = np.frombuffer(digest, dtype=np.uint64)
        sizes[i] = width, height
        if reason:
            failures[i] = reason
    return ImageScan(digests, sizes, failures)


def equal_groups(digests: np.ndarray) -> list[list[int]]:
    """Positions of the pictures that are the same, a list for each picture that is there more than once."""
    known = np.flatnonzero(digests.any(axis=1))
    order = known[np.lexsort((known, digests[known, 1], digests[known, 0]))]
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)  # as the one before in this order
    starts = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)) == -1)
    groups = [order[start : end + 1].tolist() for start, end in zip(starts, ends, strict=True)]
    return sorted(groups)


def shared(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """Positions (in `one`, in `other`) of pictures that are in both; of several copies in `other` the last."""
    positions = {digest.tobytes(): i for i, digest in enumerate(other) if digest.any()}
    candidates = np.flatnonzero(np.isin(one[:, 0], other[:, 0]))  # few: `one` may hold millions
    found = ((int(i), positions.get(one[i].tobytes())) for i in candidates)
    return [(i, k) for i, k in found if k is not None]


# ------------------------------------------------------------------------------------------------------ photographs


def check_shapes(faces: Faces, report: Callable[[str], object]) -> None:
    """Refuses a set of photographs by the headers of 200 pictures, evenly spread; `report` gets a warning.

    The networks take squares, to which everything else is squashed. The warning is about pictures that are not square
    but of one size, as other programs may have aligned them. Broken pictures are left to those who decode them.

    Raises:
        UserError: the pictures are not square and of many sizes, so nobody has aligned them.
    """
    sizes = _sampled_sizes(faces)
    not_square = Counter({(width, height): count for (width, height), count in sizes.items() if width != height})
    shown = ", ".join(f"{width}x{height}" for (width, height), _ in not_square.most_common(NUM_SHOWN))
    which = f"{not_square.total():,} of {sizes.total():,} pictures looked at in {faces.root!r}"
    if are_photographs(sizes):
        raise UserError(
            f"{which} are not square and of many sizes ({shown}, ...), so they are photographs and no aligned faces: "
            f"align them ({HOW_TO_ALIGN}), or give --assume-aligned to have them resized as they are."
        )
    if not_square.total() > MAX_ODD_SHARE * sizes.total():
        report(
            f"{which} are not square ({shown}) and get squashed to {IMAGE_SIZE}x{IMAGE_SIZE}: check that they are "
            "aligned faces, and give --assume-aligned if they are."
        )


def check_are_aligned(faces: Faces) -> None:
    """Refuses pictures of another size than 112x112, by the headers of 200 as `check_shapes`.

    For lists of the user's: a photograph that is only resized gives an embedding all the same, and a wrong figure.

    Raises:
        UserError: any has another size.
    """
    sizes = _sampled_sizes(faces)
    others = Counter({size: count for size, count in sizes.items() if size != (IMAGE_SIZE, IMAGE_SIZE)})
    if others:
        shown = ", ".join(f"{width}x{height}" for (width, height), _ in others.most_common(NUM_SHOWN))
        raise UserError(
            f"{others.total():,} of {sizes.total():,} pictures looked at in {faces.root!r} are not {IMAGE_SIZE}x"
            f"{IMAGE_SIZE} ({shown}): give --detector to have their faces found and aligned, or --assume-aligned if "
            "they are aligned and only larger."
        )


def _sampled_sizes(faces: Faces) -> Counter[tuple[int, int]]:
    """(width, height) of some pictures, evenly spread, by their headers."""
    num = min(len(faces), SAMPLE)
    # One out of each of as many equal ranges: an even step could meet the same camera of every person.
    rows = ((np.arange(num) + np.random.default_rng(0).random(num)) * len(faces) / max(num, 1)).astype(int)
    return Counter(size for i in rows.tolist() if (size := _size_in_header(faces, i)) is not None)


def are_photographs(sizes: Counter[tuple[int, int]]) -> bool:
    """Whether pictures of these (width, height) are as no program writes aligned faces: oblong and of many sizes."""
    oblong = Counter({size: count for size, count in sizes.items() if max(size) > MAX_STRETCH * min(size)})
    ((_, common),) = oblong.most_common(1) or [(None, 0)]  # aligned pictures have the size that a program gave them
    return oblong.total() > MAX_ODD_SHARE * sizes.total() and oblong.total() - common > MAX_ODD_SHARE * oblong.total()


def _size_in_header(faces: Faces, i: int) -> tuple[int, int] | None:
    try:
        # Of a file PIL reads the first bytes alone.
        return picture_size(faces.path(i) if isinstance(faces, FaceIndex) else faces.read(i))
    except UnreadablePicture:
        return None
