"""Benchmarks during training: the figures that test.py would report for the weights as they are now.

The model runs in eval mode, its modes are restored, and nothing random is drawn: training goes on as if nothing had
happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from data.benchmarks import open_complete_eval_set
from data.faces import Faces
from data.loaders import FaceBatch, batches, evaluation_loader
from data.transforms import to_network_input
from evaluation.age_gap import MATE_YEARS, rank1_by_mate_distance
from evaluation.embeddings.embedding_set import ANALYSED_JOIN, EmbeddingSet
from evaluation.embeddings.extraction import TwoBranches, extract
from evaluation.identification import cmc_of
from evaluation.metrics import enough_impostors
from evaluation.report.validation_curves import Curves, Panel, draw_curves
from evaluation.scoring import (
    LABELS,
    LOWER_IS_BETTER,
    Comparable,
    EvalSet,
    Options,
    Result,
    embedding_sets,
    score,
)
from evaluation.verification import FALSE_ACCEPT_RATES, verification
from meta import UserError
from training.config import TrainConfig
from training.data_parallel import share_batchnorm_statistics
from training.run_log import RunLog
from training.stopping import StopRequest
from utils.distributed import DistInfo, gather_lists, print_rank0

# The results in evaluation.scoring.LABELS that each protocol has.
RESULTS = {
    "leave_one_out": ("leave_one_out", "mates_against_rest"),
    "probe_gallery": ("probe_gallery",),
    "ten_fold_verification": ("verification",),
}
MAX_RANK = 10  # of the CMC curves
BATCH_SIZE = 64  # as test.py's default
PUBLISHED_ONLY = Options(analysis=False)


class Validation:
    """The benchmarks of a run by name, run every `every` steps, and their curves so far.

    `batches_of` returns this process's share of some pictures in batches, see evaluation.embeddings.extraction.
    `stop_status` returns whether any process was asked to stop, as training.stopping.StopRequest.status does; all call
    it together.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, EvalSet],
        process: DistInfo,
        batches_of: Callable[[Any], Iterable],
        to_network_input: Callable[..., Tensor],
        stop_status: Callable[[], int | None] = lambda: None,
        *,
        every: int = 1,
    ):
        self.every = every
        self.benchmarks, self.process, self.stop_status = benchmarks, process, stop_status
        self.batches_of, self.to_network_input = batches_of, to_network_input
        self.curves: dict[str, list[Curves]] = {name: [] for name in benchmarks}
        self.newest: tuple[int, dict[str, float]] | None = None  # step and figures

    def is_due(self, step: int, is_end: bool) -> bool:
        """Whether the benchmarks are to be run after this step, also because it is the run's last one."""
        return bool(self.benchmarks) and step > 0 and (is_end or step % self.every == 0)

    def figures_at(self, step: int) -> dict[str, float]:
        """The figures of the validation at this step; empty where there was none, it failed or was stopped."""
        return self.newest[1] if self.newest is not None and self.newest[0] == step else {}

    def run(self, model: TwoBranches, step: int, log: RunLog) -> None:
        """Measures the model's identity branch, prints and logs the figures.

        Every process calls this at the same step, embeds its share and gets the same figures. A failure is printed and
        logged, and training goes on: a broken picture must not cost a run.
        """
        began, of_benchmarks, curves = time.monotonic(), {}, {}
        share_batchnorm_statistics(model, self.process)
        try:
            with in_eval_mode(model):
                for name, benchmark in self.benchmarks.items():
                    of_benchmarks[name], curves[name] = self._score(name, benchmark, model)
        except UserError as error:
            if self.stop_status():
                print_rank0(
                    self.process,
                    f"validation at step {step:,} is left, since the run was asked to stop; a resumed "
                    f"run begins with it",
                )
                log.event("validation_stopped", step)
                return
            print_rank0(self.process, f"validation at step {step:,} failed, training goes on: {error}")
            log.event("validation_failed", step, reason=str(error))
            return
        figures = {key: value for of_one in of_benchmarks.values() for key, value in of_one.items()}
        self.newest = step, figures
        log.event("validation", step, seconds=round(time.monotonic() - began, 1), **figures)
        for name, panels in curves.items():
            self._log_curves(name, Curves(step, panels), log)
        for name, of_one in of_benchmarks.items():
            shown = ", ".join(f"{key.removeprefix(f'{name}_')} {value:.2f}" for key, value in of_one.items())
            print_rank0(self.process, f"validation at step {step:,}, {name}: {shown}")

    def _score(self, name: str, benchmark: EvalSet, model: TwoBranches) -> tuple[dict[str, float], list[Panel]]:
        extracted = [
            extract(model, self.batches_of(faces), len(faces), self.process, self.to_network_input,
                    with_age=False, what=what, with_grey=False)
            for faces, what in benchmark.sides
        ]  # fmt: skip
        outcome: list[dict[str, float] | str] = []  # figures, or the error's sentence
        panels: list[Panel] = []
        if self.process.is_first:
            try:
                sets = embedding_sets(benchmark, extracted)
                result, comparable = score(benchmark, sets, PUBLISHED_ONLY)
                panels = PANELS[benchmark.protocol](sets, result, comparable)
                outcome = [
                    {f"{name}_{figure}": result[part][ANALYSED_JOIN][figure] for part, figure in _figures_of(benchmark)}
                ]
            except UserError as error:
                outcome = [str(error)]  # the others wait below
        (figures,) = gather_lists(outcome, self.process)
        if isinstance(figures, str):
            raise UserError(figures)
        return figures, panels

    def _log_curves(self, name: str, now: Curves, log: RunLog) -> None:
        title = self.benchmarks[name].title
        log.figure(f"validation/{name}", lambda: draw_curves(title, now, self.curves[name]), now.step)
        self.curves[name].append(now)


def figures_of(benchmarks: Mapping[str, EvalSet]) -> dict[str, bool]:
    """The figures of `Validation.run`, such as fgnet_rank1_percent, and whether each is better when higher."""
    return {
        f"{name}_{figure}": figure not in LOWER_IS_BETTER
        for name, benchmark in benchmarks.items()
        for _, figure in _figures_of(benchmark)
    }


def open_benchmarks(config: TrainConfig) -> dict[str, EvalSet]:
    """The benchmarks of --validate-on, by the prefixes of their figures.

    Raises:
        UserError: a benchmark is unknown, missing or damaged, or given twice.
    """
    short_names = [Path(name).stem if name.endswith(".bin") else name for name in config.validate_on]
    if len(set(short_names)) < len(short_names):
        raise UserError("--validate-on has one name twice: give each set once, and files of different names.")
    opened = {}
    for name, short in zip(config.validate_on, short_names, strict=True):
        try:
            opened[short] = open_complete_eval_set(name, config.face_dataset)
        except UserError as error:
            raise UserError(f"--validate-on {name}: {error}") from None
    return opened


def make_validation(
    config: TrainConfig, process: DistInfo, benchmarks: dict[str, EvalSet], stop: StopRequest
) -> Validation:
    """The validation on these benchmarks, which a request to stop interrupts; never due where there are none."""

    def batches_of(faces: Faces) -> Iterator[FaceBatch]:
        pin_memory = process.device.type == "cuda"
        loader = evaluation_loader(faces, BATCH_SIZE, config.workers, pin_memory,
                                   rank=process.rank, world_size=process.world_size)  # fmt: skip
        for batch in batches(loader):
            if stop.noted:
                raise UserError(f"asked to stop (signal {stop.noted}).")
            yield batch

    return Validation(benchmarks, process, batches_of, to_network_input, stop.status, every=config.validate_every)


def check_best_metric(config: TrainConfig, logged: dict[str, bool]) -> bool:
    """Whether --best-metric is better when higher; `logged` says so for each value that this run logs.

    Raises:
        UserError: it is not among them, or says nothing about the weights, as the speed.
    """
    if config.best_metric is None:
        return False
    if config.best_metric not in logged:
        raise UserError(f"--best-metric {config.best_metric} is not logged in stage {config.stage}, or says nothing "
                        f"about the weights: give one of {', '.join(logged)}.")  # fmt: skip
    return logged[config.best_metric]


@contextmanager
def in_eval_mode(model: object) -> Iterator[None]:
    """Puts every module inside `model` into eval mode, and afterwards into the mode it was in before."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    were_training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.training = was_training


def _figures_of(benchmark: EvalSet) -> list[tuple[str, str]]:
    """The results and figures of the table that test.py prints, as far as the pairs of a list allow them."""
    figures = [(part, figure) for part in RESULTS[benchmark.protocol] for figure in LABELS[part]]
    if benchmark.pairs is None:
        return figures
    num_impostor = int(np.count_nonzero(~benchmark.pairs.genuine))
    too_few = {f"tar_at_far_{rate}_percent" for rate, one_in in FALSE_ACCEPT_RATES.items()
               if not enough_impostors(num_impostor, one_in)}  # fmt: skip
    return [(part, figure) for part, figure in figures if figure not in too_few]


# ------------------------------------------------------------------------------------------------------------- curves


def _panels_of_identities(sets: list[EmbeddingSet], result: Result, comparable: Comparable) -> list[Panel]:
    ranks = range(1, MAX_RANK + 1)
    cmc = [result["mates_against_rest"][ANALYSED_JOIN][f"cmc_percent_{rank}"] for rank in ranks]
    panels = [Panel("Mate among non-mates", "rank", "% of pairs found by this rank", list(ranks), cmc)]
    (faces,) = sets
    if faces.ages is not None:
        rows = rank1_by_mate_distance(faces.embeddings, faces.identities, faces.ages, (0, *MATE_YEARS))
        rank1 = [math.nan if row["rank1_percent"] is None else row["rank1_percent"] for row in rows.values()]
        ticks = [f"{'any' if years == '0+' else years}\n{row['num_probes']:,} probes" for years, row in rows.items()]
        label = "years between the probe and the mates that count"
        panels.append(Panel("Leave-one-out with distant mates", label, "rank-1 %", range(len(rows)), rank1, ticks))
    return panels


def _panels_of_probe_gallery(sets: list[EmbeddingSet], result: Result, comparable: Comparable) -> list[Panel]:
    probe, gallery = sets
    cmc = cmc_of(comparable.search, probe.embeddings, len(gallery), max_rank=MAX_RANK)["cmc_percent"]
    return [Panel("Probes in the gallery", "rank", "% of probes found by this rank", range(1, len(cmc) + 1), cmc)]


def _panels_of_pairs(sets: list[EmbeddingSet], result: Result, comparable: Comparable) -> list[Panel]:
    scores, genuine, _, _ = comparable.pairs
    curve = verification(scores, genuine)["curve"]
    labels = "false accept rate, %", "true accept rate, %"
    return [Panel("ROC, all pairs", *labels, curve["roc_far_percent"], curve["roc_tar_percent"], x_log=True)]


PANELS = {
    "leave_one_out": _panels_of_identities,
    "probe_gallery": _panels_of_probe_gallery,
    "ten_fold_verification": _panels_of_pairs,
}
