"""What purify.py purifies, a weight file or an ONNX model: it embeds pictures and is written anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.transforms import to_network_input
from evaluation.embeddings.erasures import erasure_in_onnx, facts_path
from evaluation.embeddings.networks import Network, is_onnx, open_network
from meta import UserError
from models.erased_weights import ONNX_MARK, add_erasure_to_onnx, erased_tensors, is_erased
from models.erasure import Erasure
from models.export_files import need, read_onnx, save_safetensors
from models.others.onnx_network import INPUT_KEY, OnnxNetwork
from models.weights import ONNX, SAFETENSORS, describe_branches, load_for_embedding, read_weight_file
from utils.distributed import DistInfo
from utils.files import same_name_beside, write_json

WEIGHT_SUFFIXES = (".pth", ".pt", SAFETENSORS)
PACKAGES = {ONNX: ("onnx", "onnxruntime"), SAFETENSORS: ("safetensors",)}
MAX_DIFFERENCE = 1e-5  # of erased features by the new file, as a share of the largest
MAX_DIFFERENCE_IN_HALF = 2e-3  # two units in the last place of half precision
NUM_CHECKED = 8  # pictures


class Source(Protocol):
    """A model that has no erasure yet."""

    network: Network

    def write(self, output: Path, erasure: Erasure, facts: dict[str, Any], images: Tensor) -> list[Path]:
        """Writes the model with the erasure, and a JSON file with `facts` beside it; returns their paths.

        The file takes its name when its features of `images`, uint8 (N, 3, 112, 112), are the erased ones.

        Raises:
            UserError: they are not.
        """
        ...


class WeightsSource:
    """Any weight file with an identity branch."""

    def __init__(self, network: Network):
        self.network = network
        if is_erased(read_weight_file(network.path)):
            raise UserError(purified_already(network.path))

    def write(self, output: Path, erasure: Erasure, facts: dict[str, Any], images: Tensor) -> list[Path]:
        weights = read_weight_file(self.network.path)
        tensors = erased_tensors(weights, erasure)
        branches = describe_branches(self.network.model)
        kept = {name: branches[name] for name in branches if getattr(weights, name) is not None}
        description = kept | {"disentangle": weights.disentangle, **facts}
        before = erasure(features_of(load_for_embedding(self.network.path)[0], images))
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
    """An ONNX model with features (N, D); how pictures go into it stays written in its metadata."""

    def __init__(self, network: Network):
        self.network, path = network, network.path
        proto = read_onnx(path)
        if erasure_in_onnx(proto) is not None:
            raise UserError(purified_already(path))
        if any(entry.key == "made_by" and entry.value.startswith("export.py") for entry in proto.metadata_props):
            raise UserError(f"{path} was written by export.py: purify the weights it was made of, and export those.")

    def write(self, output: Path, erasure: Erasure, facts: dict[str, Any], images: Tensor) -> list[Path]:
        model: OnnxNetwork = self.network.model
        proto, taken = read_onnx(self.network.path), model.taken.text()
        before = erasure(features_of(model, images))
        add_erasure_to_onnx(proto, erasure, model.output, {INPUT_KEY: taken, ONNX_MARK: json.dumps(facts["erasure"])})
        with same_name_beside(output) as path:
            path.write_bytes(proto.SerializeToString(deterministic=True))
            check_same(output, features_of(open_network(path, self.network.process, taken).model, images), before,
                       MAX_DIFFERENCE_IN_HALF if model.in_half else MAX_DIFFERENCE)  # fmt: skip
        write_json(facts_path(output), {"input": taken, **facts})
        return [output, facts_path(output)]


def open_source(path: Path, process: DistInfo, onnx_input: str | None = None) -> Source:
    """Reads what is to be purified.

    Raises:
        UserError: it can't be read, has no identity branch, or is purified already.
    """
    kind = OnnxSource if is_onnx(path) else WeightsSource
    return kind(open_network(path, process, onnx_input))


def check_suffixes(weights: Path, output: Path) -> None:
    """Raises UserError where the new file is to be of another kind than the old one."""
    of_weights, of_output = (path.suffix.lower() for path in (weights, output))
    allowed = (ONNX,) if of_weights == ONNX else WEIGHT_SUFFIXES
    if of_output not in allowed:
        raise UserError(f"-o {output} does not end in {' or '.join(allowed)}, as what {weights} becomes does: give it "
                        f"such a name.")  # fmt: skip
    need(*PACKAGES.get(of_output, ()))


def purified_already(path: Path) -> str:
    return f"{path} is purified already, and a second time would take more than the age: give what it was made of."


@torch.inference_mode()
def features_of(model: Any, images: Tensor) -> np.ndarray:
    """Features (N, D) of uint8 images (N, 3, 112, 112), on the CPU."""
    return model.identity_features(to_network_input(images)).numpy()


def check_same(path: Path, found: np.ndarray, expected: np.ndarray, allowed: float = MAX_DIFFERENCE) -> None:
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference <= allowed:
        raise UserError(f"{path} would give other features than the erased ones (by {difference:.1g} of the largest, "
                        f"{allowed:g} is allowed): its weights are out of the usual range.")  # fmt: skip
