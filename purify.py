"""Erases what linear readers find of the age in a trained model's features: no training, one pass over some pictures.

    python purify.py --weights backbone.pth --data pictures/ -o purified.pth
    python purify.py --weights runs/iefp/iefp.pth --data train.rec --ages ages.csv -o purified.pth
    python purify.py --weights w600k_r50.onnx --data UTKFace/ --names fgnet -o purified.onnx
    torchrun --nproc-per-node 2 purify.py --weights backbone.pth --data pictures/ -o purified.pth

The pictures are aligned faces of people of all ages, as many as a feature has numbers or more; who they are is not
needed. The new file is used as the old one is. A JSON file beside it says what it was fitted on. Features are cached:
stopped and started again, the same command goes on.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro

from data.ages.tables import AgeColumns
from data.check.image_scan import check_shapes
from data.index_cache import CACHE_FOLDER
from evaluation.embeddings.erasures import facts_path
from evaluation.embeddings.networks import check_onnx_input
from evaluation.erasure.fitting import fit_erasure
from evaluation.erasure.pictures import AgedPictures, check_enough, choose, open_aged_pictures
from evaluation.erasure.sources import NUM_CHECKED, Source, check_suffixes, open_source
from evaluation.models_under_test import Extraction, in_step
from meta import FILENAME_PATTERNS, UserError
from models.erasure import BASES, CHILDHOOD_KNOTS, Basis
from models.weights import check_weight_file
from utils.cli import (
    Needs,
    With,
    Without,
    available_cores,
    bounded,
    check_input_files,
    compare_settings,
    input_file,
    output_file,
    output_folder,
    parse_config,
    run_script,
)
from utils.distributed import DistInfo, init_distributed, print_rank0, shutdown_distributed
from utils.files import check_is_new
from utils.progress import progress


@dataclass(frozen=True)
class PurifyConfig:
    """Erase age from the features of a trained model, in closed form."""

    weights: Path
    """Any weight file with an identity branch: an InsightFace backbone.pth, what train.py writes, .safetensors; or an
    ONNX model of aligned faces."""
    data: Path
    """Pictures of people of all ages: a folder, flat or with one folder a person, or a record file (train.rec)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = output_file(dataclasses.MISSING)
    """File to write, of the kind of --weights. A JSON file beside it says what it was fitted on."""
    onnx_input: str | None = None
    """As in test.py: how pictures go into an ONNX model, where its file does not say it."""
    ages: Path | None = input_file()
    """CSV of picture (path below --data, or record key) and age. Without it ages come from the labels of the record
    file, from the file names, or, where these hold none, from the age branch of --weights."""
    age_columns: AgeColumns = None
    names: Literal[(*FILENAME_PATTERNS, "none")] | None = None
    """How the file names hold the age; unless given, as the one pattern says that fits all. none: not at all."""
    max_images: int | None = bounded(None, low=1)
    """Take a sample of so many pictures."""
    seed: int = bounded(0, low=0)
    """Of the sample and of the folds that test the result."""
    basis: Literal[tuple(BASES)] = "spline"
    """Functions of the age that no linear reader finds afterwards. spline: linear between --knots; groups: the eight
    age groups; linear: the age alone."""
    knots: tuple[float, ...] = bounded(CHILDHOOD_KNOTS, low=0, high=120)
    """Years between which the spline is linear."""
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    keep_embeddings: bool = True
    """Cache features on disk, so that the command goes on where it was stopped."""
    cache_folder: Path | None = output_folder()
    """Where features are cached; .iefp_cache beside --data unless given."""
    batch_size: int = bounded(64, low=1)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = bounded(min(8, available_cores()), low=0)
    """Processes that read pictures; 0 reads in the main process."""
    force: bool = False
    """Replace the file of --output and the JSON file beside it."""

    NEEDS: ClassVar[Needs] = {
        "names": (Without("ages"),),
        "age_columns": (With("ages"),),
        "knots": (With("basis", "spline"),),
        "cache_folder": (With("keep_embeddings"),),
    }


OF_A_MACHINE = {"weights", "data", "output", "ages", "cache_folder", "device", "workers"}


def purify(config: PurifyConfig) -> None:
    """Fits an erasure to the pictures and writes the weights with it."""
    check_flags(config)
    process = init_distributed(config.device)
    compare_settings(config, process, OF_A_MACHINE)
    source = open_source(config.weights, process, config.onnx_input)
    for sentence in source.network.remarks:
        print_rank0(process, sentence)
    pictures = open_pictures(config, source, process)
    chosen = choose(pictures, config.max_images, config.seed)
    check_enough(pictures, chosen, source.network.size, config.max_images)
    fitted = fit_erasure(
        source, pictures, chosen, basis_of(config), seed=config.seed, extraction=extraction_of(config), process=process
    )
    if fitted is not None:
        erasure, facts = fitted
        facts = describe(config, source, pictures) | facts
        images = torch.stack([pictures.faces.decode(int(i)) for i in chosen[:NUM_CHECKED]])
        paths = source.write(config.output, erasure, {"erasure": facts}, images)
        print("\n".join(summary(facts, source.network.size)))
        print(f"written: {', '.join(map(str, paths))}")
    shutdown_distributed(process)


def check_flags(config: PurifyConfig) -> None:
    """Raises UserError for what the flags alone show to be wrong, before a model is built or a picture listed."""
    check_suffixes(config.weights, config.output)
    check_weight_file(config.weights, or_onnx=True)
    check_onnx_input(config.onnx_input, (config.weights,))
    check_input_files(config)
    if not config.data.exists():
        raise UserError(f"--data {config.data} does not exist: give a folder of pictures or a record file.")
    if not config.output.parent.is_dir():
        raise UserError(f"the folder {config.output.parent} of -o {config.output.name} does not exist: make it first.")
    if config.output.exists() and config.output.samefile(config.weights):
        raise UserError(f"-o {config.output} is the --weights themselves: give another name.")
    for path in (config.output, facts_path(config.output)):
        check_is_new(path, config.force)
    basis_of(config)


def basis_of(config: PurifyConfig) -> Basis:
    return BASES[config.basis](*([config.knots] if config.basis == "spline" else []))


def open_pictures(config: PurifyConfig, source: Source, process: DistInfo) -> AgedPictures:
    """The pictures and their ages, or the age branch that will give them.

    Raises:
        UserError: there are none, they are not aligned, or nothing says how old anyone is.
    """
    report = functools.partial(print_rank0, process)
    pictures = open_aged_pictures(
        config.data, config.names, config.ages, columns=config.age_columns, cache_folder=config.cache_folder,
        report=report, progress=functools.partial(progress, enabled=process.is_first, silent_below=2.0),
    )  # fmt: skip
    if pictures.ages is None and not source.network.has_age_branch:
        raise UserError(
            f"no age is known of the pictures in {config.data}: their names or labels hold none, and {config.weights} "
            "has no age branch; give --ages with a table of them, as `python prepare.py ages --data FOLDER --weights "
            "age.pth --output ages.csv` makes."
        )
    if not config.assume_aligned:
        in_step(lambda: check_shapes(pictures.faces, report), process)
    report(f"{len(pictures.faces):,} pictures in {pictures.faces.root}; ages by {source_of_ages(pictures, source)}")
    return pictures


def source_of_ages(pictures: AgedPictures, source: Source) -> str:
    return pictures.ages_from or f"the age branch of {source.network.path}"


def extraction_of(config: PurifyConfig) -> Extraction:
    folder = config.cache_folder or config.data.absolute().parent / CACHE_FOLDER
    return Extraction(config.batch_size, config.workers, folder if config.keep_embeddings else None)


def describe(config: PurifyConfig, source: Source, pictures: AgedPictures) -> dict[str, Any]:
    """What the erasure was made of, for the JSON file."""
    return {
        "made_by": "purify.py of IEFP, age-invariant face recognition",
        "weights": source.network.path.name,
        "weights_sha256": source.network.sha256,
        "ages_from": source_of_ages(pictures, source),
        "num_without_age": 0 if pictures.ages is None else int((pictures.ages < 0).sum()),
        "basis": config.basis,
        "knots": list(config.knots) if config.basis == "spline" else None,
    }


def summary(facts: dict[str, Any], size: int) -> list[str]:
    """What was fitted, in sentences."""
    years, people = facts["years"], facts["num_people"]
    before, after = ("-" if value is None else f"{round(value, 2) + 0.0:.2f}" for value in
                     (facts["age_r2_before"], facts["age_r2_after"]))  # fmt: skip
    return [
        f"fitted to {facts['num_pictures']:,} pictures of people of {years['min']:.0f} to {years['max']:.0f} years"
        + (f", {facts['num_without_age']:,} without an age left out" if facts["num_without_age"] else ""),
        f"erased: {facts['rank']} directions of {size}, {facts['variance_removed_percent']:.1f} % of the variance",
        f"R2 of the age as a linear reader finds it on {f'{people:,} people' if people else 'pictures'} held out in "
        f"{facts['num_folds']} folds: {before} before, {after} after",
    ]


if __name__ == "__main__":
    run_script(lambda: purify(parse_config(PurifyConfig)))
