"""`models.export.Embedder` as a file for other programs: ONNX, a torch.export program, or published tensors.

Beside models/weights.py the one module of this room that touches paths. The packages onnx, onnxscript, onnxruntime and
safetensors are imported here alone, each when it is used. A file carries its metadata (`describe`) as text.
"""

import importlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meta import (
    AGE_GROUP_NAMES,
    EMBEDDING_SIZE,
    IMAGE_SIZE,
    NUM_AGE_GROUPS,
    PIXEL_MEAN,
    PIXEL_SCALE,
    UserError,
)
from models.export import Embedder, example_images
from models.iefp import IEFP
from models.weights import AGE_PREFIXES, WeightFile, describe_branches

KINDS = (".onnx", ".safetensors", ".pt2")
OPSET = 18  # of ONNX: what torch.onnx writes without converting; runtimes since 2023 know it
FORMAT = "1"  # of the metadata
INPUT_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
OUTPUT_NAMES = ("embeddings", "age_probabilities")
METADATA_IN_PROGRAM = "iefp.json"
PRECISIONS = ("fp32", "fp16", "int8")
VIEWS = {"one": 1, "two": 2}
MAX_DIFFERENCE = 1e-4  # of a number of an embedding of length 1, or of a probability
CHECKED_BATCHES = (1, 2, 7)
CPU = torch.device("cpu")

Metadata = dict[str, Any]  # JSON-ready values
Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]  # pixels (N, 3, 112, 112) -> the outputs
OnnxRun = Callable[[dict[str, np.ndarray], list[str] | None], tuple[np.ndarray, ...]]


def need(*names: str) -> list[ModuleType]:
    """The packages of these names.

    Raises:
        UserError: one is not installed.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        packages = " ".join(name.split(".")[0] for name in names)
        raise UserError(f"the package {error.name} is needed for this: pip install {packages}") from None


# ---------------------------------------------------------------------------------------------------------- ONNX


def onnx_model(embedder: Embedder, input_dtype: str) -> Any:
    """The embedder as an ONNX model (onnx.ModelProto): `images` (batch, 3, 112, 112) -> `embeddings` and, where it has
    them, `age_probabilities`; any batch.
    """
    need("onnx", "onnxscript")
    program = torch.onnx.export(
        embedder,
        (example_images(2, INPUT_DTYPES[input_dtype]),),
        dynamo=True,
        dynamic_shapes=_any_batch(),
        opset_version=OPSET,
        input_names=["images"],
        output_names=list(OUTPUT_NAMES[: embedder.num_outputs]),
        verbose=False,
    )
    return program.model_proto


def _any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


def quantised(model: Any, batches: Iterable[np.ndarray]) -> Any:
    """The ONNX model with convolutions and linear layers in 8 bits, ranges of activations taken from `batches`.

    Weights are int8 with a scale for each channel, activations uint8 with one range a tensor: the smallest and largest
    value seen. The first convolution stays as it is. Other ways were measured, see benchmarks/RESULTS.md.
    """
    onnx, quantization = need("onnx", "onnxruntime.quantization")
    arrays = iter(batches)

    class Batches(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(arrays, None)
            return None if images is None else {"images": images}

    model = onnx.shape_inference.infer_shapes(model)
    mark = model.metadata_props.add()  # says that shapes are known, without which there would be a warning
    mark.key, mark.value = "onnx.quant.pre_process", "onnxruntime.quant"
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        quantization.quantize_static(
            model,
            path,
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=[first],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        model = onnx.load(path)
    del model.metadata_props[:]
    return model


def write_onnx(model: Any, path: Path, metadata: Metadata) -> None:
    """Writes the ONNX model with its metadata: strings as they are, everything else as JSON."""
    del model.metadata_props[:]
    for key, value in as_texts(metadata).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.doc_string = "Face embeddings; the metadata describes inputs and outputs."
    path.write_bytes(model.SerializeToString(deterministic=True))


def read_onnx(path: Path) -> Any:
    """The ONNX model (onnx.ModelProto) of a file that holds all of it.

    Raises:
        UserError: no ONNX file, or one whose weights lie in other files.
    """
    (onnx,) = need("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # protobuf raises its own kinds
        raise UserError(f"{path} can't be read as an ONNX file ({type(error).__name__}), it is damaged or not whole: "
                        "get it or export it again.") from None  # fmt: skip
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        one = f"python -c \"import onnx; onnx.save(onnx.load({str(path)!r}), 'one.onnx')\""
        raise UserError(f"{path} keeps weights in other files: make one file of them ({one}) and give that.")
    return model


def read_onnx_metadata(path: Path) -> Metadata:
    """The metadata of an ONNX file that export.py wrote.

    Raises:
        UserError: no ONNX file, one of another program or opset, or one whose weights lie in other files.
    """
    model = read_onnx(path)
    metadata = from_texts({entry.key: entry.value for entry in model.metadata_props})
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by export.py: its metadata lacks what is to be checked.")
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets.get("", 0) != OPSET:
        raise UserError(f"{path} has opset {opsets.get('', 'none')}, and export.py writes {OPSET}: it was converted, "
                        f"or is of another version; export it again.")  # fmt: skip
    return metadata


def open_onnx(path: Path) -> Run:
    """An ONNX file of export.py as a function of its images, on the CPU."""
    run, _ = onnx_session(path)
    return lambda images: run({"images": images}, None)


def onnx_session(path: Path, device: torch.device = CPU) -> tuple[OnnxRun, str]:
    """The ONNX file as a function of inputs by name and names of outputs (None: all), and where it runs, in words.

    With as many threads as torch has. On a GPU where onnxruntime has its provider, else on the CPU.

    Raises:
        UserError: onnxruntime can't run it.
    """
    (ort,) = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))

    def user_error(error: Exception) -> UserError:  # onnxruntime raises a kind for each of its status codes
        reason = ascii(" ".join(str(error).split())[:200])[1:-1]
        return UserError(f"onnxruntime {ort.__version__} can't run {path} ({reason}): export the model again, or "
                         "update onnxruntime.")  # fmt: skip

    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except MemoryError:
        raise
    except Exception as error:
        raise user_error(error) from None

    def run(inputs: dict[str, np.ndarray], outputs: list[str] | None) -> tuple[np.ndarray, ...]:
        try:
            return tuple(session.run(outputs, inputs))
        except MemoryError:
            raise
        except Exception as error:
            raise user_error(error) from None

    where = "on the GPU" if session.get_providers()[0] == "CUDAExecutionProvider" else "on the CPU"
    if device.type == "cuda" and where == "on the CPU":
        where += ", for onnxruntime has no CUDA here: pip install onnxruntime-gpu"
    return run, where


# --------------------------------------------------------------------------------------------- torch.export, tensors


def write_program(embedder: Embedder, input_dtype: str, path: Path, metadata: Metadata) -> None:
    """Writes a torch.export program with its metadata as the extra file iefp.json; any batch."""
    images = example_images(2, INPUT_DTYPES[input_dtype])
    program = torch.export.export(embedder, (images,), dynamic_shapes=_any_batch())
    torch.export.save(program, path, extra_files={METADATA_IN_PROGRAM: json.dumps(metadata)})


def open_own_program(path: Path) -> Run:
    """The program that `write_program` has just written. For no other file: torch.export.load unpickles."""
    module = torch.export.load(path).module()

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return as_arrays(module(torch.from_numpy(images)))

    return run


def write_safetensors(weights: WeightFile, path: Path, with_age: bool, metadata: Metadata) -> None:
    """Writes the tensors of the identity branch, and with `with_age` of the age branch, under their published names."""
    prefixes = ("backbone_id.", *(AGE_PREFIXES if with_age else ()))
    tensors = {key: value for key, value in weights.tensors.items() if key.startswith(prefixes)}
    save_safetensors(tensors, path, metadata)


def save_safetensors(tensors: dict[str, Tensor], path: Path, metadata: Metadata) -> None:
    """Writes these tensors with their metadata."""
    (safetensors,) = need("safetensors.torch")
    copies = {key: value.clone().contiguous() for key, value in tensors.items()}  # none may share memory
    path.write_bytes(safetensors.save(copies, as_texts(metadata)))  # save_file makes it private


# --------------------------------------------------------------------------------------------------- outputs compared


def run_embedder(embedder: Embedder) -> Run:
    """The embedder as a function of arrays, on the CPU."""

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return as_arrays(embedder(torch.from_numpy(images)))

    return run


def as_arrays(outputs: Tensor | tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))


def largest_difference(run: Run, expected: Run, input_dtype: str) -> float:
    """The largest absolute difference of their outputs, over batches of 1, 2 and 7 images.

    Infinite where shapes differ or a number is not finite.
    """
    largest = 0.0
    for num_images in CHECKED_BATCHES:
        images = example_images(num_images, INPUT_DTYPES[input_dtype]).numpy()
        found, wanted = run(images), expected(images)
        if [array.shape for array in found] != [array.shape for array in wanted]:
            return float("inf")
        for a, b in zip(found, wanted, strict=True):
            difference = np.abs(a.astype(np.float64) - b).max()
            largest = max(largest, float(difference) if np.isfinite(difference) else float("inf"))
    return largest


# -------------------------------------------------------------------------------------------------------- metadata


@dataclass(frozen=True)
class Usage:
    """How an exported file is called and what it returns."""

    input_dtype: str = "uint8"
    precision: str = "fp32"
    num_views: int = 1
    with_age: bool = False


def read_usage(metadata: Metadata, path: Path) -> Usage:
    """The usage that the metadata of an ONNX file describes.

    Raises:
        UserError: export.py did not write this metadata.
    """
    pixels = metadata.get("input")
    input_dtype = pixels.get("dtype") if isinstance(pixels, dict) else None
    precision, num_views = metadata.get("precision"), metadata.get("views", 1)
    if input_dtype not in tuple(INPUT_DTYPES) or precision not in PRECISIONS or num_views not in tuple(VIEWS.values()):
        raise UserError(f"the metadata of {path} was changed after export.py wrote it: export it again.")
    return Usage(input_dtype, precision, num_views, bool(metadata.get("age_groups")))


def describe(model: IEFP, usage: Usage, suffix: str, alignment: Metadata) -> Metadata:
    """What the user of a file with this suffix has to know: its metadata, less what concerns the weights' own file."""
    pixels = {"shape": ["batch", 3, IMAGE_SIZE, IMAGE_SIZE], "colours": "RGB", "range": [0, 255], "mean": PIXEL_MEAN,
              "scale": PIXEL_SCALE}  # fmt: skip
    metadata = {
        "format": FORMAT,
        "made_by": "export.py of IEFP, age-invariant face recognition",
        "alignment": alignment,
        "backbone": model.backbone_id.backbone,
        "purification": model.backbone_id.purification,
        "age_groups": list(AGE_GROUP_NAMES) if usage.with_age else [],
        "precision": usage.precision,
    }
    if suffix == ".safetensors":
        branches = describe_branches(model)
        return metadata | {
            "input": pixels | {"normalised_inside": False},
            "branches": branches if usage.with_age else {"identity_branch": branches["identity_branch"]},
            "embedding_size": EMBEDDING_SIZE,
            "software": software("safetensors"),
        }
    sizes = {"embeddings": usage.num_views * EMBEDDING_SIZE}
    if usage.with_age:
        sizes["age_probabilities"] = NUM_AGE_GROUPS
    metadata |= {
        "input": pixels | {"name": "images", "dtype": usage.input_dtype, "normalised_inside": True},
        "output": {name: ["batch", size] for name, size in sizes.items()},
        "embedding_size": sizes["embeddings"],
        "views": usage.num_views,
        "join": "concatenate" if usage.num_views == 2 else "none",
    }
    if suffix == ".pt2":
        return metadata | {"software": software()}
    return metadata | {"opset": OPSET, "software": software("onnx", "onnxscript", "onnxruntime")}


def as_texts(metadata: Metadata) -> dict[str, str]:
    """The metadata for formats whose metadata holds text alone."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def from_texts(texts: dict[str, str]) -> Metadata:
    """The reverse of `as_texts`; what is no JSON is text."""
    metadata = {}
    for key, text in texts.items():
        try:
            metadata[key] = text if key == "format" else json.loads(text)
        except (ValueError, RecursionError):
            metadata[key] = text
    return metadata


def software(*names: str) -> dict[str, str]:
    """Versions of torch and of these packages."""
    modules = zip(names, need(*names), strict=True)
    return {"torch": torch.__version__} | {name: module.__version__ for name, module in modules}
