"""Commands of prepare.py about sets in one file: record files and verification sets, unpacked and packed."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from data.ages.tables import AgeColumns, read_ages
from data.check.image_scan import check_shapes
from data.faces import with_ages
from data.index_cache import find_record_file, open_index
from data.lists.pair_lists import read_any_pair_list
from data.record_packing import check_record_paths, pack_folder, unpack_record_file
from data.verification_bins import (
    IMAGES,
    PAIRS,
    read_verification_bin,
    unpack_verification_bin,
    write_verification_bin,
)
from meta import FACE_DATASET_FOLDER, FILENAME_PATTERNS, TRAINING_SETS, UserError
from utils.cli import Needs, With, check_input_files, flag, given, input_file, output_file, output_folder, printable
from utils.files import check_is_new
from utils.progress import progress

BIN = ".bin"


@dataclass(frozen=True)
class Unpack:
    """Write the pictures of an InsightFace record file as one folder per identity: 00000007/00000171_age_39.jpg.

    Of a verification set (lfw.bin) as images/00017.jpg, and pairs.csv for test.py --pairs. train.py and test.py read
    both kinds of files as they are, so this is for people and other programs. Stopped and started again, the same
    command goes on where it was with a record file.
    """

    file: tyro.conf.Positional[Path | None] = None
    """A record file or a verification set; without it that of --records."""
    records: Path = Path("train.rec")
    """The .rec file, or the folder that has a train.rec."""
    output: Path = output_folder(Path("unpacked"))
    """New folder."""
    ages: Path | None = input_file()
    """Table of ages (record key, age) for names with ages; without it those in the records, if they have any."""
    age_columns: AgeColumns = None
    names: Literal["auto", "age", "plain"] = "auto"
    """auto: 00000171_age_39.jpg where all ages are known, else 00000171.jpg; age and plain: the one or the other."""
    force: bool = False
    """Replace pictures in --output that have another size than those in the record file."""
    dry_run: bool = False
    """Read everything, count, and write nothing."""

    NEEDS: ClassVar[Needs] = {"ages": (With("names", "auto", "age"),), "age_columns": (With("ages"),)}

    def run(self) -> None:
        if self.file is not None and "records" in given(self):
            raise UserError(f"{self.file} and --records {self.records} are given: give one file.")
        source = self.file or self.records
        if source.suffix.lower() == BIN:
            self._unpack_bin(source)
            return
        if find_record_file(source) is None:
            raise UserError(f"{str(source)!r} is no .rec or {BIN} file and has no train.rec in it: give one.")
        check_input_files(self)
        index = open_index(source, None, how_to_get=TRAINING_SETS["ms1mv3"].how_to_get, progress=progress,
                           cache=not self.dry_run)  # fmt: skip
        if self.ages is not None:
            index = with_ages(index, read_ages(self.ages, index, progress, self.age_columns))
        all_known = index.ages is not None and bool((index.ages >= 0).all())
        named = self.names == "age" or (self.names == "auto" and all_known)
        print(f"{index.root}: {len(index):,} pictures of {index.num_identities:,} identities, "
              f"{'with' if named else 'without'} ages in their names, {index.num_bytes / 1e9:.1f} GB")  # fmt: skip
        result = unpack_record_file(index, self.output, named, self.force, self.dry_run, progress)
        print(f"{'would be written' if self.dry_run else 'written'}: {result.num_written:,}, there already: "
              f"{result.num_kept:,}, left out: {result.num_left_out:,}")  # fmt: skip
        for reason in result.left_out:
            print(f"left out: {printable(reason)}")

    def _unpack_bin(self, source: Path) -> None:
        idle = [flag(name) for name in given(self) if name not in ("file", "records", "output", "dry_run")]
        if idle:
            raise UserError(f"{', '.join(idle)} does nothing with a verification set: leave it out.")
        if self.dry_run:
            pairs = read_verification_bin(source)
            print(f"{source}: {len(pairs):,} pairs of {len(pairs.images):,} pictures, not written")
            return
        unpacked = unpack_verification_bin(source, self.output, progress)
        print(f"written: {unpacked.num_images:,} pictures in {self.output / IMAGES}, {unpacked.num_pairs:,} pairs in "
              f"{self.output / PAIRS}")  # fmt: skip


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
    from_names: Literal[tuple(FILENAME_PATTERNS)] | None = None
    """Take the ages from the file names, which are like those of this data set."""
    ages: Path | None = input_file()
    """Take the ages from a table of them (path or record key, age)."""
    age_columns: AgeColumns = None
    force: bool = False
    """Replace files that are there."""
    dry_run: bool = False
    """Count and check the places, write nothing."""

    NEEDS: ClassVar[Needs] = {"age_columns": (With("ages"),)}

    def run(self) -> None:
        if self.ages is not None and self.from_names is not None:
            raise UserError("--ages and --from-names were given: the ages can come from one of them.")
        check_input_files(self)
        check_record_paths(self.output, self.force)
        if self.from_names:
            check_has_names(self.data, "leave out --from-names")
        pattern = FILENAME_PATTERNS.get(self.from_names)
        index = open_index(self.data, pattern, cache=not self.dry_run, progress=progress)
        if self.ages is not None:
            index = with_ages(index, read_ages(self.ages, index, progress, self.age_columns))
        packed = pack_folder(index, self.output, self.force, self.dry_run, progress)
        print(f"{self.output}: {packed.num_pictures:,} pictures of {packed.num_identities:,} identities, "
              f"{'with' if packed.with_ages else 'without'} ages{', not written' if self.dry_run else ''}")  # fmt: skip


def check_has_names(data: Path, advice: str) -> None:
    """Raises UserError for a record file."""
    if (record_file := find_record_file(data)) is not None:
        raise UserError(f"{record_file!r} is a record file, whose pictures have no names: {advice}.")


@dataclass(frozen=True)
class Bin:
    """Write a pair list and its pictures as one verification set, as InsightFace's tools read it (lfw.bin)."""

    pairs: Path = input_file(dataclasses.MISSING)
    """List of pairs, as test.py --pairs takes it; ten equal parts of it are the folds."""
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

    NEEDS: ClassVar[Needs] = {"assume_aligned": (With("reencode"),)}

    def run(self) -> None:
        check_is_new(self.output, self.force)
        check_input_files(self)
        pairs, notes = read_any_pair_list(self.pairs, self.images, self.allow_missing)
        print("\n".join(map(printable, notes)))
        if pairs.num_pairs_dropped:
            print(f"left out: {pairs.num_pairs_dropped:,} pairs, {len(pairs.missing):,} pictures are missing")
        if self.reencode and not self.assume_aligned:
            check_shapes(pairs.images, print)
        written = write_verification_bin(pairs, self.output, self.force, self.reencode, progress)
        print(
            f"{written.num_pairs:,} pairs of {written.num_images:,} pictures, {written.num_reencoded:,} encoded again"
        )
        print(f"written: {self.output}, SHA-256 {written.sha256}")
