"""--dry-run: a run's settings, data, parameters and disk space, and memory and time as two steps take them."""

import dataclasses
import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.benchmarks import EvalSet
from data.loaders import FaceBatch, batches, evaluation_loader
from data.picture_grid import draw_grid
from meta import AGE_GROUP_NAMES, UserError
from training.age_feature_cache import why_no_age_cache
from training.config import TrainConfig
from training.disk_usage import age_cache_files, disk, files_of, size, table, tensor_bytes
from training.optim import choose_precision
from training.setup import make_loader, make_sampler
from training.state import Run, TrainState
from utils.cli import as_plain, flag
from utils.distributed import gather_lists, print_rank0, shutdown_distributed

SECONDS_A_STEP = 4.0  # a measured step on a CPU takes about so long, or the batch is made smaller
FEW_IMAGES = 4  # of a micro-batch; they say how long an image takes on a CPU
INPUT_SECONDS = 4.0  # for which the loader is timed
MAX_INPUT_BATCHES = 64
MAX_PICTURES = 64  # of the first batch that are drawn
BAR_WIDTH = 30  # letters

Prepare = Callable[[Run, FaceBatch, int], Any]  # train.prepare: a batch from the loader -> what a stage's step takes


def print_dry_run(run: Run, state: TrainState, benchmarks: Mapping[str, EvalSet], prepare: Prepare) -> int:
    """Prints what the run would do and need and draws its first batch, nothing else is written; the exit status.

    Raises:
        UserError: a step does not fit into the memory of the GPU.
    """
    config, process, index, stage = run.config, run.process, run.index, run.stage
    trained = [parameter for optimiser in stage.optimisers.values() for group in optimiser.param_groups
               for parameter in group["params"]]  # fmt: skip
    use = age_features_use(run)
    print_rank0(process, recipe(config, TrainConfig(), resolved_settings(run, use)))
    print_rank0(process, data_found(index.identities, index.age_groups, index.num_identities))
    for name, benchmark in benchmarks.items():
        count = sum(len(faces) for faces, _ in benchmark.sides)
        print_rank0(process, f"  validation on {name} every {config.validate_every:,} steps: {count:,} pictures")
    print_rank0(process, parameters(modules_of(run), trained))
    print_rank0(process, disk(files_of(run, trained, age_cache_files(run) if use in ("auto", "ahead") else None)))
    if process.is_first:
        print_rank0(process, f"picture of the first batch: {draw_first_batch(run, state, prepare)}")
    measured = measure(run, state, prepare)
    share = config.batch_size // process.world_size
    print_rank0(process, memory(measured, share, process.device))
    print_rank0(process, times(measured.whole_batch(share), measured.num_images, share, run.sampler.num_batches,
                               config.epochs, use))  # fmt: skip
    done = f"{state.step:,} steps are done: it would go on from there" if state.step else "it would begin anew"
    print_rank0(process, f"dry run: nothing was trained; in {config.run_folder} {done}")
    shutdown_distributed(process)
    return 0


def age_features_use(run: Run) -> str:
    """Where a step gets the frozen branch's features: ahead, auto (a cache), off (computed) or none (not needed)."""
    if run.stage.critic is None or not run.stage.critic.needs_age_features:
        return "none"
    return run.config.age_cache if why_no_age_cache(run.config) is None else "off"


def draw_first_batch(run: Run, state: TrainState, prepare: Prepare) -> Path:
    """Draws the first pictures of the first batch as the network sees them; returns the path of the PNG."""
    config, index = run.config, run.index
    rows = run.sampler.indices_of(state.epoch, state.batch)[: config.batch_size // run.process.world_size]
    rows = rows[:MAX_PICTURES].tolist()
    (faces,) = batches(evaluation_loader(index, len(rows), indices=rows, on_bad_image=config.on_bad_image))
    images = prepare(run, faces, state.step).images
    names, groups = index.identity_names, (*AGE_GROUP_NAMES, "age unknown")  # of group -1 the last
    captions = [(names[k], groups[group]) for k, group in zip(faces.identities, faces.age_groups, strict=True)]
    path = config.run_folder / "dry_run.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"step {state.step + 1:,}: {len(rows)} of {config.batch_size:,} images as the network sees them"
    draw_grid(path, title, images, captions)
    return path


# ---------------------------------------------------------------------------------------------------- settings, data


def resolved_settings(run: Run, use: str) -> dict[str, object]:
    """The values of settings that are left open; `use` as `age_features_use` returns it."""
    config, stage = run.config, run.stage
    resolved = {"device": run.process.device, "precision": choose_precision(config, run.process.device),
                "age_cache": use}  # fmt: skip
    if config.stage == "identity":
        resolved[config.margin_flag] = stage.model.margin_fc.margin
        if stage.critic is not None and "disentangle_weight" in stage.critic.flags.values():
            resolved["disentangle_weight"] = stage.critic.setting(config, "default_weight")
    return resolved


def recipe(config: Any, published: Any, resolved: Mapping[str, object]) -> str:
    """All settings; those that differ from the published ones have a star, open ones have their `resolved` value."""
    now, before, lines = as_plain(config), as_plain(published), []
    width = max(map(len, now))
    for name, value in now.items():
        if name == "dry_run":
            continue
        becomes = f" -> {resolved[name]}" if name in resolved and str(resolved[name]) != str(value) else ""
        was = f"   (published: {before[name]})" if value != before[name] else ""
        lines.append(f"{'*' if was else ' '} {flag(name):{width + 3}}{value}{becomes}{was}")
    return "settings (*: not as published)\n" + "\n".join(lines)


def data_found(identities: np.ndarray, age_groups: np.ndarray, num_identities: int) -> str:
    """Pictures, identities and ages: identities (N,), age_groups (N,) 0..7, -1 where unknown."""
    known, each = age_groups[age_groups >= 0], np.bincount(identities, minlength=num_identities)
    counts = np.bincount(known, minlength=len(AGE_GROUP_NAMES))
    longest = max(counts.max(), 1)
    rows = [
        (name, f"{count:,}", f"{100 * count / max(1, len(known)):.1f} %", ("#" * round(BAR_WIDTH * count / longest)))
        for name, count in zip(AGE_GROUP_NAMES, counts, strict=True)
    ]
    bars = [f"{line}  {row[3]}".rstrip() for line, row in zip(table([row[:3] for row in rows]).splitlines(), rows,
                                                              strict=True)]  # fmt: skip
    return "\n".join([
        "data",
        f"  {len(identities):,} pictures of {num_identities:,} identities, {each.min():,} to {each.max():,} of each, "
        f"{np.median(each):g} in the median",
        f"  the age of {len(known):,} is known, of {len(age_groups) - len(known):,} it is not",
        *bars,
    ])  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- parameters


def modules_of(run: Run) -> dict[str, list[Tensor]]:
    """Parameters by module of the model, as far as the stage uses it."""
    model, is_identity = run.stage.model, run.config.stage == "identity"
    encoder = model.backbone_id if is_identity else model.backbone_ae
    unit = list(encoder.spu.parameters())
    modules = {
        "encoder": [each for name, each in encoder.named_parameters() if not name.startswith("spu.")],
        "purification unit": unit,
    }
    if is_identity:
        modules |= {
            "margin head": list(model.margin_fc.parameters()),
            "CLUB": list(model.clubmi.parameters()),
            "critic": [] if model.critic is None else list(model.critic.parameters()),
            "age branch": [each for module in model.age_branch for each in module.parameters()],
        }
    else:
        modules |= {
            "age estimator": list(model.age_estimator.parameters()),
            "head for years": [] if model.year_head is None else list(model.year_head.parameters()),
        }
    return {name: tensors for name, tensors in modules.items() if tensors}


def parameters(modules: Mapping[str, Sequence[Tensor]], trained: Sequence[Tensor]) -> str:
    """A row a module, and which of them are trained."""
    trained_ids = {id(parameter) for parameter in trained}
    rows = [("module", "parameters", "size", "")]
    for name, tensors in modules.items():
        is_trained = any(id(parameter) in trained_ids for parameter in tensors)
        count = sum(parameter.numel() for parameter in tensors)
        rows.append((name, f"{count:,}", size(tensor_bytes(tensors)), "trained" if is_trained else "frozen"))
    return "parameters\n" + table(rows)


# -------------------------------------------------------------------------------------------------------- memory, time


@dataclass(frozen=True)
class StepTime:
    """Seconds that a whole batch takes: of one process, which works on its share of it."""

    input: float  # to read and decode
    network: float  # the step, with the frozen branch's features known
    frozen: float  # the frozen branch, of one view of each image
    workers: int

    def step(self, frozen_views: int) -> float:
        """Workers read while the network works; without them one waits for the other."""
        network = self.network + frozen_views * self.frozen
        return max(self.input, network) if self.workers else self.input + network

    def times(self, factor: float) -> "StepTime":
        """Of a batch so many times as large."""
        return StepTime(self.input * factor, self.network * factor, self.frozen * factor, self.workers)


@dataclass(frozen=True)
class Measured:
    """What two steps with real pictures took, the second one timed."""

    num_images: int  # of a step, on this process
    step: StepTime
    peak_bytes: int  # of a GPU's memory in the second step; on a CPU of the process's resident memory up to now
    growth_bytes: int  # by the steps

    def whole_batch(self, share: int) -> StepTime:
        """The time of a step with `share` images on each process."""
        return self.step.times(share / self.num_images)


def measure(run: Run, state: TrainState, prepare: Prepare) -> Measured:
    """Makes two steps of the run, or on a CPU of a smaller batch where it would take long; the stage is used up then.

    Raises:
        UserError: they do not fit into the memory of the GPU.
    """
    config, process = run.config, run.process
    num_images, workers = config.batch_size // process.world_size, config.workers
    before = peak_bytes(process.device)
    try:
        if process.device.type != "cuda":
            few = min(num_images, FEW_IMAGES * config.accumulation)
            small = with_batch(run, few, workers=0)
            seconds, _ = measure_steps(small, stream(small, state.epoch), state.step, prepare)
            sizes = gather_lists([images_to_measure(num_images, config.accumulation, seconds / few)], process)
            num_images = min(sizes)
        sized = with_batch(run, num_images, workers)
        loaded = stream(sized, state.epoch)
        network, frozen = measure_steps(sized, loaded, state.step, prepare)
    except torch.OutOfMemoryError as error:
        raise UserError(f"a step of {num_images:,} images a process does not fit into the memory of {process.device} "
                        f"({size(device_bytes(process.device))}): raise --accumulation, lower --batch-size or take "
                        f"more processes.") from error  # fmt: skip
    peak = peak_bytes(process.device)
    step = StepTime(seconds_a_batch(loaded, 2 * workers), network, frozen, workers)
    return Measured(num_images, step, peak, peak - before)


def with_batch(run: Run, num_images: int, workers: int) -> Run:
    """The run with so many images a step on each process, and a loader for them."""
    config = dataclasses.replace(run.config, batch_size=num_images * run.process.world_size, workers=workers)
    sampler = make_sampler(config, run.index, run.process)
    loader = make_loader(config, run.index, sampler, run.process)
    return dataclasses.replace(run, config=config, sampler=sampler, loader=loader)


def measure_steps(run: Run, loaded: Iterator[FaceBatch], number: int, prepare: Prepare) -> tuple[float, float]:
    """Makes two steps, one to warm up; seconds of the second one, and of the frozen branch, which is timed apart."""
    stage, device, needs_features = run.stage, run.process.device, age_features_use(run) != "none"
    stage.model.train()
    for _ in range(2):
        faces = next(loaded)
        reset_peak(device)
        batch, preparing = timed(device, prepare, run, faces, number)
        features, frozen = timed(device, stage.age_features, batch.images) if needs_features else (None, 0.0)
        _, stepping = timed(device, stage.step, dataclasses.replace(batch, age_features=features))
    return preparing + stepping, frozen


def stream(run: Run, epoch: int) -> Iterator[FaceBatch]:
    """The loader's batches from the beginning of an epoch on, without an end."""
    for number in itertools.count(epoch):
        run.sampler.set_epoch(number)
        yield from batches(run.loader)


def timed(device: torch.device, work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What the work returns, and its seconds."""
    began = time.perf_counter()
    result = work(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


def images_to_measure(share: int, accumulation: int, seconds_an_image: float) -> int:
    """Images of a measured step on a CPU: all of a process's share, or as many as take a few seconds, 4 at least."""
    micro_batch, most = share // accumulation, int(SECONDS_A_STEP / max(seconds_an_image, 1e-9)) // accumulation
    if micro_batch <= most:
        return share
    return accumulation * min(micro_batch, 1 << max(FEW_IMAGES, most).bit_length() - 1)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory that tensors took on a GPU since `reset_peak`, or that the process ever took on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory(measured: Measured, share: int, device: torch.device) -> str:
    """The measured peak, and what the device has."""
    grown = f"the process, {size(measured.growth_bytes)} of it in these steps"
    what = "tensors on the GPU" if device.type == "cuda" else grown
    fewer = "" if measured.num_images == share else f"; the share of {share:,} takes more"
    return (
        f"memory, measured in two steps of {measured.num_images:,} images on a process{fewer}\n"
        f"  peak of {what}: {size(measured.peak_bytes)}; {device} has {size(device_bytes(device))}"
    )


def seconds_a_batch(stream: Iterator[Any], num_waiting: int) -> float:
    """How long a loader takes for a batch while nothing else runs; `num_waiting` batches may be ready already."""
    arrivals: list[float] = []
    while len(arrivals) < 2 or (arrivals[-1] - arrivals[0] < INPUT_SECONDS and len(arrivals) < MAX_INPUT_BATCHES):
        next(stream)
        arrivals.append(time.perf_counter())
    first = min(num_waiting, len(arrivals) // 2)
    return (arrivals[-1] - arrivals[first]) / max(1, len(arrivals) - 1 - first)


def run_seconds(of_step: StepTime, steps_an_epoch: int, epochs: int, use: str) -> tuple[float, float, float]:
    """Seconds before training, of the first epoch, and of each later one.

    `use` as `age_features_use` returns it: "ahead" and "auto" compute the frozen branch's features of both views once,
    before training or in its first epoch; "off" computes one view's in each step; "none" needs none.
    """
    views_ahead, first, later = {"ahead": (2, 0, 0), "auto": (0, 2, 0), "off": (0, 1, 1), "none": (0, 0, 0)}[use]
    ahead = 0.0
    if views_ahead:
        alone = dataclasses.replace(of_step, network=0.0)
        ahead = steps_an_epoch * alone.step(views_ahead)
    return ahead, *(steps_an_epoch * of_step.step(views) for views in (first, later) if epochs)


def times(of_step: StepTime, measured: int, share: int, steps_an_epoch: int, epochs: int, use: str) -> str:
    """The time of a step, an epoch and the run, split into input and network."""
    ahead, first, later = run_seconds(of_step, steps_an_epoch, epochs, use)
    how = "the longer one, for workers read ahead" if of_step.workers else "both, for --workers is 0"
    rows = [
        ("input of a step", f"{of_step.input:.3f} s"),
        ("network of a step", f"{of_step.network:.3f} s"),
        *([("frozen age branch, one view", f"{of_step.frozen:.3f} s")] if use != "none" else []),
        (f"a step ({how})", f"{of_step.step({'off': 1}.get(use, 0)):.3f} s"),
        *([("age features ahead of training", in_words(ahead))] if ahead else []),
        (f"first epoch, {steps_an_epoch:,} steps", in_words(first)),
        ("a later epoch", in_words(later)),
        (f"the whole run, {epochs} epochs", in_words(ahead + first + (epochs - 1) * later)),
    ]
    scaled = "" if measured == share else f", times {share / measured:g} for the share of {share:,} (rather too high)"
    return f"time, from a step of {measured:,} images{scaled}; without checkpoints and validation\n{table(rows)}"


def in_words(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"
