"""Photographs -> embeddings, equal to those that test.py extracts: load a model, align and embed pictures."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.alignment.photos import Aligner, NamedSources, Piece, Source, load_pieces
from data.transforms import to_network_input
from evaluation.comparison import Face
from evaluation.embeddings.extraction import extract
from evaluation.embeddings.networks import Network, open_network
from evaluation.protocols import join_views
from evaluation.scoring import ANALYSED_JOIN
from meta import WEIGHT_FILES, UserError
from utils.distributed import DistInfo, choose_device

WEIGHTS = Path(WEIGHT_FILES["iefp"].path)
SILENT_SECONDS = 5.0  # no progress is printed of what takes fewer


@dataclass(frozen=True, eq=False)
class Embedded:
    """N pictures' embeddings; `embedded[i]` is one Face."""

    names: tuple[str, ...]
    embeddings: np.ndarray  # (N, 2 D) float32: both views joined, L2-normalised
    age_probabilities: np.ndarray | None  # (N, 8) float32, mean of both views; None without an age branch
    made_by: dict[str, Any]  # weights, model and join, see `made_by`; how many pictures were aligned in which way
    notes: tuple[str, ...]  # sentences on what had to be decided, or is wrong
    left_out: tuple[str, ...]  # a sentence for each picture that was skipped

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Face:
        ages = None if self.age_probabilities is None else self.age_probabilities[i]
        return Face(self.names[i], self.embeddings[i], ages)


def load(weights: str | Path = WEIGHTS, device: str = "auto", onnx_input: str | None = None) -> Network:
    """The model of a weight file or an ONNX file on a device: auto, cpu, cuda or cuda:N.

    `onnx_input` says how pictures go into an ONNX model, where its file doesn't: "bgr 160x160 mean=127.5 scale=128".

    Raises:
        UserError: no such file or device, or a file without an identity branch.
    """
    return open_network(Path(weights), DistInfo(0, 1, choose_device(device)), onnx_input)


def embed(
    model: Network,
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
        size=model.size,
        silent_below=SILENT_SECONDS,
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
        notes=tuple(seen.notes),
        left_out=tuple(seen.failures[i] for i in sorted(seen.failures)),
    )


def made_by(model: Network) -> dict[str, Any]:
    """What has to be alike of two embeddings that are compared."""
    return {
        "schema": 1,
        "weights_sha256": model.sha256,
        "model_fingerprint": model.fingerprint,
        "join": ANALYSED_JOIN,
    }


class Seen:
    """Collects failures, notes and kinds of alignment of pictures on their way to the network."""

    def __init__(self, on_bad_picture: str):
        self.on_bad_picture = on_bad_picture
        self.failures: dict[int, str] = {}
        self.notes: list[str] = []
        self.aligned_by: list[str] = []

    def passing(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces; raises UserError for the first picture that failed, unless those are skipped.

        A detector that can't be used is never skipped: it would fail again for each picture.
        """
        for piece in pieces:
            if piece.detector_failure:
                raise UserError(piece.detector_failure)
            if piece.failures and self.on_bad_picture == "error":
                raise UserError(next(iter(piece.failures.values())))
            self.failures |= piece.failures
            self.notes += piece.notes
            self.aligned_by += piece.aligned_by
            yield piece

    def counts(self) -> dict[str, int]:
        return {how: self.aligned_by.count(how) for how in sorted(set(self.aligned_by))}
