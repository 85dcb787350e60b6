"""MATLAB's files of version 5 to 7, as far as AgeDB's protocol needs it: cells, structs, text and real numbers.

Not by scipy.io.loadmat: of 3,766 files with one to six damaged bytes it crashed the process on 83 (segmentation fault)
and ran for more than five seconds on 8 (scipy 1.17). No check of the 128-byte header finds those. Here no size is
trusted beyond the bytes that are there, and a file takes time in proportion to them.
Source: The MathWorks, MAT-File Format, chapter 1.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_BYTES = 16 << 20  # AgeDB's protocols have less than 1 MB
MAX_UNPACKED_BYTES = 32 << 20
MAX_DEPTH = 16  # of cells in cells: AgeDB's protocol has 6
HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15  # data types miMATRIX, miCOMPRESSED
# Data types of numbers: NumPy's letter and size
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
CELL, STRUCT, CHAR = 1, 2, 4  # array classes; 6 to 15 are numbers
COMPLEX = 0x800  # array flag


@dataclass(frozen=True, eq=False)
class MatArray:
    """An array in MATLAB's order: the first index runs fastest.

    `values` holds MatArrays (of a cell array), dicts of MatArrays (struct), one str (char), or numbers.
    """

    dims: tuple[int, ...]
    values: list


def read_mat_variable(path: Path, name: str) -> MatArray:
    """The variable `name` of a file.

    Raises:
        OSError: for a file that can't be read.
        ValueError: for one that isn't of this form, or has no such variable.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    # Version 1.0 of the format and the low byte first, as on every machine that has had MATLAB for twenty years.
    if content[124:HEADER_BYTES] != b"\x00\x01IM":
        raise ValueError("it is no MAT file of version 5 to 7 (of version 7.3 MATLAB makes one by save -v7)")
    reader = _Reader(content, HEADER_BYTES, len(content))
    room = MAX_UNPACKED_BYTES
    while reader.place < reader.end:
        kind, element = reader.element(padded=False)
        if kind == COMPRESSED:
            unpacked = _unpacked(content[element.place : element.end], room)
            room -= len(unpacked)
            kind, element = _Reader(unpacked, 0, len(unpacked)).element(padded=False)
        if kind != MATRIX:
            continue
        found, array = _matrix(element, wanted=name)
        if found == name:
            return array
    raise ValueError(f"it has no variable {name!r}")


def _unpacked(content: bytes, room: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        unpacked = decompressor.decompress(content, room + 1)
    except zlib.error as error:
        raise ValueError(f"it is damaged ({error})") from error
    if len(unpacked) > room or not decompressor.eof:
        raise ValueError(f"it is cut off, or unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    return unpacked


class _Reader:
    """A stretch of bytes, read element by element."""

    def __init__(self, content: bytes, place: int, end: int):
        self.content, self.place, self.end = content, place, end

    def element(self, padded: bool = True) -> tuple[int, "_Reader"]:
        """The next element: its data type, and a reader of what it holds. On the top level nothing is padded."""
        if self.place + 8 > self.end:
            raise ValueError(f"it is cut off at byte {self.place}")
        first, size = self._number(self.place), self._number(self.place + 4)
        start = self.place + 8
        if first >> 16:  # a small element: its size in the upper half, up to four bytes where the size was
            first, size, start = first & 0xFFFF, first >> 16, self.place + 4
            if size > 4:
                raise ValueError(f"a small element of {size} bytes at byte {self.place}")
        after = start + size
        if after > self.end:
            raise ValueError(f"an element of {size} bytes at byte {self.place}, where {self.end - start} are left")
        if size <= 4 and start == self.place + 4:
            self.place += 8
        else:
            self.place = after + (-size % 8 if padded else 0)
        return first, _Reader(self.content, start, after)

    def numbers(self) -> np.ndarray:
        """The next element, which has to be of numbers."""
        kind, element = self.element()
        if kind not in NUMBERS:
            raise ValueError(f"data type {kind} at byte {element.place} where numbers were to come")
        dtype = np.dtype("<" + NUMBERS[kind])
        count = (element.end - element.place) // dtype.itemsize
        return np.frombuffer(self.content, dtype, count, element.place)

    def text(self) -> str:
        """The next element, which has to be of characters."""
        kind, element = self.element()
        if kind not in TEXTS:
            raise ValueError(f"data type {kind} at byte {element.place} where text was to come")
        return self.content[element.place : element.end].decode(TEXTS[kind])

    def _number(self, place: int) -> int:
        return int.from_bytes(self.content[place : place + 4], "little")


def _matrix(reader: _Reader, depth: int = 0, wanted: str | None = None) -> tuple[str, MatArray]:
    """Name and content of a matrix element; with `wanted` one of another name is not looked into."""
    nothing = MatArray((0, 0), [])
    if reader.place == reader.end:  # how MATLAB writes what is empty
        return "", nothing
    if depth > MAX_DEPTH:
        raise ValueError(f"cells in cells more than {MAX_DEPTH} deep")
    flags = [int(flag) for flag in reader.numbers()]
    dims = tuple(int(number) for number in reader.numbers())
    name = reader.text()
    if wanted is not None and name != wanted:
        return name, nothing
    if not flags or len(dims) < 2 or min(dims) < 0:
        raise ValueError(f"an array without a class, or of dimensions {dims[:4]}, before byte {reader.place}")
    kind, count = flags[0] & 0xFF, math.prod(dims)
    if kind == CHAR:
        return name, MatArray(dims, [reader.text()])
    if kind in (CELL, STRUCT) and 8 * count > reader.end - reader.place:
        raise ValueError(f"{count} cells in {reader.end - reader.place} bytes")
    if kind == CELL:
        return name, MatArray(dims, [_next_matrix(reader, depth) for _ in range(count)])
    if kind == STRUCT:
        fields = _field_names(reader)
        if not fields:
            raise ValueError("a struct without fields")
        rows = [{field: _next_matrix(reader, depth) for field in fields} for _ in range(count)]
        return name, MatArray(dims, rows)
    if not 6 <= kind <= 15 or flags[0] & COMPLEX:
        raise ValueError(f"an array of class {kind}, or of complex numbers")
    return name, MatArray(dims, reader.numbers().tolist())


def _next_matrix(reader: _Reader, depth: int) -> MatArray:
    kind, element = reader.element()
    if kind != MATRIX:
        raise ValueError(f"data type {kind} at byte {element.place} where an array was to come")
    return _matrix(element, depth + 1)[1]


def _field_names(reader: _Reader) -> list[str]:
    """Names of equal length, filled up with zeros."""
    lengths, packed = reader.numbers(), reader.text()
    length = int(lengths[0]) if len(lengths) else 0
    if length < 1 or len(packed) % length:
        raise ValueError(f"names of fields in {len(packed)} bytes, each of {length}")
    names = [packed[i : i + length].split("\0")[0] for i in range(0, len(packed), length)]
    if len(set(names)) != len(names):
        raise ValueError("two fields of one name")
    return names
