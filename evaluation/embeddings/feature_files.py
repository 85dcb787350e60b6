"""Embeddings in files: those of other people's models, to be scored without their code, and distractors by the million.

.npz       `names` (N,) and `embeddings` (N,D), perhaps `mirror` (N,D) and `age_probabilities` (N,8), and, of embed.py,
           `made_by` (1,): JSON on the model
.npy       (N,D); the names in a text file, one a line
.bin       MegaFace's matrix: four int32 (rows, columns, bytes a row, 5 for float32), then float32, little-endian;
           one column is one embedding of that many rows. Most files have the header (D, 1, 4, 5).
a folder   of such .bin files, one embedding each, called as the picture with `_whatever.bin` behind its extension
"""

import json
import math
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data.faces import Faces
from meta import IMAGE_EXTENSIONS, NUM_AGE_GROUPS, UserError, wrong_file
from utils.files import Progress, check_is_new, no_progress, numbered_lines, written_beside

EXPECTED_NPZ = "'names' (N,) text and 'embeddings' (N,D) floating point are expected, written by numpy.savez"
EXPECTED_NPY = "floating point numbers (N,D) are expected, written by numpy.save"
EXPECTED_BIN = "four int32 (rows, columns, bytes a row, 5) and then rows x columns float32 are expected"
WANTED = "file of embeddings"
FLOATS = (np.float16, np.float32, np.float64)
MEGAFACE_HEADER = struct.Struct("<4i")
FLOAT32_IN_OPENCV = 5  # CV_32FC1
MAX_NPY_HEADER = 10_000  # bytes; numpy writes 128
MAX_RATIO = 200  # unpacked to packed: more than this is made to fill the memory
FREE_BYTES = 1 << 20  # an array that unpacks to no more than this may shrink by any ratio
VALUES_A_CHUNK = 1 << 22  # 16 MiB of float32
MAX_DEPTH = 16  # trailing parts of a path that are compared
NUM_NAMES_SHOWN = 3
NUM_CHARACTERS_SHOWN = 80
TEXTS = ("names", "made_by")  # the arrays of text
_BROKEN_ARCHIVE = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, struct.error, zlib.error,
                   zipfile.BadZipFile)  # fmt: skip
_BROKEN_HEADER = (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)
_PICTURE_NAME = re.compile(rf"(.*({'|'.join(map(re.escape, IMAGE_EXTENSIONS))}))[._][^/]*", re.IGNORECASE | re.DOTALL)


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
    num_other_files: int = 0  # of a folder: what is no .bin
    progress: Progress = no_progress

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.files:
            yield from _folder_chunks(self.path, self.files, self.progress)
            return
        rows = _read_rows(self.path)
        step = max(1, VALUES_A_CHUNK // rows.shape[1])
        for start in self.progress(range(0, len(rows), step), -(-len(rows) // step), "reading distractors"):
            chunk = np.asarray(rows[start : start + step])
            _check_finite(chunk, repr(self.path), start)
            yield chunk


class Match(NamedTuple):
    """Which row of a file belongs to each picture of an index."""

    rows: np.ndarray  # (M,) int64, -1 where the file has none
    missing: tuple[str, ...]  # keys of these pictures
    num_unused: int  # rows of the file that no picture asked for
    num_by_base_name: int  # pictures found by their base name alone, in a folder of another name


# ------------------------------------------------------------------------------------------------------------ reading


def read_features(path: str | Path, names_path: str | Path | None = None, progress: Progress = no_progress) -> Features:
    """Named embeddings from an .npz, an .npy or .bin with a text file of names, or a folder of .bin files.

    The names of `features.npy` are read from `features.txt` unless `names_path` says otherwise. An .npy and a .bin are
    mapped into memory, not read. Nothing in a file is run, and sizes that it claims are checked before memory is taken.

    Raises:
        UserError: for a file that can't be read or isn't of its form, names that are missing, empty or there twice,
            a row with NaN or infinity, a row of zeros.
    """
    path, not_read, arrays = str(path), (), {}
    if os.path.isdir(path):
        names, embeddings, num_others = _read_folder(path, progress)
        not_read = (f"{num_others} files that are no .bin",) if num_others else ()
    elif path.lower().endswith(".npz"):
        wanted = ("mirror", "age_probabilities", "made_by")
        arrays, not_read = _read_npz(path, needed=("names", "embeddings"), wanted=wanted)
        names, embeddings = arrays.pop("names"), arrays.pop("embeddings")
        if "made_by" in arrays:
            arrays["made_by"] = read_made_by(path, arrays["made_by"])
    else:
        embeddings = _read_rows(path)
        names = _read_names(path, names_path)
    features = Features(path, names, embeddings, not_read=not_read, **arrays)
    check_features(features)
    return features


def open_distractors(path: str | Path, progress: Progress = no_progress) -> Distractors:
    """Distractors in an .npz (`embeddings`; names are not needed), an .npy, a .bin, or a folder of .bin files.

    Whether the path can be read is found out here, what the files hold while they are read.

    Raises:
        UserError: for a path that isn't there or isn't one of these; iterating raises it for a file that can't be
            read, isn't of its form, has embeddings of another size than those before, or holds NaN or infinity.
    """
    path = str(path)
    if os.path.isdir(path):
        files, num_others = _list_folder(path)
        return Distractors(path, files, num_others, progress)
    with _opened(path):
        return Distractors(path, progress=progress)


def holds_features(path: str | Path) -> bool:
    """Whether `path` is for `open_distractors`: a file of embeddings, or a folder with .bin files in it."""
    if not os.path.isdir(path):
        return os.path.splitext(path)[1].lower() in (".npz", ".npy", ".bin")
    return any(name.lower().endswith(".bin") for _, _, names in os.walk(path) for name in names)


def write_embeddings(
    path: str | Path,
    names: Sequence[str],
    embeddings: np.ndarray,
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


def match_names(names: Sequence[str], index: Faces, source: str, allow_missing: bool = False) -> Match:
    """Where the pictures of `index` stand among `names`, those of the file `source`.

    A name fits a picture where one of the two paths ends in the other: `/data/fgnet/001/001A02.JPG` and `001A02.JPG`
    both fit the picture `001/001A02.JPG`, the same path first. What is not found so is found by the base name where
    that is there once in the file and once in the index. "\\" counts as "/".

    Raises:
        UserError: for a name that is there twice, names or pictures that fit several, pictures without a name unless
            `allow_missing`, and where nothing fits at all.
    """
    shown = repr(str(source))
    name_at = _positions([_clean(str(name)) for name in names], f"{shown} has the name", "take one of them out")
    key_at = _positions([_clean(index.key(i)) for i in range(len(index))], f"{index.root!r} has", "rename one of them")
    rows = np.full(len(index), -1, dtype=np.int64)
    for key, i in key_at.items():
        rows[i] = name_at.get(key, -1)
    taken = set(rows[rows >= 0].tolist())
    _match_tails(name_at, key_at, rows, taken, shown)
    num_before = np.count_nonzero(rows >= 0)
    _match_base_names(name_at, key_at, rows, taken)
    num_found = np.count_nonzero(rows >= 0)
    missing = tuple(index.key(int(i)) for i in np.flatnonzero(rows < 0))
    if missing and (not allow_missing or not num_found):
        raise UserError(
            f"{shown} has no embedding for {len(missing):,} of {len(index):,} pictures below {index.root!r} "
            f"({_some(missing)}), its own names are such as {_some(list(names)[:1])}: name the rows by the paths "
            "of the pictures or by their base names."
        )
    return Match(rows, missing, len(name_at) - int(num_found), int(num_found - num_before))


def _positions(paths: list[str], has: str, advice: str) -> dict[str, int]:
    positions: dict[str, int] = {}
    for i, path in enumerate(paths):
        if path in positions:
            raise UserError(f"{has} {_some([path])} twice, in rows {positions[path]} and {i}: {advice}.")
        positions[path] = i
    return positions


def _clean(path: str) -> str:
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _tails(path: str) -> list[str]:
    """The ends of a path that begin at a "/", the longest first, the whole path not among them."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(max(1, len(parts) - MAX_DEPTH), len(parts))]


def _match_tails(
    name_at: dict[str, int], key_at: dict[str, int], rows: np.ndarray, taken: set[int], shown: str
) -> None:
    """Fills `rows` where a name ends in the key of a picture or the other way round."""
    fits = [(key, name) for name, row in name_at.items() if row not in taken for key in _tails(name) if key in key_at]
    fits += [(key, name) for key in key_at for name in _tails(key) if name_at.get(name, -1) not in taken | {-1}]
    name_of: dict[str, str] = {}
    key_of: dict[str, str] = {}
    for key, name in fits:
        if rows[key_at[key]] >= 0:
            continue  # the same path was there
        if name_of.setdefault(key, name) != name:
            raise UserError(f"{shown} has several names that fit the picture {_some([key])}, {_some([name_of[key]])} "
                            f"and {_some([name])}: name the rows by the paths of the pictures.")  # fmt: skip
        if key_of.setdefault(name, key) != key:
            raise UserError(f"{shown} has the name {_some([name])}, which fits several pictures, "
                            f"{_some([key_of[name]])} and {_some([key])}: name the rows by the paths of the "
                            "pictures.")  # fmt: skip
    for key, name in name_of.items():
        rows[key_at[key]] = name_at[name]
        taken.add(name_at[name])


def _match_base_names(name_at: dict[str, int], key_at: dict[str, int], rows: np.ndarray, taken: set[int]) -> None:
    """Fills `rows` where a base name is there once on either side."""
    if (rows >= 0).all():
        return
    by_name, by_key = _by_base_name(name_at), _by_base_name(key_at)
    for base, keys in by_key.items():
        names = by_name.get(base, ())
        if len(keys) == len(names) == 1 and rows[keys[0]] < 0 and names[0] not in taken:
            rows[keys[0]] = names[0]


def _by_base_name(position_at: dict[str, int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path, position in position_at.items():
        found.setdefault(path.rpartition("/")[2], []).append(position)
    return found


# ------------------------------------------------------------------------------------------------------- numpy's files


def _read_npz(
    path: str, needed: tuple[str, ...], wanted: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays by name, and the names of what else the archive holds."""
    shown, arrays = repr(path), {}
    with _opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
                if len(entries) < len(archive.infolist()):
                    raise ValueError("it holds an array twice")
                for name in (*needed, *wanted):
                    if name in entries:
                        arrays[name] = _read_entry(archive, entries[name], name)
                    elif name in needed:
                        raise ValueError(f"it has no array '{name}'")
        except _BROKEN_ARCHIVE as error:
            raise _refused(shown, error, EXPECTED_NPZ) from error
    return arrays, tuple(_cut(name) for name in entries if name not in arrays)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> np.ndarray:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # numpy writes no others
        raise ValueError(f"'{name}' is packed by a method that numpy does not use")
    if entry.file_size > FREE_BYTES + MAX_RATIO * entry.compress_size:
        raise ValueError(f"'{name}' claims to unpack to {entry.file_size:,} bytes from {entry.compress_size:,}")
    with archive.open(entry) as file:
        header = _read_npy_header(file, entry.file_size)
        _check_kind(header, name)
        array = np.empty(header.shape, header.dtype, order="F" if header.is_fortran else "C")
        flat = array.reshape(-1, order="F" if header.is_fortran else "C").view(np.uint8)
        done = 0
        while done < len(flat):
            piece = file.read(min(len(flat) - done, 1 << 20))
            if not piece:
                raise ValueError(f"'{name}' ends early")
            flat[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        if file.read(1):  # reading on to the end checks the checksum too
            raise ValueError(f"'{name}' goes on after its end")
    return _text(array, name) if name in TEXTS else array


class _NpyHeader(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool


def _read_npy_header(file: BinaryIO, num_bytes: int) -> _NpyHeader:
    """The header of an array file of `num_bytes` in all, whose end it has to agree with; the file stands behind it."""
    magic = file.read(8)
    if magic[:6] != np.lib.format.MAGIC_PREFIX or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as an array does")
    length_form = "<H" if magic[6] == 1 else "<I"
    length_bytes = file.read(struct.calcsize(length_form))
    (length,) = struct.unpack(length_form, length_bytes)
    if length > MAX_NPY_HEADER:
        raise ValueError(f"its header claims {length:,} bytes")
    text = file.read(length)
    read = np.lib.format.read_array_header_1_0 if magic[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(BytesIO(length_bytes + text))
    except _BROKEN_HEADER as error:
        raise ValueError("its header is damaged") from error
    if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize or min(shape, default=1) < 0:
        raise ValueError(f"it holds {_cut(str(dtype))} values, which may be Python objects")
    claimed = math.prod(shape) * dtype.itemsize  # Python's integers, which do not overflow
    present = num_bytes - len(magic) - len(length_bytes) - length
    if claimed != present:
        raise ValueError(f"its header claims {claimed:,} bytes of numbers, there are {present:,}")
    return _NpyHeader(shape, dtype, is_fortran)


def _check_kind(header: _NpyHeader, name: str) -> None:
    is_text = name in TEXTS
    num_axes, kinds = (1, "US") if is_text else (2, "f")
    if len(header.shape) != num_axes or header.dtype.kind not in kinds or 0 in header.shape:
        what = "text (N,)" if is_text else "floating point numbers (N,D)"
        raise ValueError(f"'{name}' holds {_cut(str(header.dtype))} values of shape {_cut(str(header.shape))}, not "
                         f"{what}")  # fmt: skip
    if not is_text and header.dtype.newbyteorder("=") not in FLOATS:
        raise ValueError(f"'{name}' holds {header.dtype} values, not float16, float32 or float64")


def _text(array: np.ndarray, name: str) -> np.ndarray:
    """(N,) str in the byte order of this machine; bytes are taken for UTF-8."""
    if array.dtype.kind == "S":
        return np.array([os.fsdecode(value) for value in array.tolist()], dtype=np.str_)
    points = array.view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if points.max(initial=0) > 0x10FFFF:
        raise ValueError(f"'{name}' holds numbers that are no characters")
    return array.astype(array.dtype.newbyteorder("="))


def read_made_by(path: str, told: Sequence[str]) -> dict[str, Any]:
    """What made the embeddings of a file, from its one piece of JSON; raises UserError."""
    try:
        made_by = json.loads(told[0]) if len(told) == 1 else None
    except (ValueError, RecursionError):
        made_by = None
    if not isinstance(made_by, dict):
        raise _refused(repr(path), "its 'made_by' is no JSON object", EXPECTED_NPZ)
    return made_by


def _read_rows(path: str) -> np.ndarray:
    """(N,D) of an .npy or .bin, mapped into memory, or the embeddings of an .npz; their values are not looked at."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npz":
        return _read_npz(path, needed=("embeddings",))[0]["embeddings"]
    if ending == ".bin":
        return _read_matrix(path)
    if ending != ".npy":
        raise UserError(f"{path!r} is no file of embeddings, which ends in .npz, .npy or .bin: give one of these or a "
                        "folder of .bin files.")  # fmt: skip
    with _opened(path) as file:
        try:
            header = _read_npy_header(file, os.fstat(file.fileno()).st_size)
            _check_kind(header, "embeddings")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, struct.error) as error:
            raise _refused(repr(path), error, EXPECTED_NPY) from error


def _read_names(path: str, names_path: str | Path | None) -> np.ndarray:
    """One name a line from the text file given or beside `path`."""
    text_path = os.path.splitext(path)[0] + ".txt" if names_path is None else names_path
    expected = f"one name a line is expected, in the order of the rows of {path!r}"
    lines = [line.rstrip("\r\n") for _, line in numbered_lines(text_path, "list of names", expected)]
    return np.array(lines, dtype=np.str_)


# ----------------------------------------------------------------------------------------------------- MegaFace's files


def _read_matrix(path: str) -> np.ndarray:
    """(N,D) float32 of one file, mapped into memory."""
    with _opened(path) as file:
        shape = _matrix_shape(file, path)
        return np.memmap(file, np.dtype("<f4"), mode="r", offset=MEGAFACE_HEADER.size, shape=shape)


def _matrix_shape(file: BinaryIO, path: str) -> tuple[int, int]:
    """(N,D) as the header says, which has to agree with the size of the file; raises UserError."""
    size, header = os.fstat(file.fileno()).st_size, file.read(MEGAFACE_HEADER.size)
    if len(header) < MEGAFACE_HEADER.size:
        _check_is_wanted(path)
        raise _refused(repr(path), f"it has {size} bytes", EXPECTED_BIN)
    rows, columns, bytes_a_row, kind = MEGAFACE_HEADER.unpack(header)
    # Some write the bytes of a number where those of a row belong: with one column they are the same.
    if min(rows, columns) < 1 or kind != FLOAT32_IN_OPENCV or bytes_a_row not in (4, 4 * columns):
        _check_is_wanted(path)
        raise _refused(repr(path), f"it begins with {rows}, {columns}, {bytes_a_row}, {kind}", EXPECTED_BIN)
    claimed = MEGAFACE_HEADER.size + 4 * rows * columns
    if claimed != size:
        raise _refused(repr(path), f"its header claims {claimed:,} bytes in all, there are {size:,}", EXPECTED_BIN)
    return (1, rows) if columns == 1 else (rows, columns)


def _list_folder(folder: str) -> tuple[tuple[str, ...], int]:
    """The .bin files below a folder, sorted, relative to it with "/"; and how many others there are."""
    files, num_others = [], 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            if name.lower().endswith(".bin") and not name.startswith("."):
                files.append(os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/"))
            else:
                num_others += 1
    if not files:
        raise UserError(f"The folder {folder!r} holds no .bin file: give a folder of MegaFace features, one file a "
                        "picture, or an .npz, .npy or .bin file.")  # fmt: skip
    return tuple(sorted(files)), num_others


def _folder_chunks(folder: str, files: Sequence[str], progress: Progress) -> Iterator[np.ndarray]:
    """(B,D) float32 arrays of the files in turn."""
    waiting: list[np.ndarray] = []
    size = num_values = 0
    for name in progress(files, len(files), "reading features"):
        path = os.path.join(folder, name)
        with _opened(path) as file:
            shape = _matrix_shape(file, path)
            rows = np.frombuffer(file.read(), dtype="<f4").reshape(shape)
        size = size or shape[1]
        if shape[1] != size:
            raise UserError(f"{path!r} has {shape[1]} numbers a picture, the files before it have {size}: give a "
                            "folder of one model's features.")  # fmt: skip
        _check_finite(rows, repr(path))
        waiting.append(rows)
        num_values += rows.size
        if num_values >= VALUES_A_CHUNK:
            yield np.concatenate(waiting)
            waiting, num_values = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _read_folder(folder: str, progress: Progress) -> tuple[np.ndarray, np.ndarray, int]:
    """Names (N,), embeddings (N,D), and how many other files there are."""
    files, num_others = _list_folder(folder)
    embeddings = np.concatenate(list(_folder_chunks(folder, files, progress)))
    if len(embeddings) != len(files):
        raise UserError(f"The folder {folder!r} has {len(embeddings):,} embeddings in {len(files):,} files, so that "
                        "they have no names: give a folder with one embedding a file.")  # fmt: skip
    return np.array([picture_name(name) for name in files], dtype=np.str_), embeddings, num_others


def picture_name(file_name: str) -> str:
    """The picture whose features a file holds: `a/b_0.jpg` of `a/b_0.jpg_model_256.bin`, `a/b` of `a/b.bin`."""
    found = _PICTURE_NAME.fullmatch(file_name)
    return found[1] if found else os.path.splitext(file_name)[0]


# --------------------------------------------------------------------------------------------------------- at the door


def _opened(path: str) -> BinaryIO:
    """A regular file to read; raises UserError."""
    # A .bin begins with a count, which may be any bytes: its reader looks for what it is where its header is none.
    if not path.lower().endswith(".bin"):
        _check_is_wanted(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device may have no end
            raise ValueError("it is a folder or a device")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError for a NUL byte in the path too
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The file of embeddings {path!r} cannot be read, {reason}: check its path.") from error


def _check_is_wanted(path: str) -> None:
    """Raises UserError for a web page, an archive and the like."""
    if wrong := wrong_file(path, WANTED, zip_based=path.lower().endswith(".npz")):
        raise UserError(f"{path!r} {wrong[0]}: {wrong[1]}.")


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
        raise UserError(f"{shown} has the name {_some([names[first]])} twice, in rows {first} and {second}: take one "
                        "of them out.")  # fmt: skip
    _check_finite(embeddings, shown, names=names)
    _check_lengths(embeddings, shown, names)
    if features.mirror is not None:
        _check_shape(shown, "mirror", features.mirror, embeddings.shape)
        _check_finite(features.mirror, shown, names=names)
        _check_lengths(features.mirror, shown, names)
    if features.age_probabilities is not None:
        _check_shape(shown, "age_probabilities", features.age_probabilities, (len(names), NUM_AGE_GROUPS))
        _check_finite(features.age_probabilities, shown, names=names)


def _check_shape(shown: str, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == 2 and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape or array.dtype.newbyteorder("=") not in FLOATS:
        wanted = ", ".join(letter if want is None else str(want) for letter, want in zip("ND", shape, strict=True))
        raise UserError(f"{shown} has '{name}' of shape {array.shape} and type {array.dtype}: floating point numbers "
                        f"({wanted}) are expected.")  # fmt: skip


def _chunks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, VALUES_A_CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def _check_finite(rows: np.ndarray, shown: str, first_row: int = 0, names: np.ndarray | None = None) -> None:
    for start, chunk in _chunks(rows):
        is_broken = ~np.isfinite(chunk).all(axis=1)
        if is_broken.any():
            row = start + int(np.argmax(is_broken))
            of = "" if names is None else f" ({_some([names[row]])})"
            raise UserError(f"{shown} holds NaN or infinity in row {first_row + row}{of}: embed that picture again, or "
                            "take it out.")  # fmt: skip


def _check_lengths(rows: np.ndarray, shown: str, names: np.ndarray) -> None:
    for start, chunk in _chunks(rows):
        is_zero = ~chunk.any(axis=1)
        if is_zero.any():
            row = start + int(np.argmax(is_zero))
            raise UserError(f"{shown} has nothing but zeros in row {row} ({_some([names[row]])}), which cannot be "
                            "compared: embed that picture again, or take it out.")  # fmt: skip


def _refused(shown: str, reason: object, expected: str) -> UserError:
    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return UserError(f"The file of embeddings {shown} cannot be read, {_cut(words, 160)}: {expected}.")


def _cut(text: str, limit: int = NUM_CHARACTERS_SHOWN) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= limit else text[:limit] + "..."


def _some(names: Sequence[str]) -> str:
    """A few names for a message."""
    shown = ", ".join(_cut(repr(str(name))) for name in names[:NUM_NAMES_SHOWN])
    return shown + (", ..." if len(names) > NUM_NAMES_SHOWN else "")
