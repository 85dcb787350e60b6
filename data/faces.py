"""An index of face pictures: which there are, whose they are and how old the faces are.

Nothing here needs torch until a picture is decoded, so that five million names are listed without its 500 MB.
"""

import dataclasses
import hashlib
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from data.filenames import parse_age
from data.layout import is_image_name, layout_faults, no_such_folder
from meta import AGE_GROUP_UPPER_EDGES, IMAGE_EXTENSIONS, MAX_AGE, MIN_AGE, FilenamePattern, UserError
from utils.files import Progress, no_progress

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = -1  # an identity, an age or an age group that is not known
MAX_PICTURE_BYTES = 1 << 28  # of an encoded picture: 256 MB, four bytes for each pixel that may be decoded


class Faces(Protocol):
    """N pictures with what is known of them, whatever they are stored in: identity folders or a record file.

    Identity k of `identities` is called `identity_names[k]`. A copy can be sent to another process.
    """

    @property
    def root(self) -> str: ...  # absolute path of the folder or the record file
    @property
    def identities(self) -> np.ndarray: ...  # (N,) int64, -1 where unknown
    @property
    def ages(self) -> np.ndarray | None: ...  # (N,) int16, years, -1 where unknown; None where all are
    @property
    def age_groups(self) -> np.ndarray: ...  # (N,) int64, -1 where unknown
    @property
    def identity_names(self) -> tuple[str, ...]: ...
    @property
    def num_identities(self) -> int: ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Picture i for people, without the way to `root`: "00000007/00000171_age_39.jpg" or "train.rec key 17"."""
        ...

    def key(self, i: int) -> str:
        """Picture i for tables beside the data set: its path below `root` with "/", or its number in the records."""
        ...

    def read(self, i: int) -> bytes:
        """Picture i as it is stored. Raises: UnreadablePicture (a UserError)."""
        ...

    def decode(self, i: int) -> "Tensor":
        """Picture i as uint8 (3, 112, 112). Raises: UnreadablePicture (a UserError)."""
        ...

    def fingerprint(self) -> str:
        """Changes with what decides which picture stands at which position: what is kept by position depends on it."""
        ...

    def state(self, progress: Progress = no_progress, rows: Sequence[int] | None = None) -> str:
        """Changes with the fingerprint and where files were written anew: pixels may be others then.

        With `rows` it depends on these pictures alone, in this order, and on the file that holds them, if it is one.
        """
        ...


SomeFaces = TypeVar("SomeFaces", bound=Faces)


# eq=False: comparing arrays has no single answer.
@dataclass(frozen=True, eq=False)
class FaceIndex:
    """N pictures below one folder. Arrays, since five million Python objects would be copied into every worker.

    Picture i has the path `path_bytes[path_offsets[i]:path_offsets[i + 1]]` below `root`, encoded as the file system
    does it. Its identity is a position in `identity_names`, or -1.
    """

    root: str
    path_bytes: np.ndarray  # (B,) uint8
    path_offsets: np.ndarray  # (N + 1,) int64
    identities: np.ndarray  # (N,) int64
    ages: np.ndarray | None  # (N,) int16, years, -1 where unknown
    identity_names: tuple[str, ...]
    scaled: bool = False  # decode large JPEG files at a part of their size, see `data.transforms.decode_face`

    def __len__(self) -> int:
        return len(self.identities)

    def name(self, i: int) -> str:
        """Path of picture i relative to `root`."""
        i = range(len(self))[i]  # IndexError beyond the end, -1 is the last
        return os.fsdecode(bytes(self.path_bytes[self.path_offsets[i] : self.path_offsets[i + 1]]))

    def path(self, i: int) -> str:
        """Absolute path of picture i."""
        return os.path.join(self.root, self.name(i))

    def key(self, i: int) -> str:
        """Path of picture i relative to `root`, with "/" on every system."""
        return self.name(i).replace(os.sep, "/")

    def read(self, i: int) -> bytes:
        """The bytes of file i.

        Raises:
            UnreadablePicture: for a file that is missing, no regular file, or larger than 256 MB.
        """
        from data.transforms import UnreadablePicture

        path = self.path(i)
        try:
            return _read_file(path, MAX_PICTURE_BYTES)
        except (OSError, ValueError) as error:
            raise UnreadablePicture(path, getattr(error, "strerror", None) or str(error)) from error

    def decode(self, i: int) -> "Tensor":
        """Picture i as uint8 (3, 112, 112), see `data.transforms.decode_face`."""
        from data.fast_jpeg import MAX_BYTES, decode_aligned
        from data.transforms import decode_face

        path = self.path(i)
        try:
            face = decode_aligned(_read_file(path, MAX_BYTES))
        except (OSError, ValueError):  # decode_face finds the words for it, or takes a larger file
            face = None
        return decode_face(path, scaled=self.scaled) if face is None else face

    def fingerprint(self) -> str:
        """SHA-256 of the names in their order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.path_offsets, "<i8"))
        digest.update(np.ascontiguousarray(self.path_bytes))
        return digest.hexdigest()

    def state(self, progress: Progress = no_progress, rows: Sequence[int] | None = None) -> str:
        """SHA-256 of the names, sizes and times of the files: changes where what is computed from the pixels may.

        A file that is missing counts as such: to read it is the error. With `rows` of these files alone.
        """
        if rows is not None:
            return self._state_of(np.asarray(rows))
        digest = hashlib.sha256(self.fingerprint().encode())
        for i in progress(range(len(self)), len(self), "sizes and times of pictures"):
            digest.update(_size_and_time(self.path(i)))
        return digest.hexdigest()

    def _state_of(self, rows: np.ndarray) -> str:
        digest, root = hashlib.sha256(), os.fsencode(os.path.join(self.root, ""))
        paths = memoryview(self.path_bytes)
        for start, end in zip(self.path_offsets[rows].tolist(), self.path_offsets[rows + 1].tolist(), strict=True):
            name = bytes(paths[start:end])
            digest.update(name + b"\0" + _size_and_time(root + name))
        return digest.hexdigest()

    def of_identities(self, kept: Iterable[int]) -> "FaceIndex":
        """The pictures of these identities only, positions in `identity_names`, which are numbered anew."""
        kept = sorted(kept)
        rows = np.flatnonzero(np.isin(self.identities, kept))
        packed = _PackedNames()
        for i in rows:
            packed.append(self.name(int(i)))
        return dataclasses.replace(
            self,
            path_bytes=packed.path_bytes(),
            path_offsets=packed.path_offsets(),
            identities=np.searchsorted(kept, self.identities[rows]).astype(np.int64),
            ages=None if self.ages is None else self.ages[rows],
            identity_names=tuple(self.identity_names[k] for k in kept),
        )

    @property
    def num_identities(self) -> int:
        return len(self.identity_names)

    @property
    def age_groups(self) -> np.ndarray:
        """(N,) int64, the age group of each picture, -1 where ages are not known."""
        return age_groups_of(self.ages, len(self))


def age_groups_of(ages: np.ndarray | None, num_pictures: int) -> np.ndarray:
    """(N,) int64, the age groups of (N,) ages in years, -1 where an age is."""
    if ages is None:
        return np.full(num_pictures, UNKNOWN, dtype=np.int64)
    # side "left" makes the upper edges inclusive, as in meta.age_group.
    groups = np.searchsorted(AGE_GROUP_UPPER_EDGES, ages, side="left").astype(np.int64)
    groups[ages < 0] = UNKNOWN
    return groups


def with_ages(index: SomeFaces, ages: np.ndarray | None) -> SomeFaces:
    """The same pictures with these ages: (N,) whole years, -1 where unknown; None for no ages at all.

    Raises:
        UserError: for an age outside 0 to 120, naming the picture.
    """
    if ages is not None:
        ages = np.asarray(ages)
        assert ages.shape == (len(index),), f"{ages.shape} ages for {len(index)} pictures"
        assert np.issubdtype(ages.dtype, np.integer), f"ages are {ages.dtype}, not whole years"
        wrong = np.flatnonzero((ages != UNKNOWN) & ((ages < MIN_AGE) | (ages > MAX_AGE)))
        if len(wrong):
            raise UserError(
                f"{index.name(int(wrong[0]))!r} has the age {ages[wrong[0]]}, outside {MIN_AGE} to {MAX_AGE}: correct "
                f"it, or give {UNKNOWN} for an unknown age."
            )
        ages = ages.astype(np.int16)
    return dataclasses.replace(index, ages=ages)


def index_identity_folders(
    folder: str | Path,
    pattern: FilenamePattern | None,
    min_identities: int = 1,
    what: str = "images",
    *,
    how_to_get: str = "",
    progress: Progress = no_progress,
    align_command: str = "",
) -> FaceIndex:
    """Index of a folder that has one folder per identity, in the order of the sorted folder and file names.

    Only names ending in `meta.IMAGE_EXTENSIONS` count, hidden ones never; a folder without images is no identity.
    `pattern` None leaves the ages unknown. `what`, `how_to_get` and `align_command` are words for the messages.

    Raises:
        UserError: for a missing folder, no images, fewer than `min_identities`, or a file name without an age.
    """
    root = os.path.abspath(folder)
    help_text = f"; how to get it: {how_to_get}" if how_to_get else ""
    if not os.path.isdir(root):  # False for a name with a NUL byte too
        raise UserError(no_such_folder(root, what, f"make it or give another one{help_text}"))

    packed, identities, ages = _PackedNames(), array("q"), array("h")
    identity_names = []
    folders = _visible_names(root, folders=True)
    for identity_name in progress(folders, len(folders), f"listing {what}"):
        file_names = [name for name in _visible_names(os.path.join(root, identity_name)) if is_image_name(name)]
        if not file_names:
            continue
        for file_name in file_names:
            relative = os.path.join(identity_name, file_name)
            packed.append(relative)
            if pattern is not None:
                ages.append(parse_age(os.path.join(root, relative), pattern))
        identities.extend([len(identity_names)] * len(file_names))
        identity_names.append(identity_name)

    if not identity_names:
        raise UserError(_no_images(root, what, help_text, align_command))
    index = FaceIndex(
        root=root,
        path_bytes=packed.path_bytes(),
        path_offsets=packed.path_offsets(),
        identities=np.array(identities, dtype=np.int64),
        ages=None if pattern is None else np.array(ages, dtype=np.int16),
        identity_names=tuple(identity_names),
    )
    check_enough_identities(index, min_identities, what, how_to_get)
    return index


def index_flat_folder(folder: str | Path, pattern: FilenamePattern | None) -> FaceIndex | None:
    """Index of the pictures that lie directly in a folder, sorted by name, of people unknown.

    None for a folder with none, or whose folders hold pictures: see `index_identity_folders`.

    Raises:
        UserError: for a folder that can't be read, or a file name without an age.
    """
    root = os.path.abspath(folder)
    names = [name for name in _visible_names(root) if is_image_name(name)] if os.path.isdir(root) else []
    if not names:
        return None
    for below in _visible_names(root, folders=True):
        if any(map(is_image_name, _visible_names(os.path.join(root, below)))):
            return None
    index = index_names(root, names)
    if pattern is None:
        return index
    return with_ages(index, np.array([parse_age(os.path.join(root, name), pattern) for name in names]))


def _no_images(root: str, what: str, help_text: str, align_command: str) -> str:
    """The sentence for a folder without pictures in folders of identities: it may hold them elsewhere."""
    fault = next((fault for fault in layout_faults(root, "it", align_command) if fault.is_wrong), None)
    if fault is None:
        return (f"The folder {root!r} of {what} holds no images: put one folder per identity into it, with files that "
                f"end in {', '.join(IMAGE_EXTENSIONS)}{help_text}.")  # fmt: skip
    return (f"The folder {root!r} of {what} holds no images where they are looked for, {fault.what} (such as "
            f"{fault.examples[0]!r}): {fault.advice}.")  # fmt: skip


def check_enough_identities(index: Faces, min_identities: int, what: str, how_to_get: str) -> None:
    """Raises UserError for fewer identities than are needed."""
    count = index.num_identities
    if count < min_identities:
        kind = "folder" if isinstance(index, FaceIndex) else "record file"
        add = "add folders, one per identity, or give another one" if kind == "folder" else "give another one"
        raise UserError(
            f"The {kind} {index.root!r} of {what} holds images of {count} identit{'y' if count == 1 else 'ies'}, but "
            f"at least {min_identities} are needed: {add}{f'; how to get it: {how_to_get}' if how_to_get else ''}."
        )


def index_names(folder: str | Path, names: Iterable[str]) -> FaceIndex:
    """Index of the pictures `names`, paths relative to `folder`, in this order; identities and ages are unknown."""
    packed = _PackedNames()
    for name in names:
        packed.append(name)
    offsets = packed.path_offsets()
    return FaceIndex(
        root=os.path.abspath(folder),
        path_bytes=packed.path_bytes(),
        path_offsets=offsets,
        identities=np.full(len(offsets) - 1, UNKNOWN, dtype=np.int64),
        ages=None,
        identity_names=(),
    )


def index_pictures(
    folder: str | Path, what: str = "images", is_wanted: Callable[[str], bool] = is_image_name
) -> FaceIndex:
    """Index of all pictures anywhere below a folder, sorted by path; identities and ages are unknown.

    `is_wanted` says of a file name whether it is a picture. Raises: UserError for a folder without pictures.
    """
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(place, folder)
        names += [
            os.path.normpath(os.path.join(below, name))
            for name in sorted(files)
            if is_wanted(name) and not name.startswith(".")
        ]
    if not names:
        raise UserError(f"The folder {str(folder)!r} of {what} holds no picture: give one with files that end in "
                        f"{', '.join(IMAGE_EXTENSIONS)}.")  # fmt: skip
    return index_names(folder, names)


class _PackedNames:
    """Many names in one buffer: what grows here is 8 bytes a name beside the name itself."""

    def __init__(self):
        self._buffer = bytearray()
        self._offsets = array("q", [0])

    def append(self, name: str) -> None:
        self._buffer += os.fsencode(name)
        self._offsets.append(len(self._buffer))

    def path_bytes(self) -> np.ndarray:
        return np.frombuffer(self._buffer, dtype=np.uint8)  # no copy

    def path_offsets(self) -> np.ndarray:
        return np.array(self._offsets, dtype=np.int64)


def _read_file(path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file; ValueError for anything else, which may have no end, and for a larger one."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is a folder or a device, not a file")
    if found.st_size > max_bytes:
        raise ValueError(f"it has {found.st_size:,} bytes, more than {max_bytes:,}")
    with open(path, "rb", buffering=0) as file:
        return file.read(max_bytes + 1)


def _size_and_time(path: str | bytes) -> bytes:
    """Both of a file, for a digest."""
    try:
        found = os.stat(path)
        return struct.pack("<qq", found.st_size, found.st_mtime_ns)
    except OSError:
        return b"missing"


def _visible_names(folder: str, folders: bool = False) -> list[str]:
    """Sorted names of what is in `folder`, either its folders or all else.

    A link that leads nowhere, or round in a circle, counts as either: it has to fail when it is read, not to go
    missing without a word.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and _is_folder(entry, if_broken=folders) == folders
            )
    except OSError as error:
        raise UserError(
            f"The folder {folder!r} cannot be read, {error.strerror}: check who may read it, or where its link leads."
        ) from error


def _is_folder(entry: os.DirEntry, if_broken: bool) -> bool:
    """Whether it is a folder, seen through links; `if_broken` for a link without an end."""
    try:
        if entry.is_symlink():
            entry.stat()  # is_dir() would say False where nothing is
        return entry.is_dir()
    except OSError:
        return if_broken
