"""Tests models on FG-NET, MORPH2, CACD-VS and CALFW by the published protocols and beyond, and writes a report.

    python test.py                                          the published weights and data
    python test.py --weights runs/iefp/iefp.pth --face-dataset demo/face_dataset
    python test.py --weights runs/*/iefp.pth                several models side by side
    python test.py --embeddings others.npz --benchmarks fgnet
    torchrun --nproc-per-node 2 test.py                     the same on two GPUs

Every image is embedded once (original and mirror image); both joins of the two views are reported, and beside them
what chance and raw grey pixels give. Writes results.json, results.md and report.html into --output, and the thresholds
by which embed.py answers, calibration.json. The exit status is 0 when everything asked for ran, 2 when something was
missing or wrong; where nothing ran at all, the results of an earlier test stay.
"""

import contextlib
import datetime
import functools
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from PIL import Image

from data.benchmarks import (
    OpenBenchmark,
    Setting,
    open_benchmark,
    settings_of_benchmark,
    settings_of_bins,
    settings_of_folders,
    short_names,
)
from data.check.image_scan import check_shapes
from data.faces import Faces, index_pictures
from data.index_cache import CACHE_FOLDER, find_record_file
from data.loaders import batches, evaluation_loader
from data.records import index_record_file
from data.transforms import to_network_input
from data.verification_bins import find_verification_bins
from evaluation.calibration import write_calibrations
from evaluation.embeddings.cache import EmbeddingCache
from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.embeddings.extraction import Extracted, extract
from evaluation.embeddings.feature_files import (
    Distractors,
    holds_features,
    match_names,
    open_distractors,
    read_features,
)
from evaluation.protocols import join_views
from evaluation.report.page import report_html
from evaluation.report.tables import comparison_table, table
from evaluation.scoring import (
    Comparable,
    Options,
    Result,
    compare,
    embedding_sets,
    make_rows,
    missing_figures,
    score,
)
from meta import (
    BENCHMARKS,
    EMBEDDING_SIZE,
    FACE_DATASET_FOLDER,
    PUBLISHED_FIGURES,
    WEIGHT_FILES,
    UserError,
)
from models.iefp import IEFP
from models.weights import load_estimator, load_for_embedding, model_fingerprint
from utils.cli import (
    Either,
    Needs,
    With,
    Without,
    as_plain,
    available_cores,
    bounded,
    given,
    output_folder,
    parse_config,
    printable,
    run_script,
)
from utils.distributed import Process, gather_lists, start_process, stop_process, tell
from utils.files import sha256, write_json, write_text

EMBEDS_PICTURES = Either(With("weights"), Without("embeddings"))  # not files of embeddings alone


@dataclass(frozen=True)
class TestConfig:
    """Test models on the four benchmarks by the published protocols and beyond."""

    weights: tuple[Path, ...] = ()
    """The released IEFP file (taken unless told), InsightFace backbone.pth files, or what train.py writes; several are
    set side by side."""
    embeddings: tuple[Path, ...] = ()
    """Embeddings of other people's models, scored without their code: .npz with names and embeddings, .npy or .bin
    with a text file of names beside it."""
    benchmarks: tuple[Literal["fgnet", "morph2", "cacd_vs", "calfw"], ...] = tuple(BENCHMARKS)
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the benchmarks' folders."""
    bins: tuple[Path, ...] = ()
    """InsightFace verification sets (lfw.bin, agedb_30.bin, ...); those directly in --face-dataset are tested too,
    unless --benchmarks or --bins says what to test."""
    identity_folders: tuple[Path, ...] = ()
    """Other sets with one folder a person (AgeDB, say), tested by FG-NET's protocols. Results know each by the last
    part of its path, or by more of it where another set has that name."""
    names: Literal["ms1mv3", "fgnet", "morph2", "none"] = "ms1mv3"
    """How the file names of --identity-folders hold the age; ms1mv3 fits AgeDB's too (0_MariaCallas_35_f.jpg)."""
    morph2_subjects: tuple[int, ...] = bounded((), low=2)
    """MORPH2 at these numbers of subjects instead of 3,000 and 10,000: the folders of that number where they are
    there, else so many drawn by --seed from the largest."""
    output: Path = output_folder(Path("results"))
    """Folder for results.json, results.md, report.html and calibration.json."""
    analysis: bool = True
    """Also measure what lies beyond the published figures: intervals, age gaps, ranks to 100, leaks of age."""
    pictures: bool = True
    """Show the worst errors as pictures in report.html; faces are personal data."""
    distractors: Path | None = None
    """Strangers among whom FG-NET's people are searched too: a folder or record file of pictures, or features (.npz,
    .npy, MegaFace's .bin, or a folder of these) as long as the joined embeddings, 1,024 numbers."""
    seed: int = bounded(0, low=0)
    """Of resampling and of splits into folds."""
    allow_missing: bool = False
    """Leave pairs out whose pictures are missing, and count them, instead of stopping."""
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    keep_embeddings: bool = True
    """Keep embeddings on disk, so that a second test of the same weights and data takes seconds."""
    cache_folder: Path | None = output_folder()
    """Where embeddings are kept; .iefp_cache in --face-dataset unless given."""
    batch_size: int = bounded(64, low=1)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = bounded(min(8, available_cores()), low=0)
    """Processes that read images; 0 reads in the main process."""

    NEEDS: ClassVar[Needs] = {
        "names": (With("identity_folders"),),
        "morph2_subjects": (With("benchmarks", "morph2"),),
        "pictures": (With("analysis"),),
        "distractors": (Either(With("benchmarks", "fgnet"), With("identity_folders")),),
        "seed": (Either(With("analysis"), With("morph2_subjects")),),
        "allow_missing": (With("benchmarks", "cacd_vs", "calfw"),),
        "keep_embeddings": (EMBEDS_PICTURES,),
        "cache_folder": (EMBEDS_PICTURES, With("keep_embeddings")),
        "batch_size": (EMBEDS_PICTURES,),
        "workers": (EMBEDS_PICTURES,),
    }


T = TypeVar("T")
DISTRACTORS_A_PIECE = 20_000  # embedded at once: 80 MB of features
SCHEMA = 3  # of results.json; 1 had no analysis, 2 one model only


def settings_of(config: TestConfig) -> list[Setting]:
    """All that is to run, in the order of the report; each has a name of its own in results.json.

    Raises:
        UserError: one is asked for twice.
    """
    settings = []
    for name in config.benchmarks:
        settings += settings_of_benchmark(config.face_dataset, BENCHMARKS[name], config.morph2_subjects)
    pattern = None if config.names == "none" else config.names
    settings += settings_of_folders(config.identity_folders, pattern, beside=settings)
    found = () if "benchmarks" in given(config) else find_verification_bins(config.face_dataset)
    settings += settings_of_bins(config.bins or found, beside=settings)
    names = [setting.name for setting in settings]
    for setting in settings:
        if names.count(setting.name) > 1:
            raise UserError(f"{setting.title} is asked for twice, by --benchmarks or --morph2-subjects: give it once.")
    return settings


def open_strangers(config: TestConfig) -> Distractors | Faces | None:
    """The distractors: features, or pictures that each model has to embed."""
    path = config.distractors
    if path is None or holds_features(path) or not path.exists():
        return None if path is None else open_distractors(path)
    if find_record_file(path) is not None:
        return index_record_file(find_record_file(path), what="distractors")
    return index_pictures(path, "distractors")


def in_step(work: Callable[[], T], process: Process) -> T:
    """What `work` gives; where it fails in one process, all of them raise its error: none waits for another one.

    Raises:
        UserError: also for a file that can't be read.
    """
    result, failures = None, []
    try:
        result = work()
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except UserError as error:
        failures.append(str(error))
    except OSError as error:
        failures.append(f"{error}: check that path, who may use it, and the space left.")
    failures = gather_lists(failures, process)
    if failures:
        raise UserError(failures[0])
    return result


def nothing() -> None:
    """What a process does that has no part in a step."""


# ----------------------------------------------------------------------------------------------------- the models


class WeightsModel:
    """A weight file: embeds pictures, or takes what was kept of them."""

    def __init__(self, path: Path, name: str, config: TestConfig, process: Process):
        self.name, self.config, self.process = name, config, process
        self.model, self.has_age_branch = load_for_embedding(path)
        has_estimator = self.has_age_branch and load_estimator(self.model, path)
        self.model.to(process.device)
        if not self.has_age_branch:
            tell(process, f"{path} holds no age branch: age errors are left out")
        self.mutual_information = estimator_of(self.model, process.device) if has_estimator else None
        digest = sha256(path)
        self.description = {
            "weights": str(path),
            "sha256": digest,
            "model_fingerprint": model_fingerprint(digest, self.model),
            "backbone": self.model.backbone_id.backbone,
            "purification": self.model.backbone_id.purification,
        }
        self.of_model = {  # what embeddings depend on beside the pictures
            "model": self.description["model_fingerprint"],
            "device": process.device.type,
            "torch": torch.__version__,
        }
        folder = config.cache_folder or config.face_dataset / CACHE_FOLDER
        self.cache = EmbeddingCache(folder, lambda text: tell(process, text)) if config.keep_embeddings else None

    def embed(self, faces: Faces, what: str) -> Extracted | None:
        """The embeddings; None in processes that need none, when the first one has kept ones."""
        process, cache = self.process, self.cache if self.process.is_first else None
        pictures = in_step(faces.state if cache else nothing, process)
        kept = None if cache is None else cache.load(self.of_model, pictures, len(faces))
        if any(gather_lists([kept is not None], process)):
            return kept
        extracted = extract(
            self.model,
            batches(self._loader(faces)),
            len(faces),
            process,
            to_network_input,
            self.has_age_branch,
            what,
        )
        if cache is not None:
            cache.save(self.of_model, pictures, extracted)
        return extracted

    def embed_distractors(self, faces: Faces) -> np.ndarray | None:
        """Joined embeddings (M, 1024) of strangers' pictures, piece by piece into a file where embeddings are kept.

        None in the processes beside the first, which do not score.
        """
        process, cache = self.process, self.cache if self.process.is_first else None
        if not self.config.assume_aligned:
            in_step(lambda: check_shapes(faces, functools.partial(tell, process)), process)
        shape, what = (len(faces), 2 * EMBEDDING_SIZE), f"distractors, {self.name}"
        pictures = in_step(faces.state if cache else nothing, process)
        describes = self.of_model | {"pictures": pictures, "join": ANALYSED_JOIN}
        kept = None if cache is None else cache.load_array(describes)
        if any(gather_lists([kept is not None], process)):
            return kept
        if cache is not None:
            place = cache.keep_array(describes, shape)
        else:
            place = contextlib.nullcontext(np.empty(shape, np.float32) if process.is_first else None)
        with place as joined:
            self._fill(joined, faces, what)
        return joined

    def _fill(self, joined: np.ndarray | None, faces: Faces, what: str) -> None:
        for start in range(0, len(faces), DISTRACTORS_A_PIECE):
            rows = range(start, min(start + DISTRACTORS_A_PIECE, len(faces)))
            of_piece = (batch._replace(indices=batch.indices - start) for batch in batches(self._loader(faces, rows)))
            extracted = extract(
                self.model, of_piece, len(rows), self.process, to_network_input, False, what, with_grey=False
            )
            if joined is not None:
                joined[rows.start : rows.stop] = join_views(extracted.original, extracted.mirror, ANALYSED_JOIN)

    def _loader(self, faces: Faces, rows: range | None = None) -> torch.utils.data.DataLoader:
        config, process = self.config, self.process
        pin_memory = process.device.type == "cuda"
        return evaluation_loader(
            faces, config.batch_size, config.workers, pin_memory, process.rank, process.world_size, rows
        )


def estimator_of(model: IEFP, device: torch.device) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """The model's CLUB for arrays: age and identity features (B, 512) and a permutation (B,) -> the estimate."""

    @torch.inference_mode()
    def mutual_information(age: np.ndarray, identity: np.ndarray, permutation: np.ndarray) -> float:
        arrays = (age.astype(np.float32), identity.astype(np.float32), permutation)
        return float(model.clubmi.mutual_information(*(torch.from_numpy(array).to(device) for array in arrays)))

    return mutual_information


class FeaturesModel:
    """A file of another model's embeddings: nothing of that model runs here."""

    mutual_information = None

    def __init__(self, path: Path, name: str, process: Process):
        self.name, self.path, self.process = name, path, process
        self.features = read_features(path)
        self.description = {"embeddings": str(path)}
        if path.is_file():
            self.description["sha256"] = sha256(path)
        if self.features.not_read:
            tell(process, f"{path}: not read: {', '.join(self.features.not_read)}")

    def embed(self, faces: Faces, what: str) -> Extracted:
        features, matched = self.features, match_names(self.features.names, faces, str(self.path))
        if matched.num_by_base_name:
            tell(self.process, f"{what}: {matched.num_by_base_name:,} pictures found in {self.path} by base name alone")
        original = np.asarray(features.embeddings[matched.rows], np.float32)
        # Without a mirror image both joins of a view with itself have the cosines of the view.
        mirror = original if features.mirror is None else np.asarray(features.mirror[matched.rows], np.float32)
        ages = None if features.age_probabilities is None else features.age_probabilities[matched.rows]
        return Extracted(original, mirror, ages, ages, grey_pixels=None)

    def embed_distractors(self, faces: Faces) -> np.ndarray:
        raise UserError(f"--distractors holds pictures, which {self.path} can't embed: give their features.")


Model = WeightsModel | FeaturesModel


def open_models(config: TestConfig, process: Process) -> list[Model]:
    weights = config.weights or (() if config.embeddings else (Path(WEIGHT_FILES["iefp"].path),))
    names = short_names((*weights, *config.embeddings))
    models: list[Model] = [
        WeightsModel(path, name, config, process) for path, name in zip(weights, names, strict=False)
    ]
    return models + [
        FeaturesModel(path, name, process) for path, name in zip(config.embeddings, names[len(weights) :], strict=True)
    ]


# --------------------------------------------------------------------------------------------------------- the run


@dataclass
class Ran:
    """What came of all settings and models."""

    results: dict[str, dict[str, Result]]  # model -> setting -> figures
    failures: dict[str, dict[str, str]]  # model -> setting -> why not
    comparisons: list[dict[str, Any]]
    opened: dict[str, OpenBenchmark]  # by setting


def test(config: TestConfig) -> int:
    """Runs every benchmark asked for that has its data; the exit status says whether all did."""
    process = start_process(config.device)
    models, settings = open_models(config, process), settings_of(config)
    ran = run_settings(config, settings, models, process)
    if process.is_first:
        write_report(config, models, ran)
    status = max(gather_lists([2 if any(ran.failures.values()) else 0], process))
    stop_process(process)
    return status


def run_settings(config: TestConfig, settings: list[Setting], models: list[Model], process: Process) -> Ran:
    """Results of the settings that ran, and a sentence for each that did not.

    Under torchrun all processes embed, each its share; the first one scores and reports.
    """
    ran = Ran({model.name: {} for model in models}, {model.name: {} for model in models}, [], {})
    distractors = open_strangers(config)
    for setting in settings:
        try:
            benchmark = in_step(functools.partial(open_setting, config, setting, process), process)
        except UserError as error:
            failed(ran, setting, models, error, process)
            continue
        ran.opened[setting.name] = benchmark
        of_models: list[tuple[Model, Comparable]] = []
        for model in models:
            try:
                among = distractors if benchmark.protocol == "leave_one_out" else None
                if among is not None and not isinstance(among, Distractors):
                    among = model.embed_distractors(among)
                options = Options(config.analysis, among, config.seed, model.mutual_information)
                extracted = [model.embed(faces, what_of(model, models, what)) for faces, what in benchmark.sides]
                if process.is_first:
                    result, comparable = score(benchmark, embedding_sets(benchmark, extracted), options)
                    known = {"title": setting.title, "benchmark": setting.published_as}
                    ran.results[model.name][setting.name] = known | result
                    of_models.append((model, comparable))
            except UserError as error:
                failed(ran, setting, [model], error, process)
        if config.analysis:
            ran.comparisons += compare_all(setting, of_models, config.seed)
    return ran


def open_setting(config: TestConfig, setting: Setting, process: Process) -> OpenBenchmark:
    """The pictures of a setting; raises UserError, also for photographs (see `data.check.image_scan.check_shapes`)."""
    report = functools.partial(tell, process)
    benchmark = open_benchmark(setting, report, config.seed, config.allow_missing)
    embeds = config.weights or not config.embeddings  # embeddings of others are not made from the pictures here
    for faces, _ in benchmark.sides if embeds and not config.assume_aligned else ():
        check_shapes(faces, report)
    return benchmark


def what_of(model: Model, models: list[Model], what: str) -> str:
    return what if len(models) == 1 else f"{what}, {model.name}"


def failed(ran: Ran, setting: Setting, models: list[Model], error: UserError, process: Process) -> None:
    for model in models:
        ran.failures[model.name][setting.name] = str(error)
    if process.is_first:
        of = f" ({models[0].name})" if len(ran.failures) > len(models) else ""
        print(f"test.py: {setting.title}{of} did not run: {printable(str(error))}", file=sys.stderr)


def compare_all(setting: Setting, of_models: list[tuple[Model, Comparable]], seed: int) -> list[dict[str, Any]]:
    """Every model that ran against the first one."""
    (first, of_first), *others = of_models or [(None, None)]
    return [
        {"setting": setting.name, "title": setting.title, "a": model.name, "b": first.name}
        | compare(of_model, of_first, seed)
        for model, of_model in others
    ]


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
    texts = []
    for model in models:
        if ran.results[model.name]:
            heading = f"{model.name}\n\n" if len(models) > 1 else ""
            texts.append(heading + table(make_rows(ran.results[model.name])))
            texts += [f"left out: {sentence}" for sentence in missing_figures(ran.results[model.name])]
    if ran.comparisons:
        texts.append(comparison_table(ran.comparisons))
    text = "\n\n".join(texts)
    write_json(config.output / "results.json", report)
    calibration = write_calibrations(config.output, report["models"], ANALYSED_JOIN)
    write_text(config.output / "results.md", text + "\n")
    write_text(config.output / "report.html", report_html(report, picture_reader(ran) if config.pictures else None))
    print(text)
    print(f"written: {config.output / 'results.json'}, {config.output / 'results.md'}")
    print(f"report to look at: {config.output / 'report.html'}")
    if calibration is not None:
        print(f"thresholds for embed.py: {calibration}")


def picture_reader(ran: Ran) -> Callable[[str, str], bytes | None]:
    """Gives the JPEG of a picture by setting and name, None where it can't be read."""
    places: dict[str, dict[str, tuple[Faces, int]]] = {}

    def read(setting: str, name: str) -> bytes | None:
        if setting not in places:
            opened = ran.opened[setting]
            places[setting] = {
                opened.name(faces, i): (faces, i) for faces, _ in opened.sides for i in range(len(faces))
            }
        if name not in places[setting]:
            return None
        faces, i = places[setting][name]
        try:
            pixels = faces.decode(i).permute(1, 2, 0).numpy()
        except UserError:
            return None
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "JPEG", quality=85)
        return packed.getvalue()

    return read


if __name__ == "__main__":
    run_script(lambda: test(parse_config(TestConfig)))
