"""From what users have to what the method needs; the work is done in data/.

python prepare.py synthetic --output demo/face_dataset     made-up faces in the layouts of all data sets
python prepare.py contact-sheet --output sheet.png         the same people over the years, to look at
python prepare.py cacd-vs-list                             CACD-VS's pair list by its rule
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data.pairs import write_cacd_vs_list
from data.synthetic import contact_sheet, write_all
from meta import BENCHMARKS, FACE_DATASET_FOLDER, UserError
from utils.config import bounded, parse_config, run_script


@dataclass(frozen=True)
class Synthetic:
    """Draw a training set and the four benchmarks, scaled down, of people who do not exist; no person is in two."""

    output: Path = Path("demo/face_dataset")
    """New folder, to be given to train.py (with /ms1mv3_256times256_with_age) and to test.py as --face-dataset."""
    seed: int = bounded(0, low=0)
    workers: int = bounded(os.cpu_count() or 1, low=1)
    """Processes that draw; the files are the same for any number."""
    num_people: int = bounded(100, low=2)
    """People of the training set."""
    pictures_per_person: int = bounded(16, low=2)
    fgnet_people: int = bounded(40, low=2)
    fgnet_pictures_per_person: int = bounded(10, low=2)
    morph2_subjects: tuple[int, int] = bounded((60, 150), low=2)
    """Subjects of the small and of the large setting."""
    cacd_vs_pairs: int = bounded(200, low=20, multiple_of=20)
    """A multiple of 20: ten folds, half of each genuine."""
    calfw_pairs: int = bounded(300, low=20, multiple_of=20)
    """A multiple of 20."""
    nuisance: float = bounded(1.0, low=0, high=2)
    """Strength of pose, light, expression, blur and the like; 0 draws plain frontal faces."""

    def run(self) -> None:
        if self.morph2_subjects[0] > self.morph2_subjects[1]:
            raise UserError(f"--morph2-subjects {self.morph2_subjects[0]} {self.morph2_subjects[1]}: "
                            f"give the smaller number first.")  # fmt: skip
        settings = dict(vars(self))
        counts = write_all(settings.pop("output"), **settings)
        for folder, count in counts.items():
            print(f"{self.output / folder}: {count:,} pictures")


@dataclass(frozen=True)
class ContactSheet:
    """Draw one PNG of made-up people: rows are people, columns are ages."""

    output: Path = Path("contact_sheet.png")
    seed: int = bounded(0, low=0)
    num_people: int = bounded(8, low=1)
    ages: tuple[int, ...] = bounded((1, 6, 12, 18, 28, 40, 52, 65, 78), low=0, high=80)

    def run(self) -> None:
        contact_sheet(self.output, self.seed, self.num_people, self.ages)
        print(f"written: {self.output}")


@dataclass(frozen=True)
class CacdVsList:
    """Write CACD-VS's 4,000 pairs by the rule that its file names follow."""

    output: Path = Path(FACE_DATASET_FOLDER) / BENCHMARKS["cacd_vs"].pair_lists[0]

    def run(self) -> None:
        if self.output.exists():
            raise UserError(f"{self.output} exists: remove it first, or give another --output.")
        write_cacd_vs_list(self.output)
        print(f"written: {self.output}")


Subcommand = (
    Annotated[Synthetic, tyro.conf.subcommand("synthetic")]
    | Annotated[ContactSheet, tyro.conf.subcommand("contact-sheet")]
    | Annotated[CacdVsList, tyro.conf.subcommand("cacd-vs-list")]
)

if __name__ == "__main__":
    run_script(lambda: parse_config(Subcommand).run())
