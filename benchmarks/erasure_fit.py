"""Time and memory of fitting an erasure of age from cached features, as purify.py does it; the features are made up.

    python benchmarks/erasure_fit.py --pictures 100000                    1 GB of disk for as long as it runs
    python benchmarks/erasure_fit.py --pictures 2600000 --folder /scratch     5.2 million features: 11 GB

Both views of each picture are fitted, in float64, and the R2 of the age before and after is measured. Writing the cache
is not timed. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.timing import machine
from data.faces import index_names
from evaluation.erasure.features import PICTURES_A_PIECE, FeatureStore
from evaluation.erasure.fitting import fit_erasure
from evaluation.erasure.pictures import AgedPictures
from evaluation.models_under_test import Extraction
from models.erasure import spline
from utils.distributed import DistInfo
from utils.progress import progress

SECONDS_BETWEEN_LOOKS = 0.05


def own_megabytes() -> float:
    """Memory of this process without files that are mapped into it (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


class PeakMemory:
    """The most of `own_megabytes` while it is open."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = own_megabytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self.peak = max(self.peak, own_megabytes())


def made_up(num_pictures: int, size: int) -> tuple[AgedPictures, np.ndarray]:
    """Pictures that are not there, with ages, and the direction (D,) that the age has in their features."""
    draw = np.random.default_rng(0)
    faces = index_names("/nowhere", (f"{i:08d}.jpg" for i in range(num_pictures)))
    ages = draw.integers(0, 90, num_pictures).astype(np.int16)
    return AgedPictures(faces, ages, "chance", has_people=False), draw.standard_normal(size).astype(np.float32)


def write_cache(store: FeatureStore, pictures: AgedPictures, direction: np.ndarray) -> None:
    draw, count = np.random.default_rng(1), len(pictures.faces)
    starts = range(0, count, PICTURES_A_PIECE)
    for start in progress(starts, len(starts), "writing features"):
        rows = np.arange(start, min(start + PICTURES_A_PIECE, count))
        with store.new(rows) as array:
            draw.standard_normal(out=array, dtype=np.float32)
            array += np.tile(direction, 2) * (pictures.ages[rows, None] / np.float32(30))


def measure(num_pictures: int, size: int, folder: Path) -> dict:
    process, extraction = DistInfo(0, 1, torch.device("cpu")), Extraction(64, 0, folder)
    network = SimpleNamespace(size=size, model=None, path=Path("made up"), of_model={"model": "made up"})
    source = SimpleNamespace(network=network)
    pictures, direction = made_up(num_pictures, size)
    write_cache(FeatureStore(source, pictures.faces, False, extraction, process), pictures, direction)
    with PeakMemory() as memory:
        began, began_cpu = time.perf_counter(), time.process_time()
        chosen = np.arange(num_pictures)
        erasure, facts = fit_erasure(source, pictures, chosen, spline(), seed=0, extraction=extraction, process=process)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    leak = np.abs(erasure.projection @ direction).max() / np.abs(direction).max()
    assert leak < 0.1, f"the direction of the age is still there: {leak}"
    return {"num_features": 2 * num_pictures, "size": size, "seconds": seconds, "cpu_seconds": cpu_seconds,
            "seconds_of_5_2_million": seconds / (2 * num_pictures) * 5.2e6, "peak_mb": memory.peak,
            "before_mb": memory.before, "age_r2_before": facts["age_r2_before"],
            "age_r2_after": facts["age_r2_after"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512, help="numbers in a feature")
    parser.add_argument("--folder", type=Path, help="where the cache is written and removed from; the temporary folder")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        found = measure(flags.pictures, flags.size, Path(folder))
    print(f"{found['num_features']:,} features of {flags.size} numbers: {found['seconds']:.1f} s, "
          f"{found['cpu_seconds']:.1f} s of CPU; {found['seconds_of_5_2_million']:.0f} s for 5.2 million")  # fmt: skip
    print(f"memory beside the cache's pages: {found['before_mb']:.0f} MB before, {found['peak_mb']:.0f} MB at most")
    print(f"R2 of the age: {found['age_r2_before']:.2f} before, {found['age_r2_after']:.2f} after")  # fmt: skip
    print(json.dumps({"benchmark": "erasure_fit", **machine(torch.device("cpu")), **found}))


if __name__ == "__main__":
    main()
