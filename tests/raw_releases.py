"""Raw releases of data sets, small and drawn, for the tests of what is made of them."""

import csv

import numpy as np
import pytest
from PIL import Image

from data.alignment.landmarks import COLUMNS
from data.alignment.template import TEMPLATE
from data.releases import aligned_folders

SIZE = 150  # pixels of a raw picture
FGNET_FILES = ("001A02.JPG", "001a05.jpg", "001A43a.JPG", "001A43B.JPG", "002A00.JPG", "082A69.JPG")
FGNET_RESULT = ["001/001A02.JPG", "001/001A05.JPG", "001/001A43a.JPG", "001/001A43b.JPG", "002/002A00.JPG",
                "082/082A69.JPG"]  # fmt: skip
MORPH2_FILES = ("000001_0M30.JPG", "000001_1M22.JPG", "000001_2M22.JPG", "000001_10M41.JPG", "000001_3M41.JPG",
                "00002_00F17.jpg", "00002_01F19.JPG", "000003_5M50.JPG", "000003_4M50.JPG", "000003_6M50.JPG",
                "000004_0M33.JPG", "000005_0F20.JPG", "000005_1F60.JPG", "000006_0F21.JPG",
                "000006_1F61.JPG")  # fmt: skip


def draw(path, seed):
    """A turned, scaled and shifted face of five dots, bright on grey that `seed` decides; returns the points."""
    random = np.random.default_rng(seed)
    angle, scale = random.uniform(-0.6, 0.6), random.uniform(0.6, 1.1)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - TEMPLATE.mean(0)) @ turn.T + SIZE / 2 + random.uniform(-8, 8, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    light = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * (1.5 * scale) ** 2)) for u, v in points)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.rint(20 + seed % 50 + (235 - 20 - seed % 50) * np.minimum(light, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=98)
    return points


def write_pts(path, points, layout):
    """68 points of which the five are right and all others elsewhere."""
    rows = np.random.default_rng(3).uniform(0, SIZE, (68, 2))
    if layout == "fgnet":
        rows[[31, 36, 67, 48, 54]] = points
    else:
        rows[36:42], rows[42:48], rows[[30, 48, 54]] = points[0], points[1], points[2:]
        rows += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("version: 1\nn_points: 68\n{\n" + "".join(f"{x:.4f} {y:.4f}\n" for x, y in rows) + "}\n")


def write_csv(path, points):
    """A table of five points for each picture in a dict."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        rows.writerows((name, *(f"{number:.4f}" for number in xy.ravel())) for name, xy in points.items())
    return path


def names_in(folder):
    """Relative paths of all files below a folder, hidden ones too, but for the mark of a finished folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".aligned-")]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@pytest.fixture
def fgnet(tmp_path):
    """FG-NET as released, one folder deeper than given."""
    raw = tmp_path / "raw"
    for seed, name in enumerate(FGNET_FILES):
        points = draw(raw / "FGNET" / "Images" / name, seed)
        write_pts(raw / "FGNET" / "points" / f"{name[:-4].lower()}.pts", points, "fgnet")
    (raw / "FGNET" / "Images" / "Thumbs.db").write_bytes(b"x")
    return raw


@pytest.fixture
def interrupt(monkeypatch):
    """Interrupts the work after that many pictures; call it with None to let it run."""
    write_face = aligned_folders.write_face

    def after(count):
        done = []

        def work(face, folder, size, aligner):
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(face)
            return write_face(face, folder, size, aligner)

        monkeypatch.setattr(aligned_folders, "write_face", write_face if count is None else work)

    return after


@pytest.fixture
def morph2(tmp_path):
    raw = tmp_path / "raw"
    points = {f"Album2/{i % 2}/{name}": draw(raw / "Album2" / f"{i % 2}" / name, i)
              for i, name in enumerate(MORPH2_FILES)}  # fmt: skip
    return raw, write_csv(tmp_path / "points.csv", points)


def calfw_text(per_fold=1, space=" "):
    """The official list with `per_fold` genuine pairs in a fold."""
    lines = []
    for k in range(10 * per_fold):
        lines += [f"A_{k}_0001.jpg{space}{k // per_fold + 1}", f"A_{k}_0002.jpg{space}{k // per_fold + 1}"]
    for k in range(10 * per_fold):
        lines += [f"A_{k}_0001.jpg{space}0", f"A_{(k + 1) % (10 * per_fold)}_0003.jpg{space}0"]
    return "\n".join(lines) + "\n"


CALFW = calfw_text()
