"""Embeddings cached on disk, by what they are computed from: a second test of the same model and data takes seconds.

A file holds the features of one model for the pictures of one index (`Extracted`). Its name is a digest of the model
(see models.weights.model_fingerprint), the pictures' names, sizes and times, and of the machine's kind of arithmetic;
anything else of these means another file. Grey pixels, which depend on the pictures alone, are cached once for all
models.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embeddings.extraction import Extracted
from meta import PREPROCESSING

FORMAT = 2  # 1 knew a model by its weight file alone
OF_MODEL = ("original", "mirror", "age_probabilities_original", "age_probabilities_mirror", "age_features")
OF_PICTURES = ("grey_pixels",)


class EmbeddingCache:
    """The cached embeddings in one folder; what can't be read or written there is reported and computed anew."""

    def __init__(self, folder: Path, report: Callable[[str], None]):
        self.folder, self.report = folder, report
        self._is_writable = True

    def load(self, of_model: dict[str, Any], pictures: str, num_images: int) -> Extracted | None:
        """What `save` wrote under the same description of model and pictures, or None."""
        parts = [self._read(path, names, num_images) for path, names in self._files(of_model, pictures)]
        if None in parts:
            return None
        return Extracted(**dict.fromkeys(OF_MODEL) | parts[0] | parts[1])

    def save(self, of_model: dict[str, Any], pictures: str, extracted: Extracted) -> None:
        """Caches `extracted`; each file is written beside and renamed into place."""
        for path, names in self._files(of_model, pictures):
            arrays = {name: getattr(extracted, name) for name in names if getattr(extracted, name) is not None}
            if not self._is_writable:
                continue
            try:
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write_beside(path, arrays)
            except OSError as error:
                self._cannot_write(path, error)

    def load_array(self, describes: dict[str, Any], kind: str = "distractors") -> np.ndarray | None:
        """An array that `new_array` wrote under this description, mapped into memory, or None."""
        path = self._array_path(describes, kind)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
        except (OSError, ValueError, EOFError) as error:
            self.report(f"cached embeddings {path} can't be read ({error}): they are computed anew")
            return None

    @contextmanager
    def new_array(
        self, describes: dict[str, Any], shape: tuple[int, int], kind: str = "distractors"
    ) -> Iterator[np.ndarray]:
        """An array (N, D) float32 to be filled: in a file that stays when all went well, or else in memory.

        The name of the file begins with `kind`.
        """
        path = self._array_path(describes, kind)
        beside = _beside(path)
        try:
            array = self._array_in_file(beside, shape)
            yield np.empty(shape, np.float32) if array is None else array
            if array is not None:
                try:
                    array.flush()
                    beside.replace(path)
                except OSError as error:
                    self._cannot_write(path, error)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def _array_in_file(self, path: Path, shape: tuple[int, int]) -> np.ndarray | None:
        if not self._is_writable:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            if hasattr(os, "posix_fallocate"):  # the file has holes: to fill one on a full disk would end the process
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            self._cannot_write(path, error)
            return None
        return array

    def _cannot_write(self, path: Path, error: OSError) -> None:
        self._is_writable = False
        self.report(f"embeddings are not cached: {path} can't be written ({error})")

    def _array_path(self, describes: dict[str, Any], kind: str) -> Path:
        return self.folder / f"{kind}_{_digest(describes)}.npy"

    def _files(self, of_model: dict[str, Any], pictures: str) -> list[tuple[Path, tuple[str, ...]]]:
        named = (
            ("embeddings", of_model | {"pictures": pictures}, OF_MODEL),
            ("grey", {"pictures": pictures}, OF_PICTURES),
        )
        return [(self.folder / f"{kind}_{_digest(describes)}.npz", names) for kind, describes, names in named]

    def _read(self, path: Path, names: tuple[str, ...], num_images: int) -> dict[str, np.ndarray] | None:
        try:
            if not path.is_file():
                return None
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in names if name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            self.report(f"cached embeddings {path} can't be read ({error}): they are computed anew")
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        is_whole = bool(arrays) and all(len(a) == num_images and a.dtype == np.float32 for a in arrays.values())
        return arrays if is_whole else None


def _write_beside(path: Path, arrays: dict[str, np.ndarray]) -> None:
    beside = _beside(path)
    try:
        with open(beside, "wb") as file:
            np.savez(file, **arrays)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """Where a file is written before it gets its name: another run may be writing the same one."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _digest(describes: dict[str, Any]) -> str:
    known = {"format": FORMAT, "preprocessing": PREPROCESSING} | describes
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]
