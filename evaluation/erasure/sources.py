"""What purify.py purifies, a weight file or an ONNX model: it embeds pictures and is written anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.transforms import to_network_input
from meta import EMBEDDING_SIZE, IMAGE_SIZE, PIXEL_MEAN, PIXEL_SCALE, UserError
from models.erased_weights import add_erasure_to_onnx, erased_tensors, is_erased, is_erased_onnx
from models.erasure import Erasure
from models.export import example_images
from models.export_files import need, onnx_session, read_onnx, save_safetensors
from models.weights import (
    SAFETENSORS,
    describe_branches,
    load_for_embedding,
    model_fingerprint,
    read_weight_file,
)
from utils.distributed import DistInfo
from utils.files import same_name_beside, sha256, write_json

ONNX = ".onnx"
WEIGHT_SUFFIXES = (".pth", ".pt", SAFETENSORS)
PACKAGES = {ONNX: ("onnx", "onnxruntime"), SAFETENSORS: ("safetensors",)}
MAX_DIFFERENCE = 1e-5  # of erased features by the new file, as a share of the largest
NUM_CHECKED = 8  # pictures
PIXELS_INSIDE = (("Sub", "_minus"), ("Mul", "_mul"))  # of models from mxnet, among the first nodes
NUM_FIRST_NODES = 8
PICTURE = (3, IMAGE_SIZE, IMAGE_SIZE)


class Source(Protocol):
    """A model that has no erasure yet."""

    path: Path
    sha256: str
    size: int  # numbers in a feature
    has_age_branch: bool
    model: Any  # what evaluation.embeddings.extraction asks of a model
    of_model: dict[str, Any]  # what its features depend on beside the pictures

    def write(self, output: Path, erasure: Erasure, facts: dict[str, Any], images: Tensor) -> list[Path]:
        """Writes the model with the erasure, and a JSON file with `facts` beside it; returns their paths.

        The file takes its name when its features of `images`, uint8 (N, 3, 112, 112), are the erased ones.

        Raises:
            UserError: they are not.
        """
        ...


class WeightsSource:
    """Any weight file with an identity branch."""

    size = EMBEDDING_SIZE

    def __init__(self, path: Path, process: DistInfo):
        self.path, self.sha256 = path, sha256(path)
        self.model, self.has_age_branch = load_for_embedding(path)
        if is_erased(read_weight_file(path)):
            raise UserError(purified_already(path))
        self.of_model = {
            "model": model_fingerprint(self.sha256, self.model),
            "device": process.device.type,
            "torch": torch.__version__,
        }
        self.model.to(process.device)

    def write(self, output: Path, erasure: Erasure, facts: dict[str, Any], images: Tensor) -> list[Path]:
        weights = read_weight_file(self.path)
        tensors = erased_tensors(weights, erasure)
        branches = describe_branches(self.model)
        kept = {name: branches[name] for name in branches if getattr(weights, name) is not None}
        description = kept | {"disentangle": weights.disentangle, **facts}
        before = erasure(features_of(load_for_embedding(self.path)[0], images))
        with same_name_beside(output) as path:
            if path.suffix.lower() == SAFETENSORS:
                save_safetensors(tensors, path, {"branches": kept, **facts})
            else:
                torch.save(tensors, path)
            write_json(facts_path(path), description)  # the unit's sign may stand there alone
            check_same(output, features_of(load_for_embedding(path)[0], images), before)
        write_json(facts_path(output), description)
        return [output, facts_path(output)]


class OnnxSource:
    """An ONNX model with one picture input (N, 3, 112, 112) RGB and features (N, D) as its first output, on the CPU.

    Pixels go in as (pixel - 127.5) / 127.5, or as 0 to 255 where the model begins with that step, as InsightFace's
    models out of mxnet do. A batch that is fixed at 1 is kept to.
    """

    has_age_branch = False

    def __init__(self, path: Path, process: DistInfo):
        self.path, self.sha256 = path, sha256(path)
        proto = read_onnx(path)
        if is_erased_onnx(proto):
            raise UserError(purified_already(path))
        if any(entry.key == "made_by" and entry.value.startswith("export.py") for entry in proto.metadata_props):
            raise UserError(f"{path} was written by export.py: purify the weights it was made of, and export those.")
        self.model = OnnxNetwork(path, proto)
        self.size = features_of(self.model, example_images(1, torch.uint8)).shape[1]
        self.of_model = {"model": self.sha256, "device": "onnxruntime", "torch": torch.__version__}

    def write(self, output: Path, erasure: Erasure, facts: dict[str, Any], images: Tensor) -> list[Path]:
        proto = read_onnx(self.path)
        before = erasure(features_of(self.model, images))
        add_erasure_to_onnx(proto, erasure, json.dumps(facts))
        with same_name_beside(output) as path:
            path.write_bytes(proto.SerializeToString(deterministic=True))
            check_same(output, features_of(OnnxNetwork(path, proto), images), before)
        write_json(facts_path(output), facts)
        return [output, facts_path(output)]


class OnnxNetwork:
    """An ONNX file as the extraction asks for a model: pixels in [-1, 1] -> features."""

    def __init__(self, path: Path, proto: Any):
        weights = {one.name for one in proto.graph.initializer}
        inputs = [one for one in proto.graph.input if one.name not in weights]
        shape = [size.dim_value for one in inputs for size in one.type.tensor_type.shape.dim]
        # A size that is free is 0 here.
        fits = len(shape) == 4 and all(size in (0, wanted) for size, wanted in zip(shape[1:], PICTURE, strict=True))
        if len(inputs) != 1 or not fits:
            raise UserError(f"{path} has {len(inputs)} inputs of sizes {shape}: only one of (N, 3, {IMAGE_SIZE}, "
                            f"{IMAGE_SIZE}) is known.")  # fmt: skip
        names = [node.name for node in proto.graph.node[:NUM_FIRST_NODES]]
        self.takes_bytes = all(any(name.startswith(begins) for name in names) for begins in PIXELS_INSIDE)
        self.one_at_a_time = shape[0] == 1
        self.path, self.name, self.run = path, inputs[0].name, onnx_session(path)

    def identity_features(self, images: Tensor) -> Tensor:
        pixels = images.cpu().numpy()
        if self.takes_bytes:
            pixels = pixels * np.float32(PIXEL_SCALE) + np.float32(PIXEL_MEAN)
        step = 1 if self.one_at_a_time else len(pixels)
        parts = [self.run({self.name: np.ascontiguousarray(pixels[i : i + step])})[0]
                 for i in range(0, len(pixels), step)]  # fmt: skip
        features = np.concatenate(parts)
        if features.ndim != 2 or features.dtype != np.float32:
            raise UserError(f"{self.path} gives {features.dtype} of shape {features.shape}: float32 (N, D) is needed.")
        return torch.from_numpy(features)


SOURCES = {ONNX: OnnxSource}  # by suffix; all others are weight files


def open_source(path: Path, process: DistInfo) -> Source:
    """Reads what is to be purified.

    Raises:
        UserError: it can't be read, has no identity branch, or is purified already.
    """
    return SOURCES.get(path.suffix.lower(), WeightsSource)(path, process)


def check_suffixes(weights: Path, output: Path) -> None:
    """Raises UserError where the new file is to be of another kind than the old one."""
    of_weights, of_output = (path.suffix.lower() for path in (weights, output))
    allowed = (ONNX,) if of_weights == ONNX else WEIGHT_SUFFIXES
    if of_output not in allowed:
        raise UserError(f"-o {output} does not end in {' or '.join(allowed)}, as what {weights} becomes does: give it "
                        f"such a name.")  # fmt: skip
    need(*PACKAGES.get(of_output, ()))


def facts_path(output: Path) -> Path:
    """The JSON file beside, where models.weights looks for the description that a .pth file lacks."""
    return output.with_suffix(".json") if output.suffix in (".pth", ".pt") else Path(f"{output}.json")


def purified_already(path: Path) -> str:
    return f"{path} is purified already, and a second time would take more than the age: give what it was made of."


@torch.inference_mode()
def features_of(model: Any, images: Tensor) -> np.ndarray:
    """Features (N, D) of uint8 images (N, 3, 112, 112), on the CPU."""
    return model.identity_features(to_network_input(images)).numpy()


def check_same(path: Path, found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference <= MAX_DIFFERENCE:
        raise UserError(f"{path} would give other features than the erased ones (by {difference:.1g} of the largest, "
                        f"{MAX_DIFFERENCE:g} is allowed): its weights are out of the usual range.")  # fmt: skip
