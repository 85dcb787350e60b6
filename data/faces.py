"""An index of face pictures: which files there are, whose they are and how old the faces are."""

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.filenames import parse_age
from meta import AGE_GROUP_UPPER_EDGES, IMAGE_EXTENSIONS, FilenamePattern, UserError

UNKNOWN = -1  # an identity or an age group that nobody told us


# eq=False: comparing arrays has no single answer.
@dataclass(frozen=True, eq=False)
class FaceIndex:
    """N pictures below one folder. Arrays, since five million Python objects would be copied into every worker.

    Picture i has the path `path_bytes[path_offsets[i]:path_offsets[i + 1]]` below `root`, encoded as the file system
    does it. Its identity is a position in `identity_names`, or -1.
    """

    root: str
    path_bytes: bytes
    path_offsets: np.ndarray  # (N + 1,) int64
    identities: np.ndarray  # (N,) int64
    ages: np.ndarray | None  # (N,) int16, years
    identity_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.identities)

    def name(self, i: int) -> str:
        """Path of picture i relative to `root`."""
        i = range(len(self))[i]  # IndexError beyond the end, -1 is the last
        return os.fsdecode(self.path_bytes[self.path_offsets[i] : self.path_offsets[i + 1]])

    def path(self, i: int) -> str:
        """Absolute path of picture i."""
        return os.path.join(self.root, self.name(i))

    @property
    def num_identities(self) -> int:
        return len(self.identity_names)

    @property
    def age_groups(self) -> np.ndarray:
        """(N,) int64, the age group of each picture, -1 where ages are not known."""
        if self.ages is None:
            return np.full(len(self), UNKNOWN, dtype=np.int64)
        # side "left" makes the upper edges inclusive, as in meta.age_group.
        return np.searchsorted(AGE_GROUP_UPPER_EDGES, self.ages, side="left").astype(np.int64)


def index_identity_folders(
    folder: str | Path,
    pattern: FilenamePattern | None,
    min_identities: int = 1,
    what: str = "images",
    how_to_get: str = "",
) -> FaceIndex:
    """Index of a folder that has one folder per identity, in the order of the sorted folder and file names.

    Only names ending in `meta.IMAGE_EXTENSIONS` count, hidden ones never; a folder without images is no identity.
    `pattern` None leaves the ages unknown. `what` and `how_to_get` are words for the messages.

    Raises:
        UserError: for a missing folder, no images, fewer than `min_identities`, or a file name without an age.
    """
    root = os.path.abspath(folder)
    help_text = f"; how to get it: {how_to_get}" if how_to_get else ""
    if not os.path.isdir(root):  # False for a name with a NUL byte too
        raise UserError(f"The folder {root!r} of {what} does not exist: make it or give another one{help_text}.")

    packed, identities, ages = _PackedNames(), array("q"), array("h")
    identity_names = []
    for identity_name in _visible_names(root, folders=True):
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
        raise UserError(
            f"The folder {root!r} of {what} holds no images: put one folder per identity into it, with files that end "
            f"in {', '.join(IMAGE_EXTENSIONS)}{help_text}."
        )
    if len(identity_names) < min_identities:
        raise UserError(
            f"The folder {root!r} of {what} holds images of {len(identity_names)} "
            f"identit{'y' if len(identity_names) == 1 else 'ies'}, but at least {min_identities} are needed: "
            f"add folders, one per identity, or give another one{help_text}."
        )
    return FaceIndex(
        root=root,
        path_bytes=packed.path_bytes(),
        path_offsets=packed.path_offsets(),
        identities=np.array(identities, dtype=np.int64),
        ages=None if pattern is None else np.array(ages, dtype=np.int16),
        identity_names=tuple(identity_names),
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


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture: a known extension in any case."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


class _PackedNames:
    """Many names in one buffer: what grows here is 8 bytes a name beside the name itself."""

    def __init__(self):
        self._buffer = bytearray()
        self._offsets = array("q", [0])

    def append(self, name: str) -> None:
        self._buffer += os.fsencode(name)
        self._offsets.append(len(self._buffer))

    def path_bytes(self) -> bytes:
        return bytes(self._buffer)

    def path_offsets(self) -> np.ndarray:
        return np.array(self._offsets, dtype=np.int64)


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
