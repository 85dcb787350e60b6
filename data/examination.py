"""What all pictures of a data set are like: whether they can be decoded, their sizes, and which are the same."""

import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.faces import Faces
from data.files import Progress
from data.transforms import FORMATS, UnreadablePicture, decode_picture
from data.worker_processes import started

BATCH = 64  # pictures that a worker process hands over at once
FEW = 500  # pictures for which no worker process is worth its start
DIGEST_BYTES = 16  # of a SHA-256: enough that no two different pictures of any set have the same


class Examined(NamedTuple):
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
            width, height = _size_told(content) if self.quick else decode_picture(content, self.faces.name(i)).size
        except UnreadablePicture as error:
            return bytes(DIGEST_BYTES), 0, 0, error.reason
        return hashlib.sha256(content).digest()[:DIGEST_BYTES], width, height, ""


def examine(faces: Faces, quick: bool, workers: int, progress: Progress, what: str) -> Examined:
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
    return Examined(digests, sizes, failures)


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


def _size_told(content: bytes) -> tuple[int, int]:
    """Width and height as the header says, for bytes that begin like a picture."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return picture.size
    except MemoryError:
        raise
    except Exception as error:  # PIL raises almost anything on broken files
        raise UnreadablePicture("", f"its header is broken or of no known format ({type(error).__name__})") from error
