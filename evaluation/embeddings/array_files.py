"""Arrays in files of other people's programs, read without running anything in them: .npz, .npy, MegaFace's .bin.

Sizes that a file claims are checked before memory is taken. A .bin is MegaFace's matrix: four int32 (rows, columns,
bytes a row, 5 for float32), then float32, little-endian; one column is one embedding of that many rows. Most files have
the header (D, 1, 4, 5). A folder of .bin files has one embedding each, called as the picture with `_whatever.bin`
behind its extension.
"""

import math
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import BinaryIO, NamedTuple

import numpy as np

from meta import IMAGE_EXTENSIONS, UserError
from utils.wrong_files import wrong_file

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
NUM_NAMES_SHOWN = 3
NUM_CHARACTERS_SHOWN = 80
TEXTS = ("names", "made_by")  # the arrays of text
_BROKEN_ARCHIVE = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, struct.error, zlib.error,
                   zipfile.BadZipFile)  # fmt: skip
_BROKEN_HEADER = (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)
_PICTURE_NAME = re.compile(rf"(.*({'|'.join(map(re.escape, IMAGE_EXTENSIONS))}))[._][^/]*", re.IGNORECASE | re.DOTALL)


def read_npz(
    path: str, needed: tuple[str, ...], wanted: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays by name, and the names of what else the archive holds."""
    shown, arrays = repr(path), {}
    with open_regular(path) as file:
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
            raise refused(shown, error, EXPECTED_NPZ) from error
    return arrays, tuple(cut(name) for name in entries if name not in arrays)


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
        raise ValueError(f"it holds {cut(str(dtype))} values, which may be Python objects")
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
        raise ValueError(f"'{name}' holds {cut(str(header.dtype))} values of shape {cut(str(header.shape))}, not "
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


def read_rows(path: str) -> np.ndarray:
    """(N,D) of an .npy or .bin, mapped into memory, or the embeddings of an .npz; their values are not looked at."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npz":
        return read_npz(path, needed=("embeddings",))[0]["embeddings"]
    if ending == ".bin":
        return _read_matrix(path)
    if ending != ".npy":
        raise UserError(f"{path!r} is no file of embeddings, which ends in .npz, .npy or .bin: give one of these or a "
                        "folder of .bin files.")  # fmt: skip
    with open_regular(path) as file:
        try:
            header = _read_npy_header(file, os.fstat(file.fileno()).st_size)
            _check_kind(header, "embeddings")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, struct.error) as error:
            raise refused(repr(path), error, EXPECTED_NPY) from error


# ----------------------------------------------------------------------------------------------------- MegaFace's files


def _read_matrix(path: str) -> np.ndarray:
    """(N,D) float32 of one file, mapped into memory."""
    with open_regular(path) as file:
        shape = _matrix_shape(file, path)
        return np.memmap(file, np.dtype("<f4"), mode="r", offset=MEGAFACE_HEADER.size, shape=shape)


def _matrix_shape(file: BinaryIO, path: str) -> tuple[int, int]:
    """(N,D) as the header says, which has to agree with the size of the file; raises UserError."""
    size, header = os.fstat(file.fileno()).st_size, file.read(MEGAFACE_HEADER.size)
    if len(header) < MEGAFACE_HEADER.size:
        check_is_wanted(path)
        raise refused(repr(path), f"it has {size} bytes", EXPECTED_BIN)
    rows, columns, bytes_a_row, kind = MEGAFACE_HEADER.unpack(header)
    # Some write the bytes of a number where those of a row belong: with one column they are the same.
    if min(rows, columns) < 1 or kind != FLOAT32_IN_OPENCV or bytes_a_row not in (4, 4 * columns):
        check_is_wanted(path)
        raise refused(repr(path), f"it begins with {rows}, {columns}, {bytes_a_row}, {kind}", EXPECTED_BIN)
    claimed = MEGAFACE_HEADER.size + 4 * rows * columns
    if claimed != size:
        raise refused(repr(path), f"its header claims {claimed:,} bytes in all, there are {size:,}", EXPECTED_BIN)
    return (1, rows) if columns == 1 else (rows, columns)


def list_folder(folder: str) -> tuple[tuple[str, ...], int]:
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


def folder_chunks(folder: str, files: Sequence[str]) -> Iterator[np.ndarray]:
    """(B,D) float32 arrays of the files in turn."""
    waiting: list[np.ndarray] = []
    size = num_values = 0
    for name in files:
        path = os.path.join(folder, name)
        with open_regular(path) as file:
            shape = _matrix_shape(file, path)
            rows = np.frombuffer(file.read(), dtype="<f4").reshape(shape)
        size = size or shape[1]
        if shape[1] != size:
            raise UserError(f"{path!r} has {shape[1]} numbers a picture, the files before it have {size}: give a "
                            "folder of one model's features.")  # fmt: skip
        check_finite(rows, repr(path))
        waiting.append(rows)
        num_values += rows.size
        if num_values >= VALUES_A_CHUNK:
            yield np.concatenate(waiting)
            waiting, num_values = [], 0
    if waiting:
        yield np.concatenate(waiting)


def read_folder(folder: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Names (N,), embeddings (N,D), and how many other files there are."""
    files, num_others = list_folder(folder)
    embeddings = np.concatenate(list(folder_chunks(folder, files)))
    if len(embeddings) != len(files):
        raise UserError(f"The folder {folder!r} has {len(embeddings):,} embeddings in {len(files):,} files, so that "
                        "they have no names: give a folder with one embedding a file.")  # fmt: skip
    return np.array([picture_name(name) for name in files], dtype=np.str_), embeddings, num_others


def picture_name(file_name: str) -> str:
    """The picture whose features a file holds: `a/b_0.jpg` of `a/b_0.jpg_model_256.bin`, `a/b` of `a/b.bin`."""
    found = _PICTURE_NAME.fullmatch(file_name)
    return found[1] if found else os.path.splitext(file_name)[0]


# ----------------------------------------------------------------------------------------------------------- checks


def open_regular(path: str) -> BinaryIO:
    """A regular file to read; raises UserError."""
    # A .bin begins with a count, which may be any bytes: its reader looks for what it is where its header is none.
    if not path.lower().endswith(".bin"):
        check_is_wanted(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device may have no end
            raise ValueError("it is a folder or a device")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError for a NUL byte in the path too
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The file of embeddings {path!r} cannot be read, {reason}: check its path.") from error


def check_is_wanted(path: str) -> None:
    """Raises UserError for a web page, an archive and the like."""
    if wrong := wrong_file(path, WANTED, ("ZIP archive",) if path.lower().endswith(".npz") else ()):
        raise UserError(f"{path!r} {wrong[0]}: {wrong[1]}.")


def row_chunks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, VALUES_A_CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def check_finite(rows: np.ndarray, shown: str, first_row: int = 0, names: np.ndarray | None = None) -> None:
    for start, chunk in row_chunks(rows):
        is_broken = ~np.isfinite(chunk).all(axis=1)
        if is_broken.any():
            row = start + int(np.argmax(is_broken))
            of = "" if names is None else f" ({some([names[row]])})"
            raise UserError(f"{shown} holds NaN or infinity in row {first_row + row}{of}: embed that picture again, or "
                            "take it out.")  # fmt: skip


def refused(shown: str, reason: object, expected: str) -> UserError:
    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return UserError(f"The file of embeddings {shown} cannot be read, {cut(words, 160)}: {expected}.")


def cut(text: str, limit: int = NUM_CHARACTERS_SHOWN) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= limit else text[:limit] + "..."


def some(names: Sequence[str]) -> str:
    """A few names for a message."""
    shown = ", ".join(cut(repr(str(name))) for name in names[:NUM_NAMES_SHOWN])
    return shown + (", ..." if len(names) > NUM_NAMES_SHOWN else "")
