"""Pictures into InsightFace's record files and out of them; the format is described in data/record_format.py."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import numpy as np

from data.faces import Faces
from data.record_format import (
    AGE_NOTE,
    FIRST,
    HEAD,
    LABEL,
    LAST,
    LENGTH_BITS,
    MAGIC_WORD,
    MAX_EXACT,
    MAX_LENGTH,
    MIDDLE,
    PART,
    SIGNATURES,
    WHOLE,
    padded,
    picture_extension,
)
from data.records import RECORD_EXTENSION, RecordIndex, index_path, property_path
from meta import UserError
from utils.files import Progress, check_is_new, no_progress, written_beside

ORIGIN_NAME = ".unpacked_from.txt"  # hidden, so that no index counts it
NUM_SHOWN = 10  # records that were left out, in words


class Packed(NamedTuple):
    num_pictures: int
    num_identities: int
    with_ages: bool


class Unpacked(NamedTuple):
    num_written: int  # in a dry run those that would be
    num_kept: int  # that were there already, of the right size
    num_left_out: int  # damaged records, or no picture in them
    left_out: tuple[str, ...]  # the first of them, each with its reason


class RecordWriter:
    """Writes records one after another to `records`, and their places to `places`."""

    def __init__(self, records: BinaryIO, places: TextIO):
        self._records, self._places, self._offset = records, places, 0

    def write(self, key: int, labels: Sequence[float], picture: bytes) -> None:
        """One record. A single label stands in the head, several behind it."""
        content = record_content(key, labels, picture)
        if len(content) > MAX_LENGTH:
            raise UserError(f"Picture {key} has {len(content):,} bytes, more than a record can hold: leave it out.")
        stored = as_parts(content)
        self._records.write(stored)
        self._places.write(f"{key}\t{self._offset}\n")
        self._offset += len(stored)


def record_content(key: int, labels: Sequence[float], picture: bytes) -> bytes:
    """Head, labels and picture."""
    if len(labels) == 1:
        return HEAD.pack(0, labels[0], key, 0) + picture
    return HEAD.pack(len(labels), 0.0, key, 0) + b"".join(map(LABEL.pack, labels)) + picture


def as_parts(content: bytes) -> bytes:
    """A record as it is stored: cut where it holds the magic word at a multiple of 4, so that a scan finds records."""
    cuts, start = [], content.find(MAGIC_WORD)
    while start >= 0:
        if start % 4 == 0:
            cuts.append(start)
        start = content.find(MAGIC_WORD, start + (4 if start % 4 == 0 else 1))
    stored, begin = bytearray(), 0
    for number, end in enumerate([*cuts, len(content)]):
        is_last = number == len(cuts)
        kind = (WHOLE if is_last else FIRST) if number == 0 else (LAST if is_last else MIDDLE)
        stored += PART.pack(MAGIC_WORD, kind << LENGTH_BITS | end - begin) + content[begin:end]
        begin = end + len(MAGIC_WORD)
    stored += bytes(padded(len(stored)) - len(stored))
    return bytes(stored)


def pack_folder(
    index: Faces,
    path: str | Path,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Packed:
    """Writes the pictures of an index to `path` (train.rec), with train.idx and property beside it.

    The encoded pictures go in as they are, those of an identity one after another, with the keys 1, 2, ... Names of
    files and identities are not kept: identity k of the index gets the label k. Ages, where the index has them, become
    second labels. All three files take their names when all was written, the .rec last; a run that was stopped leaves
    none of them and starts again.

    Raises:
        UserError: for a file that is there already (without `force`), a picture that can't be read, is no JPEG, PNG,
            WebP or BMP, or has no identity; more pictures and identities than float32 labels can count.
    """
    path = Path(path)
    paths = check_record_paths(path, force)
    _check_packable(index)
    if not dry_run:
        with (
            written_beside(paths[0]) as records,
            written_beside(paths[1], "w", encoding="ascii") as places,
            written_beside(paths[2], "w", encoding="ascii") as properties,
        ):
            size = _write_all(index, RecordWriter(records, places), f"packing {path.name}", progress)
            properties.write(f"{index.num_identities},{size[1]},{size[0]}\n")
            # An old file must not stand beside the new index if the next moment is the last.
            path.unlink(missing_ok=True)
    return Packed(len(index), index.num_identities, index.ages is not None)


def check_record_paths(path: Path, force: bool = False) -> tuple[Path, Path, Path]:
    """Where .rec, .idx and property are written; raises UserError for another ending, or files that exist."""
    if path.suffix != RECORD_EXTENSION:
        raise UserError(f"{str(path)!r} is no name of a record file: give one that ends in {RECORD_EXTENSION}.")
    paths = (path, index_path(path), property_path(path))
    for each in paths:
        check_is_new(each, force)
    return paths


def unpack_record_file(
    index: RecordIndex,
    folder: str | Path,
    with_ages: bool,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Unpacked:
    """Writes the pictures as identity folders: 00000007/00000171.jpg, or 00000007/00000171_age_39.jpg `with_ages`.

    The folder's name is the label, the file's the key; the ending is that of the picture's format. A run that was
    stopped goes on as long as the record file has its size and time: what has the right size is kept.

    Raises:
        UserError: for ages that are not known, a folder that holds anything else, or files of another size (which
            `force` replaces).
    """
    folder = Path(folder)
    if with_ages and (index.ages is None or (index.ages < 0).any()):
        num_known = 0 if index.ages is None else int((index.ages >= 0).sum())
        raise UserError(
            f"{index.root!r} has the ages of {num_known:,} of its {len(index):,} pictures, but names with ages need "
            "all of them: give a table of ages, or unpack with plain names."
        )
    _check_origin(index, folder, with_ages, dry_run)
    num_written, num_kept, num_left_out, left_out = 0, 0, 0, []
    for i in progress(range(len(index)), len(index), f"unpacking {os.path.basename(index.root)}"):
        try:
            picture = index.read(i)
        except UserError as error:
            picture, reason = b"", str(error)
        else:
            reason = f"{index.name(i)!r} holds no JPEG, PNG, WebP or BMP."
        extension = picture_extension(picture)
        if extension is None:
            num_left_out += 1
            left_out += [reason] if len(left_out) < NUM_SHOWN else []
        elif _write_picture(picture, folder / _unpacked_name(index, i, with_ages, extension), force, dry_run):
            num_written += 1
        else:
            num_kept += 1
    return Unpacked(num_written, num_kept, num_left_out, tuple(left_out))


def _check_packable(index: Faces) -> None:
    if not len(index):
        raise UserError(f"{index.root!r} holds no pictures to be packed: give another folder.")
    if (index.identities < 0).any():
        first = int(np.flatnonzero(index.identities < 0)[0])
        raise UserError(f"{index.name(first)!r} in {index.root!r} has no identity: give one folder per identity.")
    num_records = 1 + len(index) + index.num_identities
    if num_records > MAX_EXACT:
        raise UserError(
            f"{index.root!r} needs {num_records:,} records, more than the {MAX_EXACT:,} that the header of a record "
            "file can count: pack it in parts."
        )


def _write_all(index: Faces, writer: RecordWriter, what: str, progress: Progress) -> tuple[int, int]:
    """Header, pictures, identity records; gives (width, height) of the first picture."""
    from data.transforms import decode_picture

    order = np.argsort(index.identities, kind="stable")
    bounds = 1 + np.append(0, np.cumsum(np.bincount(index.identities, minlength=index.num_identities)))
    end_of_pictures = 1 + len(index)
    writer.write(0, (end_of_pictures, end_of_pictures + index.num_identities), b"" if index.ages is None else AGE_NOTE)
    size = (0, 0)
    for key, i in enumerate(progress(memoryview(order), len(order), what), start=1):
        picture = index.read(i)
        if picture_extension(picture) is None:
            raise UserError(
                f"{index.name(i)!r} in {index.root!r} is none of {', '.join(SIGNATURES)}: replace it or leave it out."
            )
        if key == 1:
            size = decode_picture(picture, index.name(i)).size
        ages = () if index.ages is None else (index.ages[i],)
        writer.write(key, (index.identities[i], *ages), picture)
    for number, (first, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        writer.write(end_of_pictures + number, (first, end), b"")
    return size


def _check_origin(index: RecordIndex, folder: Path, with_ages: bool, dry_run: bool) -> None:
    """Raises UserError unless the folder is new, or was begun with the same records and names; notes which."""
    origin = index.state() + " "
    origin += hashlib.sha256(np.ascontiguousarray(index.ages, "<i2")).hexdigest() if with_ages else "plain"
    note = folder / ORIGIN_NAME
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is no folder: give a new one.")
        if note.is_file():
            with open(note, "rb") as file:
                if file.read(len(origin) + 2) == origin.encode() + b"\n":
                    return
        if any(folder.iterdir()):
            raise UserError(
                f"The folder {str(folder)!r} is not empty and was not begun with {index.root!r} as it is now and the "
                "same names: give a new folder."
            )
    if not dry_run:
        with written_beside(note, "w", encoding="ascii") as file:
            file.write(origin + "\n")


def _unpacked_name(index: RecordIndex, i: int, with_ages: bool, extension: str) -> str:
    label = int(index.identity_names[index.identities[i]])
    age = f"_age_{index.ages[i]:02d}" if with_ages else ""
    return f"{label:08d}/{index.keys[i]:08d}{age}{extension}"


def _write_picture(picture: bytes, path: Path, force: bool, dry_run: bool) -> bool:
    """Whether it had to be written; a file of the right size is kept."""
    if path.exists():
        size = path.stat().st_size
        if size == len(picture):
            return False
        if not force:
            raise UserError(
                f"{str(path)!r} has {size:,} bytes, the picture in the record file {len(picture):,}: remove it, or "
                "--force to replace such files."
            )
    if not dry_run:
        with written_beside(path) as file:
            file.write(picture)
    return True
