"""What a step costs against its size: images a second, on a GPU the peak of its memory, and a plot.

    python benchmarks/size.py --plot benchmarks/size.png
    python benchmarks/size.py --cross --plot benchmarks/size.png    only what the plot shows: a minute on an H200
    python benchmarks/size.py --batches 8 16 --classes 1000 --backbones iresnet18

The step is IEFP's, with cached age features. The last line is JSON.
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.timing import machine, take_turns
from meta import EMBEDDING_SIZE
from models.iefp import IEFP
from tests.scripts import load_script
from utils.distributed import DistInfo

train = load_script("train")
CARDS_GB = {"80 GB": 80e9, "141 GB": 141e9}


def make_stage(backbone: str, classes: int, precision: str, device: torch.device):
    """What is measured, of every batch size; None where its weights do not fit."""
    try:
        with device:  # weights are drawn there: of two million classes in no time
            model = IEFP(backbone, 1, classes).to(memory_format=torch.channels_last)
        stage = train.IdentityStage(train.TrainConfig(precision=precision), model, DistInfo(0, 1, device))
    except torch.OutOfMemoryError:
        return None
    model.train()
    return stage


def measure(stage, batch: int, device: torch.device) -> dict[str, float]:
    """Images a second, and on a GPU the peak in GB; an empty dict where it does not fit."""
    try:
        images = torch.rand(batch, 3, 112, 112, device=device).to(memory_format=torch.channels_last) * 2 - 1
        labels = torch.randint(0, stage.model.margin_fc.num_identities, (batch,), device=device)
        of = train.Batch(images, labels, labels % 8, age_features=torch.randn(batch, EMBEDDING_SIZE, device=device))
        stage.step(of)  # cuDNN tries its ways here, some of which take memory that the chosen ones do not
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = take_turns({"step": lambda: stage.step(of)}, device, rounds=3, warm_up=1, steps_a_turn=1)["step"]
        figures = {"images_per_second": round(batch / statistics.median(seconds), 1)}
    except torch.OutOfMemoryError:
        figures = {}
    if device.type == "cuda":
        if figures:
            figures["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        torch.cuda.empty_cache()
    return figures


def shown_of(values: list[int], wanted: int) -> int:
    """The smallest value that is at least the wanted one, else the largest: what is held along the other axis."""
    return min((value for value in values if value >= wanted), default=max(values))


def plot(rows: list[dict], path: Path) -> None:
    """Images a second, and where it was measured the peak of memory: against batch, and against classes."""
    from matplotlib.figure import Figure

    kinds = [("images_per_second", "images a second")]
    if any("peak_gb" in row for row in rows):
        kinds.append(("peak_gb", "GB at the peak of a step"))
    figure = Figure(figsize=(10, 4 * len(kinds)), layout="constrained")
    classes = shown_of([row["classes"] for row in rows], 93_431)
    sides = [("batch", "classes", classes), ("classes", "batch", shown_of([row["batch"] for row in rows], 512))]
    for pair, (kind, label) in zip(figure.subplots(len(kinds), 2, squeeze=False), kinds, strict=True):
        for axes, (along, held, value) in zip(pair, sides, strict=True):
            for backbone in dict.fromkeys(row["backbone"] for row in rows):
                of = [row for row in rows if row["backbone"] == backbone and row[held] == value and kind in row]
                axes.plot([row[along] for row in of], [row[kind] for row in of], marker="o", label=backbone)
            axes.set(xlabel=f"{along} ({held}: {value:,})", ylabel=label, xscale="log", yscale="log")
            axes.grid(alpha=0.3)
            for name, size in CARDS_GB.items() if kind == "peak_gb" else ():
                axes.axhline(size / 1e9, color="grey", linestyle="--", linewidth=1)
                axes.annotate(name, (1, size / 1e9), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                              fontsize=8)  # fmt: skip
        pair[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def rows_of(flags, device: torch.device) -> list[dict]:
    """Every combination of the flags, printed as it is measured; what does not fit into memory has no figures."""
    shown = {("classes", shown_of(flags.classes, 93_431)), ("batch", shown_of(flags.batches, 512))}
    rows, stage = [], None
    for backbone, classes in itertools.product(flags.backbones, flags.classes):
        del stage  # its memory is wanted
        stage = make_stage(backbone, classes, flags.precision, device)
        for batch in flags.batches:
            if flags.cross and shown.isdisjoint({("classes", classes), ("batch", batch)}):
                continue
            row = {"backbone": backbone, "batch": batch, "classes": classes}
            if stage is not None:
                row |= measure(stage, batch, device)
            rows.append(row)
            print(f"{backbone:12}{batch:7}{classes:11,}{row.get('images_per_second', ''):>10}"
                  f"{row.get('peak_gb', ''):>9}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbones", nargs="+", default=["iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--classes", nargs="+", type=int, default=[10_000, 93_431, 360_232, 2_000_000])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--cross", action="store_true", help="only what the plot shows")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    flags = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True  # as train.py
    print(f"{'backbone':12}{'batch':>7}{'classes':>11}{'images/s':>10}{'peak GB':>9}")
    rows = rows_of(flags, device)
    if flags.plot:
        plot(rows, flags.plot)
    print(json.dumps({"benchmark": "size", "precision": flags.precision, **machine(device), "rows": rows}))


if __name__ == "__main__":
    main()
