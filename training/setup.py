"""What a run is made of: flags checked, training set opened, weights read, model, sampler and loader built."""

import dataclasses
import functools
from typing import Any

import torch
from torch.utils.data import DataLoader

from data.age_cache import AgeCache
from data.ages.tables import read_ages
from data.benchmarks import EvalSet
from data.check.image_scan import check_shapes
from data.faces import UNKNOWN, Faces, with_ages
from data.filenames import NoAgeInName
from data.index_cache import find_record_file, index_digests, open_index
from data.loaders import EpochSampler, training_loader
from meta import FILENAME_PATTERNS, TRAINING_SETS, UserError
from models.disentangle.base import Critic
from models.disentangle.registry import critic_class
from models.iefp import IEFP
from models.iresnet import architecture_of
from models.margin import AgePrior
from models.purification import parse_purification
from models.weights import AGE_PREFIXES, Branch, load_age_branch, load_what_fits, read_weight_file
from training.config import TrainConfig
from training.data_parallel import Collectives
from training.partial_fc import own_identities
from training.profiling import Profile
from training.run_log import BadImages, TimeLeft, import_wandb, open_log
from training.schedules import check_schedule
from training.state import Run, Stage, find_best_value
from training.stopping import StopRequest
from training.validation import make_validation
from utils.cli import as_plain, check_config, given
from utils.distributed import DistInfo, barrier, gather_lists, print_rank0
from utils.progress import progress

# The weights that --init-from loads in stage identity; the age branch comes from --age-weights.
IDENTITY_STAGE_PREFIXES = ("backbone_id.", "margin_fc.", "clubmi.", "critic.")


# Settings that may differ between machines: places and how a machine is used.
OF_A_MACHINE = {"train_data", "ages", "age_weights", "init_from", "run_folder", "cache_folder", "face_dataset",
                "device", "workers"}  # fmt: skip


def check_flags(config: TrainConfig) -> None:
    """Checks the flags by themselves, before anything is read.

    Raises:
        UserError: for the first that is wrong.
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


def critic_of(config: TrainConfig) -> type[Critic] | None:
    """The class of the critic that --disentangle asks for."""
    return critic_class(config.disentangle)


def read_weights(config: TrainConfig) -> Branch | None:
    """The architecture of the age branch in --age-weights, None where the run needs none; --init-from is read too.

    Raises:
        UserError: one of the files is missing, damaged, or not what it should be.
    """
    if config.init_from is not None:
        read_weight_file(config.init_from)
    critic = critic_of(config)
    is_needed = critic is not None and critic.needs_age_features
    is_wanted = is_needed or config.age_weights != TrainConfig.age_weights or "age_weights" in given(config)
    if config.stage == "age" or not (is_wanted or config.age_weights.is_file()):
        return None
    age_branch = read_weight_file(config.age_weights).age_branch
    if age_branch is None:
        raise UserError(f"--age-weights {config.age_weights} holds no age branch: give a file that does, "
                        f"such as the age.pth of a run with --stage age.")  # fmt: skip
    return age_branch


def open_pictures(config: TrainConfig, process: DistInfo) -> Faces:
    """The index of the training set with its ages; a machine's first process makes it, the others find it cached.

    Where nothing uses ages and --names was not given, names without ages leave all ages unknown.
    """
    open_with = functools.partial(
        open_index,
        config.train_data,
        min_identities=2,
        what="training images",
        how_to_get=TRAINING_SETS["ms1mv3"].how_to_get,
        cache_folder=config.cache_folder,
        report=lambda sentence: print_rank0(process, sentence),
        progress=functools.partial(progress, enabled=process.is_first, silent_below=2.0),
    )
    needs = needs_ages(config)
    if not process.is_first_of_node:
        barrier(process)
    try:
        index = open_with(None if config.ages else FILENAME_PATTERNS.get(config.names))
    except NoAgeInName as error:
        if needs:
            raise UserError(
                f"{needs} needs ages, and {str(error)[:-1]}, or give --ages with a table of them."
            ) from None
        if critic_of(config) is not None:  # its age loss is logged
            raise UserError(f"{str(error)[:-1]}; --names none trains without ages.") from None
        if "names" in given(config):
            raise
        index = open_with(None)
        print_rank0(process, f"{str(error).partition(':')[0]}: no age is used, and --disentangle {config.disentangle} "
                    f"needs none")  # fmt: skip
    if process.is_first_of_node:
        barrier(process)
    if config.scaled_decoding:
        index = dataclasses.replace(index, scaled=True)
    if config.ages is not None:
        index = with_ages(index, read_ages(config.ages, index, columns=config.age_columns))
    if config.stage == "age" and (index.ages is None or (index.ages == UNKNOWN).any()):
        raise UserError(f"--train-data {config.train_data} has pictures without an age, which {needs} needs: "
                        f"give --ages with a table of them.")  # fmt: skip
    if needs and (index.ages is None or (index.ages == UNKNOWN).all()):
        raise UserError(f"--train-data {config.train_data} has no picture with an age, which {needs} needs: give "
                        f"--ages with a table of them.")  # fmt: skip
    return index


def needs_ages(config: TrainConfig) -> str | None:
    """The flag that needs ages, of all pictures in stage age and else of some; None where none does."""
    if config.stage == "age":
        return "--stage age"
    if config.age_prior:
        return "--age-prior"
    critic = critic_of(config)
    return f"--disentangle {config.disentangle}" if critic is not None and critic.needs_age_groups else None


def check_pictures(config: TrainConfig, index: Faces, benchmarks: dict[str, EvalSet], process: DistInfo) -> None:
    """Raises UserError for unaligned photographs to train or validate on (`data.check.image_scan.check_shapes`)."""
    sides = [faces for benchmark in benchmarks.values() for faces, _ in benchmark.sides]
    for faces in () if config.assume_aligned else (index, *sides):
        check_shapes(faces, functools.partial(print_rank0, process))


def compare_indices(config: TrainConfig, index: Faces, process: DistInfo) -> dict[str, str | int]:
    """The digests of the index (data.index_cache), which checkpoints store.

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


def make_model(config: TrainConfig, num_identities: int, age_branch: Branch | None, process: DistInfo) -> IEFP:
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
            getattr(config, config.margin_flag),
            age_backbone=age_branch and age_branch.backbone,
            age_purification=age_branch and age_branch.purification,
            estimator=config.estimator,
            critic=config.disentangle,
            own_identities=own_identities(num_identities, process) if config.sharded_classes else None,
        )
        if age_branch is None:
            print_rank0(process, f"no age branch in the weights: --disentangle {config.disentangle} needs none, and "
                        f"{config.age_weights} is not there")  # fmt: skip
            model.drop_age_branch()
        else:
            load_age_branch(model, config.age_weights)
        used = (model,)
    if config.init_from is not None:
        prefixes = AGE_PREFIXES if config.stage == "age" else IDENTITY_STAGE_PREFIXES
        if config.disentangle != "iefp":  # this run trains no CLUB: that of the file would pass for one of this model
            prefixes = tuple(prefix for prefix in prefixes if prefix != "clubmi.")
        print_rank0(process, load_what_fits(model, config.init_from, prefixes))
    for module in used:
        module.to(process.device, memory_format=torch.channels_last)
    return model


def use_ages(config: TrainConfig, model: IEFP, index: Faces, process: DistInfo) -> None:
    """Attaches what stage identity takes from the ages of the whole index: the critic's people, the age prior.

    It is no part of checkpoints: a run that resumes makes it anew.

    Raises:
        UserError: the index gives the critic nothing to do.
    """
    if config.stage != "identity":
        return
    head, critic = model.margin_fc, model.critic_of(config.disentangle)
    if critic is not None:
        says = critic.attach(config, head, index.identities, index.age_groups, Collectives(process).sum)
        if says:
            print_rank0(process, says)
    if config.age_prior:
        unknown = int((index.ages == UNKNOWN).sum())
        if unknown:
            print_rank0(process, f"--age-prior: the age of {unknown:,} of {len(index):,} pictures is unknown; their "
                        f"logits stay as they are")  # fmt: skip
        head.age_prior = AgePrior(index.identities, index.ages, index.num_identities, own=head.own,
                                  strength=config.age_prior, device=process.device)  # fmt: skip


def make_sampler(config: TrainConfig, index: Faces, process: DistInfo) -> EpochSampler:
    """The order of the images, as this process gets its share of each batch."""
    share = config.batch_size // process.world_size
    return EpochSampler(len(index), share, config.seed, process.rank, process.world_size)


def make_loader(
    config: TrainConfig, index: Faces, sampler: EpochSampler, process: DistInfo, age_cache: AgeCache | None = None
) -> DataLoader:
    """This process's batches in the sampler's order, with the age features that the cache holds."""
    return training_loader(
        index,
        sampler,
        workers=config.workers,
        pin_memory=process.device.type == "cuda",
        on_bad_image=config.on_bad_image,
        age_cache=age_cache,
    )


def start_run(
    config: TrainConfig,
    process: DistInfo,
    index: Faces,
    stage: Stage,
    sampler: EpochSampler,
    *,
    digests: dict[str, str | int],
    age_cache: AgeCache | None,
    benchmarks: dict[str, EvalSet],
    content: dict[str, Any] | None,
    resumed_step: int,
    higher_is_better: bool,
) -> Run:
    """The run with its loader, log, signal handlers and counters; `content` is that of the checkpoint it resumes."""
    log = open_log(config.run_folder, process, resumed_step, config.wandb, as_plain(config))
    best = find_best_value(config, content, higher_is_better, process)
    stop = StopRequest(process)
    return Run(
        config, process, index, stage, sampler,
        index_digests=digests,
        loader=make_loader(config, index, sampler, process, age_cache),
        age_cache=age_cache,
        log=log,
        stop=stop,
        bad_images=BadImages(config.run_folder / "bad_images.txt", len(index), config.max_bad_share, process),
        time_left=TimeLeft(config.epochs * sampler.num_batches),
        profile=Profile(config.profile, config.run_folder, process) if config.profile else None,
        validation=make_validation(config, process, benchmarks, stop),
        higher_is_better=higher_is_better,
        best=best,
    )  # fmt: skip
