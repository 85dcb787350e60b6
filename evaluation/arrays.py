"""Checked, L2-normalised embeddings (`Units`), blocks of scores, and the checks of every measure's arguments.

Arguments may be NumPy or torch, on any device; what is wrong with them is a UserError that names the argument.
Embeddings that are `Units` already pass through: nothing is checked, copied or normalised again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from meta import UserError

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = np.ndarray | torch.Tensor
    Embeddings: TypeAlias = "Array | Units"

SCORES_PER_BLOCK = 2**22  # 32 MiB of float64; with its temporaries a block stays below 400 MiB
SAME_SCORE = 1e-12  # cosines closer than this differ by the order of summation only: they are a tie


# ---------------------------------------------------------------------------------------------- embeddings and scores


@dataclass(frozen=True, eq=False)
class Units:
    """N embeddings, checked and L2-normalised: measures trust them."""

    rows: np.ndarray  # (N,D) float64, of length 1; an all-zero embedding stays zero

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> Units:
        return Units(self.rows[rows])

    @property
    def size(self) -> int:
        """Numbers per image."""
        return self.rows.shape[1]

    @cached_property
    def lacks_direction(self) -> np.ndarray:
        """(N,) bool: zeros, or numbers that were too small or too large to square."""
        return np.abs(np.linalg.norm(self.rows, axis=1) - 1) > 1e-6

    def scores(self, rows: slice, first: int = 0) -> np.ndarray:
        """Read-only cosines (B,N - first) of a block of rows with all rows from `first` on.

        Where one block holds them all (2,048 images) the product is made once and cached for every measure.
        """
        if rows.stop - rows.start == len(self):
            return self._all_scores[:, first:]
        return self.rows[rows] @ self.rows[first:].T

    @cached_property
    def _all_scores(self) -> np.ndarray:
        scores = self.rows @ self.rows.T  # BLAS computes one half of it
        scores.flags.writeable = False
        return scores

    def pair_scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cosines (P,) of the rows `first` and `second`, (P,) each."""
        scores = np.empty(len(first))
        for pairs in blocks(len(first), self.size):
            scores[pairs] = np.einsum("pd,pd->p", self.rows[first[pairs]], self.rows[second[pairs]])
        return scores


def blocks(num_rows: int, scores_per_row: int) -> Iterator[slice]:
    """Slices that cover `num_rows` rows, each of about SCORES_PER_BLOCK numbers and one row at least."""
    step = max(1, SCORES_PER_BLOCK // scores_per_row)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """L2-normalised float64 copy of `rows` (N,D); all-zero rows stay zero."""
    units = np.array(rows, dtype=np.float64)
    with np.errstate(over="ignore"):  # numbers too large to square: the row becomes zero
        lengths = np.linalg.norm(units, axis=1, keepdims=True)
    units /= np.where(lengths > 0, lengths, 1.0)
    return units


def self_positions(rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Where a block of rows of the (N,N) score matrix holds the scores of images with themselves."""
    return np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)


def first_highest(scores: np.ndarray) -> np.ndarray:
    """Column of the highest score of each row of `scores` (P,G), the first in order on a tie: (P,)."""
    return np.argmax(scores >= scores.max(axis=1, keepdims=True) - SAME_SCORE, axis=1)


def distractor_units(units: Units, distractors: Array | Iterable[Array]) -> Iterator[np.ndarray]:
    """L2-normalised float64 rows of the distractors, a block at a time; raises UserError."""
    in_pieces, num_pieces = is_in_pieces(distractors), 0
    for piece in distractors if in_pieces else (distractors,):
        num_pieces += 1
        name = f"piece {num_pieces} of distractors" if in_pieces else "distractors"
        rows = shaped_rows(piece, name)
        check_same_size(units.size, rows.shape[1], "embeddings", name)
        for block in blocks(*rows.shape):
            if not np.isfinite(rows[block]).all():
                check_finite(rows, name)  # counts them, which would take a second pass over a good file
            yield unit_rows(rows[block])
    if num_pieces == 0:
        raise UserError("distractors holds no piece: pass arrays (images, numbers per image), or None for none.")


def is_in_pieces(distractors: Array | Iterable[Array]) -> bool:
    """Whether it is an iterable over arrays (M,D), not one array or nested lists of one."""
    if hasattr(distractors, "__array__") or not isinstance(distractors, Iterable):
        return False
    if isinstance(distractors, (list, tuple)):
        return len(distractors) > 0 and getattr(distractors[0], "ndim", 0) == 2
    return True


# ----------------------------------------------------------------------------------------------- checks of arguments


def units_of(value: Embeddings, name: str) -> Units:
    """`value` as Units; raises UserError for anything but a (N,D) array of finite floating point numbers."""
    return value if isinstance(value, Units) else Units(unit_rows(embedding_rows(value, name)))


def directed_units(value: Embeddings, name: str) -> Units:
    """`units_of`; raises UserError for an embedding without direction too."""
    units = units_of(value, name)
    check_direction(units, name)
    return units


def check_direction(units: Units, name: str) -> None:
    without = units.lacks_direction
    if without.any():
        raise UserError(
            f"{name} has no direction in {np.count_nonzero(without)} of {len(units)} rows, the first is row "
            f"{np.argmax(without)} (all zero, or too small or large to normalise): check that image and the weights."
        )


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor: where torch was never imported nothing is, and it need not be."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_numpy(value: Array, name: str) -> np.ndarray:
    """`value` as a NumPy array on the CPU, without a copy where it can be."""
    if is_tensor(value):
        value = value.detach().cpu()
        if value.dtype == sys.modules["torch"].bfloat16:  # NumPy has no bfloat16
            value = value.float()
        return value.numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise UserError(f"{name} is no array ({error}): give all rows the same length.") from error


def embedding_rows(value: Array, name: str) -> np.ndarray:
    """`value` as a (N,D) array of finite floating point numbers, N and D at least 1; raises UserError."""
    rows = shaped_rows(value, name)
    check_finite(rows, name)
    return rows


def shaped_rows(value: Array, name: str) -> np.ndarray:
    """`value` as a (N,D) array of floating point numbers, finite or not; raises UserError."""
    rows = as_numpy(value, name)
    if rows.ndim != 2 or 0 in rows.shape:
        raise UserError(f"{name} has shape {rows.shape}, it must be (images, numbers per image): pass a row per image.")
    if rows.dtype.kind != "f":
        raise UserError(f"{name} holds {rows.dtype} values, it must hold floating point numbers: pass network outputs.")
    return rows


def check_finite(rows: np.ndarray, name: str) -> None:
    broken = np.concatenate([~np.isfinite(rows[piece]).all(axis=1) for piece in blocks(*rows.shape)])
    if broken.any():
        raise UserError(
            f"{name} holds NaN or infinity in {np.count_nonzero(broken)} of {len(rows)} rows, the first is row "
            f"{np.argmax(broken)}: check that image and the weights."
        )


def check_same_size(a: int, b: int, a_name: str, b_name: str) -> None:
    if a != b:
        raise UserError(
            f"{a_name} has {a} numbers per image and {b_name} has {b}: "
            "extract both with the same weights and the same join."
        )


def aligned_embeddings(a: Embeddings, b: Embeddings, a_name: str, b_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,D) of both; raises UserError where they don't belong together."""
    a_rows, b_rows = (
        value.rows if isinstance(value, Units) else embedding_rows(value, name)
        for value, name in ((a, a_name), (b, b_name))
    )
    if a_rows.shape != b_rows.shape:
        raise UserError(
            f"{a_name} has shape {a_rows.shape} and {b_name} {b_rows.shape}: pass arrays whose rows belong together."
        )
    return a_rows, b_rows


def identity_labels(value: Array, name: str, num_images: int | None = None) -> np.ndarray:
    """`value` as a (N,) array of int64 or str, one for each of `num_images` where that is known; raises UserError."""
    labels = as_numpy(value, name)
    if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):  # a pandas column of strings
        labels = labels.astype(np.str_)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"{name} has shape {labels.shape}, it must be one identity per image, (images,).")
    if num_images is not None and len(labels) != num_images:
        raise UserError(f"{name} has {len(labels)} entries for {num_images} images: pass one per image in their order.")
    if labels.dtype.kind not in "iuUS":
        raise UserError(f"{name} holds {labels.dtype} values, identities must be whole numbers or strings.")
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels.astype(np.str_)


def identity_codes(identities: Array, num_images: int | None = None) -> np.ndarray:
    """Identities as 0..K-1, (N,); raises UserError, also for fewer than two images."""
    labels = identity_labels(identities, "identities", num_images)
    if len(labels) < 2:
        raise UserError("identities names one image, there is nothing to compare it with: pass two images or more.")
    return np.unique(labels, return_inverse=True)[1]


def shared_codes(probe_labels: np.ndarray, gallery_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' identities as 0..K-1, one code per identity; raises UserError where the gallery lacks one."""
    if probe_labels.dtype.kind != gallery_labels.dtype.kind:
        raise UserError(
            "probe_identities and gallery_identities are numbers on one side and strings on the other: "
            "name the identities the same way on both."
        )
    known, gallery_codes = np.unique(gallery_labels, return_inverse=True)
    is_missing = ~np.isin(probe_labels, known)
    if is_missing.any():
        missing = np.unique(probe_labels[is_missing])
        names = ", ".join(str(name) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"The gallery lacks {len(missing)} of the probes' identities ({names}): "
            "add an image of each to the gallery or take those probes out."
        )
    return np.searchsorted(known, probe_labels), gallery_codes


def check_max_rank(max_rank: int) -> None:
    if max_rank < 1:
        raise UserError(f"max_rank is {max_rank}, it must be 1 or more.")


def scored_pairs(scores: Array, genuine: Array) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) float64 and labels (N,) bool with at least one genuine and one impostor pair; raises UserError."""
    score_row, labels = as_numpy(scores, "scores"), as_numpy(genuine, "genuine")
    if score_row.ndim != 1 or score_row.shape != labels.shape or len(score_row) == 0:
        raise UserError(
            f"scores has shape {score_row.shape} and genuine {labels.shape}: "
            "pass one score and one label per pair, both (pairs,)."
        )
    if score_row.dtype.kind not in "fiu" or not np.isfinite(score_row).all():
        raise UserError("scores holds values that are not finite numbers: check the embeddings they come from.")
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise UserError("genuine holds values other than 0 and 1: pass 1 for a genuine pair, 0 for an impostor pair.")
    is_genuine = labels.astype(bool)
    if is_genuine.all() or not is_genuine.any():
        kind = "impostor" if is_genuine.all() else "genuine"
        raise UserError(f"genuine marks no {kind} pair among {len(labels)}: verification needs both kinds.")
    return score_row.astype(np.float64), is_genuine
