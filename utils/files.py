"""Files written whole or not at all, their SHA-256, and text read line by line with a limit."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from meta import UserError
from utils.wrong_files import wrong_file

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], int, str], Iterator[Item]]  # (items, total, what): utils.progress.progress
MAX_LINE_LENGTH = 10_000  # characters: two of the longest paths that Linux takes, 4,096 bytes each, and some


def no_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """A Progress that prints nothing."""
    yield from items


def in_bytes(count: float) -> str:
    """A size for people, such as 10.6 GB or 36.9 kB."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def nearest_existing(path: str | Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))
    return path if path.exists() else nearest_existing(path.parent)


@contextmanager
def written_beside(path: str | Path, mode: str = "wb", **how) -> Iterator[IO]:
    """A new file beside `path` to write to; it takes the name when all was written, or goes when anything failed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, mode, **how) as file:
            yield file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def same_name_beside(path: str | Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside; what is written there takes the place of `path` when all
    went well, or goes when anything failed."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield Path(folder) / path.name
        os.replace(Path(folder) / path.name, path)


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON beside `path` and renames it into place, so that a reader never sees half a file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text beside `path` and renames it into place."""
    with written_beside(path, "w", encoding="utf-8") as file:
        file.write(text)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal. Raises: OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling to write into, renamed to `folder` when all went well, removed when not.

    Raises: UserError if `folder` already holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not empty: give a new folder, or remove this one first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_is_new(path: str | Path, force: bool = False) -> None:
    """Raises UserError where `path` exists already and `force` is not given."""
    if os.path.lexists(path) and not force:
        raise UserError(f"{str(path)!r} exists: give another name, or --force to replace it.")


def numbered_lines(path: str | Path, what: str, expected: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1, read one at a time.

    `what` (such as "pair list") and `expected` (what a line should be) are words for the messages. Bytes that are no
    UTF-8 come as surrogates: to the disk a name is bytes.

    Raises:
        UserError: for a file that can't be read, is no regular file, is a web page or an archive, or has a line of
            more than 10,000 characters.
    """
    shown = repr(str(path))
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a device may have no end
            raise ValueError("it is a folder or a device")
        if status.st_size and (wrong := wrong_file(path, what, ("text",))):  # an empty one has no lines
            raise UserError(f"The {what} {shown} {wrong[0]}: {wrong[1]}; {expected}.")
        # utf-8-sig: editors on Windows put a mark before the first name.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            number = 0
            while line := file.readline(MAX_LINE_LENGTH + 1):
                number += 1
                if len(line) > MAX_LINE_LENGTH:
                    raise UserError(
                        f"{shown}, line {number}, has more than {MAX_LINE_LENGTH:,} characters: {expected}."
                    )
                if line.strip():
                    yield number, line
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError for a NUL byte in the path too
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The {what} {shown} cannot be read, {reason}: check its path.") from error
