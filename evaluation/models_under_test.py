"""The models that test.py tests: weight files, which embed pictures, and files of other models' embeddings."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from data.benchmarks import short_names
from data.check.image_scan import check_shapes
from data.faces import Faces
from data.loaders import batches, evaluation_loader
from data.transforms import to_network_input
from evaluation.embeddings.cache import EmbeddingCache
from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.embeddings.extraction import Extracted, extract
from evaluation.embeddings.feature_files import match_names, read_features
from evaluation.embeddings.networks import open_network
from evaluation.protocols import join_views
from meta import UserError
from models.iefp import IEFP
from models.weights import load_estimator
from utils.cli import CHECK_PATH
from utils.distributed import DistInfo, gather_lists, print_rank0
from utils.files import sha256

DISTRACTORS_A_PIECE = 20_000  # embedded at once: 80 MB of features
T = TypeVar("T")


@dataclass(frozen=True)
class Extraction:
    """How pictures are embedded."""

    batch_size: int
    workers: int
    cache_folder: Path | None  # None: embeddings are not cached
    assume_aligned: bool = False


class WeightsModel:
    """A weight file or an ONNX model: embeds pictures, or takes their cached embeddings."""

    def __init__(self, path: Path, name: str, extraction: Extraction, process: DistInfo, onnx_input: str | None = None):
        self.name, self.extraction, self.process = name, extraction, process
        self.network = network = open_network(path, process, onnx_input)
        self.model, self.has_age_branch = network.model, network.has_age_branch
        has_estimator = self.has_age_branch and load_estimator(self.model, path)
        for sentence in network.remarks:
            print_rank0(process, sentence)
        if not self.has_age_branch:
            print_rank0(process, f"{path} holds no age branch: age errors are left out")
        self.mutual_information = estimator_of(self.model, process.device) if has_estimator else None
        self.description = {
            "weights": str(path),
            "sha256": network.sha256,
            "model_fingerprint": network.fingerprint,
            **network.described,
        }
        self.of_model = network.of_model  # what embeddings depend on beside the pictures
        folder = extraction.cache_folder
        self.cache = None if folder is None else EmbeddingCache(folder, functools.partial(print_rank0, process))

    def embed(self, faces: Faces, what: str) -> Extracted | None:
        """The embeddings; None in processes that need none, when the first one has them in its cache."""
        process, cache = self.process, self.cache if self.process.is_first else None
        pictures = in_step(faces.state if cache else nothing, process)
        cached = None if cache is None else cache.load(self.of_model, pictures, len(faces))
        if any(gather_lists([cached is not None], process)):
            return cached
        extracted = extract(
            self.model,
            batches(self._loader(faces)),
            len(faces),
            process,
            to_network_input,
            with_age=self.has_age_branch,
            what=what,
            size=self.network.size,
        )
        if cache is not None:
            cache.save(self.of_model, pictures, extracted)
        return extracted

    def embed_distractors(self, faces: Faces) -> np.ndarray | None:
        """Joined embeddings (M, 2 D) of the distractors' pictures, piece by piece into a file where there is a cache.

        None in the processes beside the first, which do not score.
        """
        process, cache = self.process, self.cache if self.process.is_first else None
        if not self.extraction.assume_aligned:
            in_step(lambda: check_shapes(faces, functools.partial(print_rank0, process)), process)
        shape, what = (len(faces), 2 * self.network.size), f"distractors, {self.name}"
        pictures = in_step(faces.state if cache else nothing, process)
        describes = self.of_model | {"pictures": pictures, "join": ANALYSED_JOIN}
        cached = None if cache is None else cache.load_array(describes)
        if any(gather_lists([cached is not None], process)):
            return cached
        if cache is not None:
            place = cache.new_array(describes, shape)
        else:
            place = contextlib.nullcontext(np.empty(shape, np.float32) if process.is_first else None)
        with place as joined:
            self._fill(joined, faces, what)
        return joined

    def _fill(self, joined: np.ndarray | None, faces: Faces, what: str) -> None:
        for start in range(0, len(faces), DISTRACTORS_A_PIECE):
            rows = range(start, min(start + DISTRACTORS_A_PIECE, len(faces)))
            of_piece = (batch._replace(indices=batch.indices - start) for batch in batches(self._loader(faces, rows)))
            extracted = extract(
                self.model, of_piece, len(rows), self.process, to_network_input,
                with_age=False, what=what, with_grey=False, size=self.network.size,
            )  # fmt: skip
            if joined is not None:
                joined[rows.start : rows.stop] = join_views(extracted.original, extracted.mirror, ANALYSED_JOIN)

    def _loader(self, faces: Faces, rows: range | None = None) -> torch.utils.data.DataLoader:
        extraction, process = self.extraction, self.process
        pin_memory = process.device.type == "cuda"
        return evaluation_loader(
            faces, extraction.batch_size, extraction.workers, pin_memory,
            rank=process.rank, world_size=process.world_size, indices=rows,
        )  # fmt: skip


def estimator_of(model: IEFP, device: torch.device) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """The model's CLUB for arrays: age and identity features (B, 512) and a permutation (B,) -> the estimate."""

    @torch.inference_mode()
    def mutual_information(age: np.ndarray, identity: np.ndarray, permutation: np.ndarray) -> float:
        arrays = (age.astype(np.float32), identity.astype(np.float32), permutation)
        return float(model.clubmi.mutual_information(*(torch.from_numpy(array).to(device) for array in arrays)))

    return mutual_information


class FeaturesModel:
    """A file of another model's embeddings: nothing of that model runs here."""

    mutual_information = None

    def __init__(self, path: Path, name: str, process: DistInfo):
        self.name, self.path, self.process = name, path, process
        self.features = read_features(path)
        digest, made_by = digest_of(path), self.features.made_by or {}
        fingerprint = str(made_by.get("model_fingerprint") or digest)
        self.description = {"embeddings": str(path), "sha256": digest, "model_fingerprint": fingerprint}
        if self.features.not_read:
            print_rank0(process, f"{path}: not read: {', '.join(self.features.not_read)}")

    def embed(self, faces: Faces, what: str) -> Extracted:
        features, matched = self.features, match_names(self.features.names, faces, str(self.path))
        if matched.num_by_base_name:
            print_rank0(
                self.process, f"{what}: {matched.num_by_base_name:,} pictures found in {self.path} by base name alone"
            )
        original = np.asarray(features.embeddings[matched.rows], np.float32)
        # Without a mirror image both joins of a view with itself have the cosines of the view.
        mirror = original if features.mirror is None else np.asarray(features.mirror[matched.rows], np.float32)
        ages = None if features.age_probabilities is None else features.age_probabilities[matched.rows]
        return Extracted(original, mirror, ages, ages, grey_pixels=None)

    def embed_distractors(self, faces: Faces) -> np.ndarray:
        raise UserError(f"--distractors holds pictures, which {self.path} can't embed: give their features.")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of those of all .bin files in a folder, in order."""
    if path.is_file():
        return sha256(path)
    names = sorted(one for one in path.rglob("*") if one.suffix.lower() == ".bin")
    return hashlib.sha256("".join(map(sha256, names)).encode()).hexdigest()


Model = WeightsModel | FeaturesModel


def open_models(
    weights: Sequence[Path], embeddings: Sequence[Path], extraction: Extraction, process: DistInfo,
    onnx_input: str | None = None,
) -> list[Model]:  # fmt: skip
    """Weight files and ONNX models, and then files of embeddings, by names that differ."""
    names = short_names((*weights, *embeddings))
    models: list[Model] = [
        WeightsModel(path, name, extraction, process, onnx_input) for path, name in zip(weights, names, strict=False)
    ]
    return models + [
        FeaturesModel(path, name, process) for path, name in zip(embeddings, names[len(weights) :], strict=True)
    ]


# -------------------------------------------------------------------------------------------------- all or no process


def in_step(work: Callable[[], T], process: DistInfo) -> T:
    """What `work` returns; where it fails in one process, all of them raise its error: none waits for another one.

    Raises:
        UserError: also for a file that can't be read.
    """
    result, failures = None, []
    try:
        result = work()
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except UserError as error:
        failures.append(str(error))
    except OSError as error:
        failures.append(f"{error}: {CHECK_PATH}")
    failures = gather_lists(failures, process)
    if failures:
        raise UserError(failures[0])
    return result


def nothing() -> None:
    """The work of a process that takes no part in a step."""
