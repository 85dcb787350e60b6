"""Writes the trained identity branch as a file for other programs, and checks that the file does the same.

    python export.py --weights runs/iefp/iefp.pth -o iefp.onnx                    pixels in, embeddings out
    python export.py --weights runs/iefp/iefp.pth -o iefp.onnx --views two --with-age
    python export.py --weights runs/iefp/iefp.pth -o int8.onnx --precision int8 --calibration-pictures FOLDER
    python export.py --weights runs/iefp/iefp.pth -o iefp.safetensors             the tensors, for any of our scripts
    python export.py --weights runs/iefp/iefp.pth -o iefp.pt2                     a torch.export program
    python export.py --weights runs/iefp/iefp.pth --check iefp.onnx --measure-on fgnet

The suffix chooses the format. The file is renamed into place after its output matches PyTorch's. Its metadata says how
to use it; FILE.json beside it repeats that with what was measured.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import tyro

from data.alignment.template import POINT_NAMES, TEMPLATE
from data.check.image_scan import check_shapes
from data.faces import index_pictures
from data.loaders import batches, evaluation_loader
from evaluation.embeddings.erasures import describe_erasure
from evaluation.export_check import Comparison, Figure, check_cosines, check_outputs, measure_figure, open_figure
from meta import BENCHMARKS, FACE_DATASET_FOLDER, IMAGE_SIZE, WEIGHT_FILES, UserError
from models.erased_weights import ONNX_MARK
from models.export import Embedder, example_images
from models.export_files import (
    INPUT_DTYPES,
    KINDS,
    PRECISIONS,
    VIEWS,
    Metadata,
    Run,
    Usage,
    describe,
    need,
    onnx_model,
    open_onnx,
    open_own_program,
    quantised,
    read_onnx_metadata,
    read_usage,
    run_embedder,
    write_onnx,
    write_program,
    write_safetensors,
)
from models.iefp import IEFP
from models.weights import check_weight_file, load_for_embedding, read_weight_file
from utils.cli import (
    Either,
    Needs,
    With,
    Without,
    available_cores,
    bounded,
    check_input_files,
    given,
    input_file,
    output_file,
    parse_config,
    run_script,
)
from utils.files import same_name_beside, sha256, write_json

WRITING = Without("check", why="since the metadata of that file says how to use it")


@dataclass(frozen=True)
class ExportConfig:
    """Write the trained identity branch as a file for other programs, or check such a file."""

    weights: Path = Path(WEIGHT_FILES["iefp"].path)
    """Any weight file with an identity branch."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = output_file()
    """What to write: FILE.onnx, FILE.safetensors or FILE.pt2 (torch.export)."""
    check: Path | None = input_file()
    """Instead of writing: a .onnx or .safetensors file that export.py wrote, to be compared with --weights."""
    input: Literal[tuple(INPUT_DTYPES)] = "uint8"
    """Pixels 0 to 255 as bytes or as floats; .onnx and .pt2 normalise them inside."""
    views: Literal[tuple(VIEWS)] = "one"
    """Two: the mirror image is embedded too and joined by concatenation, 1,024 numbers, as test.py compares them."""
    with_age: bool = False
    """Also the probabilities of the age groups; in .safetensors the age branch."""
    precision: Literal[PRECISIONS] = "fp32"
    """Of the network in .onnx files."""
    calibration_pictures: Path | None = None
    """A folder of aligned faces: int8 takes its ranges from them, and cosines with PyTorch's are measured on them."""
    calibration_count: int = bounded(200, low=1)
    """How many of them to take, evenly spread over their sorted paths."""
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    measure_on: tuple[Literal[tuple(BENCHMARKS)], ...] = ()
    """Benchmarks on which to compare the figures of PyTorch and of the file."""
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the benchmarks' folders."""
    batch_size: int = bounded(32, low=1)
    workers: int = bounded(min(2, available_cores()), low=0)
    """Processes that read images; 0 reads in the main process."""

    NEEDS: ClassVar[Needs] = {
        "input": (WRITING,),
        "views": (WRITING,),
        "with_age": (WRITING,),
        "precision": (WRITING,),
        "calibration_count": (With("calibration_pictures"),),
        "face_dataset": (With("measure_on"),),
        "workers": (Either(With("calibration_pictures"), With("measure_on")),),
        "batch_size": (
            Either(With("calibration_pictures"), With("measure_on"), With("precision", "fp16", "int8"), With("check")),
        ),
    }


ALIGNMENT = {"template": f"InsightFace's five points of ArcFace, in a picture of {IMAGE_SIZE} x {IMAGE_SIZE} pixels",
             "points": TEMPLATE.tolist(), "order": POINT_NAMES}  # fmt: skip
NUM_GENERATED = 20
PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".safetensors": ("safetensors",)}


def export(config: ExportConfig) -> None:
    """Writes and checks a file, or checks an existing one."""
    check_flags(config)
    model, has_age_branch = load_for_embedding(config.weights)
    if config.with_age and not has_age_branch:
        raise UserError(f"--with-age: {config.weights} holds no age branch: leave the flag out.")
    figures = [open_figure(name, config.face_dataset) for name in config.measure_on]
    for figure in () if config.assume_aligned else figures:
        for faces in figure.sides:
            check_shapes(faces, print)
    images = read_calibration_images(config)
    if config.check is None:
        write(config, model, images, figures)
    else:
        check(config, model, has_age_branch, images, figures)


def write(config: ExportConfig, model: IEFP, images: np.ndarray | None, figures: list[Figure]) -> None:
    """Writes a file, which is renamed into place after its output matches PyTorch's, and FILE.json beside it."""
    suffix = config.output.suffix
    num_views = 2 if suffix == ".safetensors" else VIEWS[config.views]  # tensors are compared as test.py uses them
    usage = Usage(config.input, config.precision, num_views, config.with_age)
    metadata = describe(model, usage, suffix, ALIGNMENT)
    metadata |= {"weights": config.weights.name, "weights_sha256": sha256(config.weights)}
    erasure = describe_erasure(model, config.weights)
    if erasure is not None:
        metadata[ONNX_MARK if suffix == ".onnx" else "erasure"] = erasure
    embedder = Embedder(model, usage.num_views, usage.with_age)
    with same_name_beside(config.output) as path:
        run = write_file(config, embedder, path, metadata, images)
        comparison = Comparison(config.output, run, run_embedder(embedder), usage, config.batch_size)
        metrics = compare(config, comparison, images, figures)
        metrics |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    beside = config.output.with_name(config.output.name + ".json")
    write_json(beside, metadata | metrics)
    print(f"written: {config.output} ({metrics['bytes'] / 1e6:.1f} MB), {beside}")


def check(
    config: ExportConfig, model: IEFP, has_age_branch: bool, images: np.ndarray | None, figures: list[Figure]
) -> None:
    """Compares an existing file with the weights, as its metadata says it is to be used."""
    path = config.check
    if path.suffix == ".safetensors":
        usage = Usage(num_views=2)
        run = run_embedder(Embedder(load_for_embedding(path)[0], usage.num_views))
    else:
        usage = read_usage(read_onnx_metadata(path), path)
        run = open_onnx(path)
    if usage.with_age and not has_age_branch:
        raise UserError(f"{path} gives ages, and {config.weights} holds no age branch: give its own weights.")
    if usage.precision == "int8" and images is None:
        raise UserError(f"{path} is int8, whose loss means something on faces only: give --calibration-pictures.")
    expected = run_embedder(Embedder(model, usage.num_views, usage.with_age))
    compare(config, Comparison(path, run, expected, usage, config.batch_size), images, figures)
    print(f"{path} gives what {config.weights} gives")


def compare(
    config: ExportConfig, comparison: Comparison, images: np.ndarray | None, figures: list[Figure]
) -> dict[str, Any]:
    """How the file's outputs differ from PyTorch's, printed too.

    Raises:
        UserError: they differ by more than the precision explains.
    """
    metrics: dict[str, Any] = {"largest_difference": check_outputs(comparison, config.weights)}
    if images is not None:
        metrics["cosines"] = check_cosines(comparison, images, f"pictures of {config.calibration_pictures}")
    elif comparison.usage.precision != "fp32":
        generated = example_images(NUM_GENERATED, torch.uint8).numpy()
        metrics["cosines"] = check_cosines(comparison, generated, "generated images")
    metrics["measured"] = {figure.title: measure_figure(figure, comparison, config.workers) for figure in figures}
    return metrics


def check_flags(config: ExportConfig) -> None:
    """Raises UserError for flags that don't go together, and for files and folders that aren't there."""
    output, checked = config.output, config.check
    if (output is None) == (checked is None):
        raise UserError("give either -o FILE, to write, or --check FILE, to check what was written.")
    path = output or checked
    kinds = KINDS if output else (".onnx", ".safetensors")
    if path.suffix not in kinds:
        unsafe = " (torch.export.load would unpickle it)" if path.suffix == ".pt2" else ""
        raise UserError(f"{path} has none of the suffixes {', '.join(kinds)}{unsafe}: give a file with one of them.")
    check_input_files(config)
    check_weight_file(config.weights)
    need(*PACKAGES.get(path.suffix, ()))
    if output is None:
        return
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} of -o {output.name} does not exist: make it first.")
    if output.is_dir() or (output.exists() and os.path.samefile(output, config.weights)):
        raise UserError(f"-o {output} is a folder or the --weights themselves: give another name.")
    if "precision" in given(config) and output.suffix != ".onnx":
        raise UserError(f"--precision {config.precision} is for .onnx files: {output} can be fp32 only.")
    if output.suffix == ".safetensors" and {"views", "input"} & set(given(config)):
        raise UserError(
            f"--views and --input are for .onnx and .pt2: {output} holds tensors and no function of pixels."
        )
    if config.precision == "int8" and config.calibration_pictures is None:
        raise UserError("--precision int8 needs --calibration-pictures: give a folder of aligned faces, 100 or more.")


# ------------------------------------------------------------------------------------------------------- the files


def write_file(
    config: ExportConfig, embedder: Embedder, path: Path, metadata: Metadata, images: np.ndarray | None
) -> Run:
    """Writes the format that the suffix stands for; returns what the file computes."""
    if path.suffix == ".safetensors":
        write_safetensors(read_weight_file(config.weights), path, config.with_age, metadata)
        return run_embedder(Embedder(load_for_embedding(path)[0], embedder.num_views, config.with_age))
    folded = embedder.folded()
    if path.suffix == ".pt2":
        write_program(folded, config.input, path, metadata)
        return open_own_program(path)
    model = onnx_model(folded.in_half() if config.precision == "fp16" else folded, config.input)
    if config.precision == "int8":
        starts = range(0, len(images), config.batch_size)
        model = quantised(model, (images[i : i + config.batch_size].astype(config.input) for i in starts))
    write_onnx(model, path, metadata)
    return open_onnx(path)


def read_calibration_images(config: ExportConfig) -> np.ndarray | None:
    """The calibration pictures, uint8 (N, 3, 112, 112)."""
    if config.calibration_pictures is None:
        return None
    faces = index_pictures(config.calibration_pictures, "calibration pictures")
    if not config.assume_aligned:
        check_shapes(faces, print)
    count = min(config.calibration_count, len(faces))
    rows = np.linspace(0, len(faces) - 1, count).astype(int).tolist()
    loader = evaluation_loader(faces, config.batch_size, config.workers, indices=rows)
    return np.concatenate([batch.images.numpy() for batch in batches(loader)])


if __name__ == "__main__":
    run_script(lambda: export(parse_config(ExportConfig)))
