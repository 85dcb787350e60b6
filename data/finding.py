"""What lies in a folder as it was unpacked: its files and pictures, and a folder or file by name."""

import os
from pathlib import Path

from data.layout import is_image_name, no_such_folder, packed
from meta import UserError

SEARCH_DEPTH = 3  # folders below the one given: releases unpack into folders of folders


def find_pictures(folder: Path) -> list[str]:
    """Sorted paths, relative to `folder`, of all pictures below it, see `find_files`.

    Raises:
        UserError: for a folder that can't be read or has no pictures.
    """
    found = [path for path in find_files(folder) if is_image_name(path)]
    if not found:
        raise UserError(f"The folder {str(folder)!r} holds no pictures: give the folder of the release.")
    return found


def find_files(folder: Path) -> list[str]:
    """Sorted paths, relative to `folder`, of all files below it; hidden files and folders don't count.

    Raises:
        UserError: for a folder that can't be read.
    """
    found: list[str] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        if packed(folder):
            raise UserError(no_such_folder(folder, "the release", ""))
        raise UserError(f"The folder {str(error.filename)!r} cannot be read, {error.strerror}: check its path and who "
                        "may read it.") from error  # fmt: skip

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:  # a link may lead round in a circle
            found += [os.path.relpath(os.path.join(place, name), folder) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(path.replace(os.sep, "/") for path in found)


def find_below(folder: Path, name: str, directory: bool) -> Path | None:
    """The folder or file `name`, in any case, in `folder` or up to three folders below; the highest counts.

    Raises:
        UserError: where two stand at the same height.
    """
    level = [folder]
    for _ in range(SEARCH_DEPTH + 1):
        entries = [entry for place in level for entry in _entries(place)]
        found = [entry for entry in entries if entry.name.lower() == name.lower() and entry.is_dir() == directory]
        if len(found) > 1:
            raise UserError(f"{str(found[0])!r} and {str(found[1])!r} are both there: give the folder above the one "
                            "that is meant.")  # fmt: skip
        if found:
            return found[0]
        level = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        if packed(folder):
            raise UserError(no_such_folder(folder, "the release", "")) from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The folder {str(folder)!r} cannot be read, {reason}: check its path.") from error
