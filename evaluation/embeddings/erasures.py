"""What is known of the erasure of age in a model (purify.py): how much went, and what it was fitted to."""

import json
from pathlib import Path
from typing import Any

from models.erased_weights import ONNX_MARK, erased_rank
from models.iefp import IEFP
from models.weights import read_description


def facts_path(path: Path) -> Path:
    """The JSON file beside, which says what an erasure was fitted to.

    It is where models.weights looks for the description that a .pth file lacks.
    """
    return path.with_suffix(".json") if path.suffix in (".pth", ".pt") else Path(f"{path}.json")


def describe_erasure(model: IEFP, path: Path) -> dict[str, Any] | None:
    """The rank of the erasure in a model's identity branch, and what the JSON file beside its weights says of it.

    None where nothing is erased.

    Raises:
        UserError: the file beside is no JSON.
    """
    rank = erased_rank(model.state_dict())
    if rank == 0:
        return None
    facts = read_description(path, facts_path(path)).get("erasure")
    return (facts if isinstance(facts, dict) else {}) | {"rank": rank}


def erasure_in_onnx(model: Any) -> dict[str, Any] | None:
    """What the metadata of an ONNX model (onnx.ModelProto) say of its erasure, None where it has none."""
    text = next((entry.value for entry in model.metadata_props if entry.key == ONNX_MARK), None)
    if text is None:
        return None
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = {}
    return facts if isinstance(facts, dict) else {}
