"""What a run would do and need, in words: settings, data, parameters, memory, time, disk. Nothing is written here."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meta import AGE_GROUP_NAMES
from training.memory import StepMemory
from training.optim import choose_precision
from utils.cli import as_plain, flag

SECONDS_A_STEP = 4.0  # a measured step on a CPU takes about so long, or the batch is made smaller
MEASURED_STEPS = 3  # after one to warm up
INPUT_SECONDS = 4.0  # the loader is watched for so long
MAX_INPUT_BATCHES = 64
BAR_WIDTH = 30  # letters


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Lines with the first column on the left and the others on the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = (
        indent + "  ".join(cell.rjust(width) if place else cell.ljust(width)
                           for place, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def size(num_bytes: float) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= length:
            return f"{num_bytes / length:,.2f} {unit}"
    return f"{num_bytes / 1e3:,.2f} kB"


# ---------------------------------------------------------------------------------------------------- settings, data


def resolved_settings(run: Any, keeps: str) -> dict[str, object]:
    """What settings that are left open become; `keeps` is what becomes of the age features."""
    config, stage = run.config, run.stage
    resolved = {"device": run.process.device, "precision": choose_precision(config, run.process.device),
                "age_cache": keeps}  # fmt: skip
    if config.stage == "identity":
        resolved[config.margin_flag] = stage.model.margin_fc.margin
        if config.disentangle not in ("iefp", "none") and config.disentangle_weight is None:
            resolved["disentangle_weight"] = stage.critic.default_weight
    return resolved


def recipe(config: Any, published: Any, resolved: Mapping[str, object]) -> str:
    """All settings; those that differ from the published ones have a star, `resolved` says what open ones become."""
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
    bars = [f"{line}  {row[3]}".rstrip() for line, row in zip(columns([r[:3] for r in rows]).splitlines(), rows,
                                                              strict=True)]  # fmt: skip
    return "\n".join([
        "data",
        f"  {len(identities):,} pictures of {num_identities:,} identities, {each.min():,} to {each.max():,} of each, "
        f"{np.median(each):g} in the median",
        f"  the age of {len(known):,} is known, of {len(age_groups) - len(known):,} it is not",
        *bars,
    ])  # fmt: skip


# -------------------------------------------------------------------------------------------------- parameters, memory


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def parts_of(run: Any) -> dict[str, list[Tensor]]:
    """Parameters by part of the model, as far as the stage uses it."""
    model, is_identity = run.stage.model, run.config.stage == "identity"
    encoder = model.backbone_id if is_identity else model.backbone_ae
    unit = list(encoder.spu.parameters())
    parts = {
        "encoder": [each for name, each in encoder.named_parameters() if not name.startswith("spu.")],
        "purification unit": unit,
    }
    if is_identity:
        parts |= {
            "margin head": list(model.margin_fc.parameters()),
            "CLUB": list(model.clubmi.parameters()),
            "critic": [] if model.critic is None else list(model.critic.parameters()),
            "age branch": [each for module in model.age_branch for each in module.parameters()],
        }
    else:
        parts |= {
            "age estimator": list(model.age_estimator.parameters()),
            "head for years": [] if model.year_head is None else list(model.year_head.parameters()),
        }
    return {name: of_part for name, of_part in parts.items() if of_part}


def parameters(parts: Mapping[str, Sequence[Tensor]], trained: Sequence[Tensor]) -> str:
    """A row a part of the model, and which of them are trained."""
    trained_ids = {id(parameter) for parameter in trained}
    rows = [("part", "parameters", "size", "")]
    for name, of_part in parts.items():
        is_trained = any(id(parameter) in trained_ids for parameter in of_part)
        count = sum(parameter.numel() for parameter in of_part)
        rows.append((name, f"{count:,}", size(tensor_bytes(of_part)), "trained" if is_trained else "frozen"))
    return "parameters\n" + columns(rows)


def logits_of(run: Any) -> tuple[int, int]:
    """Identities whose weights take part in this process's step, and logits that it has for each of its own images."""
    config, head = run.config, run.stage.model.margin_fc
    if head is None:
        return 0, 0
    own = max(1, round(config.class_sampling_rate * len(head.weight)))
    return own, own * (run.process.world_size if config.sharded_classes else 1)


def memory(of_step: StepMemory, num_images: int, logits: int, an_image: float, device: torch.device) -> str:
    """The parts of the peak, and what the device has."""
    parts = {
        "weights and buffers, frozen ones too": of_step.weights,
        "gradients": of_step.gradients,
        "momentum": of_step.momentum,
        f"kept for the backward pass: {num_images:,} images x {size(an_image)}": of_step.activations,
        "kept beside it, whatever the batch": of_step.beside,
        f"logits: {num_images:,} images x {logits:,} x 4 bytes": of_step.logits,
        "gradient of the margin head's normalised weights": of_step.head_gradient,
    }
    rows = [(name, size(value)) for name, value in parts.items() if value]
    there = device_bytes(device)
    told = f"{device} has {size(there)}" if there else f"what {device} has is not known"
    if there and of_step.total > there:
        told += ": IT DOES NOT FIT, raise --accumulation, lower --batch-size or take more processes"
    rows.append(("together", size(of_step.total)))
    return (
        f"memory of a process at the peak of a step, an estimate\n{columns(rows)}\n"
        f"  {told}; the backward pass needs some room to work in besides, and libraries their own"
    )


def device_bytes(device: torch.device) -> int | None:
    """What a GPU has in all, or the machine; None where it can't be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


# ---------------------------------------------------------------------------------------------------------------- time


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


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def images_to_measure(share: int, seconds_an_image: float, bytes_an_image: float, device: torch.device) -> int:
    """Images of a measured step: all of a process's share, or as many, 4 at least, as a CPU does in a few seconds.

    On a GPU as many as its free memory has room for what autograd keeps of them.
    """
    if device.type == "cuda":
        most = int(0.7 * torch.cuda.mem_get_info(device)[0] / max(bytes_an_image, 1))
    else:
        most = int(SECONDS_A_STEP / max(seconds_an_image, 1e-9))
    return share if share <= most else min(share, 1 << max(4, most).bit_length() - 1)


def measure(
    stream: Iterator[Any],
    step: Callable[[Any], Tensor],
    frozen: Callable[[Tensor], object] | None,
    workers: int,
    device: torch.device,
) -> StepTime:
    """Seconds for a batch of `stream`: `step` trains on it and gives its images, `frozen` asks the frozen branch."""
    of_step, of_frozen = [], []
    for faces in itertools.islice(stream, 1 + MEASURED_STEPS):
        began = time.perf_counter()
        images = step(faces)
        wait(device)
        of_step.append(time.perf_counter() - began)
        if frozen is not None:
            of_frozen.append(seconds_of(lambda images=images: frozen(images), device))
    network, of_branch = (statistics.median(seconds[1:]) if seconds else 0.0 for seconds in (of_step, of_frozen))
    return StepTime(seconds_a_batch(stream, 2 * workers), network, of_branch, workers)


def seconds_a_batch(stream: Iterator[Any], num_waiting: int) -> float:
    """How long a loader takes for a batch when nobody else works; `num_waiting` batches may lie there already."""
    arrivals: list[float] = []
    while len(arrivals) < 2 or (arrivals[-1] - arrivals[0] < INPUT_SECONDS and len(arrivals) < MAX_INPUT_BATCHES):
        next(stream)
        arrivals.append(time.perf_counter())
    first = min(num_waiting, len(arrivals) // 2)
    return (arrivals[-1] - arrivals[first]) / max(1, len(arrivals) - 1 - first)


def run_seconds(of_step: StepTime, steps_an_epoch: int, epochs: int, keeps: str) -> tuple[float, float, float]:
    """Seconds before training, of the first epoch, and of each later one.

    `keeps` says what becomes of the frozen branch's features: "ahead" and "auto" keep those of both views, before
    training or in its first epoch; "off" has them computed in each step; "none" needs none.
    """
    views_ahead, first, later = {"ahead": (2, 0, 0), "auto": (0, 2, 0), "off": (0, 1, 1), "none": (0, 0, 0)}[keeps]
    ahead = 0.0
    if views_ahead:
        alone = dataclasses.replace(of_step, network=0.0)
        ahead = steps_an_epoch * alone.step(views_ahead)
    return ahead, *(steps_an_epoch * of_step.step(views) for views in (first, later) if epochs)


def times(of_step: StepTime, measured: int, share: int, steps_an_epoch: int, epochs: int, keeps: str) -> str:
    """The time of a step, an epoch and the run, split into input and network."""
    ahead, first, later = run_seconds(of_step, steps_an_epoch, epochs, keeps)
    how = "the longer one, for workers read ahead" if of_step.workers else "both, for --workers is 0"
    rows = [
        ("input of a step", f"{of_step.input:.3f} s"),
        ("network of a step", f"{of_step.network:.3f} s"),
        *([("frozen age branch, one view", f"{of_step.frozen:.3f} s")] if keeps != "none" else []),
        (f"a step ({how})", f"{of_step.step({'off': 1}.get(keeps, 0)):.3f} s"),
        *([("age features ahead of training", in_words(ahead))] if ahead else []),
        (f"first epoch, {steps_an_epoch:,} steps", in_words(first)),
        ("a later epoch", in_words(later)),
        (f"the whole run, {epochs} epochs", in_words(ahead + first + (epochs - 1) * later)),
    ]
    scaled = "" if measured == share else f", times {share / measured:g} for the share of {share:,} (rather too high)"
    return (
        f"time, from {MEASURED_STEPS} steps of {measured:,} images{scaled}; without checkpoints and validation\n"
        f"{columns(rows)}"
    )


def in_words(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"


# ---------------------------------------------------------------------------------------------------------------- disk


@dataclass(frozen=True)
class Stored:
    """One kind of file that a run writes."""

    what: str
    folder: Path
    num_bytes: float
    count: int = 1
    there: float = (
        0  # bytes on disk of such files that an earlier run wrote, and that this one replaces or goes on with
    )
    in_place: bool = False  # else a file is written beside the one that it replaces

    @property
    def more(self) -> float:
        """Bytes that it takes at most beside those that are there."""
        return max(self.count * self.num_bytes - self.there, 0 if self.in_place else self.num_bytes)


def files_of(run: Any, trained: list[Tensor], age_features: Stored | None) -> list[Stored]:
    """What the run writes at most."""
    config, model, has_best = run.config, run.stage.model, run.config.best_metric is not None
    has_momentum, has_average = config.momentum > 0, run.stage.averaged is not None
    of_others = rows_of_others(run)
    checkpoint = tensor_bytes(list(model.state_dict().values())) + of_others
    checkpoint += tensor_bytes(trained) + of_others if has_momentum else 0
    weights = tensor_bytes(list(run.stage.published_tensors(model).values())) + of_others
    if has_average:
        checkpoint += tensor_bytes(list(run.stage.averaged.state_tensors()))
    checkpoints, path = config.run_folder / "checkpoints", config.run_folder / run.stage.weights_file
    published = [path.with_stem(path.stem + ending) for ending in ("", "_ema", "_best")]
    files = [
        Stored("checkpoint (one is written before an older one goes)", checkpoints, checkpoint,
               config.keep_checkpoints + 1 + has_best, bytes_on_disk(checkpoints.glob("*.pth"))),
        Stored("weights in the published layout", config.run_folder, weights, 1 + has_average + has_best,
               bytes_on_disk(published)),
    ]  # fmt: skip
    return files if age_features is None else [*files, age_features]


def rows_of_others(run: Any) -> float:
    """Bytes of the margin head's rows that other processes hold, and write."""
    head = run.stage.model.margin_fc
    return 0 if head is None else tensor_bytes([head.weight]) / len(head.weight) * (head.num_identities - len(head.own))


def bytes_on_disk(paths: Iterable[Path]) -> int:
    """What those of the files that exist take on disk; one with two names (links) counts once."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(found.values())


def disk(files: Sequence[Stored]) -> str:
    """What the run writes, and the room there is on each disk that it goes to."""
    rows = [(stored.what, f"{stored.count} x", size(stored.num_bytes)) for stored in files]
    on_disk: dict[int, list[Stored]] = {}
    for stored in files:
        on_disk.setdefault(disk_of(existing(stored.folder)), []).append(stored)
    room = []
    for stored_there in on_disk.values():
        places = list(dict.fromkeys(existing(stored.folder) for stored in stored_there))
        needed, there = (
            sum(values) for values in zip(*((each.more, each.there) for each in stored_there), strict=True)
        )
        beside = f" beside {size(there)} that is there" if there else ""
        free = shutil.disk_usage(places[0]).free
        beyond = ": THERE IS NO ROOM" if needed > free else ""
        room.append(f"  disk of {', '.join(map(str, places))}: {size(needed)} needed at most{beside}, {size(free)} "
                    f"free{beyond}")  # fmt: skip
    return "\n".join(["disk", columns(rows), *room])


def disk_of(folder: Path) -> int:
    """A number for the disk that the folder lies on."""
    return folder.stat().st_dev


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    folder = Path(os.path.abspath(folder))
    return folder if folder.is_dir() else existing(folder.parent)
