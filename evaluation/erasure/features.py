"""Features of both views of any number of pictures, in pieces that are cached one by one: who is stopped goes on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.faces import Faces
from data.loaders import batches, loader_of_batches
from data.transforms import to_network_input
from evaluation.embeddings.cache import EmbeddingCache
from evaluation.embeddings.extraction import Extracted, extract
from evaluation.erasure.sources import Source
from evaluation.models_under_test import Extraction, in_step
from meta import AGE_GROUP_MIDDLES
from utils.distributed import DistInfo, gather_lists, print_rank0
from utils.files import in_bytes
from utils.progress import progress

PICTURES_A_PIECE = 2_048  # a file of 8 MB of 512 numbers; so much is done again at most
KIND = "features"  # the names of the files begin with it


@dataclass(frozen=True, eq=False)
class Piece:
    """Some of the pictures, by their positions in ascending order."""

    rows: np.ndarray  # (B,)
    features: np.ndarray  # (B, 2, D) float32, picture and mirror image, before L2 normalisation
    ages: np.ndarray | None  # (B,) years by the age branch, where these were asked for


def feature_pieces(
    source: Source, faces: Faces, chosen: np.ndarray, with_ages: bool, extraction: Extraction, process: DistInfo
) -> Iterator[Piece | None]:
    """The features of the `chosen` pictures, with the ages that the age branch gives them where `with_ages`.

    Every process has to walk through all of it, since they share the pictures; the first one gets the pieces, the
    others None. What is in the cache is mapped from there, the rest is embedded.

    Raises:
        UserError: in every process, for a picture that can't be read.
    """
    size, store = source.network.size, FeatureStore(source, faces, with_ages, extraction, process)
    pieces = [np.sort(chosen[start : start + PICTURES_A_PIECE]) for start in range(0, len(chosen), PICTURES_A_PIECE)]
    known = in_step(lambda: store.load(pieces), process)
    lacks = gather_lists([array is None for array in known], process)[: len(pieces)]  # of the first process
    missing = [rows for rows, is_missing in zip(pieces, lacks, strict=True) if is_missing]
    store.report(missing, len(chosen))
    embedded = _embed(source, faces, missing, with_ages, extraction, process)
    for rows, array, is_missing in zip(pieces, known, lacks, strict=True):
        if is_missing:
            with store.new(rows) as array:
                extracted = next(embedded)
                if array is not None:
                    _fill(array, extracted, size)
        if array is None:
            yield None
        else:
            yield Piece(rows, array[:, : 2 * size].reshape(-1, 2, size), array[:, -1] if with_ages else None)


def _embed(
    source: Source,
    faces: Faces,
    pieces: Sequence[np.ndarray],
    with_ages: bool,
    extraction: Extraction,
    process: DistInfo,
) -> Iterator[Extracted]:
    """The features of each piece in turn; one loader reads the pictures of all, so that its workers start once."""
    batch_size, shares = extraction.batch_size, [rows[process.rank :: process.world_size] for rows in pieces]
    own_rows = (share[i : i + batch_size].tolist() for share in shares for i in range(0, len(share), batch_size))
    loader = loader_of_batches(faces, own_rows, extraction.workers, process.device.type == "cuda")
    counts = [-(-len(share) // batch_size) for share in shares]
    shown = progress(batches(loader), sum(counts), f"embedding, {batch_size} a batch", enabled=process.is_first)
    for rows, count in zip(pieces, counts, strict=True):
        own = (batch._replace(indices=_positions(batch.indices, rows)) for batch in islice(shown, count))
        yield extract(source.network.model, own, len(rows), process, to_network_input, with_ages, what=None,
                      with_grey=False, size=source.network.size)  # fmt: skip


def _positions(indices: Tensor, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.searchsorted(rows, indices.numpy()))


def _fill(array: np.ndarray, extracted: Extracted, size: int) -> None:
    array[:, :size], array[:, size : 2 * size] = extracted.original, extracted.mirror
    if extracted.age_probabilities_original is not None:
        probabilities = (extracted.age_probabilities_original + extracted.age_probabilities_mirror) / 2
        array[:, -1] = probabilities @ np.array(AGE_GROUP_MIDDLES, np.float32)


class FeatureStore:
    """The cache of pieces; in the first process alone, and where there is a folder for it."""

    def __init__(self, source: Source, faces: Faces, with_ages: bool, extraction: Extraction, process: DistInfo):
        self.source, self.faces, self.with_ages, self.process = source, faces, with_ages, process
        self.folder = extraction.cache_folder
        self.cache = None
        if self.folder is not None and process.is_first:
            self.cache = EmbeddingCache(self.folder, functools.partial(print_rank0, process))

    def load(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """The cached array of each piece, None where there is none."""
        if self.cache is None:
            return [None] * len(pieces)
        shown = progress(pieces, len(pieces), "looking for cached features", silent_below=2.0)
        arrays = [self.cache.load_array(self._describe(rows), KIND) for rows in shown]
        return [
            array if array is not None and array.shape == self._shape(rows) and array.dtype == np.float32 else None
            for rows, array in zip(pieces, arrays, strict=True)
        ]

    def new(self, rows: np.ndarray) -> contextlib.AbstractContextManager[np.ndarray | None]:
        """An array to fill, which stays in the cache; None in processes beside the first."""
        if self.cache is not None:
            return self.cache.new_array(self._describe(rows), self._shape(rows), KIND)
        return contextlib.nullcontext(np.empty(self._shape(rows), np.float32) if self.process.is_first else None)

    def report(self, missing: Sequence[np.ndarray], num_pictures: int) -> None:
        if self.cache is None:
            return
        num_missing = sum(map(len, missing))
        if num_missing < num_pictures:
            print_rank0(self.process, f"features of {num_pictures - num_missing:,} of {num_pictures:,} pictures are in "
                        f"{self.folder} already")  # fmt: skip
        if num_missing:
            needed = 4 * num_missing * self._shape(missing[0])[1]
            print_rank0(self.process, f"features are cached in {self.folder}: {in_bytes(needed)}; stopped and started "
                        f"again, the same command goes on from there")  # fmt: skip

    def _describe(self, rows: np.ndarray) -> dict[str, Any]:
        return self.source.network.of_model | {
            "pictures": self.faces.state(rows=rows),
            "views": "both",
            "ages": self.with_ages,
        }

    def _shape(self, rows: np.ndarray) -> tuple[int, int]:
        return len(rows), 2 * self.source.network.size + self.with_ages
