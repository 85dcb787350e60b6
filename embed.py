"""Pictures in, answers out: embeddings of photographs, whether two show one person, who in a gallery looks like one.

    python embed.py photos/ -o faces.npz                    names, embeddings and ages of all pictures below a folder
    python embed.py child.jpg adult.jpg --far 1e-3          the same person or not, how old, how sure
    python embed.py --gallery faces.npz photo.jpg --top 5   the pictures of the gallery most alike

Faces have to be aligned: pictures of 112x112 are taken for that; for others give --landmarks, or --detector (a face
detector's ONNX file). Views, join and pixels are those of test.py, whose calibration.json says which cosine is enough
at which false-accept rate (FAR).

From Python the same is three functions:

    from embed import calibration_of, compare, embed, load
    model = load("runs/iefp/iefp.pth")
    faces = embed(model, ["child.jpg", "adult.jpg"])
    answer = compare(faces[0], faces[1], calibration_of(model, "results/iefp/calibration.json"), far=1e-3)
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro

from data.alignment import detectors as detection
from data.alignment.choice import FACE_HELP, FaceChoice
from data.alignment.landmarks import landmarks_help, read_point_table
from data.alignment.photos import Aligner, list_pictures
from evaluation.calibration import Calibration, check_far, find_calibration, read_calibration
from evaluation.comparison import compare_faces, search_gallery
from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.embeddings.feature_files import Features
from evaluation.embeddings.gallery_files import check_gallery_path, read_gallery, write_gallery
from evaluation.embeddings.photos import WEIGHTS, Embedded, Embedder, embed, load, made_by
from meta import UserError
from models.weights import check_weight_file
from utils.cli import (
    Needs,
    With,
    Without,
    available_cores,
    bounded,
    check_input_files,
    input_file,
    output_file,
    parse_config,
    printable,
    run_script,
)
from utils.distributed import choose_device

ANSWERS = Without("output", why="which writes embeddings and answers nothing")
OF_TWO = "for it is about two pictures that are compared"


@dataclass(frozen=True)
class EmbedConfig:
    """Embed pictures, compare two of them, or search one in a gallery."""

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, or folders of pictures. Two pictures and no -o are compared."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = output_file()
    """File for names, embeddings, age probabilities and what made them: .npz, or .parquet (needs pyarrow)."""
    gallery: Path | None = input_file()
    """Such a file of the same weights: the pictures are searched in it."""
    top: int = bounded(5, low=1)
    """How many of the gallery to show for each picture."""
    weights: Path = WEIGHTS
    """As in test.py: the released IEFP file, an InsightFace backbone.pth, or what train.py writes."""
    calibration: Path | None = input_file()
    """calibration.json of test.py; looked for beside --weights, then in results/, unless given."""
    far: float = bounded(1e-3, above=0.0, high=1.0)
    """False-accept rate of the answer: 1e-1, 1e-2, 1e-3 or 1e-4, as far as the calibration has it."""
    benchmark: str | None = None
    """Whose threshold to take; that of the benchmark with the most impostor pairs unless given."""
    ages: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="YEARS YEARS")] = bounded(None, low=0, high=120)
    """Ages on the two pictures, where they are known; else guessed from the age branch."""
    landmarks: Annotated[Path | None, tyro.conf.arg(help=landmarks_help() + ".")] = input_file()
    detector: Annotated[Path | None, tyro.conf.arg(help=detection.detector_help())] = None
    face: Annotated[FaceChoice, tyro.conf.arg(help=FACE_HELP)] = "largest"
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    on_bad_picture: Literal["error", "skip"] = "error"
    """skip: go on without pictures that can't be read or aligned, and list them."""
    json: bool = False
    """Print the answer as JSON."""
    force: bool = False
    """Replace the output."""
    batch_size: int = bounded(64, low=1)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = bounded(min(4, available_cores()), low=0)
    """Processes that read and align pictures; 0 does it in the main process."""

    NEEDS: ClassVar[Needs] = {
        "top": (With("gallery"),),
        "calibration": (ANSWERS,),
        "far": (ANSWERS,),
        "benchmark": (ANSWERS,),
        "ages": (Without("output", why=OF_TWO), Without("gallery", why=OF_TWO)),
        "force": (With("output"),),
        "face": (With("detector"),),
    }


# --------------------------------------------------------------------------------------------------- three functions


compare = compare_faces


def calibration_of(model: Embedder, path: str | Path | None = None) -> Calibration | None:
    """The calibration of a model from a file, or from where it is looked for; None where there is none of it.

    Raises:
        UserError: a file that can't be read, or is about another model or another join.
    """
    if path is None:
        return find_calibration(model.weights, model.fingerprint, ANALYSED_JOIN, remark)
    return read_calibration(Path(path), model.fingerprint, ANALYSED_JOIN)


# -------------------------------------------------------------------------------------------------------- the script


def main(config: EmbedConfig) -> int:
    """Does what the flags ask for; returns the exit status."""
    check_flags(config)
    aligner = aligner_of(config)
    pictures = list_pictures(config.pictures)
    if config.output is None and config.gallery is None and len(pictures.names) != 2:
        raise UserError(
            f"{len(pictures.names)} pictures are given: give two to compare them, -o FILE.npz to write their "
            "embeddings, or --gallery FILE.npz to search them."
        )
    model = load(config.weights, config.device)
    if not model.has_age_branch:
        remark(f"{config.weights} holds no age branch: ages are left out")
    calibration = None if config.output else calibration_of(model, config.calibration)
    if calibration is not None:
        calibration.at(config.far, config.benchmark)  # what is wrong with these is found before the work
    gallery = None if config.gallery is None else read_gallery(config.gallery, made_by(model))
    faces = embed(model, pictures, aligner, config.on_bad_picture, config.batch_size, config.workers)
    for sentence in (*faces.notes, *(f"left out: {reason}" for reason in faces.left_out)):
        remark(sentence)
    if config.output is not None:
        plain, sentences = write(config, faces)
    elif gallery is not None:
        plain, sentences = search(config, faces, gallery, calibration)
    else:
        plain, sentences = answer(config, faces, calibration)
    if config.output is None and calibration is None:
        sentences.append(no_calibration(config))
    plain |= {"notes": list(faces.notes), "left_out": list(faces.left_out)}
    print(json.dumps(plain, indent=1) if config.json else "\n".join(map(printable, sentences)))
    return 0


def check_flags(config: EmbedConfig) -> None:
    """Raises UserError for what can't go together or is not there, before any picture is listed."""
    if not config.pictures:
        raise UserError("no pictures are given: give two to compare, or a folder and -o FILE.npz.")
    if config.output is not None and config.gallery is not None:
        raise UserError("--output writes embeddings and --gallery searches them: give one of the two.")
    if config.assume_aligned and config.detector is not None:
        raise UserError("--assume-aligned takes pictures as they are and --detector finds faces: give one of the two.")
    if config.output is not None:
        check_gallery_path(config.output, config.force)
    check_far(config.far)
    check_input_files(config)
    choose_device(config.device)
    check_weight_file(config.weights)


def aligner_of(config: EmbedConfig) -> Aligner:
    if config.detector is not None:
        detection.open_detector(str(config.detector))  # what is wrong with it is found before the work
    return Aligner(
        None if config.landmarks is None else read_point_table(config.landmarks),
        None if config.detector is None else str(config.detector),
        config.assume_aligned,
        config.face,
    )


def write(config: EmbedConfig, faces: Embedded) -> tuple[dict[str, Any], list[str]]:
    """Writes the file of -o; returns what is printed about it, for JSON and as text."""
    write_gallery(config.output, faces.names, faces.embeddings, faces.age_probabilities, faces.made_by, config.force)
    plain = {"written": str(config.output), "num_pictures": len(faces), "made_by": faces.made_by}
    aligned = ", ".join(f"{count:,} {how}" for how, count in faces.made_by["aligned_by"].items())
    return plain, [f"{len(faces):,} pictures embedded (alignment: {aligned})", f"written: {config.output}"]


def answer(config: EmbedConfig, faces: Embedded, calibration: Calibration | None) -> tuple[dict[str, Any], list[str]]:
    """Whether the two faces are of one person."""
    if len(faces) != 2:
        raise UserError(f"one of the two pictures can't be compared: {faces.left_out[0]}")
    found = compare(faces[0], faces[1], calibration, config.far, config.benchmark, config.ages)
    return found.as_plain(), found.sentences()


def search(
    config: EmbedConfig, faces: Embedded, gallery: Features, calibration: Calibration | None
) -> tuple[dict[str, Any], list[str]]:
    """The nearest pictures of the gallery for each of the faces."""
    found = search_gallery(
        [faces[i] for i in range(len(faces))], gallery.names, np.asarray(gallery.embeddings), count=config.top,
        calibration=calibration, far=config.far, benchmark=config.benchmark,
    )  # fmt: skip
    return {"gallery": str(config.gallery)} | found.as_plain(), found.sentences()


def no_calibration(config: EmbedConfig) -> str:
    return ("Which cosine is enough is not known: no calibration.json of these weights was found beside "
            f"{config.weights} or in results/; test.py writes one.")  # fmt: skip


def remark(sentence: str) -> None:
    """Prints a remark on stderr, beside the answer."""
    print(f"embed.py: {printable(sentence)}", file=sys.stderr)


if __name__ == "__main__":
    run_script(lambda: main(parse_config(EmbedConfig)))
