"""The pictures of an index as an aligner brings them to 112x112, once and for all models, held in memory."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.alignment.photos import Aligner, NamedSources, load_pieces
from data.faces import UNKNOWN, FaceIndex, index_names
from data.pairs import PairList
from meta import IMAGE_SIZE, UserError
from utils.files import Progress, no_progress

BATCH = 64  # pictures that a worker process hands over at once


@dataclass(frozen=True, eq=False)
class AlignedFaces:
    """N aligned pictures, 38 kB each, which worker processes share; data.faces.Faces says what its methods give."""

    index: FaceIndex
    pixels: Tensor  # (N, 3, 112, 112) uint8

    ages = None  # not known
    identity_names = ()
    num_identities = 0

    def __len__(self) -> int:
        return len(self.index)

    @property
    def root(self) -> str:
        return self.index.root

    @property
    def identities(self) -> np.ndarray:
        """(N,) int64, all -1."""
        return np.full(len(self), UNKNOWN, dtype=np.int64)

    age_groups = identities

    def name(self, i: int) -> str:
        return self.index.name(i)

    def key(self, i: int) -> str:
        return self.index.key(i)

    def read(self, i: int) -> bytes:
        """The file as it is, not aligned."""
        return self.index.read(i)

    def decode(self, i: int) -> Tensor:
        return self.pixels[i]

    def fingerprint(self) -> str:
        """SHA-256 of names and pixels."""
        digest = hashlib.sha256(self.index.fingerprint().encode())
        digest.update(self.pixels.numpy())
        return digest.hexdigest()

    state = fingerprint


class AlignedIndex(NamedTuple):
    """What `align_index` made of an index."""

    faces: AlignedFaces  # of all pictures; a black one stands for each that failed
    aligned_by: Mapping[str, int]  # "detector", "as given", ... -> number of pictures
    notes: tuple[str, ...]
    failures: dict[int, str]  # position -> why there is no face


def align_index(index: FaceIndex, aligner: Aligner, workers: int = 0, progress: Progress = no_progress) -> AlignedIndex:
    """All pictures of the index, aligned by so many processes (0: this one).

    Raises:
        UserError: the detector can't be used.
    """
    pictures = NamedSources(tuple(Path(index.path(i)) for i in range(len(index))),
                            tuple(index.key(i) for i in range(len(index))))  # fmt: skip
    pixels = torch.zeros(len(index), 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    aligned_by: Counter[str] = Counter()
    notes, failures = [], {}
    pieces = load_pieces(pictures, aligner, BATCH, workers)
    for piece in progress(pieces, -(-len(index) // BATCH), f"aligning, {BATCH} pictures a step"):
        if piece.detector_failure:
            raise UserError(piece.detector_failure)
        pixels[piece.indices] = piece.images
        aligned_by.update(piece.aligned_by)
        notes += piece.notes
        failures |= piece.failures
    return AlignedIndex(AlignedFaces(index, pixels), dict(aligned_by), tuple(notes), failures)


def with_aligned(pairs: PairList, aligned: AlignedIndex) -> PairList:
    """The pairs whose two pictures could be aligned, of the aligned pictures; the others count as dropped.

    Raises: UserError where no pair is left.
    """
    if not aligned.failures:
        return dataclasses.replace(pairs, images=aligned.faces)
    failed = np.zeros(len(pairs.images), bool)
    failed[list(aligned.failures)] = True
    kept = ~(failed[pairs.first] | failed[pairs.second])
    if not kept.any():
        raise UserError(f"no pair has two pictures that can be aligned; the first: "
                        f"{next(iter(aligned.failures.values()))}")  # fmt: skip
    used = np.unique(np.concatenate([pairs.first[kept], pairs.second[kept]]))
    index = index_names(pairs.images.root, [pairs.images.name(i) for i in used.tolist()])
    return PairList(
        images=AlignedFaces(index, aligned.faces.pixels[torch.from_numpy(used)]),
        first=np.searchsorted(used, pairs.first[kept]),
        second=np.searchsorted(used, pairs.second[kept]),
        genuine=pairs.genuine[kept],
        missing=(*pairs.missing, *(pairs.images.name(i) for i in aligned.failures)),
        num_pairs_dropped=pairs.num_pairs_dropped + int((~kept).sum()),
    )
