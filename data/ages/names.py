"""Pictures get the published names, `05179510.jpg` becomes `05179510_age_39.jpg`: renamed, hard-linked or copied.

Renaming writes its whole plan to an undo file before it touches the first picture. So whatever stops it, the undo file
says what every name was and what it becomes: `continue_names` goes on from there and `undo_names` goes back.
"""

import filecmp
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.faces import FaceIndex
from data.filenames import parse_age
from meta import FILENAME_PATTERNS, MAX_AGE, MIN_AGE, UserError
from utils.files import Progress, no_progress, numbered_lines, written_beside

FORMAT = "names with ages 1"  # the undo file's first line says so
EXPECTED_FIRST = f'the first line of an undo file is {{"format": "{FORMAT}", "root": folder, "num_names": number}}'
EXPECTED = 'a line such as {"old": "0_0/1.jpg", "new": "0_0/1_age_39.jpg"} is expected'
NUM_CHARACTERS_SHOWN = 80
PATTERN = FILENAME_PATTERNS["ms1mv3"]
AGE_AT_END = re.compile(r"(.*)_age_([0-9]{1,3})", re.DOTALL)


class Named(NamedTuple):
    """How many pictures were named, and how many not, and why."""

    done: int  # renamed, linked or copied now
    already: int  # had this name before
    missing: int = 0  # of an undo file: neither the old nor the new name is there

    def summary(self, dry_run: bool = False) -> str:
        missing = f", {self.missing:,} are not there any more" if self.missing else ""
        return f"{self.done:,} {'would get' if dry_run else 'got'} their names, {self.already:,} had them{missing}"


def published_name(name: str, age: int) -> str:
    """`0_0/05179510.jpg` and 39 -> `0_0/05179510_age_39.jpg`; a name that says this age already is given back as it is.

    Readers of such names split them at `_` and `.`, so what stands before the age keeps none of these: they become
    `-`.

    Raises:
        UserError: for a name that says another age.
    """
    assert MIN_AGE <= age <= MAX_AGE, f"age {age}"
    folder, base = os.path.split(name)
    stem, dot, extension = base.rpartition(".")  # splitext would take "..jpg" for a name without an extension
    extension = dot + extension
    said = AGE_AT_END.fullmatch(stem)
    if said and int(said[2]) != age:
        raise UserError(
            f"{name!r} says the age {int(said[2])} in its name, and {age} is to be given to it: take it out of the "
            "ages, or rename it."
        )
    if said and not re.search("[_.]", said[1]):
        return name
    stem = said[1] if said else stem
    base = f"{re.sub('[_.]+', '-', stem)}_age_{age}{extension}"
    assert parse_age(base, PATTERN) == age, base
    return os.path.join(folder, base)


# ------------------------------------------------------------------------------------------------------------ rename


def rename_with_ages(
    index: FaceIndex,
    ages: np.ndarray,
    undo_file: str | Path,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Named:
    """Renames the pictures of `index` where they lie; `ages` (N,) whole years. `undo_file` takes it back.

    With `dry_run` all is checked and counted, nothing is written.

    Raises:
        UserError: for an undo file that exists (`continue_names` finishes what it began), a name that says another age,
            a new name that is taken, or a folder that cannot be written.
    """
    if os.path.lexists(undo_file):
        raise UserError(
            f"The undo file {str(undo_file)!r} of an earlier renaming exists: undo that, or give another undo file."
        )
    num_new = sum(1 for _ in _renames(index, ages, no_progress))  # finds what is wrong before anything is written
    num_already = len(index) - num_new
    if dry_run or not num_new:
        return Named(num_new, num_already)
    _write_plan(undo_file, index.root, num_new, _renames(index, ages, progress))
    named = continue_names(undo_file, progress)
    return named._replace(already=named.already + num_already)


def continue_names(undo_file: str | Path, progress: Progress = no_progress) -> Named:
    """Makes all renames of the undo file that were not made yet.

    Raises:
        UserError: for a file that is no undo file (before anything is renamed), both names of a picture in use, or a
            folder that cannot be written; what was done so far stays, and stays in the undo file.
    """
    plan = _read_plan(undo_file)
    moves = ((os.path.join(plan.root, old), os.path.join(plan.root, new)) for old, new in _plan_lines(undo_file))
    return _move(moves, plan.num_names, undo_file, progress, "renaming")


def undo_names(undo_file: str | Path, dry_run: bool = False, progress: Progress = no_progress) -> Named:
    """Gives all pictures of the undo file their old names; afterwards the undo file's name ends in `.undone`.

    Raises:
        UserError: as `continue_names`.
    """
    plan = _read_plan(undo_file)
    moves = ((os.path.join(plan.root, new), os.path.join(plan.root, old)) for old, new in _plan_lines(undo_file))
    named = _move(moves, plan.num_names, undo_file, progress, "undoing", dry_run)
    if not dry_run:
        endings = (f".undone{number or ''}" for number in range(1_000_000))
        os.rename(undo_file, next(name for end in endings if not os.path.lexists(name := f"{undo_file}{end}")))
    return named


def _move(
    moves: Iterator[tuple[str, str]],
    num_moves: int,
    undo_file: str | Path,
    progress: Progress,
    what: str,
    dry_run: bool = False,
) -> Named:
    done = already = missing = 0
    for source, target in progress(moves, num_moves, what):
        has_source, has_target = os.path.lexists(source), os.path.lexists(target)
        if has_source and has_target:
            raise UserError(
                f"{source!r} and {target!r} both exist, where the undo file {str(undo_file)!r} makes one the other: "
                "move one of them away and start again."
            )
        if has_source and not dry_run:
            _as_user_error(os.rename, source, target)
        done += has_source
        already += has_target
        missing += not (has_source or has_target)
    return Named(done, already, missing)


def _renames(index: FaceIndex, ages: np.ndarray, progress: Progress) -> Iterator[tuple[str, str]]:
    """(old, new) of each picture whose name changes.

    Raises: UserError where a new name is taken already, or meant for two pictures.
    """
    for folder, names in progress(_new_names(index, ages), index.num_identities, "planning"):
        taken = set(os.listdir(os.path.join(index.root, folder)))
        for old, new in names:
            if new != old:
                base = os.path.basename(new)
                if base in taken:
                    raise UserError(
                        f"{os.path.join(index.root, old)!r} would become {base!r}, and there is such a file already: "
                        "rename one of the two."
                    )
                taken.add(base)
                yield old, new


def _new_names(index: FaceIndex, ages: np.ndarray) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(folder, [(old, new), ...]) of each folder of the index, in its order."""
    assert len(ages) == len(index)
    for folder, members in groupby(range(len(index)), lambda i: os.path.dirname(index.name(i))):
        yield folder, [(name, published_name(name, int(ages[i]))) for i in members for name in (index.name(i),)]


# --------------------------------------------------------------------------------------------------------- undo files


class _Plan(NamedTuple):
    root: str
    num_names: int


def _write_plan(undo_file: str | Path, root: str, num_names: int, renames: Iterator[tuple[str, str]]) -> None:
    """On the disk, not only on its way there, when this returns: the renames come after."""
    with written_beside(undo_file, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write(_as_json(format=FORMAT, root=root, num_names=num_names))
        file.writelines(_as_json(old=old, new=new) for old, new in renames)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(os.path.dirname(os.path.abspath(undo_file)), os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name's entry
    finally:
        os.close(folder)


def _as_json(**content) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"  # names as they are: escapes would be six times as long


def _read_plan(undo_file: str | Path) -> _Plan:
    """The first line, after a look at all the others: a damaged or hostile file must not rename anything.

    Raises: UserError for a file that cannot be read, no undo file, a line that is none, or a folder that is not there.
    """
    _, line = next(_lines(undo_file), (0, ""))
    first = _parse(line)
    plan = _Plan(first.get("root"), first.get("num_names"))
    is_plan = first.get("format") == FORMAT and isinstance(plan.root, str) and type(plan.num_names) is int
    if not is_plan or not os.path.isabs(plan.root) or "\0" in plan.root:
        raise UserError(f"{str(undo_file)!r} is no undo file: {EXPECTED_FIRST}.")
    num_names = sum(1 for _ in _plan_lines(undo_file))
    if num_names != plan.num_names:
        raise UserError(
            f"The undo file {str(undo_file)!r} has {num_names:,} names and says {plan.num_names:,} in its first line: "
            "it is damaged, take it from a backup."
        )
    if not os.path.isdir(plan.root):
        raise UserError(
            f"The folder {plan.root!r} that the undo file {str(undo_file)!r} is about is not "
            "there: put it back, or write its new place into the file's first line."
        )
    return plan


def _plan_lines(undo_file: str | Path) -> Iterator[tuple[str, str]]:
    """(old, new), relative to the root, checked."""
    lines = _lines(undo_file)
    next(lines)
    for number, line in lines:
        names = _parse(line)
        old, new = names.get("old"), names.get("new")
        if not _is_rename(old, new):
            shown = line.strip()[:NUM_CHARACTERS_SHOWN]
            raise UserError(f"{str(undo_file)!r}, line {number}, reads {shown!r}: {EXPECTED}.")
        yield old, new


def _lines(undo_file: str | Path) -> Iterator[tuple[int, str]]:
    return numbered_lines(undo_file, "undo file", EXPECTED)


def _parse(line: str) -> dict:
    """The object in a line, an empty one where there is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_rename(old: object, new: object) -> bool:
    """Whether `new` is the published name of `old`, a plain name below the root, for some age."""
    if not (isinstance(old, str) and isinstance(new, str)) or "\0" in old or os.path.isabs(old):
        return False
    if old != os.path.normpath(old) or old.split(os.sep)[0] in (os.curdir, os.pardir):
        return False
    try:
        os.fsencode(old)  # what no file can be called
        return new != old and new == published_name(old, parse_age(new, PATTERN))
    except ValueError:  # UserError and UnicodeEncodeError
        return False


# ------------------------------------------------------------------------------------------------------ link and copy


def place_with_ages(
    index: FaceIndex,
    ages: np.ndarray,
    output: str | Path,
    how: Literal["link", "copy"],
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Named:
    """The pictures of `index` under their published names below `output`; `index`'s own folder stays as it is.

    Started again after an interruption it goes on. A hard link takes no room, and is the same file by another name.
    With `dry_run` all is checked and counted, nothing is written.

    Raises:
        UserError: for an `output` inside the folder of the pictures or with other things in it, a name that says
            another age, a new name meant for two pictures, or what cannot be linked or written.
    """
    assert how in ("link", "copy"), how
    output = os.path.abspath(output)
    check_destination(output, index)
    for folder, names in _new_names(index, ages):  # before anything is written
        _check_names(os.path.join(output, folder), index, names)
    done = already = 0
    place = _link if how == "link" else _copy
    for folder, names in progress(_new_names(index, ages), index.num_identities, f"{how} pictures"):
        if not dry_run:
            _as_user_error(os.makedirs, os.path.join(output, folder), exist_ok=True)
        for old, new in names:
            source, target = os.path.join(index.root, old), os.path.join(output, new)
            if os.path.lexists(target):
                _check_is_same(source, target, how)
                already += 1
                continue
            if not dry_run:
                _as_user_error(place, source, target)
            done += 1
    return Named(done, already)


def check_is_outside(output: str | Path, root: str | Path) -> None:
    """Raises UserError for an `output` inside the folder of the pictures."""
    inside = os.path.join(os.path.realpath(root), "")
    if os.path.join(os.path.realpath(output), "").startswith(inside):
        raise UserError(f"{str(output)!r} lies in the folder of the pictures, {str(root)!r}: give a folder beside it.")


def check_destination(output: str | Path, index: FaceIndex) -> None:
    """Raises UserError for a folder inside that of the pictures, or with anything but folders named like theirs."""
    output = os.path.abspath(output)
    check_is_outside(output, index.root)
    if os.path.lexists(output) and not os.path.isdir(output):
        raise UserError(f"{output!r} is no folder: give a new one.")
    folders = {os.path.dirname(index.name(i)).split(os.sep)[0] for i in range(len(index))}
    strangers = _visible(output) - folders
    if strangers and "" not in folders:  # of pictures without folders the names are checked
        raise UserError(
            f"{output!r} holds {sorted(strangers)[0]!r}, which is none of these pictures' folders: give a new folder."
        )


def _check_names(folder: str, index: FaceIndex, names: list[tuple[str, str]]) -> None:
    """Raises UserError for two pictures of one new name, and for pictures in `folder` that are none of these."""
    olds: dict[str, str] = {}
    for old, new in names:
        other = olds.setdefault(os.path.basename(new), old)
        if other != old:
            raise UserError(
                f"{os.path.join(index.root, other)!r} and {os.path.basename(old)!r} beside it would both become "
                f"{os.path.basename(new)!r}: rename one of the two."
            )
    strangers = _visible(folder) - set(olds)
    if strangers:
        raise UserError(
            f"{folder!r} holds {sorted(strangers)[0]!r}, which is none of these pictures with these ages: "
            "give a new folder."
        )


def _visible(folder: str) -> set[str]:
    """Names in a folder, none where there is no folder."""
    return {name for name in os.listdir(folder) if not name.startswith(".")} if os.path.isdir(folder) else set()


def _check_is_same(source: str, target: str, how: str) -> None:
    try:
        same = os.path.samefile(source, target) if how == "link" else filecmp.cmp(source, target)
    except OSError:
        same = False
    if not same:
        raise UserError(f"{target!r} exists and is not {source!r}: give a new folder, or remove this file.")


def _link(source: str, target: str) -> None:
    # Where the picture itself is a symbolic link, what it leads to: a link of the link would break when moved.
    os.link(os.path.realpath(source) if os.path.islink(source) else source, target)


def _copy(source: str, target: str) -> None:
    times = os.stat(source)
    with open(source, "rb") as read, written_beside(target) as write:
        shutil.copyfileobj(read, write)
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time show that it was copied


def _as_user_error(function: Callable, *arguments, **how) -> None:
    """Calls a function of the file system; what it refuses becomes a sentence."""
    try:
        function(*arguments, **how)
    except OSError as error:
        hint = "; hard links need one file system for both, copies do not" if function is _link else ""
        raise UserError(
            f"{arguments[-1]!r} cannot be made, {error.strerror}: check the disk and who may write there{hint}."
        ) from error
