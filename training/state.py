"""The state of a run: how far it is, its checkpoints, and the weight files that it writes at the end."""

import contextlib
import dataclasses
import functools
import json
import math
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.age_cache import AgeCache
from data.faces import Faces
from data.loaders import EpochSampler
from meta import UserError
from models.iefp import IEFP
from models.weights import describe_branches
from training.checkpoint import (
    BEST,
    BestNotKept,
    check_all_see,
    differences,
    find_best,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_atomically,
    save_checkpoint,
)
from training.config import FREE_TO_CHANGE, TrainConfig
from training.ema import MovingAverage
from training.optim import load_optimiser
from training.partial_fc import WEIGHT, load_with_rows, save_shards, whole_weight
from training.profiling import Profile
from training.run_log import BadImages, Meter, RunLog, TimeLeft
from training.stopping import StopRequest
from training.validation import Validation, figures_of
from utils.cli import as_plain, flag
from utils.device_errors import first_line
from utils.distributed import DistInfo, barrier, gather_lists, print_rank0
from utils.files import write_json

SECONDS_UNTIL_SEEN = 30.0  # that a network disk may take to show one machine's new file to another


@dataclass(frozen=True)
class TrainState:
    """How far a run is: the epoch, its batches that are done, the steps since the start."""

    epoch: int
    batch: int
    step: int

    def next(self) -> "TrainState":
        return TrainState(self.epoch, self.batch + 1, self.step + 1)


class Stage(Protocol):
    """What a run needs of a stage of train.py."""

    weights_file: str
    model: IEFP
    optimisers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    critic: torch.nn.Module | None  # None in stage age, which has no frozen branch either

    def step(self, batch: Any) -> dict[str, Tensor]: ...

    def age_features(self, images: Tensor) -> Tensor: ...

    def published_tensors(self, model: IEFP) -> dict[str, Tensor]: ...


@dataclass
class Run:
    """All that the loop needs; `best` and `metrics` change as it goes."""

    config: TrainConfig
    process: DistInfo
    index: Faces
    stage: Stage
    sampler: EpochSampler
    _: dataclasses.KW_ONLY
    index_digests: dict[str, str | int] = field(default_factory=dict)  # of data.index_cache
    # What follows is for training alone; a dry run has none of it.
    loader: DataLoader | None = None
    age_cache: AgeCache | None = None
    log: RunLog | None = None
    stop: StopRequest | None = None
    bad_images: BadImages | None = None
    time_left: TimeLeft | None = None
    profile: Profile | None = None
    validation: Validation | None = None
    higher_is_better: bool = False  # of config.best_metric
    best: float | None = None  # value of config.best_metric that best.pth has
    metrics: list[dict[str, float]] = field(default_factory=list)  # logged since the last checkpoint

    @property
    def num_steps(self) -> int:
        """Of the whole run, from its beginning."""
        return self.config.epochs * self.sampler.num_batches

    def steps_done(self, state: TrainState) -> int:
        """Of `num_steps`; less than state.step where the run began with smaller batches."""
        return state.epoch * self.sampler.num_batches + state.batch

    def close(self) -> None:
        """Restores the signals' handlers, ends the profile, closes the log."""
        self.stop.restore()
        if self.profile is not None:
            self.profile.close()
        self.log.close()


# ------------------------------------------------------------------------------------------------------- resuming


def check_run_folder(config: TrainConfig, process: DistInfo) -> None:
    """Compares the settings with those of the run in the folder.

    Raises:
        UserError: there are checkpoints made with other settings, and --override-config was not given; or machines see
        folders of their own.
    """
    if process.num_nodes > 1:
        check_is_shared(config.run_folder, process)
    path = config.run_folder / "config.json"
    if not path.is_file() or not list_checkpoints(config.run_folder / "checkpoints"):
        return
    # A run of an earlier version did by default what it had no setting for.
    before, now = as_plain(TrainConfig()) | json.loads(path.read_text()), as_plain(config)
    changed = "; ".join(
        f"{flag(name)} {before.get(name)} -> {now[name]}"
        for name in now
        if name not in FREE_TO_CHANGE and before.get(name) != now[name]
    )
    if changed and config.override_config:
        print_rank0(process, f"goes on with other settings than before: {changed}")
    elif changed:
        raise UserError(f"{config.run_folder} holds a run with other settings ({changed}): give the same to resume it, "
                        f"--override-config to insist, or another --run-folder.")  # fmt: skip


def check_is_shared(folder: Path, process: DistInfo) -> None:
    """Raises UserError on all processes unless all of them see a file that the first one writes into the folder."""
    (name,) = gather_lists([f".seen_by_all_{secrets.token_hex(8)}"] if process.is_first else [], process)
    marker = folder / name
    if process.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    barrier(process)
    deadline = time.monotonic() + SECONDS_UNTIL_SEEN
    while not (is_seen := marker.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    everyones = gather_lists([is_seen], process)
    if process.is_first:
        marker.unlink(missing_ok=True)
    if not all(everyones):
        raise UserError(f"--run-folder {folder} is not the same folder for process 0 and process "
                        f"{everyones.index(False)}: give one on storage that all machines share.")  # fmt: skip


def load_run(
    config: TrainConfig, stage: Stage, digests: dict[str, str | int], process: DistInfo
) -> dict[str, Any] | None:
    """Loads the newest good checkpoint of the run into the stage and returns its content, None where there is none.

    Raises:
        UserError: not all processes see it, it is of other people or of another model, or memory or a device fails.
    """
    folder, head = config.run_folder / "checkpoints", stage.model.margin_fc
    of_head = (None, 0) if head is None else (head.own, head.num_identities)
    check_all_see(folder, process)
    try:
        content = load_newest(
            folder,
            report=lambda sentence: print_rank0(process, sentence),
            load=lambda path: load_with_rows(path, *of_head, process),
        )
        if content is not None:
            if head is not None:
                check_people(config, content, digests)
            load_into(stage, content, folder)
    except UserError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"the newest checkpoint in {folder} could not be loaded on {process.device} "
                        f"({first_line(error)}): make memory free or mend that device, and give the same command "
                        f"again.") from error  # fmt: skip
    return content


def check_people(config: TrainConfig, content: dict[str, Any], digests: dict[str, str | int]) -> None:
    """Raises UserError for a checkpoint of other people: the rows of its margin head are theirs."""
    saved = content.get("index", digests)  # checkpoints of earlier versions have none
    if saved["people"] == digests["people"]:
        return
    counts = f"{saved['num_people']:,} then, {digests['num_people']:,} now"
    same = "their names or their order, or in a record file how many pictures each has"
    raise UserError(f"--train-data {config.train_data} holds other people than the checkpoints in {config.run_folder} "
                    f"({counts if saved['num_people'] != digests['num_people'] else same}): give the data as it was, "
                    f"or another --run-folder, with --init-from to start from what fits.")  # fmt: skip


def load_into(stage: Stage, content: dict[str, Any], folder: Path) -> None:
    """Loads a checkpoint of `folder` into the stage.

    Raises:
        UserError: it is of another model.
        RuntimeError: of memory or of a device.
    """
    try:
        different = differences(stage.model.state_dict(), stage.model.with_own_age_branch(content["model"]))
        if not different:
            stage.model.load_state_dict(content["model"])
            for name, optimiser in stage.optimisers.items():
                load_optimiser(optimiser, content["optimisers"][name])
            if stage.ema is not None:
                stage.ema.load_state_dict(content.get("averaged"))
            if content["scaler"]:  # else it was trained in another precision: fp16 begins with a fresh scale
                stage.scaler.load_state_dict(content["scaler"])
    except KeyError as error:
        different = [f"{error} is missing there"]
    if different:
        raise UserError(f"the checkpoints in {folder} are of another model than the data and flags ask for "
                        f"({different[0]}): give another --run-folder, with --init-from to start from what "
                        f"fits.")  # fmt: skip


def state_after(
    config: TrainConfig,
    content: dict[str, Any] | None,
    digests: dict[str, str | int],
    sampler: EpochSampler,
    process: DistInfo,
) -> TrainState:
    """Where the run goes on after a checkpoint: at the same image, or in the next epoch where that image is gone."""
    if content is None:
        return TrainState(0, 0, 0)
    state, saved = TrainState(**content["position"]), content.get("index", digests)
    images_done = state.batch * content["config"]["batch_size"]
    batch, reasons = images_done // config.batch_size, []
    if saved["pictures"] != digests["pictures"]:
        reasons.append(f"--train-data {config.train_data} holds other pictures than when this run was saved "
                       f"({saved['num_pictures']:,} then, {digests['num_pictures']:,} now)")  # fmt: skip
    elif batch >= sampler.num_batches:
        reasons.append(f"{images_done:,} images of epoch {state.epoch + 1} are done, and it has "
                       f"{sampler.num_batches * config.batch_size:,} now")  # fmt: skip
    if reasons and state.batch:
        print_rank0(process, f"{reasons[0]}: the rest of epoch {state.epoch + 1} is left out")
        return TrainState(state.epoch + 1, 0, state.step)
    if reasons:
        print_rank0(process, f"{reasons[0]}: epoch {state.epoch + 1} begins with them")
    if state.epoch >= config.epochs:
        batches_done = f" and {batch:,} batches" if batch else ""
        print_rank0(
            process,
            f"{state.epoch} epochs{batches_done} are done and --epochs is {config.epochs}: nothing is left "
            f"to train; to go on give --epochs above {state.epoch}, with --override-config",
        )
    return dataclasses.replace(state, batch=batch)


def find_best_value(
    config: TrainConfig, content: dict[str, Any] | None, higher_is_better: bool, process: DistInfo
) -> float | None:
    """The value of --best-metric that the best checkpoint of a resumed run has, None where there is none."""
    if content is None or config.best_metric is None:
        return None
    found, report = [], functools.partial(print_rank0, process)
    if process.is_first:
        folder = config.run_folder / "checkpoints"
        found = [find_best(folder, content, config.best_metric, higher_is_better, report)]
    return gather_lists(found, process)[0]


# --------------------------------------------------------------------------------------------------------- saving


def validate(run: Run, state: TrainState) -> None:
    """Runs the benchmarks on the weights, or their moving average, as they are now."""
    with evaluated_model(run.stage) as model:
        run.validation.run(model, state.step, run.log)


def print_stop(run: Run, state: TrainState, status: int, saved: bool) -> None:
    """Prints which signal stopped the run, and whether it can go on from here."""
    done = "saved: the same command goes on from here" if saved else "NOT saved, see above"
    print_rank0(run.process, f"asked to stop (signal {status - 128}) after step {state.step:,}; {done}")


def check_finite(run: Run, meter: Meter, start: TrainState) -> None:
    """Checks that each step since `start` had finite losses and gradients.

    Raises:
        UserError: one had not; it names the term, the step and the files of its batch.
    """
    scale = run.stage.scaler.get_scale()
    if scale <= 0:
        raise UserError(f"the loss scale of fp16 has fallen to {scale}: every step is left out; train with "
                        f"--precision bf16 or fp32, or lower --learning-rate.")  # fmt: skip
    bad = meter.first_bad_step()
    if not any(gather_lists([bad is not None], run.process)):
        return
    if bad is None:  # another process raises the sentence; this one must not go on to save
        raise UserError(f"rank {run.process.rank} stops: a loss of another process is not finite.")
    step, terms = bad
    files = [run.index.name(i) for i in run.sampler.indices_of(start.epoch, start.batch + step - start.step)]
    path = run.config.run_folder / f"bad_batch_step_{step}_rank_{run.process.rank}.txt"
    path.write_text("\n".join(files) + "\n")
    raise UserError(
        f"not finite at step {step}: {', '.join(f'{name} {value}' for name, value in terms.items())}; the batch held "
        f"{', '.join(files[:3])}, ... (all {len(files)} in {path}); earlier checkpoints are untouched: lower "
        f"--learning-rate (now {run.config.learning_rate}) or look at those files."
    )


def save(run: Run, state: TrainState) -> bool:
    """Writes a checkpoint and returns whether that worked; all processes have the same parameters, the first one saves.

    With --sharded-classes each also saves its own rows of the margin weight.

    A disk that is full is reported and the run goes on: what was saved before is untouched.

    Raises:
        UserError: memory or a device failed.
    """
    config, written, kept = run.config, True, True
    figures = run.validation.figures_at(state.step)
    best = new_best(run, figures)
    if run.process.is_first or config.sharded_classes:
        content = checkpoint_content(run, state, best, is_validated=bool(figures))
        folder = config.run_folder / "checkpoints"
        try:
            if config.sharded_classes:
                save_shards(folder, state.step, content, run.process)
            if run.process.is_first:
                save_checkpoint(folder, state.step, content, config.keep_checkpoints, best is not None)
        except BestNotKept as error:
            kept = False
            print_rank0(
                run.process,
                f"checkpoint of step {state.step} could not be kept as {BEST} ({error}): the best one "
                f"before stays; make room in {folder}",
            )
            run.log.event("best_not_kept", state.step, reason=str(error))
        except OSError as error:
            written = False
            print_rank0(run.process, f"checkpoint of step {state.step} could not be written ({error}): the ones before "
                        f"are untouched; make room in {folder}")  # fmt: skip
            run.log.event("checkpoint_failed", state.step, reason=str(error))
        except RuntimeError as error:
            raise UserError(f"no checkpoint of step {state.step} could be made ({first_line(error)}): the ones "
                            f"before are untouched; the same command goes on from them.") from error  # fmt: skip
    outcomes = gather_lists([(written, kept)], run.process)
    is_saved = all(written for written, _ in outcomes)
    if is_saved:
        run.metrics = []
        if best is not None and all(kept for _, kept in outcomes):
            run.best = best
    return is_saved


def checkpoint_content(run: Run, state: TrainState, best: float | None, is_validated: bool) -> dict[str, Any]:
    """What a checkpoint holds; `best` is the value of --best-metric where it is a new best one."""
    stage = run.stage
    average = {} if stage.ema is None else {"averaged": stage.ema.state_dict()}
    return {
        "config": as_plain(run.config),
        "position": dataclasses.asdict(state),
        "index": run.index_digests,
        "best": run.best if best is None else best,
        "is_best": best is not None,
        "validated": is_validated,
        "model": stage.model.state_dict(),
        "branches": describe_branches(stage.model),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in stage.optimisers.items()},
        "scaler": stage.scaler.state_dict(),
    } | average


def new_best(run: Run, figures: dict[str, float]) -> float | None:
    """The value of --best-metric, of a validation or the mean since the last checkpoint, where it is the best one."""
    metric = run.config.best_metric
    values = [logged[metric] for logged in (figures, *run.metrics) if logged.get(metric) is not None]
    value = sum(values) / len(values) if values else math.nan
    if not math.isfinite(value):
        return None
    is_better = run.best is None or (value > run.best if run.higher_is_better else value < run.best)
    return value if is_better else None


def finish(run: Run) -> None:
    """Writes the weights in the published layout: the last ones, their moving average, and those that were best.

    All processes call it: with --sharded-classes each has a part of them.
    """
    config, stage, info = run.config, run.stage, {}
    path = config.run_folder / stage.weights_file
    info["weights"] = write_weights(run, path)
    print_rank0(run.process, f"weights in the published layout: {path}")
    if stage.ema is not None:
        with stage.ema.in_the_model():
            info["ema_weights"] = write_weights(run, path.with_stem(path.stem + "_ema"))
        print_rank0(run.process, f"their moving average: {info['ema_weights']}")
    if run.best is not None and (run.process.is_first or config.sharded_classes):
        step, benchmarks = load_best(run), run.validation.benchmarks
        by_validation = config.best_metric in figures_of(benchmarks)
        with evaluated_model(stage) if by_validation else contextlib.nullcontext():
            info["best_weights"] = write_weights(run, path.with_stem(path.stem + "_best"))
        info |= {"best_step": step, config.best_metric: run.best}
        print_rank0(
            run.process, f"best by {config.best_metric}, {run.best:.6g} at step {step:,}: {info['best_weights']}"
        )
    run.log.event("end", **info)


def load_best(run: Run) -> int:
    """Loads the best checkpoint's weights and averages into the model; returns its step."""
    path, stage = run.config.run_folder / "checkpoints" / BEST, run.stage
    if run.config.sharded_classes:
        head = stage.model.margin_fc
        best = load_with_rows(path, head.own, head.num_identities, run.process)
    else:
        best = load_checkpoint(path)
    stage.model.load_state_dict(best["model"])
    if stage.ema is not None:
        stage.ema.load_state_dict(best.get("averaged"))
    return best["step"]


def evaluated_model(stage: Stage) -> contextlib.AbstractContextManager:
    """The model that is validated: with --ema-decay it has the moving average in the place of its own weights."""
    return contextlib.nullcontext(stage.model) if stage.ema is None else stage.ema.in_the_model()


def write_weights(run: Run, path: Path) -> str:
    """Writes the weights, and beside them a JSON file of what their keys don't say; returns the path."""
    config, model = run.config, run.stage.model
    whole = {}
    if config.sharded_classes:
        whole = {WEIGHT: whole_weight(model.margin_fc.weight, run.index.num_identities, run.process)}
    if run.process.is_first:
        method = {"disentangle": config.disentangle} if config.stage == "identity" else {}
        write_json(path.with_suffix(".json"), describe_branches(model) | method)
        save_atomically(run.stage.published_tensors(model) | whole, path)
    return str(path)
