"""Age features of both views of every training picture, computed once by the frozen age branch and kept on disk.

A cache is a folder: `age_features.f16` holds (N, 2, 512) float16, original then mirror image, and `cache.json` says
what they were computed from; the folder's name has a digest of that. Caches of different pictures, weights or precision
stand side by side: no run removes another one's.

The file has holes where nothing was written yet: a row of zeros is one that is not known. No flags are needed, since a
row of 2,048 bytes lies in one page of memory and its four disk sectors are looked at.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from meta import EMBEDDING_SIZE, UserError
from utils.files import in_bytes, nearest_existing

NUM_VIEWS = 2  # original, mirror
ROW_VALUES = NUM_VIEWS * EMBEDDING_SIZE
BYTES_A_PICTURE = ROW_VALUES * np.dtype(np.float16).itemsize
VALUES_A_SECTOR = 256  # 512 bytes, the smallest that a disk writes as a whole
DATA, DESCRIPTION = "age_features.f16", "cache.json"


class AgeCache:
    """The features of N pictures by their position in the index; a copy can be sent to another process."""

    def __init__(self, folder: str | Path, num_images: int):
        self.folder, self.num_images = Path(folder), num_images

    def __getstate__(self) -> dict:  # files are opened by each process for itself
        return {"folder": self.folder, "num_images": self.num_images}

    @functools.cached_property
    def _rows(self) -> np.memmap:  # (N, 1024)
        return np.memmap(self.folder / DATA, dtype=np.float16, mode="r", shape=(self.num_images, ROW_VALUES))

    @functools.cached_property
    def _file(self) -> BinaryIO:
        return open(self.folder / DATA, "r+b", buffering=0)

    def read(self, i: int) -> np.ndarray | None:
        """Both views of picture i, (2, 512) float16, or None when they are not known yet."""
        row = np.array(self._rows[i])
        known = row.view(np.uint16).reshape(-1, VALUES_A_SECTOR).any(axis=1).all()
        return row.reshape(NUM_VIEWS, EMBEDDING_SIZE) if known else None

    def write(self, indices: np.ndarray, features: np.ndarray) -> None:
        """Keeps features (B, 2, 512) of the pictures at `indices` (B,), any float, in 16 bits.

        Raises:
            UserError: a value that float16 can't hold, or no room on the disk.
        """
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(features, np.float16).reshape(len(indices), ROW_VALUES)
        if not np.isfinite(rows).all():
            raise UserError("the age features are too large for the cache's 16 bits: give --age-cache off, and look "
                            "whether --age-weights is a trained age branch.")  # fmt: skip
        try:
            for i, row in zip(indices.tolist(), rows, strict=True):
                # Not through the mapped memory, where a full disk would end the process by SIGBUS.
                os.pwrite(self._file.fileno(), row.data, i * BYTES_A_PICTURE)
        except OSError as error:
            raise UserError(f"age features can't be written to {self.folder} ({error.strerror}): make room, give "
                            f"--cache-folder, or --age-cache off.") from error  # fmt: skip

    def unknown(self) -> np.ndarray:
        """Positions of the pictures that are not known yet, int64."""
        rows, found = self._rows, []
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


def cache_folder(parent: str | Path, name: str, describes: dict[str, str | int]) -> Path:
    """The folder of the cache of what `describes` says, `num_images` too: its name is `name` and a digest of it all."""
    digest = hashlib.sha256(json.dumps(describes, sort_keys=True).encode()).hexdigest()[:12]
    return Path(parent, f"{name}_{digest}")


def bytes_there(folder: Path) -> int:
    """What the cache in `folder` takes on disk by now: holes take nothing."""
    try:
        return (folder / DATA).stat().st_blocks * 512
    except OSError:
        return 0


def prepare_cache(
    parent: str | Path, name: str, describes: dict[str, str | int], num_images: int, report: Callable[[str], None]
) -> AgeCache | None:
    """The cache in `parent` of what `describes` says, made when it is not there; None when there is no room.

    `describes` names all that the features depend on; the folder's name is `name` and a digest of it. `report` gets a
    sentence on what was found and what it will take. Of the processes of a machine one calls this.
    """
    describes = describes | {"num_images": num_images}
    folder, needed = cache_folder(parent, name, describes), cache_bytes(num_images)
    try:
        if read_description(folder) == describes:
            report(f"age features of earlier epochs or runs are used: {folder} (up to {in_bytes(needed)})")
            return AgeCache(folder, num_images)
        free = shutil.disk_usage(nearest_existing(folder)).free
        if needed > free:
            report(f"age features of all pictures would take {in_bytes(needed)}, {folder.parent} has {in_bytes(free)} "
                   f"free: training goes on without; --cache-folder gives a place, prepare.py check lists caches that "
                   f"can go")  # fmt: skip
            return None
        _make(folder, describes)
    except OSError as error:
        report(
            f"no age features are kept in {folder} ({error}): training goes on without; --cache-folder gives a place"
        )
        return None
    report(f"age features are kept in {folder}: {in_bytes(needed)} when complete")
    return AgeCache(folder, num_images)


def read_description(folder: Path) -> dict | None:
    """What the cache in `folder` is of; None where there is none or it is damaged."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        is_whole = os.path.getsize(folder / DATA) == cache_bytes(int(description["num_images"]))
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return description if is_whole else None


def _make(folder: Path, describes: dict[str, str | int]) -> None:
    """An empty cache under its name, all or nothing: another run may make the same one now. Raises: OSError."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    beside.mkdir(parents=True, exist_ok=True)
    try:
        with open(beside / DATA, "wb") as file:
            file.truncate(cache_bytes(describes["num_images"]))  # a hole: the disk gives room as rows are written
        (beside / DESCRIPTION).write_text(json.dumps(describes))
        if folder.exists() and read_description(folder) is None:
            shutil.rmtree(folder)  # damaged: of use to nobody
        try:
            beside.rename(folder)
        except OSError:
            if read_description(folder) != describes:
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
