"""The format of InsightFace's record files (train.rec) without mxnet: records at any place of a file, and their heads.

A record is, all little-endian: a magic word, a word of 3 bits that say which part of a record follows and 29 bits of
its length, so many bytes, and zeros up to a multiple of 4. Where the bytes hold the magic word at a multiple of 4, they
are cut there into parts and the word is left out; the reader puts it back. The bytes are a head of 24 (number of
labels, one label, id, second id), then labels where their number is not 0, then a JPEG or PNG.

The record of key 0 may be a header, without a picture, of labels (a, b): pictures have the keys 1 to a - 1. The keys a
to b - 1 are identity records, without pictures too, of labels (first key, last key + 1). Without a header every key is
a picture. The first label of a picture is its identity. The second is its age in years where the header record goes on
with AGE_NOTE: in other files it is something else, if it is there at all.
Source: the formats of dmlc's recordio, mxnet.recordio and InsightFace's face2rec2, described in our own words.
"""

import math
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAGIC_WORD = struct.pack("<I", 0xCED7230A)
PART = struct.Struct("<4sI")  # the magic word; which part, and its length
LENGTH_BITS = 29
MAX_LENGTH = (1 << LENGTH_BITS) - 1  # bytes, of a whole record: recordio's own limit
WHOLE, FIRST, MIDDLE, LAST = range(4)
HEAD = struct.Struct("<IfQQ")  # number of labels, label where that is 0, id, second id
LABEL = struct.Struct("<f")
MAX_EXACT = 1 << 24  # labels are float32, which holds every whole number up to here and some above
AGE_NOTE = b"labels: identity, age in years\n"
SIGNATURES = {".jpg": b"\xff\xd8\xff", ".png": b"\x89PNG\r\n\x1a\n", ".webp": b"RIFF", ".bmp": b"BM"}


class BrokenRecord(ValueError):
    """A record that cannot be read: the message names its place and what is wrong with it."""

    def __init__(self, offset: int, why: str):
        super().__init__(f"the record at byte {offset:,} {why}")


class Head(NamedTuple):
    """What a record says before its picture."""

    num_labels: int  # 0 where there is one only
    first: float
    second: float  # nan where there is none
    id: int
    picture_length: int  # bytes
    end: int  # byte where the next record begins


class RecordFile:
    """A record file, to be read at any place by several threads and processes.

    `os.pread` says where it reads, so a descriptor that forked workers share has no position to be moved. A copy sent
    to another process opens the file for itself.
    """

    def __init__(self, path: str):
        self.path = path
        self._descriptor: int | None = None

    def __reduce__(self):
        return RecordFile, (self.path,)

    def __del__(self):
        if self._descriptor is not None:
            os.close(self._descriptor)

    @property
    def descriptor(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            self._size = os.fstat(self._descriptor).st_size
        return self._descriptor

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self._size if self.descriptor is not None else 0

    def read(self, offset: int) -> bytes:
        """The bytes of the record at this place, its parts joined. Raises: BrokenRecord, OSError."""
        descriptor = self.descriptor
        parts = []
        for start, length in self._parts(offset):
            parts.append(os.pread(descriptor, length, start))
            if len(parts[-1]) < length:
                raise BrokenRecord(offset, "ends before its length")
        return MAGIC_WORD.join(parts) if len(parts) > 1 else parts[0]

    def head(self, offset: int) -> Head:
        """The head of the record at this place; the picture is not read. Raises: BrokenRecord, OSError."""
        start = os.pread(self.descriptor, PART.size + HEAD.size + 2 * LABEL.size, offset)
        if len(start) >= PART.size:
            magic, word = PART.unpack_from(start)
            length = word & MAX_LENGTH
            end = offset + PART.size + padded(length)
            if magic == MAGIC_WORD and word >> LENGTH_BITS == WHOLE and end <= self.size:
                return parse_head(start[PART.size : PART.size + length], length, offset, end)
        *_, (last_start, last_length) = self._parts(offset)  # says what is wrong, if it is
        content = self.read(offset)
        return parse_head(content, len(content), offset, last_start + padded(last_length))

    def _parts(self, offset: int) -> Iterator[tuple[int, int]]:
        """(first byte, length) of each part of the record at this place, every one inside the file."""
        place, total, expected = offset, 0, (WHOLE, FIRST)
        while True:
            start = os.pread(self.descriptor, PART.size, place)
            if len(start) < PART.size:
                raise BrokenRecord(offset, f"ends with the file at byte {self.size:,}")
            magic, word = PART.unpack(start)
            part, length = word >> LENGTH_BITS, word & MAX_LENGTH
            if magic != MAGIC_WORD:
                raise BrokenRecord(offset, f"does not have the magic word at byte {place:,}")
            if part not in expected:
                raise BrokenRecord(offset, f"has a part of kind {part} at byte {place:,}, out of order")
            place += PART.size
            if place + padded(length) > self.size:
                raise BrokenRecord(offset, f"has a length of {length:,}, beyond the file's end at byte {self.size:,}")
            total += length + (len(MAGIC_WORD) if part in (MIDDLE, LAST) else 0)
            if total > MAX_LENGTH:
                raise BrokenRecord(offset, f"has parts of more than {MAX_LENGTH:,} bytes")
            yield place, length
            if part in (WHOLE, LAST):
                return
            place, expected = place + padded(length), (MIDDLE, LAST)


def padded(length: int) -> int:
    """The next multiple of 4."""
    return (length + 3) & ~3


def parse_head(start: bytes, length: int, offset: int, end: int) -> Head:
    """The head in the first bytes of a record of `length` bytes."""
    if length < HEAD.size:
        raise BrokenRecord(offset, f"has {length} bytes, fewer than the {HEAD.size} of its head")
    num_labels, first, identifier, _ = HEAD.unpack_from(start)
    picture_length = length - HEAD.size - LABEL.size * num_labels
    if picture_length < 0:
        raise BrokenRecord(offset, f"claims {num_labels:,} labels in {length:,} bytes")
    second = math.nan
    if num_labels >= 1:
        (first,) = LABEL.unpack_from(start, HEAD.size)
    if num_labels >= 2:
        (second,) = LABEL.unpack_from(start, HEAD.size + LABEL.size)
    return Head(num_labels, first, second, identifier, picture_length, end)


def picture_extension(picture: bytes) -> str | None:
    """ ".jpg", ".png", ".webp" or ".bmp" by the first bytes; None for anything else."""
    for extension, signature in SIGNATURES.items():
        if picture.startswith(signature) and (extension != ".webp" or picture[8:12] == b"WEBP"):
            return extension
    return None
