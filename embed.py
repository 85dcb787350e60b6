"""Pictures in, answers out: embeddings of photographs, whether two show one person, who in a gallery looks like one.

    python embed.py photos/ -o faces.npz                    names, embeddings and ages of all pictures below a folder
    python embed.py child.jpg adult.jpg --far 1e-3          the same person or not, how old, how sure
    python embed.py --gallery faces.npz photo.jpg --top 5   the pictures of the gallery most alike

Faces have to be aligned: pictures of 112x112 are taken for that; for others give --landmarks, or --detector (YuNet's
ONNX file). Views, join and pixels are those of test.py, whose calibration.json says which cosine is enough at which
false-accept rate (FAR).

From Python the same is three functions:

    from embed import calibration_of, compare, embed, load
    model = load("runs/iefp/iefp.pth")
    faces = embed(model, ["child.jpg", "adult.jpg"])
    answer = compare(faces[0], faces[1], calibration_of(model, "results/iefp/calibration.json"), far=1e-3)
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro

from data.alignment import detectors as detection
from data.alignment.landmarks import read_point_table
from data.alignment.photos import Aligner, NamedSources, Piece, Source, list_pictures, load_pieces
from data.transforms import to_network_input
from evaluation.calibration import Calibration, find_calibration, read_calibration
from evaluation.comparison import (
    SAME_PICTURE,
    Face,
    compare_faces,
    guess_age,
    nearest,
    threshold_as_plain,
    threshold_in_words,
    threshold_warnings,
)
from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.embeddings.extraction import extract
from evaluation.embeddings.feature_files import Features
from evaluation.embeddings.gallery_files import check_gallery_path, read_gallery, write_gallery
from evaluation.protocols import join_views
from meta import WEIGHT_FILES, UserError
from models.iefp import IEFP
from models.weights import load_for_embedding, model_fingerprint
from utils.cli import (
    Needs,
    With,
    Without,
    available_cores,
    bounded,
    output_file,
    parse_config,
    printable,
    run_script,
)
from utils.distributed import Process, choose_device
from utils.files import sha256

WEIGHTS = Path(WEIGHT_FILES["iefp"].path)
SECONDS_IN_SILENCE = 5.0  # before progress is told


ANSWERS = Without("output", why="which writes embeddings and answers nothing")
OF_TWO = "for it is about two pictures that are compared"


@dataclass(frozen=True)
class EmbedConfig:
    """Embed pictures, compare two of them, or search one in a gallery."""

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, or folders of pictures. Two pictures and no -o are compared."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = output_file()
    """File for names, embeddings, age probabilities and what made them: .npz, or .parquet (needs pyarrow)."""
    gallery: Path | None = None
    """Such a file of the same weights: the pictures are searched in it."""
    top: int = bounded(5, low=1)
    """How many of the gallery to show for each picture."""
    weights: Path = WEIGHTS
    """As in test.py: the released IEFP file, an InsightFace backbone.pth, or what train.py writes."""
    calibration: Path | None = None
    """calibration.json of test.py; looked for beside --weights, then in results/, unless given."""
    far: float = bounded(1e-3, above=0.0, high=1.0)
    """False-accept rate of the answer: 1e-1, 1e-2, 1e-3 or 1e-4, as far as the calibration has it."""
    benchmark: str | None = None
    """Whose threshold to take; that of the benchmark with the most impostor pairs unless given."""
    ages: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="YEARS YEARS")] = bounded(None, low=0, high=120)
    """Ages on the two pictures, where they are known; else guessed from the age branch."""
    landmarks: Path | None = None
    """Five points a picture: .csv (path,x1,y1,...,x5,y5), .json ({path: [[x, y] * 5]}) or InsightFace's .lst."""
    detector: Path | None = None
    """YuNet as an ONNX file (face_detection_yunet_2023mar.onnx), to find faces in photographs; needs OpenCV."""
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
    }


# --------------------------------------------------------------------------------------------------- three functions


@dataclass(frozen=True)
class Embedder:
    """A model that is ready to embed."""

    model: IEFP
    has_age_branch: bool
    process: Process
    weights: Path
    sha256: str  # of the weights
    fingerprint: str  # see model_fingerprint


@dataclass(frozen=True, eq=False)
class Embedded:
    """N pictures' embeddings; `embedded[i]` is one Face."""

    names: tuple[str, ...]
    embeddings: np.ndarray  # (N, 1024) float32: both views joined, L2-normalised
    age_probabilities: np.ndarray | None  # (N, 8) float32, mean of both views; None without an age branch
    made_by: dict[str, Any]  # weights, model and join, see `made_by`; how many pictures were aligned in which way
    notes: tuple[str, ...]  # sentences on what had to be decided, or looks wrong
    left_out: tuple[str, ...]  # a sentence for each picture that was skipped

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Face:
        ages = None if self.age_probabilities is None else self.age_probabilities[i]
        return Face(self.names[i], self.embeddings[i], ages)


def load(weights: str | Path = WEIGHTS, device: str = "auto") -> Embedder:
    """The model of a weight file on a device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: no such file or device, or a file without an identity branch.
    """
    process = Process(0, 1, choose_device(device))
    model, has_age_branch = load_for_embedding(weights)
    digest = sha256(weights)
    fingerprint = model_fingerprint(digest, model)
    return Embedder(model.to(process.device), has_age_branch, process, Path(weights), digest, fingerprint)


def embed(
    model: Embedder,
    pictures: Sequence[Source] | NamedSources,
    aligner: Aligner | None = None,
    on_bad_picture: Literal["error", "skip"] = "error",
    batch_size: int = 64,
    workers: int = 0,
) -> Embedded:
    """Embeddings of pictures: paths, or PIL images, which are called "picture 0", ...

    Preprocessing, views and join are those of test.py: of one picture both give the same embedding. `aligner` says how
    faces get aligned; without one only pictures of 112x112 are taken.

    Raises:
        UserError: no pictures, or one that can't be read, shows no face or is not aligned (unless "skip").
    """
    if not isinstance(pictures, NamedSources):
        names = (str(one) if isinstance(one, (str, Path)) else f"picture {i}" for i, one in enumerate(pictures))
        pictures = NamedSources(tuple(pictures), tuple(names))
    if not pictures.names:
        raise UserError("there are no pictures to embed: give at least one.")
    seen = Seen(on_bad_picture)
    extracted = extract(
        model.model,
        seen.passing(load_pieces(pictures, aligner or Aligner(), batch_size, workers)),
        len(pictures.names),
        model.process,
        to_network_input,
        model.has_age_branch,
        with_grey=False,
        silent_below=SECONDS_IN_SILENCE,
    )
    kept = [i for i in range(len(pictures.names)) if i not in seen.failures]
    if not kept:
        raise UserError(f"none of the {len(pictures.names)} pictures can be embedded; the first: {seen.failures[0]}")
    ages = None
    if model.has_age_branch:
        ages = ((extracted.age_probabilities_original + extracted.age_probabilities_mirror) / 2)[kept]
    return Embedded(
        names=tuple(pictures.names[i] for i in kept),
        embeddings=join_views(extracted.original[kept], extracted.mirror[kept], ANALYSED_JOIN),
        age_probabilities=ages,
        made_by=made_by(model) | {"aligned_by": seen.counts()},
        notes=(*seen.notes, *(looks_wrong(pictures.names[i]) for i in kept if i in seen.odd)),
        left_out=tuple(seen.failures[i] for i in sorted(seen.failures)),
    )


compare = compare_faces


def calibration_of(model: Embedder, path: str | Path | None = None) -> Calibration | None:
    """The calibration of a model from a file, or from where it is looked for; None where there is none of it.

    Raises:
        UserError: a file that can't be read, or is about another model or another join.
    """
    if path is None:
        return find_calibration(model.weights, model.fingerprint, ANALYSED_JOIN, tell)
    return read_calibration(Path(path), model.fingerprint, ANALYSED_JOIN)


def made_by(model: Embedder) -> dict[str, Any]:
    """What has to be alike of two embeddings that are compared."""
    return {
        "schema": 1,
        "weights_sha256": model.sha256,
        "model_fingerprint": model.fingerprint,
        "join": ANALYSED_JOIN,
    }


class Seen:
    """What is learnt of pictures on their way to the network."""

    def __init__(self, on_bad_picture: str):
        self.on_bad_picture = on_bad_picture
        self.failures: dict[int, str] = {}
        self.odd: set[int] = set()  # do not look aligned
        self.notes: list[str] = []
        self.aligned_by: list[str] = []

    def passing(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces; raises UserError for the first picture that failed, unless those are skipped.

        A detector that can't be used is never skipped: it would be said again for each picture.
        """
        for piece in pieces:
            if piece.detector_failure:
                raise UserError(piece.detector_failure)
            if piece.failures and self.on_bad_picture == "error":
                raise UserError(next(iter(piece.failures.values())))
            self.failures |= piece.failures
            self.notes += piece.notes
            self.aligned_by += piece.aligned_by
            self.odd |= set(piece.odd)
            yield piece

    def counts(self) -> dict[str, int]:
        return {how: self.aligned_by.count(how) for how in sorted(set(self.aligned_by))}


def looks_wrong(name: str) -> str:
    return (f"{name!r} does not look like a face aligned to eyes, nose and mouth: an answer about it may be wrong; "
            "align it from the photograph by --detector or --landmarks")  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the script


def main(config: EmbedConfig) -> int:
    """Does what the flags ask for; gives the exit status."""
    check_flags(config)
    pictures = list_pictures(config.pictures)
    if config.output is None and config.gallery is None and len(pictures.names) != 2:
        raise UserError(
            f"{len(pictures.names)} pictures are given: give two to compare them, -o FILE.npz to write their "
            "embeddings, or --gallery FILE.npz to search them."
        )
    aligner = aligner_of(config)
    model = load(config.weights, config.device)
    if not model.has_age_branch:
        tell(f"{config.weights} holds no age branch: ages are left out")
    calibration = None if config.output else calibration_of(model, config.calibration)
    if calibration is not None:
        calibration.at(config.far, config.benchmark)  # what is wrong with these is found before the work
    gallery = None if config.gallery is None else read_gallery(config.gallery, made_by(model))
    faces = embed(model, pictures, aligner, config.on_bad_picture, config.batch_size, config.workers)
    for sentence in (*faces.notes, *(f"left out: {reason}" for reason in faces.left_out)):
        tell(sentence)
    if config.output is not None:
        told, sentences = write(config, faces)
    elif gallery is not None:
        told, sentences = search(config, faces, gallery, calibration)
    else:
        told, sentences = answer(config, faces, calibration)
    told |= {"notes": list(faces.notes), "left_out": list(faces.left_out)}
    print(json.dumps(told, indent=1) if config.json else "\n".join(map(printable, sentences)))
    return 0


def check_flags(config: EmbedConfig) -> None:
    """Raises UserError for what can't go together, before anything is read."""
    if not config.pictures:
        raise UserError("no pictures are given: give two to compare, or a folder and -o FILE.npz.")
    if config.output is not None and config.gallery is not None:
        raise UserError("--output writes embeddings and --gallery searches them: give one of the two.")
    if config.assume_aligned and config.detector is not None:
        raise UserError("--assume-aligned takes pictures as they are and --detector finds faces: give one of the two.")
    if config.output is not None:
        check_gallery_path(config.output, config.force)


def aligner_of(config: EmbedConfig) -> Aligner:
    if config.detector is not None:
        detection.open_detector(str(config.detector))  # what is wrong with it is found before the work
    return Aligner(
        None if config.landmarks is None else read_point_table(config.landmarks),
        None if config.detector is None else str(config.detector),
        config.assume_aligned,
    )


def write(config: EmbedConfig, faces: Embedded) -> tuple[dict[str, Any], list[str]]:
    """The file of -o; what to say of it as JSON and in words."""
    write_gallery(config.output, faces.names, faces.embeddings, faces.age_probabilities, faces.made_by, config.force)
    told = {"written": str(config.output), "num_pictures": len(faces), "made_by": faces.made_by}
    aligned = ", ".join(f"{count:,} {how}" for how, count in faces.made_by["aligned_by"].items())
    return told, [f"{len(faces):,} pictures embedded (alignment: {aligned})", f"written: {config.output}"]


def answer(config: EmbedConfig, faces: Embedded, calibration: Calibration | None) -> tuple[dict[str, Any], list[str]]:
    """Whether the two faces are of one person."""
    if len(faces) != 2:
        raise UserError(f"one of the two pictures can't be compared: {faces.left_out[0]}")
    found = compare(faces[0], faces[1], calibration, config.far, config.benchmark, config.ages)
    return found.as_plain(), found.sentences() + ([] if calibration else [no_calibration(config)])


def search(
    config: EmbedConfig, faces: Embedded, gallery: Features, calibration: Calibration | None
) -> tuple[dict[str, Any], list[str]]:
    """The nearest pictures of the gallery for each of the faces."""
    benchmark, point = calibration.at(config.far, config.benchmark) if calibration else (None, None)
    told: dict[str, Any] = {"gallery": str(config.gallery), "num_gallery": len(gallery), "searches": []}
    sentences = []
    for i, matches in enumerate(nearest(faces.embeddings, np.asarray(gallery.embeddings), config.top)):
        rows = [{"name": str(gallery.names[match.position]), "cosine": match.cosine} for match in matches]
        if point is not None:
            rows = [row | {"passes": row["cosine"] >= point.threshold} for row in rows]
        found = {"name": faces.names[i], "matches": rows}
        sentences.append(f"{faces.names[i]}:")
        if faces.age_probabilities is not None:
            age = guess_age(faces.age_probabilities[i])
            found["age_group"] = {"group": age.group, "probability": age.probability}
            sentences[-1] = f"{faces.names[i]} (looks {age.group} years old, probability {age.probability:.2f}):"
        told["searches"].append(found)
        sentences += map(match_in_words, rows)
    if point is None:
        return told, [*sentences, no_calibration(config)]
    sentences += [
        f"What passes at FAR {point.far} has a cosine at or above {threshold_in_words(benchmark, point)}.",
        f"Of {len(gallery):,} strangers in a gallery about {len(gallery) * float(point.far):.2g} pass.",
    ]
    return told | threshold_as_plain(benchmark, point), sentences + threshold_warnings(point)


def match_in_words(row: dict[str, Any]) -> str:
    same = "  (the same picture, or a copy)" if row["cosine"] >= SAME_PICTURE else ""
    return f"  {row['cosine']:6.3f}  {row['name']}{'  passes' if row.get('passes') else ''}{same}"


def no_calibration(config: EmbedConfig) -> str:
    return ("Which cosine is enough is not known: no calibration.json of these weights was found beside "
            f"{config.weights} or in results/; test.py writes one.")  # fmt: skip


def tell(sentence: str) -> None:
    """A remark, beside the answer."""
    print(f"embed.py: {printable(sentence)}", file=sys.stderr)


if __name__ == "__main__":
    run_script(lambda: main(parse_config(EmbedConfig)))
