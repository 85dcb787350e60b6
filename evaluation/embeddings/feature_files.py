"""Embeddings in files: those of other people's models, to be scored without their code, and distractors by the million.

.npz       `names` (N,) and `embeddings` (N,D), perhaps `mirror` (N,D) and `age_probabilities` (N,8), and, of embed.py,
           `made_by` (1,): JSON on the model
.npy       (N,D); the names in a text file, one a line
.bin       MegaFace's matrix (N,D), or a folder of these; see array_files
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.faces import Faces
from evaluation.embeddings.array_files import (
    EXPECTED_NPZ,
    FLOATS,
    VALUES_A_CHUNK,
    check_finite,
    folder_chunks,
    list_folder,
    open_regular,
    read_folder,
    read_npz,
    read_rows,
    refused,
    row_chunks,
    some,
)
from meta import NUM_AGE_GROUPS, UserError
from utils.files import check_is_new, numbered_lines, written_beside


@dataclass(frozen=True, eq=False)
class Features:
    """N embeddings with the names of their pictures; no row holds NaN or infinity, none is all zeros."""

    path: str
    names: np.ndarray  # (N,) str, each once
    embeddings: np.ndarray  # (N,D) float16, float32 or float64
    mirror: np.ndarray | None = None  # (N,D), of the mirror images
    age_probabilities: np.ndarray | None = None  # (N,8)
    made_by: dict[str, Any] | None = None  # what made them, where embed.py says so
    not_read: tuple[str, ...] = ()  # what else the file or folder holds

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True)
class Distractors:
    """Embeddings of other people, read a chunk at a time and as often as wanted: iterating gives (B,D) arrays.

    A row may be all zeros, which is what some extractors write where they found no face: whoever scores has to decide.
    """

    path: str
    files: tuple[str, ...] = ()  # of a folder, relative to it

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.files:
            yield from folder_chunks(self.path, self.files)
            return
        rows = read_rows(self.path)
        step = max(1, VALUES_A_CHUNK // rows.shape[1])
        for start in range(0, len(rows), step):
            chunk = np.asarray(rows[start : start + step])
            check_finite(chunk, repr(self.path), start)
            yield chunk


class Match(NamedTuple):
    """Which row of a file belongs to each picture of an index."""

    rows: np.ndarray  # (M,) int64
    num_by_base_name: int  # pictures found by their base name alone


# ------------------------------------------------------------------------------------------------------------ reading


def read_features(path: str | Path) -> Features:
    """Named embeddings from an .npz, an .npy or .bin with a text file of names, or a folder of .bin files.

    The names of `features.npy` are read from `features.txt`. An .npy and a .bin are mapped into memory, not read.
    Nothing in a file is run, and sizes that it claims are checked before memory is taken.

    Raises:
        UserError: for a file that can't be read or isn't of its form, names that are missing, empty or there twice,
            a row with NaN or infinity, a row of zeros.
    """
    path, not_read, arrays = str(path), (), {}
    if os.path.isdir(path):
        names, embeddings, num_others = read_folder(path)
        not_read = (f"{num_others} files that are no .bin",) if num_others else ()
    elif path.lower().endswith(".npz"):
        wanted = ("mirror", "age_probabilities", "made_by")
        arrays, not_read = read_npz(path, needed=("names", "embeddings"), wanted=wanted)
        names, embeddings = arrays.pop("names"), arrays.pop("embeddings")
        if "made_by" in arrays:
            arrays["made_by"] = read_made_by(path, arrays["made_by"])
    else:
        embeddings = read_rows(path)
        names = _read_names(path)
    features = Features(path, names, embeddings, not_read=not_read, **arrays)
    check_features(features)
    return features


def open_distractors(path: str | Path) -> Distractors:
    """Distractors in an .npz (`embeddings`; names are not needed), an .npy, a .bin, or a folder of .bin files.

    Whether the path can be read is found out here, what the files hold while they are read.

    Raises:
        UserError: for a path that isn't there or isn't one of these; iterating raises it for a file that can't be
            read, isn't of its form, has embeddings of another size than those before, or holds NaN or infinity.
    """
    path = str(path)
    if os.path.isdir(path):
        return Distractors(path, list_folder(path)[0])
    with open_regular(path):
        return Distractors(path)


def holds_features(path: str | Path) -> bool:
    """Whether `path` is for `open_distractors`: a file of embeddings, or a folder with .bin files in it."""
    if not os.path.isdir(path):
        return os.path.splitext(path)[1].lower() in (".npz", ".npy", ".bin")
    return any(name.lower().endswith(".bin") for _, _, names in os.walk(path) for name in names)


def write_embeddings(
    path: str | Path,
    names: Sequence[str],
    embeddings: np.ndarray,
    *,
    mirror: np.ndarray | None = None,
    age_probabilities: np.ndarray | None = None,
    force: bool = False,
    made_by: dict[str, Any] | None = None,
) -> None:
    """An .npz that `read_features` reads: N names, (N,D) embeddings, perhaps of the mirror images, and (N,8) ages.

    `made_by` is what made them, ready for JSON. The same content gives the same bytes.

    Raises:
        UserError: where the file exists and `force` is not given, for another extension than .npz, and for what
            `read_features` would refuse.
    """
    path = str(path)
    if not path.lower().endswith(".npz"):
        raise UserError(f"{path!r} does not end in .npz: give the file of embeddings such a name.")
    check_is_new(path, force)
    given = {"embeddings": embeddings, "mirror": mirror, "age_probabilities": age_probabilities}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    features = Features(path, np.array(names, dtype=np.str_), **arrays)
    check_features(features)
    if made_by is not None:
        arrays["made_by"] = np.array([json.dumps(made_by)])
    with written_beside(path) as file:
        np.savez(file, names=features.names, **arrays)


# -------------------------------------------------------------------------------------------------- names and an index


def match_names(names: Sequence[str], index: Faces, source: str) -> Match:
    """Where the pictures of `index` stand among `names`, those of the file `source`.

    A picture is found by its path, else by its base name where that is there once in the file and once in the index.
    "\\" counts as "/".

    Raises:
        UserError: for a name that is there twice, and pictures that are not found.
    """
    shown = repr(str(source))
    row_of = _positions([_clean(str(name)) for name in names], f"{shown} has the name", "take one of them out")
    keys = _positions([_clean(index.key(i)) for i in range(len(index))], f"{index.root!r} has", "rename one of them")
    row_of_base = {base: rows[0] for base, rows in _by_base_name(row_of).items() if len(rows) == 1}
    row_of_base = {base: row_of_base[base] for base, of in _by_base_name(keys).items()
                   if len(of) == 1 and base in row_of_base}  # fmt: skip
    found = [row_of.get(key, row_of_base.get(_base_name(key), -1)) for key in keys]
    if missing := [index.key(i) for i, row in enumerate(found) if row < 0]:
        raise UserError(
            f"{shown} has no embedding for {len(missing):,} of {len(index):,} pictures below {index.root!r} "
            f"({some(missing)}), its own names are such as {some(list(names)[:1])}: name the rows by the paths of "
            "the pictures below that folder, or by base names that are there once."
        )
    return Match(np.array(found, dtype=np.int64), sum(key not in row_of for key in keys))


def _positions(paths: list[str], has: str, advice: str) -> dict[str, int]:
    positions: dict[str, int] = {}
    for i, path in enumerate(paths):
        if path in positions:
            raise UserError(f"{has} {some([path])} twice, in rows {positions[path]} and {i}: {advice}.")
        positions[path] = i
    return positions


def _clean(path: str) -> str:
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]


def _by_base_name(position_of: dict[str, int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path, position in position_of.items():
        found.setdefault(_base_name(path), []).append(position)
    return found


# ----------------------------------------------------------------------------------------------------------- checks


def read_made_by(path: str, texts: Sequence[str]) -> dict[str, Any]:
    """What made the embeddings of a file, from its one piece of JSON; raises UserError."""
    try:
        made_by = json.loads(texts[0]) if len(texts) == 1 else None
    except (ValueError, RecursionError):
        made_by = None
    if not isinstance(made_by, dict):
        raise refused(repr(path), "its 'made_by' is no JSON object", EXPECTED_NPZ)
    return made_by


def _read_names(path: str) -> np.ndarray:
    """One name a line from the text file beside `path`."""
    text_path = os.path.splitext(path)[0] + ".txt"
    expected = f"one name a line is expected, in the order of the rows of {path!r}"
    lines = [line.rstrip("\r\n") for _, line in numbered_lines(text_path, "list of names", expected)]
    return np.array(lines, dtype=np.str_)


def check_features(features: Features) -> None:
    """Raises UserError for what `read_features` refuses."""
    shown, names, embeddings = repr(features.path), features.names, features.embeddings
    _check_shape(shown, "embeddings", embeddings, (None, None))
    if len(names) != len(embeddings):
        raise UserError(f"{shown} has {len(embeddings):,} embeddings for {len(names):,} names: give one name a row.")
    if "" in names:
        raise UserError(f"{shown} has an empty name in row {int(np.argmax(names == ''))}: name the picture.")
    order = np.argsort(names, kind="stable")
    same = np.flatnonzero(names[order[1:]] == names[order[:-1]])
    if len(same):
        first, second = order[same[0]], order[same[0] + 1]
        raise UserError(f"{shown} has the name {some([names[first]])} twice, in rows {first} and {second}: take one "
                        "of them out.")  # fmt: skip
    check_finite(embeddings, shown, names=names)
    _check_lengths(embeddings, shown, names)
    if features.mirror is not None:
        _check_shape(shown, "mirror", features.mirror, embeddings.shape)
        check_finite(features.mirror, shown, names=names)
        _check_lengths(features.mirror, shown, names)
    if features.age_probabilities is not None:
        _check_shape(shown, "age_probabilities", features.age_probabilities, (len(names), NUM_AGE_GROUPS))
        check_finite(features.age_probabilities, shown, names=names)


def _check_shape(shown: str, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == 2 and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape or array.dtype.newbyteorder("=") not in FLOATS:
        wanted = ", ".join(letter if want is None else str(want) for letter, want in zip("ND", shape, strict=True))
        raise UserError(f"{shown} has '{name}' of shape {array.shape} and type {array.dtype}: floating point numbers "
                        f"({wanted}) are expected.")  # fmt: skip


def _check_lengths(rows: np.ndarray, shown: str, names: np.ndarray) -> None:
    for start, chunk in row_chunks(rows):
        is_zero = ~chunk.any(axis=1)
        if is_zero.any():
            row = start + int(np.argmax(is_zero))
            raise UserError(f"{shown} has nothing but zeros in row {row} ({some([names[row]])}), which cannot be "
                            "compared: embed that picture again, or take it out.")  # fmt: skip
