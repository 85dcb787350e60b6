"""The flags that all align-* commands of prepare.py have, and what they do with a release's plans."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from data.alignment.landmarks import landmarks_help
from data.releases.aligned_folders import Plan
from data.releases.writing import write_plans
from meta import FACE_DATASET_FOLDER, IMAGE_SIZE, UserError
from utils.cli import Needs, Without, available_cores, bounded, check_input_files, input_file, output_folder
from utils.progress import progress


@dataclass(frozen=True)
class Align(ABC):
    """What all data sets have in common; no subcommand of its own."""

    raw: Path
    """Folder of the release, unpacked."""
    output: Path = output_folder(Path(FACE_DATASET_FOLDER))
    landmarks: Annotated[
        Path | None,
        tyro.conf.arg(help=f"{landmarks_help()}; instead of the release's own landmarks where it has some."),
    ] = input_file()
    already_aligned: bool = False
    """The pictures are aligned; they are only resized."""
    size: int = bounded(IMAGE_SIZE, low=32, high=1024)
    """Pixels of the aligned pictures, both sides."""
    workers: int = bounded(available_cores(), low=1)
    """Processes that align; the files are the same for any number."""
    allow_missing: bool = False
    """Go on without pictures that have no landmarks or can't be read; they are named in FOLDER_left_out.csv."""
    force: bool = False
    """Replace a folder that exists, with all that is in it."""
    dry_run: bool = False
    """Print what would be written, and write nothing."""

    NEEDS: ClassVar[Needs] = {"landmarks": (Without("already_aligned"),)}

    @abstractmethod
    def plans(self) -> list[Plan]: ...

    def run(self) -> None:
        check_input_files(self)
        write_plans(
            self.plans(), self.output, size=self.size, workers=self.workers, allow_missing=self.allow_missing,
            force=self.force, dry_run=self.dry_run, progress=progress,
        )  # fmt: skip


def check_folder_name(training_folder: str) -> None:
    """Raises UserError for a --training-folder that would not be below --output."""
    if Path(training_folder).is_absolute() or ".." in Path(training_folder).parts:
        raise UserError(f"--training-folder {training_folder} is not below --output: give a name.")
