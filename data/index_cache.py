"""The index of a data set opened by path, and kept in a file, so that five million names are listed once.

A kept index is one .npz file of plain arrays, whose checksums are verified when it is read. It holds for as long as
what it was made of looks the same: the identity folders with their modification times (a folder's time changes when a
file in it comes, goes or is renamed), or the record file and its .idx with size and time. Pictures are not looked at.
"""

import functools
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.faces import FaceIndex, check_enough_identities, index_flat_folder, index_identity_folders
from data.layout import packed
from data.records import (
    RECORD_EXTENSION,
    TRAINING_RECORDS,
    RecordIndex,
    check_property,
    index_path,
    index_record_file,
)
from meta import IMAGE_EXTENSIONS, FilenamePattern, UserError
from utils.files import Progress, nearest_existing, no_progress, written_beside

CACHE_FOLDER = ".iefp_cache"  # hidden, so that no index of the folder around it counts it
VERSION = 1  # of the arrays; another one makes every kept index stale
# What changed less than this before it was listed may change again without another time: clocks of file systems are
# coarse, 2 seconds at worst (FAT). Nothing is kept then.
RACY_NS = 2_000_000_000

Report = Callable[[str], None]  # takes one sentence


class State(NamedTuple):
    """What an index was made of, as far as it can be seen without listing it."""

    signature: str
    newest_ns: int  # the latest modification among what was looked at


def open_index(
    path: str | Path,
    pattern: FilenamePattern | None,
    min_identities: int = 1,
    what: str = "images",
    *,
    how_to_get: str = "",
    allow_flat: bool = False,
    cache: bool = True,
    cache_folder: str | Path | None = None,
    report: Report = print,
    progress: Progress = no_progress,
) -> FaceIndex | RecordIndex:
    """Index of a record file, of a folder that has a train.rec, or of a folder with one folder per identity.

    `pattern` says where names of files have their age; records bring their own ages or none. With `cache` the index is
    kept in `cache_folder` (.iefp_cache beside the data set); where that can't be written, is stale or damaged, `report`
    gets a sentence. Several processes may do this at once. `allow_flat` takes a folder of pictures without folders for
    one of unknown people.

    Raises:
        UserError: for a path that is none of the three, and as `index_identity_folders` and `index_record_file` do.
    """
    records = find_record_file(path)
    if allow_flat and records is None and (flat := index_flat_folder(path, pattern)) is not None:
        return flat
    root = os.path.abspath(path if records is None else records)
    words = {"min_identities": min_identities, "what": what, "how_to_get": how_to_get}
    if records is not None:
        state_of = functools.partial(records_state, root)
        build = functools.partial(index_record_file, root, **words, progress=progress)
    elif os.path.exists(root) and not os.path.isdir(root):
        if packed(root):
            raise UserError(f"{root!r} is an archive: unpack it and give the folder of {what} that is in it.")
        raise UserError(f"{root!r} is no folder of {what} and no record file (*{RECORD_EXTENSION}): give one of these.")
    else:
        state_of = functools.partial(folder_state, root, pattern)
        build = functools.partial(index_identity_folders, root, pattern, **words, progress=progress)
    if not cache or not os.path.exists(root):  # build has the words for what is missing
        return build()
    kept_path = index_file(root, None if records is not None else pattern, cache_folder)
    try:
        state = state_of()
    except OSError:
        return build()
    index = load_index(kept_path, root, state, report)
    if index is None:
        return _build_and_keep(build, kept_path, root, state, report)
    if isinstance(index, RecordIndex):
        check_property(index)
    check_enough_identities(index, min_identities, what, how_to_get)
    return index


def index_digests(index: FaceIndex | RecordIndex) -> dict[str, str | int]:
    """SHA-256 of the people and of their pictures, in their order, and how many of both there are.

    Sizes and times of picture files do not count. Labels of a record file say little about who is meant, so there
    the people also differ where one of them has another number of pictures.
    """
    people = hashlib.sha256("\0".join(index.identity_names).encode("utf-8", "surrogateescape"))
    if isinstance(index, RecordIndex):
        people.update(np.bincount(index.identities, minlength=index.num_identities).astype("<i8"))
    pictures = hashlib.sha256(index.fingerprint().encode())
    pictures.update(np.ascontiguousarray(index.identities, "<i8"))
    return {
        "people": people.hexdigest(),
        "pictures": pictures.hexdigest(),
        "num_people": index.num_identities,
        "num_pictures": len(index),
    }


def find_record_file(path: str | Path) -> str | None:
    """The record file that `path` is, or train.rec in the folder that it is; None where it is neither."""
    path = os.fspath(path)
    if path.endswith(RECORD_EXTENSION) and not os.path.isdir(path):
        return path
    inside = os.path.join(path, TRAINING_RECORDS)
    return inside if os.path.isfile(inside) else None


def index_file(root: str, pattern: FilenamePattern | None, cache_folder: str | Path | None = None) -> Path:
    """Where the index of the folder or record file `root`, an absolute path, is kept.

    A folder that was given may be shared by data sets of one name, as train.rec is of many: then the file's name has a
    digest of the whole path. Beside the data set it has none, so that both can be moved together.
    """
    name = os.path.basename(root) or "root"
    names = "" if pattern is None else f".{pattern.name}"
    if cache_folder is None:
        return Path(os.path.dirname(root), CACHE_FOLDER, f"{name}{names}.npz")
    return Path(cache_folder, f"{name}{names}.{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}.npz")


# ------------------------------------------------------------------------------------------------------------ states


def folder_state(root: str, pattern: FilenamePattern | None) -> State:
    """One listing of `root` and one look at each folder in it, not at their files. Raises: OSError."""
    entries, newest = [], 0
    with os.scandir(root) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            try:
                if not entry.is_dir():
                    continue
                changed = entry.stat().st_mtime_ns  # through a link, that of the folder at its end
            except OSError:  # a link without an end: it has to be seen again if it gets one
                changed = -1
            entries.append((os.fsencode(entry.name), changed))
            newest = max(newest, changed)
    settings = (VERSION, IMAGE_EXTENSIONS, pattern and (pattern.separators, pattern.position))
    digest = hashlib.sha256(repr(settings).encode())
    for name, changed in sorted(entries):
        digest.update(b"%s\0%d\n" % (name, changed))
    return State(digest.hexdigest(), newest)


def records_state(path: str) -> State:
    """Sizes and times of the record file and its .idx. Raises: OSError."""
    settings, newest = [VERSION], 0
    for each in (Path(path), index_path(path)):
        if each.exists():
            found = each.stat()
            settings.append((found.st_size, found.st_mtime_ns))
            newest = max(newest, found.st_mtime_ns)
        else:
            settings.append(None)
    return State(hashlib.sha256(repr(settings).encode()).hexdigest(), newest)


# ----------------------------------------------------------------------------------------------------------- keeping


def _build_and_keep(
    build: Callable[[], FaceIndex | RecordIndex], kept_path: Path, root: str, state: State, report: Report
) -> FaceIndex | RecordIndex:
    try:
        began_ns = _time_of_file_system(kept_path.parent)
    except OSError as error:
        report(
            f"The index of {root!r} is not kept for the next time, for {str(kept_path.parent)!r} can't be written, "
            f"{error.strerror}."
        )
        return build()
    index = build()
    if state.newest_ns > began_ns - RACY_NS:
        report(f"The index of {root!r} is not kept this time, for it changed less than 2 seconds before it was read.")
        return index
    try:
        save_index(kept_path, index, state)
    except OSError as error:
        report(f"The index of {root!r} could not be kept in {str(kept_path)!r}, {error.strerror}.")
    return index


def _time_of_file_system(folder: Path) -> int:
    """Now, by the clock that dates files in `folder`, in nanoseconds. Raises: OSError where nothing can be written.

    The folder is not made yet: what is listed next may turn out to be no data set.
    """
    with tempfile.NamedTemporaryFile(dir=nearest_existing(folder), prefix=".", suffix=".part") as probe:
        return os.fstat(probe.fileno()).st_mtime_ns


def save_index(kept_path: Path, index: FaceIndex | RecordIndex, state: State) -> None:
    """Writes the arrays of an index, all or nothing. Raises: OSError."""
    arrays = {"identities": index.identities, "ages": np.empty(0, np.int16) if index.ages is None else index.ages}
    names = b"\0".join(map(os.fsencode, index.identity_names))
    arrays["identity_names"] = np.frombuffer(names, np.uint8)
    arrays["has_ages"] = np.array(index.ages is not None)
    if isinstance(index, FaceIndex):
        arrays |= {"path_bytes": index.path_bytes, "path_offsets": index.path_offsets}
    else:
        arrays |= {"keys": index.keys, "offsets": index.offsets, "num_bytes": np.array(index.num_bytes)}
    signature = np.frombuffer(state.signature.encode(), np.uint8)
    with written_beside(kept_path) as file:
        np.savez(file, signature=signature, **arrays)


def load_index(kept_path: Path, root: str, state: State, report: Report) -> FaceIndex | RecordIndex | None:
    """The kept index of `root`, or None where there is none for this state; why not, is reported."""
    if not kept_path.exists():
        return None
    try:
        with zipfile.ZipFile(kept_path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed")  # we never do, and it might unpack without an end
        with np.load(kept_path, allow_pickle=False) as arrays:
            if arrays["signature"].tobytes() != state.signature.encode():
                report(f"The index kept in {str(kept_path)!r} is out of date: {root!r} is listed again.")
                return None
            return _as_index(arrays, root)
    except Exception as error:  # whatever damage leads to: BadZipFile, ValueError, KeyError, EOFError, MemoryError ...
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        report(f"The index kept in {str(kept_path)!r} can't be used, {reason}: {root!r} is listed again.")
        return None


def _as_index(arrays: np.lib.npyio.NpzFile, root: str) -> FaceIndex | RecordIndex:
    """Raises ValueError or KeyError for arrays that are no index."""
    identities = _array(arrays, "identities", np.int64)
    num = len(identities)
    names = _array(arrays, "identity_names", np.uint8).tobytes()
    identity_names = tuple(map(os.fsdecode, names.split(b"\0")))
    if not num or identities.min() < 0 or identities.max() >= len(identity_names):
        raise ValueError("its identities have no names")
    ages = _array(arrays, "ages", np.int16, num) if arrays["has_ages"] else None
    if "keys" in arrays:
        keys, offsets = _array(arrays, "keys", np.int64, num), _array(arrays, "offsets", np.int64, num)
        return RecordIndex(root, int(arrays["num_bytes"]), keys, offsets, identities, ages, identity_names)
    path_bytes = _array(arrays, "path_bytes", np.uint8)
    offsets = _array(arrays, "path_offsets", np.int64, num + 1)
    if offsets[0] != 0 or offsets[-1] != len(path_bytes) or (offsets[1:] <= offsets[:-1]).any():
        raise ValueError("its names are cut wrongly")
    return FaceIndex(root, path_bytes, offsets, identities, ages, identity_names)


def _array(arrays: np.lib.npyio.NpzFile, name: str, dtype: type, length: int | None = None) -> np.ndarray:
    array = arrays[name]
    if array.dtype != dtype or array.ndim != 1 or length not in (None, len(array)):
        raise ValueError(f"its {name} are {array.shape} of {array.dtype}")
    return array
