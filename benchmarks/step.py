"""Time of one training step: IEFP with cached age features against plain CosFace, and the published loop.

    python benchmarks/step.py                                        two CPU cores, a minute
    python benchmarks/step.py --precision bf16
    python benchmarks/step.py --device cuda --backbone iresnet50 --batch 512 --classes 93431 --precision fp16

Competitors take turns in one process: the published loop (two passes, contiguous, fp32 on a CPU, fp16 on a GPU), an
InsightFace-style trainer written plainly, our plain CosFace, and our IEFP with and without cached age features. All of
them let cuDNN choose its ways by trial, as train.py does. --profile writes what the time of our step goes to. The last
line is JSON.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.published import InsightFaceLoop, PublishedLoop
from benchmarks.timing import machine, ratios, take_turns, wait
from meta import UserError
from models.iefp import IEFP
from tests.scripts import load_script
from training.optim import make_precision, update
from utils.distributed import DistInfo, choose_device

train = load_script("train")

# Multiplications and additions of one forward pass of one image, counted twice: 112x112 input.
GIGAFLOPS = {"iresnet18": 5.2, "iresnet34": 8.9, "iresnet50": 12.6, "iresnet100": 24.2}
PEAK_TFLOPS = {"H100": 989, "H200": 989}  # bf16 without sparsity, SXM (NVIDIA's data sheets)


class PlainCosFace:
    """Our step without any age: encoder, margin, cross-entropy, one optimiser."""

    def __init__(self, config, model: IEFP, process: DistInfo):
        self.stage = train.IdentityStage(config, model, process)

    def step(self, batch) -> None:
        stage, optimiser = self.stage, self.stage.optimisers["identity"]
        optimiser.zero_grad()
        with stage.autocast:
            identity = stage.encoder(batch.images)
        stage.scaler.scale(stage.face_recognition(identity, batch.identities)).backward()
        update(optimiser, stage.identity_parameters, stage.scaler, stage.config.clip_norm)


def make_model(flags, device: torch.device, channels_last: bool, purification: int = 1) -> IEFP:
    torch.manual_seed(0)
    with device:  # weights are drawn there
        model = IEFP(flags.backbone, purification, flags.classes)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def make_steps(flags, device: torch.device) -> dict:
    """The competitors, each a function of no arguments that does one step on batches made beforehand."""
    process = DistInfo(0, 1, device)
    draw = torch.Generator().manual_seed(1)
    images = (torch.rand(flags.batch, 3, 112, 112, generator=draw) * 2 - 1).to(device)
    identities = torch.randint(0, flags.classes, (flags.batch,), generator=draw).to(device)
    groups = torch.randint(0, 8, (flags.batch,), generator=draw).to(device)
    features = torch.randn(flags.batch, 512, generator=draw).to(device)
    fast_images = images.contiguous(memory_format=torch.channels_last)
    config = train.TrainConfig(backbone=flags.backbone, precision=flags.precision, compile=flags.compile)
    of_published = train.TrainConfig(precision="fp16" if device.type == "cuda" else "fp32")

    published = PublishedLoop(make_model(flags, device, False), 0.1, *make_precision(of_published, device))
    steps = {"published": lambda: published.step(images, identities, groups)}
    insightface = InsightFaceLoop(make_model(flags, device, False, 0), 0.1, *make_precision(of_published, device))
    steps["insightface"] = lambda: insightface.step(images, identities)
    plain = PlainCosFace(config, make_model(flags, device, True, 0), process)
    plain.stage.model.train()
    batch = train.Batch(fast_images, identities, groups)
    steps["plain"] = lambda: plain.step(batch)
    ours = train.IdentityStage(config, make_model(flags, device, True), process)
    ours.model.train()
    cached = train.Batch(fast_images, identities, groups, age_features=features)
    steps["iefp cached"] = lambda: ours.step(cached)
    steps["iefp"] = lambda: ours.step(batch)
    return {name: steps[name] for name in steps if flags.only is None or name in flags.only}


def memory_of(steps: dict, device: torch.device) -> dict[str, float]:
    """Peak memory of one step of each competitor beyond what all models hold, in GB; GPUs only."""
    peaks = {}
    if device.type == "cuda":
        for name, step in steps.items():
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            peaks[name] = round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)
    return peaks


def write_profile(step, device: torch.device, path: Path) -> None:
    """A table of three steps' operations, the dearest first: on a GPU by the time of their kernels."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(3):
            step()
        wait(device)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    path.write_text(profile.key_averages().table(sort_by=order, row_limit=45, max_name_column_width=90))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="iresnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="of ours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    parser.add_argument("--only", nargs="+", help="some of the competitors")
    parser.add_argument("--profile", type=Path, help="file for a table of what our step does")
    flags = parser.parse_args()
    if flags.profile and flags.only and "iefp cached" not in flags.only:
        parser.error("--profile is of 'iefp cached': name it after --only, or leave --only out")
    try:
        device = choose_device(flags.device)
    except UserError as error:
        parser.error(str(error))
    torch.backends.cudnn.benchmark = True
    steps = make_steps(flags, device)
    seconds = take_turns(steps, device, flags.rounds, warm_up=2, steps_a_turn=flags.steps)
    if flags.profile:
        write_profile(steps["iefp cached"], device, flags.profile)
    entry = {"benchmark": "step", **vars(flags), **machine(device), "peak_gb": memory_of(steps, device)}
    print(f"{'':14}{'ms an image':>12}{'images/s':>10}{'TFLOP/s':>9}   times the published loop (middle half)")
    for name, each in seconds.items():
        median = statistics.median(each)
        passes = 3  # one forward, two backward; what is computed twice or frozen does not count as work done
        tflops = flags.batch / median * GIGAFLOPS.get(flags.backbone, 0) * passes / 1000
        entry[name] = {"ms_an_image": round(1000 * median / flags.batch, 3), "tflops": round(tflops, 3)}
        line = f"{name:14}{1000 * median / flags.batch:12.2f}{flags.batch / median:10.1f}{tflops:9.2f}"
        if "published" in seconds:
            entry[name]["times_published"] = ratio = ratios(seconds["published"], each)
            line += f"   {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        print(line)
    if "plain" in seconds and "iefp cached" in seconds:
        entry["iefp_over_plain"] = ratio = ratios(seconds["iefp cached"], seconds["plain"])
        print(f"IEFP with cached age features takes {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) "
              f"times the time of plain CosFace")  # fmt: skip
    if device.type == "cuda":
        peak = next((value for key, value in PEAK_TFLOPS.items() if key in entry["gpu"]), None)
        if peak:
            entry["mfu_percent"] = {name: round(100 * entry[name]["tflops"] / peak, 1) for name in seconds}
            print(f"share of the bf16 peak of {peak} TFLOP/s in %: {entry['mfu_percent']}")
    print(json.dumps(entry, default=str))


if __name__ == "__main__":
    main()
