"""Tests models on FG-NET, MORPH2, CACD-VS and CALFW by the published protocols and beyond, and writes a report.

    python test.py                                          the published weights and data
    python test.py --weights runs/iefp/iefp.pth --face-dataset demo/face_dataset
    python test.py --weights runs/*/iefp.pth                several models side by side
    python test.py --group plain runs/plain_*/iefp.pth --group iefp runs/iefp_*/iefp.pth
    python test.py --embeddings others.npz --benchmarks fgnet
    python test.py --pairs pairs.txt --images photos --detector yunet.onnx    pairs of your own, photographs
    torchrun --nproc-per-node 2 test.py                     the same on two GPUs

Every image is embedded once (original and mirror image); both joins of the two views are reported, beside two
baselines: chance and raw grey pixels. Writes results.json, results.md and report.html into --output, and the thresholds
by which embed.py answers, calibration.json. The exit status is 0 when everything asked for ran, 2 when something was
missing or wrong; where nothing ran at all, the results of an earlier test stay.
"""

import datetime
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import tyro
from tyro.conf import UseAppendAction

from data.alignment.detectors import detector_help, open_detector
from data.alignment.photos import Aligner
from data.benchmarks import (
    OWN_AGES,
    EvalSpec,
    specs_of_benchmark,
    specs_of_bins,
    specs_of_folders,
    specs_of_pair_lists,
)
from data.faces import Faces, index_pictures
from data.index_cache import CACHE_FOLDER, find_record_file
from data.records import index_record_file
from data.verification_bins import find_verification_bins
from evaluation.benchmark_run import Ran, RunOptions, run_benchmarks
from evaluation.calibration import write_calibrations
from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.embeddings.feature_files import Distractors, holds_features
from evaluation.embeddings.feature_files import open_distractors as open_feature_file
from evaluation.embeddings.networks import check_onnx_input
from evaluation.groups.models import Group, check_groups, compare_groups, files_of
from evaluation.models_under_test import Extraction, Model, open_models
from evaluation.report.page import report_html
from evaluation.report.pictures import picture_reader
from evaluation.report.section_false_matches import false_match_table
from evaluation.report.section_groups import group_text
from evaluation.report.section_summary import erasure_in_words
from evaluation.report.tables import comparison_table, table
from evaluation.scoring import make_rows, missing_figures
from meta import (
    BENCHMARKS,
    FACE_DATASET_FOLDER,
    FILENAME_PATTERNS,
    PUBLISHED_FIGURES,
    WEIGHT_FILES,
    UserError,
    benchmarks_by_protocol,
)
from models.weights import check_weight_file
from utils.cli import (
    Either,
    Needs,
    With,
    Without,
    as_plain,
    available_cores,
    bounded,
    compare_settings,
    given,
    output_folder,
    parse_config,
    run_script,
)
from utils.distributed import gather_lists, init_distributed, shutdown_distributed
from utils.files import write_json, write_text

EMBEDS_PICTURES = Either(With("weights"), Without("embeddings"))  # not files of embeddings alone


@dataclass(frozen=True)
class TestConfig:
    """Test models on the four benchmarks by the published protocols and beyond."""

    weights: tuple[Path, ...] = ()
    """The released IEFP file (the default), InsightFace backbone.pth files, what train.py writes, or ONNX models of
    aligned faces; several are set side by side."""
    onnx_input: str | None = None
    """How pictures go into the ONNX models, where their files do not say it: "bgr 160x160 mean=127.5 scale=128", height
    before width."""
    embeddings: tuple[Path, ...] = ()
    """Embeddings of other people's models, scored without their code: .npz with names and embeddings, .npy or .bin
    with a text file of names beside it."""
    group: Annotated[tuple[Group, ...], UseAppendAction] = ()
    """A name and its files, models trained alike with one seed each: --group plain runs/plain_*/iefp.pth. Gives mean
    and deviation over the seeds, and differences to the first group; models are paired by order."""
    benchmarks: tuple[Literal[tuple(BENCHMARKS)], ...] = tuple(BENCHMARKS)
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the benchmarks' folders."""
    bins: tuple[Path, ...] = ()
    """InsightFace verification sets (lfw.bin, agedb_30.bin, ...); those directly in --face-dataset are tested too,
    unless --benchmarks, --bins or --pairs says what to test."""
    pairs: tuple[Path, ...] = ()
    """Lists of pairs of your own, as CSV, TSV or LFW's pairs.txt, tested as CACD-VS; the published benchmarks then run
    only if --benchmarks names them."""
    images: Path | None = None
    """Folder of the pictures that --pairs names."""
    detector: Annotated[Path | None, tyro.conf.arg(help=f"{detector_help()} Of --pairs.")] = None
    identity_folders: tuple[Path, ...] = ()
    """Other sets with one folder a person (AgeDB, say), tested by FG-NET's protocols. Results know each by the last
    part of its path, or by more of it where another set has that name."""
    age_folder: tuple[Path, ...] = ()
    """Pictures with ages of people whom nobody names, anywhere below a folder (UTKFace, say): false matches by age."""
    names: Literal[(*FILENAME_PATTERNS, "none")] = "ms1mv3"
    """How the file names of --identity-folders and --age-folder hold the age; ms1mv3 fits AgeDB's too
    (0_MariaCallas_35_f.jpg)."""
    morph2_subjects: tuple[int, ...] = bounded((), low=2)
    """MORPH2 at these numbers of subjects instead of 3,000 and 10,000: the folders of that number where they are
    there, else so many drawn by --seed from the largest."""
    output: Path = output_folder(Path("results"))
    """Folder for results.json, results.md, report.html and calibration.json."""
    analysis: bool = True
    """Also measure what lies beyond the published figures: intervals, age gaps, ranks to 100, probes of age,
    false matches by age."""
    pictures: bool = True
    """Show the worst errors as pictures in report.html; faces are personal data."""
    distractors: Path | None = None
    """Other people among whom FG-NET's are searched too: a folder or record file of pictures, or features (.npz,
    .npy, MegaFace's .bin, or a folder of these) as long as the joined embeddings, 1,024 numbers."""
    seed: int = bounded(0, low=0)
    """Of resampling and of splits into folds."""
    allow_missing: bool = False
    """Leave pairs out whose pictures are missing, and count them, instead of stopping."""
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    keep_embeddings: bool = True
    """Cache embeddings on disk, so that a second test of the same weights and data takes seconds."""
    cache_folder: Path | None = output_folder()
    """Where embeddings are cached; .iefp_cache in --face-dataset unless given."""
    batch_size: int = bounded(64, low=1)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = bounded(min(8, available_cores()), low=0)
    """Processes that read images; 0 reads in the main process."""

    NEEDS: ClassVar[Needs] = {
        "group": tuple(Without(one, why="since a group names its own files") for one in ("weights", "embeddings")),
        "age_folder": (With("analysis"), With("names", *FILENAME_PATTERNS)),
        "pairs": (With("images"),),
        "images": (With("pairs"),),
        "detector": (With("pairs"), Without("assume_aligned", why="which takes pictures as they are")),
        "names": (Either(With("identity_folders"), With("age_folder")),),
        "morph2_subjects": (With("benchmarks", *(name for name, one in BENCHMARKS.items() if one.subject_counts)),),
        "pictures": (With("analysis"),),
        "distractors": (
            Either(With("benchmarks", *benchmarks_by_protocol("leave_one_out")), With("identity_folders")),
        ),
        "seed": (Either(With("analysis"), With("morph2_subjects")),),
        "allow_missing": (Either(With("benchmarks", *benchmarks_by_protocol("ten_fold_verification")), With("pairs")),),
        "keep_embeddings": (EMBEDS_PICTURES,),
        "cache_folder": (EMBEDS_PICTURES, With("keep_embeddings")),
        "batch_size": (EMBEDS_PICTURES,),
        "workers": (EMBEDS_PICTURES,),
    }


# Settings that may differ between machines: places and how a machine is used.
OF_A_MACHINE = {"weights", "embeddings", "group", "face_dataset", "bins", "pairs", "images", "detector",
                "identity_folders", "age_folder", "distractors", "output", "cache_folder", "device",
                "workers"}  # fmt: skip
SCHEMA = 3  # of results.json; 1 had no analysis, 2 one model only


def settings_of(config: TestConfig) -> list[EvalSpec]:
    """All that is to run, in the order of the report; each has a name of its own in results.json.

    Raises:
        UserError: one is asked for twice.
    """
    settings = []
    asked = set(given(config))
    for name in config.benchmarks if "benchmarks" in asked or not config.pairs else ():
        settings += specs_of_benchmark(config.face_dataset, BENCHMARKS[name], config.morph2_subjects)
    pattern = None if config.names == "none" else config.names
    settings += specs_of_folders(config.identity_folders, pattern, beside=settings)
    settings += specs_of_folders(config.age_folder, pattern, beside=settings, benchmark=OWN_AGES)
    found = () if asked & {"benchmarks", "pairs"} else find_verification_bins(config.face_dataset)
    settings += specs_of_bins(config.bins or found, beside=settings)
    settings += specs_of_pair_lists(config.pairs, config.images, aligner_of(config), config.workers, beside=settings)
    names = [setting.name for setting in settings]
    for setting in settings:
        if names.count(setting.name) > 1:
            raise UserError(f"{setting.title} is asked for twice, by --benchmarks or --morph2-subjects: give it once.")
    return settings


def aligner_of(config: TestConfig) -> Aligner | None:
    if config.detector is None:
        return None
    open_detector(str(config.detector))  # what is wrong with it is found before the work
    return Aligner(detector_path=str(config.detector))


def open_distractors(config: TestConfig) -> Distractors | Faces | None:
    """Features, or pictures that each model has to embed."""
    path = config.distractors
    if path is None or holds_features(path) or not path.exists():
        return None if path is None else open_feature_file(path)
    if find_record_file(path) is not None:
        return index_record_file(find_record_file(path), what="distractors")
    return index_pictures(path, "distractors")


def test(config: TestConfig) -> int:
    """Runs every benchmark asked for that has its data; the exit status says whether all did."""
    process = init_distributed(config.device)
    compare_settings(config, process, OF_A_MACHINE)
    check_groups(config.group)
    (weights, embeddings), settings = files_to_test(config), settings_of(config)
    check_files(config)
    models = open_models(weights, embeddings, extraction_of(config), process, config.onnx_input)
    options = RunOptions(
        config.analysis,
        config.seed,
        config.allow_missing,
        check_shapes=bool(weights) and not config.assume_aligned,
        distractors=open_distractors(config),
        with_first=not config.group,
    )
    ran = run_benchmarks(settings, models, process, options, lambda why: print(f"test.py: {why}", file=sys.stderr))
    if process.is_first:
        write_report(config, models, ran)
    status = max(gather_lists([2 if any(ran.failures.values()) else 0], process))
    shutdown_distributed(process)
    return status


def files_to_test(config: TestConfig) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Weight files, and files of embeddings; the released weights where nothing is given."""
    weights, embeddings = files_of(config.group) if config.group else (config.weights, config.embeddings)
    return weights or (() if embeddings else (Path(WEIGHT_FILES["iefp"].path),)), embeddings


def check_files(config: TestConfig) -> None:
    """Raises UserError for files that aren't there, before any model is built."""
    weights, embeddings = files_to_test(config)
    for path in weights:
        check_weight_file(path, or_onnx=True)
    check_onnx_input(config.onnx_input, weights)
    files = {"group" if config.group else "embeddings": embeddings, "distractors": [config.distractors],
             "pairs": config.pairs, "images": [config.images]}  # fmt: skip
    for name, paths in files.items():
        for path in paths:
            if path is not None and not path.exists():
                raise UserError(f"--{name} {path} does not exist: check its path.")


def extraction_of(config: TestConfig) -> Extraction:
    folder = (config.cache_folder or config.face_dataset / CACHE_FOLDER) if config.keep_embeddings else None
    return Extraction(config.batch_size, config.workers, folder, config.assume_aligned)


# ------------------------------------------------------------------------------------------------------ the report


def write_report(config: TestConfig, models: list[Model], ran: Ran) -> None:
    """Writes results and report; where nothing ran, those of an earlier test stay."""
    if not any(ran.results.values()):
        print(f"no benchmark ran: nothing is written, and what {config.output} holds stays as it is")
        return
    report = {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "software": {"torch": torch.__version__, "numpy": np.__version__},
        "settings": as_plain(config),
        "models": [
            {"name": model.name, **model.description, "results": ran.results[model.name],
             "did_not_run": ran.failures[model.name]}
            for model in models
        ],
        "comparisons": ran.comparisons,
        "published": [as_plain(figure) for figure in PUBLISHED_FIGURES],
    }  # fmt: skip
    erased = {model.name: erasure_in_words(model.description) for model in models}
    texts = [f"{name}: age erased by purify.py, {what}" for name, what in erased.items() if what]
    for model in models:
        if rows := make_rows(ran.results[model.name]):
            heading = f"{model.name}\n\n" if len(models) > 1 else ""
            texts.append(heading + table(rows))
            texts += [f"left out: {sentence}" for sentence in missing_figures(ran.results[model.name])]
    if config.group:
        names = dict(zip((path for paths in files_to_test(config) for path in paths), models, strict=True))
        members = {name: [names[path].name for path in paths] for name, paths in config.group}
        report["groups"] = compare_groups(members, ran.results)
        texts.append(group_text(report["groups"]))
    if ran.comparisons:
        texts.append(comparison_table(ran.comparisons))
    texts += false_match_table(report)
    text = "\n\n".join(texts)
    write_json(config.output / "results.json", report)
    calibration = write_calibrations(config.output, report["models"], ANALYSED_JOIN)
    write_text(config.output / "results.md", text + "\n")
    pictures = picture_reader(ran.opened) if config.pictures else None
    write_text(config.output / "report.html", report_html(report, pictures))
    print(text)
    print(f"written: {config.output / 'results.json'}, {config.output / 'results.md'}")
    print(f"report to look at: {config.output / 'report.html'}")
    if calibration is not None:
        print(f"thresholds for embed.py: {calibration}")


if __name__ == "__main__":
    run_script(lambda: test(parse_config(TestConfig)))
