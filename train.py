"""Trains the age branch (--stage age) or the identity branch with IEFP (--stage identity, the default).

    python train.py --stage age @recipes/demo.args
    torchrun --nproc-per-node 2 train.py --train-data face_dataset/ms1mv3_256times256_with_age

The defaults are the published recipe. A run is a folder: config.json, log.jsonl, tensorboard/, checkpoints/, and at the
end the weights in the published layout. The same command started again goes on from the newest checkpoint.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from data.age_cache import NUM_VIEWS, AgeCache, bytes_there, cache_bytes, cache_folder, prepare_cache
from data.ages.tables import read_ages
from data.benchmarks import EvalSet, open_complete_eval_set
from data.check.image_scan import check_shapes
from data.faces import UNKNOWN, Faces, with_ages
from data.index_cache import CACHE_FOLDER, find_record_file, index_digests, open_index
from data.loaders import EpochSampler, FaceBatch, batches, evaluation_loader, training_loader
from data.picture_grid import draw_grid
from data.transforms import augment, hflip, random_stream, to_network_input
from meta import (
    AGE_GROUP_NAMES,
    EMBEDDING_SIZE,
    FILENAME_PATTERNS,
    IMAGE_SIZE,
    TRAINING_SETS,
    UserError,
)
from models.age_heads import age_group_probabilities_from_years, expected_age, year_losses
from models.disentangle.registry import CRITICS, MutualInformation
from models.iefp import IEFP
from models.iresnet import IResNet, architecture_of, set_batchnorm_momentum
from models.margin import MarginLoss
from models.purification import parse_purification
from models.sharded_margin import ShardedMarginLoss
from models.weights import (
    AGE_PREFIXES,
    Branch,
    age_file_tensors,
    describe_branches,
    iefp_file_tensors,
    load_age_branch,
    load_what_fits,
    read_weight_file,
)
from training import dry_run
from training.accumulation import check_parts, gradients_stay_here, mean_of_parts, momentum_of_parts
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
from training.data_parallel import Collectives, in_parallel
from training.ema import MovingAverage
from training.memory import FEW_IMAGES, FP32, saved_by, step_memory
from training.optim import (
    RowwiseSGD,
    choose_precision,
    load_optimiser,
    make_optimiser,
    make_precision,
    make_repeatable,
    translate,
    update,
)
from training.partial_fc import WEIGHT, ClassShards, load_with_rows, own_identities, save_shards, whole_weight
from training.profiling import Profile
from training.run_log import BadImages, Meter, RunLog, TimeLeft
from training.schedules import check_schedule, learning_rate_at, set_learning_rate
from training.stopping import StopRequest
from training.trackers import Tracker, import_wandb
from training.validation import Validation, figures_of
from utils.cli import as_plain, check_config, flag, given, parse_config, run_script
from utils.device_errors import first_line
from utils.distributed import (
    Process,
    gather_lists,
    start_process,
    stop_process,
    tell,
    wait_for_all,
)
from utils.files import write_json
from utils.progress import progress

# The published loop passes each batch through the identity encoder twice, so its BatchNorm statistics move twice with
# momentum 0.1. One pass with 1 - (1 - 0.1)^2 moves them by the same amount.
ONE_PASS_MOMENTUM = 0.19
MOMENTUM = 0.1  # BatchNorm's own

VALIDATION_BATCH = 64  # pictures at once, as test.py takes them unless told
MAX_PICTURES = 64  # of a dry run's first batch

# ------------------------------------------------------------------------------------------------------ the steps


@dataclass(frozen=True)
class Batch:
    """What one step takes, on the device."""

    images: Tensor  # (N, 3, 112, 112) in [-1, 1], half of them mirrored
    identities: Tensor  # (N,)
    age_groups: Tensor  # (N,) 0..7, -1 where unknown
    ages: Tensor | None = None  # (N,) years; of use to the head for years
    permutation: Tensor | None = None  # (N,) of CLUB's negatives, of each part its own; random when None
    age_features: Tensor | None = None  # (N, 512) of the frozen branch when they are known; else it computes them
    step: int = 0  # done before this one

    def parts(self, count: int) -> list["Batch"]:
        """The batch in so many equal parts; one part is the batch itself."""
        size = len(self.images) // count
        rows = [slice(start, start + size) for start in range(0, len(self.images), size)]
        whole = vars(self)
        return [Batch(**{name: value[own] if isinstance(value, Tensor) else value for name, value in whole.items()})
                for own in rows]  # fmt: skip


class IdentityStage:
    """Stage (b): identity encoder, margin head and a critic (IEFP's is CLUB) are trained; the age branch is frozen."""

    weights_file, published_tensors = "iefp.pth", staticmethod(iefp_file_tensors)

    def __init__(self, config: TrainConfig, model: IEFP, process: Process):
        self.config, self.model = config, model.freeze_age_branch()
        self.images_at_once = max(1, config.batch_size // process.world_size // config.accumulation)
        self.averaged = MovingAverage(model, ["backbone_id"], config.ema_decay) if config.ema_decay else None
        self.keep_pace(config.accumulation)
        translate(config, [encoder for encoder in (model.backbone_id, model.backbone_ae) if encoder is not None])
        self.encoder = in_parallel(model.backbone_id, process, config.sync_batchnorm)
        self.identity_parameters = [*model.backbone_id.parameters(), *model.margin_fc.parameters()]
        kind = RowwiseSGD if config.class_sampling_rate < 1 else torch.optim.SGD
        self.optimisers = {"identity": make_optimiser(config, self.identity_parameters, model.backbone_id, kind)}
        if config.sharded_classes:
            shards = ClassShards(model.margin_fc.weight, process)
            self.clip, make_scaler = shards.clip, shards.make_scaler
            rate = config.class_sampling_rate
            self.face_recognition = ShardedMarginLoss(model.margin_fc, shards.collectives, rate, config.seed)
        else:
            self.clip, make_scaler = clip_grad_norm_, torch.amp.GradScaler
            self.face_recognition = in_parallel(MarginLoss(model.margin_fc, Collectives(process).gather), process)
        self.critic = MutualInformation(model.clubmi) if config.disentangle == "iefp" else model.critic
        if self.critic is not None:
            self.learning_critic = in_parallel(self.critic, process, config.sync_batchnorm)
            self.critic_parameters = list(self.critic.parameters())
            self.optimisers[self.critic.name] = make_optimiser(config, self.critic_parameters)
        self.autocast, self.scaler = make_precision(config, process.device, make_scaler)

    def keep_pace(self, num_parts: int) -> None:
        """Lets running statistics move as far in a step of so many parts as in a step of one."""
        model, club_steps = self.model, self.config.club_steps
        set_batchnorm_momentum(model.backbone_id, momentum_of_parts(ONE_PASS_MOMENTUM, 1, num_parts))
        # CLUB passes whole batches as it learns, and the parts when it is asked.
        set_batchnorm_momentum(model.clubmi, momentum_of_parts(MOMENTUM, club_steps + 1, club_steps + num_parts))
        if self.config.margin == "adaface":
            model.margin_fc.rate = momentum_of_parts(model.margin_fc.rate, 1, num_parts)

    @property
    def logged(self) -> dict[str, bool]:
        """The losses that a step gives, and whether each is better when higher."""
        return self.logged_with(self.config)

    @staticmethod
    def logged_with(config: TrainConfig) -> dict[str, bool]:
        """The same, of the settings alone."""
        critic, logged = critic_of(config), {"face_recognition_loss": False}
        if critic is not None:
            logged |= {
                critic.objective_name: critic.higher_objective_is_better,
                f"{critic.name}_gradient_norm": False,
                critic.penalty_name: critic.higher_penalty_is_better,
            }
            logged |= {"age_loss": False} if critic.needs_age_features else {}
        return logged | {"gradient_norm": False}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The critic's updates and one identity step; gives the losses as they were before (see models/disentangle).

        With --accumulation the gradients of several parts add up to one update. The critic can't have learned from the
        whole batch before all parts have passed, and they pass once: so all parts meet it as the steps before left it,
        and it learns from the whole batch's features at the end, one step late. What a term makes of a batch as a whole
        (BatchNorm, CLUB's negatives, DAL's correlation) it makes of each part.
        """
        parts, passed = batch.parts(self.config.accumulation), []
        self.optimisers["identity"].zero_grad()
        for part in parts:
            with gradients_stay_here(part is not parts[-1], self.encoder, self.face_recognition):
                passed.append(self.learn_from(part, len(parts)))
        gradient_norm = update(
            self.optimisers["identity"], self.identity_parameters, self.scaler, self.config.clip_norm, self.clip
        )

        told, ages, identities = zip(*passed, strict=True)
        age = None if ages[0] is None else torch.cat(ages)  # (N, 512)
        losses = mean_of_parts(told)
        if self.critic is not None and len(parts) > 1:
            losses |= self.teach_critic(age, torch.cat(identities), batch.age_groups)
        if age is not None:
            losses["age_loss"] = self.age_loss(age, batch.age_groups)
        return {**losses, "gradient_norm": gradient_norm}

    def learn_from(self, batch: Batch, num_parts: int) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
        """The gradients of one of so many parts; gives its losses, age features and (fixed) identity features."""
        age = self.age_features_of(batch)  # (N, 512), None where the method needs none
        with self.autocast:
            identity = self.encoder(batch.images)  # (N, 512)

        penalty, losses = 0.0, {}
        if self.critic is not None:
            # CLUB learns to predict identity from age: ascend the log-likelihood (other critics: what they look for).
            if num_parts == 1:
                losses = self.teach_critic(age, identity.detach(), batch.age_groups)
            penalty = self.critic.penalty(age, identity, batch.age_groups, batch.permutation)
            losses[self.critic.penalty_name] = penalty.detach()

        # The identity branch learns to recognise people and to leave the critic, as it now is, nothing to find.
        face_recognition_loss = self.face_recognition(identity, batch.identities, batch.step)
        loss = face_recognition_loss + penalty_weight(self.config, self.critic, batch.step) * penalty
        self.scaler.scale(loss / num_parts).backward()
        return {"face_recognition_loss": face_recognition_loss.detach(), **losses}, age, identity.detach()

    def teach_critic(self, age: Tensor | None, identity: Tensor, age_groups: Tensor) -> dict[str, Tensor]:
        """The critic raises its objective on features that are held fixed; gives what it was before."""
        critic, config = self.critic, self.config
        of_club = config.club_steps, config.club_weight
        updates, weight = of_club if critic.name == "club" else (critic.updates, critic.objective_weight)
        told = {}
        for _ in range(updates):
            objective = self.learning_critic(age, identity, age_groups)
            self.optimisers[critic.name].zero_grad()
            (-weight * objective).backward()
            norm = clip_grad_norm_(self.critic_parameters, config.clip_norm)
            self.optimisers[critic.name].step()
            told = told or {critic.objective_name: objective.detach(), f"{critic.name}_gradient_norm": norm}
        return told

    @torch.no_grad()
    def age_loss(self, age: Tensor, age_groups: Tensor) -> Tensor:
        """Cross-entropy of the frozen branch over the pictures whose age is known, 0 where none is."""
        of_known = F.cross_entropy(self.model.age_logits(age), age_groups, ignore_index=UNKNOWN, reduction="sum")
        return of_known / (age_groups != UNKNOWN).sum().clamp(min=1)

    def age_features_of(self, batch: Batch) -> Tensor | None:
        """(N, 512) of the frozen branch, kept or computed; None where the method needs none."""
        if self.critic is None or not self.critic.needs_age_features:
            return None
        return self.age_features(batch.images) if batch.age_features is None else batch.age_features

    @torch.no_grad()
    def age_features(self, images: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [-1, 1] -> (N, 512) of the frozen branch, which gets one part of a batch at a time."""
        with self.autocast:
            return torch.cat([self.model.age_features(part) for part in images.split(self.images_at_once)])


def critic_of(config: TrainConfig) -> type[torch.nn.Module] | None:
    """The kind of critic that --disentangle asks for."""
    return MutualInformation if config.disentangle == "iefp" else CRITICS.get(config.disentangle)


def penalty_weight(config: TrainConfig, critic: torch.nn.Module | None, step: int) -> float:
    """Weight of the critic's penalty in the identity loss: lambda, risen as far as it has by this step."""
    if critic is None:
        return 0.0
    if critic.name == "club":
        risen = min(1.0, step / config.mutual_information_warmup) if config.mutual_information_warmup else 1.0
        return config.mutual_information_weight * risen
    return critic.default_weight if config.disentangle_weight is None else config.disentangle_weight


class AgeStage:
    """Stage (a): age encoder and age estimator are trained by cross-entropy over the age groups.

    With --age-head years a second head is trained beside it, by cross-entropy over the years (Rothe et al., DEX, 2015).
    """

    weights_file, published_tensors = "age.pth", staticmethod(age_file_tensors)

    def __init__(self, config: TrainConfig, model: IEFP, process: Process):
        self.config, self.model = config, model
        names = ["backbone_ae", "age_estimator", *(["year_head"] if model.year_head is not None else [])]
        self.averaged = MovingAverage(model, names, config.ema_decay) if config.ema_decay else None
        set_batchnorm_momentum(model.backbone_ae, momentum_of_parts(MOMENTUM, 1, config.accumulation))
        translate(config, (model.backbone_ae,))
        self.encoder = in_parallel(model.backbone_ae, process, config.sync_batchnorm)
        self.estimator = in_parallel(model.age_estimator, process)
        self.year_head = None if model.year_head is None else in_parallel(model.year_head, process)
        self.parameters = [parameter for module in model.age_branch for parameter in module.parameters()]
        self.optimisers = {"age": make_optimiser(config, self.parameters, model.backbone_ae)}
        self.autocast, self.scaler = make_precision(config, process.device)

    @property
    def logged(self) -> dict[str, bool]:
        """The losses and errors that a step gives, and whether each is better when higher."""
        return self.logged_with(self.config)

    @staticmethod
    def logged_with(config: TrainConfig) -> dict[str, bool]:
        """The same, of the settings alone."""
        of_groups = {"age_group_mae": False, "age_group_accuracy_percent": True}
        of_years = {f"by_years_{name}": higher_is_better for name, higher_is_better in of_groups.items()}
        of_years = {"year_loss": False, "age_mae_years": False} | of_years
        return (
            {"age_loss": False}
            | of_groups
            | (of_years if config.age_head == "years" else {})
            | {"gradient_norm": False}
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step; gives the losses as they were before."""
        parts, told = batch.parts(self.config.accumulation), []
        modules = [module for module in (self.encoder, self.estimator, self.year_head) if module is not None]
        self.optimisers["age"].zero_grad()
        for part in parts:
            with gradients_stay_here(part is not parts[-1], *modules):
                told.append(self.learn_from(part, len(parts)))
        gradient_norm = update(self.optimisers["age"], self.parameters, self.scaler, self.config.clip_norm)
        return {**mean_of_parts(told), "gradient_norm": gradient_norm}

    def learn_from(self, batch: Batch, num_parts: int) -> dict[str, Tensor]:
        """The gradients of one of so many parts; gives its losses."""
        with self.autocast:
            age = self.encoder(batch.images)  # (N, 512)
        logits = self.estimator(age)  # (N, 8)
        age_loss = loss = F.cross_entropy(logits, batch.age_groups)
        losses = {"age_loss": age_loss.detach(), **group_errors(logits.detach(), batch.age_groups)}
        if self.year_head is not None:
            years = self.year_head(age)  # (N, 101)
            weights = self.config.mean_loss_weight, self.config.variance_loss_weight
            year_loss = year_losses(years, batch.ages, *weights).total
            loss = age_loss + year_loss
            losses |= {"year_loss": year_loss.detach(), **year_errors(years.detach(), batch)}
        self.scaler.scale(loss / num_parts).backward()
        return losses


def group_errors(scores: Tensor, age_groups: Tensor) -> dict[str, Tensor]:
    """Error and accuracy of the most probable group: scores (N, 8), age_groups (N,)."""
    error = (scores.argmax(1) - age_groups).abs().float()
    return {"age_group_mae": error.mean(), "age_group_accuracy_percent": 100 * (error == 0).float().mean()}


def year_errors(years: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Error of the expected age in years, and of the groups that the years add up to: years (N, 101) logits."""
    of_groups = group_errors(age_group_probabilities_from_years(years), batch.age_groups)
    mae = (expected_age(years) - batch.ages).abs().mean()
    return {"age_mae_years": mae} | {f"by_years_{name}": value for name, value in of_groups.items()}


STAGES = {"identity": IdentityStage, "age": AgeStage}


# ------------------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class Position:
    """Where a run stands: the epoch, batches of it done, steps done since the start."""

    epoch: int
    batch: int
    step: int

    def next(self) -> "Position":
        return Position(self.epoch, self.batch + 1, self.step + 1)


@dataclass
class Run:
    """All that the loop needs."""

    config: TrainConfig
    process: Process
    index: Faces
    stage: IdentityStage | AgeStage
    age_cache: AgeCache | None
    loader: torch.utils.data.DataLoader
    sampler: EpochSampler
    log: RunLog | None = None  # this and what follows is for training alone
    stop: StopRequest | None = None
    bad_images: BadImages | None = None
    time_left: TimeLeft | None = None
    profile: Profile | None = None
    index_digests: dict[str, str | int] = dataclasses.field(default_factory=dict)  # of data.index_cache
    higher_is_better: bool = False  # of config.best_metric
    best: float | None = None  # value of config.best_metric that best.pth was kept for
    validation: Validation | None = None
    readings: list[dict[str, float]] = dataclasses.field(default_factory=list)  # log lines since the last checkpoint

    @property
    def num_steps(self) -> int:
        """Of the whole run, from its beginning."""
        return self.config.epochs * self.sampler.num_batches

    def steps_done(self, position: Position) -> int:
        """Of `num_steps`; less than position.step where the run began with smaller batches."""
        return position.epoch * self.sampler.num_batches + position.batch


def train(config: TrainConfig) -> int:
    """Trains one stage from the folder of pictures to the weight file, going on where an earlier run stopped.

    The exit status is 0, or 128 + the signal that asked it to stop. What can be wrong is looked for in the order of
    what it costs to find: flags, small files, the list of pictures, the model, the run's checkpoint.
    """
    check_flags(config)
    process = start_process(config.device)
    make_repeatable(config)
    check_parts(config.batch_size, config.accumulation, process)
    check_run_folder(config, process)
    benchmarks, age_branch = open_benchmarks(config), read_weights(config)
    higher_is_better = check_best_metric(config, STAGES[config.stage].logged_with(config) | figures_of(benchmarks))
    index = open_pictures(config, process)
    digests = compare_indices(config, index, process)
    check_pictures(config, index, benchmarks, process)
    loader, sampler = make_loader(config, index, process)
    check_schedule(config, config.epochs * sampler.num_batches)
    model = make_model(config, index.num_identities, age_branch, process)
    stage = STAGES[config.stage](config, model, process)
    content = load_run(config, stage, digests, process)
    position = position_of(config, content, digests, sampler, process)
    if position.epoch >= config.epochs:
        tell(process, nothing_left(config, position))
    if config.dry_run:
        return tell_dry_run(Run(config, process, index, stage, None, loader, sampler), position, benchmarks)
    # Last, for it makes, and may allocate, files: until here nothing was written that another run has to do with.
    loader.dataset.age_cache = age_cache = open_age_cache(config, model, index, process)
    if process.is_first:
        write_json(config.run_folder / "config.json", as_plain(config))
    wait_for_all(process)  # a folder that only the first process can write is its error alone
    log = open_log(config, process, position)
    log.event("start", images=len(index), identities=index.num_identities, processes=process.world_size,
              resumed_step=position.step)  # fmt: skip
    tell(process, f"stage {config.stage}: {len(index):,} images of {index.num_identities:,} identities, "
         f"{config.backbone} on {process.world_size} x {process.device.type}, run folder {config.run_folder}, "
         f"{position.step:,} steps done")  # fmt: skip
    best = find_best_value(config, content, higher_is_better, process)
    bad_images = BadImages(config.run_folder / "bad_images.txt", len(index), config.max_bad_share, process)
    profile = Profile(config.profile, config.run_folder, process) if config.profile else None
    run = Run(config, process, index, stage, age_cache, loader, sampler, log, StopRequest(process), bad_images,
              TimeLeft(config.epochs * sampler.num_batches), profile, digests, higher_is_better, best)  # fmt: skip
    try:
        run.validation = make_validation(run, benchmarks)
        status = fill_age_cache(run) if config.age_cache == "ahead" and age_cache is not None else 0
        is_validated = content is not None and content.get("validated", False)
        if is_due(run, position) and not is_validated and not status:  # the run was stopped just before it
            validate(run, position)
            saved, status = save(run, position), run.stop.status() or 0
            if status:
                print_stop(run, position, status, saved)
        while position.epoch < config.epochs and not status:
            position, status = train_epoch(run, position)
        if not status:
            finish(run)
        wait_for_all(process)
    finally:
        run.stop.restore()
        if profile is not None:
            profile.close()
        log.close()
    stop_process(process)
    return status


def check_flags(config: TrainConfig) -> None:
    """Looks for what is wrong with the flags, before anything is read.

    Raises:
        UserError: for the first of these.
    """
    check_config(config)
    if "names" in given(config) and find_record_file(config.train_data) is not None:
        raise UserError(f"--names does nothing with the record file {config.train_data}, whose pictures have no names: "
                        f"leave it out.")  # fmt: skip
    if config.validate_every and not config.validate_on:
        raise UserError("--validate-every needs --validate-on: name one or several benchmarks, such as fgnet calfw.")
    architecture_of(config.backbone)
    parse_purification(config.purification)
    check_schedule(config)
    if config.ages is not None and not config.ages.is_file():
        raise UserError(f"--ages {config.ages} is no file: give a table of pictures and their ages.")
    if config.wandb is not None:
        import_wandb()


def read_weights(config: TrainConfig) -> Branch | None:
    """The architecture of the age branch in --age-weights, None where there is to be none; --init-from is read too.

    Raises:
        UserError: one of the files is missing, damaged, or not what it should be.
    """
    if config.init_from is not None:
        read_weight_file(config.init_from)
    critic = critic_of(config)
    is_needed = critic is not None and critic.needs_age_features
    is_asked_for = is_needed or config.age_weights != TrainConfig.age_weights or "age_weights" in given(config)
    if config.stage == "age" or not (is_asked_for or config.age_weights.is_file()):
        return None
    age_branch = read_weight_file(config.age_weights).age_branch
    if age_branch is None:
        raise UserError(f"--age-weights {config.age_weights} holds no age branch: give a file that does, "
                        f"such as the age.pth of a run with --stage age.")  # fmt: skip
    return age_branch


def open_log(config: TrainConfig, process: Process, position: Position) -> RunLog:
    is_tracked = config.wandb is not None and process.is_first
    tracker = Tracker(config.wandb, config.run_folder, as_plain(config)) if is_tracked else None
    return RunLog(config.run_folder, process.is_first, position.step, tracker)


def train_epoch(run: Run, start: Position) -> tuple[Position, int]:
    """Trains to the end of the epoch that `start` lies in, or to a request to stop; gives the position and a status."""
    config, process, sampler = run.config, run.process, run.sampler
    sampler.set_epoch(start.epoch, start.batch)
    run.stage.model.train()
    meter, what, position = Meter(process), f"epoch {start.epoch + 1}/{config.epochs}", start
    run.time_left.add(run.steps_done(start))
    watched = progress(batches(run.loader), sampler.num_batches, what, start.batch, enabled=process.is_first,
                       note=lambda: str(run.time_left))  # fmt: skip
    for faces in watched:
        learning_rate = learning_rate_at(config, start.epoch, run.steps_done(position), run.num_steps)
        set_learning_rate(run.stage.optimisers.values(), learning_rate)
        batch = prepare(run, faces, position.step)
        losses = run.stage.step(batch)
        if run.stage.averaged is not None:
            run.stage.averaged.update()
        if run.profile is not None:
            run.profile.step()
        meter.add(position.step, losses, len(batch.images))
        run.bad_images.add(faces.failures)
        position = position.next()
        run.time_left.add(run.steps_done(position))
        is_end, status = position.batch == sampler.num_batches, run.stop.status()
        if is_end:
            position = Position(start.epoch + 1, 0, position.step)
        is_to_save, validates = is_end or status or position.step % config.save_every == 0, is_due(run, position)
        if is_to_save or validates or position.step % config.log_every == 0:
            check_numbers(run, meter, start)
            run.bad_images.check()
            means = meter.read()
            run.readings.append(means)
            run.log.event("train", position.step, epoch=start.epoch, learning_rate=learning_rate, **means,
                          seconds_left=round(run.time_left.seconds()))  # fmt: skip
            if validates and not status:
                validate(run, position)
                status = run.stop.status()
                meter.leave_out_time()
            if is_to_save or status or config.best_metric in figures_now(run, position):
                saved = save(run, position)
            if status:
                print_stop(run, position, status, saved)
                return position, status
    tell(process, f"{what}: " + ", ".join(filter(None, [meter.last_line, str(run.time_left)])))
    return position, 0


def print_stop(run: Run, position: Position, status: int, saved: bool) -> None:
    done = "saved: the same command goes on from here" if saved else "NOT saved, see above"
    tell(run.process, f"asked to stop (signal {status - 128}) after step {position.step:,}; {done}")


def validate(run: Run, position: Position) -> None:
    with judged(run.stage) as model:
        run.validation.run(model, position.step, run.log)


def is_due(run: Run, position: Position) -> bool:
    """Whether the benchmarks are to be asked at this position."""
    if run.validation is None or position.step == 0:
        return False
    return position.step % run.config.validate_every == 0 or position.epoch == run.config.epochs


def check_numbers(run: Run, meter: Meter, start: Position) -> None:
    """Ends the run when a step since `start` had a loss or gradient that is no finite number.

    Raises:
        UserError: naming the term, the step and the files of its batch.
    """
    scale = run.stage.scaler.get_scale()
    if scale <= 0:
        raise UserError(f"the loss scale of fp16 has fallen to {scale}: no step counts any more; train with "
                        f"--precision bf16 or fp32, or lower --learning-rate.")  # fmt: skip
    bad = meter.first_bad_step()
    if not any(gather_lists([bad is not None], run.process)):
        return
    if bad is None:  # another process has the sentence; this one must not go on to save
        raise UserError(f"rank {run.process.rank} stops: a loss of another process is not finite.")
    step, terms = bad
    files = [run.index.name(i) for i in run.sampler.indices_of(start.epoch, start.batch + step - start.step)]
    path = run.config.run_folder / f"bad_batch_step_{step}_rank_{run.process.rank}.txt"
    path.write_text("\n".join(files) + "\n")
    raise UserError(
        f"not finite at step {step}: {', '.join(f'{name} {value}' for name, value in terms.items())}; the batch held "
        f"{', '.join(files[:3])}, ... (all {len(files)} in {path}); checkpoints from before are kept: lower "
        f"--learning-rate (now {run.config.learning_rate}) or look at those files."
    )


def open_benchmarks(config: TrainConfig) -> dict[str, EvalSet]:
    """The benchmarks of --validate-on, by the names that their figures begin with.

    Raises:
        UserError: for benchmarks that are unknown, missing or wrong.
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


def make_validation(run: Run, benchmarks: dict[str, EvalSet]) -> Validation | None:
    """What asks the benchmarks; None where there are none."""
    config, process = run.config, run.process

    def batches_of(faces: Faces) -> Iterator[FaceBatch]:
        pin_memory = process.device.type == "cuda"
        loader = evaluation_loader(
            faces, VALIDATION_BATCH, config.workers, pin_memory, process.rank, process.world_size
        )
        for batch in batches(loader):
            if run.stop.noted:
                raise UserError(f"asked to stop (signal {run.stop.noted}).")
            yield batch

    if not benchmarks:
        return None
    return Validation(benchmarks, process, batches_of, to_network_input, run.stop.status)


def check_best_metric(config: TrainConfig, logged: dict[str, bool]) -> bool:
    """Whether --best-metric is better when higher; `logged` has that of the values that this run logs.

    Raises:
        UserError: it is not among them, or says nothing about the weights, as the speed.
    """
    if config.best_metric is None:
        return False
    if config.best_metric not in logged:
        raise UserError(f"--best-metric {config.best_metric} is not logged in stage {config.stage}, or says nothing "
                        f"about the weights: give one of {', '.join(logged)}.")  # fmt: skip
    return logged[config.best_metric]


def make_loader(
    config: TrainConfig, index: Faces, process: Process
) -> tuple[torch.utils.data.DataLoader, EpochSampler]:
    """Batches for this process, and the sampler that orders them."""
    return training_loader(
        index,
        config.batch_size // process.world_size,
        seed=config.seed,
        rank=process.rank,
        world_size=process.world_size,
        workers=config.workers,
        pin_memory=process.device.type == "cuda",
        on_bad_image=config.on_bad_image,
    )


def prepare(run: Run, faces: FaceBatch, step: int) -> Batch:
    """Images on the device as the network takes them, half of them mirrored; labels; CLUB's permutation.

    All that is random depends on seed and step alone: a resumed run draws the same, and the whole batch is mirrored
    alike however many processes share it.
    """
    config, process = run.config, run.process
    draws = random_stream(config.seed, step)
    own = slice(process.rank * len(faces.images), (process.rank + 1) * len(faces.images))
    flips = torch.rand(config.batch_size, generator=draws)[own] < 0.5
    parts = [len(faces.images) // config.accumulation] * config.accumulation
    permutation = torch.cat([torch.randperm(size, generator=draws) for size in parts])
    images, identities, age_groups, ages, permutation, flips_there = (
        values.to(process.device, non_blocking=True)
        for values in (faces.images, faces.identities, faces.age_groups, faces.ages, permutation, flips)
    )
    images = hflip(images, flips_there)
    images = to_network_input(images, channels_last=True)
    if config.augmentation == "changes":
        images = augment(images, config.seed, step, own.start, config.batch_size)
    age_features = None
    if run.age_cache is not None:
        views, rows = known_age_features(run, faces, images, flips), torch.arange(len(flips))
        age_features = views[rows, flips.long()].to(process.device, non_blocking=True).float()
    return Batch(images, identities, age_groups, ages, permutation, age_features, step)


# ----------------------------------------------------------------------------------------------- ages, age features


def open_pictures(config: TrainConfig, process: Process) -> Faces:
    """The index of the training set with its ages; a machine's first process makes it, the others find it kept."""
    if not process.is_first_of_node:
        wait_for_all(process)
    index = open_index(
        config.train_data,
        None if config.ages else FILENAME_PATTERNS.get(config.names),
        min_identities=2,
        what="training images",
        how_to_get=TRAINING_SETS["ms1mv3"].how_to_get,
        cache_folder=config.cache_folder,
        report=lambda sentence: tell(process, sentence),
        progress=functools.partial(progress, enabled=process.is_first, silent_below=2.0),
    )
    if process.is_first_of_node:
        wait_for_all(process)
    if config.scaled_decoding:
        index = dataclasses.replace(index, scaled=True)
    if config.ages is not None:
        index = with_ages(index, read_ages(config.ages, index))
    if config.stage == "age" and (index.ages is None or (index.ages == UNKNOWN).any()):
        raise UserError(f"--train-data {config.train_data} has pictures without an age, which --stage age needs: "
                        f"give --ages with a table of them.")  # fmt: skip
    critic = critic_of(config)
    by_age_groups = config.stage == "identity" and critic is not None and critic.needs_age_groups
    if by_age_groups and (index.ages is None or (index.ages == UNKNOWN).all()):
        raise UserError(f"--train-data {config.train_data} has no picture with an age, which --disentangle "
                        f"{config.disentangle} needs: give --ages with a table of them.")  # fmt: skip
    return index


def check_pictures(config: TrainConfig, index: Faces, benchmarks: dict[str, EvalSet], process: Process) -> None:
    """Raises UserError for photographs to train on or to validate on, see `data.check.image_scan.check_shapes`."""
    sides = [faces for benchmark in benchmarks.values() for faces, _ in benchmark.sides]
    for faces in () if config.assume_aligned else (index, *sides):
        check_shapes(faces, functools.partial(tell, process))


def why_no_age_cache(config: TrainConfig) -> str | None:
    """Why the frozen branch's features are not kept, "" where nobody asks; None where they are."""
    wanted = config.age_cache == "ahead" or (config.age_cache == "auto" and config.epochs >= 3)
    if config.stage == "age" or not wanted:
        return ""
    critic = critic_of(config)
    if critic is None or not critic.needs_age_features:
        return f"no age features are kept: --disentangle {config.disentangle} uses none"
    if config.augmentation != "flip":
        return f"no age features are kept: with --augmentation {config.augmentation} no image comes twice alike"
    return None


def open_age_cache(config: TrainConfig, model: IEFP, index: Faces, process: Process) -> AgeCache | None:
    """The cache of the frozen branch's features, or None where it would not pay, is not wanted or has no room."""
    reason = why_no_age_cache(config)
    if reason is not None:
        if reason:
            tell(process, reason)
        return None
    made = [None]
    if process.is_first_of_node:
        place = age_cache_place(config, index, process)
        describes = age_cache_description(config, model, index, process)
        made = [prepare_cache(*place, describes, len(index), functools.partial(print, flush=True))]  # on each machine
    made = gather_lists(made, process)
    caches = made[:: process.processes_of_node]  # one a machine
    if None in caches:
        if caches != [None]:
            tell(process, "no age features are kept, for they can't be on every machine: training goes on without")
        return None
    return caches[process.node]


def age_cache_place(config: TrainConfig, index: Faces, process: Process) -> tuple[Path, str]:
    """The folder of the caches of age features, and how the names of this data set's caches begin."""
    root = Path(index.root)
    name = f"{root.name}_node{process.node}_age_features"  # machines may share a folder, but not mapped memory
    return config.cache_folder or root.parent / CACHE_FOLDER, name


def age_cache_description(config: TrainConfig, model: IEFP, index: Faces, process: Process) -> dict[str, str | int]:
    """All that the age features depend on."""
    watched = functools.partial(progress, enabled=process.is_first, silent_below=2.0)
    return {
        "pictures": index.state(watched),
        "weights": fingerprint(model.backbone_ae),
        "precision": choose_precision(config, process.device),
        "scaled": config.scaled_decoding,
    }


def fingerprint(encoder: IResNet) -> str:
    """SHA-256 of all that decides what an encoder gives: its parameters and buffers, and its purification unit."""
    digest = hashlib.sha256(f"{encoder.backbone} {encoder.purification}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def known_age_features(run: Run, faces: FaceBatch, images: Tensor, flips: Tensor) -> Tensor:
    """Age features of a batch and its mirror images, from the cache or computed now: (N, 2, 512) float16 on the CPU.

    `flips` (N,) says which of the images are mirrored. Only rows that are not known are computed. What a network gives
    for one image may depend in its last bits on how many others pass with it (in fp32 on a CPU about one value of 150,
    after rounding to 16 bits, where that is no multiple of 4). A resumed run has the same bits nevertheless: it reads
    what was written after its checkpoint, so that the same rows of each batch remain to be computed. The exception is
    a batch that was just being written when SIGKILL came or the power failed.
    """
    views = faces.age_features
    if not views.numel():
        views = torch.zeros(len(flips), NUM_VIEWS, EMBEDDING_SIZE, dtype=torch.float16)
    unknown = torch.nonzero(~views[:, 0].any(dim=1)).flatten()
    if len(unknown):
        there = unknown.to(images.device)
        views[unknown] = computed_age_features(run, faces.indices[unknown], images[there], flips[unknown])
    return views


def computed_age_features(run: Run, indices: Tensor, images: Tensor, flips: Tensor) -> Tensor:
    """Age features of images and their mirror images, kept in the cache: (N, 2, 512) float16 on the CPU."""
    images = images.contiguous(memory_format=torch.channels_last)
    given, mirrored = (run.stage.age_features(each).cpu() for each in (images, hflip(images)))  # (N, 512)
    flips = flips[:, None]
    views = torch.stack([torch.where(flips, mirrored, given), torch.where(flips, given, mirrored)], dim=1)
    run.age_cache.write(indices.numpy(), views.numpy())
    return views.half()


def fill_age_cache(run: Run) -> int:
    """Computes all age features that are not known yet; 128 + a signal that asks to stop.

    Each machine fills its own cache, its processes by turns. All take part in as many rounds as the longest share has,
    so that they go on to training, or stop, together.
    """
    config, process = run.config, run.process
    own = run.age_cache.unknown()[process.local_rank :: process.processes_of_node]
    size = config.batch_size // process.world_size
    rounds = max(gather_lists([-(-len(own) // size)], process))  # nobody writes before all have looked
    loader = evaluation_loader(run.index, size, config.workers, process.device.type == "cuda", indices=own,
                               on_bad_image=config.on_bad_image)  # fmt: skip
    loaded = batches(loader)
    for _ in progress(range(rounds), rounds, "age features", enabled=process.is_first):
        faces = next(loaded, None)
        if faces is not None:
            images = to_network_input(faces.images.to(process.device, non_blocking=True), channels_last=True)
            computed_age_features(run, faces.indices, images, torch.zeros(len(images), dtype=torch.bool))
        status = run.stop.status()
        if status:
            tell(process, f"asked to stop (signal {status - 128}); age features so far are kept")
            return status
    return 0


# ------------------------------------------------------------------------------------------------ making, resuming


def make_model(config: TrainConfig, num_identities: int, age_branch: Branch | None, process: Process) -> IEFP:
    """A model with fresh weights, in stage identity with the trained age branch or without one; on the device."""
    purification = parse_purification(config.purification)
    if config.stage == "age":
        model = IEFP(config.backbone, purification, num_identities=None, year_head=config.age_head == "years")
        used = model.age_branch
    else:
        model = IEFP(
            config.backbone,
            purification,
            num_identities,
            config.margin,
            config.margin_scale,
            config.margin_values if config.margin == "combined" else config.margin_value,
            age_backbone=age_branch and age_branch.backbone,
            age_purification=age_branch and age_branch.purification,
            estimator=config.estimator,
            critic=config.disentangle if config.disentangle in CRITICS else None,
            own_identities=own_identities(num_identities, process) if config.sharded_classes else None,
        )
        if age_branch is None:
            tell(process, f"no age branch in the weights: --disentangle {config.disentangle} needs none, and "
                 f"{config.age_weights} is not there")  # fmt: skip
            model.drop_age_branch()
        else:
            load_age_branch(model, config.age_weights)
        used = (model,)
    if config.init_from is not None:
        prefixes = AGE_PREFIXES if config.stage == "age" else IDENTITY_STAGE_PREFIXES
        if config.disentangle != "iefp":  # this run trains no CLUB: that of the file would pass for one of this model
            prefixes = tuple(prefix for prefix in prefixes if prefix != "clubmi.")
        tell(process, load_what_fits(model, config.init_from, prefixes))
    for module in used:
        module.to(process.device, memory_format=torch.channels_last)
    return model


# The age branch comes from --age-weights.
IDENTITY_STAGE_PREFIXES = ("backbone_id.", "margin_fc.", "clubmi.", "critic.")


def check_run_folder(config: TrainConfig, process: Process) -> None:
    """Compares the settings with those of the run in the folder.

    Raises:
        UserError: there are checkpoints made with other settings, and --override-config was not given.
    """
    path = config.run_folder / "config.json"
    if not path.is_file() or not list_checkpoints(config.run_folder / "checkpoints"):
        return
    # What a run of an earlier version did not know of, it did as the defaults do.
    before, now = as_plain(TrainConfig()) | json.loads(path.read_text()), as_plain(config)
    changed = "; ".join(
        f"{flag(name)} {before.get(name)} -> {now[name]}"
        for name in now
        if name not in FREE_TO_CHANGE and before.get(name) != now[name]
    )
    if changed and config.override_config:
        tell(process, f"goes on with other settings than before: {changed}")
    elif changed:
        raise UserError(f"{config.run_folder} holds a run with other settings ({changed}): give the same to resume it, "
                        f"--override-config to insist, or another --run-folder.")  # fmt: skip


def compare_indices(config: TrainConfig, index: Faces, process: Process) -> dict[str, str | int]:
    """The digests of the index (data.index_cache), which checkpoints keep.

    Raises:
        UserError: processes have different indices: each would shuffle its own, or wait for steps that never come.
    """
    everyones = gather_lists([index_digests(index)], process)
    first = everyones[0]
    for rank, other in enumerate(everyones):
        if other != first:
            raise UserError(f"--train-data {config.train_data} is not the same for all processes: process 0 has "
                            f"{first['num_pictures']:,} pictures of {first['num_people']:,} people, process {rank} "
                            f"{other['num_pictures']:,} of {other['num_people']:,}, or under other names: give all "
                            f"machines the same files.")  # fmt: skip
    return first


def load_run(
    config: TrainConfig, stage: IdentityStage | AgeStage, digests: dict[str, str | int], process: Process
) -> dict[str, Any] | None:
    """Puts the newest good checkpoint of the run into the stage and returns its content, None where there is none.

    Raises:
        UserError: not all processes see it, it is of other people or of another model, or memory or a device fails.
    """
    folder, head = config.run_folder / "checkpoints", stage.model.margin_fc
    of_head = (None, 0) if head is None else (head.own, head.num_identities)
    check_all_see(folder, process)
    try:
        content = load_newest(
            folder,
            report=lambda sentence: tell(process, sentence),
            load=lambda path: load_with_rows(path, *of_head, process),
        )
        if content is not None:
            if head is not None:
                check_people(config, content, digests)
            put_into(stage, content, folder)
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


def put_into(stage: IdentityStage | AgeStage, content: dict[str, Any], folder: Path) -> None:
    """Puts a checkpoint of `folder` into the stage.

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
            if stage.averaged is not None:
                stage.averaged.load_state_dict(content.get("averaged"))
            if content["scaler"]:  # else it was trained in another precision: fp16 begins with a fresh scale
                stage.scaler.load_state_dict(content["scaler"])
    except KeyError as error:
        different = [f"{error} is missing there"]
    if different:
        raise UserError(f"the checkpoints in {folder} are of another model than the data and flags ask for "
                        f"({different[0]}): give another --run-folder, with --init-from to start from what "
                        f"fits.")  # fmt: skip


def position_of(
    config: TrainConfig,
    content: dict[str, Any] | None,
    digests: dict[str, str | int],
    sampler: EpochSampler,
    process: Process,
) -> Position:
    """Where the run goes on after a checkpoint: at the same image, or with the next epoch where there is none such."""
    if content is None:
        return Position(0, 0, 0)
    position, saved = Position(**content["position"]), content.get("index", digests)
    images_done = position.batch * content["config"]["batch_size"]
    batch, reasons = images_done // config.batch_size, []
    if saved["pictures"] != digests["pictures"]:
        reasons.append(f"--train-data {config.train_data} holds other pictures than when this run was saved "
                       f"({saved['num_pictures']:,} then, {digests['num_pictures']:,} now)")  # fmt: skip
    elif batch >= sampler.num_batches:
        reasons.append(f"{images_done:,} images of epoch {position.epoch + 1} are done, and it has "
                       f"{sampler.num_batches * config.batch_size:,} now")  # fmt: skip
    if reasons and position.batch:
        tell(process, f"{reasons[0]}: the rest of epoch {position.epoch + 1} is left out")
        return Position(position.epoch + 1, 0, position.step)
    if reasons:
        tell(process, f"{reasons[0]}: epoch {position.epoch + 1} begins with them")
    return dataclasses.replace(position, batch=batch)


def nothing_left(config: TrainConfig, position: Position) -> str:
    batches_done = f" and {position.batch:,} batches" if position.batch else ""
    return (f"{position.epoch} epochs{batches_done} are done and --epochs is {config.epochs}: nothing is left to "
            f"train; to go on give --epochs above {position.epoch}, with --override-config")  # fmt: skip


def find_best_value(
    config: TrainConfig, content: dict[str, Any] | None, higher_is_better: bool, process: Process
) -> float | None:
    """The value of --best-metric that the best checkpoint of a resumed run has, None where there is none."""
    if content is None or config.best_metric is None:
        return None
    found, report = [], functools.partial(tell, process)
    if process.is_first:
        folder = config.run_folder / "checkpoints"
        found = [find_best(folder, content, config.best_metric, higher_is_better, report)]
    return gather_lists(found, process)[0]


def figures_now(run: Run, position: Position) -> dict[str, float]:
    """Of a validation at this position, empty where there was none."""
    return {} if run.validation is None else run.validation.figures_at(position.step) or {}


def save(run: Run, position: Position) -> bool:
    """Writes a checkpoint; all processes have the same parameters, so the first one's are saved. Says if it worked.

    With --sharded-classes each also saves its own rows of the margin weight.

    A disk that is full is reported and the run goes on: what was saved before is untouched.

    Raises:
        UserError: memory or a device failed.
    """
    config, stage, written, kept = run.config, run.stage, True, True
    figures = figures_now(run, position)
    best = new_best(run, figures)
    if run.process.is_first or config.sharded_classes:
        content = {
            "config": as_plain(config),
            "position": dataclasses.asdict(position),
            "index": run.index_digests,
            "best": run.best if best is None else best,
            "is_best": best is not None,
            "validated": bool(figures),
            "model": stage.model.state_dict(),
            "branches": describe_branches(stage.model),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in stage.optimisers.items()},
            "scaler": stage.scaler.state_dict(),
        }
        if stage.averaged is not None:
            content["averaged"] = stage.averaged.state_dict()
        folder = config.run_folder / "checkpoints"
        try:
            if config.sharded_classes:
                save_shards(folder, position.step, content, run.process)
            if run.process.is_first:
                save_checkpoint(folder, position.step, content, config.keep_checkpoints, best is not None)
        except BestNotKept as error:
            kept = False
            tell(run.process, f"checkpoint of step {position.step} could not be kept as {BEST} ({error}): the best one "
                 f"before stays; make room in {folder}")  # fmt: skip
            run.log.event("best_not_kept", position.step, reason=str(error))
        except OSError as error:
            written = False
            tell(run.process, f"checkpoint of step {position.step} could not be written ({error}): the ones before "
                 f"are untouched; make room in {folder}")  # fmt: skip
            run.log.event("checkpoint_failed", position.step, reason=str(error))
        except RuntimeError as error:
            raise UserError(f"no checkpoint of step {position.step} could be made ({first_line(error)}): the ones "
                            f"before are untouched; the same command goes on from them.") from error  # fmt: skip
    outcomes = gather_lists([(written, kept)], run.process)
    is_saved = all(written for written, _ in outcomes)
    if is_saved:
        run.readings = []
        if best is not None and all(kept for _, kept in outcomes):
            run.best = best
    return is_saved


def new_best(run: Run, figures: dict[str, float]) -> float | None:
    """The value of --best-metric, of a validation or the mean since the last checkpoint, where it is the best one."""
    metric = run.config.best_metric
    values = [given[metric] for given in (figures, *run.readings) if given.get(metric) is not None]
    value = sum(values) / len(values) if values else math.nan
    if not math.isfinite(value):
        return None
    is_better = run.best is None or (value > run.best if run.higher_is_better else value < run.best)
    return value if is_better else None


def finish(run: Run) -> None:
    """Writes the weights in the published layout: the last ones, their moving average, and those that were best.

    All processes call it: with --sharded-classes each has a part of them.
    """
    config, stage, told = run.config, run.stage, {}
    path = config.run_folder / stage.weights_file
    told["weights"] = write_weights(run, path)
    tell(run.process, f"weights in the published layout: {path}")
    if stage.averaged is not None:
        with stage.averaged.in_the_model():
            told["ema_weights"] = write_weights(run, path.with_stem(path.stem + "_ema"))
        tell(run.process, f"their moving average: {told['ema_weights']}")
    if run.best is not None and (run.process.is_first or config.sharded_classes):
        step, benchmarks = put_best(run), {} if run.validation is None else run.validation.benchmarks
        by_validation = config.best_metric in figures_of(benchmarks)
        with judged(stage) if by_validation else contextlib.nullcontext():
            told["best_weights"] = write_weights(run, path.with_stem(path.stem + "_best"))
        told |= {"best_step": step, config.best_metric: run.best}
        tell(run.process, f"best by {config.best_metric}, {run.best:.6g} at step {step:,}: {told['best_weights']}")
    run.log.event("end", **told)


def put_best(run: Run) -> int:
    """Puts the best checkpoint's weights and averages into the model; gives its step."""
    path, stage = run.config.run_folder / "checkpoints" / BEST, run.stage
    if run.config.sharded_classes:
        head = stage.model.margin_fc
        best = load_with_rows(path, head.own, head.num_identities, run.process)
    else:
        best = load_checkpoint(path)
    stage.model.load_state_dict(best["model"])
    if stage.averaged is not None:
        stage.averaged.load_state_dict(best.get("averaged"))
    return best["step"]


def judged(stage: IdentityStage | AgeStage) -> contextlib.AbstractContextManager:
    """The model that is validated: where a moving average is kept, with that in the place of what it averages."""
    return contextlib.nullcontext(stage.model) if stage.averaged is None else stage.averaged.in_the_model()


def write_weights(run: Run, path: Path) -> str:
    """The weights, and beside them what their keys can't tell; gives the path."""
    config, model = run.config, run.stage.model
    whole = {}
    if config.sharded_classes:
        whole = {WEIGHT: whole_weight(model.margin_fc.weight, run.index.num_identities, run.process)}
    if run.process.is_first:
        method = {"disentangle": config.disentangle} if config.stage == "identity" else {}
        write_json(path.with_suffix(".json"), describe_branches(model) | method)
        save_atomically(run.stage.published_tensors(model) | whole, path)
    return str(path)


# --------------------------------------------------------------------------------------------------------- dry run


def tell_dry_run(run: Run, position: Position, benchmarks: dict[str, EvalSet]) -> int:
    """Tells what the run would do and need, and draws its first batch; nothing else is written, nothing is kept."""
    config, process, index, stage = run.config, run.process, run.index, run.stage
    say, share = functools.partial(tell, process), config.batch_size // process.world_size
    at_once, stage.config = share // config.accumulation, dataclasses.replace(config, accumulation=1)
    trained = [each for optimiser in stage.optimisers.values() for group in optimiser.param_groups
               for each in group["params"]]  # fmt: skip
    keeps = age_features_kept(run)
    say(dry_run.recipe(config, TrainConfig(), dry_run.resolved_settings(run, keeps)))
    say(dry_run.data_found(index.identities, index.age_groups, index.num_identities))
    for name, benchmark in benchmarks.items():
        count = sum(len(faces) for faces, _ in benchmark.sides)
        say(f"  validation on {name} every {config.validate_every:,} steps: {count:,} pictures")
    say(dry_run.parameters(dry_run.parts_of(run), trained))

    modules = [stage.model, *(stage.averaged.modules.values() if stage.averaged is not None else ())]
    held = [each for module in modules for each in (*module.parameters(), *module.buffers())
            if each.device == process.device]  # fmt: skip
    stage.model.train()
    own, logits = dry_run.logits_of(run)
    an_image, beside = saved_by(lambda size: stage.step(made_up_batch(size, process.device)), held)
    an_image -= logits * FP32  # they have a row of their own
    peak = step_memory(at_once, own, dry_run.tensor_bytes(held), dry_run.tensor_bytes(trained), an_image, beside,
                       config.momentum > 0, logits)  # fmt: skip
    say(dry_run.memory(peak, at_once, logits, an_image, process.device))

    of_step, measured = measure_step(run, position, an_image + logits * FP32)
    say(dry_run.times(of_step, measured, share, run.sampler.num_batches, config.epochs, keeps))
    cache = age_cache_stored(run) if keeps in ("auto", "ahead") else None
    say(dry_run.disk(dry_run.files_of(run, trained, cache)))
    if process.is_first:
        say(f"picture of the first batch: {draw_first_batch(run, position)}")
    done = f"{position.step:,} steps are done: it would go on from there" if position.step else "it would begin anew"
    say(f"dry run: nothing was trained; in {config.run_folder} {done}")
    stop_process(process)
    return 0


def age_features_kept(run: Run) -> str:
    """What becomes of the frozen branch's features: ahead, auto, off (computed in each step) or none (not needed)."""
    critic = run.stage.critic if run.config.stage == "identity" else None
    if critic is None or not critic.needs_age_features:
        return "none"
    return run.config.age_cache if why_no_age_cache(run.config) is None else "off"


def age_cache_stored(run: Run) -> dry_run.Stored:
    """The cache of age features, and what of it is there."""
    config, index, process = run.config, run.index, run.process
    parent, name = age_cache_place(config, index, process)
    there = 0
    if any(parent.glob(f"{name}_*")):  # else the state of all pictures need not be read
        describes = age_cache_description(config, run.stage.model, index, process) | {"num_images": len(index)}
        there = bytes_there(cache_folder(parent, name, describes))
    return dry_run.Stored("age features of both views", parent, cache_bytes(len(index)), there=there, in_place=True)


def made_up_batch(size: int, device: torch.device) -> Batch:
    """Memory and time don't depend on what is on the pictures."""
    images = (torch.rand(size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device) * 2 - 1).to(memory_format=torch.channels_last)
    zeros = torch.zeros(size, dtype=torch.int64, device=device)
    return Batch(images, zeros, zeros, zeros, age_features=torch.randn(size, EMBEDDING_SIZE, device=device))


def measure_step(run: Run, position: Position, bytes_an_image: float) -> tuple[dry_run.StepTime, int]:
    """Seconds of a step with real pictures, and the number of images on a process that they were measured with."""
    config, process, stage = run.config, run.process, run.stage
    share, few = config.batch_size // process.world_size, made_up_batch(FEW_IMAGES[-1], process.device)
    an_image = dry_run.seconds_of(lambda: stage.step(few), process.device) / FEW_IMAGES[-1]
    at_once = share // run.config.accumulation
    sizes = gather_lists([dry_run.images_to_measure(at_once, an_image, bytes_an_image, process.device)], process)
    small = dataclasses.replace(config, batch_size=min(sizes) * process.world_size, accumulation=1)
    loader, sampler = make_loader(small, run.index, process)
    small_run = dataclasses.replace(run, config=small)

    def stream() -> Iterator[FaceBatch]:  # without an end
        for epoch in itertools.count(position.epoch):
            sampler.set_epoch(epoch)
            yield from batches(loader)

    def step(faces: FaceBatch) -> Tensor:
        features = torch.randn(len(faces.images), EMBEDDING_SIZE, device=process.device)
        batch = dataclasses.replace(prepare(small_run, faces, position.step), age_features=features)
        stage.step(batch)
        return batch.images

    frozen = None if age_features_kept(run) == "none" else stage.age_features
    of_step = dry_run.measure(stream(), step, frozen, config.workers, process.device)
    return of_step.times(share / min(sizes)), min(sizes)


def draw_first_batch(run: Run, position: Position) -> Path:
    """Draws the first pictures of the first batch as the network sees them; gives the path of the PNG."""
    config, index = run.config, run.index
    rows = run.sampler.indices_of(position.epoch, position.batch)[: config.batch_size // run.process.world_size]
    rows = rows[:MAX_PICTURES].tolist()
    (faces,) = batches(evaluation_loader(index, len(rows), indices=rows, on_bad_image=config.on_bad_image))
    images = prepare(run, faces, position.step).images
    names, groups = index.identity_names, (*AGE_GROUP_NAMES, "age unknown")  # of group -1 the last
    captions = [(names[k], groups[group]) for k, group in zip(faces.identities, faces.age_groups, strict=True)]
    path = config.run_folder / "dry_run.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"step {position.step + 1:,}: {len(rows)} of {config.batch_size:,} images as the network sees them"
    draw_grid(path, title, images, captions)
    return path


if __name__ == "__main__":
    run_script(lambda: train(parse_config(TrainConfig)))
