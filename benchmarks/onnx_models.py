"""CPU time of an ONNX model as test.py runs it, and of onnxruntime alone on the same pictures: the ratio of the two.

    python benchmarks/onnx_models.py --backbone iresnet18

A network is drawn and written as ONNX, as its owners would: without metadata, features (N, 512) of pixels. Both take
turns in one process, on one thread, whose CPU time counts, so that other work on the machine disturbs little. What
test.py adds: both views made of bytes, pixels brought into the model's convention, features gathered. Decoding pictures
is left out, other processes do it. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime
import torch

from benchmarks.timing import machine, ratios, take_turns
from data.loaders import FaceBatch
from data.transforms import to_network_input
from evaluation.embeddings.extraction import both_views, extract
from evaluation.embeddings.networks import open_network
from meta import IMAGE_SIZE
from models.export import example_images, fold_batchnorm
from models.iresnet import BACKBONES, IResNet
from tests.golden_weights import fill
from utils.distributed import DistInfo

CPU = torch.device("cpu")
CONVENTIONS = {"InsightFace's": None, "BGR, / 128": "bgr scale=128", "BGR, / 128, of 160x160": "bgr 160x160 scale=128"}


def write(backbone: str, path: Path, side: int) -> None:
    """A folded encoder without a purification unit, for pictures of `side` pixels: pooled to 112 first."""
    encoder = fill(IResNet(backbone, 0)).eval()
    fold_batchnorm(encoder)
    if side != IMAGE_SIZE:
        encoder = torch.nn.Sequential(torch.nn.Upsample((IMAGE_SIZE, IMAGE_SIZE)), encoder).eval()
    shapes = ({0: torch.export.Dim("n", min=1)},)
    torch.onnx.export(encoder, (torch.zeros(2, 3, side, side),), path, dynamo=True, dynamic_shapes=shapes,
                      external_data=False, verbose=False)  # fmt: skip


def measure(path: Path, onnx_input: str | None, given: argparse.Namespace) -> dict:
    process = DistInfo(0, 1, CPU)
    network = open_network(path, process, onnx_input)
    images = example_images(given.batch_size, torch.uint8)
    batch = FaceBatch(images, *[torch.arange(len(images))] * (len(FaceBatch._fields) - 1))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pixels = network.model.pixels(both_views(images, to_network_input))
    found = extract(network.model, [batch], len(images), process, to_network_input, False, what=None, size=network.size)
    (expected,) = session.run(None, {network.model.name: pixels})
    np.testing.assert_allclose(np.concatenate([found.original, found.mirror]), expected, rtol=1e-4, atol=1e-4)
    steps = {
        "onnxruntime": lambda: session.run(None, {network.model.name: pixels}),
        "test.py": lambda: extract(network.model, [batch], len(images), process, to_network_input, False, what=None,
                                   size=network.size),
    }  # fmt: skip
    seconds = take_turns(steps, CPU, given.rounds, warm_up=1, steps_a_turn=1, clock=time.process_time)
    ratio = ratios(seconds["test.py"], seconds["onnxruntime"])
    return {"ratio": ratio} | {f"{name}_ms_a_picture": round(1e3 * float(np.median(each)) / len(images), 2)
                               for name, each in seconds.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="iresnet18", choices=list(BACKBONES))
    parser.add_argument("--batch-size", type=int, default=16, help="pictures, each in both views")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, onnx_input in CONVENTIONS.items():
            side = 160 if onnx_input and "160" in onnx_input else IMAGE_SIZE
            path = Path(folder) / f"{side}.onnx"
            if not path.exists():
                write(given.backbone, path, side)
            results[name] = found = measure(path, onnx_input, given)
            print(f"{given.backbone}, {name}: test.py {found['test.py_ms_a_picture']} ms a picture in both views, "
                  f"onnxruntime {found['onnxruntime_ms_a_picture']} ms: {found['ratio']['median']} times "
                  f"({found['ratio']['low']} to {found['ratio']['high']})")  # fmt: skip
    print(json.dumps({"machine": machine(CPU), "onnxruntime": onnxruntime.__version__, "backbone": given.backbone,
                      "batch_size": given.batch_size, "results": results}))  # fmt: skip


if __name__ == "__main__":
    main()
