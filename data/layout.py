"""How folders of pictures are laid out: which names are pictures, what lies where none is looked for, what is packed,
and which faces were drawn by program.

`prepare.py check` reports all of it; who finds no folder or no picture where some should be says the same.
"""

import os
from pathlib import Path
from typing import NamedTuple

from meta import IMAGE_EXTENSIONS, PHOTO_EXTENSIONS
from utils.files import Progress, no_progress

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")

DRAWN_FACES = "DRAWN_FACES.txt"  # marks a set of made-up faces
DRAWN_WORDS = """These faces were drawn by program (python prepare.py synthetic): none of these people exist.
Figures measured on them compare models with each other, not with what papers report of photographs.
test.py names sets that hold this file "drawn faces".
"""


class LayoutFault(NamedTuple):
    """Something that lies where it is of no use; "wrong" makes a set incomplete, else it is worth knowing."""

    is_wrong: bool
    what: str
    advice: str
    examples: list[str]


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture: a known extension in any case."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_photo_name(name: str) -> bool:
    """Whether a file of this name is taken for a photograph to be aligned: a picture, or what cameras write too."""
    return name.lower().endswith(PHOTO_EXTENSIONS)


def layout_faults(
    folder: str | Path, where: str, align_command: str = "", progress: Progress = no_progress, what: str = ""
) -> list[LayoutFault]:
    """What lies in a folder of identity folders where no picture is looked for; the wrong first.

    `where` is what the sentences call the folder. `align_command` makes such folders of loose pictures, for messages.
    """
    identities, files = _entries(folder)
    loose = [file for file in files if is_image_name(file)]
    empty, deeper, others = [], [], []
    for identity in progress(identities, len(identities), what):
        below, inside = _entries(os.path.join(folder, identity))
        others += [f"{identity}/{file}" for file in inside if not is_image_name(file)]
        if not any(map(is_image_name, inside)):
            deep = (file for one in below for file in _entries(os.path.join(folder, identity, one))[1])
            (deeper if any(map(is_image_name, deep)) else empty).append(identity)
    sort = "put each into the folder of its identity"
    if align_command:
        sort += (
            f"; moved elsewhere, `{align_command} --raw THERE` does it, with --already-aligned where they are aligned"
        )
    faults = (
        LayoutFault(True, f"{len(loose):,} pictures lie directly in {where} and are not used", sort, loose),
        LayoutFault(True, f"{len(deeper):,} folders in {where} hold their pictures a folder too deep",
                    "move their content up by one folder", deeper),
        LayoutFault(False, f"{len(empty):,} folders in {where} hold no pictures and are no identities",
                    "remove them, or get their pictures again", empty),
        LayoutFault(False, f"{len(others):,} files in {where} are no pictures by their names and are not used",
                    "rename those that are pictures", others),
    )  # fmt: skip
    return [fault for fault in faults if fault.examples]


def mark_drawn(path: str | Path, drawn: bool = True) -> None:
    """Marks a set, a folder or one file, as faces drawn by program, or takes the mark of an earlier one away."""
    if drawn:
        _drawn_mark(Path(path)).write_text(DRAWN_WORDS)
    else:
        _drawn_mark(Path(path)).unlink(missing_ok=True)


def is_drawn(path: str | Path) -> bool:
    """Whether a set is marked as drawn by program: a folder of pictures, the folder around it, or a file."""
    path = Path(path)
    return _drawn_mark(path).is_file() or (path.is_dir() and _drawn_mark(path.parent).is_file())


def _drawn_mark(path: Path) -> Path:
    return path / DRAWN_FACES if path.is_dir() else path.with_name(f"{path.name}.{DRAWN_FACES}")


def packed(folder: str | Path) -> str | None:
    """The archive that a missing folder, or one of the folders around it, is still packed in; None without one."""
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        for candidate in (place, *(place + ending for ending in ARCHIVE_ENDINGS)):
            if candidate.lower().endswith(ARCHIVE_ENDINGS) and os.path.isfile(candidate):
                return candidate
        place, below = os.path.dirname(place), place
        if place == below:
            break
    return None


def no_such_folder(folder: str | Path, what: str, advice: str) -> str:
    """The sentence for a folder of `what` that is not there; `advice` where nothing is there in its place."""
    archive = packed(folder)
    if os.path.exists(folder):
        kind, advice = ("a file", "give a folder") if archive is None else ("an archive", "unpack it, give the folder")
        return f"{str(folder)!r} is {kind}, no folder of {what}: {advice}."
    if archive is not None:
        return (f"The folder {str(folder)!r} of {what} does not exist, but its archive {archive!r} does: unpack it, so "
                "that the folder is there.")  # fmt: skip
    return f"The folder {str(folder)!r} of {what} does not exist: {advice}."


def _entries(folder: str | Path) -> tuple[list[str], list[str]]:
    """Sorted names of the visible folders and of all else; nothing where it can't be read, which the index reports."""
    folders, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if _is_folder(entry) else others).append(entry.name)
    except OSError:
        return [], []
    return sorted(folders), sorted(others)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link round in a circle
        return False
