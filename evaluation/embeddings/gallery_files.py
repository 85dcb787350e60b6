"""What embed.py writes and searches: named embeddings with what made them, as .npz or as .parquet; cosines as .csv.

The .npz is that of evaluation.embeddings.feature_files, so test.py --embeddings reads it too. The .parquet is for
other tools: a row a picture with name, embedding and age_probabilities (lists of float32); what made them stands in
the metadata of its schema under "made_by". It needs pyarrow.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.arrays import blocks
from evaluation.comparison import cosines
from evaluation.embeddings.array_files import WANTED
from evaluation.embeddings.feature_files import (
    Features,
    check_features,
    read_features,
    read_made_by,
    write_embeddings,
)
from meta import UserError
from utils.files import check_is_new, written_beside
from utils.wrong_files import wrong_file

PARQUET = ".parquet"
CSV = ".csv"  # of all cosines, to be looked at: no gallery
ENDINGS = (".npz", PARQUET, CSV)
MAX_MATRIX = 10_000  # pictures, whose cosines are 1 GB of text
MATRIX_DECIMALS = 6
EXPECTED_COLUMNS = "the columns 'name' and 'embedding' of embed.py are expected"


def check_gallery_path(path: Path, force: bool = False) -> None:
    """Finds out before the work whether `write_gallery` can write there.

    Raises:
        UserError: for another ending, a folder that is not there, a file that is, or a .parquet without pyarrow.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {str(path)!r} ends in none of {', '.join(ENDINGS)}: give it one of these endings.")
    if not path.parent.is_dir():
        raise UserError(f"--output {str(path)!r} is in a folder that does not exist: make {str(path.parent)!r} first.")
    check_is_new(path, force)
    if path.suffix.lower() == PARQUET:
        _pyarrow()


def write_gallery(
    path: Path,
    names: tuple[str, ...],
    embeddings: np.ndarray,
    age_probabilities: np.ndarray | None,
    made_by: dict[str, Any],
    force: bool = False,
) -> None:
    """N names, (N,D) embeddings, perhaps (N,8) age probabilities, and what made them; of a .csv names and cosines.

    Raises:
        UserError: as `check_gallery_path`, or more than 10,000 pictures for a .csv.
    """
    check_gallery_path(path, force)
    if path.suffix.lower() == CSV:
        _write_matrix(path, names, embeddings)
    elif path.suffix.lower() == PARQUET:
        _write_parquet(path, names, embeddings, age_probabilities, made_by)
    else:
        write_embeddings(path, names, embeddings, age_probabilities=age_probabilities, force=force, made_by=made_by)


def read_gallery(path: Path, made_by: dict[str, Any]) -> Features:
    """The gallery at `path`, if the same made it as made the probes: weights_sha256, model_fingerprint and join.

    Raises:
        UserError: for a file that can't be read, does not say what made it, or was made by another model or join, or by
            an earlier version, which did not write how the weights were built.
    """
    features = _read_parquet(path) if path.suffix.lower() == PARQUET else read_features(path)
    if features.made_by is None:
        raise UserError(f"--gallery {path} does not say which model made it: write one by embed.py FOLDER -o {path}.")
    if "model_fingerprint" not in features.made_by:
        raise UserError(
            f"--gallery {path} is of an earlier version, which did not write how the weights were built: embed its "
            f"pictures again by embed.py FOLDER -o {path} --force."
        )
    kinds = {
        "weights_sha256": "other weights",
        "model_fingerprint": "these weights with another purification unit or another preprocessing",
        "join": "another join of the two views",
    }
    for key, what in kinds.items():
        if features.made_by.get(key) != made_by[key]:
            raise UserError(
                f"--gallery {path} was made by {what} ({str(features.made_by.get(key))[:20]}, not "
                f"{made_by[key][:20]}): embed its pictures again by these --weights, or give those that made it."
            )
    return features


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"files that end in {PARQUET} need pyarrow: pip install pyarrow, or use .npz.") from None
    return pyarrow


def _write_matrix(path: Path, names: Sequence[str], embeddings: np.ndarray) -> None:
    """The cosines of all pairs (N,N), names in the first row and column."""
    if len(names) > MAX_MATRIX:
        raise UserError(f"the cosines of {len(names):,} pictures are {len(names) ** 2:,} numbers: a {CSV} is written "
                        f"of up to {MAX_MATRIX:,}, give a name in .npz for the embeddings.")  # fmt: skip
    rows = ([names[rows.start + i], *(f"{cosine:.{MATRIX_DECIMALS}f}" for cosine in row)]
            for rows in blocks(len(names), len(names))
            for i, row in enumerate(cosines(embeddings[rows], embeddings)))  # fmt: skip
    write_rows(path, [["name", *names]], rows)


def write_rows(path: Path, *parts: Iterable[Sequence[object]]) -> None:
    """Rows of a CSV file, which is there whole or not at all."""
    with written_beside(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for rows in parts:
            writer.writerows(rows)


def _write_parquet(path, names, embeddings, age_probabilities, made_by) -> None:
    arrow = _pyarrow()
    import json

    columns = {"name": arrow.array(names, arrow.string()), "embedding": _list_column(arrow, embeddings)}
    if age_probabilities is not None:
        columns["age_probabilities"] = _list_column(arrow, age_probabilities)
    table = arrow.table(columns).replace_schema_metadata({"made_by": json.dumps(made_by)})
    with written_beside(path) as file:
        arrow.parquet.write_table(table, file)


def _list_column(arrow: Any, rows: np.ndarray) -> Any:
    return arrow.FixedSizeListArray.from_arrays(arrow.array(rows.astype(np.float32).ravel()), rows.shape[1])


def _read_parquet(path: Path) -> Features:
    arrow = _pyarrow()
    if wrong := wrong_file(path, WANTED):
        raise UserError(f"The gallery {str(path)!r} {wrong[0]}: {wrong[1]}.")
    try:
        table = arrow.parquet.read_table(str(path))
        names = np.array(table.column("name").to_pylist(), dtype=np.str_)
        embeddings = _rows(table.column("embedding"), len(names))
        ages = (
            _rows(table.column("age_probabilities"), len(names)) if "age_probabilities" in table.column_names else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"The gallery {str(path)!r} cannot be read, {reason}: {EXPECTED_COLUMNS}.") from None
    text = (table.schema.metadata or {}).get(b"made_by")
    made_by = None if text is None else read_made_by(str(path), [text.decode("utf-8", "replace")])
    features = Features(str(path), names, embeddings, age_probabilities=ages, made_by=made_by)
    check_features(features)
    return features


def _rows(column: Any, num_rows: int) -> np.ndarray:
    """(N,D) float32 of a column of lists."""
    if column.null_count:
        raise ValueError("a row is empty")
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(num_rows, -1)
