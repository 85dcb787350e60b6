"""Tests a model on FG-NET, MORPH2, CACD-VS and CALFW by the published protocols.

    python test.py                                          the published weights and data
    python test.py --weights runs/iefp/iefp.pth --face-dataset demo/face_dataset
    torchrun --nproc-per-node 2 test.py                     the same on two GPUs

Every image is embedded once (original and mirror image); both joins of the two views are reported, and beside them
what chance and raw grey pixels give. Writes results.json and results.md into --output. The exit status is 0 when
everything asked for ran, 2 when something was missing or wrong.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.faces import FaceIndex, index_identity_folders
from data.feature_files import open_distractors
from data.loaders import batches, evaluation_loader
from data.pairs import PairList, find_pair_list, make_cacd_vs_pairs, read_pair_list
from data.transforms import to_network_input
from data.verification_bins import VerificationBin, find_verification_bins, read_verification_bin
from meta import BENCHMARKS, FACE_DATASET_FOLDER, FILENAME_PATTERNS, WEIGHT_FILES, Benchmark, UserError
from models.weights import load_for_embedding
from utils.analysis import analyse_identities, analyse_pairs, analyse_probe_gallery
from utils.config import bounded, parse_config, run_script, write_json
from utils.distributed import Process, gather_lists, start_process, stop_process, tell
from utils.extraction import Extracted, extract
from utils.protocols import (
    age_group_error,
    exact_verification,
    join_views,
    leave_one_out,
    leave_one_out_chance,
    mates_against_rest,
    mates_against_rest_chance,
    pair_scores,
    probe_gallery,
    probe_gallery_chance,
    ten_fold_verification,
)
from utils.report import Row, rows_of, table

JOINS = ("concatenate", "add")
ANALYSED_JOIN = "concatenate"  # of what lies beyond the published figures


@dataclass(frozen=True)
class TestConfig:
    """Test a model on the four benchmarks by the published protocols."""

    weights: Path = Path(WEIGHT_FILES["iefp"].path)
    """The released IEFP file, an InsightFace backbone.pth, or what train.py writes."""
    benchmarks: tuple[Literal["fgnet", "morph2", "cacd_vs", "calfw"], ...] = tuple(BENCHMARKS)
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the benchmarks' folders."""
    bins: tuple[Path, ...] = ()
    """InsightFace verification sets (lfw.bin, agedb_30.bin, ...); those directly in --face-dataset are tested too,
    unless --benchmarks or --bins says what to test."""
    output: Path = Path("results")
    """Folder for results.json and results.md."""
    analysis: bool = True
    """Also measure what lies beyond the published figures: intervals, age gaps, ranks to 100, leaks of age."""
    distractors: Path | None = None
    """Features of strangers among whom FG-NET's people are searched too: .npz, .npy or MegaFace's .bin, or a folder of
    these; as long as the joined embeddings, 1,024 numbers."""
    seed: int = bounded(0, low=0)
    """Of resampling and of splits into folds."""
    allow_missing: bool = False
    """Leave pairs out whose pictures are missing, and count them, instead of stopping."""
    batch_size: int = bounded(64, low=1)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = bounded(8, low=0)
    """Processes that read images; 0 reads in the main process."""


SCHEMA = 2  # of results.json; 1 had no analysis
Embed = Callable[[FaceIndex, str], Extracted]
Result = dict[str, Any]  # protocol -> column (a join or a floor) -> figures
Score = Callable[[], Result]  # what is left to do once all is embedded: under torchrun the first process does it


@dataclass(frozen=True)
class Setting:
    """One thing to run and report: a benchmark, or one of MORPH2's two sizes."""

    name: str  # in results.json
    title: str  # on the screen
    benchmark: Benchmark
    folders: tuple[str, ...]  # below face_dataset/
    bin_path: Path | None = None  # of a verification set, which has no folders


def settings_of(benchmark: Benchmark) -> list[Setting]:
    if not benchmark.subject_counts:
        return [Setting(benchmark.name, benchmark.title, benchmark, benchmark.folders)]
    return [
        Setting(
            f"{benchmark.name}_{count}",
            f"{benchmark.title} {count:,}",
            benchmark,
            tuple(folder for folder in benchmark.folders if folder.endswith(f"_{count}")),
        )
        for count in benchmark.subject_counts
    ]


def settings_of_bins(config: TestConfig) -> list[Setting]:
    """One a .bin file: those of --bins, or, where nothing else was asked for, those in face_dataset."""
    found = () if config.benchmarks != tuple(BENCHMARKS) else find_verification_bins(config.face_dataset)
    paths = config.bins or found
    names = [path.name for path in paths]
    return [
        Setting(path.name if names.count(path.name) == 1 else str(path), path.name, BIN, (), path) for path in paths
    ]


BIN = Benchmark("bin", "verification set", "ten_fold_verification", folders=(), pattern=None, source="",
                unpacked_into="")  # fmt: skip


# ------------------------------------------------------------------------------------------------- the benchmarks


def run_fgnet(config: TestConfig, setting: Setting, process: Process, embed: Embed) -> Score:
    """Leave-one-out, and every pair of mates against all images of other people."""
    faces = index_identities(config, setting, setting.folders[0])
    distractors = open_distractors(config.distractors) if config.distractors else None
    extracted, identities = embed(faces, setting.title), faces.identities

    def score() -> Result:
        result = {
            "num_images": len(faces),
            "num_identities": faces.num_identities,
            "leave_one_out": for_each_column(extracted, partial(leave_one_out, identities=identities))
            | {"chance": leave_one_out_chance(identities)},
            "mates_against_rest": for_each_column(extracted, partial(mates_against_rest, identities=identities))
            | {"chance": mates_against_rest_chance(identities)},
            **age_errors([(extracted, faces)]),
        }
        if config.analysis:
            embeddings = join_views(extracted.original, extracted.mirror, ANALYSED_JOIN)
            result["analysis"] = analyse_identities(
                embeddings, identities, faces.ages, extracted.age_features, faces.key, distractors, config.seed
            )
        return result

    return score


def run_morph2(config: TestConfig, setting: Setting, process: Process, embed: Embed) -> Score:
    """One probe and one gallery image a subject."""
    probe, gallery = (index_identities(config, setting, folder) for folder in setting.folders)
    # Subjects are matched by folder name: the two sides may not hold the same ones in the same order.
    probe_subjects, gallery_subjects = (np.array(side.identity_names)[side.identities] for side in (probe, gallery))
    of_probe, of_gallery = embed(probe, f"{setting.title} probes"), embed(gallery, f"{setting.title} gallery")

    def score() -> Result:
        analysis = {}
        if config.analysis:
            joined = [join_views(side.original, side.mirror, ANALYSED_JOIN) for side in (of_probe, of_gallery)]
            analysis = {"analysis": analyse_probe_gallery(joined[0], probe_subjects, joined[1], gallery_subjects)}
        columns = zip(embedding_columns(of_probe), embedding_columns(of_gallery), strict=True)
        return {
            "num_probes": len(probe),
            "num_gallery": len(gallery),
            "probe_gallery": {
                column: probe_gallery(probe_embeddings, probe_subjects, gallery_embeddings, gallery_subjects)
                for (column, probe_embeddings), (_, gallery_embeddings) in columns
            }
            | {"chance": probe_gallery_chance(probe_subjects, gallery_subjects)},
            **age_errors([(of_probe, probe), (of_gallery, gallery)]),
            **analysis,
        }

    return score


def run_verification(config: TestConfig, setting: Setting, process: Process, embed: Embed) -> Score:
    """Ten folds of pairs; the published figures, and exact ones over all pairs under other names."""
    pairs = read_pairs(config, setting, process)
    extracted, is_bin = embed(pairs.images, setting.title), isinstance(pairs, VerificationBin)

    def score_pairs(embeddings: np.ndarray) -> dict[str, float]:
        scores = pair_scores(embeddings[pairs.first], embeddings[pairs.second])
        return ten_fold_verification(scores, pairs.genuine) | exact_verification(scores, pairs.genuine)

    def analysis() -> Result:
        if not config.analysis:
            return {}
        embeddings = join_views(extracted.original, extracted.mirror, ANALYSED_JOIN)
        scores = pair_scores(embeddings[pairs.first], embeddings[pairs.second])
        of = analyse_pairs(scores, pairs.genuine, pairs.first, pairs.second, pairs.images.key, config.seed)
        return {"analysis": of}

    return lambda: {
        **({"sha256": pairs.sha256} if is_bin else {}),
        "num_pairs": len(pairs),
        "num_pairs_dropped": pairs.num_pairs_dropped,
        "verification": for_each_column(extracted, score_pairs)
        # InsightFace's way for .bin files: the views are added before they are normalised.
        | ({"sum": score_pairs(extracted.original + extracted.mirror)} if is_bin else {})
        | {"chance": VERIFICATION_CHANCE},
        **analysis(),
    }


VERIFICATION_CHANCE = {
    "accuracy_percent": 50.0,
    "auc_percent": 50.0,
    "eer_percent": 50.0,
    "tar_at_far_1e-2_percent": 1.0,
}
RUNNERS = {
    "leave_one_out": run_fgnet,
    "probe_gallery": run_morph2,
    "ten_fold_verification": run_verification,
}


def for_each_column(extracted: Extracted, protocol: Callable[[np.ndarray], dict]) -> dict[str, dict[str, float]]:
    """The protocol's figures for both joins and for raw grey pixels."""
    return {column: protocol(embeddings) for column, embeddings in embedding_columns(extracted)}


def embedding_columns(extracted: Extracted) -> list[tuple[str, np.ndarray]]:
    joined = [(how, join_views(extracted.original, extracted.mirror, how)) for how in JOINS]
    return [*joined, ("grey_pixels", extracted.grey_pixels)]


def age_errors(sides: list[tuple[Extracted, FaceIndex]]) -> dict[str, dict[str, float]]:
    """Age-group error over the images of all sides; empty without an age branch."""
    if sides[0][0].age_probabilities_original is None:
        return {}
    original = np.concatenate([extracted.age_probabilities_original for extracted, _ in sides])
    mirror = np.concatenate([extracted.age_probabilities_mirror for extracted, _ in sides])
    return {"age": age_group_error(original, mirror, np.concatenate([faces.age_groups for _, faces in sides]))}


# ------------------------------------------------------------------------------------------------------- the data


def index_identities(config: TestConfig, setting: Setting, folder: str) -> FaceIndex:
    return index_identity_folders(
        config.face_dataset / folder,
        FILENAME_PATTERNS[setting.benchmark.pattern],
        min_identities=2,
        what=f"{setting.title} images ({setting.benchmark.notes})",
        how_to_get=how_to_get(config, setting.benchmark),
    )


def read_pairs(config: TestConfig, setting: Setting, process: Process) -> PairList:
    """The pairs of a .bin file, of the list, or, for CACD-VS without one, of the rule by which its list is made."""
    if setting.bin_path is not None:
        pairs = read_verification_bin(setting.bin_path)
        tell(process, f"{setting.bin_path}: {len(pairs):,} pairs, SHA-256 {pairs.sha256}")
        return pairs
    benchmark, images = setting.benchmark, config.face_dataset / setting.folders[0]
    if not images.is_dir():
        raise UserError(f"folder {images} does not exist: it should hold {setting.title} images "
                        f"({benchmark.notes}); {how_to_get(config, benchmark)}.")  # fmt: skip
    list_path, first_place = (
        find_pair_list(config.face_dataset, benchmark),
        config.face_dataset / benchmark.pair_lists[0],
    )
    if list_path is not None:
        pairs = read_pair_list(list_path, images, config.allow_missing)
    elif benchmark.name == "cacd_vs":
        pairs = make_cacd_vs_pairs(images, config.allow_missing)
        tell(process, f"{setting.title}: there is no list {first_place}; the pairs are made by its rule")
    else:
        raise UserError(f"pair list {first_place} does not exist: {how_to_get(config, benchmark)}.")
    if pairs.num_pairs_dropped:
        tell(process, f"{setting.title}: {pairs.num_pairs_dropped} pairs left out, {len(pairs.missing)} images "
             f"missing; its figures are not comparable with published ones")  # fmt: skip
    return pairs


def how_to_get(config: TestConfig, benchmark: Benchmark) -> str:
    return (
        f"get {benchmark.source} and unpack it into {config.face_dataset / benchmark.unpacked_into}, or draw made-up "
        f"faces with `python prepare.py synthetic --output demo/face_dataset` and add --face-dataset demo/face_dataset"
    )


# ------------------------------------------------------------------------------------------------------ the table

LABELS = {
    "leave_one_out": {"rank1_percent": "leave-one-out rank-1 %"},
    "mates_against_rest": {
        "cmc_percent_1": "mates against rest, rank 1 %",
        "cmc_percent_10": "mates against rest, rank 10 %",
    },
    "probe_gallery": {"rank1_percent": "rank-1 %"},
    "verification": {
        "accuracy_percent": "ten-fold accuracy %",
        "auc_percent": "ten-fold AUC %",
        "eer_percent": "ten-fold EER %",
        "tar_at_far_1e-2_percent": "TAR % at FAR 1e-2, all pairs",
    },
}


def make_rows(settings: list[Setting], results: dict[str, Result]) -> list[Row]:
    """The table's rows of those settings that ran."""
    rows = []
    for setting in settings:
        result = results.get(setting.name, {})
        for protocol, labels in LABELS.items():
            if protocol in result:
                rows += rows_of(setting.title, labels, result[protocol])
        if "age" in result:  # of the age branch: no views are joined, so one column
            rows.append(Row(setting.title, "age error, in age groups", result["age"]["age_group_mae"], None))
    return rows


# --------------------------------------------------------------------------------------------------------- the run


def test(config: TestConfig) -> int:
    """Runs every benchmark asked for that has its data; the exit status says whether all did."""
    process = start_process(config.device)
    model, has_age_branch = load_for_embedding(config.weights)
    model.to(process.device)
    if not has_age_branch:
        tell(process, f"{config.weights} holds no age branch: age errors are left out")

    def embed(faces: FaceIndex, what: str) -> Extracted:
        pin_memory = process.device.type == "cuda"
        loader = evaluation_loader(
            faces, config.batch_size, config.workers, pin_memory, process.rank, process.world_size
        )
        return extract(model, batches(loader), len(faces), process, to_network_input, has_age_branch, what)

    settings = [setting for name in config.benchmarks for setting in settings_of(BENCHMARKS[name])]
    settings += settings_of_bins(config)
    results, failures = run_settings(config, settings, embed, process)
    if process.is_first:
        report = {
            "schema": SCHEMA,
            "weights": str(config.weights),
            "backbone": model.backbone_id.backbone,
            "purification": model.backbone_id.purification,
            "results": results,
            "did_not_run": failures,
        }
        write_report(config, report, table(make_rows(settings, results)))
    status = max(gather_lists([2 if failures else 0], process))
    stop_process(process)
    return status


def run_settings(
    config: TestConfig, settings: list[Setting], embed: Embed, process: Process
) -> tuple[dict[str, Result], dict[str, str]]:
    """Results of the settings that ran, and a sentence for each that did not.

    Under torchrun all processes embed, each its share; the first one scores and reports.
    """
    results, failures = {}, {}
    for setting in settings:
        try:
            score = RUNNERS[setting.benchmark.protocol](config, setting, process, embed)
            if process.is_first:
                results[setting.name] = score()
        except UserError as error:
            failures[setting.name] = str(error)
            if process.is_first:
                print(f"test.py: {setting.title} did not run: {error}", file=sys.stderr)
    return results, failures


def write_report(config: TestConfig, report: dict[str, Any], text: str) -> None:
    write_json(config.output / "results.json", report)
    (config.output / "results.md").write_text(text + "\n")
    print(text if report["results"] else "no benchmark ran")
    print(f"written: {config.output / 'results.json'}, {config.output / 'results.md'}")


if __name__ == "__main__":
    run_script(lambda: test(parse_config(TestConfig)))
