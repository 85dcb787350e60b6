"""Writes the trained identity branch as a file for other programs, and checks that the file does the same.

    python export.py --weights runs/iefp/iefp.pth -o iefp.onnx                    pixels in, embeddings out
    python export.py --weights runs/iefp/iefp.pth -o iefp.onnx --views two --with-age
    python export.py --weights runs/iefp/iefp.pth -o int8.onnx --precision int8 --calibration-pictures FOLDER
    python export.py --weights runs/iefp/iefp.pth -o iefp.safetensors             the tensors, for any of our scripts
    python export.py --weights runs/iefp/iefp.pth -o iefp.pt2                     a torch.export program
    python export.py --weights runs/iefp/iefp.pth --check iefp.onnx --measure-on fgnet

The suffix says what is written. A file gets its name only after it gave what PyTorch gives; what a user of it has to
know stands in its metadata, and in FILE.json beside it with what was measured.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro

from data.alignment.template import POINT_NAMES, TEMPLATE
from data.benchmarks import open_complete_eval_set, specs_of_benchmark
from data.check.image_scan import check_shapes
from data.faces import Faces, index_pictures
from data.loaders import batches, evaluation_loader
from evaluation.protocols import leave_one_out, pair_scores, probe_gallery, ten_fold_verification
from meta import (
    AGE_GROUP_NAMES,
    BENCHMARKS,
    EMBEDDING_SIZE,
    FACE_DATASET_FOLDER,
    IMAGE_SIZE,
    NUM_AGE_GROUPS,
    PIXEL_MEAN,
    PIXEL_SCALE,
    WEIGHT_FILES,
    UserError,
)
from models.export import Embedder, example_images
from models.export_files import (
    CHECKED_BATCHES,
    FORMAT,
    INPUT_DTYPES,
    KINDS,
    MAX_DIFFERENCE,
    OPSET,
    Facts,
    Run,
    largest_difference,
    need,
    onnx_model,
    open_onnx,
    open_own_program,
    quantised,
    read_onnx_facts,
    run_embedder,
    software,
    write_onnx,
    write_program,
    write_safetensors,
)
from models.iefp import IEFP
from models.weights import check_weight_file, describe_branches, load_for_embedding, read_weight_file
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
from utils.files import sha256, write_json
from utils.progress import counted

OF_FILE = Without("check", why="for that file says itself how it is to be used")


@dataclass(frozen=True)
class ExportConfig:
    """Write the trained identity branch as a file for other programs, or check such a file."""

    weights: Path = Path(WEIGHT_FILES["iefp"].path)
    """Any weight file with an identity branch."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = output_file()
    """What to write: FILE.onnx, FILE.safetensors or FILE.pt2 (torch.export)."""
    check: Path | None = input_file()
    """Instead of writing: a .onnx or .safetensors file that export.py wrote, to be compared with --weights."""
    input: Literal["uint8", "float32"] = "uint8"
    """Pixels 0 to 255 as bytes or as floats; .onnx and .pt2 normalise them inside."""
    views: Literal["one", "two"] = "one"
    """Two: the mirror image is embedded too and joined by concatenation, 1,024 numbers, as test.py compares them."""
    with_age: bool = False
    """Also the probabilities of the age groups; in .safetensors the age branch."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Of the network in .onnx files."""
    calibration_pictures: Path | None = None
    """A folder of aligned faces: int8 takes its ranges from them, and the loss is measured on them."""
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
        "input": (OF_FILE,),
        "views": (OF_FILE,),
        "with_age": (OF_FILE,),
        "precision": (OF_FILE,),
        "calibration_count": (With("calibration_pictures"),),
        "face_dataset": (With("measure_on"),),
        "workers": (Either(With("calibration_pictures"), With("measure_on")),),
        "batch_size": (
            Either(With("calibration_pictures"), With("measure_on"), With("precision", "fp16", "int8"), With("check")),
        ),
    }


VIEWS = {"one": 1, "two": 2}
PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".safetensors": ("safetensors",)}
# What is usual is 1.0000 and 0.999 (benchmarks/RESULTS.md); below these something went wrong.
MIN_MEAN_COSINE = {"fp16": 0.999, "int8": 0.95}


def export(config: ExportConfig) -> None:
    """Writes and checks a file, or checks one that is there."""
    check_flags(config)
    measures = [open_measure(config, name) for name in config.measure_on]
    pictures = read_pictures(config)
    model, has_age_branch = load_for_embedding(config.weights)
    if config.check is not None:
        check_file(config, model, has_age_branch, pictures, measures)
        return
    if config.with_age and not has_age_branch:
        raise UserError(f"--with-age: {config.weights} holds no age branch: leave the flag out.")
    embedder = Embedder(model, num_views(config), config.with_age)
    facts = describe(config, model)
    with named_when_done(config.output) as path:
        run = write(config, embedder, path, facts, pictures)
        comparison = Comparison(run, run_embedder(embedder), usage_of(facts, path))
        told = compare(config, config.output, comparison, pictures, measures)
        told |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    beside = config.output.with_name(config.output.name + ".json")
    write_json(beside, facts | told)
    print(f"written: {config.output} ({told['bytes'] / 1e6:.1f} MB), {beside}")


def num_views(config: ExportConfig) -> int:
    """Of the function that is written; tensors alone are none, and are compared in test.py's way."""
    return 2 if config.output.suffix == ".safetensors" else VIEWS[config.views]


def check_flags(config: ExportConfig) -> None:
    """Raises UserError for flags that don't go together, before anything is read."""
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


def write(config: ExportConfig, embedder: Embedder, path: Path, facts: Facts, pictures: np.ndarray | None) -> Run:
    """Writes the file of the kind that its suffix says; gives what the file computes."""
    if path.suffix == ".safetensors":
        write_safetensors(read_weight_file(config.weights), path, config.with_age, facts)
        return run_embedder(Embedder(load_for_embedding(path)[0], num_views(config), config.with_age))
    folded = embedder.folded()
    if path.suffix == ".pt2":
        write_program(folded, config.input, path, facts)
        return open_own_program(path)
    model = onnx_model(folded.in_half() if config.precision == "fp16" else folded, config.input)
    if config.precision == "int8":
        places = range(0, len(pictures), config.batch_size)
        model = quantised(model, (as_input(pictures[i : i + config.batch_size], config.input) for i in places))
    write_onnx(model, path, facts)
    return open_onnx(path)


@contextmanager
def named_when_done(path: Path) -> Iterator[Path]:
    """A place for a file with the same name in a new folder beside; it gets its place when all went well."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


PIXELS = {"shape": ["batch", 3, IMAGE_SIZE, IMAGE_SIZE], "colours": "RGB", "range": [0, 255], "mean": PIXEL_MEAN,
          "scale": PIXEL_SCALE}  # fmt: skip
ALIGNMENT = {"template": f"InsightFace's five points of ArcFace, in a picture of {IMAGE_SIZE} x {IMAGE_SIZE} pixels",
             "points": TEMPLATE.tolist(), "order": POINT_NAMES}  # fmt: skip


def describe(config: ExportConfig, model: IEFP) -> Facts:
    """What a user of the file has to know; goes into its metadata."""
    facts: Facts = {
        "format": FORMAT,
        "made_by": "export.py of IEFP, age-invariant face recognition",
        "alignment": ALIGNMENT,
        "backbone": model.backbone_id.backbone,
        "purification": model.backbone_id.purification,
        "age_groups": list(AGE_GROUP_NAMES) if config.with_age else [],
        "precision": config.precision,
        "weights": config.weights.name,
        "weights_sha256": sha256(config.weights),
    }
    if config.output.suffix == ".safetensors":
        return facts | {
            "input": PIXELS | {"normalised_inside": False},
            "branches": {
                name: branch
                for name, branch in describe_branches(model).items()
                if config.with_age or name == "identity_branch"
            },
            "embedding_size": EMBEDDING_SIZE,
            "software": software("safetensors"),
        }
    views = num_views(config)
    sizes = {"embeddings": views * EMBEDDING_SIZE} | ({"age_probabilities": NUM_AGE_GROUPS} if config.with_age else {})
    facts |= {
        "input": PIXELS | {"name": "images", "dtype": config.input, "normalised_inside": True},
        "output": {name: ["batch", size] for name, size in sizes.items()},
        "embedding_size": views * EMBEDDING_SIZE,
        "views": views,
        "join": "concatenate" if views == 2 else "none",
    }
    if config.output.suffix == ".pt2":
        return facts | {"software": software()}
    return facts | {"opset": OPSET, "software": software("onnx", "onnxscript", "onnxruntime")}


@dataclass(frozen=True)
class Usage:
    """How a file is to be used, of what its facts say."""

    input_dtype: str = "uint8"
    precision: str = "fp32"
    num_views: int = 1
    with_age: bool = False


def usage_of(facts: Facts, path: Path) -> Usage:
    """Raises UserError for facts that export.py did not write."""
    told = facts.get("input")
    input_dtype = told.get("dtype", "uint8") if isinstance(told, dict) else None
    usage = Usage(input_dtype, facts.get("precision"), facts.get("views", 1), bool(facts.get("age_groups")))
    known = (tuple(INPUT_DTYPES), ("fp32", *MIN_MEAN_COSINE), tuple(VIEWS.values()))
    if not all(a in b for a, b in zip((usage.input_dtype, usage.precision, usage.num_views), known, strict=True)):
        raise UserError(f"the metadata of {path} was changed after export.py wrote it: export it again.")
    return usage


def check_file(
    config: ExportConfig, model: IEFP, has_age_branch: bool, pictures: np.ndarray | None, measures: list["Measure"]
) -> None:
    """Compares a file that is there with the weights; what it says of itself tells how."""
    if config.check.suffix == ".safetensors":
        usage = Usage(num_views=2)
        run = run_embedder(Embedder(load_for_embedding(config.check)[0], usage.num_views))
    else:
        usage = usage_of(read_onnx_facts(config.check), config.check)
        run = open_onnx(config.check)
    if usage.with_age and not has_age_branch:
        raise UserError(f"{config.check} gives ages, and {config.weights} holds no age branch: give its own weights.")
    if usage.precision == "int8" and pictures is None:
        raise UserError(f"{config.check} is int8, whose loss means something on faces only: give "
                        f"--calibration-pictures.")  # fmt: skip
    expected = run_embedder(Embedder(model, usage.num_views, usage.with_age))
    compare(config, config.check, Comparison(run, expected, usage), pictures, measures)
    print(f"{config.check} gives what {config.weights} gives")


# ------------------------------------------------------------------------------------------------------ comparisons


@dataclass(frozen=True)
class Comparison:
    """What a file computes (`run`), what PyTorch computes (`expected`), and how the file is to be used."""

    run: Run
    expected: Run
    usage: Usage


def compare(
    config: ExportConfig, path: Path, comparison: Comparison, pictures: np.ndarray | None, measures: list["Measure"]
) -> dict[str, Any]:
    """Runs both, prints and gives the differences.

    Raises:
        UserError: they differ by more than the precision explains.
    """
    difference = largest_difference(comparison.run, comparison.expected, comparison.usage.input_dtype)
    sizes = ", ".join(map(str, CHECKED_BATCHES))
    print(f"{path.name}: largest difference to PyTorch {difference:.2g} on made-up pictures, batches of {sizes}")
    limit = MAX_DIFFERENCE if comparison.usage.precision == "fp32" else 2.0  # of numbers between -1 and 1
    limit = 0.0 if path.suffix == ".safetensors" else limit  # the same tensors in the same network
    if comparison.usage.precision != "fp32" and difference == np.inf:
        raise UserError(f"{path} gives no finite numbers: {comparison.usage.precision} is too short for these weights, "
                        f"use another --precision.")  # fmt: skip
    if not difference <= limit:
        raise UserError(f"{path} gives other numbers than {config.weights} ({difference:.2g} where {limit:g} is "
                        f"allowed): it is of other weights, or damaged.")  # fmt: skip
    told: dict[str, Any] = {"largest_difference": difference}
    if pictures is not None or comparison.usage.precision != "fp32":
        shown = example_images(20, INPUT_DTYPES["uint8"]).numpy() if pictures is None else pictures
        what = "made-up pictures" if pictures is None else f"pictures of {config.calibration_pictures}"
        told["cosines"] = cosines(*embed_both(comparison, shown, config.batch_size))
        print(f"{what}: {cosine_words(told['cosines'])}")
        mean, least = told["cosines"]["mean"], MIN_MEAN_COSINE.get(comparison.usage.precision, 0)
        if not mean >= least:
            raise UserError(f"{path} loses too much (mean cosine {mean:.4f} to the original embeddings, {least} is "
                            f"asked for): calibrate on aligned faces like those to be compared.")  # fmt: skip
    told["measured"] = {measure.title: measure.of(comparison, config) for measure in measures}
    return told


def embed_both(comparison: Comparison, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of uint8 images (N, 3, 112, 112) by PyTorch and by the file, (N, D) each."""
    pieces = []
    for start in range(0, len(images), batch_size):
        piece = as_input(images[start : start + batch_size], comparison.usage.input_dtype)
        pieces.append((comparison.expected(piece)[0], comparison.run(piece)[0]))
    before, after = zip(*pieces, strict=True)
    return np.concatenate(before), np.concatenate(after)


def as_input(images: np.ndarray, input_dtype: str) -> np.ndarray:
    return images.astype(input_dtype, copy=False)


def cosines(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Of the embeddings of one picture by both."""
    each = pair_scores(before, after)
    return {"mean": float(each.mean()), "least": float(each.min()), "num_pictures": len(each)}


def cosine_words(told: dict[str, float]) -> str:
    return (f"cosine of original and exported embedding {told['mean']:.5f} in the mean, {told['least']:.5f} at least, "
            f"{told['num_pictures']:,} pictures")  # fmt: skip


# --------------------------------------------------------------------------------------------------------- pictures


def read_pictures(config: ExportConfig) -> np.ndarray | None:
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


@dataclass(frozen=True)
class Measure:
    """A benchmark, and the figure of it by which a file is judged."""

    title: str
    sides: tuple[Faces, ...]
    score: Callable[[list[np.ndarray]], float]  # embeddings of each side -> percent

    def of(self, comparison: Comparison, config: ExportConfig) -> dict[str, Any]:
        """The figure with the original embeddings and with the file's, and the cosines between them."""
        before, after = [], []
        for faces in self.sides:
            loader = evaluation_loader(faces, config.batch_size, config.workers)
            both = [
                embed_both(comparison, batch.images.numpy(), config.batch_size)
                for batch in counted(batches(loader), len(faces), self.title)
            ]
            before.append(np.concatenate([of_one for of_one, _ in both]))
            after.append(np.concatenate([of_other for _, of_other in both]))
        told = {"before_percent": self.score(before), "after_percent": self.score(after)}
        told["cosines"] = cosines(np.concatenate(before), np.concatenate(after))
        print(f"{self.title} %: {told['before_percent']:.2f} before, {told['after_percent']:.2f} after; "
              f"{cosine_words(told['cosines'])}")  # fmt: skip
        return told


def open_measure(config: ExportConfig, name: str) -> Measure:
    """The data of a benchmark and its main figure; of MORPH2 the first setting."""
    setting = specs_of_benchmark(config.face_dataset, BENCHMARKS[name])[0]
    opened = open_complete_eval_set(setting.name, config.face_dataset)
    sides = tuple(faces for faces, _ in opened.sides)
    for faces in () if config.assume_aligned else sides:
        check_shapes(faces, print)
    if opened.pairs is not None:
        pairs = opened.pairs

        def accuracy(of: list[np.ndarray]) -> float:
            scores = pair_scores(of[0][pairs.first], of[0][pairs.second])
            return ten_fold_verification(scores, pairs.genuine)["accuracy_percent"]

        return Measure(f"{setting.title} accuracy", sides, accuracy)
    if opened.protocol == "leave_one_out":
        return Measure(
            f"{setting.title} leave-one-out rank-1",
            sides,
            lambda of: leave_one_out(of[0], sides[0].identities)["rank1_percent"],
        )
    names = [np.array(side.identity_names)[side.identities] for side in sides]
    return Measure(
        f"{setting.title} rank-1",
        sides,
        lambda of: probe_gallery(of[0], names[0], of[1], names[1])["rank1_percent"],
    )


if __name__ == "__main__":
    run_script(lambda: export(parse_config(ExportConfig)))
