"""Runs benchmarks for models: opens each, embeds its pictures with every model, scores them, compares the models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data.benchmarks import OWN_PAIRS, EvalSet, EvalSpec, open_eval_set
from data.check.image_scan import check_are_aligned, check_shapes
from data.faces import Faces
from evaluation.embeddings.feature_files import Distractors
from evaluation.models_under_test import Model, in_step
from evaluation.scoring import Comparable, Options, Result, compare, embedding_sets, score
from meta import UserError
from utils.cli import printable
from utils.distributed import DistInfo, print_rank0


@dataclass(frozen=True)
class RunOptions:
    """What is measured, and on which pictures."""

    analysis: bool = True  # also what lies beyond the published figures
    seed: int = 0
    allow_missing: bool = False  # leave pairs out whose pictures are missing
    check_shapes: bool = True  # photographs are an error
    distractors: Distractors | Faces | None = None  # features, or pictures that each model has to embed
    with_first: bool = True  # every model is compared with the first one


@dataclass
class Ran:
    """Results of all benchmarks and models."""

    results: dict[str, dict[str, Result]]  # model -> benchmark -> figures
    failures: dict[str, dict[str, str]]  # model -> benchmark -> why not
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    opened: dict[str, EvalSet] = field(default_factory=dict)

    def failed(self, name: str, models: list[Model], error: UserError) -> None:
        for model in models:
            self.failures[model.name][name] = str(error)


def run_benchmarks(
    settings: list[EvalSpec], models: list[Model], process: DistInfo, options: RunOptions, warn: Callable[[str], None]
) -> Ran:
    """Results of the benchmarks that ran, and a sentence for each that did not, which `warn` gets too.

    Under torchrun all processes embed, each its share; the first one scores and warns.
    """
    ran = Ran({model.name: {} for model in models}, {model.name: {} for model in models})
    for setting in settings:
        try:
            benchmark = in_step(functools.partial(_open, setting, options, process), process)
        except UserError as error:
            ran.failed(setting.name, models, error)
            if process.is_first:
                warn(f"{setting.title} did not run: {printable(str(error))}")
            continue
        ran.opened[setting.name] = benchmark
        of_models: list[tuple[Model, Comparable]] = []
        for model in models:
            try:
                scored = _score(benchmark, model, options, f", {model.name}" if len(models) > 1 else "")
            except UserError as error:
                ran.failed(setting.name, [model], error)
                if process.is_first:
                    of = f" ({model.name})" if len(models) > 1 else ""
                    warn(f"{setting.title}{of} did not run: {printable(str(error))}")
                continue
            if scored is not None:
                result, comparable = scored
                published_as = None if benchmark.drawn else setting.published_as
                metadata = {"title": benchmark.title, "benchmark": published_as, "drawn": benchmark.drawn}
                ran.results[model.name][setting.name] = metadata | result
                of_models.append((model, comparable))
        if options.analysis and options.with_first:
            ran.comparisons += _compare_all(benchmark, of_models, options.seed)
    return ran


def _open(setting: EvalSpec, options: RunOptions, process: DistInfo) -> EvalSet:
    """The pictures of a setting; raises UserError, also for photographs (see `data.check.image_scan.check_shapes`)."""
    report = functools.partial(print_rank0, process)
    benchmark = open_eval_set(setting, report, options.seed, options.allow_missing)
    for faces, _ in benchmark.sides if options.check_shapes and setting.aligner is None else ():
        if setting.benchmark is OWN_PAIRS:
            check_are_aligned(faces)
        else:
            check_shapes(faces, report)
    return benchmark


def _score(benchmark: EvalSet, model: Model, options: RunOptions, of: str) -> tuple[Result, Comparable] | None:
    """Figures in the first process, None in the others, which only embed; `of` ends the titles of progress bars."""
    among = options.distractors if benchmark.protocol == "leave_one_out" else None
    if among is not None and not isinstance(among, Distractors):
        among = model.embed_distractors(among)
    extracted = [model.embed(faces, what + of) for faces, what in benchmark.sides]
    if not model.process.is_first:
        return None
    measured = Options(options.analysis, among, options.seed, model.mutual_information)
    return score(benchmark, embedding_sets(benchmark, extracted), measured)


def _compare_all(benchmark: EvalSet, of_models: list[tuple[Model, Comparable]], seed: int) -> list[dict[str, Any]]:
    """Every model that ran against the first one."""
    if not of_models:
        return []
    (first, of_first), *others = of_models
    differences = ((model, compare(of_model, of_first, seed)) for model, of_model in others)
    return [
        {"setting": benchmark.spec.name, "title": benchmark.title, "a": model.name, "b": first.name} | of_model
        for model, of_model in differences
        if of_model  # nothing is compared where nobody says who the people are
    ]
