"""The frozen age branch's features in training: their cache (format: data/age_cache.py) opened, filled and read."""

import functools
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from data.age_cache import NUM_VIEWS, AgeCache, prepare_cache
from data.faces import Faces
from data.index_cache import CACHE_FOLDER
from data.loaders import FaceBatch, batches, evaluation_loader
from data.transforms import hflip, to_network_input
from meta import EMBEDDING_SIZE
from models.iefp import IEFP
from models.iresnet import IResNet
from training.config import TrainConfig
from training.optim import choose_precision
from training.setup import critic_of
from training.state import Run
from utils.distributed import DistInfo, gather_lists, print_rank0
from utils.progress import progress


def why_no_age_cache(config: TrainConfig) -> str | None:
    """Why the frozen branch's features are not cached, "" where no flag asks for it; None where they are."""
    wanted = config.age_cache == "ahead" or (config.age_cache == "auto" and config.epochs >= 3)
    if config.stage == "age" or not wanted:
        return ""
    critic = critic_of(config)
    if critic is None or not critic.needs_age_features:
        return f"no age features are cached: --disentangle {config.disentangle} uses none"
    if config.augmentation != "flip":
        return f"no age features are cached: with --augmentation {config.augmentation} no image comes twice alike"
    return None


def open_age_cache(config: TrainConfig, model: IEFP, index: Faces, process: DistInfo) -> AgeCache | None:
    """The cache of the frozen branch's features, or None where it would not pay, is not wanted or has no room."""
    reason = why_no_age_cache(config)
    if reason is not None:
        if reason:
            print_rank0(process, reason)
        return None
    made = [None]
    if process.is_first_of_node:
        place = age_cache_place(config, index, process)
        description = age_cache_description(config, model, index, process)
        made = [prepare_cache(*place, description, len(index), functools.partial(print, flush=True))]  # on each machine
    made = gather_lists(made, process)
    caches = made[:: process.processes_of_node]  # one a machine
    if None in caches:
        if caches != [None]:
            print_rank0(
                process, "no age features are cached, for they can't be on every machine: training goes on without"
            )
        return None
    return caches[process.node]


def age_cache_place(config: TrainConfig, index: Faces, process: DistInfo) -> tuple[Path, str]:
    """The folder of the caches of age features, and how the names of this data set's caches begin."""
    root = Path(index.root)
    name = f"{root.name}_node{process.node}_age_features"  # machines may share a folder, but not mapped memory
    return config.cache_folder or root.parent / CACHE_FOLDER, name


def age_cache_description(config: TrainConfig, model: IEFP, index: Faces, process: DistInfo) -> dict[str, str | int]:
    """All that the age features depend on."""
    watched = functools.partial(progress, enabled=process.is_first, silent_below=2.0)
    return {
        "pictures": index.state(watched),
        "weights": fingerprint(model.backbone_ae),
        "precision": choose_precision(config, process.device),
        "scaled": config.scaled_decoding,
    }


def fingerprint(encoder: IResNet) -> str:
    """SHA-256 of all that an encoder's output depends on: its parameters and buffers, and its purification unit."""
    digest = hashlib.sha256(f"{encoder.backbone} {encoder.purification}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def known_age_features(run: Run, faces: FaceBatch, images: Tensor, flips: Tensor) -> Tensor:
    """Age features of a batch and its mirror images, from the cache or computed now: (N, 2, 512) float16 on the CPU.

    `flips` (N,) marks the images that are mirrored. Only rows that are not cached are computed. A network's output for
    one image may depend in its last bits on how many others are in the batch (in fp32 on a CPU about one value of 150,
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
    """Computes age features of images and mirror images and caches them: (N, 2, 512) float16 on the CPU."""
    images = images.contiguous(memory_format=torch.channels_last)
    shown, other = (run.stage.age_features(each).cpu() for each in (images, hflip(images)))  # (N, 512)
    flips = flips[:, None]
    views = torch.stack([torch.where(flips, other, shown), torch.where(flips, shown, other)], dim=1)
    run.age_cache.write(indices.numpy(), views.numpy())
    return views.half()


def fill_age_cache(run: Run) -> int:
    """Computes all age features that are not cached yet; returns 0, or 128 + the signal that asked to stop.

    Each machine fills its own cache, its processes by turns. All take part in as many rounds as the longest share has,
    so that they go on to training, or stop, together.
    """
    config, process = run.config, run.process
    own = run.age_cache.unknown()[process.local_rank :: process.processes_of_node]
    size = config.batch_size // process.world_size
    rounds = max(gather_lists([-(-len(own) // size)], process))  # nobody writes before all have counted
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
            print_rank0(process, f"asked to stop (signal {status - 128}); age features so far are cached")
            return status
    return 0
