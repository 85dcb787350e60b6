"""Whether an exported file computes what PyTorch computes: on generated images, on photographs, on benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.benchmarks import EvalSet, open_complete_eval_set, specs_of_benchmark
from data.faces import Faces
from data.loaders import batches, evaluation_loader
from evaluation.protocols import leave_one_out, pair_scores, probe_gallery, ten_fold_verification
from meta import BENCHMARKS, UserError
from models.export_files import CHECKED_BATCHES, MAX_DIFFERENCE, Run, Usage, largest_difference
from utils.progress import counted

# 1.0000 and 0.999 are usual (benchmarks/RESULTS.md); below these something went wrong.
MIN_MEAN_COSINE = {"fp16": 0.999, "int8": 0.95}


@dataclass(frozen=True)
class Comparison:
    """What a file computes (`run`), what PyTorch computes (`expected`), and how the file is called."""

    path: Path
    run: Run
    expected: Run
    usage: Usage
    batch_size: int

    def embeddings(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of uint8 images (N, 3, 112, 112) by PyTorch and by the file, (N, D) each."""
        pieces = []
        for start in range(0, len(images), self.batch_size):
            piece = images[start : start + self.batch_size].astype(self.usage.input_dtype, copy=False)
            pieces.append((self.expected(piece)[0], self.run(piece)[0]))
        before, after = zip(*pieces, strict=True)
        return np.concatenate(before), np.concatenate(after)


def check_outputs(comparison: Comparison, weights: Path) -> float:
    """The largest difference of any output on generated images, which it prints.

    Raises:
        UserError: it is larger than the precision explains.
    """
    path, precision = comparison.path, comparison.usage.precision
    difference = largest_difference(comparison.run, comparison.expected, comparison.usage.input_dtype)
    sizes = ", ".join(map(str, CHECKED_BATCHES))
    print(f"{path.name}: largest difference to PyTorch {difference:.2g} on generated images, batches of {sizes}")
    limit = MAX_DIFFERENCE if precision == "fp32" else 2.0  # outputs lie between -1 and 1
    limit = 0.0 if path.suffix == ".safetensors" else limit  # the same tensors in the same network
    if precision != "fp32" and difference == np.inf:
        raise UserError(f"{path} gives no finite numbers: {precision} is too short for these weights, use another "
                        f"--precision.")  # fmt: skip
    if not difference <= limit:
        raise UserError(f"{path} gives other numbers than {weights} ({difference:.2g} where {limit:g} is allowed): it "
                        f"is of other weights, or damaged.")  # fmt: skip
    return difference


def check_cosines(comparison: Comparison, images: np.ndarray, what: str) -> dict[str, float]:
    """Cosines of the file's embeddings of uint8 images with PyTorch's, which it prints; `what` names the images.

    Raises:
        UserError: they are lower than the precision explains.
    """
    metrics = cosines(*comparison.embeddings(images))
    print(f"{what}: {in_words(metrics)}")
    least = MIN_MEAN_COSINE.get(comparison.usage.precision, 0)
    if not metrics["mean"] >= least:
        raise UserError(f"{comparison.path} loses too much (mean cosine {metrics['mean']:.4f} to the original "
                        f"embeddings, at least {least} is required): calibrate on aligned faces like those to be "
                        f"compared.")  # fmt: skip
    return metrics


def cosines(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean and minimum cosine of the two embeddings of each image, both (N, D)."""
    each = pair_scores(before, after)
    return {"mean": float(each.mean()), "least": float(each.min()), "num_pictures": len(each)}


def in_words(metrics: dict[str, float]) -> str:
    return (f"cosine of original and exported embedding {metrics['mean']:.5f} in the mean, {metrics['least']:.5f} at "
            f"least, {metrics['num_pictures']:,} pictures")  # fmt: skip


# --------------------------------------------------------------------------------------------------------- benchmarks


@dataclass(frozen=True)
class Figure:
    """A benchmark and its main figure."""

    title: str
    sides: tuple[Faces, ...]
    score: Callable[[list[np.ndarray]], float]  # embeddings of each side -> percent


def open_figure(name: str, face_dataset: Path) -> Figure:
    """The main figure of a benchmark; of MORPH2 that of the first size.

    Raises:
        UserError: a folder, list or picture is missing or wrong.
    """
    setting = specs_of_benchmark(face_dataset, BENCHMARKS[name])[0]
    opened = open_complete_eval_set(setting.name, face_dataset)
    what, score = FIGURES[opened.protocol]
    sides = tuple(faces for faces, _ in opened.sides)
    return Figure(f"{setting.title} {what}", sides, lambda embeddings: score(opened, embeddings))


def measure_figure(figure: Figure, comparison: Comparison, workers: int) -> dict[str, Any]:
    """The figure by PyTorch's embeddings and by the file's, and the cosines between them; prints them too."""
    before, after = [], []
    for faces in figure.sides:
        loader = evaluation_loader(faces, comparison.batch_size, workers)
        pieces = [
            comparison.embeddings(batch.images.numpy()) for batch in counted(batches(loader), len(faces), figure.title)
        ]
        for embeddings, piece in zip((before, after), zip(*pieces, strict=True), strict=True):
            embeddings.append(np.concatenate(piece))
    metrics = {"before_percent": figure.score(before), "after_percent": figure.score(after)}
    metrics["cosines"] = cosines(np.concatenate(before), np.concatenate(after))
    print(f"{figure.title} %: {metrics['before_percent']:.2f} before, {metrics['after_percent']:.2f} after; "
          f"{in_words(metrics['cosines'])}")  # fmt: skip
    return metrics


def _rank1_within(opened: EvalSet, embeddings: list[np.ndarray]) -> float:
    return leave_one_out(embeddings[0], opened.sides[0][0].identities)["rank1_percent"]


def _rank1_of_probes(opened: EvalSet, embeddings: list[np.ndarray]) -> float:
    names = [np.array(faces.identity_names)[faces.identities] for faces, _ in opened.sides]
    return probe_gallery(embeddings[0], names[0], embeddings[1], names[1])["rank1_percent"]


def _accuracy(opened: EvalSet, embeddings: list[np.ndarray]) -> float:
    pairs = opened.pairs
    scores = pair_scores(embeddings[0][pairs.first], embeddings[0][pairs.second])
    return ten_fold_verification(scores, pairs.genuine)["accuracy_percent"]


# Protocol -> what its main figure is called, and that figure in percent.
FIGURES: dict[str, tuple[str, Callable[[EvalSet, list[np.ndarray]], float]]] = {
    "leave_one_out": ("leave-one-out rank-1", _rank1_within),
    "probe_gallery": ("rank-1", _rank1_of_probes),
    "ten_fold_verification": ("accuracy", _accuracy),
}
