"""The settings of train.py, which are its flags: what each means, its bounds, and what goes with what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from meta import BENCHMARKS, FACE_DATASET_FOLDER, TRAINING_SETS, WEIGHT_FILES
from utils.cli import Needs, With, Without, available_cores, bounded, output_folder

IDENTITY, AGE = With("stage", "identity"), With("stage", "age")
CLUB = (IDENTITY, With("disentangle", "iefp"))
ON_FOLDERS = tuple(name for benchmark in BENCHMARKS.values() for name in benchmark.set_names)


@dataclass(frozen=True)
class TrainConfig:
    """Train one stage of IEFP. Flags may stand in a file: @recipes/demo.args."""

    stage: Literal["age", "identity"] = "identity"
    """age: the age branch, by cross-entropy over 8 age groups. identity: the identity branch, by IEFP."""
    train_data: Path = Path(FACE_DATASET_FOLDER) / TRAINING_SETS["ms1mv3"].folder
    """Folder with one folder per identity, or an InsightFace record file (train.rec, or the folder that holds it)."""
    ages: Path | None = None
    """CSV of picture (path below --train-data, or record key) and age, for pictures whose names don't tell it."""
    names: Literal["ms1mv3", "fgnet", "morph2", "none"] = "ms1mv3"
    """How the file names hold the age; none: not at all, and no age is known (of use where none is needed)."""
    assume_aligned: bool = False
    """All pictures are aligned, also those that are not 112x112; they are only resized."""
    run_folder: Path = output_folder(Path("runs/iefp"))
    """Folder of this run; an unfinished run in it is resumed."""
    age_weights: Path = Path(WEIGHT_FILES["age"].path)
    """Trained age branch, for stage identity; part of the weights that it writes, whatever --disentangle uses. Where
    the published file is not there, none, grl and orthogonal do without, and write weights without an age branch."""

    backbone: str = "iresnet50"
    """iresnet18, 34, 50, 100, 200, or iresnet18_quarter (for demos on a CPU)."""
    purification: str = "1"
    """Scale of the purification unit (0 leaves it out), or a variant such as x_plus_linear_relu_bn."""
    age_head: Literal["groups", "years"] = "groups"
    """years: stage age also trains a head that gives the age in years (DEX), for labelling."""
    mean_loss_weight: float = bounded(0.0, low=0)
    """With --age-head years: weight of the mean loss (Pan et al. 2018 take 0.2)."""
    variance_loss_weight: float = bounded(0.0, low=0)
    """With --age-head years: weight of the variance loss (Pan et al. 2018 take 0.05)."""
    margin: Literal["cosface", "arcface", "adaface", "combined"] = "cosface"
    margin_scale: float = bounded(64.0, above=0)
    margin_value: float | None = bounded(None, low=0, high=1.5)
    """None: 0.35 for CosFace, 0.5 for ArcFace, 0.4 for AdaFace."""
    margin_values: tuple[float, float, float] | None = bounded(None, low=0, high=4)
    """With --margin combined: m1, m2, m3 of cos(m1 theta + m2) - m3; None: 1, 0.3, 0.2."""
    sharded_classes: bool = False
    """Each process holds the margin weights of its share of the identities, instead of all (Partial FC)."""
    class_sampling_rate: float = bounded(1.0, above=0, high=1)
    """With --sharded-classes: share of the identities in a step's softmax; those in the batch always are."""
    disentangle: Literal["iefp", "none", "grl", "dal", "orthogonal"] = "iefp"
    """What keeps age out of the embedding. iefp: mutual information, estimated by CLUB. none: nothing. grl: gradient
    reversal. dal: the canonical correlation with the age features. orthogonal: age goes into the features' length."""
    disentangle_weight: float | None = bounded(None, low=0)
    """With grl, dal and orthogonal: weight of their term in the identity loss. None: 0.1, 0.1 and 0.01."""
    estimator: Literal["sampled", "unsampled"] = "sampled"
    """How CLUB draws its negatives."""
    mutual_information_weight: float = bounded(0.001, low=0)
    """Lambda: weight of the mutual information in the identity loss; 0 leaves explicit purification out."""
    mutual_information_warmup: int = bounded(0, low=0)
    """Steps over which lambda rises from 0 in a straight line."""
    club_weight: float = bounded(0.1, above=0)
    """Weight of the log-likelihood in CLUB's own loss."""
    club_steps: int = bounded(1, low=1)
    """CLUB's updates a step."""

    augmentation: Literal["flip", "changes"] = "flip"
    """flip: half of the images mirrored, as published. changes: a fifth each are also cropped, and given other colours
    (after AdaFace); age features can't be kept then."""
    scaled_decoding: bool = False
    """Decode JPEG files of twice the input's size or more at half of it: faster, the pixels differ a little."""
    batch_size: int = bounded(512, low=2)
    """Images a step over all processes together."""
    accumulation: int = bounded(1, low=1)
    """Parts in which a step's images pass through the networks, gradients added up, where the memory is too small for
    all at once. With more than 1 the critic learns after the identity branch, so that what it says is a step old."""
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
    0.9999 is usual in long runs, 0 keeps none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the encoders; everything after them is fp32. auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""

    age_cache: Literal["auto", "ahead", "off"] = "auto"
    """Keep the frozen branch's features on disk: auto (from 3 epochs on) computes them as pictures come,
    ahead before training."""
    cache_folder: Path | None = output_folder()
    """Where age features and the list of pictures are kept; .iefp_cache beside --train-data unless given."""

    compile: bool = False
    """Translate the encoders by torch.compile; where that fails, training goes on without, with one line."""
    sync_batchnorm: bool = False
    """Under torchrun: BatchNorm over the whole batch instead of each process's share (slower)."""
    deterministic: bool = False
    """On a GPU: only operations that repeat bit for bit (slower). On a CPU runs repeat anyway."""

    init_from: Path | None = None
    """Weight file to start from: what fits is taken, what does not is named and starts new."""
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
    """Steps to record by torch.profiler after the first few: a trace and a table of the dearest operations."""
    wandb: str | None = None
    """Project at Weights & Biases that gets TensorBoard's curves too (pip install wandb)."""

    validate_every: int = bounded(0, low=0)
    """Steps between validations of the identity branch on the benchmarks of --validate-on; the end of training also
    makes one. 0: none."""
    validate_on: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"{', '.join(ON_FOLDERS)}, or paths of InsightFace verification sets (.bin)."),
    ] = ()
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    """Folder that holds the benchmarks' folders."""
    dry_run: bool = False
    """Train nothing: tell the settings, the data, and what memory, time and disk the run needs. Written are its first
    batch, drawn as dry_run.png in the run folder, and the list of pictures that every run keeps (--cache-folder)."""

    NEEDS: ClassVar[Needs] = {
        "names": (Without("ages"),),
        "age_weights": (IDENTITY,),
        "age_head": (AGE,),
        "mean_loss_weight": (AGE, With("age_head", "years")),
        "variance_loss_weight": (AGE, With("age_head", "years")),
        "margin": (IDENTITY,),
        "margin_scale": (IDENTITY,),
        "margin_value": (IDENTITY, With("margin", "cosface", "arcface", "adaface")),
        "margin_values": (IDENTITY, With("margin", "combined")),
        "sharded_classes": (IDENTITY,),
        "class_sampling_rate": (IDENTITY, With("sharded_classes")),
        "disentangle": (IDENTITY,),
        "disentangle_weight": (IDENTITY, With("disentangle", "grl", "dal", "orthogonal")),
        "estimator": CLUB,
        "mutual_information_weight": CLUB,
        "mutual_information_warmup": (*CLUB, With("mutual_information_weight")),
        "club_weight": CLUB,
        "club_steps": CLUB,
        "learning_rate_epochs": (With("schedule", "steps"),),
        "polynomial_power": (With("schedule", "polynomial"),),
        "final_learning_rate": (With("schedule", "cosine", "polynomial"),),
        "age_cache": (
            IDENTITY,
            With("disentangle", "iefp", "dal", why="which uses no age features"),
            With("augmentation", "flip", why="which gives no image twice"),
        ),
        "max_bad_share": (With("on_bad_image", "skip"),),
        "validate_every": (IDENTITY,),
        "validate_on": (With("validate_every"),),
        "face_dataset": (With("validate_every"), With("validate_on", *ON_FOLDERS)),
    }


# What may differ when a run goes on: it changes how the run is watched, fed or kept, not what is computed.
FREE_TO_CHANGE = {"run_folder", "override_config", "init_from", "on_bad_image", "max_bad_share", "device", "workers",
                  "assume_aligned", "age_cache", "cache_folder", "log_every", "save_every", "keep_checkpoints",
                  "best_metric", "profile", "wandb", "validate_every", "validate_on", "face_dataset",
                  "dry_run", "sharded_classes"}  # fmt: skip
