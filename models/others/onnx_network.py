"""An ONNX model of faces as the extraction asks for a model: how pictures go into it, and which output is taken.

What the file takes is read from it: our own metadata; the sizes, layout and type of its input; the two nodes with which
models out of mxnet normalise pixels themselves. What it doesn't say is InsightFace's convention: RGB of 112x112,
(pixel - 127.5) / 127.5. A JSON file beside it, and --onnx-input, go before.
Source of the convention: InsightFace, python-package/insightface/model_zoo/arcface_onnx.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meta import EMBEDDING_SIZE, IMAGE_SIZE, PIXEL_MEAN, PIXEL_SCALE, UserError
from models.export_files import OUTPUT_NAMES, from_texts, onnx_session

PIXELS_INSIDE = (("Sub", "_minus"), ("Mul", "_mul"))  # beginnings of names among a graph's first nodes
NUM_FIRST_NODES = 8
BYTES = 2
DTYPES = {1: np.float32, BYTES: np.uint8, 10: np.float16, 11: np.float64}  # by onnx.TensorProto's numbers
MAX_SIDE = 1024  # pixels: a face is 112 or 160 of them, and a few bytes of a file must not ask for gigabytes
MAX_BATCH = 4096
INPUT_KEY = "picture_input"  # of the metadata that purify.py writes, a text as of --onnx-input
GRAMMAR = '"bgr 160x160 mean=127.5 scale=128 output=NAME", height before width; rgb, nchw, nhwc and three numbers ' \
          "a mean (mean=104,117,123) are known too"  # fmt: skip
IMAGENET_CLASSES = (1000, 1001)
FEWEST_OF_DETECTORS = 3  # outputs: scores, boxes and points, often for several sizes of faces
LIKE_A_DETECTOR = ", as face detectors have them; those go to --detector of embed.py"


@dataclass(frozen=True)
class PictureInput:
    """How a face of 112x112 pixels goes into a model: cut to the model's shape, resized, (pixel - mean) / scale."""

    colours: str = "RGB"  # or "BGR"
    height: int = IMAGE_SIZE
    width: int = IMAGE_SIZE
    mean: tuple[float, ...] = (PIXEL_MEAN,)  # of all channels, or of each in the order of `colours`
    scale: tuple[float, ...] = (PIXEL_SCALE,)
    layout: str = "NCHW"  # or "NHWC"
    output: str | None = None  # the name of the features; None: the output of shape (N, D)
    said_by: tuple[str, ...] = ()  # what said so, where it isn't InsightFace's convention

    def text(self) -> str:
        """As --onnx-input takes it."""
        numbers = (f"{name}={','.join(repr(number).removesuffix('.0') for number in getattr(self, name))}"
                   for name in ("mean", "scale"))  # fmt: skip
        words = [self.colours.lower(), f"{self.height}x{self.width}", *numbers]
        words += ["nhwc"] * (self.layout == "NHWC") + ([f"output={self.output}"] if self.output else [])
        return " ".join(words)


def input_of_text(text: str, taken: PictureInput, said_by: str) -> PictureInput:
    """`taken` with what the words of a text like "bgr 112x96 scale=128" change.

    Raises:
        UserError: a word that means nothing.
    """
    changes: dict[str, Any] = {}
    for word in text.split():
        low = word.lower()
        size, name = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", low), low.partition("=")[0]
        if low in ("rgb", "bgr"):
            changes["colours"] = low.upper()
        elif low in ("nchw", "nhwc"):
            changes["layout"] = low.upper()
        elif size:
            changes |= {"height": int(size[1]), "width": int(size[2])}
        elif name in ("mean", "scale") and "=" in low:
            changes[name] = _numbers(low.partition("=")[2], word, said_by)
        elif name == "output" and len(word) > len("output="):
            changes["output"] = word.partition("=")[2]
        else:
            raise UserError(f"{said_by}: {word[:40]!r} means nothing: give words like {GRAMMAR}.")
    changed = replace(taken, **changes, said_by=(*taken.said_by, said_by))
    if not (0 < changed.height <= MAX_SIDE and 0 < changed.width <= MAX_SIDE) or 0 in changed.scale:
        raise UserError(f"{said_by}: {text[:80]!r} is out of range: sides are 1 to {MAX_SIDE} pixels, and no scale 0.")
    return changed


def _numbers(text: str, word: str, said_by: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
        if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
            raise ValueError
    except ValueError:
        raise UserError(f"{said_by}: {word[:40]!r} holds neither one number nor three: give words like {GRAMMAR}.") \
            from None  # fmt: skip
    return numbers


def read_picture_input(path: str, proto: Any, beside: dict[str, Any], asked: str | None) -> PictureInput:
    """How pictures go into the ONNX model: what its file says, the JSON file `beside` it, and `asked` (--onnx-input).

    Raises:
        UserError: it takes anything but one picture, or what is said does not fit it.
    """
    one = picture_input_of(path, proto)
    shape = _shape(one)
    taken = PictureInput()
    if len(shape) == 4 and shape[3] == 3 and shape[1] != 3:
        taken = replace(taken, layout="NHWC", said_by=("its input's shape",))
    height, width = _sides(shape, taken.layout)
    if height or width:
        taken = replace(taken, height=height or width, width=width or height)
    names = [node.name for node in proto.graph.node[:NUM_FIRST_NODES]]
    if all(any(name.startswith(begins) for name in names) for begins in PIXELS_INSIDE):
        taken = replace(taken, mean=(0.0,), scale=(1.0,), said_by=(*taken.said_by, "its first nodes"))
    if one.type.tensor_type.elem_type == BYTES:
        taken = replace(taken, mean=(0.0,), scale=(1.0,), said_by=(*taken.said_by, "its input's type"))
    metadata = from_texts({entry.key: entry.value for entry in proto.metadata_props})
    if INPUT_KEY in metadata:
        taken = input_of_text(str(metadata[INPUT_KEY]), taken, f"the metadata of {path}")
    is_own = _is_exported(metadata)
    if is_own:
        taken = _as_exported(metadata, taken, f"the metadata of {path}")
    elif isinstance(beside.get("input"), str):
        taken = input_of_text(beside["input"], taken, f"{path}.json")
    if asked is not None and is_own:
        raise UserError(
            f"{path} was written by export.py and says itself how pictures go in: leave --onnx-input out, or write "
            '{"input": "bgr 160x160"} into a file MODEL.onnx.json beside each of the others.'
        )
    if asked is not None:
        taken = input_of_text(asked, taken, "--onnx-input")
    if any(side and side != wanted for side, wanted in zip(_sides(shape, taken.layout), (taken.height, taken.width),
                                                           strict=True)):  # fmt: skip
        raise UserError(f"{path} takes pictures of shape {_words(shape)} and not of {taken.height}x{taken.width} "
                        f"({taken.layout}) as {taken.said_by[-1]} has it: leave the size out there.")  # fmt: skip
    if one.type.tensor_type.elem_type == BYTES and (taken.mean, taken.scale) != ((0.0,), (1.0,)):
        raise UserError(f"{path} takes bytes, 0 to 255, and no other numbers: leave mean and scale out of "
                        f"{taken.said_by[-1]}.")  # fmt: skip
    if max(taken.height, taken.width) > MAX_SIDE or (shape and shape[0] > MAX_BATCH):
        raise UserError(f"{path} takes {_words(shape)}, more than {MAX_SIDE} pixels on a side or {MAX_BATCH} pictures "
                        "at once: no model of faces does.")  # fmt: skip
    return taken


def picture_input_of(path: str, proto: Any) -> Any:
    """The one input of the graph that is no weight; raises UserError where it isn't a picture in colour."""
    weights = {one.name for one in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(ascii(one.name)[1:-1][:40] for one in inputs[:5])
        raise UserError(f"{path} has {len(inputs)} inputs ({names}): a model of faces takes pictures alone, so export "
                        "it again with the others as constants.")  # fmt: skip
    shape, kind = _shape(inputs[0]), inputs[0].type.tensor_type.elem_type
    is_picture = not shape or (len(shape) == 4 and (3 in (shape[1], shape[3]) or 0 in (shape[1], shape[3])))
    if not is_picture or kind not in DTYPES:
        raise UserError(
            f"{path} takes an input of shape {_words(shape)} and type {kind} of ONNX, which is no picture in colour, "
            "(N, 3, H, W) or (N, H, W, 3) of floats or bytes: give a model of faces."
        )
    return inputs[0]


def _shape(one: Any) -> tuple[int, ...]:
    """The sizes of an input, 0 where they are free; empty where not even their number is fixed."""
    sizes = tuple(max(size.dim_value, 0) for size in one.type.tensor_type.shape.dim)
    return sizes if one.type.tensor_type.HasField("shape") else ()


def _sides(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    return (0, 0) if not shape else shape[2:] if layout == "NCHW" else shape[1:3]


def _words(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(size or 'any') for size in shape)})" if shape else "that is free"


def _is_exported(metadata: dict[str, Any]) -> bool:
    """Whether export.py wrote the metadata."""
    return isinstance(metadata.get("input"), dict) and "normalised_inside" in metadata["input"]


def _as_exported(metadata: dict[str, Any], taken: PictureInput, said_by: str) -> PictureInput:
    output = OUTPUT_NAMES[0] if OUTPUT_NAMES[0] in metadata.get("output", ()) else None
    own = {"colours": "RGB", "height": IMAGE_SIZE, "width": IMAGE_SIZE, "layout": "NCHW", "output": output}
    return replace(taken, **own, mean=(0.0,), scale=(1.0,), said_by=(*taken.said_by, said_by))


class OnnxNetwork:
    """An ONNX file as the extraction asks for a model: pixels in [-1, 1] -> features (N, D) float32 on the CPU.

    It is tried on `probe`, uint8 (1, 3, 112, 112), the picture of a face, and its mirror image: which output holds the
    features, how many pictures it takes at once, and how many numbers it gives. `in_half` says whether it rounds them
    to half precision.

    Raises:
        UserError: onnxruntime can't run it, no output or several hold features, or these are not finite, zero, or of
            another length for the mirror image.
    """

    def __init__(self, path: str, proto: Any, taken: PictureInput, probe: Tensor, device: torch.device):
        one = picture_input_of(path, proto)
        self.path, self.taken, self.name = path, taken, one.name
        self.dtype = DTYPES[one.type.tensor_type.elem_type]
        self.batch = _shape(one)[0] if _shape(one) else 0  # 0: any
        self._run, self.provider = onnx_session(path, device)
        self.outputs = [output.name for output in proto.graph.output]
        if taken.output is not None and taken.output not in self.outputs:
            raise UserError(f"{path} has no output {taken.output[:40]!r}: give --onnx-input 'output=NAME' with one of "
                            f"{', '.join(ascii(name)[1:-1][:40] for name in self.outputs[:20])}.")  # fmt: skip
        both = (torch.cat([probe, probe.flip(-1)]).float() - PIXEL_MEAN) / PIXEL_SCALE
        self.output = self._find_output(both)
        self.size = self._check(both)

    def identity_features(self, images: Tensor) -> Tensor:
        """images (N, 3, 112, 112) in [-1, 1], on any device -> features (N, D)."""
        pixels = self.pixels(images)
        step = self.batch or len(pixels)
        parts = [self._some(pixels[i : i + step]) for i in range(0, len(pixels), step)]
        if len({part.shape[1] for part in parts}) > 1:
            raise UserError(f"{self.path} gives features of another length for another picture: give another file.")
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _some(self, pixels: np.ndarray) -> np.ndarray:
        """Of as many pictures as the model takes at once, or fewer: the last one is repeated."""
        count = len(pixels)
        if self.batch and count < self.batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch - count, axis=0)])
        (found,) = self._run({self.name: pixels}, [self.output])
        if len(found) != len(pixels) or found.size != len(pixels) * found.shape[1]:
            raise UserError(f"{self.path} gives {found.shape} for {len(pixels)} pictures: export it again.")
        return found.reshape(len(found), -1)[:count].astype(np.float32, copy=False)

    def pixels(self, images: Tensor) -> np.ndarray:
        """images (N, 3, 112, 112) in [-1, 1] -> what the model takes."""
        taken = self.taken
        if taken == replace(PictureInput(), said_by=taken.said_by, output=taken.output) and self.dtype == np.float32:
            return np.ascontiguousarray(images.cpu().numpy())  # as they come
        pixels = images.float() * PIXEL_SCALE + PIXEL_MEAN
        pixels = _fitted(pixels.round_(), taken.height, taken.width)
        if taken.colours == "BGR":
            pixels = pixels.flip(1)
        mean, scale = (torch.tensor(numbers, device=pixels.device).view(-1, 1, 1) for numbers in
                       (taken.mean, taken.scale))  # fmt: skip
        pixels = ((pixels.round() if self.dtype == np.uint8 else pixels) - mean) / scale
        if taken.layout == "NHWC":
            pixels = pixels.permute(0, 2, 3, 1)
        return np.ascontiguousarray(pixels.cpu().numpy().astype(self.dtype, copy=False))

    def _find_output(self, both: Tensor) -> str:
        pixels, found, fitting = self.pixels(both), (), []
        for batch in (self.batch,) if self.batch else (0, 1):  # where it looks free it may be fixed inside the graph
            try:
                found = self._run({self.name: np.repeat(pixels[:1], batch, axis=0) if batch else pixels}, None)
            except UserError:
                if batch and len(self.outputs) < FEWEST_OF_DETECTORS:
                    raise
                if batch:
                    raise UserError(f"{self.path} can't run on a face of {self.taken.height}x{self.taken.width} and "
                                    f"has {len(self.outputs)} outputs{LIKE_A_DETECTOR}.") from None  # fmt: skip
                continue
            fitting = [self.outputs[i] for i in _of_pictures(found, batch or len(pixels))]
            if fitting:
                self.batch, self.in_half = batch, found[self.outputs.index(fitting[0])].dtype == np.float16
                break
        if self.taken.output in fitting:
            return self.taken.output
        if len(fitting) == 1 and self.taken.output is None:
            return fitting[0]
        shapes = ", ".join(f"{ascii(name)[1:-1][:40]} {np.shape(array)}"
                           for name, array in list(zip(self.outputs, found, strict=True))[:6])  # fmt: skip
        if fitting:
            raise UserError(f"{self.path} has {len(fitting)} outputs of shape (N, D), among {shapes}: give the name of "
                            f"the features by --onnx-input 'output={fitting[0]}'.")  # fmt: skip
        more = LIKE_A_DETECTOR if len(found) >= FEWEST_OF_DETECTORS else ""
        raise UserError(f"{self.path} gives no features (N, D) of a picture but {shapes}{more}: give a model that "
                        "embeds faces.")  # fmt: skip

    def _check(self, both: Tensor) -> int:
        """The number of features; raises UserError where those of the probe can't be a face's."""
        features = self.identity_features(both)
        which = f"{self.path} (its input taken as {self.taken.text()!r})"
        if not torch.isfinite(features).all():
            raise UserError(f"{which} gives features of a face that hold NaN or infinity: it is damaged, or takes "
                            "other pixels; say which by --onnx-input.")  # fmt: skip
        if not features.abs().sum(dim=1).all():
            raise UserError(f"{which} gives features of a face that are all zero: give another file, or --onnx-input.")
        return features.shape[1]

    def sentences(self) -> list[str]:
        """What was taken, and what looks wrong."""
        said = ", ".join(dict.fromkeys(self.taken.said_by)) or "InsightFace's convention"
        sentences = [f"{self.path}: ONNX, input {self.taken.text()} ({said}), {self.size:,} numbers from output "
                     f"{ascii(self.output)[1:-1][:40]!r}, {self.provider}"]  # fmt: skip
        if self.size in IMAGENET_CLASSES:
            sentences.append(
                f"{self.path} gives {self.size:,} numbers, as a classifier of ImageNet's pictures does: a model of "
                f"faces gives {EMBEDDING_SIZE} or fewer; look whether it is the right file"
            )
        return sentences


def _of_pictures(outputs: tuple[np.ndarray, ...], num_pictures: int) -> list[int]:
    """Which outputs hold a row of floats a picture, (N, D) or (N, D, 1, 1)."""

    def is_one(array: Any) -> bool:
        if not isinstance(array, np.ndarray) or array.ndim not in (2, 4) or array.dtype.kind != "f":
            return False
        return len(array) == num_pictures and array.shape[1] > 1 and array.size == num_pictures * array.shape[1]

    return [i for i, array in enumerate(outputs) if is_one(array)]


def _fitted(pixels: Tensor, height: int, width: int) -> Tensor:
    """(N, 3, 112, 112) -> (N, 3, height, width): the middle of the model's shape, resized.

    A model of 112x96 gets the columns 8 to 103, which is the five-point template shifted by 8 as it was trained on.
    """
    rows, columns = (min(IMAGE_SIZE, round(IMAGE_SIZE * ratio)) for ratio in (height / width, width / height))
    top, left = (IMAGE_SIZE - rows) // 2, (IMAGE_SIZE - columns) // 2
    pixels = pixels[:, :, top : top + rows, left : left + columns]
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=height < rows)
