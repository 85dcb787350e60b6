"""What data/alignment/looks.py catches: pictures beside the five-point template by known amounts, and false alarms.

    python benchmarks/alignment_check.py             drawn faces of people that LAYOUT was not made of
    python benchmarks/alignment_check.py --layout    prints LAYOUT, made anew of 300 other drawn faces
    python benchmarks/alignment_check.py --real      also the 100 photographs that scikit-image brings (LFW, 25 x 25)

Prints the share of warnings for each displacement; the last line is JSON. The photographs are small and placed by one
rule for all, so they only show whether what was learnt of drawn faces carries over.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from data.alignment.looks import displacement, grey_pixels, layouts, looks_aligned
from data.synthetic.drawing import draw_face
from data.synthetic.people import AGES_STREAM, OLDEST, SHOT_STREAM, random_stream, sample_person, sample_shot
from meta import IMAGE_SIZE

SEED = 7
LAYOUT_PEOPLE, TEST_PEOPLE = 5 * 10**7, 6 * 10**7  # in no made-up data set
DISPLACEMENTS = {
    "none": (0, 1, 0, 0),
    "4 pixels right": (0, 1, 4, 0),
    "8 pixels right": (0, 1, 8, 0),
    "16 pixels right": (0, 1, 16, 0),
    "24 pixels right": (0, 1, 24, 0),
    "12 pixels up": (0, 1, 0, -12),
    "12 pixels down": (0, 1, 0, 12),
    "20 pixels down": (0, 1, 0, 20),
    "turned by 15 degrees": (15, 1, 0, 0),
    "turned by 30 degrees": (30, 1, 0, 0),
    "turned by 45 degrees": (45, 1, 0, 0),
    "turned by 90 degrees": (90, 1, 0, 0),
    "upside down": (180, 1, 0, 0),
    "half the size": (0, 0.5, 0, 0),
    "0.6 of the size": (0, 0.6, 0, 0),
    "0.8 of the size": (0, 0.8, 0, 0),
    "1.3 times the size": (0, 1.3, 0, 0),
    "1.6 times the size": (0, 1.6, 0, 0),
    "twice the size": (0, 2, 0, 0),
}


def drawn_faces(first_person: int, count: int) -> np.ndarray:
    """uint8 (N, 3, 112, 112), one picture each of so many people, of any age."""
    faces = []
    for person in range(first_person, first_person + count):
        age = int(random_stream(SEED, AGES_STREAM, person).integers(0, OLDEST + 1))
        shot = sample_shot(random_stream(SEED, SHOT_STREAM, person, 0))
        faces.append(draw_face(sample_person(SEED, person), age, shot).transpose(2, 0, 1))
    return np.stack(faces)


def real_faces() -> np.ndarray:
    """uint8 (100, 3, 112, 112): scikit-image's sample of LFW, the mean face's eyes put where the template has them."""
    import skimage.data

    eye_left, eye_right = np.array([7.7, 9.3]), np.array([16.3, 9.3])  # in the mean of the 100 faces of 25 x 25
    scale = 35.24 / (eye_right[0] - eye_left[0])
    shift = (eye_left + eye_right) / 2 - np.array([55.9, 51.6]) / scale
    faces = []
    for grey in skimage.data.lfw_subset()[:100]:
        picture = Image.fromarray((grey * 255).astype(np.uint8)).convert("RGB")
        numbers = (1 / scale, 0, shift[0], 0, 1 / scale, shift[1])
        placed = picture.transform((IMAGE_SIZE,) * 2, Image.Transform.AFFINE, numbers, Image.Resampling.BICUBIC)
        faces.append(np.asarray(placed).transpose(2, 0, 1))
    return np.stack(faces)


def displaced(images: np.ndarray, angle: float, scale: float, x: float, y: float) -> np.ndarray:
    """The pictures with their faces turned, scaled and moved; grey where the picture had nothing."""
    turn, shift = displacement(angle, scale, x, y)
    back = np.linalg.inv(turn)
    start = 0.5 - back @ (shift + 0.5)  # PIL counts from pixel edges
    numbers = (back[0, 0], back[0, 1], start[0], back[1, 0], back[1, 1], start[1])
    moved = [
        Image.fromarray(image.transpose(1, 2, 0)).transform(
            (IMAGE_SIZE,) * 2, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=(90, 90, 90)
        )
        for image in images
    ]
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in moved])


def layout_of(images: np.ndarray) -> np.ndarray:
    """int (24, 12): the mean layout of the pictures and their mirror images, times 100 over its own deviation."""
    mean = layouts(grey_pixels(np.concatenate([images, images[..., ::-1]]))).mean(axis=0)
    return np.rint(100 * mean / mean.std()).astype(int).reshape(24, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--faces", type=int, default=500)
    flags = parser.parse_args()
    if flags.layout:
        for row in layout_of(drawn_faces(LAYOUT_PEOPLE, 300)).tolist():
            print(f"    {tuple(row)},")
        return
    kinds = {"drawn": drawn_faces(TEST_PEOPLE, flags.faces)} | ({"real": real_faces()} if flags.real else {})
    shares = {
        kind: {
            name: float(np.mean(~looks_aligned(displaced(images, *how) if name != "none" else images)))
            for name, how in DISPLACEMENTS.items()
        }
        for kind, images in kinds.items()
    }
    print(f"{'face displaced by':24s}" + "".join(f"{kind:>8s}" for kind in kinds))
    for name in DISPLACEMENTS:
        print(f"{name:24s}" + "".join(f"{100 * share[name]:7.1f}%" for share in shares.values()))
    print(json.dumps({"num_faces": {kind: len(images) for kind, images in kinds.items()}, "share_warned": shares}))


if __name__ == "__main__":
    main()
