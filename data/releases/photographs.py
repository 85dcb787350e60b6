"""Photographs of the user's own -> a folder of aligned faces under the same names: the command `prepare.py align`."""

import functools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar

import tyro

from data.ages.names import check_is_outside
from data.alignment import detectors as detection
from data.alignment.choice import FACE_HELP, FaceChoice
from data.alignment.landmarks import PointTable, landmarks_help, read_point_table
from data.alignment.photos import Aligner
from data.alignment.template import check_points
from data.finding import find_files
from data.layout import is_photo_name
from data.releases.aligned_folders import SAVE_OPTIONS, Face, Outcome, Plan, in_processes
from data.releases.writing import note_lines, write_plans
from data.transforms import UnreadablePicture
from meta import IMAGE_SIZE, PHOTO_EXTENSIONS, UserError
from utils.cli import Needs, With, Without, available_cores, bounded, check_input_files, input_file, output_folder
from utils.files import sha256
from utils.progress import progress

WRITES = Without("margin_check", why="which writes nothing")
SUFFIX = ".jpg"  # of faces from formats that aren't written


def plan_photographs(
    folder: Path, output: Path, landmarks: PointTable | None, detector: Path | None, face: FaceChoice
) -> Plan:
    """Every photograph below `folder` to a picture of the same path below `output`.

    Raises:
        UserError: for a folder that can't be read or has no photographs, and an `output` inside it.
    """
    check_is_outside(output, folder)
    files = find_files(folder)
    names = [name for name in files if is_photo_name(name)]
    others = [name for name in files if not is_photo_name(name)]
    if not names:
        raise UserError(f"The folder {str(folder)!r} holds no photographs: give one with files that end in "
                        f"{', '.join(PHOTO_EXTENSIONS)}.")  # fmt: skip
    in_folders = any("/" in name for name in names)
    aligner = Aligner(detector_path=None if detector is None else str(detector), face_choice=face)
    settings = "" if detector is None else f"{sha256(detector)} {face}"
    plan = Plan("photographs", output.name, in_folders, [folder], aligner=aligner, settings=settings)
    for name in names:
        target = PurePosixPath(name)
        target = target if target.suffix.lower() in SAVE_OPTIONS else target.with_suffix(SUFFIX)
        try:
            points = None if landmarks is None else landmarks.find(name)
            if points is not None:
                check_points(points)
            elif detector is None:
                raise UserError("no landmarks")
            plan.faces.append(Face(str(folder / name), (str(target),), points, name))
        except UserError as error:
            plan.left_out.append((name, str(error)))
    loose = [name for name in names if "/" not in name]
    if in_folders and loose:
        plan.notes.append(f"{len(loose):,} lie beside the folders of people (such as {loose[0]!r}), where no training "
                          "looks")  # fmt: skip
    if others:
        plan.notes.append(f"{len(others):,} files are no pictures by their names and are left out (such as "
                          f"{others[0]!r})")  # fmt: skip
    return plan


@dataclass(frozen=True)
class AlignPhotographs:
    """Align the faces in a folder of photographs: pictures of 112x112 under the same names.

    One folder a person below FOLDER, or all photographs in it; ages in names stay. Photographs without a face and the
    like are listed in OUTPUT_left_out.csv, what is doubtful in OUTPUT_notes.csv; look at OUTPUT_alignment.png. Stopped
    and started again, the same command goes on where it was.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of photographs."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = output_folder(None)
    """New folder."""
    detector: Annotated[Path | None, tyro.conf.arg(help=detection.detector_help())] = None
    landmarks: Annotated[Path | None, tyro.conf.arg(help=landmarks_help() + "; they are asked first.")] = input_file()
    face: Annotated[FaceChoice, tyro.conf.arg(help=FACE_HELP)] = "largest"
    size: int = bounded(IMAGE_SIZE, low=32, high=1024)
    """Pixels of the aligned pictures, both sides."""
    margin_check: bool = False
    """Only find the faces and count how many are turned, tiny, cut off or doubtful; write nothing."""
    workers: int = bounded(available_cores(), low=1)
    """Processes that align; the files are the same for any number."""
    force: bool = False
    """Replace a folder that exists, with all that is in it."""

    NEEDS: ClassVar[Needs] = {
        "face": (With("detector"),),
        "size": (WRITES,),
        "force": (WRITES,),
    }

    def run(self) -> None:
        if self.output is None and not self.margin_check:
            raise UserError("--output is missing: give a new folder, or --margin-check to write nothing.")
        if self.detector is None and self.landmarks is None:
            raise UserError("where the faces are is not known: give --detector (an ONNX file) or --landmarks.")
        check_input_files(self)
        if self.detector is not None:
            detection.open_detector(str(self.detector))  # what is wrong with it is found before the work
        output = self.output or self.folder.with_name(f"{self.folder.name}_aligned")
        table = None if self.landmarks is None else read_point_table(self.landmarks)
        plan = plan_photographs(self.folder, output, table, self.detector, self.face)
        if self.margin_check:
            check_margins(plan, self.workers)
            return
        write_plans(
            [plan], output.parent, size=self.size, workers=self.workers, allow_missing=True, force=self.force,
            progress=progress,
        )  # fmt: skip


def check_margins(plan: Plan, workers: int) -> None:
    """Prints how many photographs can't be aligned or are doubtful; aligns them all, and writes nothing."""
    for note in plan.notes:
        print(f"{plan.title}: {note}")
    outcomes = progress(
        in_processes(functools.partial(look, aligner=plan.aligner), plan.faces, workers), len(plan.faces), plan.title
    )
    failed, noted = list(plan.left_out), []
    for face, outcome in zip(plan.faces, outcomes, strict=True):
        if outcome.failure is not None:
            failed.append((face.name, outcome.failure))
        noted += [(face.name, note) for note in outcome.notes]
    num_photographs = len(plan.faces) + len(plan.left_out)
    print(f"{num_photographs:,} photographs, of which {num_photographs - len(failed):,} can be aligned")
    if failed:
        print(f"can't be aligned: {len(failed):,} (such as {failed[0][0]!r}: {failed[0][1].rstrip('.')})")
    for line in note_lines(noted):
        print(line)


def look(face: Face, aligner: Aligner) -> Outcome:
    """What would become of one photograph. Raises DetectorError."""
    try:
        return Outcome(None, aligner.aligned(face.source, face.name, face.points).notes)
    except detection.DetectorError:
        raise
    except UnreadablePicture as error:
        return Outcome(error.reason)
    except UserError as error:
        return Outcome(str(error))
