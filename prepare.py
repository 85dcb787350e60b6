"""Prepares what users have for training and tests; the work is done in data/ and evaluation/.

python prepare.py check                                       what is wrong with the data sets that are here
python prepare.py unpack --records train.rec --output FOLDER  InsightFace's record file to one folder per identity
python prepare.py unpack lfw.bin --output FOLDER              a verification set to pictures and a list of pairs
python prepare.py pack --data FOLDER --output new/train.rec   one folder per identity to a record file
python prepare.py ages --data FOLDER --weights age.pth --output ages.csv   an age for every picture
python prepare.py align FOLDER --detector yunet.onnx -o ALIGNED   photographs of your own to aligned faces
python prepare.py align-fgnet --raw FOLDER                    FG-NET as released; likewise align-morph2, align-calfw,
                                                              align-cacd-vs, align-agedb and align-cacd
python prepare.py bin --pairs LIST --images FOLDER --output mine.bin   one file of pairs for InsightFace's tools
python prepare.py synthetic --output demo/face_dataset        synthetic faces in the layouts of all data sets
python prepare.py contact-sheet --output sheet.png            the same people over the years, to look at
python prepare.py cacd-vs-list                                CACD-VS's pair list by its rule
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Union

import numpy as np
import tyro

from data.ages.histogram import share_lines
from data.ages.names import check_is_outside, undo_names
from data.ages.tables import AgeColumns, read_age_table
from data.ages.writing import Destinations, finish_rename, write_ages, years_or_unknown
from data.check.findings import is_wrong, report_lines, write_findings
from data.check.image_scan import check_shapes
from data.check.run import check, checked_names
from data.faces import Faces
from data.index_cache import open_index
from data.layout import mark_drawn
from data.pairs import write_cacd_vs_list
from data.releases.commands import ALIGN_COMMANDS
from data.releases.packed_files import Bin, Pack, Unpack, check_has_names
from data.synthetic.sets import contact_sheet, write_all
from evaluation.age_labelling import estimate_ages
from meta import (
    BENCHMARKS,
    FACE_DATASET_FOLDER,
    FILENAME_PATTERNS,
    UserError,
)
from models.weights import check_weight_file, read_weight_file
from utils.cli import (
    Either,
    Needs,
    With,
    Without,
    available_cores,
    bounded,
    check_ascending,
    check_input_files,
    flag,
    input_file,
    output_file,
    output_folder,
    parse_config,
    printable,
    run_script,
)
from utils.distributed import choose_device
from utils.files import check_is_new
from utils.progress import progress

PatternName = Literal[tuple(FILENAME_PATTERNS)]  # data sets whose file names hold ages

# ------------------------------------------------------------------------------------------------------ dataset check


@dataclass(frozen=True)
class Check:
    """Find out what is wrong with data sets and weight files, and what to do about it; nothing is changed.

    Without names all known data sets and files are looked for. The exit status is 1 if something is wrong, or if a
    set that was named is not there.
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(help=f"Some of: {' '.join(checked_names())}, and .bin files such as lfw.bin."),
    ] = ()
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the data sets' folders."""
    quick: bool = False
    """Read the pictures' headers and do not decode them; pictures that break off are not found then."""
    workers: int = bounded(available_cores(), low=0)
    """Processes that read pictures; 0 reads in the main process."""
    json: Path | None = output_file()
    """Also write what was found into this file, with up to 1,000 names of pictures for each finding."""
    force: bool = False
    """Replace the file of --json."""

    NEEDS: ClassVar[Needs] = {"force": (With("json"),)}

    def run(self) -> int:
        if self.json is not None:
            check_is_new(self.json, self.force)
        findings = check(
            self.face_dataset, self.names, quick=self.quick, workers=self.workers, progress=progress,
            read_weights=describe_weights,
        )  # fmt: skip
        for line in report_lines(findings):
            print(printable(line))
        if self.json is not None:
            write_findings(self.json, findings, self.force)
            print(f"written: {self.json}")
        return 1 if is_wrong(findings) else 0


def describe_weights(path: Path) -> str:
    """What a weight file holds, in words."""
    weights = read_weight_file(path)
    branches = {"identity": weights.identity_branch, "age": weights.age_branch}
    return ", ".join(
        f"{name} branch {branch.backbone} with purification {branch.purification}"
        for name, branch in branches.items()
        if branch is not None
    )


# ---------------------------------------------------------------------------------------------------------------- ages


FORWARD = Without("undo", why="which needs no other flag")
ESTIMATES = (FORWARD, With("weights"))


@dataclass(frozen=True)
class Ages:
    """Label the pictures of a training set with ages: in a table beside it, or in the published file names.

    The ages come from one of --weights, --from-table and --from-names; without these, from the record file itself.
    They go to one or more of --output, --rename, --link, --copy and --histogram. Started again, the same command goes
    on where it was stopped. --undo FILE takes a --rename back and needs no other flag.
    """

    data: Path | None = None
    """Folder with one folder per identity, or of pictures alone, or record file (train.rec)."""
    weights: Path | None = None
    """Let this age branch estimate the ages: a file of stage age, or of a whole model."""
    from_table: Path | None = input_file()
    """Take the ages of any other tool: CSV or TSV of picture (path or record key) and age in years."""
    age_columns: AgeColumns = None
    from_names: PatternName | None = None
    """Take the ages from the file names, which are like those of this data set."""
    output: Path | None = output_file()
    """Write the ages to this table, for train.py; no picture is touched."""
    rename: bool = False
    """Rename the pictures: 05179510.jpg becomes 05179510_age_39.jpg."""
    link: Path | None = output_folder()
    """Make this folder, with hard links of the published names; takes no disk space."""
    copy: Path | None = output_folder()
    """Make this folder, with copies of the published names."""
    undo_file: Path | None = output_file()
    """What --rename writes first; default: beside the folder, its name with .undo.jsonl."""
    undo: Path | None = None
    """Give the pictures of this undo file their old names back."""
    histogram: Path | None = output_file()
    """Draw how many faces there are of each age (PNG)."""
    allow_unknown: bool = False
    """Leave out lines of --from-table about pictures that are not there, instead of stopping."""
    on_bad_image: Literal["error", "skip"] = "error"
    """With --weights. skip: pictures that cannot be decoded get no line in --output, instead of stopping at the end."""
    assume_aligned: bool = False
    """With --weights: all pictures are aligned, also those that are not 112x112; they are only resized."""
    device: str = "auto"
    batch_size: int = bounded(256, low=1)
    workers: int = bounded(min(8, available_cores()), low=0)
    """Processes that decode pictures."""
    dry_run: bool = False
    """Check and count; estimate nothing, write nothing."""
    force: bool = False
    """Replace the files of --output and --histogram."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(
        ("data", "weights", "from_table", "from_names", "output", "rename", "link", "copy", "histogram"), (FORWARD,)
    ) | {
        "undo_file": (FORWARD, With("rename")),
        "age_columns": (FORWARD, With("from_table")),
        "allow_unknown": (FORWARD, With("from_table")),
        "on_bad_image": ESTIMATES,
        "assume_aligned": ESTIMATES,
        "device": ESTIMATES,
        "batch_size": ESTIMATES,
        "workers": ESTIMATES,
        "force": (FORWARD, Either(With("output"), With("histogram"))),
    }

    def run(self) -> None:
        if self.undo is not None:
            named = undo_names(self.undo, self.dry_run, progress)
            print(f"old names given back: {named.summary(self.dry_run)}")
            return
        self._check_flags()
        undo_file = self.undo_file or self.data.with_name(self.data.name + ".undo.jsonl")
        if self.rename and undo_file.exists():
            named = finish_rename(undo_file, self.dry_run, progress)
            self._remove_part(is_stored=True)
            print(f"{self.data}, going on after a stop: {named.summary()}")
            return
        self._check_inputs()
        destinations = Destinations(self.output, self.histogram, self.link, self.copy, self.rename, undo_file)
        index = open_index(self.data, FILENAME_PATTERNS.get(self.from_names), what="training images", allow_flat=True,
                           cache=not self.dry_run, progress=progress)  # fmt: skip
        destinations.check(index)
        if self.weights is not None and not self.assume_aligned:
            check_shapes(index, print)
        if self.weights is not None and self.dry_run:
            print(f"{len(index):,} ages would be estimated by {self.weights}")
            return
        ages = self._ages(index, destinations.stores_ages)
        print("\n".join(share_lines(index.root, years_or_unknown(ages))))
        write_ages(index, ages, destinations, force=self.force, dry_run=self.dry_run, progress=progress)
        self._remove_part(destinations.stores_ages)

    def _check_flags(self) -> None:
        """Raises UserError for what the flags alone show to be wrong, before pictures are listed."""
        sources = [flag(name) for name in ("weights", "from_table", "from_names") if getattr(self, name) is not None]
        places = ("output", "rename", "link", "copy", "histogram")
        gives_names = self.rename or self.link or self.copy
        if self.data is None or not self.data.name:
            raise UserError("--data is missing: give the folder of the training set, or its record file.")
        if len(sources) > 1:
            raise UserError(f"{' and '.join(sources)} were given: the ages can come from one of them.")
        if all(getattr(self, name) in (None, False) for name in places):
            raise UserError(f"nothing would be written: give one of {', '.join(flag(name) for name in places)}.")
        if self.on_bad_image == "skip" and gives_names:
            raise UserError("--on-bad-image skip leaves pictures without an age, and so without a name: use --output.")
        for path in (self.output, self.histogram):
            if path is not None:
                check_is_new(path, self.force)
        if gives_names or self.from_names:
            check_has_names(self.data, "use --output")
        for folder in filter(None, (self.link, self.copy)):
            check_is_outside(folder, self.data)

    def _check_inputs(self) -> None:
        """Raises UserError for a missing file or device; the rest of a --rename needs neither."""
        check_input_files(self)
        if self.weights is not None:
            check_weight_file(self.weights)
            choose_device(self.device)

    def _ages(self, index: Faces, for_all: bool) -> np.ndarray:
        """(N,) years; -1 where unknown, which is an error if ages are needed `for_all`."""
        if self.from_table is not None:
            table = read_age_table(self.from_table, index, self.allow_unknown, progress, self.age_columns)
            if table.num_unknown:
                print(f"left out: {table.num_unknown:,} lines of {self.from_table} about pictures that are not there")
            return table.ages
        if self.weights is not None:
            return estimate_ages(
                index, self.weights, self._part_path, device=choose_device(self.device), batch_size=self.batch_size,
                workers=self.workers, on_bad_image=self.on_bad_image, progress=progress,
            )  # fmt: skip
        if index.ages is None:
            raise UserError(f"{index.root!r} holds no ages: give --weights, --from-table or --from-names.")
        if for_all and (index.ages < 0).any():
            count = int((index.ages < 0).sum())
            raise UserError(f"{count:,} pictures in {index.root!r} have no age: give --weights or --from-table.")
        return index.ages

    @property
    def _part_path(self) -> Path:
        """The file of ages estimated so far."""
        beside = self.output or self.link or self.copy or self.data
        return beside.with_name(beside.name + ".ages.part")

    def _remove_part(self, is_stored: bool) -> None:
        """Removes this run's estimated ages once they are stored elsewhere."""
        if self.weights is not None and is_stored:
            self._part_path.unlink(missing_ok=True)
        elif self.weights is not None:
            print(f"the ages stay in {self._part_path}: --histogram and --rename start from them")


# ---------------------------------------------------------------------------------------------- synthetic faces, lists


@dataclass(frozen=True)
class Synthetic:
    """Draw a training set and the four benchmarks, scaled down, of people who do not exist; no person is in two."""

    output: Path = output_folder(Path("demo/face_dataset"))
    """New folder, to be given to train.py (with /ms1mv3_256times256_with_age) and to test.py as --face-dataset."""
    seed: int = bounded(0, low=0)
    workers: int = bounded(available_cores(), low=1)
    """Processes that draw; the files are the same for any number."""
    num_people: int = bounded(100, low=2)
    """People of the training set."""
    pictures_per_person: int = bounded(16, low=2)
    years_per_person: int | None = bounded(None, low=1)
    """Years of a training person's life within which all pictures of that person lie, as with photographs collected
    from the web; unless given, all of life."""
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
        check_ascending("morph2_subjects", self.morph2_subjects)
        settings = dataclasses.asdict(self)
        counts = write_all(settings.pop("output"), **settings)
        for folder, count in counts.items():
            mark_drawn(self.output / folder)
            print(f"{self.output / folder}: {count:,} pictures")


@dataclass(frozen=True)
class ContactSheet:
    """Draw one PNG of synthetic people: rows are people, columns are ages."""

    output: Path = output_file(Path("contact_sheet.png"))
    seed: int = bounded(0, low=0)
    num_people: int = bounded(8, low=1)
    ages: tuple[int, ...] = bounded((1, 6, 12, 18, 28, 40, 52, 65, 78), low=0, high=80)

    def run(self) -> None:
        contact_sheet(self.output, self.seed, self.num_people, self.ages)
        print(f"written: {self.output}")


@dataclass(frozen=True)
class CacdVsList:
    """Write CACD-VS's 4,000 pairs by the rule that its file names follow."""

    output: Path = output_file(Path(FACE_DATASET_FOLDER) / BENCHMARKS["cacd_vs"].pair_lists[0])

    def run(self) -> None:
        if self.output.exists():
            raise UserError(f"{self.output} exists: remove it first, or give another --output.")
        write_cacd_vs_list(self.output)
        print(f"written: {self.output}")


COMMANDS = {
    "check": Check,
    "unpack": Unpack,
    "pack": Pack,
    "ages": Ages,
    **ALIGN_COMMANDS,
    "bin": Bin,
    "synthetic": Synthetic,
    "contact-sheet": ContactSheet,
    "cacd-vs-list": CacdVsList,
}
Subcommand = Union[tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())]  # noqa: UP007

if __name__ == "__main__":
    run_script(lambda: parse_config(Subcommand).run())
