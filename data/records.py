"""The index of an InsightFace record file (train.rec, train.idx, property): its pictures, identities and ages.

The format of the file itself is in data.record_format.
"""

import functools
import hashlib
import math
import os
import stat
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.faces import UNKNOWN, age_groups_of, check_enough_identities
from data.record_format import AGE_NOTE, MAX_EXACT, PART, BrokenRecord, RecordFile, parse_head, picture_extension
from meta import MAX_AGE, MIN_AGE, UserError
from utils.files import Progress, no_progress, numbered_lines
from utils.wrong_files import wrong_file

if TYPE_CHECKING:
    from torch import Tensor

RECORD_EXTENSION = ".rec"
TRAINING_RECORDS = "train.rec"  # what InsightFace calls it
MAX_LABEL = 1 << 31  # of an identity
GET_AGAIN = "get the file again"
SCAN_STEP = 1 << 24  # bytes between two steps of the progress of a scan


# eq=False: comparing arrays has no single answer.
@dataclass(frozen=True, eq=False)
class RecordIndex:
    """N pictures of a record file, in the order of their keys; data.faces.Faces says what its methods give."""

    root: str  # absolute path of the .rec file
    num_bytes: int  # of that file
    keys: np.ndarray  # (N,) int64, ascending
    offsets: np.ndarray  # (N,) int64, bytes
    identities: np.ndarray  # (N,) int64
    ages: np.ndarray | None  # (N,) int16, years, -1 where unknown
    identity_names: tuple[str, ...]  # the labels in the file
    scaled: bool = False  # decode large JPEG pictures at a part of their size, see `data.transforms.decode_face`

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def num_identities(self) -> int:
        return len(self.identity_names)

    @property
    def age_groups(self) -> np.ndarray:
        """(N,) int64, the age group of each picture, -1 where its age is not known."""
        return age_groups_of(self.ages, len(self))

    def name(self, i: int) -> str:
        """Such as "train.rec key 17"."""
        return f"{os.path.basename(self.root)} key {self.key(i)}"

    def key(self, i: int) -> str:
        """The number of picture i in the record file."""
        return str(self.keys[i])

    def read(self, i: int) -> bytes:
        """The encoded picture, labels and parts taken off. Raises: UnreadablePicture for a damaged record."""
        from data.transforms import UnreadablePicture

        offset = int(self.offsets[i])
        try:
            content = self._file.read(offset)
            return content[len(content) - parse_head(content, len(content), offset, 0).picture_length :]
        except (OSError, BrokenRecord) as error:
            raise UnreadablePicture(self._whole_name(i), getattr(error, "strerror", None) or str(error)) from error

    def decode(self, i: int) -> "Tensor":
        """Picture i as uint8 (3, 112, 112). Raises: UnreadablePicture."""
        from data.fast_jpeg import decode_aligned
        from data.transforms import decode_face

        picture = self.read(i)
        face = decode_aligned(picture)
        return decode_face(picture, name=self._whole_name(i), scaled=self.scaled) if face is None else face

    def fingerprint(self) -> str:
        """SHA-256 of the file's size and of where each picture lies."""
        digest = hashlib.sha256(str(self.num_bytes).encode())
        for numbers in (self.keys, self.offsets):
            digest.update(np.ascontiguousarray(numbers, "<i8"))
        return digest.hexdigest()

    def state(self, progress: Progress = no_progress, rows: Sequence[int] | None = None) -> str:
        """SHA-256 of the fingerprint and of when the file was written; with `rows` of where these pictures lie."""
        written = os.stat(self.root).st_mtime_ns
        if rows is None:
            return hashlib.sha256(f"{self.fingerprint()} {written}".encode()).hexdigest()
        digest = hashlib.sha256(f"{self.num_bytes} {written}".encode())
        for numbers in (self.keys[rows], self.offsets[rows]):
            digest.update(np.ascontiguousarray(numbers, "<i8"))
        return digest.hexdigest()

    def _whole_name(self, i: int) -> str:
        return f"{self.root} key {self.key(i)}"

    @functools.cached_property
    def _file(self) -> RecordFile:
        return RecordFile(self.root)


# --------------------------------------------------------------------------------------------------------- indexing


def index_record_file(
    path: str | Path,
    min_identities: int = 1,
    what: str = "images",
    how_to_get: str = "",
    progress: Progress = no_progress,
) -> RecordIndex:
    """Index of a .rec file by the .idx beside it; where that is missing the records are counted by a scan.

    `what` and `how_to_get` are words for the messages. Labels of identities need not be 0, 1, 2, ...: identity k is the
    k-th smallest, and `identity_names` holds the labels.

    Raises:
        UserError: for a missing, truncated or damaged file, a property file that says otherwise, no pictures, or fewer
            than `min_identities`.
    """
    root = os.path.abspath(path)
    file = _checked_file(root, what, how_to_get)
    keys, offsets = _places(file, progress)
    header = _read_header(file, keys, offsets)
    if header is None:
        labels, ages = _labels_by_heads(file, keys, offsets, False, progress)
    else:
        num_pictures = _count_pictures(file, header, keys, offsets)
        labels = ages = None
        if num_pictures < MAX_EXACT and not header.has_ages:
            labels = _labels_by_identities(file, offsets, num_pictures)
        keys, offsets = keys[1 : num_pictures + 1], offsets[1 : num_pictures + 1]
        if labels is None:
            labels, ages = _labels_by_heads(file, keys, offsets, header.has_ages, progress)
    if not len(keys):
        raise UserError(f"The record file {root!r} holds no pictures: give another one.")
    known_labels, identities = np.unique(labels, return_inverse=True)
    names = tuple(map(str, known_labels.tolist()))
    index = RecordIndex(root, file.size, keys.copy(), offsets.copy(), identities.astype(np.int64), ages, names)
    check_property(index)
    check_enough_identities(index, min_identities, what, how_to_get)
    return index


def index_path(record_path: str | Path) -> Path:
    """train.rec -> train.idx"""
    return Path(record_path).with_suffix(".idx")


def property_path(record_path: str | Path) -> Path:
    """The file that says how many identities a record file has."""
    return Path(record_path).with_name("property")


def check_property(index: RecordIndex) -> None:
    """Compares the index with the property file beside it, if there is one, and it is not about another record file.

    A difference is an error, not a warning: nearly always a file was cut off or belongs to another set, which shows
    only after days of training; correcting a property file that is wrong takes a moment.

    Raises:
        UserError: where it names another number of identities or of pictures, or is no property file.
    """
    path, record_path = property_path(index.root), Path(index.root)
    of_another = record_path.name != TRAINING_RECORDS and record_path.with_name(TRAINING_RECORDS).exists()
    if of_another or not path.exists():
        return
    expected = "'identities,height,width' is expected in its first line"
    lines = [line for _, line in zip(range(2), numbered_lines(path, "property file", expected), strict=False)]
    first = lines[0][1].strip().split(",") if lines else []
    if len(first) != 3 or not all(field.strip().isdecimal() for field in first):
        raise UserError(f"{str(path)!r} is no property file, {expected}: correct or remove it.")
    stated = [("identities", int(first[0][:20]), index.num_identities)]
    # Newer builders add the number of pictures. Not all may mean the same by a second line: no number is no error.
    if len(lines) > 1 and lines[1][1].strip().isdecimal():
        stated.append(("pictures", int(lines[1][1].strip()[:20]), len(index)))
    for words, said, found in stated:
        if said != found:
            raise UserError(
                f"{str(path)!r} says {said:,} {words}, but {index.root!r} holds {found:,}: {GET_AGAIN}, or correct or "
                "remove the property file."
            )


def _checked_file(root: str, what: str, how_to_get: str) -> RecordFile:
    help_text = f"; how to get it: {how_to_get}" if how_to_get else ""
    try:
        if not stat.S_ISREG(os.stat(root).st_mode):  # a device may have no end
            raise ValueError("it is a folder or a device")
        file = RecordFile(root)
        size = file.size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The record file {root!r} of {what} cannot be read, {reason}: check its path{help_text}."
        ) from error
    if size < PART.size:
        raise UserError(f"The record file {root!r} of {what} is empty: give another one{help_text}.")
    if wrong := wrong_file(root, "record file"):
        raise UserError(f"The record file {root!r} of {what} {wrong[0]}: {wrong[1]}{help_text}.")
    return file


def _damaged(file: RecordFile, error: BrokenRecord, num_good: int) -> UserError:
    return UserError(f"{file.path!r} is damaged, {error}: the {num_good:,} records before it are good, {GET_AGAIN}.")


def _places(file: RecordFile, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets) of all records, int64 both, by ascending keys."""
    path = index_path(file.path)
    if path.exists():
        keys, offsets = _read_index(path)
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        _check_places(file, path, keys, offsets)
        return keys, offsets
    offsets, ids = _scan(file, progress)
    in_order = np.sort(ids)
    is_numbering = len(ids) > 0 and in_order[0] >= 0 and bool((np.diff(in_order) > 0).all())
    if is_numbering and _header_at(file, 0) is not None:
        is_numbering = in_order[-1] == len(ids) - 1
    if not is_numbering:  # some builders leave the ids 0: then records are counted
        return np.arange(len(ids), dtype=np.int64), offsets
    order = np.argsort(ids, kind="stable")
    return ids[order], offsets[order]


def _scan(file: RecordFile, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, ids) of all records, int64 both, in the order of the file."""
    offsets, ids = array("q"), array("Q")

    def steps() -> Iterator[None]:
        offset, reported = 0, 0
        while offset < file.size:
            try:
                head = file.head(offset)
            except BrokenRecord as error:
                raise _damaged(file, error, len(offsets)) from error
            offsets.append(offset)
            ids.append(head.id)
            offset = head.end
            while reported + SCAN_STEP <= offset:
                reported += SCAN_STEP
                yield None

    name = os.path.basename(file.path)
    for _ in progress(steps(), file.size // SCAN_STEP, f"{name} without .idx, 16 MB steps"):
        pass
    return np.array(offsets, dtype=np.int64), np.array(ids, dtype=np.uint64).astype(np.int64)


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets) of a .idx file, in its order."""
    expected = "'key offset', two whole numbers, is expected in each line"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is a folder or a device")
        with open(path, encoding="latin-1") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, which has a sentence below
            warnings.simplefilter("error", DeprecationWarning)  # older NumPy makes 1 of 1.5 and warns
            numbers = np.loadtxt(file, dtype=np.int64, comments=None, ndmin=2)
        if numbers.shape[1] != 2 or not len(numbers):
            raise ValueError("it has no lines of two numbers")
    except OSError as error:
        raise UserError(f"The index {str(path)!r} cannot be read, {error.strerror}: check who may read it.") from error
    except (ValueError, OverflowError, DeprecationWarning) as error:
        for number, line in numbered_lines(path, "index of records", expected):  # slow, and knows the line
            fields = line.split()
            if len(fields) != 2 or not all(field.isascii() and field.isdigit() and len(field) < 19 for field in fields):
                raise UserError(f"{str(path)!r}, line {number}, reads {line.strip()[:80]!r}: {expected}.") from error
        raise UserError(f"{str(path)!r} holds no index of records: {expected}.") from error
    return numbers[:, 0].copy(), numbers[:, 1].copy()


def _check_places(file: RecordFile, path: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Raises UserError where places are no places in the file, or the file ends before the last of them does."""
    shown = repr(str(path))
    remove = "remove it, and a scan takes its place"
    if (repeated := np.flatnonzero(np.diff(keys) == 0)).size:
        raise UserError(f"{shown} has the key {keys[repeated[0]]} twice: {remove}.")
    if keys[0] < 0 or offsets.min() < 0 or (offsets % 4).any():
        raise UserError(f"{shown} has keys or offsets that are negative or no multiples of 4: {remove}.")
    places = np.sort(offsets)
    if (repeated := np.flatnonzero(np.diff(places) == 0)).size:
        raise UserError(f"{shown} has the offset {places[repeated[0]]} twice: {remove}.")
    inside = int(np.searchsorted(places, file.size))
    try:
        if inside:
            file.head(int(places[inside - 1]))
    except BrokenRecord as error:
        raise _damaged(file, error, inside - 1) from error
    if inside < len(places):
        raise UserError(
            f"{file.path!r} ends at byte {file.size:,}, but {shown} has {len(places):,} records up to byte "
            f"{places[-1]:,}: the first {inside:,} are good, {GET_AGAIN}."
        )


class _Header(NamedTuple):
    end_of_pictures: int  # a: pictures have the keys 1 to a - 1
    end_of_identities: int  # b
    has_ages: bool


def _read_header(file: RecordFile, keys: np.ndarray, offsets: np.ndarray) -> _Header | None:
    """The header record, None where the file has none."""
    if not len(keys) or keys[0] != 0:
        return None
    header = _header_at(file, int(offsets[0]))
    if header is not None and not 1 <= header.end_of_pictures <= header.end_of_identities:
        raise UserError(
            f"{file.path!r} has a header record that says pictures end at key {header.end_of_pictures} and identities "
            f"at key {header.end_of_identities}: {GET_AGAIN}."
        )
    return header


def _header_at(file: RecordFile, offset: int) -> _Header | None:
    """What the record at this place says if it is a header: two labels or more, and no picture."""
    try:
        head = file.head(offset)
        if head.num_labels < 2:
            return None
        content = file.read(offset)
    except BrokenRecord as error:
        raise _damaged(file, error, 0) from error
    rest = content[len(content) - head.picture_length :]
    if picture_extension(rest) is not None:  # an array of labels: such files have no header
        return None
    ends = [int(label) if math.isfinite(label) and label == int(label) else -1 for label in (head.first, head.second)]
    return _Header(*ends, has_ages=rest == AGE_NOTE)


def _count_pictures(file: RecordFile, header: _Header, keys: np.ndarray, offsets: np.ndarray) -> int:
    """How many pictures follow the header record; the keys have to be 0, 1, ... b - 1."""
    end, count = header.end_of_identities, len(keys)
    gaps = np.flatnonzero(keys != np.arange(count))
    if len(gaps):
        raise UserError(
            f"{file.path!r} has a header record, but key {gaps[0]:,} is missing from its index: {GET_AGAIN}, or remove "
            "the .idx file, and a scan takes its place."
        )
    # Above 2^24 the header's labels are rounded to the next float32.
    rounding = int(np.spacing(np.float32(end))) if end > MAX_EXACT else 0
    if abs(count - end) > rounding:
        raise UserError(
            f"The header of {file.path!r} says that there are {end:,} records, but {count:,} were found: {GET_AGAIN} "
            "and its .idx too."
        )
    num_pictures = header.end_of_pictures - 1
    if header.end_of_pictures > MAX_EXACT:
        around = range(num_pictures - rounding, min(num_pictures + rounding + 1, count))
        num_pictures = next((k - 1 for k in around if not _heads(file, offsets[k : k + 1]).lengths[0]), count - 1)
    return num_pictures


class _Heads(NamedTuple):
    """The heads of M records."""

    first: np.ndarray  # (M,) float32
    second: np.ndarray  # (M,) float32, nan where there is none
    lengths: np.ndarray  # (M,) int64, of the pictures


def _heads(file: RecordFile, offsets: np.ndarray, watched: Callable[[Iterable], Iterable] = iter) -> _Heads:
    first, second, lengths = array("f"), array("f"), array("q")
    for offset in watched(memoryview(np.ascontiguousarray(offsets))):  # Python's numbers, one at a time
        try:
            head = file.head(offset)
        except BrokenRecord as error:
            raise _damaged(file, error, int((offsets < offset).sum())) from error
        first.append(head.first)
        second.append(head.second)
        lengths.append(head.picture_length)
    return _Heads(np.array(first, np.float32), np.array(second, np.float32), np.array(lengths, np.int64))


def _labels_by_heads(
    file: RecordFile, keys: np.ndarray, offsets: np.ndarray, with_ages: bool, progress: Progress
) -> tuple[np.ndarray, np.ndarray | None]:
    """(labels (N,) int64, ages (N,) int16 or None) out of the heads of the pictures' records."""
    what = f"labels of {os.path.basename(file.path)}"
    heads = _heads(file, offsets, lambda places: progress(places, len(places), what))
    labels = _whole(file, keys, heads.first, 0, MAX_LABEL, "the identity")
    if not with_ages:
        return labels, None
    ages = _whole(file, keys, heads.second, UNKNOWN, MAX_AGE, f"the age (years, {MIN_AGE} to {MAX_AGE}, or -1)")
    return labels, ages.astype(np.int16)


def _whole(file: RecordFile, keys: np.ndarray, numbers: np.ndarray, low: int, high: int, what: str) -> np.ndarray:
    """The labels as int64. Raises: UserError for one that is no whole number from `low` to `high`."""
    good = (numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers))  # False for nan
    if not good.all():
        wrong = int(np.flatnonzero(~good)[0])
        raise UserError(
            f"{file.path!r} key {keys[wrong]} has the label {numbers[wrong]:g} for {what}: {GET_AGAIN}, or build it "
            "anew with whole numbers."
        )
    return numbers.astype(np.int64)


def _labels_by_identities(file: RecordFile, offsets: np.ndarray, num_pictures: int) -> np.ndarray | None:
    """(N,) int64 labels of the pictures by the identity records: some 200,000 heads are read, not five million.

    None where there are no such records, where their ranges of keys do not follow on each other from the first picture
    to the last, or where the first and the last picture of a range have different labels.
    """
    heads = _heads(file, offsets[num_pictures + 1 :])
    order = np.argsort(heads.first, kind="stable")
    first, end = heads.first[order].astype(np.float64), heads.second[order].astype(np.float64)
    bounds = np.append(first, num_pictures + 1.0)
    if first.size == 0 or first[0] != 1 or not np.array_equal(bounds[1:], end) or not (np.diff(bounds) > 0).all():
        return None
    edges = bounds.astype(np.int64)
    if not np.array_equal(edges, bounds):
        return None
    ends = [_heads(file, offsets[places]).first for places in (edges[:-1], edges[1:] - 1)]
    whole = (ends[0] >= 0) & (ends[0] <= MAX_LABEL) & (ends[0] == np.floor(ends[0]))
    if not (np.array_equal(*ends) and whole.all() and len(np.unique(ends[0])) == len(ends[0])):
        return None
    return np.repeat(ends[0].astype(np.int64), np.diff(edges))
