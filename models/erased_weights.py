"""Weight files and ONNX models with an erasure of age (models/erasure.py) in them.

Without a purification unit the erasure is folded into the linear layer before the features, so that the file keeps its
form; with one it is a linear layer of its own behind it. An ONNX model gets a Gemm at its end.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meta import UserError
from models.erasure import Erasure
from models.export_files import need
from models.weights import ERASURE, WeightFile

FC, NORM = "backbone_id.fc.", "backbone_id.features."
BATCHNORM_EPSILON = 1e-5
# Singular values of a linear layer, as a share of the largest: those of an erasure are rounding (1e-7 in float32).
RANK_TOLERANCE = 1e-5
ONNX_MARK = "age_erasure"  # in a model's metadata
ONNX_NAMES = ("age_erasure.weight", "age_erasure.bias", "features_before_age_erasure")
MIN_GEMM_OPSET = 7  # before, Gemm spelled broadcasting out


def is_erased(weights: WeightFile) -> bool:
    """Whether the identity branch has an erasure already."""
    return ERASURE + "weight" in weights.tensors or erased_rank(weights.tensors) > 0


def erased_rank(tensors: Mapping[str, Tensor]) -> int:
    """How many directions an erasure has taken from the identity branch, 0 without one; tensors under IEFP's names.

    One that is folded into the linear layer shows in what it leaves: a BatchNorm that does nothing behind a layer
    without full rank.
    """
    idle = {"running_mean": 0, "running_var": 1, "weight": 1, "bias": 0}
    rows = tensors.get(ERASURE + "weight")
    if rows is None and all((tensors[NORM + name] == value).all() for name, value in idle.items()):
        rows = tensors[FC + "weight"]
    if rows is None or not rows.isfinite().all():
        return 0
    rows = rows.double()
    squares = torch.linalg.eigvalsh(rows @ rows.T)  # of the singular values, ascending
    return int((squares < RANK_TOLERANCE**2 * squares[-1]).sum())


def erased_tensors(weights: WeightFile, erasure: Erasure) -> dict[str, Tensor]:
    """All tensors of a file with the erasure in its identity branch, under the file's own names.

    Those of a critic, as CLUB is one, are left out: they know the features before.
    """
    tensors = {key: value for key, value in weights.tensors.items() if not key.startswith(("clubmi.", "critic."))}
    if weights.identity_branch.purification == 0:
        changed = folded(tensors, erasure)
    else:
        weight, bias = as_layer(erasure)
        changed = {ERASURE + "weight": weight, ERASURE + "bias": bias}
    tensors |= {key: value.to(torch.float32) for key, value in changed.items()}
    return {key.removeprefix("backbone_id.") if weights.is_bare else key: value for key, value in tensors.items()}


def as_layer(erasure: Erasure) -> tuple[Tensor, Tensor]:
    """Weight (D, D) and bias (D,) of the linear layer that does the same, in float64."""
    projection = torch.from_numpy(erasure.projection)
    return projection, -projection @ torch.from_numpy(erasure.mean)


def folded(tensors: Mapping[str, Tensor], erasure: Erasure) -> dict[str, Tensor]:
    """Linear layer and BatchNorm that together give P (BN(W x + b) - mean): the BatchNorm does nothing. In float64."""
    projection, mean = torch.from_numpy(erasure.projection), torch.from_numpy(erasure.mean)
    norm = {name: tensors[NORM + name].double() for name in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / (norm["running_var"] + BATCHNORM_EPSILON).sqrt()
    shift = norm["bias"] - scale * norm["running_mean"] - mean
    # An idle BatchNorm still divides by the root of 1 + epsilon.
    projection = projection * (1 + BATCHNORM_EPSILON) ** 0.5
    return {
        FC + "weight": projection @ (scale[:, None] * tensors[FC + "weight"].double()),
        FC + "bias": projection @ (scale * tensors[FC + "bias"].double() + shift),
        NORM + "weight": torch.ones_like(scale),
        NORM + "bias": torch.zeros_like(scale),
        NORM + "running_mean": torch.zeros_like(scale),
        NORM + "running_var": torch.ones_like(scale),
    }


# ---------------------------------------------------------------------------------------------------------- ONNX


def add_erasure_to_onnx(model: Any, erasure: Erasure, output: str, metadata: dict[str, str]) -> None:
    """Adds a Gemm behind the `output` (N, D), whose name stays and which is float32 then; and the `metadata`.

    Raises:
        UserError: the model is older than Gemm as it is known today.
    """
    onnx, helper = need("onnx", "onnx.helper")
    graph, (weight_name, bias_name, before) = model.graph, ONNX_NAMES
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_GEMM_OPSET:
        raise UserError(f"the ONNX model has opset {opset}, at least {MIN_GEMM_OPSET} is needed: export it anew.")
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == output:
                    names[place] = before
    arrays = {weight_name: erasure.projection, bias_name: -erasure.projection @ erasure.mean}
    for name, array in arrays.items():
        graph.initializer.append(onnx.numpy_helper.from_array(array.astype("float32"), name))
    described = next(one for one in graph.output if one.name == output).type.tensor_type
    steps: list[tuple[str, dict[str, int]]] = []
    if described.elem_type != onnx.TensorProto.FLOAT:  # a network in half precision
        steps.append(("Cast", {"to": onnx.TensorProto.FLOAT}))
    if len(described.shape.dim) != 2:  # (N, D, 1, 1), or not said
        steps.append(("Flatten", {}))
    for kind, how in steps:
        after = f"{ONNX_MARK}.{kind.lower()}"
        graph.node.append(helper.make_node(kind, [before], [after], after, **how))
        before = after
    graph.node.append(helper.make_node("Gemm", [before, weight_name, bias_name], [output], ONNX_MARK, transB=1))
    described.elem_type = onnx.TensorProto.FLOAT
    if described.HasField("shape"):
        del described.shape.dim[2:]
    kept = [entry for entry in model.metadata_props if entry.key not in metadata]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
