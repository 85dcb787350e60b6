"""Trains the age branch (--stage age) or the identity branch with IEFP (--stage identity, the default).

    python train.py --stage age @recipes/demo.args
    torchrun --nproc-per-node 2 train.py --train-data face_dataset/ms1mv3_256times256_with_age

The defaults are the published recipe. A run is a folder: config.json, log.jsonl, tensorboard/, checkpoints/, and at the
end the weights in the published layout. The same command started again resumes from the newest checkpoint.
"""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from data.faces import UNKNOWN
from data.loaders import FaceBatch, batches
from data.transforms import augment, hflip, random_stream, to_network_input
from models.age_heads import group_errors, year_errors, year_losses
from models.disentangle.base import Critic
from models.iefp import IEFP
from models.iresnet import set_batchnorm_momentum
from models.margin import MarginLoss
from models.sharded_margin import ShardedMarginLoss
from models.weights import age_file_tensors, iefp_file_tensors
from training import setup
from training.age_feature_cache import fill_age_cache, known_age_features, open_age_cache
from training.config import TrainConfig
from training.data_parallel import Collectives, wrap_ddp
from training.dry_run import print_dry_run
from training.ema import MovingAverage
from training.optim import (
    RowwiseSGD,
    check_accumulation,
    make_optimiser,
    make_precision,
    make_repeatable,
    maybe_compile,
    maybe_no_sync,
    mean_metrics,
    momentum_of_passes,
    update,
)
from training.partial_fc import ClassShards
from training.run_log import Meter
from training.schedules import check_schedule, learning_rate_at, set_learning_rate
from training.state import (
    Run,
    TrainState,
    check_finite,
    check_run_folder,
    finish,
    load_run,
    print_stop,
    save,
    state_after,
    validate,
)
from training.validation import check_best_metric, figures_of, open_benchmarks
from utils.cli import as_plain, compare_settings, parse_config, run_script
from utils.distributed import DistInfo, barrier, init_distributed, print_rank0, shutdown_distributed
from utils.files import write_json
from utils.progress import progress

# The published loop passes each batch through the identity encoder twice, so its BatchNorm statistics move twice with
# momentum 0.1. One pass with 1 - (1 - 0.1)^2 moves them by the same amount.
ONE_PASS_MOMENTUM = 0.19
MOMENTUM = 0.1  # BatchNorm's own

# ------------------------------------------------------------------------------------------------------ the steps


@dataclass(frozen=True)
class Batch:
    """What one step takes, on the device."""

    images: Tensor  # (N, 3, 112, 112) in [-1, 1], half of them mirrored
    identities: Tensor  # (N,)
    age_groups: Tensor  # (N,) 0..7, -1 where unknown
    _: KW_ONLY
    ages: Tensor | None = None  # (N,) years, -1 where unknown; for the age prior and the head for years
    permutation: Tensor | None = None  # (N,) of CLUB's negatives, within each micro-batch; random when None
    age_features: Tensor | None = None  # (N, 512) of the frozen branch when they are known; else it computes them
    step: int = 0  # done before this one

    def micro_batches(self, count: int) -> list["Batch"]:
        """The batch in so many equal parts; one part is the batch itself."""
        size = len(self.images) // count
        rows = [slice(start, start + size) for start in range(0, len(self.images), size)]
        whole = vars(self)
        return [Batch(**{name: value[own] if isinstance(value, Tensor) else value for name, value in whole.items()})
                for own in rows]  # fmt: skip


class IdentityStage:
    """Stage (b): identity encoder, margin head and a critic (IEFP's is CLUB) are trained; the age branch is frozen."""

    weights_file = "iefp.pth"
    published_tensors = staticmethod(iefp_file_tensors)

    def __init__(self, config: TrainConfig, model: IEFP, process: DistInfo):
        self.config, self.model = config, model.freeze_age_branch()
        self.images_at_once = max(1, config.batch_size // process.world_size // config.accumulation)
        self.ema = MovingAverage(model, ["backbone_id"], config.ema_decay) if config.ema_decay else None
        self.scale_momenta(config.accumulation)
        maybe_compile(config, [encoder for encoder in (model.backbone_id, model.backbone_ae) if encoder is not None])
        self.encoder = wrap_ddp(model.backbone_id, process, config.sync_batchnorm)
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
            self.face_recognition = wrap_ddp(MarginLoss(model.margin_fc, Collectives(process).gather), process)
        self.critic = model.critic_of(config.disentangle)
        if self.critic is not None and self.critic.updates:
            self.learning_critic = wrap_ddp(self.critic, process, config.sync_batchnorm)
            self.critic_parameters = list(self.critic.parameters())
            self.optimisers[self.critic.name] = make_optimiser(config, self.critic_parameters)
        self.autocast, self.scaler = make_precision(config, process.device, make_scaler)

    def scale_momenta(self, accumulation: int) -> None:
        """Sets the momenta with which running statistics move as far in a step of micro-batches as in one pass."""
        model, club_steps = self.model, self.config.club_steps
        set_batchnorm_momentum(model.backbone_id, momentum_of_passes(ONE_PASS_MOMENTUM, 1, accumulation))
        # CLUB passes whole batches as it learns, and micro-batches as it estimates.
        set_batchnorm_momentum(model.clubmi, momentum_of_passes(MOMENTUM, club_steps + 1, club_steps + accumulation))
        if model.margin_fc.rate is not None:
            model.margin_fc.rate = momentum_of_passes(model.margin_fc.rate, 1, accumulation)

    @staticmethod
    def logged_metrics(config: TrainConfig) -> dict[str, bool]:
        """The metrics that a step returns, and whether each is better when higher."""
        critic, logged = setup.critic_of(config), {"face_recognition_loss": False}
        if critic is not None:
            if critic.updates:
                logged |= {critic.objective_name: critic.higher_objective_is_better}
                logged |= {f"{critic.name}_gradient_norm": False}
            logged |= {critic.penalty_name: critic.higher_penalty_is_better}
            logged |= {"age_loss": False} if critic.needs_age_features else {}
        return logged | {"gradient_norm": False}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Makes the critic's updates and one identity step (see models/disentangle); returns the losses before it.

        With --accumulation the gradients of several micro-batches add up to one update. They pass the encoder once, and
        the critic can only learn from the whole batch when all have passed: so all micro-batches use the critic as
        updated at the end of the previous step, and it learns from the whole batch's features at the end of this one.
        What a term computes over a batch (BatchNorm, CLUB's negatives, DAL's correlation) it computes over each
        micro-batch.
        """
        micro_batches, passed = batch.micro_batches(self.config.accumulation), []
        self.optimisers["identity"].zero_grad()
        for each in micro_batches:
            with maybe_no_sync(each is not micro_batches[-1], self.encoder, self.face_recognition):
                passed.append(self.forward_backward(each, len(micro_batches)))
        optimiser, clip_norm = self.optimisers["identity"], self.config.clip_norm
        gradient_norm = update(optimiser, self.identity_parameters, self.scaler, clip_norm, self.clip)

        metrics, ages, identities = zip(*passed, strict=True)
        age = None if ages[0] is None else torch.cat(ages)  # (N, 512)
        losses = mean_metrics(metrics)
        if self.critic is not None and len(micro_batches) > 1:
            losses |= self.critic_step(age, torch.cat(identities), batch.age_groups)
        if age is not None:
            losses["age_loss"] = self.age_loss(age, batch.age_groups)
        return {**losses, "gradient_norm": gradient_norm}

    def forward_backward(self, batch: Batch, accumulation: int) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
        """Adds a micro-batch's gradients; returns its losses, age features and (detached) identity features."""
        age = self.age_features_of(batch)  # (N, 512), None where the method needs none
        with self.autocast:
            identity = self.encoder(batch.images)  # (N, 512)

        penalty, losses = 0.0, {}
        if self.critic is not None:
            # CLUB learns to predict identity from age: ascend the log-likelihood (other critics: their objective).
            if accumulation == 1:
                losses = self.critic_step(age, identity.detach(), batch.age_groups)
            penalty = self.critic.penalty(age, identity, batch.age_groups, batch.permutation)
            losses[self.critic.penalty_name] = penalty.detach()

        # The identity branch learns to recognise people and to leave nothing for the critic, as it now is, to find.
        face_recognition_loss = self.face_recognition(identity, batch.identities, batch.step, batch.ages)
        loss = face_recognition_loss + penalty_weight(self.config, self.critic, batch.step) * penalty
        self.scaler.scale(loss / accumulation).backward()
        return {"face_recognition_loss": face_recognition_loss.detach(), **losses}, age, identity.detach()

    def critic_step(self, age: Tensor | None, identity: Tensor, age_groups: Tensor) -> dict[str, Tensor]:
        """The critic raises its objective on features that are held fixed; returns its value before that."""
        critic, metrics = self.critic, {}
        weight = critic.setting(self.config, "objective_weight")
        for _ in range(critic.setting(self.config, "updates")):
            objective = self.learning_critic(age, identity, age_groups)
            self.optimisers[critic.name].zero_grad()
            (-weight * objective).backward()
            norm = clip_grad_norm_(self.critic_parameters, self.config.clip_norm)
            self.optimisers[critic.name].step()
            metrics = metrics or {critic.objective_name: objective.detach(), f"{critic.name}_gradient_norm": norm}
        return metrics

    @torch.no_grad()
    def age_loss(self, age: Tensor, age_groups: Tensor) -> Tensor:
        """Cross-entropy of the frozen branch over the pictures whose age is known, 0 where none is."""
        of_known = F.cross_entropy(self.model.age_logits(age), age_groups, ignore_index=UNKNOWN, reduction="sum")
        return of_known / (age_groups != UNKNOWN).sum().clamp(min=1)

    def age_features_of(self, batch: Batch) -> Tensor | None:
        """(N, 512) of the frozen branch, cached or computed; None where the method needs none."""
        if self.critic is None or not self.critic.needs_age_features:
            return None
        return self.age_features(batch.images) if batch.age_features is None else batch.age_features

    @torch.no_grad()
    def age_features(self, images: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [-1, 1] -> (N, 512) of the frozen branch, which gets a micro-batch at a time."""
        with self.autocast:
            return torch.cat([self.model.age_features(each) for each in images.split(self.images_at_once)])


def penalty_weight(config: TrainConfig, critic: Critic | None, step: int) -> float:
    """Weight of the critic's penalty in the identity loss, with its warm-up, before this step."""
    if critic is None:
        return 0.0
    weight, warmup = critic.setting(config, "default_weight"), critic.setting(config, "warmup_steps")
    return weight * min(1.0, step / warmup) if warmup else weight


class AgeStage:
    """Stage (a): age encoder and age estimator are trained by cross-entropy over the age groups.

    With --age-head years a second head is trained beside it, by cross-entropy over the years (Rothe et al., DEX, 2015).
    """

    weights_file = "age.pth"
    published_tensors = staticmethod(age_file_tensors)
    critic = None

    def __init__(self, config: TrainConfig, model: IEFP, process: DistInfo):
        self.config, self.model = config, model
        names = ["backbone_ae", "age_estimator", *(["year_head"] if model.year_head is not None else [])]
        self.ema = MovingAverage(model, names, config.ema_decay) if config.ema_decay else None
        set_batchnorm_momentum(model.backbone_ae, momentum_of_passes(MOMENTUM, 1, config.accumulation))
        maybe_compile(config, [model.backbone_ae])
        self.encoder = wrap_ddp(model.backbone_ae, process, config.sync_batchnorm)
        self.estimator = wrap_ddp(model.age_estimator, process)
        self.year_head = None if model.year_head is None else wrap_ddp(model.year_head, process)
        self.parameters = [parameter for module in model.age_branch for parameter in module.parameters()]
        self.optimisers = {"age": make_optimiser(config, self.parameters, model.backbone_ae)}
        self.autocast, self.scaler = make_precision(config, process.device)

    @staticmethod
    def logged_metrics(config: TrainConfig) -> dict[str, bool]:
        """The metrics that a step returns, and whether each is better when higher."""
        groups = {"age_group_mae": False, "age_group_accuracy_percent": True}
        years = {f"by_years_{name}": higher_is_better for name, higher_is_better in groups.items()}
        years = {"year_loss": False, "age_mae_years": False} | years if config.age_head == "years" else {}
        return {"age_loss": False} | groups | years | {"gradient_norm": False}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Makes one step; returns the losses and errors before it."""
        micro_batches, metrics = batch.micro_batches(self.config.accumulation), []
        modules = [module for module in (self.encoder, self.estimator, self.year_head) if module is not None]
        self.optimisers["age"].zero_grad()
        for each in micro_batches:
            with maybe_no_sync(each is not micro_batches[-1], *modules):
                metrics.append(self.forward_backward(each, len(micro_batches)))
        gradient_norm = update(self.optimisers["age"], self.parameters, self.scaler, self.config.clip_norm)
        return {**mean_metrics(metrics), "gradient_norm": gradient_norm}

    def forward_backward(self, batch: Batch, accumulation: int) -> dict[str, Tensor]:
        """Adds a micro-batch's gradients; returns its losses and errors."""
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
            losses |= {"year_loss": year_loss.detach(), **year_errors(years.detach(), batch.ages, batch.age_groups)}
        self.scaler.scale(loss / accumulation).backward()
        return losses


STAGES = {"identity": IdentityStage, "age": AgeStage}


# ------------------------------------------------------------------------------------------------------- a batch


def prepare(run: Run, faces: FaceBatch, step: int) -> Batch:
    """A step's batch on the device: images as the network takes them, half of them mirrored, labels, age features.

    All that is random depends on seed and step alone: a resumed run draws the same, and the whole batch is mirrored
    alike however many processes share it.
    """
    config, process = run.config, run.process
    draws = random_stream(config.seed, step)
    own = slice(process.rank * len(faces.images), (process.rank + 1) * len(faces.images))
    flips = torch.rand(config.batch_size, generator=draws)[own] < 0.5
    size = len(faces.images) // config.accumulation  # of a micro-batch
    permutation = torch.cat([torch.randperm(size, generator=draws) for _ in range(config.accumulation)])
    images, identities, age_groups, ages, permutation, device_flips = (
        values.to(process.device, non_blocking=True)
        for values in (faces.images, faces.identities, faces.age_groups, faces.ages, permutation, flips)
    )
    images = hflip(images, device_flips)
    images = to_network_input(images, channels_last=True)
    if config.augmentation == "changes":
        images = augment(images, config.seed, step, own.start, config.batch_size)
    age_features = None
    if run.age_cache is not None:
        views, rows = known_age_features(run, faces, images, flips), torch.arange(len(flips))
        age_features = views[rows, flips.long()].to(process.device, non_blocking=True).float()
    return Batch(images, identities, age_groups, ages=ages, permutation=permutation, age_features=age_features,
                 step=step)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the run


def train(config: TrainConfig) -> int:
    """Trains one stage from the folder of pictures to the weight file, resuming where an earlier run stopped.

    The exit status is 0, or 128 + the signal that asked it to stop. What can be wrong is checked in the order of what
    that costs: flags, small files, the list of pictures, the model, the run's checkpoint.
    """
    setup.check_flags(config)
    process = init_distributed(config.device)
    compare_settings(config, process, setup.OF_A_MACHINE)
    make_repeatable(config)
    check_accumulation(config.batch_size, config.accumulation, process)
    check_run_folder(config, process)
    benchmarks, age_branch = open_benchmarks(config), setup.read_weights(config)
    higher_is_better = check_best_metric(config, STAGES[config.stage].logged_metrics(config) | figures_of(benchmarks))
    index = setup.open_pictures(config, process)
    digests = setup.compare_indices(config, index, process)
    setup.check_pictures(config, index, benchmarks, process)
    sampler = setup.make_sampler(config, index, process)
    check_schedule(config, config.epochs * sampler.num_batches)
    model = setup.make_model(config, index.num_identities, age_branch, process)
    setup.use_ages(config, model, index, process)
    stage = STAGES[config.stage](config, model, process)
    content = load_run(config, stage, digests, process)
    state = state_after(config, content, digests, sampler, process)
    if config.dry_run:
        return print_dry_run(Run(config, process, index, stage, sampler), state, benchmarks, prepare)
    # Last, for it creates files and may allocate them: until here nothing was written that concerns another run.
    age_cache = open_age_cache(config, model, index, process)
    if process.is_first:
        write_json(config.run_folder / "config.json", as_plain(config))
    barrier(process)  # a folder that only the first process can write is its error alone
    run = setup.start_run(config, process, index, stage, sampler, digests=digests, age_cache=age_cache,
                          benchmarks=benchmarks, content=content, resumed_step=state.step,
                          higher_is_better=higher_is_better)  # fmt: skip
    try:
        status = train_from(run, state, is_validated=content is not None and content.get("validated", False))
    finally:
        run.close()
    shutdown_distributed(process)
    return status


def train_from(run: Run, state: TrainState, is_validated: bool) -> int:
    """Trains from the state to the last epoch and writes the weights; returns the exit status.

    `is_validated`: the validation that may be due at the state itself is done.
    """
    config, process, index = run.config, run.process, run.index
    run.log.event("start", images=len(index), identities=index.num_identities, processes=process.world_size,
                  resumed_step=state.step)  # fmt: skip
    print_rank0(process, f"stage {config.stage}: {len(index):,} images of {index.num_identities:,} identities, "
                f"{config.backbone} on {process.world_size} x {process.device.type}, run folder {config.run_folder}, "
                f"{state.step:,} steps done")  # fmt: skip
    status = fill_age_cache(run) if config.age_cache == "ahead" and run.age_cache is not None else 0
    is_due = run.validation.is_due(state.step, state.epoch == config.epochs)
    if is_due and not is_validated and not status:  # the run was stopped just before it
        validate(run, state)
        saved, status = save(run, state), run.stop.status() or 0
        if status:
            print_stop(run, state, status, saved)
    while state.epoch < config.epochs and not status:
        state, status = train_epoch(run, state)
    if not status:
        finish(run)
    barrier(process)
    return status


def train_epoch(run: Run, start: TrainState) -> tuple[TrainState, int]:
    """Trains to the end of the epoch of `start`, or to a request to stop; returns the new state and the exit status."""
    config, process, sampler = run.config, run.process, run.sampler
    sampler.set_epoch(start.epoch, start.batch)
    run.stage.model.train()
    meter, what, state = Meter(process), f"epoch {start.epoch + 1}/{config.epochs}", start
    run.time_left.add(run.steps_done(start))
    loaded = progress(batches(run.loader), sampler.num_batches, what, start.batch, enabled=process.is_first,
                      note=lambda: str(run.time_left))  # fmt: skip
    for faces in loaded:
        learning_rate = learning_rate_at(config, start.epoch, run.steps_done(state), run.num_steps)
        set_learning_rate(run.stage.optimisers.values(), learning_rate)
        batch = prepare(run, faces, state.step)
        losses = run.stage.step(batch)
        if run.stage.ema is not None:
            run.stage.ema.update()
        if run.profile is not None:
            run.profile.step()
        meter.add(state.step, losses, len(batch.images))
        run.bad_images.add(faces.failures)
        state = state.next()
        run.time_left.add(run.steps_done(state))
        is_end, status = state.batch == sampler.num_batches, run.stop.status()
        if is_end:
            state = TrainState(start.epoch + 1, 0, state.step)
        is_to_save = is_end or status or state.step % config.save_every == 0
        validates = run.validation.is_due(state.step, state.epoch == config.epochs)
        if is_to_save or validates or state.step % config.log_every == 0:
            check_finite(run, meter, start)
            run.bad_images.check()
            means = meter.read()
            run.metrics.append(means)
            run.log.event("train", state.step, epoch=start.epoch, learning_rate=learning_rate, **means,
                          seconds_left=round(run.time_left.seconds()))  # fmt: skip
            if validates and not status:
                validate(run, state)
                status = run.stop.status()
                meter.leave_out_time()
            if is_to_save or status or config.best_metric in run.validation.figures_at(state.step):
                saved = save(run, state)
            if status:
                print_stop(run, state, status, saved)
                return state, status
    print_rank0(process, f"{what}: " + ", ".join(filter(None, [meter.last_line, str(run.time_left)])))
    return state, 0


if __name__ == "__main__":
    run_script(lambda: train(parse_config(TrainConfig)))
