"""Ages of a data set's pictures -> a table, a histogram, and the published file names."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.ages.histogram import draw_age_histograms
from data.ages.names import Named, check_destination, continue_names, place_with_ages, rename_with_ages
from data.ages.tables import whole_years, write_age_table
from data.faces import UNKNOWN, Faces
from meta import UserError
from utils.files import Progress, no_progress


@dataclass(frozen=True)
class Destinations:
    """Where ages are written; None or False: not there."""

    table: Path | None = None
    histogram: Path | None = None  # a PNG
    link: Path | None = None  # a folder of hard links with the published names
    copy: Path | None = None  # a folder of copies with the published names
    rename: bool = False  # the pictures themselves get the published names
    undo_file: Path | None = None  # needed for `rename`, written first

    @property
    def named_folders(self) -> dict[str, Path]:
        return {how: folder for how, folder in (("link", self.link), ("copy", self.copy)) if folder is not None}

    @property
    def stores_ages(self) -> bool:
        """Whether the ages can be read again from one of these; a histogram has only their distribution."""
        return bool(self.table or self.rename or self.link or self.copy)

    def check(self, index: Faces) -> None:
        """Raises UserError for a folder that can't take the pictures of `index`; to be called before ages are made."""
        for folder in self.named_folders.values():
            check_destination(folder, index)


def years_or_unknown(ages: np.ndarray) -> np.ndarray:
    """(N,) ages, -1 where unknown, as whole years int16."""
    return np.where(ages < 0, UNKNOWN, whole_years(np.maximum(ages, 0))).astype(np.int16)


def write_ages(
    index: Faces,
    ages: np.ndarray,
    to: Destinations,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    report: Callable[[str], object] = print,
) -> None:
    """Writes the ages (N,) of the pictures of `index`, years and -1 where unknown, to all destinations.

    With `dry_run` names are checked and counted, and nothing is written.

    Raises:
        UserError: a file exists (without `force`), or pictures can't get their names.
    """
    years = years_or_unknown(ages)
    if to.table is not None and not dry_run:
        known = np.flatnonzero(ages >= 0)
        write_age_table(to.table, (index.key(i) for i in known.tolist()), ages[known], force)
        report(f"written: {to.table}, {len(known):,} ages")
    if to.histogram is not None and not dry_run:
        draw_age_histograms({os.path.basename(index.root): years}, to.histogram, force)
        report(f"written: {to.histogram}")
    for how, folder in to.named_folders.items():
        named = place_with_ages(index, years, folder, how, dry_run, progress)
        report(f"{folder}: {named.summary(dry_run)}")
    if to.rename:
        named = rename_with_ages(index, years, to.undo_file, dry_run, progress)
        report(f"{index.root}: {named.summary(dry_run)}")
        if named.done and not dry_run:
            report(f"to go back: python prepare.py ages --undo {to.undo_file}")


def finish_rename(undo_file: Path, dry_run: bool = False, progress: Progress = no_progress) -> Named:
    """Finishes a renaming that was interrupted; the undo file has all that it needs.

    Raises:
        UserError: it was finished before, or nothing may be written now.
    """
    if dry_run:
        raise UserError(f"{undo_file} is of an earlier --rename: without --dry-run that is finished first.")
    named = continue_names(undo_file, progress)
    if not named.done:
        raise UserError(
            f"The --rename of {str(undo_file)!r} was finished before: move that file away to name further pictures, "
            "or go back with --undo."
        )
    return named
