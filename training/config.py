"""The settings of train.py, which are its flags: what each means, its bounds, and what goes with what."""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from data.ages.tables import AgeColumns
from meta import BENCHMARKS, FACE_DATASET_FOLDER, FILENAME_PATTERNS, TRAINING_SETS, WEIGHT_FILES
from models.club import ESTIMATORS, SampledCLUB
from models.disentangle.base import Critic
from models.disentangle.inter_prototype import OLDEST_CHILD, InterPrototype
from models.disentangle.registry import CRITICS, method_summaries
from models.iresnet import BACKBONES
from models.margin import MARGINS
from models.purification import MAX_PURIFICATION_SCALE, PURIFICATION_VARIANTS
from utils.cli import Needs, With, Without, available_cores, bounded, one_of, output_folder

# ------------------------------------------------------------------------------------- flags and registries of models


def defaults(values: Mapping[str, float | tuple[float, ...]]) -> str:
    """Each entry with its default value or values, for a help text."""
    return ", ".join(f"{str(value).strip('()')} for {name}" for name, value in values.items())


def methods(holds: Callable[[type[Critic]], bool]) -> With:
    """The condition that --disentangle is one of the methods with such a critic."""
    return With("disentangle", *(name for name, critic in CRITICS.items() if holds(critic)))


def critic_flag(name: str) -> tuple[With, ...]:
    """The conditions of a flag that replaces a number of the critic."""
    return IDENTITY, methods(lambda critic: name in critic.flags.values())


IDENTITY, AGE = With("stage", "identity"), With("stage", "age")
WITH_AGE_FEATURES = methods(lambda critic: critic.needs_age_features).values
WEIGHTS = {name: CRITICS[name].default_weight for name in critic_flag("disentangle_weight")[1].values}
MARGIN_VALUES = {name: head.default_margin for name, head in MARGINS.items()}
SEVERAL_VALUES = {name: values for name, values in MARGIN_VALUES.items() if isinstance(values, tuple)}
ONE_VALUE = {name: value for name, value in MARGIN_VALUES.items() if name not in SEVERAL_VALUES}
COUNTS = sorted({len(values) for values in SEVERAL_VALUES.values()})

Backbone = Annotated[
    str,
    arg(help=f"Encoder: {', '.join(f'{name} ({one.note})' if one.note else name for name, one in BACKBONES.items())}."),
]
Purification = Annotated[
    str,
    arg(help=f"Scale of the purification unit, from 0 (none) to {MAX_PURIFICATION_SCALE}, or a variant: "
             f"{', '.join(PURIFICATION_VARIANTS)}."),
]  # fmt: skip
Margin = one_of("Margin head.", {name: head.summary for name, head in MARGINS.items()})
MarginValue = Annotated[float | None, arg(help=f"m of the margin head. None: {defaults(ONE_VALUE)}.")]
MarginValues = Annotated[
    functools.reduce(operator.or_, (tuple[(float,) * count] for count in COUNTS), None),
    arg(help=f"m1, m2, ... of a margin head that has several. None: {defaults(SEVERAL_VALUES)}."),
]
Disentangle = one_of("What keeps age out of the embedding.", method_summaries())
DisentangleWeight = Annotated[
    float | None, arg(help=f"Weight of the critic's penalty in the identity loss. None: {defaults(WEIGHTS)}.")
]
ChildPictures = Annotated[
    int, arg(help=f"Pictures of up to {OLDEST_CHILD} years by which somebody is one of the children kept apart.")
]
Estimator = one_of("CLUB's negatives.", {name: one.negatives for name, one in ESTIMATORS.items()})

# ----------------------------------------------------------------------------------------------------------------------

ON_FOLDERS = tuple(name for benchmark in BENCHMARKS.values() for name in benchmark.set_names)


@dataclass(frozen=True)
class TrainConfig:
    """Train one stage of IEFP. Flags may stand in a file: @recipes/demo.args."""

    stage: Literal["age", "identity"] = "identity"
    """age: the age branch, by cross-entropy over 8 age groups. identity: the identity branch, by IEFP."""
    train_data: Path = Path(FACE_DATASET_FOLDER) / TRAINING_SETS["ms1mv3"].folder
    """Folder with one folder per identity, or an InsightFace record file (train.rec, or the folder that holds it)."""
    ages: Path | None = None
    """CSV of picture (path below --train-data, or record key) and age, for pictures whose names don't hold it."""
    age_columns: AgeColumns = None
    names: Literal[(*FILENAME_PATTERNS, "none")] = "ms1mv3"
    """How the file names hold the age; none: not at all, and no age is known (of use where none is needed). With
    --disentangle none names without ages need no flag."""
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    run_folder: Path = output_folder(Path("runs/iefp"))
    """Folder of this run; an unfinished run in it is resumed."""
    age_weights: Path = Path(WEIGHT_FILES["age"].path)
    """Trained age branch, for stage identity; part of the weights that it writes, whatever --disentangle uses. Where
    the published file is not there, methods that use no age features write weights without an age branch."""

    backbone: Backbone = "iresnet50"
    purification: Purification = "1"
    age_head: Literal["groups", "years"] = "groups"
    """years: stage age also trains a head that gives the age in years (DEX), for labelling."""
    mean_loss_weight: float = bounded(0.0, low=0)
    """With --age-head years: weight of the mean loss (Pan et al. 2018 take 0.2)."""
    variance_loss_weight: float = bounded(0.0, low=0)
    """With --age-head years: weight of the variance loss (Pan et al. 2018 take 0.05)."""
    margin: Margin = "cosface"
    margin_scale: float = bounded(64.0, above=0)
    margin_value: MarginValue = bounded(None, low=0, high=1.5)
    margin_values: MarginValues = bounded(None, low=0, high=4)
    age_prior: float = bounded(0.0, low=0)
    """Tau: the logits get tau times the log-probability of each person by age alone, in training, so that the network
    need not learn it (logit adjustment); 1 is a good start, 0: none, as published."""
    sharded_classes: bool = False
    """Each process holds the margin weights of its share of the identities, instead of all (Partial FC)."""
    class_sampling_rate: float = bounded(1.0, above=0, high=1)
    """With --sharded-classes: share of the identities in a step's softmax; those in the batch always are."""
    disentangle: Disentangle = "iefp"
    disentangle_weight: DisentangleWeight = bounded(None, low=0)
    child_pictures: ChildPictures = bounded(InterPrototype.child_pictures, low=1)
    estimator: Estimator = "sampled"
    mutual_information_weight: float = bounded(SampledCLUB.default_weight, low=0)
    """Lambda: weight of the mutual information in the identity loss; 0 leaves explicit purification out."""
    mutual_information_warmup: int = bounded(SampledCLUB.warmup_steps, low=0)
    """Steps over which lambda rises from 0 in a straight line."""
    club_weight: float = bounded(SampledCLUB.objective_weight, above=0)
    """Weight of the log-likelihood in CLUB's own loss."""
    club_steps: int = bounded(SampledCLUB.updates, low=1)
    """CLUB's updates a step."""

    augmentation: Literal["flip", "changes"] = "flip"
    """flip: half of the images mirrored, as published. changes: a fifth each are also cropped, and given other colours
    (after AdaFace); age features can't be cached then."""
    scaled_decoding: bool = False
    """Decode JPEG files of twice the input's size or more at half of it: faster, the pixels differ a little."""
    batch_size: int = bounded(512, low=2)
    """Images a step over all processes together."""
    accumulation: int = bounded(1, low=1)
    """Micro-batches in which a step's images pass through the networks, gradients added up, where the memory is too
    small for all at once. With more than 1 the critic is updated after the identity branch, so it lags by a step."""
    epochs: int = bounded(25, low=1)
    learning_rate: float = bounded(0.1, above=0)
    schedule: Literal["steps", "cosine", "polynomial", "constant"] = "steps"
    """How the learning rate falls over the whole run, step by step; steps, by --learning-rate-epochs, is published."""
    learning_rate_epochs: tuple[int, ...] = bounded((10, 18, 22), low=1)
    """Epochs, counted from 0, from which the learning rate is 10 times lower."""
    warmup_steps: int = bounded(0, low=0)
    """Steps at the beginning over which the learning rate rises from near 0 in a straight line."""
    polynomial_power: float = bounded(2.0, above=0)
    """With --schedule polynomial: the power of the share of the run that is left."""
    final_learning_rate: float = bounded(0.0, low=0)
    """With --schedule cosine and polynomial: where the learning rate ends."""
    backbone_learning_rate_factor: float = bounded(1.0, low=0, high=1)
    """The encoder's learning rate as a share of the others', to begin from a trained one (--init-from); its
    purification unit and the heads keep the full rate."""
    momentum: float = bounded(0.9, low=0, high=1)
    weight_decay: float = bounded(1e-4, low=0)
    clip_norm: float = bounded(5.0, above=0)
    """Gradient norm at which each optimiser clips."""
    ema_decay: float = bounded(0.0, low=0, high=0.999999)
    """Decay a step of a moving average of the branch's weights, written at the end as iefp_ema.pth (age_ema.pth);
    0.9999 is usual in long runs; 0: no average."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the encoders; everything after them is fp32. auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""

    age_cache: Literal["auto", "ahead", "off"] = "auto"
    """Cache the frozen branch's features on disk: auto (from 3 epochs on) computes them as pictures come,
    ahead before training."""
    cache_folder: Path | None = output_folder()
    """Where age features and the list of pictures are cached; .iefp_cache beside --train-data unless given."""

    compile: bool = False
    """Compile the encoders by torch.compile; where that fails, a line says so and training goes on without."""
    sync_batchnorm: bool = False
    """Under torchrun: BatchNorm over the whole batch instead of each process's share (slower)."""
    deterministic: bool = False
    """On a GPU: only operations that repeat bit for bit (slower). On a CPU runs repeat anyway."""

    init_from: Path | None = None
    """Weight file to start from: what fits is loaded, what does not is named and starts fresh."""
    override_config: bool = False
    """Go on with a run although other settings are given than it was begun with."""
    on_bad_image: Literal["error", "skip"] = "error"
    """skip: use the next image in place of one that can't be read, and list it in the run folder."""
    max_bad_share: float = bounded(0.001, low=0, high=1)
    """With --on-bad-image skip: share of the images that may be skipped before the run ends."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = bounded(min(8, available_cores()), low=0)
    """Processes a rank that read images; 0 reads in the training process."""
    seed: int = bounded(0, low=0)
    log_every: int = bounded(50, low=1)
    """Steps between log lines."""
    save_every: int = bounded(2000, low=1)
    """Steps between checkpoints; the end of an epoch also makes one."""
    keep_checkpoints: int = bounded(2, low=1)
    best_metric: str | None = None
    """A logged value, such as face_recognition_loss: the checkpoint before which its mean was best is best.pth. Or a
    figure of --validate-on, such as fgnet_rank1_percent. The best weights are also written at the end."""

    profile: int = bounded(0, low=0)
    """Steps to record by torch.profiler after the first few: a trace and a table of the most expensive operations."""
    wandb: str | None = None
    """Project at Weights & Biases that gets TensorBoard's curves too (pip install wandb)."""

    validate_every: int = bounded(0, low=0)
    """Steps between validations of the identity branch on the benchmarks of --validate-on; the end of training also
    makes one. 0: none."""
    validate_on: Annotated[
        tuple[str, ...],
        arg(help=f"{', '.join(ON_FOLDERS)}, or paths of InsightFace verification sets (.bin)."),
    ] = ()
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the benchmarks' folders."""
    dry_run: bool = False
    """Train nothing: print the settings, the data, the disk space that the run needs, and the memory and time that two
    of its steps take. Written are its first batch, drawn as dry_run.png in the run folder, and the list of pictures
    that every run caches (--cache-folder)."""

    @property
    def margin_flag(self) -> str:
        """The setting that holds the margin's value or values."""
        return "margin_value" if self.margin in ONE_VALUE else "margin_values"

    NEEDS: ClassVar[Needs] = {
        "names": (Without("ages"),),
        "age_columns": (With("ages"),),
        "age_weights": (IDENTITY,),
        "age_head": (AGE,),
        "mean_loss_weight": (AGE, With("age_head", "years")),
        "variance_loss_weight": (AGE, With("age_head", "years")),
        "margin": (IDENTITY,),
        "margin_scale": (IDENTITY,),
        "margin_value": (IDENTITY, With("margin", *ONE_VALUE)),
        "margin_values": (IDENTITY, With("margin", *SEVERAL_VALUES)),
        "age_prior": (IDENTITY,),
        "sharded_classes": (IDENTITY,),
        "class_sampling_rate": (IDENTITY, With("sharded_classes")),
        "disentangle": (IDENTITY,),
        "disentangle_weight": critic_flag("disentangle_weight"),
        "child_pictures": critic_flag("child_pictures"),
        "estimator": (IDENTITY, methods(lambda critic: critic.attribute == "clubmi")),
        "mutual_information_weight": critic_flag("mutual_information_weight"),
        "mutual_information_warmup": (*critic_flag("mutual_information_warmup"), With("mutual_information_weight")),
        "club_weight": critic_flag("club_weight"),
        "club_steps": critic_flag("club_steps"),
        "learning_rate_epochs": (With("schedule", "steps"),),
        "polynomial_power": (With("schedule", "polynomial"),),
        "final_learning_rate": (With("schedule", "cosine", "polynomial"),),
        "age_cache": (
            IDENTITY,
            With("disentangle", *WITH_AGE_FEATURES, why="which uses no age features"),
            With("augmentation", "flip", why="which repeats no image"),
        ),
        "max_bad_share": (With("on_bad_image", "skip"),),
        "validate_every": (IDENTITY,),
        "validate_on": (With("validate_every"),),
        "face_dataset": (With("validate_every"), With("validate_on", *ON_FOLDERS)),
    }


# What may differ when a run goes on: it changes how the run is watched, fed or saved, not what is computed.
FREE_TO_CHANGE = {"run_folder", "override_config", "init_from", "on_bad_image", "max_bad_share", "device", "workers",
                  "assume_aligned", "age_cache", "cache_folder", "log_every", "save_every", "keep_checkpoints",
                  "best_metric", "profile", "wandb", "validate_every", "validate_on", "face_dataset",
                  "dry_run", "sharded_classes"}  # fmt: skip
