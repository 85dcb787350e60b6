"""Plans of releases are carried out one after another, and what is written is reported."""

from collections.abc import Callable, Sequence
from pathlib import Path

from data.alignment.choice import KINDS, Note
from data.releases.aligned_folders import Plan, write_plan
from meta import UserError
from utils.files import Progress, no_progress


def write_plans(
    plans: Sequence[Plan],
    output: Path,
    *,
    size: int,
    workers: int,
    allow_missing: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    report: Callable[[str], object] = print,
) -> None:
    """Writes the folders of all plans below `output`, see `write_plan`; with `dry_run` they are only counted.

    Raises:
        UserError: two plans have one folder; and as `write_plan`.
    """
    folders = [plan.folder for plan in plans]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{output / folder} would be written twice: give another --training-folder.")
    for plan in plans:
        for note in plan.notes:
            report(f"{plan.title}: {note}")
        if dry_run:
            _report_counts(output, plan.counts(), "would be written", report)
            if plan.left_out:
                report(f"left out: {len(plan.left_out):,} pictures")
            continue
        written = write_plan(
            plan, output, size=size, workers=workers, allow_missing=allow_missing, force=force, progress=progress
        )
        _report_counts(output, written.counts, f"of which {written.num_kept:,} were there", report)
        if written.left_out:
            report(f"left out: {len(written.left_out):,} pictures, named in {written.left_out_path}")
        for line in note_lines(written.noted):
            report(f"{line}, named in {written.notes_path}")
        report(f"look at {written.sheet}: the crosses have to lie on eyes, nose tip and mouth corners")


def note_lines(noted: Sequence[tuple[str, Note]]) -> list[str]:
    """How many pictures there are with each kind of note, and one of them."""
    lines = []
    for kind, words in KINDS.items():
        names = [name for name, note in noted if note.kind == kind]
        if names:
            lines.append(f"{words}: {len(names):,} (such as {names[0]!r})")
    return lines


def _report_counts(
    output: Path, counts: dict[str, tuple[int, int]], outcome: str, report: Callable[[str], object]
) -> None:
    for place, (pictures, people) in counts.items():
        report(f"{output / place}: {pictures:,} pictures{f' of {people:,} people' if people else ''}, {outcome}")
