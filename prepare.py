"""From what users have to what the method needs; the work is done in data/.

python prepare.py check                                       what is wrong with the data sets that are here
python prepare.py unpack --records train.rec --output FOLDER  InsightFace's record file to one folder per identity
python prepare.py pack --data FOLDER --output new/train.rec   one folder per identity to a record file
python prepare.py ages --data FOLDER --weights age.pth --output ages.csv   an age for every picture
python prepare.py align-fgnet --raw FOLDER                    FG-NET as released; likewise align-morph2, align-calfw,
                                                              align-cacd-vs, align-agedb and align-cacd
python prepare.py bin --pairs LIST --images FOLDER --output mine.bin   one file of pairs for InsightFace's tools
python prepare.py synthetic --output demo/face_dataset        made-up faces in the layouts of all data sets
python prepare.py contact-sheet --output sheet.png            the same people over the years, to look at
python prepare.py cacd-vs-list                                CACD-VS's pair list by its rule
"""

import dataclasses
import functools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from data.ages.histogram import draw_age_histograms, group_shares
from data.ages.names import Named, continue_names, place_with_ages, rename_with_ages, undo_names
from data.ages.tables import read_age_table, read_ages, whole_years, write_age_table
from data.alignment.landmarks import landmarks_help
from data.check.findings import is_wrong, report_lines, write_findings
from data.check.image_scan import check_shapes
from data.check.run import check, checked_names
from data.faces import UNKNOWN, FaceIndex, Faces, with_ages
from data.index_cache import find_record_file, open_index
from data.loaders import batches, evaluation_loader
from data.pairs import read_pair_list, write_cacd_vs_list
from data.record_packing import pack_folder, unpack_record_file
from data.records import RecordIndex
from data.releases.agedb import plan_agedb
from data.releases.aligned_folders import Plan, write_plan
from data.releases.cacd import plan_cacd, plan_cacd_vs
from data.releases.calfw import plan_calfw
from data.releases.fgnet import plan_fgnet
from data.releases.morph2 import plan_morph2
from data.synthetic.sets import contact_sheet, write_all
from data.transforms import to_network_input
from data.verification_bins import write_verification_bin
from evaluation.age_labelling import label_ages
from meta import (
    AGE_GROUP_MIDDLES,
    BENCHMARKS,
    FACE_DATASET_FOLDER,
    FILENAME_PATTERNS,
    IMAGE_SIZE,
    TRAINING_SETS,
    UserError,
)
from models.age_heads import expected_age
from models.weights import load_for_ages, model_fingerprint, read_weight_file
from utils.cli import (
    Either,
    Needs,
    With,
    Without,
    available_cores,
    bounded,
    flag,
    output_file,
    output_folder,
    parse_config,
    printable,
    run_script,
)
from utils.distributed import choose_device
from utils.files import check_is_new, sha256
from utils.progress import progress

# ---------------------------------------------------------------------------------------------- the doctor, pair files


@dataclass(frozen=True)
class Check:
    """Look for what is wrong with data sets and weight files, and say what to do; nothing is changed.

    Without names all that is known is looked for. The exit status is 1 if something is wrong, or if a set that was
    named is not there.
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
            check_is_new(self.json, self.force)  # before the work, not after it
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


@dataclass(frozen=True)
class Bin:
    """Write a pair list and its pictures as one verification set, as InsightFace's tools read it (lfw.bin)."""

    pairs: Path
    """List with 'name_a name_b 1|0' per line; ten equal parts of it are the folds."""
    images: Path
    """Folder of the pictures that the list names."""
    output: Path = output_file(dataclasses.MISSING)
    """File to write, such as face_dataset/mine.bin."""
    allow_missing: bool = False
    """Leave pairs out whose pictures are missing, and count them, instead of stopping."""
    reencode: bool = False
    """Resize pictures that are not 112x112, and store them and those that are no JPEG or PNG as PNG."""
    assume_aligned: bool = False
    """With --reencode: all pictures are aligned, also those that are not 112x112; they are only resized."""
    force: bool = False
    """Replace the output."""

    def run(self) -> None:
        check_is_new(self.output, self.force)
        if self.assume_aligned and not self.reencode:
            raise UserError("--assume-aligned does nothing without --reencode: leave it out, or give both.")
        pairs = read_pair_list(self.pairs, self.images, self.allow_missing)
        if pairs.num_pairs_dropped:
            print(f"left out: {pairs.num_pairs_dropped:,} pairs, {len(pairs.missing):,} pictures are missing")
        if self.reencode and not self.assume_aligned:
            check_shapes(pairs.images, print)
        told = write_verification_bin(pairs, self.output, self.force, self.reencode, progress)
        print(f"{told.num_pairs:,} pairs of {told.num_images:,} pictures, {told.num_reencoded:,} encoded again")
        print(f"written: {self.output}, SHA-256 {told.sha256}")


# -------------------------------------------------------------------------------------------------------- record files


@dataclass(frozen=True)
class Unpack:
    """Write the pictures of an InsightFace record file as one folder per identity: 00000007/00000171_age_39.jpg.

    train.py reads record files as they are, so this is for people and other programs. Stopped and started again, the
    same command goes on where it was.
    """

    records: Path = Path("train.rec")
    """The .rec file, or the folder that has a train.rec."""
    output: Path = output_folder(Path("unpacked"))
    """New folder."""
    ages: Path | None = None
    """Table of ages (record key, age) for names with ages; without it those in the records, if they have any."""
    names: Literal["auto", "age", "plain"] = "auto"
    """auto: 00000171_age_39.jpg where all ages are known, else 00000171.jpg; age and plain: the one or the other."""
    force: bool = False
    """Replace pictures in --output that have another size than those in the record file."""
    dry_run: bool = False
    """Read everything, count, and write nothing."""

    NEEDS: ClassVar[Needs] = {"ages": (With("names", "auto", "age"),)}

    def run(self) -> None:
        if find_record_file(self.records) is None:
            raise UserError(f"--records {str(self.records)!r} is no .rec file and has no train.rec in it: give one.")
        index = open_index(self.records, None, how_to_get=TRAINING_SETS["ms1mv3"].how_to_get, progress=progress,
                           cache=not self.dry_run)  # fmt: skip
        if self.ages is not None:
            index = with_ages(index, read_ages(self.ages, index, progress))
        all_known = index.ages is not None and bool((index.ages >= 0).all())
        named = self.names == "age" or (self.names == "auto" and all_known)
        print(f"{index.root}: {len(index):,} pictures of {index.num_identities:,} identities, "
              f"{'with' if named else 'without'} ages in their names, {index.num_bytes / 1e9:.1f} GB")  # fmt: skip
        result = unpack_record_file(index, self.output, named, self.force, self.dry_run, progress)
        print(f"{'would be written' if self.dry_run else 'written'}: {result.num_written:,}, there already: "
              f"{result.num_kept:,}, left out: {result.num_left_out:,}")  # fmt: skip
        for reason in result.left_out:
            print(f"left out: {printable(reason)}")


@dataclass(frozen=True)
class Pack:
    """Write one folder per identity, or another record file, as InsightFace's train.rec, train.idx and property.

    One large file is read faster than millions of small ones, and train.py takes it as --train-data. The pictures go in
    as they are; names of files and people do not. Ages become the second label of each picture, which the header says.
    """

    data: Path = Path(FACE_DATASET_FOLDER) / TRAINING_SETS["ms1mv3"].folder
    """Folder with one folder per identity, or record file."""
    output: Path = output_file(Path("records/train.rec"))
    """New .rec file; .idx and property are written beside it."""
    from_names: Literal["ms1mv3", "fgnet", "morph2"] | None = None
    """Take the ages from the file names, which are like those of this data set."""
    ages: Path | None = None
    """Take the ages from a table of them (path or record key, age)."""
    force: bool = False
    """Replace files that are there."""
    dry_run: bool = False
    """Count and check the places, write nothing."""

    def run(self) -> None:
        if self.ages is not None and self.from_names is not None:
            raise UserError("--ages and --from-names were given: the ages can come from one of them.")
        pattern = FILENAME_PATTERNS[self.from_names] if self.from_names else None
        index = open_index(self.data, pattern, cache=not self.dry_run, progress=progress)
        if self.from_names and isinstance(index, RecordIndex):
            raise UserError(f"{index.root!r} is a record file, whose pictures have no names: leave out --from-names.")
        if self.ages is not None:
            index = with_ages(index, read_ages(self.ages, index, progress))
        packed = pack_folder(index, self.output, self.force, self.dry_run, progress)
        print(f"{self.output}: {packed.num_pictures:,} pictures of {packed.num_identities:,} identities, "
              f"{'with' if packed.with_ages else 'without'} ages{', not written' if self.dry_run else ''}")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- ages


FORWARD = Without("undo", why="which needs no other flag")
ESTIMATES = (FORWARD, With("weights"))


@dataclass(frozen=True)
class Ages:
    """Give the pictures of a training set their ages: in a table beside it, or in the published file names.

    The ages come from one of --weights, --from-table and --from-names; without these, from the record file itself.
    They go to one or more of --output, --rename, --link, --copy and --histogram. Started again, the same command goes
    on where it was stopped. --undo FILE takes a --rename back and needs no other flag.
    """

    data: Path | None = None
    """Folder with one folder per identity, or record file (train.rec)."""
    weights: Path | None = None
    """Let this age branch estimate the ages: a file of stage age, or of a whole model."""
    from_table: Path | None = None
    """Take the ages of any other tool: CSV or TSV of picture (path or record key) and age in years."""
    from_names: Literal["ms1mv3", "fgnet", "morph2"] | None = None
    """Take the ages from the file names, which are like those of this data set."""
    output: Path | None = output_file()
    """Write the ages to this table, for train.py; no picture is touched."""
    rename: bool = False
    """Rename the pictures: 05179510.jpg becomes 05179510_age_39.jpg."""
    link: Path | None = output_folder()
    """Make this folder, with hard links of the published names; takes no room."""
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
        "allow_unknown": (FORWARD, With("from_table")),
        "on_bad_image": ESTIMATES,
        "device": ESTIMATES,
        "batch_size": ESTIMATES,
        "workers": ESTIMATES,
        "force": (FORWARD, Either(With("output"), With("histogram"))),
    }

    def run(self) -> None:
        if self.undo is not None:
            named = undo_names(self.undo, self.dry_run, progress)
            print(f"old names given back: {_in_words(named, self.dry_run)}")
            return
        self._check_flags()
        undo_file = self.undo_file or self.data.with_name(self.data.name + ".undo.jsonl")
        if self.rename and undo_file.exists():
            self._finish(undo_file)
            return
        index = self._open()
        if self.weights is not None and self.dry_run:
            print(f"{len(index):,} ages would be estimated by {self.weights}")
            return
        ages = self._ages(index)
        self._report(index, ages)
        self._write(index, ages, undo_file)
        self._let_go_of_part()

    def _check_flags(self) -> None:
        sources = ("weights", "from_table", "from_names")
        given = [flag(name) for name in sources if getattr(self, name) is not None]
        places = ("output", "rename", "link", "copy", "histogram")
        if self.data is None or not self.data.name:
            raise UserError("--data is missing: give the folder of the training set, or its record file.")
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} were given: the ages can come from one of them.")
        if self.assume_aligned and self.weights is None:
            raise UserError("--assume-aligned does nothing without --weights: leave it out, or give both.")
        if all(getattr(self, name) in (None, False) for name in places):
            raise UserError(f"nothing would be written: give one of {', '.join(flag(name) for name in places)}.")
        if self.on_bad_image == "skip" and (self.rename or self.link or self.copy):
            raise UserError("--on-bad-image skip leaves pictures without an age, and so without a name: use --output.")
        for path in (self.output, self.histogram):
            if path is not None:
                check_is_new(path, self.force)  # before the work, not after it

    def _open(self) -> Faces:
        pattern = FILENAME_PATTERNS[self.from_names] if self.from_names else None
        index = open_index(self.data, pattern, what="training images", cache=not self.dry_run, progress=progress)
        if (self.rename or self.link or self.copy or self.from_names) and not isinstance(index, FaceIndex):
            raise UserError(f"{index.root!r} is a record file, whose pictures have no names: use --output.")
        if self.weights is not None and not self.assume_aligned:
            check_shapes(index, print)
        return index

    def _ages(self, index: Faces) -> np.ndarray:
        """(N,) years; -1 where a picture was left out."""
        if self.from_table is not None:
            table = read_age_table(self.from_table, index, self.allow_unknown, progress)
            if table.num_unknown:
                print(f"left out: {table.num_unknown:,} lines of {self.from_table} about pictures that are not there")
            return table.ages
        if self.weights is not None:
            return self._estimate(index)
        if index.ages is None:
            raise UserError(f"{index.root!r} holds no ages: give --weights, --from-table or --from-names.")
        if (index.ages < 0).any() and (self.rename or self.link or self.copy or self.output):
            count = int((index.ages < 0).sum())
            raise UserError(f"{count:,} pictures in {index.root!r} have no age: give --weights or --from-table.")
        return index.ages

    def _estimate(self, index: Faces) -> np.ndarray:
        device = choose_device(self.device)
        load = functools.partial(evaluation_loader, index, self.batch_size, self.workers, device.type == "cuda",
                                 on_bad_image="skip")  # fmt: skip
        predict, fingerprint = load_age_predictor(self.weights, device)
        labelled = label_ages(
            predict,
            lambda positions: batches(load(indices=positions.tolist())),
            len(index),
            device,
            self._part_path(),
            f"{fingerprint} {index.state(progress)}",
        )
        for failure in labelled.failures[:5]:
            print(f"cannot be decoded: {printable(failure)}", file=sys.stderr)
        if labelled.failures and self.on_bad_image == "error":
            raise UserError(
                f"{len(labelled.failures):,} pictures cannot be decoded: replace them and start again (the ages of the "
                "others are kept), or give --on-bad-image skip to leave them out of the table."
            )
        return np.where(np.isnan(labelled.ages), UNKNOWN, labelled.ages)

    def _part_path(self) -> Path:
        beside = self.output or self.link or self.copy or self.data
        return beside.with_name(beside.name + ".ages.part")

    def _let_go_of_part(self) -> None:
        """Removes the estimated ages once they are stored elsewhere; those of another run are not ours to remove."""
        if self.weights is None:
            return
        if self.output or self.rename or self.link or self.copy:
            self._part_path().unlink(missing_ok=True)
        else:
            print(f"the ages stay in {self._part_path()}: --histogram and --rename start from them")

    def _report(self, index: Faces, ages: np.ndarray) -> None:
        facts = group_shares(_whole(ages))
        if not facts["num_ages"]:
            raise UserError(f"no picture in {index.root!r} got an age: check the pictures and the source of the ages.")
        unknown = f", {facts['num_unknown']:,} pictures without an age" if facts["num_unknown"] else ""
        print(f"{index.root}: {facts['num_ages']:,} ages, median {facts['median_years']:g} years{unknown}")
        for group, share in facts["group_shares_percent"].items():
            print(f"{group:>6} {share:6.2f} %")

    def _write(self, index: Faces, ages: np.ndarray, undo_file: Path) -> None:
        years = _whole(ages)
        if self.output is not None and not self.dry_run:
            known = np.flatnonzero(ages >= 0)
            write_age_table(self.output, (index.key(i) for i in known.tolist()), ages[known], self.force)
            print(f"written: {self.output}, {len(known):,} ages")
        if self.histogram is not None and not self.dry_run:
            draw_age_histograms({os.path.basename(index.root): years}, self.histogram, self.force)
            print(f"written: {self.histogram}")
        for how, folder in (("link", self.link), ("copy", self.copy)):
            if folder is not None:
                named = place_with_ages(index, years, folder, how, self.dry_run, progress)
                print(f"{folder}: {_in_words(named, self.dry_run)}")
        if self.rename:
            named = rename_with_ages(index, years, undo_file, self.dry_run, progress)
            print(f"{index.root}: {_in_words(named, self.dry_run)}")
            if named.done and not self.dry_run:
                print(f"to go back: python prepare.py ages --undo {undo_file}")

    def _finish(self, undo_file: Path) -> None:
        """The rest of a --rename that was stopped: all that it needs stands in the undo file."""
        if self.dry_run:
            raise UserError(f"{undo_file} is of an earlier --rename: without --dry-run that is finished first.")
        named = continue_names(undo_file, progress)
        if not named.done:
            raise UserError(
                f"The --rename of {str(undo_file)!r} was finished before: move that file away to name further "
                f"pictures, or go back with --undo."
            )
        self._let_go_of_part()
        print(f"{self.data}, going on after a stop: {_in_words(named)}")


def _whole(ages: np.ndarray) -> np.ndarray:
    return np.where(ages < 0, UNKNOWN, whole_years(np.maximum(ages, 0))).astype(np.int16)


def _in_words(named: Named, dry_run: bool = False) -> str:
    missing = f", {named.missing:,} are not there any more" if named.missing else ""
    return f"{named.done:,} {'would get' if dry_run else 'got'} their names, {named.already:,} had them{missing}"


def load_age_predictor(weights_path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """Images uint8 (B, 3, 112, 112) -> years (B,) by an age branch; and the model's fingerprint.

    With a head for years the expected age; without it the middle of the most probable age group.
    """
    model = load_for_ages(weights_path).to(device)
    fingerprint = model_fingerprint(sha256(weights_path), model)
    middles = torch.tensor(AGE_GROUP_MIDDLES, dtype=torch.float32, device=device)

    def predict(images: Tensor) -> Tensor:
        age = model.age_features(to_network_input(images, channels_last=True))
        if model.year_head is not None:
            return expected_age(model.year_head(age))
        return middles[model.age_logits(age).argmax(1)]

    return predict, fingerprint


# ------------------------------------------------------------------------------------------------------------ releases


@dataclass(frozen=True)
class Align(ABC):
    """What all data sets have in common; no subcommand of its own."""

    raw: Path
    """Folder of the release, unpacked."""
    output: Path = output_folder(Path(FACE_DATASET_FOLDER))
    landmarks: Annotated[
        Path | None,
        tyro.conf.arg(help=f"{landmarks_help()}; instead of the release's own landmarks where it has some."),
    ] = None
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

    @abstractmethod
    def plans(self) -> list[Plan]: ...

    def run(self) -> None:
        for plan in self.plans():
            for note in plan.notes:
                print(f"{plan.title}: {note}")
            if self.dry_run:
                show(self.output, plan.counts(), "would be written")
                show_left_out(len(plan.left_out), "")
                continue
            written = write_plan(plan, self.output, self.size, self.workers, self.allow_missing, self.force, progress)
            show(self.output, written.counts, f"of which {written.num_kept:,} were there")
            show_left_out(len(written.left_out), f", named in {written.left_out_path}")
            print(f"look at {written.sheet}: the crosses have to lie on eyes, nose tip and mouth corners")


def show(output: Path, counts: dict[str, tuple[int, int]], words: str) -> None:
    for place, (pictures, people) in counts.items():
        print(f"{output / place}: {pictures:,} pictures{f' of {people:,} people' if people else ''}, {words}")


def show_left_out(count: int, words: str) -> None:
    if count:
        print(f"left out: {count:,} pictures{words}")


@dataclass(frozen=True)
class AlignFgnet(Align):
    """FG-NET as released (images and points) -> ID_processed_FGNET."""

    def plans(self) -> list[Plan]:
        return [plan_fgnet(self.raw, self.landmarks, self.already_aligned)]


@dataclass(frozen=True)
class AlignMorph2(Align):
    """MORPH album 2 -> gallery (youngest picture) and probe (oldest) of 3,000 and 10,000 subjects."""

    ages: Path | None = None
    """morph_2008_nonCommercial.csv: its ages count, not those in the names."""
    counts: tuple[int, int] = bounded(BENCHMARKS["morph2"].subject_counts, low=1)
    """Subjects of the small and of the large setting; the small one is part of the large one."""
    seed: int = 0
    """Decides which subjects are drawn."""
    subjects: Path | None = None
    """A subjects.csv that this command wrote: the same subjects and pictures again, nothing drawn."""
    training_folder: str = ""
    """Name of a folder below --output for the pictures of all subjects that are in neither setting."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(
        ("counts", "seed"), (Without("subjects", why="which says itself who is in which setting"),)
    )

    def plans(self) -> list[Plan]:
        return plan_morph2(self.raw, self.landmarks, self.already_aligned, ages=self.ages, counts=self.counts,
                           seed=self.seed, subjects=self.subjects, training_folder=self.training_folder)  # fmt: skip


@dataclass(frozen=True)
class AlignCalfw(Align):
    """CALFW as released (images, CA_landmarks, pairs_CALFW.txt) -> CALFW, its list dealt into ten folds."""

    pairs: Path | None = None
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

    pairs: Path | None = None
    """The protocol: 04_FINAL_protocol_30_years.mat (found by itself in the release) or lines 'name_a name_b 1|0'."""
    training_folder: str = ""
    """Name of a folder below --output for a training set of all pictures."""

    def plans(self) -> list[Plan]:
        return plan_agedb(self.raw, self.landmarks, self.already_aligned, self.pairs, self.training_folder)


@dataclass(frozen=True)
class AlignCacd(Align):
    """CACD (53_Robin_Williams_0001.jpg) -> a training set, one folder a person."""

    training_folder: str = "CACD_with_age"
    """Name of the folder below --output."""

    def plans(self) -> list[Plan]:
        return [plan_cacd(self.raw, self.landmarks, self.already_aligned, self.training_folder)]


# ------------------------------------------------------------------------------------------------ made-up faces, lists


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
        settings = dataclasses.asdict(self)
        counts = write_all(settings.pop("output"), **settings)
        for folder, count in counts.items():
            print(f"{self.output / folder}: {count:,} pictures")


@dataclass(frozen=True)
class ContactSheet:
    """Draw one PNG of made-up people: rows are people, columns are ages."""

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


Subcommand = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Unpack, tyro.conf.subcommand("unpack")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Ages, tyro.conf.subcommand("ages")]
    | Annotated[AlignFgnet, tyro.conf.subcommand("align-fgnet")]
    | Annotated[AlignMorph2, tyro.conf.subcommand("align-morph2")]
    | Annotated[AlignCalfw, tyro.conf.subcommand("align-calfw")]
    | Annotated[AlignCacdVs, tyro.conf.subcommand("align-cacd-vs")]
    | Annotated[AlignAgedb, tyro.conf.subcommand("align-agedb")]
    | Annotated[AlignCacd, tyro.conf.subcommand("align-cacd")]
    | Annotated[Bin, tyro.conf.subcommand("bin")]
    | Annotated[Synthetic, tyro.conf.subcommand("synthetic")]
    | Annotated[ContactSheet, tyro.conf.subcommand("contact-sheet")]
    | Annotated[CacdVsList, tyro.conf.subcommand("cacd-vs-list")]
)

if __name__ == "__main__":
    run_script(lambda: parse_config(Subcommand).run())
