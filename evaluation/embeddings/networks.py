"""A network that embeds pictures, out of a weight file or an ONNX model: one way to open either, for all scripts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.alignment.template import TEMPLATE
from evaluation.embeddings.erasures import describe_erasure, erasure_in_onnx
from evaluation.embeddings.extraction import TwoBranches
from meta import EMBEDDING_SIZE, IMAGE_SIZE, PREPROCESSING, UserError
from models.export_files import need, read_onnx
from models.others.onnx_network import OnnxNetwork, read_picture_input
from models.weights import ONNX, load_for_embedding, model_fingerprint, read_description
from utils.distributed import DistInfo
from utils.files import sha256

FACE, BACKGROUND = 170, 90  # grey values of the probe
POINT = 3  # pixels from the middle of a point to its edge


@dataclass(frozen=True)
class Network:
    """A network that is ready to embed, and what is known of it."""

    path: Path
    sha256: str  # of the file
    fingerprint: str  # of all that its features depend on beside the pictures
    process: DistInfo
    model: TwoBranches  # or OnnxNetwork, which has no age branch
    size: int  # numbers in a feature
    has_age_branch: bool
    described: dict[str, Any]  # JSON-ready, for results
    remarks: tuple[str, ...]  # sentences on what was taken, and on what looks wrong
    runs_by: dict[str, str]  # what does the arithmetic

    @property
    def of_model(self) -> dict[str, Any]:
        """What cached features of it are known by."""
        return {"model": self.fingerprint} | self.runs_by


def is_onnx(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ONNX


def check_onnx_input(asked: str | None, weights: tuple[Path, ...]) -> None:
    """Raises UserError for --onnx-input where none of the weights is an ONNX model."""
    if asked is not None and not any(map(is_onnx, weights)):
        raise UserError("--onnx-input does nothing, for none of the --weights ends in .onnx: leave it out.")


def open_network(path: Path, process: DistInfo, onnx_input: str | None = None) -> Network:
    """The network of a weight file or, by its suffix, of an ONNX model; on the device of `process`.

    Raises:
        UserError: no such file, one without an identity branch, or an ONNX model that gives no features of a face.
    """
    return _open_onnx(path, process, onnx_input) if is_onnx(path) else _open_weights(path, process)


def _open_weights(path: Path, process: DistInfo) -> Network:
    model, has_age_branch = load_for_embedding(path)
    digest, layout = sha256(path), model.backbone_id.layout
    runs_by = {"device": process.device.type, "torch": torch.__version__}
    erasure = describe_erasure(model, path)
    model.to(process.device)
    return Network(
        path, digest, model_fingerprint(digest, model), process, model, EMBEDDING_SIZE, has_age_branch,
        described={"backbone": model.backbone_id.backbone, "purification": model.backbone_id.purification}
        | ({"layout": layout} if layout else {})
        | ({} if erasure is None else {"erasure": erasure}),
        remarks=(f"{path}: {model.backbone_id.backbone} in {layout}",) if layout else (), runs_by=runs_by,
    )  # fmt: skip


def _open_onnx(path: Path, process: DistInfo, onnx_input: str | None) -> Network:
    (ort,) = need("onnxruntime")
    proto = read_onnx(path)
    taken = read_picture_input(str(path), proto, read_description(path, Path(f"{path}.json")), onnx_input)
    model = OnnxNetwork(str(path), proto, taken, template_picture(), process.device)
    digest, erasure = sha256(path), erasure_in_onnx(proto)
    how = {key: value for key, value in asdict(taken).items() if key != "said_by"} | {"output": model.output}
    fingerprint = hashlib.sha256(
        json.dumps({"onnx": digest, "input": how, "pixels": PREPROCESSING}, sort_keys=True).encode()
    ).hexdigest()
    return Network(
        path, digest, fingerprint, process, model, model.size, has_age_branch=False,
        described={"onnx_input": how | {"text": taken.text(), "said_by": list(taken.said_by)},
                   "embedding_size": model.size, "provider": model.provider}
        | ({} if erasure is None else {"erasure": erasure}),
        remarks=tuple(model.sentences()),
        runs_by={"device": model.provider, "torch": torch.__version__, "onnxruntime": ort.__version__},
    )  # fmt: skip


def template_picture() -> Tensor:
    """uint8 (1, 3, 112, 112): dark points at the five places of an aligned face, on an oval left of the middle.

    Its mirror image is another picture, as that of a face is.
    """
    y, x = torch.meshgrid(torch.arange(IMAGE_SIZE), torch.arange(IMAGE_SIZE), indexing="ij")
    oval = ((x - 54) / 40) ** 2 + ((y - 62) / 52) ** 2 < 1
    grey = torch.where(oval, FACE, BACKGROUND) + x // 8
    for left, top in TEMPLATE.tolist():
        grey[(x - left) ** 2 + (y - top) ** 2 < POINT**2] = 20
    colours = torch.stack([grey, (grey * 0.8).long(), (grey * 0.7).long()])
    return colours.to(torch.uint8)[None]
