"""Weight files -> model: the released IEFP and age files, InsightFace backbones, and what train.py writes.

Files are read with `weights_only=True`, or as safetensors: nothing in them is executed. Backbone and purification are
inferred from keys and shapes. The sign of a purification unit, which doesn't show there, comes from the JSON file of
the same name that train.py writes beside its weights, from "branches" in a checkpoint, or from the metadata of a
.safetensors file. An erasure of age that follows the unit (purify.py) has keys of its own, `backbone_id.erasure.*`.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meta import EMBEDDING_SIZE, IMAGE_SIZE, PIXEL_MEAN, PIXEL_SCALE, PREPROCESSING, WEIGHT_FILES, UserError
from models.iefp import AGE_PREFIXES, IEFP
from models.iresnet import BACKBONES
from models.others import layouts
from models.others.age_attention import AgeAttention
from models.purification import formula, parse_purification
from models.weight_archives import MAX_DESCRIPTION, is_torch_archive, read_archive, read_safetensors, reason, shown
from utils.wrong_files import wrong_file

ACCEPTED = (
    "Accepted are: the released IEFP file, the released age file, an InsightFace iresnet backbone.pth, AdaFace's and "
    "MTLFace's IR networks, iefp.pth, age.pth and checkpoints written by train.py, and .safetensors files written by "
    "export.py; test.py, embed.py and purify.py take ONNX models (.onnx) too."
)
SAFETENSORS, ONNX = ".safetensors", ".onnx"
ERASURE, ATTENTION = "backbone_id.erasure.", "backbone_id.attention."
MAX_NAMED = 3  # keys named in an error


@dataclass(frozen=True)
class Branch:
    """The architecture of one branch, inferred from a file."""

    backbone: str
    purification: int | str


@dataclass(frozen=True)
class WeightFile:
    """A weight file read: tensors under IEFP's names, and the branches it holds (None where it has none)."""

    path: Path
    tensors: dict[str, Tensor]
    identity_branch: Branch | None
    age_branch: Branch | None
    layout: str = ""  # whose layout it has, in words, where it is another project's
    disentangle: str = "iefp"  # the method that trained it, if the file or the JSON file beside it states one
    is_bare: bool = False  # an InsightFace backbone.pth, in whose names there is no "backbone_id."


def load_identity_branch(model: IEFP, path: str | Path) -> None:
    """Loads the identity branch of a weight file into `model`; margin weights are not needed.

    Raises:
        UserError: no such file, not a weight file, no identity branch in it, or one that does not fit `model`.
    """
    _load_branch(model, read_weight_file(path), "identity")


def load_age_branch(model: IEFP, path: str | Path) -> None:
    """Loads the age encoder and the age estimator of a weight file into `model`.

    Raises:
        UserError: no such file, not a weight file, no age branch in it, or one that does not fit `model`.
    """
    _load_branch(model, read_weight_file(path), "age")


def load_for_ages(path: str | Path) -> IEFP:
    """A model in eval mode with the age branch of a file, and its head for years where the file has one.

    Raises:
        UserError: no such file, not a weight file, or no age branch in it.
    """
    weights = read_weight_file(path)
    if weights.age_branch is None:
        raise _lacks(weights, "age")
    age = weights.age_branch
    model = IEFP(age.backbone, age.purification, None, year_head="year_head.weight" in weights.tensors)
    _load_branch(model, weights, "age")
    return model.freeze_age_branch().eval()


def load_what_fits(model: IEFP, path: str | Path, prefixes: tuple[str, ...]) -> str:
    """Loads those tensors of a weight file into `model` whose name and shape fit; returns a sentence on the others.

    Only names that start with one of `prefixes` are looked at.

    Raises:
        UserError: no such file, not a weight file, or nothing in it fits.
    """
    expected = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    found = {key: value for key, value in read_weight_file(path).tensors.items() if key.startswith(prefixes)}
    head, whole = model.margin_fc, found.get("margin_fc.weight")
    if head is not None and whole is not None and len(whole) == head.num_identities:
        found["margin_fc.weight"] = whole[head.own.start : head.own.stop]
    fitting = {key: value for key, value in found.items() if key in expected and value.shape == expected[key].shape}
    if not fitting:
        raise UserError(f"nothing in {path} fits this model: its backbone or stage must be another. {ACCEPTED}")
    model.load_state_dict(fitting, strict=False)
    new = [key for key in expected if key not in fitting]
    unused = [key for key in found if key not in fitting]
    is_erased = any(key.startswith(ERASURE) for key in unused)
    return (
        f"{path}: {len(fitting)} of {len(expected)} tensors taken; {len(new)} start new ({_first(new) or 'none'}); "
        f"{len(unused)} of the file not used ({_first(unused) or 'none'})"
        f"{'; training starts before the erasure of age: purify.py makes a new one afterwards' * is_erased}"
    )


def load_for_embedding(path: str | Path) -> tuple[IEFP, bool]:
    """A model in eval mode with the architecture of the file, and whether the file has an age branch (else untrained).

    Raises:
        UserError: no such file, not a weight file, or no identity branch in it.
    """
    weights = read_weight_file(path)
    if weights.identity_branch is None:
        raise _lacks(weights, "identity")
    identity, age = weights.identity_branch, weights.age_branch or weights.identity_branch
    model = IEFP(
        identity.backbone,
        identity.purification,
        num_identities=None,
        age_backbone=age.backbone,
        age_purification=age.purification,
    )
    _load_branch(model, weights, "identity")
    if weights.age_branch is not None:
        _load_branch(model, weights, "age")
    return model.freeze_age_branch().eval(), weights.age_branch is not None


def load_estimator(model: IEFP, path: str | Path) -> bool:
    """Loads the file's CLUB estimator into `model`, in eval mode; False where the file holds none that fits.

    False too if CLUB was not trained: the file is of another method, or no batch has passed its BatchNorm. The
    published layout holds its tensors all the same.
    """
    weights = read_weight_file(path)
    found = {key: value for key, value in weights.tensors.items() if key.startswith("clubmi.")}
    batches_seen = [value for key, value in found.items() if key.endswith("num_batches_tracked")]
    if weights.disentangle != "iefp" or (batches_seen and not any(map(torch.count_nonzero, batches_seen))):
        return False
    expected = {key: value for key, value in model.state_dict().items() if key.startswith("clubmi.")}
    # BatchNorm's counters may be missing; nothing reads them.
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    if any(key not in found or found[key].shape != expected[key].shape for key in needed):
        return False
    model.load_state_dict({key: found[key] for key in expected if key in found}, strict=False)
    model.clubmi.eval()
    return True


def read_weight_file(path: str | Path) -> WeightFile:
    """Reads any accepted weight file.

    Raises:
        UserError: no such file, unreadable, holding anything but tensors, or of an unknown kind.
    """
    path = Path(path)
    content = _read_content(path)
    found = _find_tensors(path, content)
    config, inside = content.get("config"), content.get("branches")
    described = inside if isinstance(inside, dict) else read_description(path, path.with_suffix(".json"))
    tensors, layout = _rename(path, found, described)
    method = config if isinstance(config, dict) else described
    branches = {}
    for name, prefix in (("identity_branch", "backbone_id."), ("age_branch", "backbone_ae.")):
        keys = {key.removeprefix(prefix): value.shape for key, value in tensors.items() if key.startswith(prefix)}
        branches[name] = _read_branch(path, keys, described.get(name)) if keys else None
    is_bare = not found.keys() & tensors.keys() and branches["identity_branch"] is not None
    return WeightFile(
        path, tensors, **branches, layout=layout, disentangle=str(method.get("disentangle", "iefp")), is_bare=is_bare
    )


def age_file_tensors(model: IEFP) -> dict[str, Tensor]:
    """The age branch in the layout of the released age file, on the CPU: `backbone.*`, `age_estimator.*`.

    A model with a head for years adds `year_head.*`, which readers of the released layout can ignore.
    """
    tensors = {f"backbone.{key}": value for key, value in model.backbone_ae.state_dict().items()}
    tensors |= {f"age_estimator.{key}": value for key, value in model.age_estimator.state_dict().items()}
    if model.year_head is not None:
        tensors |= {f"year_head.{key}": value for key, value in model.year_head.state_dict().items()}
    return _portable(tensors)


def iefp_file_tensors(model: IEFP) -> dict[str, Tensor]:
    """The model in the layout of the released IEFP file (without its `module.` prefix), on the CPU.

    Of critics only CLUB belongs to it.
    """
    return _portable({key: value for key, value in model.state_dict().items() if not key.startswith("critic.")})


def describe_branches(model: IEFP) -> dict[str, dict[str, int | str]]:
    """The architecture of both branches, for the JSON file beside the weights: their keys don't hold it all."""
    encoders = {"identity_branch": model.backbone_id, "age_branch": model.backbone_ae}
    return {
        name: vars(Branch(encoder.backbone, encoder.purification))
        for name, encoder in encoders.items()
        if encoder is not None
    }


def model_fingerprint(weights_sha256: str, model: IEFP) -> str:
    """SHA-256 of all that a model's output depends on beside the pictures: the key of cached features.

    The weight file alone does not determine the output: a JSON file beside it may choose another purification unit. So
    it covers the file (`weights_sha256`), both branches of `model`, and how pictures become the network's input.
    """
    pixels = {"size": IMAGE_SIZE, "mean": PIXEL_MEAN, "scale": PIXEL_SCALE, "version": PREPROCESSING}
    inputs = {"weights": weights_sha256, "pixels": pixels} | describe_branches(model)
    if model.backbone_id.layout:  # which says in which order colours are taken; a file beside may choose that
        inputs |= {"layout": model.backbone_id.layout}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------- reading


def check_weight_file(path: Path, or_onnx: bool = False) -> None:
    """Raises UserError for what is no file, or by its first bytes a web page or the like; nothing is loaded.

    Also for an ONNX model, by its suffix, unless that will do.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, no weight file: {_give_one_inside(path)}. {ACCEPTED}")
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        why = "is a device or a pipe, no file" if os.path.exists(path) else "does not exist"
        raise UserError(f"weight file {path} {why}. {_where_to_get(path)}")
    may_be = ("ZIP archive",) if is_torch_archive(path) else ()
    if wrong := wrong_file(path, "weight file", may_be):
        raise UserError(f"{path} {wrong[0]}: {wrong[1]}. {_where_to_get(path)}")
    if not or_onnx and os.path.splitext(path)[1].lower() == ONNX:
        raise UserError(f"{path} is an ONNX model, which has no branches and can't be trained: here a "
                        f"weight file is needed. {ACCEPTED}")  # fmt: skip


def _read_content(path: Path) -> dict[str, Any]:
    check_weight_file(path)
    try:
        content = read_safetensors(path) if path.suffix.lower() == SAFETENSORS else read_archive(path)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise UserError(
            f"{path} can't be read as a weight file (damaged, not from torch.save or safetensors, or holding more than "
            f"tensors: {reason(error)}). {ACCEPTED}"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds a {type(content).__name__}, not a table of named tensors. {ACCEPTED}")
    return content


def _find_tensors(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    config = content.get("config")
    of_age_stage = isinstance(config, dict) and config.get("stage") == "age"
    for wrapper in ("model", "state_dict"):  # checkpoints hold the weights beside the optimisers
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    others = [key for key, value in content.items() if not _is_plain(value)]
    if others or not content:
        raise UserError(f"{path} holds no table of named tensors but {_first(others) or 'nothing'}. {ACCEPTED}")
    tensors = {key.removeprefix("module."): value for key, value in content.items()}
    if of_age_stage:  # its identity branch is untrained: comparing faces with it would mean nothing
        tensors = {key: value for key, value in tensors.items() if key.startswith(AGE_PREFIXES)}
    return tensors


def _is_plain(value: object) -> bool:
    """Whether it is a tensor that can be copied into a parameter; a file may hold any kind that torch knows."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"  # a tensor on "meta" has no values
        and not (value.is_nested or value.is_quantized or value.is_complex())
    )


def _give_one_inside(folder: Path) -> str:
    """What to give instead of a folder: the weight files in it."""
    found = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".pth", ".pt", SAFETENSORS, ONNX)]
    if not found:
        return "it holds no .pth or .safetensors file, so give the path of one"
    return f"give one of the files in it, such as {_first(found)}"


def _where_to_get(path: Path) -> str:
    for known in WEIGHT_FILES.values():
        if path.name == Path(known.path).name:
            return f"The published file ({known.holds}) is at {known.source} and belongs at {known.path}."
    return ACCEPTED


def _rename(path: Path, tensors: dict[str, Tensor], described: dict) -> tuple[dict[str, Tensor], str]:
    """Names of the file -> names of IEFP, and whose layout it was where it is another project's."""
    if any(key.startswith(("backbone_id.", "backbone_ae.")) for key in tensors):
        return tensors, ""
    if name := layouts.known_as(tensors):
        raise layouts.how_to_export(path, name)
    prefix, layout = layouts.prefix_of(tensors), ""
    if prefix is not None:
        tensors, layout = layouts.converted(tensors, prefix, _colours(path, described))
    elif any(key.startswith("backbone.") for key in tensors):
        return {re.sub(r"^backbone\.", "backbone_ae.", key): value for key, value in tensors.items()}, ""
    if "layer1.0.bn1.weight" in tensors:  # InsightFace: a bare backbone
        return {f"backbone_id.{key}": value for key, value in tensors.items()}, layout
    raise UserError(f"{path} has keys of another network ({_first(tensors)}). {ACCEPTED}")


def _colours(path: Path, described: dict) -> str | None:
    """ "RGB" or "BGR" where the JSON file beside, or CVLface's model.yaml or config.json, has a color_space."""
    said = str(described.get("color_space", ""))
    for beside in (path.with_suffix(".yaml"), path.with_name("config.json")):
        if not said and os.path.isfile(beside):
            with open(beside, encoding="utf-8", errors="replace") as file:
                found = re.search(r"""color_space["']?\s*:\s*["']?(RGB|BGR)\b""", file.read(MAX_DESCRIPTION))
            said = found[1] if found else ""
    return said if said in ("RGB", "BGR") else None


def read_description(path: Path, beside: Path) -> dict[str, Any]:
    """What the JSON file `beside` says of a weight file; empty where there is none.

    NAME.json beside NAME.pth may be about something else, and then says nothing; NAME.onnx.json is about NAME.onnx.

    Raises:
        UserError: it is no JSON, or one with the weight file's whole name is no object.
    """
    if not os.path.isfile(beside):
        return {}
    try:
        with open(beside, encoding="utf-8") as file:
            text = file.read(MAX_DESCRIPTION + 1)
        if len(text) > MAX_DESCRIPTION:
            raise ValueError(f"more than {MAX_DESCRIPTION} characters")
        description = json.loads(text)
        if isinstance(description, dict):
            return description
        if beside.name == f"{path.name}.json":
            raise ValueError("no object")
        return {}
    except (ValueError, OSError, RecursionError):  # the last for brackets in brackets in brackets
        raise UserError(
            f"{beside}, which describes {path.name}, can't be read as a JSON object: restore or remove it."
        ) from None


def _read_branch(path: Path, shapes: dict[str, torch.Size], described: object) -> Branch:
    blocks = tuple(len({key.split(".")[1] for key in shapes if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4))
    stem = shapes.get("conv1.weight", ())
    width = stem[0] if stem else 0
    for name, architecture in BACKBONES.items():
        if architecture.blocks == blocks and architecture.width == width:
            return Branch(name, _read_purification(path, shapes, described))
    raise UserError(
        f"{path} has {blocks} blocks in its layers and a stem of {width} planes, which is none of "
        f"{', '.join(BACKBONES)} (its keys: {_first(shapes)}). {ACCEPTED}"
    )


def _read_purification(path: Path, shapes: dict[str, torch.Size], described: object) -> int | str:
    weights = (re.match(r"spu\.seq\.([0-9]{1,4})\.weight", key) for key, shape in shapes.items() if len(shape) == 2)
    linear = sorted(int(found[1]) for found in weights if found)
    purification = described.get("purification") if isinstance(described, dict) else None
    if purification is None:
        return "x_minus_relu_linear_bn" if linear == [1] else len(linear)
    try:
        if not isinstance(purification, (int, str)):
            raise UserError(f"a {type(purification).__name__} names no unit")
        purification = parse_purification(purification)
        if [place for place, layer in enumerate(formula(purification)[1]) if layer == "linear"] == linear:
            return purification
    except ValueError:
        pass  # a name or a number unknown to this version fits no keys either
    raise UserError(
        f"{path} is described as having purification {shown(repr(purification))}, but its linear layers are at "
        f"{shown(str(linear))} of spu.seq: restore or remove {path.with_suffix('.json')}."
    )


# ------------------------------------------------------------------------------------------------------- loading


def _load_branch(model: IEFP, weights: WeightFile, branch: str) -> None:
    """Loads all of a branch or nothing: mismatches are found before anything is copied."""
    held, prefixes = {
        "identity": (weights.identity_branch, ("backbone_id.",)),
        "age": (weights.age_branch, ("backbone_ae.", "age_estimator.") + (("year_head.",) if model.year_head else ())),
    }[branch]
    if held is None:
        raise _lacks(weights, branch)
    found = {key: value for key, value in weights.tensors.items() if key.startswith(prefixes)}
    is_erased = any(key.startswith(ERASURE) for key in found)
    attention = _attention(found)
    expected = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    expected = {key: value for key, value in expected.items() if not key.startswith((ERASURE, ATTENTION))}
    if attention is not None:
        expected |= {ATTENTION + key: value for key, value in attention.state_dict().items()}
    if is_erased:
        layer = torch.nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE).state_dict()
        expected |= {ERASURE + key: value for key, value in layer.items()}
    # Files of other tools may lack BatchNorm's counters, which nothing reads.
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    if missing or unexpected or reshaped:
        faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        listed = "; ".join(f"{len(keys)} keys {what} ({_first(keys)})" for what, keys in faults if keys)
        raise UserError(
            f"{weights.path} does not fit the {branch} branch (it holds {held.backbone} with purification "
            f"{held.purification}): {listed}. {ACCEPTED}"
        )
    if branch == "identity":
        model.backbone_id.set_erasure(is_erased)
        model.backbone_id.attention, model.backbone_id.layout = attention, weights.layout
    model.load_state_dict(found, strict=False)


def _attention(found: dict[str, Tensor]) -> AgeAttention | None:
    """The attention of these shapes, on the CPU; None where there is none, or one whose shapes say nothing."""
    shapes = [found[ATTENTION + name].shape if ATTENTION + name in found else () for name in
              ("channel.0.weight", "channel.2.weight")]  # fmt: skip
    return AgeAttention.of_shapes(*shapes) if all(len(shape) == 4 for shape in shapes) else None


def _lacks(weights: WeightFile, branch: str) -> UserError:
    return UserError(f"{weights.path} holds no {branch} branch (its keys: {_first(weights.tensors)}). {ACCEPTED}")


def _first(keys) -> str:
    keys = list(keys)
    return ", ".join(shown(str(key)) for key in keys[:MAX_NAMED]) + (", ..." if len(keys) > MAX_NAMED else "")


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu", memory_format=torch.contiguous_format) for key, value in tensors.items()}
