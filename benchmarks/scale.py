"""Memory, traffic and time of the margin head for up to 29 million identities: measured here, worked out for many GPUs.

    python benchmarks/scale.py                                                          a minute on one CPU core
    python benchmarks/scale.py --device cuda --classes 250000 --batch 1024 --steps 5    one rank's part of 2 M on 8 GPUs

Measured: time of a step of the head (loss, backward, optimiser) whole, as one shard and sampled, in turns in one
process; the peak of its tensors' bytes, to which the memory model is held. Worked out: everything of many GPUs, by the
model. The last line is JSON.
"""

import argparse
import json
import math
import statistics
import sys
import time
import weakref
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import machine, ratios, take_turns
from meta import EMBEDDING_SIZE, UserError
from models.margin import CosFace, MarginLoss, _draw_weight
from models.sharded_margin import ROWS_AT_ONCE, ShardedMarginLoss
from training.optim import RowwiseSGD
from training.partial_fc import ClassShards
from utils.distributed import DistInfo, choose_device

CLASSES = (93_431, 360_232, 2_000_000, 29_000_000)  # MS1MV3, Glint360K, and the two that InsightFace reports times of
GPUS = (8, 64, 512)
BATCH_PER_GPU = 128
RATE = 0.1
BYTES = 4  # fp32


# ------------------------------------------------------------------------------------------------------ the model


def memory(classes: int, gpus: int, rate: float, batch_per_gpu: int = BATCH_PER_GPU) -> int:
    """Bytes of one rank's part of a sharded head: weight, momentum, and what a step holds beside them at its peak."""
    own = -(-classes // gpus)
    batch = batch_per_gpu * gpus
    present = 1 - math.exp(-batch / classes)  # share of the identities that a batch drawn at random holds
    taken = own if rate == 1 else max(1, round(max(rate, present) * own))  # in the softmax
    vector = EMBEDDING_SIZE * BYTES
    # The normalised copy, the gradient with room to put it right, the logits, features gathered, normalised, gradient.
    backward = (2 * taken + min(taken, ROWS_AT_ONCE) + 3 * batch) * vector + batch * taken * BYTES
    # The gradient; of a sample also its rows with weight decay, and their momentum.
    optimiser = (1 if rate == 1 else 3) * taken * vector
    return 2 * own * vector + max(backward, optimiser)


def replicated_memory(classes: int) -> int:
    """Bytes of a head that every rank holds whole: weight, momentum, and five more of their size on the way back."""
    return 7 * classes * EMBEDDING_SIZE * BYTES


def traffic(classes: int, gpus: int, batch_per_gpu: int = BATCH_PER_GPU) -> dict[str, int]:
    """Bytes that each rank sends in a step for the head, by ring algorithms; the encoder's gradients come on top.

    sharded: features gathered and their gradient scattered, (W - 1) / W of the whole batch each; the row maxima once
    and two sums, all-reduced at twice their size. replicated: the weight's gradient all-reduced.
    """
    batch = batch_per_gpu * gpus
    ring = (gpus - 1) / gpus
    features = 2 * ring * batch * EMBEDDING_SIZE * BYTES
    labels = ring * batch * 8
    rows = 2 * ring * 3 * batch * BYTES
    weights = 2 * ring * classes * EMBEDDING_SIZE * BYTES
    return {"sharded": round(features + labels + rows), "replicated": round(weights)}


# ---------------------------------------------------------------------------------------------------- measurement


class Head:
    """One step of a head alone, on made-up features: loss, backward, optimiser."""

    def __init__(self, kind: str, classes: int, batch: int, device: torch.device, rate: float = 1.0):
        torch.manual_seed(0)
        self.head = CosFace(classes).to(device)
        process, settings = DistInfo(0, 1, device), {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "fused": True}
        self.shards = ClassShards(self.head.weight, process)
        sharded = ShardedMarginLoss(self.head, self.shards.collectives, rate)
        self.loss = MarginLoss(self.head) if kind == "whole" else sharded
        self.optimiser = (RowwiseSGD if rate < 1 else torch.optim.SGD)([self.head.weight], **settings)
        draw = torch.Generator().manual_seed(1)
        self.features = torch.randn(batch, EMBEDDING_SIZE, generator=draw).to(device).requires_grad_()
        self.labels = torch.randint(0, classes, (batch,), generator=draw).to(device)
        self.steps = 0

    def step(self) -> None:
        self.features.grad = None
        self.optimiser.zero_grad()
        self.loss(self.features, self.labels, self.steps).backward()
        if self.head.weight.grad.is_sparse:
            self.head.weight.grad = self.head.weight.grad.coalesce()  # as clipping does
        self.optimiser.step()
        self.steps += 1


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time, by their storages: of any device, CPUs too."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = {storage.data_ptr() for storage in _storages((arguments, keywords))}
        result = function(*arguments, **(keywords or {}))
        for storage in _storages(result):
            if storage.data_ptr() not in given:  # else it was written into or is looked at in another way
                self._note(storage)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if storage.nbytes() and place not in self.alive:
            self.alive[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.now -= self.alive.pop(place, 0)


def _storages(values: object) -> list[torch.UntypedStorage]:
    leaves = torch.utils._pytree.tree_leaves(values)
    return [leaf.untyped_storage() for leaf in leaves
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided]  # fmt: skip


def measured_bytes(head: Head) -> int:
    """Bytes of weight, momentum and all that one step makes, at the peak."""
    head.step()  # makes the momentum
    head.optimiser.zero_grad()
    held = sum(
        tensor.nbytes for tensor in (head.head.weight, head.optimiser.state[head.head.weight]["momentum_buffer"])
    )
    with PeakBytes() as peak:
        head.step()
    return held + peak.peak


KINDS = {"whole": ("whole", 1.0), "shard": ("shard", 1.0), "sampled": ("shard", RATE)}


def measure(flags, device: torch.device) -> dict:
    heads = {name: Head(kind, flags.classes, flags.batch, device, rate) for name, (kind, rate) in KINDS.items()}
    bytes_of = {name: measured_bytes(head) for name, head in heads.items()}
    seconds = take_turns({name: head.step for name, head in heads.items()}, device, flags.rounds, 1, flags.steps)
    model = {
        "whole": replicated_memory(flags.classes),
        "shard": memory(flags.classes, 1, 1.0, flags.batch),
        "sampled": memory(flags.classes, 1, RATE, flags.batch),
    }
    entry = {}
    for name, each in seconds.items():
        median = statistics.median(each)
        entry[name] = {
            "ms": round(1000 * median, 2),
            "ns_a_class_and_image": round(1e9 * median / flags.classes / flags.batch, 2),
            "times_whole": ratios(seconds["whole"], each),
            "measured_mb": round(bytes_of[name] / 1e6, 2),
            "model_mb": round(model[name] / 1e6, 2),
        }
    return entry


def drawing_seconds(rows: int = 20_000) -> float:
    """Seconds a million rows of initial weights take to draw, as every process draws them all."""
    began = time.perf_counter()
    _draw_weight(rows, EMBEDDING_SIZE, range(1))
    return (time.perf_counter() - began) * 1e6 / rows


def work_out() -> list[dict]:
    rows = []
    for classes in CLASSES:
        for gpus in GPUS:
            sent = traffic(classes, gpus)
            rows.append({
                "classes": classes,
                "gpus": gpus,
                "replicated_gb": round(replicated_memory(classes) / 1e9, 2),
                "sharded_gb": round(memory(classes, gpus, 1.0) / 1e9, 2),
                "sampled_gb": round(memory(classes, gpus, RATE) / 1e9, 2),
                "replicated_sent_mb": round(sent["replicated"] / 1e6, 1),
                "sharded_sent_mb": round(sent["sharded"] / 1e6, 1),
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    flags = parser.parse_args()
    try:
        device = choose_device(flags.device)
    except UserError as error:
        parser.error(str(error))
    measured = measure(flags, device)
    print(f"measured: {flags.classes:,} classes in one process, batch {flags.batch}, {device.type}")
    print(f"{'':10}{'ms a step':>11}{'measured MB':>13}{'model MB':>10}   times faster than whole (middle half)")
    for name, entry in measured.items():
        ratio = entry["times_whole"]
        print(f"{name:10}{entry['ms']:11.1f}{entry['measured_mb']:13.1f}{entry['model_mb']:10.1f}   "
              f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})")  # fmt: skip
    drawing = drawing_seconds()
    print(f"initial weights: {drawing:.1f} s a million classes")
    worked_out = work_out()
    print(f"\nworked out: {BATCH_PER_GPU} images a GPU, GB held and MB sent a step by each GPU for the head")
    print(f"{'classes':>12}{'GPUs':>6}{'replicated':>12}{'sharded':>9}{'r = 0.1':>9}{'MB repl.':>10}{'MB sharded':>12}")
    for row in worked_out:
        print(f"{row['classes']:12,}{row['gpus']:6}{row['replicated_gb']:12.2f}{row['sharded_gb']:9.2f}"
              f"{row['sampled_gb']:9.2f}{row['replicated_sent_mb']:10.1f}{row['sharded_sent_mb']:12.1f}")  # fmt: skip
    print(json.dumps({"benchmark": "scale", **vars(flags), **machine(device), "measured": measured,
                      "drawing_seconds_a_million_classes": round(drawing, 2), "worked_out": worked_out}))  # fmt: skip


if __name__ == "__main__":
    main()
