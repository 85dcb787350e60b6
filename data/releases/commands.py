"""The align-* commands of prepare.py: flags and plans of each release; one entry of ALIGN_COMMANDS each."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.releases.aligned_folders import Plan
from data.releases.plans import plan_agedb, plan_cacd, plan_cacd_vs, plan_calfw, plan_fgnet, plan_morph2
from data.releases.writing import write_plans
from meta import BENCHMARKS, FACE_DATASET_FOLDER, IMAGE_SIZE, UserError
from utils.cli import (
    Needs,
    Without,
    available_cores,
    bounded,
    check_ascending,
    check_input_files,
    input_file,
    output_folder,
)
from utils.progress import progress


@dataclass(frozen=True)
class Align(ABC):
    """What all data sets have in common; no subcommand of its own."""

    raw: Path
    """Folder of the release, unpacked."""
    output: Path = output_folder(Path(FACE_DATASET_FOLDER))
    landmarks: Path | None = input_file()
    """Five points a picture: .csv (path,x1,y1,...,x5,y5), .json ({path: [[x, y] * 5]}) or InsightFace's .lst; instead
    of the release's own landmarks where it has some."""
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


@dataclass(frozen=True)
class AlignFgnet(Align):
    """FG-NET as released (images and points) -> ID_processed_FGNET."""

    def plans(self) -> list[Plan]:
        return [plan_fgnet(self.raw, self.landmarks, self.already_aligned)]


@dataclass(frozen=True)
class AlignMorph2(Align):
    """MORPH album 2 -> gallery (youngest picture) and probe (oldest) of 3,000 and 10,000 subjects."""

    ages: Path | None = input_file()
    """morph_2008_nonCommercial.csv: its ages count, not those in the names."""
    counts: tuple[int, int] = bounded(BENCHMARKS["morph2"].subject_counts, low=1)
    """Subjects of the small and of the large setting; the small one is part of the large one."""
    seed: int = 0
    """Decides which subjects are drawn."""
    subjects: Path | None = input_file()
    """A subjects.csv that this command wrote: the same subjects and pictures again, nothing drawn."""
    training_folder: str = ""
    """Name of a folder below --output for the pictures of all subjects that are in neither setting."""

    NEEDS: ClassVar[Needs] = Align.NEEDS | dict.fromkeys(
        ("counts", "seed"), (Without("subjects", why="which says itself who is in which setting"),)
    )

    def plans(self) -> list[Plan]:
        check_ascending("counts", self.counts)
        check_folder_name(self.training_folder)
        return plan_morph2(
            self.raw, self.landmarks, self.already_aligned, ages=self.ages, counts=self.counts, seed=self.seed,
            subjects=self.subjects, training_folder=self.training_folder,
        )  # fmt: skip


@dataclass(frozen=True)
class AlignCalfw(Align):
    """CALFW as released (images, CA_landmarks, pairs_CALFW.txt) -> CALFW, its list dealt into ten folds."""

    pairs: Path | None = input_file()
    """Its pair list, where it does not lie in the release's folder."""

    def plans(self) -> list[Plan]:
        return [plan_calfw(self.raw, self.landmarks, self.already_aligned, self.pairs)]


@dataclass(frozen=True)
class AlignCacdVs(Align):
    """CACD-VS (0000_0.jpg to 3999_1.jpg) -> CACD_VS, with its list of 4,000 pairs."""

    def plans(self) -> list[Plan]:
        return [plan_cacd_vs(self.raw, self.landmarks, self.already_aligned)]


@dataclass(frozen=True)
class AlignAgedb(Align):
    """AgeDB (0_MariaCallas_35_f.jpg, .pts beside it) -> AgeDB with its 30-year protocol, a training set, or both."""

    pairs: Path | None = input_file()
    """The protocol: 04_FINAL_protocol_30_years.mat (found by itself in the release) or lines 'name_a name_b 1|0'."""
    training_folder: str = ""
    """Name of a folder below --output for a training set of all pictures."""

    def plans(self) -> list[Plan]:
        check_folder_name(self.training_folder)
        return plan_agedb(self.raw, self.landmarks, self.already_aligned, self.pairs, self.training_folder)


@dataclass(frozen=True)
class AlignCacd(Align):
    """CACD (53_Robin_Williams_0001.jpg) -> a training set, one folder a person."""

    training_folder: str = "CACD_with_age"
    """Name of the folder below --output."""

    def plans(self) -> list[Plan]:
        check_folder_name(self.training_folder)
        return [plan_cacd(self.raw, self.landmarks, self.already_aligned, self.training_folder)]


def check_folder_name(training_folder: str) -> None:
    """Raises UserError for a --training-folder that would not be below --output."""
    if Path(training_folder).is_absolute() or ".." in Path(training_folder).parts:
        raise UserError(f"--training-folder {training_folder} is not below --output: give a name.")


ALIGN_COMMANDS: dict[str, type[Align]] = {
    "fgnet": AlignFgnet,
    "morph2": AlignMorph2,
    "calfw": AlignCalfw,
    "cacd-vs": AlignCacdVs,
    "agedb": AlignAgedb,
    "cacd": AlignCacd,
}
