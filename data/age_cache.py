"""Age features of both views of every training picture, computed once by the frozen age branch and kept on disk.

A cache is a folder: `age_features.f16` holds (N, 2, 512) float16, original then mirror image, and `cache.json` says of
which pictures and weights. The file has holes where nothing was written yet: a row of zeros is one that is not known.
No flags are needed, since a row of 2,048 bytes lies in one page of memory and its four disk sectors are looked at.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.files import written_beside
from meta import EMBEDDING_SIZE, UserError

NUM_VIEWS = 2  # original, mirror
ROW_VALUES = NUM_VIEWS * EMBEDDING_SIZE
BYTES_A_PICTURE = ROW_VALUES * np.dtype(np.float16).itemsize
VALUES_A_SECTOR = 256  # 512 bytes, the smallest that a disk writes as a whole
DATA, DESCRIPTION = "age_features.f16", "cache.json"


class AgeCache:
    """The features of N pictures by their position in the index; a copy can be sent to a worker process."""

    def __init__(self, folder: str | Path, num_images: int):
        self.folder, self.num_images = Path(folder), num_images
        self._rows: np.memmap | None = None  # opened by each process for itself
        self._lock = None

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "num_images": self.num_images, "_rows": None, "_lock": None}

    def _opened(self) -> np.memmap:  # (N, 1024)
        if self._rows is None:
            shape = (self.num_images, ROW_VALUES)
            self._rows = np.memmap(self.folder / DATA, dtype=np.float16, mode="r+", shape=shape)
            self._lock = open(self.folder / DESCRIPTION)  # held while in use, see `_drop_others`
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        return self._rows

    def read(self, i: int) -> np.ndarray | None:
        """Both views of picture i, (2, 512) float16, or None when they are not known yet."""
        row = np.array(self._opened()[i])
        known = row.view(np.uint16).reshape(-1, VALUES_A_SECTOR).any(axis=1).all()
        return row.reshape(NUM_VIEWS, EMBEDDING_SIZE) if known else None

    def write(self, indices: np.ndarray, features: np.ndarray) -> None:
        """Keeps features (B, 2, 512) of the pictures at `indices` (B,), any float.

        Raises:
            UserError: a value that float16 can't hold.
        """
        with np.errstate(over="ignore"):
            rows = features.reshape(len(indices), ROW_VALUES).astype(np.float16)
        if not np.isfinite(rows).all():
            raise UserError("the age features are too large for the cache's 16 bits: give --age-cache off, and look "
                            "whether --age-weights is a trained age branch.")  # fmt: skip
        self._opened()[indices] = rows

    def unknown(self) -> np.ndarray:
        """Positions of the pictures that are not known yet, int64."""
        rows, found = self._opened(), []
        for start in range(0, self.num_images, 1 << 16):
            bits = (
                rows[start : start + (1 << 16)]
                .view(np.uint16)
                .reshape(-1, ROW_VALUES // VALUES_A_SECTOR, VALUES_A_SECTOR)
            )
            found.append(start + np.flatnonzero(~bits.any(axis=2).all(axis=1)))
        return np.concatenate(found) if found else np.empty(0, np.int64)


def cache_bytes(num_images: int) -> int:
    """What a full cache takes on disk: 10.6 GB for the 5,179,510 pictures of MS1MV3."""
    return num_images * BYTES_A_PICTURE


def prepare_cache(
    parent: str | Path, name: str, describes: dict[str, str | int], num_images: int, tell: Callable[[str], None]
) -> AgeCache | None:
    """The cache `parent/name` of these pictures and weights, made when it is not there; None when there is no room.

    Caches of other pictures or weights beside it are dropped, unless another process is using them. `tell` gets a
    sentence on what was found and what it will take. Of several processes one calls this, the others open the cache
    afterwards.
    """
    parent, describes = Path(parent), describes | {"num_images": num_images}
    folder = parent / name
    gigabytes = cache_bytes(num_images) / 1e9
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_others(parent, name, tell)
        if _description(folder) != describes:
            if (folder / DATA).exists():
                tell(f"age features in {folder} are of other weights or pictures and are dropped")
            return _start_cache(folder, describes, num_images, tell)
    except OSError as error:
        tell(f"no age features are kept in {folder} ({error}): training goes on without; --cache-folder gives a place")
        return None
    tell(f"age features of earlier epochs or runs are used: {folder} (up to {gigabytes:.1f} GB)")
    return AgeCache(folder, num_images)


def _start_cache(
    folder: Path, describes: dict[str, str | int], num_images: int, tell: Callable[[str], None]
) -> AgeCache | None:
    (folder / DATA).unlink(missing_ok=True)
    needed, free = cache_bytes(num_images), shutil.disk_usage(folder).free
    if needed > free:
        tell(f"age features of all pictures would take {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: "
             f"training goes on without; --cache-folder gives a place")  # fmt: skip
        return None
    with open(folder / DATA, "wb") as file:
        file.truncate(needed)  # a hole: the disk gives room as rows are written
    with written_beside(folder / DESCRIPTION, "w") as file:
        json.dump(describes, file)
    tell(f"age features are kept in {folder}: {needed / 1e9:.1f} GB when complete")
    return AgeCache(folder, num_images)


def _description(folder: Path) -> dict | None:
    """What the cache in `folder` is of; None where there is none or it is damaged."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        size = os.path.getsize(folder / DATA)
    except (OSError, ValueError):
        return None
    whole = isinstance(description, dict) and size == cache_bytes(description.get("num_images", -1))
    return description if whole else None


def _drop_others(parent: Path, name: str, tell: Callable[[str], None]) -> None:
    kind = name.rsplit("_", 1)[0]  # caches of one kind differ in what comes last
    for description in sorted(parent.glob(f"{kind}_*/{DESCRIPTION}")):
        if description.parent.name == name:
            continue
        with open(description) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # in use
            tell(f"age features of other weights or pictures are dropped: {description.parent}")
            shutil.rmtree(description.parent)
