"""Pictures a second on one core, the published way and from records; seconds and memory to open a large index.

    python benchmarks/loading.py                     some 30 seconds
    python benchmarks/loading.py --index 5200000     opens a generated index of so many pictures; needs 1 GB of disk

The published way: a JPEG of 256x256 in a folder, PIL, RGB, Resize(112, bicubic), ToTensor, Normalize. Both ways take
turns in one process over the same faces, drawn by program, with files that the system has in memory. Seconds are those
of the CPU, on one thread, so that what else runs on the machine counts little. What the table says is printed once more
as JSON, the last line.
"""

import argparse
import dataclasses
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from data.faces import FaceIndex, index_identity_folders
from data.index_cache import folder_state, index_file, open_index, records_state, save_index
from data.record_packing import pack_folder
from data.records import RecordIndex, index_record_file
from meta import FILENAME_PATTERNS, IMAGE_SIZE

SOURCE_SIZE = 256  # pixels, of the published training set
SOURCE_QUALITY, STORED_QUALITY = 90, 95  # of the JPEG files
PICTURES_PER_IDENTITY = 55.44  # 5,179,510 / 93,431
PATTERN = FILENAME_PATTERNS["ms1mv3"]
MEGABYTE = 1_000_000

# ---------------------------------------------------------------------------------------------------------- pictures


def draw_faces(folder: Path, num_pictures: int) -> tuple[FaceIndex, RecordIndex]:
    """The same faces as 256-pixel files in identity folders, and as 112-pixel pictures in a record file."""
    from PIL import Image

    from data.synthetic.drawing import draw_face, encode_jpeg
    from data.synthetic.people import SHOT_STREAM, random_stream, sample_person, sample_shot

    for k in range(num_pictures):
        shot = sample_shot(random_stream(0, SHOT_STREAM, k, 0))
        drawn = Image.fromarray(draw_face(sample_person(0, k), 20 + k % 40, shot))
        # Enlarged, it has less detail than a photograph of that size: if anything quicker to decode.
        source = encode_jpeg(np.asarray(drawn.resize((SOURCE_SIZE,) * 2, Image.Resampling.BICUBIC)), SOURCE_QUALITY)
        with Image.open(io.BytesIO(source)) as picture:
            resized = picture.convert("RGB").resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
        for place, content in (("256", source), ("112", encode_jpeg(np.asarray(resized), STORED_QUALITY))):
            path = folder / place / f"{k // 8:08d}" / f"{k:08d}_age_{20 + k % 40:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    pack_folder(index_identity_folders(folder / "112", PATTERN), folder / "records" / "train.rec")
    return index_identity_folders(folder / "256", PATTERN), index_record_file(folder / "records" / "train.rec")


def make_ways(sources: FaceIndex, records: RecordIndex) -> dict[str, Callable[[int], object]]:
    """What is compared: each gives picture i."""
    from PIL import Image
    from torchvision import transforms

    from data.transforms import decode_face, to_network_input

    published = transforms.Compose(
        [
            transforms.Resize((IMAGE_SIZE, IMAGE_SIZE), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    return {
        "published": lambda i: published(Image.open(sources.path(i)).convert("RGB")),
        "folder of 256": sources.decode,
        "folder of 256, scaled": dataclasses.replace(sources, scaled=True).decode,
        "records": records.decode,
        "records, then floats": lambda i: to_network_input(records.decode(i)[None]),
        "records, PIL as usual": lambda i: decode_face(records.read(i)),
    }


def measure_pictures(num_pictures: int, num_rounds: int) -> dict:
    import PIL
    import torch
    import torchvision

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sources, records = draw_faces(Path(name), num_pictures)
        ways = make_ways(sources, records)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(num_rounds + 1):
            for way, load in ways.items():
                began = time.process_time()
                for i in range(num_pictures):
                    load(i)
                if number:  # the first round warms up
                    seconds[way].append((time.process_time() - began) / num_pictures)
        difference = pixel_difference(sources, records)
        of_scaled = pixel_difference(sources, dataclasses.replace(sources, scaled=True))
        sizes = [statistics.mean(len(index.read(i)) for i in range(num_pictures)) for index in (sources, records)]
    result = {
        "machine": machine(),
        "versions": {module.__name__: module.__version__ for module in (torch, torchvision, PIL, np)},
        "num_pictures": num_pictures,
        "num_rounds": num_rounds,
        "mean_bytes": dict(zip(("source_256", "stored_112"), map(round, sizes), strict=True)),
        "pixel_difference": difference,
        "pixel_difference_scaled": of_scaled,
        "ways": {way: summary(times, seconds["published"]) for way, times in seconds.items()},
    }
    print(f"{'':24}{'pictures/s':>12}{'µs':>8}{'times as fast':>16}{'from':>8}{'to':>8}")
    for way, row in result["ways"].items():
        print(f"{way:24}{row['pictures_per_second']:12,.0f}{row['microseconds']:8.0f}{row['ratio']:16.2f}"
              f"{row['ratio_low']:8.2f}{row['ratio_high']:8.2f}")  # fmt: skip
    print("stored 112 against resized 256, of 255: mean {mean:.2f}, 99 % up to {percentile_99}, largest {largest}, "
          "PSNR {psnr_db:.1f} dB".format(**difference))  # fmt: skip
    print("decoded at half size against whole, of 255: mean {mean:.2f}, 99 % up to {percentile_99}, largest {largest}, "
          "PSNR {psnr_db:.1f} dB".format(**of_scaled))  # fmt: skip
    return result


def summary(times: list[float], published: list[float]) -> dict[str, float]:
    """Medians over the rounds; the ratio is that of a round, to the published way's turn in it."""
    ratios = [theirs / ours for theirs, ours in zip(published, times, strict=True)]
    return {
        "pictures_per_second": round(1 / statistics.median(times), 1),
        "microseconds": round(statistics.median(times) * 1e6, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
    }


def pixel_difference(sources: FaceIndex, records: FaceIndex | RecordIndex) -> dict[str, float]:
    """How far other pictures are from the resized sources: |difference| of 0..255, over all values."""
    counts = np.zeros(256, np.int64)
    for i in range(len(sources)):
        counts += np.bincount((sources.decode(i).int() - records.decode(i).int()).abs().ravel(), minlength=256)
    total, values = counts.sum(), np.arange(256)
    return {
        "mean": round(float(counts @ values / total), 4),
        "percentile_99": int(np.searchsorted(np.cumsum(counts), 0.99 * total)),
        "largest": int(values[counts > 0][-1]),
        "psnr_db": round(float(10 * np.log10(255**2 / max(counts @ values**2 / total, 1e-9))), 2),
    }


def machine() -> str:
    names = [line.split(":")[1].strip() for line in read_lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"


def read_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


# ------------------------------------------------------------------------------------------------------------- index


def keep_folder_index(root: Path, num_pictures: int) -> None:
    """The folders of all identities, empty, and the kept index of the pictures that would be in them."""
    num_identities = max(2, round(num_pictures / PICTURES_PER_IDENTITY))
    identities = np.arange(num_pictures) * num_identities // num_pictures
    ages = (np.arange(num_pictures) * 7 % 90).astype(np.int16)
    for k in range(num_identities):
        folder = root / f"{k:08d}"
        folder.mkdir(parents=True)
        os.utime(folder, (1_600_000_000 + k, 1_600_000_000))
    names = [b"%08d/%08d_age_%02d.jpg" % row for row in zip(identities.tolist(), range(num_pictures), ages.tolist(),
                                                            strict=True)]  # fmt: skip
    offsets = np.append(0, np.cumsum(np.fromiter(map(len, names), np.int64, num_pictures)))
    index = FaceIndex(
        str(root),
        np.frombuffer(b"".join(names), np.uint8),
        offsets,
        identities,
        ages,
        tuple(f"{k:08d}" for k in range(num_identities)),
    )
    save_index(index_file(str(root), PATTERN), index, folder_state(str(root), PATTERN))


def keep_record_index(path: Path, num_pictures: int) -> None:
    """A record file of the right size with nothing in it, and its kept index."""
    num_identities = max(2, round(num_pictures / PICTURES_PER_IDENTITY))
    keys = np.arange(1, num_pictures + 1)
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.truncate(6144 * (num_pictures + 1))  # takes no space on most file systems
    path.with_suffix(".idx").write_text("0\t0\n")
    index = RecordIndex(
        str(path),
        path.stat().st_size,
        keys,
        6144 * keys,
        (keys - 1) * num_identities // num_pictures,
        (keys % 90).astype(np.int16),
        tuple(map(str, range(num_identities))),
    )
    save_index(index_file(str(path), None), index, records_state(str(path)))


def open_and_tell(path: str, with_torch: bool) -> None:
    """Runs in a process of its own: prints seconds and megabytes as JSON."""
    if with_torch:
        import torch  # noqa: F401

    before, began = peak_megabytes(), time.perf_counter()
    index = open_index(path, PATTERN, report=sys.exit)  # a sentence would say that it was listed again
    seconds = time.perf_counter() - began
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    print(json.dumps({"num_pictures": len(index), "num_identities": index.num_identities, "seconds": round(seconds, 3),
                      "peak_mb": round(peak_megabytes()), "peak_mb_before": round(before),
                      "arrays_mb": round(sum(array.nbytes for array in arrays) / MEGABYTE)}))  # fmt: skip


def peak_megabytes() -> float:
    """Most memory that this process has had so far."""
    # On Linux getrusage reports the peak of the process that started this one if that was higher.
    for line in read_lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def measure_index(num_pictures: int) -> dict:
    result: dict = {"machine": machine(), "num_pictures": num_pictures, "opened": {}}
    print(f"{'':24}{'seconds':>10}{'peak MB':>10}{'before MB':>12}{'arrays MB':>12}")
    with tempfile.TemporaryDirectory() as name:
        folder, records = Path(name, "faces"), Path(name, "records", "train.rec")
        keep_folder_index(folder, num_pictures)
        keep_record_index(records, num_pictures)
        for kind, path in (("folder", folder), ("records", records)):
            for suffix, flags in (("", []), (", torch loaded", ["--with-torch"])):
                command = [sys.executable, __file__, "--open", str(path), *flags]
                row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                result["opened"][kind + suffix] = row
                print(f"{kind + suffix:24}{row['seconds']:10.2f}{row['peak_mb']:10,}{row['peak_mb_before']:12,}"
                      f"{row['arrays_mb']:12,}")  # fmt: skip
    return result


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--pictures", type=int, default=256)
    flags.add_argument("--rounds", type=int, default=15)
    flags.add_argument("--index", type=int, default=0, help="open an index of so many pictures instead")
    flags.add_argument("--open", metavar="PATH", help="what --index starts: open this data set once")
    flags.add_argument("--with-torch", action="store_true", help="with --open: load torch before")
    chosen = flags.parse_args()
    if min(chosen.pictures, chosen.rounds) < 1 or not (chosen.index == 0 or chosen.index >= 2):
        flags.error("--pictures and --rounds have to be at least 1, --index at least 2")
    if chosen.open:
        open_and_tell(chosen.open, chosen.with_torch)
    else:
        print(json.dumps(measure_index(chosen.index) if chosen.index else
                         measure_pictures(chosen.pictures, chosen.rounds)))  # fmt: skip


if __name__ == "__main__":
    main()
