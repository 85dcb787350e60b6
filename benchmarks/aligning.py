"""Photographs aligned a second on one core, beside a plain version; the time of the detector apart.

    python benchmarks/aligning.py                                             some 20 seconds
    python benchmarks/aligning.py --detector face_detection_yunet_2026may.onnx

Photographs of 640 x 480, a drawn face in each, JPEG files that the system has in memory. Ours is what `prepare.py
align` does with one of them, from the file to the aligned file, but for the detector. The plain version does the least
that gives such a file: PIL decodes, scikit-image fits the five points, PIL turns the whole picture and encodes. Both
take turns in one process, on one thread, by the seconds of the CPU. The result is printed once more as JSON, the last
line.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from skimage.transform import estimate_transform
from timing import machine, ratios, take_turns

from data.alignment import detectors as detection
from data.alignment.photos import Aligner
from data.alignment.template import TEMPLATE, template
from data.releases.aligned_folders import JPEG_QUALITY, Face, write_face
from data.synthetic.drawing import draw_face
from data.synthetic.people import SHOT_STREAM, random_stream, sample_person, sample_shot
from meta import IMAGE_SIZE

WIDTH, HEIGHT, FACE_SIDE = 640, 480, 200  # pixels
QUALITY = 90  # of the JPEG files
GOAL = 40  # photographs a second and core


def draw_photographs(folder: Path, num_photographs: int) -> list[tuple[Path, np.ndarray]]:
    """(path, five points) of scenes with noise, which costs a decoder as much as a photograph's detail."""
    made = []
    for k in range(num_photographs):
        stream = random_stream(0, SHOT_STREAM, k, 1)
        patches = Image.fromarray(stream.integers(40, 220, (12, 16, 3)).astype(np.uint8))
        scene = np.asarray(patches.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) + stream.normal(
            0, 6, (HEIGHT, WIDTH, 3)
        )
        scene = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
        corner = stream.integers(0, (WIDTH - FACE_SIDE, HEIGHT - FACE_SIDE))
        face = draw_face(sample_person(0, k), 20 + k % 40, sample_shot(stream), FACE_SIDE)
        scene.paste(Image.fromarray(face), tuple(corner.tolist()))
        path = folder / f"{k:04d}.jpg"
        scene.save(path, quality=QUALITY)
        made.append((path, template(FACE_SIDE) + corner))
    return made


def plain(path: Path, points: np.ndarray, target: Path) -> None:
    """The least that makes an aligned file of a photograph and its points."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    inverse = estimate_transform("similarity", TEMPLATE, points).params[:2].ravel()
    size = (IMAGE_SIZE, IMAGE_SIZE)
    face = picture.transform(size, Image.Transform.AFFINE, tuple(inverse), Image.Resampling.BILINEAR)
    face.save(target, quality=JPEG_QUALITY, subsampling=0)


def measure(num_photographs: int, num_rounds: int, detector_path: str | None) -> dict:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = draw_photographs(folder, num_photographs)
        aligner = Aligner()

        def ours() -> None:
            for path, points in photographs:
                outcome = write_face(Face(str(path), (path.name,), points), str(folder / "ours"), IMAGE_SIZE, aligner)
                assert outcome.failure is None, outcome.failure

        def plainly() -> None:
            for path, points in photographs:
                plain(path, points, folder / "plain" / path.name)

        for below in ("ours", "plain"):
            (folder / below).mkdir()
        seconds = take_turns(
            {"ours": ours, "plain": plainly}, torch.device("cpu"), num_rounds, 1, 1, clock=time.process_time
        )
        result = {"machine": machine(torch.device("cpu")), "num_photographs": num_photographs, "num_rounds": num_rounds}
        for way, times in seconds.items():
            result[way] = round(num_photographs / statistics.median(times), 1)
        result["times_plain"] = ratios(seconds["plain"], seconds["ours"])
        if detector_path is not None:
            result["detector"] = time_detector(photographs, detector_path)
    return result


def time_detector(photographs: list[tuple[Path, np.ndarray]], path: str) -> dict[str, float]:
    """Milliseconds a photograph, by the CPU's clock, to find the faces and to refine one's points."""
    detector = detection.open_detector(path)
    seconds = {"find_ms": [], "refine_ms": []}
    num_found = 0
    for photograph, _ in photographs:
        with Image.open(photograph) as opened:
            picture = opened.convert("RGB")
        began = time.process_time()
        found = detector.find_faces(picture)
        seconds["find_ms"].append(time.process_time() - began)
        if len(found.points):
            num_found += 1
            began = time.process_time()
            detector.refined(picture, found.points[0])
            seconds["refine_ms"].append(time.process_time() - began)
    return {"num_found": num_found} | {what: round(1e3 * statistics.median(each), 1) for what, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--detector", help="ONNX file of a detector, whose time is measured apart")
    flags = parser.parse_args()
    result = measure(flags.photographs, flags.rounds, flags.detector)
    print(f"aligned: {result['ours']:,.0f} photographs a second and core (goal: {GOAL}), a plain version "
          f"{result['plain']:,.0f}; {result['times_plain']['median']} times its speed")  # fmt: skip
    if detector := result.get("detector"):
        print(f"the detector apart: {detector['find_ms']} ms to find faces, {detector['refine_ms']} ms to refine "
              f"points; a face found in {detector['num_found']} of {result['num_photographs']}")  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
