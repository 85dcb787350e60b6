"""Weights of other projects under IEFP's names: AdaFace's and CVLface's IR networks, face.evoLVe's, and MTLFace's.

All are IResNets (models/iresnet.py) under other names, MTLFace's with an attention before its output. Two things
differ: the first block's shortcut takes every other pixel where IResNet has a convolution and a BatchNorm, which are
set to do that; and AdaFace takes BGR, so that the first convolution's weights change places.
Source of names and order of layers: net.py of github.com/mk-minchul/AdaFace, models/iresnet/model.py of its CVLface,
backbone/aifr.py and python_package/mtlface/modules.py of github.com/Hzzone/MTLFace.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from meta import UserError

STEM = "input_layer.0.weight"  # by which these layouts are known
ENCODER = ("input_layer.", "body.", "block", "output_layer.", "fsm.")
OF_STEM = {"0": "conv1", "1": "bn1", "2": "prelu"}
OF_BLOCK = {"0": "bn1", "1": "conv1", "2": "bn2", "3": "prelu", "4": "conv2", "5": "bn3"}
OF_OUTPUT = {"0": "bn2", "3": "fc", "4": "features"}
BATCHNORM_EPSILON = 1e-5
# A pattern among the keys -> the network that has it, none of which is built here.
OTHERS = {
    r"res_layer\.(se_block|6)\.fc1\.weight$": "an IR-SE network, with squeeze and excitation",
    r"res_layer\.7\.weight$": "an IR network of 152 or 200 layers, with bottlenecks",
    r"(^|\.)(patch_embed|pos_embed|cls_token)\b": "a vision transformer",
    r"(^|\.)conv2d_1a\.conv\.weight$": "FaceNet's InceptionResnetV1",
    r"(^|\.)conv_6_dw\.conv\.weight$": "a MobileFaceNet",
}


def known_as(keys: Iterable[str]) -> str | None:
    """What network these keys are of, in words; None where it isn't known, or is built here."""
    keys = list(keys)
    return next((name for pattern, name in OTHERS.items() if any(re.search(pattern, key) for key in keys)), None)


def how_to_export(path: object, name: str) -> UserError:
    """For a file of a network that is known and isn't built here."""
    return UserError(
        f"{path} holds {name}, which is not built here: make ONNX of it with its own code, torch.onnx.export(model."
        "eval(), torch.zeros(1, 3, 112, 112), 'model.onnx', external_data=False), and give --weights model.onnx; "
        "AdaFace's and CVLface's take --onnx-input bgr, FaceNet's --onnx-input 160x160."
    )


def prefix_of(keys: Iterable[str]) -> str | None:
    """What stands before the names of such a network ("model.", "net.", "encoder.", ""); None where there is none."""
    return next((key.removesuffix(STEM) for key in keys if key == STEM or key.endswith(f".{STEM}")), None)


def converted(tensors: dict[str, Tensor], prefix: str, colours: str | None) -> tuple[dict[str, Tensor], str]:
    """The network after `prefix`, under the names of IResNet and taking RGB; and whose layout it is, in words.

    `colours` says what the network takes, "RGB" or "BGR", where that is known: else it is BGR for AdaFace's alone,
    whose last BatchNorm has no scale. Parts that are none of the encoder's are left out.
    """
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own = {key: value for key, value in own.items() if key.startswith(ENCODER)}
    names = _block_names(own)
    found = {_renamed(key, names): value for key, value in own.items()}
    whose = "MTLFace" if "fsm.channel.0.weight" in own else "face.evoLVe" if "features.weight" in found else "AdaFace"
    colours = colours or ("BGR" if whose == "AdaFace" else "RGB")
    stem, outputs = found["conv1.weight"], found.get("fc.bias", torch.zeros(0))
    if colours == "BGR":
        found["conv1.weight"] = stem.flip(1)
    if "layer1.0.downsample.0.weight" not in found:
        found |= _every_other_pixel(len(stem))
    # The BatchNorm at the end has no scale and no shift in AdaFace.
    found.setdefault("features.weight", torch.ones_like(outputs))
    found.setdefault("features.bias", torch.zeros_like(outputs))
    return found, f"{whose}'s layout, which takes {colours}"


def _block_names(own: dict[str, Tensor]) -> dict[str, str]:
    """body.7 and block2.0 -> layer2.0: a layer ends where the number of planes rises."""
    numbers = (re.match(r"((?:body|block[1-4])\.([0-9]{1,3}))\.res_layer\.1\.weight$", key) for key in own)
    found = sorted((match[1].split(".")[0], int(match[2])) for match in numbers if match)
    names, planes, layer, place = {}, 0, 0, 0
    for group, number in found:
        width = len(own[f"{group}.{number}.res_layer.1.weight"])
        layer, place = (layer, place + 1) if width == planes else (layer + 1, 0)
        planes, names[f"{group}.{number}"] = width, f"layer{layer}.{place}"
    return names


def _renamed(key: str, blocks: dict[str, str]) -> str:
    first, *rest = key.split(".")
    block = blocks.get(f"{first}.{rest[0]}") if rest else None
    if block is not None and len(rest) >= 4:
        kind, number, *end = rest[1:]
        if kind == "res_layer" and number in OF_BLOCK:
            return ".".join([block, OF_BLOCK[number], *end])
        if kind == "shortcut_layer":
            return ".".join([block, "downsample", number, *end])
    for name, layers in (("input_layer", OF_STEM), ("output_layer", OF_OUTPUT)):
        if first == name and len(rest) == 2 and rest[0] in layers:
            return f"{layers[rest[0]]}.{rest[1]}"
    return ".".join(["attention", *rest]) if first == "fsm" else key


def _every_other_pixel(planes: int) -> dict[str, Tensor]:
    """A shortcut of stride 2 that changes nothing else: a unit matrix, and a BatchNorm that divides by 1."""
    norm = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1 - BATCHNORM_EPSILON}
    tensors = {f"layer1.0.downsample.1.{name}": torch.full((planes,), value) for name, value in norm.items()}
    return tensors | {"layer1.0.downsample.0.weight": torch.eye(planes)[:, :, None, None]}
