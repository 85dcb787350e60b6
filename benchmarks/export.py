"""Size, images a second and lost accuracy of PyTorch, onnxruntime in fp32, fp16 and int8.

    python benchmarks/export.py --pictures demo/face_dataset/ms1mv3_256times256_with_age
    python benchmarks/export.py --pictures FOLDER --weights runs/iefp/iefp.pth --quantisers

All take turns in one process, on one thread. Without --weights an iresnet50 is drawn. int8 takes its ranges from the
first half of the pictures (evenly picked, 100), and the cosines are those of the other half. --quantisers compares ways
to 8 bits instead. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
import torch
from onnxruntime import quantization

from benchmarks.timing import machine, ratios, take_turns
from data.faces import index_pictures
from data.transforms import to_network_input
from evaluation.protocols import pair_scores
from models.export import Embedder
from models.export_files import Run, onnx_model, open_onnx, quantised, run_embedder
from models.iefp import IEFP
from models.iresnet import IResNet
from models.weights import load_for_embedding
from tests.golden_weights import fill

CPU = torch.device("cpu")
NUM_PICTURES = 100
STATIC = {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True,
          "op_types_to_quantize": ["Conv", "Gemm"]}  # fmt: skip
UINT8, INT8 = quantization.QuantType.QUInt8, quantization.QuantType.QInt8


def read_pictures(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """For calibration and for the cosines, uint8 (N, 3, 112, 112) each."""
    faces = index_pictures(folder)
    rows = np.unique(np.linspace(0, len(faces) - 1, NUM_PICTURES).astype(int)).tolist()
    pictures = torch.stack([faces.decode(i) for i in rows]).numpy()
    return pictures[: len(rows) // 2], pictures[len(rows) // 2 :]


def write_all(embedder: Embedder, calibration: np.ndarray, folder: Path) -> dict[str, Path]:
    folded = embedder.folded()
    models = {"fp32": onnx_model(folded, "uint8"), "fp16": onnx_model(folded.in_half(), "uint8")}
    models["int8"] = quantised(onnx_model(folded, "uint8"), iter(np.array_split(calibration, 5)))
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return {name: folder / f"{name}.onnx" for name in models}


def quantised_otherwise(path: Path, calibration: np.ndarray, folder: Path) -> dict[str, Path]:
    """Other ways to 8 bits than that of models.export_files."""

    class Batches(quantization.CalibrationDataReader):
        def __init__(self):
            self.arrays = iter(np.array_split(calibration, 5))

        def get_next(self):
            images = next(self.arrays, None)
            return None if images is None else {"images": images}

    ways = {
        "first convolution too": STATIC | {"activation_type": UINT8, "weight_type": INT8},
        "first too, int8 activations": STATIC | {"activation_type": INT8, "weight_type": INT8},
        "first too, weights of 7 bits": STATIC | {"activation_type": UINT8, "weight_type": INT8, "reduce_range": True},
        "first too, ranges by percentile": STATIC | {"activation_type": UINT8, "weight_type": INT8,
                                                     "calibrate_method": quantization.CalibrationMethod.Percentile},
    }  # fmt: skip
    places = {}
    for name, how in ways.items():
        places[name] = folder / f"{len(places)}.onnx"
        quantization.quantize_static(onnx.load(path), places[name], Batches(), **how)
    places["dynamic"] = folder / "dynamic.onnx"
    quantization.quantize_dynamic(onnx.load(path), places["dynamic"], per_channel=True, weight_type=UINT8)
    return places


def as_test_py(encoder: IResNet, images: np.ndarray) -> np.ndarray:
    """One view in PyTorch: channels last, nothing folded."""
    with torch.inference_mode():
        pixels = to_network_input(torch.from_numpy(images), channels_last=True)
        return torch.nn.functional.normalize(encoder(pixels)).numpy()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="iresnet50")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quantisers", action="store_true")
    return parser.parse_args()


def losses(run: Run, original: np.ndarray, images: np.ndarray) -> dict[str, float]:
    found = np.concatenate([run(piece)[0] for piece in np.array_split(images, 5)])
    scores = pair_scores(original, found)
    return {"largest_difference": float(np.abs(found - original).max()), "cosine_mean": float(scores.mean()),
            "cosine_least": float(scores.min())}  # fmt: skip


def measure(given: argparse.Namespace, model: IEFP, folder: Path) -> dict[str, dict]:
    embedder, encoder = Embedder(model), model.backbone_id.to(memory_format=torch.channels_last)
    calibration, shown = read_pictures(given.pictures)
    paths = write_all(embedder, calibration, folder)
    if given.quantisers:
        others = quantised_otherwise(paths["fp32"], calibration, folder)
        paths = {name: paths[name] for name in ("fp32", "int8")} | others
    runs = {f"onnxruntime {name}": open_onnx(path) for name, path in paths.items()}
    results = {name: {"megabytes": path.stat().st_size / 1e6} for name, path in zip(runs, paths.values(), strict=True)}
    runs = {"PyTorch": lambda images: (as_test_py(encoder, images),),
            "PyTorch, folded": run_embedder(embedder.folded())} | runs  # fmt: skip
    original = np.concatenate([as_test_py(encoder, piece) for piece in np.array_split(shown, 5)])
    for name, run in runs.items():
        results.setdefault(name, {}).update(losses(run, original, shown))
    batch = shown[: given.batch_size]
    steps = {name: lambda run=run: run(batch) for name, run in runs.items()}
    seconds = take_turns(steps, CPU, given.rounds, warm_up=1, steps_a_turn=max(1, 8 // given.batch_size))
    for name, each in seconds.items():
        results[name]["images_per_second"] = round(given.batch_size / float(np.median(each)), 2)
        results[name]["times_pytorch"] = ratios(seconds["PyTorch"], each)
    return {name: results[name] for name in runs}


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    model = load_for_embedding(given.weights)[0] if given.weights else fill(IEFP(given.backbone, 1, None)).eval()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(given, model, Path(folder))
    print(f"{'':44}{'MB':>7}{'images/s':>10}{'times PyTorch':>15} (middle half)  difference   cosine    least")
    for name, of in results.items():
        ratio, megabytes = of["times_pytorch"], of.get("megabytes", float("nan"))
        print(f"{name:44}{megabytes:7.1f}{of['images_per_second']:10.1f}{ratio['median']:15.2f} "
              f"({ratio['low']:.2f} to {ratio['high']:.2f})   {of['largest_difference']:10.1e}"
              f"{of['cosine_mean']:9.5f}{of['cosine_least']:9.5f}")  # fmt: skip
    settings = {"benchmark": "export", "backbone": model.backbone_id.backbone, "batch_size": given.batch_size,
                "rounds": given.rounds, "weights": given.weights.name if given.weights else "drawn"}  # fmt: skip
    print(json.dumps(settings | {"machine": machine(CPU)} | results))


if __name__ == "__main__":
    main()
